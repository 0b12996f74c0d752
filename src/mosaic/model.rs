//! A loaded model of any family.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lru::LruCache;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::diffusion::{LatentSpace, SchedulerConfig, Watch};
use crate::error::{Error, Result};
use crate::family::{
    self, Autoencoder, Conditioning, Denoiser, Parts, Placement, Source, TextEmbedding,
};
use crate::geometry::{PixelBox, Size};
use crate::recipe::hex;
use crate::text::TokenizedPrompt;

/// Prompts whose embeddings are kept: more than LVIS has categories.
const CACHED_PROMPTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The file in which a model recommends recipe values.
const RECOMMENDED: &str = "mosaicbank.json";

/// The device of this name: `cpu`, `cuda` or `cuda:<index>`.
///
/// # Errors
/// [`Error::Value`] for another name, or a device that is not there.
pub fn parse_device(name: &str) -> Result<Device> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => name
            .strip_prefix("cuda:")
            .and_then(|i| i.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        return Err(Error::value(
            "device",
            "cpu, cuda or cuda:<index>",
            format!("{name:?}"),
        ));
    };
    let found = tch::Cuda::device_count().max(0) as usize;
    if index >= found {
        return Err(Error::value(
            "device",
            format!("one of the {found} CUDA devices that libtorch sees, or cpu"),
            format!("{name:?}"),
        ));
    }
    Ok(Device::Cuda(index))
}

/// The dtype of this name: `float32`, `float16` or `bfloat16`.
///
/// # Errors
/// [`Error::Value`] for another name.
pub fn parse_dtype(name: &str) -> Result<Kind> {
    match name {
        "float32" => Ok(Kind::Float),
        "float16" => Ok(Kind::Half),
        "bfloat16" => Ok(Kind::BFloat16),
        _ => Err(Error::value(
            "dtype",
            "float32, float16 or bfloat16",
            format!("{name:?}"),
        )),
    }
}

/// `cpu` or `cuda`: what decides a mosaic's last digits.
pub const fn device_kind(device: Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        _ => "cuda",
    }
}

/// The name that [`parse_dtype`] takes.
pub const fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

/// What provenance says of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    /// Name of its directory.
    pub name: String,
    /// SHA-256 over the weights of all components, hex.
    pub weights: String,
}

/// The parts of a model, its identity, and the prompt embeddings that were computed before.
pub struct Model {
    /// The directory.
    pub path: PathBuf,
    /// What provenance says of it.
    pub id: ModelId,
    /// Name of its family.
    pub family: &'static str,
    /// The model's recommended recipe values.
    pub recommended: Map<String, Value>,
    /// Where it runs.
    pub device: Device,
    /// Working dtype of text encoders and denoiser.
    pub kind: Kind,
    parts: Parts,
    embeddings: Mutex<LruCache<(String, usize), TextEmbedding>>,
}

impl Model {
    /// Loads a diffusers-layout directory of a family that is known.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a missing directory or file, [`Error::Format`] for one that is
    /// malformed or not supported, [`Error::Tensor`] for weights that do not fit.
    pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::NotFound {
                what: "model directory".into(),
                path: path.to_path_buf(),
                hint: "\nhint: a diffusers-layout directory (model_index.json, unet/, vae/, \
                       text_encoder/, tokenizer/, scheduler/), or the word `embedded`"
                    .into(),
            });
        }
        let (family, parts) = family::open(&Source {
            dir: path,
            device,
            kind,
        })?;
        let mut all = Sha256::new();
        for digest in &parts.digests {
            all.update(digest);
        }
        let recommended = read_recommended(&path.join(RECOMMENDED))?;
        let path = path.canonicalize().map_err(|e| Error::io(path, e))?;
        Ok(Self {
            id: ModelId {
                name: path
                    .file_name()
                    .map_or_else(String::new, |n| n.to_string_lossy().into()),
                weights: hex(&all.finalize()),
            },
            family,
            recommended,
            device,
            kind,
            parts,
            path,
            embeddings: Mutex::new(LruCache::new(CACHED_PROMPTS)),
        })
    }

    /// What its latents mean.
    pub fn space(&self) -> LatentSpace {
        self.parts.space
    }

    /// The checkpoint's own scheduler, which can make trajectories of others, too.
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.parts.scheduler
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn tokens(&self, prompt: &str) -> Result<TokenizedPrompt> {
        self.parts.text.tokens(prompt)
    }

    /// The network of the denoising loop.
    pub(super) fn denoiser(&self) -> &dyn Denoiser {
        self.parts.denoiser.as_ref()
    }

    /// Latents to pixels and back.
    pub(super) fn autoencoder(&self) -> &dyn Autoencoder {
        self.parts.autoencoder.as_ref()
    }

    /// Latents `[batch, channels, h, w]` to pixels `[batch, 3, H, W]`, float32, about -1..1.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape; what `check` returns.
    pub fn decode(
        &self,
        latents: &Tensor,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        self.autoencoder().decode(latents, &mut Watch::new(check))
    }

    /// Pixels `[batch, 3, H, W]`, -1..1, to mean latents `[batch, channels, h, w]`, float32.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape; what `check` returns.
    pub fn encode(
        &self,
        pixels: &Tensor,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        self.autoencoder().encode(pixels, &mut Watch::new(check))
    }

    /// One denoiser call, every row a canvas of its own: the output for `latents [batch, channels,
    /// h, w]` at `timestep` of the training schedule, float32 of the same shape. `guidance` is for
    /// models that take it as an input.
    ///
    /// # Errors
    /// [`Error::Value`] for a shape that does not fit; what `check` returns.
    pub fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: TextEmbedding,
        guidance: f64,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let size = latents.size();
        let [rows, _, height, width] = size[..] else {
            return Err(Error::value(
                "latent",
                "[batch, channels, h, w]",
                format!("{size:?}"),
            ));
        };
        let pixels = |cells: i64| cells as u32 * self.space().factor;
        let canvas = Size::new(pixels(height), pixels(width));
        let region = PixelBox::new(0, 0, canvas.width, canvas.height);
        let conditioned = self.denoiser().condition(Conditioning {
            text,
            placements: vec![Placement { region, canvas }; rows.max(0) as usize],
            conditional: 0..rows,
            guidance,
        })?;
        conditioned.predict(latents, timestep, &mut Watch::new(check))
    }

    /// The embeddings of the prompts, from the cache where they are in it.
    ///
    /// # Errors
    /// Those of the text stack.
    pub fn embed(&self, prompts: &[&str], clip_skip: usize) -> Result<TextEmbedding> {
        let key = |p: &str| (p.to_owned(), clip_skip);
        let mut missing: Vec<&str> = {
            let cache = self.embeddings.lock();
            prompts
                .iter()
                .copied()
                .filter(|p| !cache.contains(&key(p)))
                .collect()
        };
        missing.sort_unstable();
        missing.dedup();
        // One at a time: an embedding must not depend on what else was asked for.
        for prompt in missing {
            let embedding = self.parts.text.encode(prompt, clip_skip)?;
            self.embeddings.lock().put(key(prompt), embedding);
        }
        let mut cache = self.embeddings.lock();
        for prompt in prompts {
            cache.promote(&key(prompt));
        }
        let rows = prompts
            .iter()
            .map(|p| {
                cache.peek(&key(p)).ok_or_else(|| {
                    Error::value(
                        "prompts in one call",
                        format!("at most {CACHED_PROMPTS} different ones"),
                        prompts.len(),
                    )
                })
            })
            .collect::<Result<Vec<_>>>()?;
        TextEmbedding::join(&rows)
    }
}

/// The recipe values that a model recommends; none without the file.
fn read_recommended(path: &Path) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let file: Value =
        serde_json::from_str(&text).map_err(|e| Error::format(path, "a JSON object", e))?;
    match file.get("recipe") {
        Some(Value::Object(recipe)) => Ok(recipe.clone()),
        _ => Err(Error::format(
            path,
            "an object \"recipe\"",
            "none under that name",
        )),
    }
}
