//! The words under which a model draws the categories of a dataset.
//!
//! A model that lists its categories (`categories.json`) is asked for them by the names that it was
//! trained on, which need not be the dataset's: COCO's `donut` is the `doughnut` of a model trained
//! on LVIS names. Records keep the dataset's category; prompts use these words.
//!
//! For each category of the dataset, in this order:
//!
//! 1. the user's alias ([`Aliases`]): name, definition or prompt;
//! 2. the model's category of the same name (ignoring case, `_`, `-`);
//! 3. the model's category with that synonym, if it is the only one.
//!
//! A category of the model stands for one category of the dataset: one that has its name, else the
//! only one that has its synonym. What is left over is not drawn unless an alias says how.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::category::{CategoryTable, normalize};
use crate::error::{Error, Result};

/// How the user wants a category to be drawn; what is absent comes from the model or the dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// The name that the model knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The definition that recipes may add to a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// The whole prompt; the name stands in it as a word of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// The user's aliases, by the dataset's name of the category.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    place: String,
    of: BTreeMap<String, Alias>,
}

/// One entry as files hold it: a name, or a table.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Name(String),
    Alias(Alias),
}

impl Aliases {
    /// Reads a TOML (by its ending) or JSON file: an object of `"category": "name"` or
    /// `"category": {"name": ..., "definition": ..., "prompt": ...}`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] naming the entry.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let place = path.display().to_string();
        let entries: BTreeMap<String, serde_json::Value> =
            if path.extension().is_some_and(|e| e == "toml") {
                toml::from_str(&text).map_err(|e| Error::format(path, "TOML", e))?
            } else {
                serde_json::from_str(&text)
                    .map_err(|e| Error::format(path, "a JSON object of aliases", e))?
            };
        let mut of = BTreeMap::new();
        for (category, value) in entries {
            let got = value.to_string();
            let alias = match serde_json::from_value(value) {
                Ok(Entry::Name(name)) => Alias {
                    name: Some(name),
                    ..Alias::default()
                },
                Ok(Entry::Alias(alias)) => alias,
                Err(_) => {
                    return Err(Error::format(
                        path,
                        format!(
                            "a name, or an object of name, definition and prompt, for {category:?}"
                        ),
                        got,
                    ));
                }
            };
            let texts = [&alias.name, &alias.definition, &alias.prompt];
            if texts
                .iter()
                .any(|t| t.as_ref().is_some_and(|t| t.trim().is_empty()))
                || texts.iter().all(|t| t.is_none())
            {
                return Err(Error::format(
                    path,
                    format!("texts that are not empty for {category:?}"),
                    got,
                ));
            }
            of.insert(category, alias);
        }
        Ok(Self { place, of })
    }

    /// From a list of `CATEGORY=NAME` and of files ([`Aliases::read`]); later ones go over earlier
    /// ones.
    ///
    /// # Errors
    /// As [`Aliases::read`]; [`Error::Value`] for an item that is neither.
    pub fn collect(items: &[String]) -> Result<Self> {
        let mut all = Self::default();
        let mut places: Vec<&str> = Vec::new();
        for item in items {
            let path = Path::new(item);
            let pair = item.split_once('=').map(|(c, n)| (c.trim(), n.trim()));
            match pair {
                Some((category, name))
                    if !path.exists() && !category.is_empty() && !name.is_empty() =>
                {
                    let alias = Alias {
                        name: Some(name.to_owned()),
                        ..Alias::default()
                    };
                    all.of.insert(category.to_owned(), alias);
                }
                None if !path.exists() => {
                    return Err(Error::value(
                        "aliases",
                        "CATEGORY=NAME, or a JSON or TOML file",
                        format!("{item:?}"),
                    ));
                }
                _ => all.of.extend(Self::read(path)?.of),
            }
            places.push(item);
        }
        all.place = places.join(", ");
        Ok(all)
    }

    /// The alias of a category.
    pub fn get(&self, category: &str) -> Option<&Alias> {
        self.of.get(category)
    }
}

/// The words for one category.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The name that stands in prompts.
    pub name: String,
    /// Empty where none is known.
    pub definition: String,
    /// The user's own prompt.
    pub prompt: Option<String>,
}

/// Why a category of the model would stand for one of the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Alias,
    Name,
    Synonym,
}

/// The words for every category of a dataset that a model can draw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vocabulary {
    words: HashMap<String, Words>,
    problems: Vec<String>,
}

impl Vocabulary {
    /// For the categories of `dataset` (whose definitions serve where the model has none); without
    /// a table of the `model` it draws any name.
    ///
    /// # Errors
    /// [`Error::Value`] for an alias of a category that the dataset does not have, whose name the
    /// model does not know, or whose name is not in its prompt; each with the file's name.
    pub fn new(
        dataset: &CategoryTable,
        model: Option<&CategoryTable>,
        aliases: &Aliases,
    ) -> Result<Self> {
        let at = |category: &str| format!("{}: alias of {category:?}", aliases.place);
        for category in aliases.of.keys() {
            dataset.by_exact_name(category).ok_or_else(|| {
                let hint = dataset.get(category).err().map(|e| e.to_string());
                Error::value(
                    at(category),
                    format!("a category of {}", dataset.place()),
                    hint.unwrap_or_else(|| format!("{category:?}, spelt otherwise")),
                )
            })?;
        }
        let mut problems = Vec::new();
        // The model's category (its id) -> categories of the dataset that a rule gives it to.
        let mut claims: HashMap<u64, Vec<(Claim, &str)>> = HashMap::new();
        let mut words = HashMap::new();
        for own in dataset.categories() {
            let alias = aliases.get(&own.name);
            let asked = alias.and_then(|a| a.name.as_deref());
            let known = match model.map(|m| m.get(asked.unwrap_or(&own.name))) {
                Some(Ok(known)) => Some(known),
                Some(Err(e)) if asked.is_some() => {
                    return Err(Error::value(
                        at(&own.name),
                        "a name that the model was trained on",
                        e,
                    ));
                }
                // A prompt of the user's own is drawn as it stands.
                Some(Err(_)) if alias.is_some_and(|a| a.prompt.is_some()) => None,
                Some(Err(e)) => {
                    // Unknown names are common and go without a word; ambiguous ones do not.
                    if model.is_some_and(|m| m.is_shared(&own.name)) {
                        problems.push(e.to_string());
                    }
                    continue;
                }
                None => None,
            };
            if let Some(known) = known {
                let claim = if asked.is_some() {
                    Claim::Alias
                } else if normalize(&known.name) == normalize(&own.name) {
                    Claim::Name
                } else {
                    Claim::Synonym
                };
                claims.entry(known.id).or_default().push((claim, &own.name));
            }
            let name = known.map_or(asked.unwrap_or(&own.name), |k| k.name.as_str());
            let of_model = known.map_or("", |k| k.definition.as_str());
            let definition = match alias.and_then(|a| a.definition.as_deref()) {
                Some(given) => given,
                None if of_model.is_empty() => own.definition.as_str(),
                None => of_model,
            };
            let prompt = alias.and_then(|a| a.prompt.clone());
            if let Some(prompt) = &prompt {
                let subject = normalize(name.split('(').next().unwrap_or(name));
                if !normalize(prompt).contains(subject.trim_matches('_')) {
                    return Err(Error::value(
                        at(&own.name),
                        format!("a prompt with the name {name:?} in it"),
                        format!("{prompt:?}"),
                    ));
                }
            }
            words.insert(
                own.name.clone(),
                Words {
                    name: name.to_owned(),
                    definition: definition.to_owned(),
                    prompt,
                },
            );
        }
        for (id, claims) in claims {
            if claims.len() < 2 {
                continue;
            }
            // Aliases are what the user wants; one that has the very name keeps it.
            let named = claims.iter().filter(|(c, _)| *c == Claim::Name).count();
            let lost: Vec<&str> = claims
                .iter()
                .filter(|(claim, _)| match claim {
                    Claim::Alias => false,
                    Claim::Name => named != 1,
                    Claim::Synonym => true,
                })
                .map(|(_, name)| *name)
                .collect();
            if lost.is_empty() {
                continue;
            }
            for name in &lost {
                words.remove(*name);
            }
            let of = model.and_then(|m| m.by_id(id)).map_or("", |c| &c.name);
            problems.push(format!(
                "{} would be drawn as the model's {of:?}, which stands for another category, too; \
                 an alias decides",
                lost.join(", ")
            ));
        }
        problems.sort_unstable();
        Ok(Self { words, problems })
    }

    /// The words for a category of the dataset; `None` where the model cannot draw it.
    pub fn get(&self, category: &str) -> Option<&Words> {
        self.words.get(category)
    }

    /// What an alias should decide: names that several categories share.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Category;

    /// `name=synonym=synonym`, ...
    fn table(place: &str, names: &[&str]) -> CategoryTable {
        let categories = (1..)
            .zip(names)
            .map(|(id, text)| {
                let mut words = text.split('=').map(str::to_owned);
                Category {
                    id,
                    name: words.next().unwrap(),
                    synset: String::new(),
                    definition: format!("definition {id} of {place}"),
                    synonyms: words.collect(),
                    frequency: crate::dataset::Frequency::Rare,
                    image_count: 0,
                    instance_count: 0,
                }
            })
            .collect();
        CategoryTable::new(place, categories).unwrap()
    }

    fn aliases(text: &str) -> Result<Aliases> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases.json");
        std::fs::write(&path, text).unwrap();
        Aliases::read(&path)
    }

    fn name<'v>(v: &'v Vocabulary, category: &str) -> Option<&'v str> {
        v.get(category).map(|w| w.name.as_str())
    }

    #[test]
    fn prompts_use_the_name_that_the_model_was_trained_on() {
        let coco = table("coco", &["donut", "hot dog", "zebra", "Apple"]);
        let model = table("model", &["doughnut=donut", "hot_dog", "apple"]);
        let v = Vocabulary::new(&coco, Some(&model), &Aliases::default()).unwrap();
        assert_eq!(name(&v, "donut"), Some("doughnut"));
        assert_eq!(v.get("donut").unwrap().definition, "definition 1 of model");
        assert_eq!(name(&v, "hot dog"), Some("hot_dog"));
        assert_eq!(name(&v, "Apple"), Some("apple"));
        assert_eq!(name(&v, "zebra"), None);
        assert!(v.problems().is_empty());
        // A model without a table draws any name, as the dataset has it.
        let v = Vocabulary::new(&coco, None, &Aliases::default()).unwrap();
        assert_eq!(name(&v, "donut"), Some("donut"));
        assert_eq!(v.get("zebra").unwrap().definition, "definition 3 of coco");
    }

    #[test]
    fn one_category_of_the_model_stands_for_one_of_the_dataset() {
        let model = table(
            "model",
            &["doughnut=donut=ring", "cup=mug=beaker", "a=x", "b=x"],
        );
        let data = table("data", &["doughnut", "donut", "mug", "beaker", "x"]);
        let v = Vocabulary::new(&data, Some(&model), &Aliases::default()).unwrap();
        assert_eq!(name(&v, "doughnut"), Some("doughnut"));
        for lost in ["donut", "mug", "beaker", "x"] {
            assert_eq!(name(&v, lost), None, "{lost}");
        }
        let said = v.problems().join("\n");
        for words in [
            "donut would",
            "mug, beaker would",
            "\"x\"",
            "an alias decides",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let own = aliases(r#"{"mug": "cup", "x": {"name": "b", "definition": "d"}}"#).unwrap();
        let v = Vocabulary::new(&data, Some(&model), &own).unwrap();
        assert_eq!((name(&v, "mug"), name(&v, "x")), (Some("cup"), Some("b")));
        assert_eq!(name(&v, "beaker"), None);
        assert_eq!(v.get("x").unwrap().definition, "d");
    }

    #[test]
    fn aliases_come_as_pairs_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(
            &path,
            "donut = \"x\"\n[\"hot dog\"]\nprompt = \"a hot dog\"\n",
        )
        .unwrap();
        let file = path.display().to_string();
        let all = Aliases::collect(&[file, "donut = doughnut".into()]).unwrap();
        let name = |c: &str| all.get(c).and_then(|a| a.name.as_deref());
        assert_eq!(name("donut"), Some("doughnut"));
        let prompt = all.get("hot dog").and_then(|a| a.prompt.as_deref());
        assert_eq!(prompt, Some("a hot dog"));
        for wrong in ["donut", "=x", "donut="] {
            assert!(Aliases::collect(&[wrong.into()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn aliases_are_checked_where_they_are_given() {
        let data = table("data", &["mouse", "cat"]);
        let model = table("model", &["mouse_(animal)", "cat"]);
        let refused = |text: &str, words: &str| {
            let error = aliases(text)
                .and_then(|a| Vocabulary::new(&data, Some(&model), &a))
                .unwrap_err()
                .to_string();
            assert!(error.contains("aliases.json"), "{error}");
            assert!(error.contains(words), "{error}");
        };
        refused(r#"{"mouse": "mouse_(animl)"}"#, "trained on");
        refused(r#"{"mose": "cat"}"#, "did you mean mouse");
        refused(
            r#"{"mouse": {"nme": "cat"}}"#,
            "name, definition and prompt",
        );
        refused(r#"{"mouse": ""}"#, "not empty");
        refused(r#"{"mouse": {}}"#, "not empty");
        refused("[]", "object");
        refused(r#"{"mouse": {"prompt": "a rodent"}}"#, "with the name");
        let own = aliases(r#"{"mouse": {"prompt": "a computer mouse"}}"#).unwrap();
        let v = Vocabulary::new(&data, Some(&model), &own).unwrap();
        let words = v.get("mouse").unwrap();
        assert_eq!(words.prompt.as_deref(), Some("a computer mouse"));
        assert_eq!(words.name, "mouse");
    }
}
