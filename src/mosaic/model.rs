//! A Stable-Diffusion-family directory, loaded.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lru::LruCache;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::diffusion::{SchedulerConfig, Unet, Vae};
use crate::error::{Error, Result};
use crate::recipe::hex;
use crate::text::{TextEncoder, Tokenizer};

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

/// Tokenizer, text encoder, UNet, autoencoder and scheduler configuration of one directory.
pub struct Model {
    /// The directory.
    pub path: PathBuf,
    /// What provenance says of it.
    pub id: ModelId,
    /// The model's recommended recipe values.
    pub recommended: Map<String, Value>,
    /// Where it runs.
    pub device: Device,
    /// Working dtype of text encoder and UNet.
    pub kind: Kind,
    /// Prompt to tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to embedding.
    pub text: TextEncoder,
    /// The noise predictor.
    pub unet: Unet,
    /// Latents to pixels.
    pub vae: Vae,
    /// The checkpoint's own scheduler.
    pub scheduler: SchedulerConfig,
    embeddings: Mutex<LruCache<(String, usize), Tensor>>,
}

impl Model {
    /// Loads a diffusers-layout directory.
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
        let index = read_object(&path.join("model_index.json"))?;
        check_components(path, &index)?;
        let (text, text_hash) = TextEncoder::open(&path.join("text_encoder"), device, kind)?;
        let (unet, unet_hash) = Unet::open(&path.join("unet"), text.width(), device, kind)?;
        let (vae, vae_hash) = Vae::open(&path.join("vae"), unet.channels(), device, kind)?;
        let recommended = path.join(RECOMMENDED);
        let recommended = if recommended.is_file() {
            let mut file = read_object(&recommended)?;
            match file.remove("recipe") {
                Some(Value::Object(recipe)) => recipe,
                _ => {
                    return Err(Error::format(
                        &recommended,
                        "an object \"recipe\"",
                        "none under that name",
                    ));
                }
            }
        } else {
            Map::new()
        };
        let mut all = Sha256::new();
        for part in [text_hash, unet_hash, vae_hash] {
            all.update(part);
        }
        let path = path.canonicalize().map_err(|e| Error::io(path, e))?;
        Ok(Self {
            id: ModelId {
                name: path
                    .file_name()
                    .map_or_else(String::new, |n| n.to_string_lossy().into()),
                weights: hex(&all.finalize()),
            },
            recommended,
            device,
            kind,
            tokenizer: Tokenizer::open(&path.join("tokenizer"))?,
            scheduler: SchedulerConfig::read(
                &path.join("scheduler").join("scheduler_config.json"),
            )?,
            text,
            unet,
            vae,
            path,
            embeddings: Mutex::new(LruCache::new(CACHED_PROMPTS)),
        })
    }

    /// Embeddings `[n, tokens, width]` of the prompts, from the cache where they are in it.
    ///
    /// # Errors
    /// Those of the tokenizer and the text encoder.
    pub fn embed(&self, prompts: &[&str], clip_skip: usize) -> Result<Tensor> {
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
            let ids = self.tokenizer.encode(prompt)?.ids;
            let embedding = self.text.forward(&[ids], clip_skip)?;
            self.embeddings.lock().put(key(prompt), embedding);
        }
        let mut cache = self.embeddings.lock();
        let rows = prompts
            .iter()
            .map(|p| {
                cache
                    .get(&key(p))
                    .map(Tensor::shallow_clone)
                    .ok_or_else(|| {
                        Error::value(
                            "prompts in one call",
                            format!("at most {CACHED_PROMPTS} different ones"),
                            prompts.len(),
                        )
                    })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&rows, 0))
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::format(path, "a JSON object", "another value")),
        Err(e) => Err(Error::format(path, "a JSON object", e)),
    }
}

/// Refuses pipelines of another family by the classes that `model_index.json` lists.
fn check_components(path: &Path, index: &Map<String, Value>) -> Result<()> {
    let file = path.join("model_index.json");
    for (part, accepted) in [
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "CLIPTextModel"),
        ("tokenizer", "CLIPTokenizer"),
    ] {
        let class = index
            .get(part)
            .and_then(|v| v.get(1))
            .and_then(Value::as_str);
        // The fast tokenizer's class name only adds a word.
        if class.is_none_or(|c| c.strip_suffix("Fast").unwrap_or(c) != accepted) {
            return Err(Error::format(
                &file,
                format!("component {part:?} of class {accepted}"),
                class.map_or_else(|| "none".to_owned(), |c| format!("{c:?} (not supported)")),
            ));
        }
    }
    if index
        .get("text_encoder_2")
        .is_some_and(|v| v.get(1).is_some_and(|c| !c.is_null()))
    {
        return Err(Error::format(
            &file,
            "one text encoder (Stable Diffusion 1.x or 2.x)",
            "a second one (Stable Diffusion XL is not supported)",
        ));
    }
    Ok(())
}
