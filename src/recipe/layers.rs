//! How the layers of a recipe go over each other: the paper's defaults, the model's
//! recommendation, the user's own values.
//!
//! - A plain key replaces the value below it. An object is merged key by key, unless it has a
//!   `kind`: then it replaces.
//! - The lists (`masks`, `refine`, `checks`) are tagged by kind. A *list* says which entries there
//!   are, in this order; the values that an entry does not give are those of the same kind below,
//!   or that kind's defaults. An *object* changes or adds entries by kind and leaves the others:
//!   `{"size": {"min_area": 0.01}}`; `null` removes a kind. `null` for the whole list empties it.
//! - A key with dots is a path: `checks.size.min_area` is `{"checks": {"size": {"min_area": ...}}}`.
//!
//! Recipes of version 0.1 had one object each for `attention`, `threshold`, `refine` and `filter`.
//! [`current`] is the one place that knows them.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The keys whose values are lists tagged by kind.
const LISTS: [&str; 3] = ["masks", "refine", "checks"];

/// Puts the values of `layer` over `value`, a whole recipe; `what` names the layer in messages.
///
/// # Errors
/// [`Error::Value`] for a key that recipes do not have, or a list that is none.
pub(super) fn apply(value: &mut Value, layer: &Map<String, Value>, what: &str) -> Result<()> {
    for (path, above) in layer {
        let mut steps = path.split('.');
        let first = steps.next().unwrap_or_default();
        let nested = steps.rev().fold(above.clone(), |inner, step| {
            Value::Object([(step.to_owned(), inner)].into_iter().collect())
        });
        let (key, above) = current(first, nested);
        let Some(below) = value.get_mut(key) else {
            let known = value.as_object().map_or_else(String::new, |o| {
                o.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            });
            return Err(Error::value(
                what,
                format!("the keys {known}"),
                format!("{path:?}"),
            ));
        };
        if LISTS.contains(&key) {
            merge_list(below, above, &format!("{what}, key {path:?}"))?;
        } else {
            merge(below, &above);
        }
    }
    Ok(())
}

/// A key and its value in the form of this version.
fn current(key: &str, value: Value) -> (&str, Value) {
    let under = |kind: &str, value: Value| {
        Value::Object([(kind.to_owned(), value)].into_iter().collect())
    };
    match key {
        "attention" => ("masks", under("attention", value)),
        "threshold" => ("masks", under("attention", under("threshold", value))),
        "filter" => ("checks", under("size", value)),
        // The solver's own values, none of which is an object.
        "refine"
            if value.as_object().is_some_and(|o| {
                !o.is_empty() && !o.values().any(|v| v.is_object() || v.is_null())
            }) =>
        {
            ("refine", under("bilateral", value))
        }
        _ => (key, value),
    }
}

fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(b), Value::Object(a)) if !a.contains_key("kind") => {
            for (key, value) in a {
                merge(b.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (b, a) => *b = a.clone(),
    }
}

/// Whether a list's entry is of this kind.
fn is_kind(entry: &Value, kind: &str) -> bool {
    entry.get("kind").and_then(Value::as_str) == Some(kind)
}

/// Writes the values of `over` into a list's entry.
fn put(entry: &mut Value, over: Map<String, Value>) {
    if let Value::Object(entry) = entry {
        entry.extend(over);
    }
}

/// An entry of this kind with its defaults.
fn plain(kind: &str) -> Value {
    Value::Object([("kind".to_owned(), kind.into())].into_iter().collect())
}

fn merge_list(below: &mut Value, above: Value, place: &str) -> Result<()> {
    let Value::Array(list) = below else {
        return Err(Error::backend("recipe", format!("{place} is not a list")));
    };
    match above {
        Value::Null => list.clear(),
        Value::Array(entries) => {
            let mut rest = std::mem::take(list);
            for entry in entries {
                let kind = entry.get("kind").and_then(Value::as_str).map(str::to_owned);
                list.push(match (entry, kind) {
                    (Value::Object(own), Some(kind)) => {
                        // The first of the kind inherits from the first below, and so on.
                        let at = rest.iter().position(|e| is_kind(e, &kind));
                        let mut entry = at.map_or_else(|| plain(&kind), |at| rest.remove(at));
                        put(&mut entry, own);
                        entry
                    }
                    // Refused when the recipe is read.
                    (entry, _) => entry,
                });
            }
        }
        Value::Object(kinds) => {
            for (kind, change) in kinds {
                let count = list.iter().filter(|e| is_kind(e, &kind)).count();
                match (change, count) {
                    (Value::Null, _) => list.retain(|e| !is_kind(e, &kind)),
                    (Value::Object(own), 0) => {
                        let mut entry = plain(&kind);
                        put(&mut entry, own);
                        list.push(entry);
                    }
                    (Value::Object(own), 1) => {
                        if let Some(entry) = list.iter_mut().find(|e| is_kind(e, &kind)) {
                            put(entry, own);
                        }
                    }
                    (Value::Object(_), several) => {
                        return Err(Error::value(
                            place,
                            format!("the whole list, since it has several {kind:?}"),
                            format!("a change to one of {several}"),
                        ));
                    }
                    (other, _) => {
                        return Err(Error::value(
                            format!("{place}, {kind:?}"),
                            "an object with the kind's values, or null to remove it",
                            other,
                        ));
                    }
                }
            }
        }
        other => {
            return Err(Error::value(
                place,
                "a list of objects with a \"kind\", or an object of changes by kind",
                other,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mask::{AnyCheck, AnyRefiner, AnySource, Attention, SubjectTokens, Threshold};
    use crate::recipe::Recipe;

    fn resolve(model: Value, own: Value) -> Recipe {
        let map = |v: Value| v.as_object().cloned().unwrap();
        Recipe::resolve(&map(model), &map(own)).unwrap()
    }

    fn attention(recipe: &Recipe) -> &Attention {
        match &recipe.masks[..] {
            [AnySource::Attention(a)] => a,
            other => panic!("{other:?}"),
        }
    }

    fn model() -> Value {
        json!({"masks": [{"kind": "attention", "levels": [0], "threshold": {"fixed": 0.35}}],
            "refine": [{"kind": "bilateral", "lambda": 32.0}]})
    }

    #[test]
    fn a_list_inherits_by_kind_and_an_object_changes_by_kind() {
        for own in [
            json!({"masks": [{"kind": "attention", "subject": "mean"}]}),
            json!({"masks": {"attention": {"subject": "mean"}}}),
            json!({"masks.attention": {"subject": "mean"}}),
            json!({"masks.attention.subject": "mean"}),
        ] {
            let recipe = resolve(model(), own);
            let a = attention(&recipe);
            assert_eq!((&a.levels[..], a.subject), (&[0][..], SubjectTokens::Mean));
            assert_eq!(a.threshold, Threshold::Fixed(0.35));
            assert!(matches!(&recipe.refine[..], [AnyRefiner::Bilateral(b)]
                if b.lambda == 32.0 && b.sigma_spatial == 16.0));
        }
        // A value is replaced whole.
        let recipe = resolve(model(), json!({"masks.attention.threshold": "otsu"}));
        assert_eq!(attention(&recipe).threshold, Threshold::Otsu);
        // Several changes, one after the other.
        let recipe = resolve(
            model(),
            json!({"checks.size.min_width": 3, "checks.size.max_width": 9}),
        );
        assert!(matches!(&recipe.checks[..], [AnyCheck::Size(s)]
            if (s.min_width, s.max_width) == (3, 9)));
    }

    #[test]
    fn a_list_says_which_entries_there_are() {
        for own in [
            json!({"refine": []}),
            json!({"refine": null}),
            json!({"refine": {"bilateral": null}}),
            json!({"refine.bilateral": null}),
        ] {
            assert_eq!(
                resolve(model(), own),
                resolve(model(), json!({"refine": []}))
            );
        }
        assert!(resolve(model(), json!({"refine": []})).refine.is_empty());
        let two = json!([{"kind": "bilateral", "passes": 1}, {"kind": "bilateral"}]);
        let recipe = resolve(
            json!({"refine": two}),
            json!({"refine": [
                {"kind": "bilateral"}, {"kind": "bilateral", "lambda": 1.0}, {"kind": "bilateral"},
            ]}),
        );
        let passes: Vec<(u32, f64)> = recipe
            .refine
            .iter()
            .map(|AnyRefiner::Bilateral(b)| (b.passes, b.lambda))
            .collect();
        assert_eq!(passes, [(1, 256.0), (2, 1.0), (2, 256.0)]);
        let map = |v: Value| v.as_object().cloned().unwrap();
        let e = Recipe::resolve(
            &map(json!({"refine": two})),
            &map(json!({"refine.bilateral.passes": 3})),
        )
        .unwrap_err()
        .to_string();
        assert!(
            e.contains("refine.bilateral.passes") && e.contains("whole list"),
            "{e}"
        );
    }

    #[test]
    fn recipes_of_version_0_1_mean_what_they_did() {
        let old = json!({"attention": {"levels": [0]}, "threshold": {"fixed": 0.35},
            "refine": {"lambda": 32.0}});
        assert_eq!(resolve(old.clone(), json!({})), resolve(model(), json!({})));
        for (own, now) in [
            (
                json!({"attention": {"subject": "mean"}}),
                json!({"masks.attention.subject": "mean"}),
            ),
            (
                json!({"threshold": "otsu"}),
                json!({"masks.attention.threshold": "otsu"}),
            ),
            (
                json!({"threshold.fixed": 0.1}),
                json!({"masks.attention.threshold.fixed": 0.1}),
            ),
            (json!({"refine": null}), json!({"refine": []})),
            (
                json!({"refine": {"passes": 1}}),
                json!({"refine.bilateral.passes": 1}),
            ),
            (json!({"refine": {}}), json!({})),
            (
                json!({"filter": {"components": "each"}}),
                json!({"checks.size.components": "each"}),
            ),
            (
                json!({"filter.min_area": 0.001}),
                json!({"checks.size.min_area": 0.001}),
            ),
        ] {
            let want = resolve(model(), now);
            assert_eq!(resolve(model(), own.clone()), want, "{own}");
            assert_eq!(resolve(old.clone(), own.clone()), want, "{own}");
        }
    }

    /// The whole recipe as version 0.1 wrote it into banks, and its hash there.
    const STORED: &str = include_str!("../../tests/data/recipe-0.1.json");
    const STORED_HASH: &str = "9daad77d9b52e91837d36309138f2977";

    #[test]
    fn a_stored_recipe_of_version_0_1_keeps_its_hash() {
        let place = std::path::Path::new("recipes/old.json");
        let recipe = Recipe::read_stored(STORED, STORED_HASH, place).unwrap();
        assert_eq!(attention(&recipe).threshold, Threshold::Fixed(0.35));
        assert!(matches!(&recipe.refine[..], [AnyRefiner::Bilateral(b)] if b.lambda == 32.0));
        assert_eq!((recipe.height, recipe.steps), (64, 12));
        // Another value is another recipe.
        let other = STORED.replace("0.35", "0.36");
        let e = Recipe::read_stored(&other, STORED_HASH, place)
            .unwrap_err()
            .to_string();
        assert!(e.contains(STORED_HASH) && e.contains("old.json"), "{e}");
        // Blanks and quotes inside of texts count.
        let odd = Recipe {
            negative_prompt: "a \"b \\\\\" c".into(),
            ..recipe.clone()
        };
        let text = serde_json::to_string_pretty(&odd).unwrap();
        assert_eq!(
            Recipe::read_stored(&text, &odd.hash().unwrap(), place).unwrap(),
            odd
        );
        // What this version stores is read back the same.
        let text = serde_json::to_string_pretty(&recipe).unwrap();
        let hash = recipe.hash().unwrap();
        assert_eq!(Recipe::read_stored(&text, &hash, place).unwrap(), recipe);
    }

    /// A new kind, or a new field of a kind, must not change these.
    #[test]
    fn hashes_stay() {
        assert_eq!(
            Recipe::default().hash().unwrap(),
            "f0a0db7217353333a78c6310d21e3ada"
        );
        assert_eq!(
            resolve(model(), json!({})).hash().unwrap(),
            "03fcad064539ea47bfbd48e5fd2e170b"
        );
    }
}
