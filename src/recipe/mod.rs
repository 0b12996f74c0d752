//! The recipe: everything that decides what a mosaic looks like, but for the weights and the seed.
//!
//! The defaults are those of MosaicFusion (arXiv 2309.13042). A model may recommend others (in
//! `mosaicbank.json`, beside `model_index.json`), and the user's own override both:
//! [`Recipe::resolve`]; [`layers`] has the rules.

pub mod layers;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::{AnyCheck, AnyRefiner, AnySource, Attention, Bilateral, Reading, SizeCheck};

/// Declares [`SchedulerKind`]: one line per scheduler that a recipe can name.
macro_rules! scheduler_kinds {
    ($(#[doc = $doc:literal] $variant:ident = $name:literal,)+) => {
        /// The schedulers that a recipe can name; what each does is in its file of the room
        /// `diffusion`, which registers it under the same name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum SchedulerKind {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)+
        }

        impl SchedulerKind {
            /// All of them, in the order that messages list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in recipes.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

scheduler_kinds! {
    #[doc = "Pseudo linear multistep (Liu et al., 2022), without Runge-Kutta warm-up."]
    Pndm = "pndm",
    #[doc = "Deterministic DDIM (Song et al., 2021)."]
    Ddim = "ddim",
    #[doc = "Euler steps of the probability-flow equation (Karras et al., 2022)."]
    Euler = "euler",
    #[doc = "DPM-Solver++ 2M (Lu et al., 2022)."]
    DpmSolver = "dpm_solver",
    #[doc = "DPM-Solver++ 2M on the noise levels of Karras et al., 2022."]
    DpmSolverKarras = "dpm_solver_karras",
    #[doc = "Latent consistency sampling (Luo et al., 2023)."]
    Lcm = "lcm",
}

impl SchedulerKind {
    /// The scheduler of this name.
    ///
    /// # Errors
    /// [`Error::Value`] listing the accepted names.
    pub fn from_name(name: &str) -> Result<Self> {
        let known = Self::ALL.iter().copied();
        known.clone().find(|k| k.name() == name).ok_or_else(|| {
            Error::value(
                "scheduler",
                known.map(Self::name).collect::<Vec<_>>().join(", "),
                format!("{name:?}"),
            )
        })
    }
}

/// How the noise predictions of overlapping regions are weighted against each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Window {
    /// Separable, largest in the middle of the region.
    Gaussian {
        /// Variance, as a share of the squared side.
        variance: f64,
    },
    /// All positions alike.
    Constant,
    /// `(1 - x^2)^2` along each axis, x from -1 to 1 across the region.
    Quartic,
}

/// What happens to a mosaic of which some regions fail the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// It is dropped whole (the paper's).
    Canvas,
    /// The good regions are kept, and the categories of the others are listed in
    /// `not_exhaustive_category_ids`.
    Region,
    /// The picture is cut to the largest rectangle of whole region parts that are all good.
    Crop,
}

/// Everything that decides what a mosaic looks like, but for the weights and the seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Height of the base region, pixels.
    pub height: u32,
    /// Width of the base region, pixels.
    pub width: u32,
    /// Regions of a mosaic: 1, 2 or 4.
    pub regions: u32,
    /// The mosaic's centre, as a range of shares of the base region's height and width.
    pub center: [f64; 2],
    /// By how much neighbouring regions overlap (height, width), pixels; an eighth of the base
    /// region when absent.
    pub overlap: Option<[u32; 2]>,
    /// Denoising steps.
    pub steps: u32,
    /// Weight of classifier-free guidance; 1 turns it off.
    pub guidance: f64,
    /// The checkpoint's own when absent.
    pub scheduler: Option<SchedulerKind>,
    /// Weights of overlapping noise predictions.
    pub window: Window,
    /// Prompt; `{category}` stands for the category's name, `_` written as a space.
    pub template: String,
    /// Whether the category's definition follows, where one is known.
    pub definition: bool,
    /// The unconditional prompt.
    pub negative_prompt: String,
    /// Layers left out at the end of the text encoder (1: the penultimate layer).
    pub clip_skip: u32,
    /// Mask sources, in order of preference: a region's mask comes from the first that proposes
    /// one.
    pub masks: Vec<AnySource>,
    /// What improves the mask, one after the other.
    pub refine: Vec<AnyRefiner>,
    /// What decides which objects are kept, one after the other; each kind at most once.
    pub checks: Vec<AnyCheck>,
    /// What happens when some are not.
    pub keep: Keep,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            height: 384,
            width: 512,
            regions: 4,
            center: [0.75, 1.25],
            overlap: None,
            steps: 50,
            guidance: 7.5,
            scheduler: None,
            window: Window::Gaussian { variance: 0.01 },
            template: "a photo of a single {category}".into(),
            definition: true,
            negative_prompt: String::new(),
            clip_skip: 0,
            masks: vec![AnySource::Attention(Attention::default())],
            refine: vec![AnyRefiner::Bilateral(Bilateral::default())],
            checks: vec![AnyCheck::Size(SizeCheck::default())],
            keep: Keep::Region,
        }
    }
}

impl Recipe {
    /// The paper's defaults, then the model's `recommended` values, then the user's `own`, as
    /// [`layers`] describes.
    ///
    /// # Errors
    /// [`Error::Value`] naming an unknown key or kind, a value of the wrong type, or an impossible
    /// one.
    pub fn resolve(recommended: &Map<String, Value>, own: &Map<String, Value>) -> Result<Self> {
        let mut value =
            serde_json::to_value(Self::default()).map_err(|e| Error::backend("recipe", e))?;
        for (layer, what) in [
            (recommended, "recipe recommended by the model"),
            (own, "recipe"),
        ] {
            layers::apply(&mut value, layer, what)?;
            // Checked layer by layer, so that the message names the one at fault.
            Self::from_value(&value, what)?;
        }
        Self::from_value(&value, "recipe")
    }

    /// Reads a recipe that was stored under its hash; `place` names it in messages. Recipes of
    /// earlier versions have another form and so another hash: it is that of the stored text.
    ///
    /// # Errors
    /// [`Error::Format`] when the text is not JSON or has another hash; [`Error::Value`] as
    /// [`Recipe::resolve`].
    pub fn read_stored(text: &str, hash: &str, place: &std::path::Path) -> Result<Self> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::format(place, "a recipe", e))?;
        let found = hash_of_text(&compact(text));
        if found != hash {
            return Err(Error::format(
                place,
                format!("the recipe with hash {hash}"),
                format!("one with hash {found}"),
            ));
        }
        match value {
            Value::Object(map) => Self::resolve(&Map::new(), &map),
            other => Err(Error::format(place, "an object of recipe keys", other)),
        }
    }

    fn from_value(value: &Value, what: &str) -> Result<Self> {
        let Value::Object(map) = value else {
            return Err(Error::value(what, "an object", value));
        };
        // Key by key first, for an error that says which key it was.
        for (key, item) in map {
            match key.as_str() {
                "masks" => entries::<AnySource>(key, AnySource::KINDS, item, what)?,
                "refine" => entries::<AnyRefiner>(key, AnyRefiner::KINDS, item, what)?,
                "checks" => entries::<AnyCheck>(key, AnyCheck::KINDS, item, what)?,
                _ => {}
            }
            let single = Value::Object([(key.clone(), item.clone())].into_iter().collect());
            if let Err(e) = serde_json::from_value::<Self>(single) {
                let text = e.to_string();
                return Err(Error::value(format!("{what}, key {key:?}"), text, item));
            }
        }
        let recipe: Self = serde_json::from_value(value.clone())
            .map_err(|e| Error::value(what, "a recipe", e))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Reads a JSON or (by its name) TOML file of the user's own values.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], or [`Error::Format`] when it is not an object.
    pub fn read_overrides(path: &std::path::Path) -> Result<Map<String, Value>> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let value: Value = if path.extension().is_some_and(|e| e == "toml") {
            toml::from_str(&text).map_err(|e| Error::format(path, "TOML", e))?
        } else {
            serde_json::from_str(&text).map_err(|e| Error::format(path, "JSON", e))?
        };
        match value {
            Value::Object(map) => Ok(map),
            other => Err(Error::format(path, "an object of recipe keys", other)),
        }
    }

    /// Refuses impossible values.
    ///
    /// # Errors
    /// [`Error::Value`] with the key, what it accepts, and what it was.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, key: &str, expected: &str, got: &dyn std::fmt::Display| {
            if ok {
                Ok(())
            } else {
                Err(Error::value(format!("recipe, key {key:?}"), expected, got))
            }
        };
        /// Regions beyond this have no use and would only exhaust memory.
        const MAX_SIDE: u32 = 8192;
        let sides = 1..=MAX_SIDE;
        check(
            sides.contains(&self.height),
            "height",
            "1..=8192 pixels",
            &self.height,
        )?;
        check(
            sides.contains(&self.width),
            "width",
            "1..=8192 pixels",
            &self.width,
        )?;
        check(
            matches!(self.regions, 1 | 2 | 4),
            "regions",
            "1, 2 or 4",
            &self.regions,
        )?;
        let [low, high] = self.center;
        check(
            0.0 < low && low <= high && high < 2.0,
            "center",
            "[low, high] with 0 < low <= high < 2",
            &format!("{:?}", self.center),
        )?;
        check(
            (1..=10_000).contains(&self.steps),
            "steps",
            "1..=10000",
            &self.steps,
        )?;
        check(
            self.guidance.is_finite() && (0.0..=1000.0).contains(&self.guidance),
            "guidance",
            "0..=1000",
            &self.guidance,
        )?;
        if let Window::Gaussian { variance } = self.window {
            check(
                variance.is_finite() && variance > 0.0,
                "window.variance",
                "a positive number",
                &variance,
            )?;
        }
        check(
            self.template.matches("{category}").count() == 1,
            "template",
            "a text with {category} once",
            &format!("{:?}", self.template),
        )?;
        check(
            !self.masks.is_empty(),
            "masks",
            "at least one mask source",
            &"none",
        )?;
        let place =
            |list: &str, i: usize, kind: &str| format!("recipe, key \"{list}[{i}]\": {kind}");
        for (i, source) in self.masks.iter().enumerate() {
            source.validate(&place("masks", i, source.kind()))?;
        }
        for (i, refiner) in self.refine.iter().enumerate() {
            refiner.validate(&place("refine", i, refiner.kind()))?;
        }
        for (i, one) in self.checks.iter().enumerate() {
            one.validate(&place("checks", i, one.kind()))?;
            check(
                self.checks[..i].iter().all(|c| c.kind() != one.kind()),
                "checks",
                "each kind at most once, since scores have the kind's name",
                &one.kind(),
            )?;
        }
        Ok(())
    }

    /// The attention that its sources and checks need, each reading once.
    pub fn readings(&self) -> Vec<Reading> {
        let mut all: Vec<Reading> = Vec::new();
        let sources = self.masks.iter().filter_map(|s| s.reading());
        for reading in sources.chain(self.checks.iter().filter_map(|c| c.reading())) {
            if !all.contains(&reading) {
                all.push(reading);
            }
        }
        all
    }

    /// Size of the base region.
    pub fn base(&self) -> Size {
        Size::new(self.height, self.width)
    }

    /// A hash of every value, 32 hexadecimal digits; two recipes with the same hash make the
    /// same mosaics. Kinds that the recipe does not name are not in it.
    ///
    /// # Errors
    /// [`Error::Backend`] when the recipe cannot be written as JSON.
    pub fn hash(&self) -> Result<String> {
        hash_of(self)
    }
}

/// The hash of a value's compact JSON.
fn hash_of(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map_err(|e| Error::backend("recipe", e))?;
    Ok(hash_of_text(&text))
}

/// The first half of the SHA-256 of a text, hex.
fn hash_of_text(text: &str) -> String {
    hex(&Sha256::digest(text)[..16])
}

/// JSON without the white space between its parts. Numbers stay as they were written, which may
/// not be how this version writes them.
fn compact(json: &str) -> String {
    let (mut in_text, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            let keep = in_text || !c.is_ascii_whitespace();
            match c {
                _ if escaped => escaped = false,
                '\\' if in_text => escaped = true,
                '"' => in_text = !in_text,
                _ => {}
            }
            keep
        })
        .collect()
}

/// Checks the entries of a list one by one, for an error that says which it was.
fn entries<T: DeserializeOwned>(
    key: &str,
    kinds: &[&str],
    list: &Value,
    what: &str,
) -> Result<()> {
    let Value::Array(entries) = list else {
        return Ok(());
    };
    for (i, entry) in entries.iter().enumerate() {
        let place = format!("{what}, key \"{key}[{i}]\"");
        let kind = entry.get("kind").and_then(Value::as_str).unwrap_or("");
        if !kinds.contains(&kind) {
            return Err(Error::value(
                place,
                format!("an object whose \"kind\" is one of {}", kinds.join(", ")),
                entry,
            ));
        }
        if let Err(e) = serde_json::from_value::<T>(entry.clone()) {
            return Err(Error::value(place, e, entry));
        }
    }
    Ok(())
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    fn resolve(own: Value) -> Result<Recipe> {
        Recipe::resolve(&Map::new(), &map(own))
    }

    #[test]
    fn layers_override_key_by_key() {
        let model = map(json!({"height": 64, "width": 64}));
        let own = map(json!({"width": 128}));
        let recipe = Recipe::resolve(&model, &own).unwrap();
        assert_eq!(recipe.base(), Size::new(64, 128));
        assert_eq!(recipe.steps, 50);
    }

    #[test]
    fn refusals_name_the_key_and_the_accepted_values() {
        for (own, words) in [
            (json!({"step": 3}), vec!["\"step\"", "steps"]),
            (json!({"steps": "many"}), vec!["steps", "many"]),
            (json!({"steps": 0}), vec!["steps", "1..="]),
            (json!({"regions": 3}), vec!["regions", "1, 2 or 4", "3"]),
            (
                json!({"scheduler": "heun"}),
                vec!["scheduler", "pndm", "heun"],
            ),
            (
                json!({"template": "a photo"}),
                vec!["template", "{category}"],
            ),
            (
                json!({"window": {"kind": "gaussian", "variance": -1}}),
                vec!["variance", "-1"],
            ),
            (
                json!({"masks.attention.level": [0]}),
                vec!["masks[0]", "level", "levels"],
            ),
            (
                json!({"masks.attention.levels": []}),
                vec!["masks[0]", "attention.levels"],
            ),
            (
                json!({"masks": [{"kind": "atention"}]}),
                vec!["masks[0]", "attention", "atention"],
            ),
            (
                json!({"refine": ["bilateral"]}),
                vec!["refine[0]", "kind", "bilateral"],
            ),
            (
                json!({"checks": {"sizes": {}}}),
                vec!["checks[1]", "size", "sizes"],
            ),
            (
                json!({"checks": [{"kind": "size"}, {"kind": "size"}]}),
                vec!["checks", "each kind at most once"],
            ),
            (json!({"checks": 3}), vec!["checks", "list", "3"]),
            (json!({"masks": []}), vec!["masks", "at least one"]),
            (json!({"center": [1.25, 0.75]}), vec!["center"]),
            (json!({"guidance": -1.0}), vec!["guidance"]),
        ] {
            let text = resolve(own.clone())
                .expect_err(&own.to_string())
                .to_string();
            assert!(words.iter().all(|w| text.contains(w)), "{own}: {text}");
        }
    }

    #[test]
    fn the_hash_changes_with_any_value() {
        let base = Recipe::default().hash().unwrap();
        assert_eq!(base, resolve(json!({})).unwrap().hash().unwrap());
        for own in [
            json!({"steps": 49}),
            json!({"keep": "canvas"}),
            json!({"refine": null}),
            json!({"masks.attention.threshold.fixed": 0.3}),
            json!({"checks.size.min_width": 2}),
            json!({"window": {"kind": "quartic"}}),
        ] {
            assert_ne!(base, resolve(own).unwrap().hash().unwrap());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_valid_recipe(text in r#"[{}\[\]a-z":,0-9 .-]{0,60}"#) {
            if let Ok(Value::Object(own)) = serde_json::from_str::<Value>(&text) {
                let _ = Recipe::resolve(&Map::new(), &own);
            }
        }

        #[test]
        fn a_resolved_recipe_is_valid(
            steps in any::<u32>(), regions in any::<u32>(), guidance in any::<f64>(),
            height in any::<u32>(), center in any::<[f64; 2]>(),
        ) {
            let own = map(json!({"steps": steps, "regions": regions, "guidance": guidance,
                "height": height, "center": center}));
            if let Ok(recipe) = Recipe::resolve(&Map::new(), &own) {
                recipe.validate().unwrap();
            }
        }
    }
}
