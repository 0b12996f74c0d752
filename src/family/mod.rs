//! Generator families: what the denoising loop needs of a model, whatever its networks are.
//!
//! A family gives a [`TextStack`], a [`Denoiser`] and an [`Autoencoder`], and says what its latents
//! and its outputs mean ([`Parts`]). A new family is a file with a [`Family`] and one line in
//! [`FAMILIES`]; its networks live in the rooms `text` and `diffusion`. The loop itself, with
//! scheduler, regions and guidance, is `mosaic/denoise.rs` and the same for all.

#[cfg(test)]
mod noop;
mod stable_diffusion;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::diffusion::{LatentSpace, SchedulerConfig, Vae, Watch};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::text::TokenizedPrompt;

/// All families, in the order in which they are tried and listed.
const FAMILIES: &[Family] = &[
    stable_diffusion::FAMILY,
    #[cfg(test)]
    noop::FAMILY,
];

/// How a family is registered.
pub struct Family {
    /// Its name in records and messages.
    pub name: &'static str,
    /// The models that belong to it, for messages.
    pub models: &'static str,
    /// Components that `model_index.json` must list, with their classes.
    pub components: &'static [(&'static str, &'static str)],
    /// Components that it must not list, with the models that have them.
    pub foreign: &'static [(&'static str, &'static str)],
    /// Loads a model's parts.
    pub open: fn(&Source<'_>) -> Result<Parts>,
}

/// A model on disk, and where it is to run.
pub struct Source<'a> {
    /// The directory, in the diffusers layout.
    pub dir: &'a Path,
    /// Where the networks run.
    pub device: Device,
    /// Working dtype of text encoders and denoiser.
    pub kind: Kind,
}

/// A loaded model.
pub struct Parts {
    /// Prompts to embeddings.
    pub text: Box<dyn TextStack>,
    /// The network that is called in every step.
    pub denoiser: Box<dyn Denoiser>,
    /// Latents to pixels and back.
    pub autoencoder: Box<dyn Autoencoder>,
    /// What the latents mean.
    pub space: LatentSpace,
    /// The checkpoint's own scheduler, and what the denoiser's output means to any.
    pub scheduler: SchedulerConfig,
    /// SHA-256 of each component's weights. A model's identity is a hash of them in this order,
    /// which must therefore stay as it is.
    pub digests: Vec<[u8; 32]>,
}

/// The text encoders of a model with their tokenizers.
pub trait TextStack: Send {
    /// The tokens of a prompt, one for every row of [`TextEmbedding::sequence`]. Attention events
    /// count their text keys in the same order.
    ///
    /// # Errors
    /// [`Error::Backend`] when a tokenizer fails.
    fn tokens(&self, prompt: &str) -> Result<TokenizedPrompt>;

    /// The embedding of one prompt. `clip_skip` layers at the end of the text encoder are left
    /// out.
    ///
    /// # Errors
    /// [`Error::Value`] for a `clip_skip` that leaves no layer; those of the tokenizer.
    fn encode(&self, prompt: &str, clip_skip: usize) -> Result<TextEmbedding>;
}

/// What the text encoders make of prompts.
#[derive(Debug)]
pub struct TextEmbedding {
    /// `[prompts, tokens, width]`.
    pub sequence: Tensor,
    /// One vector per prompt, `[prompts, width]`, for families that use one.
    pub pooled: Option<Tensor>,
}

impl TextEmbedding {
    /// The prompts of several embeddings in one.
    ///
    /// # Errors
    /// [`Error::Value`] when some have a pooled vector and some have none.
    pub fn join(rows: &[&Self]) -> Result<Self> {
        let sequences: Vec<&Tensor> = rows.iter().map(|r| &r.sequence).collect();
        let pooled: Vec<&Tensor> = rows.iter().filter_map(|r| r.pooled.as_ref()).collect();
        if !pooled.is_empty() && pooled.len() != rows.len() {
            return Err(Error::value(
                "prompt embeddings",
                "a pooled vector for all of them, or for none",
                format!("{} of {}", pooled.len(), rows.len()),
            ));
        }
        Ok(Self {
            sequence: Tensor::cat(&sequences, 0),
            pooled: (!pooled.is_empty()).then(|| Tensor::cat(&pooled, 0)),
        })
    }
}

/// Where a row of a batch lies, for families that are told sizes and crops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The region, in canvas pixels.
    pub region: PixelBox,
    /// The whole canvas.
    pub canvas: Size,
}

/// What a batch is conditioned on; the same in every step.
pub struct Conditioning {
    /// One prompt per row.
    pub text: TextEmbedding,
    /// One per row.
    pub placements: Vec<Placement>,
    /// The rows that are conditional; the others hold the unconditional prompt.
    pub conditional: Range<i64>,
    /// For models that take guidance as an input.
    pub guidance: f64,
}

/// A network that is called with noisy latents and gives what [`Parts::scheduler`] says it predicts.
pub trait Denoiser: Send {
    /// Whether guidance is an input (distilled models) instead of a second, unconditional half of
    /// the batch.
    fn embeds_guidance(&self) -> bool {
        false
    }

    /// Prepares a batch: does what does not depend on the step.
    ///
    /// # Errors
    /// [`Error::Value`] for embeddings that do not fit the network.
    fn condition<'a>(&'a self, on: Conditioning) -> Result<Box<dyn Conditioned + 'a>>;
}

/// A denoiser with its conditioning.
pub trait Conditioned {
    /// The output for `latents [rows, channels, h, w]` at `timestep` of the training schedule:
    /// float32 of the same shape. Attention from image to text is shown to `watch`; a row's
    /// output does not depend on the other rows.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape; what `watch` returns.
    fn predict(&self, latents: &Tensor, timestep: f64, watch: &mut Watch<'_>)
    -> Result<Tensor>;
}

/// Latents to pixels and back, at the denoiser's scale of latents.
pub trait Autoencoder: Send {
    /// Latents `[batch, channels, h, w]` to pixels `[batch, 3, H, W]`, float32, about -1..1.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape; what `watch` returns.
    fn decode(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor>;

    /// Pixels `[batch, 3, H, W]`, -1..1, to latents `[batch, channels, h, w]`, float32.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape or sides that do not divide; what `watch` returns.
    fn encode(&self, pixels: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor>;
}

impl Autoencoder for Vae {
    fn decode(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        Vae::decode(self, latents, watch)
    }

    fn encode(&self, pixels: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        Vae::encode(self, pixels, watch)
    }
}

/// Finds the family of a directory by its `model_index.json`, and loads the model. Gives the
/// family's name, too.
///
/// # Errors
/// [`Error::NotFound`] for a missing file, [`Error::Format`] for one that is malformed or not
/// supported (with the families that are), [`Error::Tensor`] for weights that do not fit.
pub fn open(source: &Source<'_>) -> Result<(&'static str, Parts)> {
    let index = Index::read(source.dir)?;
    let mut reasons = Vec::with_capacity(FAMILIES.len());
    for family in FAMILIES {
        match index.mismatch(family) {
            None => return Ok((family.name, (family.open)(source)?)),
            Some(reason) => reasons.push(format!("{} ({reason})", family.name)),
        }
    }
    let known: Vec<String> = FAMILIES
        .iter()
        .map(|f| format!("{} ({})", f.name, f.models))
        .collect();
    Err(Error::format(
        &index.path,
        format!("a model of a known family: {}", known.join(", ")),
        format!("one that is not {}", reasons.join(", not ")),
    ))
}

/// `model_index.json`: the classes of a model's components.
struct Index {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Index {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("model_index.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Self { path, map }),
            Ok(_) => Err(Error::format(path, "a JSON object", "another value")),
            Err(e) => Err(Error::format(path, "a JSON object", e)),
        }
    }

    /// The class of a component; `None` for one that is absent or null.
    fn class(&self, component: &str) -> Option<&str> {
        let class = self.map.get(component)?.get(1)?.as_str()?;
        // The fast tokenizer's class name only adds a word.
        Some(class.strip_suffix("Fast").unwrap_or(class))
    }

    /// Why the model is not of this family; `None` when it is.
    fn mismatch(&self, family: &Family) -> Option<String> {
        let wrong = family.components.iter().find_map(|&(component, class)| {
            match self.class(component) {
                Some(found) if found == class => None,
                Some(found) => Some(format!("{component} is {found}, not {class}")),
                None => Some(format!("no {component} of class {class}")),
            }
        });
        wrong.or_else(|| {
            family.foreign.iter().find_map(|&(component, models)| {
                let found = self.class(component)?;
                Some(format!("{component} is {found}, as in {models}"))
            })
        })
    }
}
