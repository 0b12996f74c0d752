//! The CLIP text transformer (Radford et al., 2021).

use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::nn::{LayerNorm, Linear};
use crate::weights::Weights;

/// The keys of `text_encoder/config.json` that decide the architecture.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
}

fn default_eps() -> f64 {
    1e-5
}

#[derive(Clone, Copy)]
enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// The exact form, with the error function.
    Gelu,
}

struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// A CLIP text encoder: token ids to hidden states.
pub struct TextEncoder {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    last_norm: LayerNorm,
    heads: i64,
    width: i64,
    vocabulary: i64,
    activation: Activation,
    device: Device,
}

impl TextEncoder {
    /// Loads the `text_encoder/` directory of a diffusers-layout model. Tensor names with and
    /// without the `text_model.` prefix are both read.
    ///
    /// # Errors
    /// [`Error::Format`] for a configuration that is malformed or not supported; those of
    /// [`Weights`].
    pub fn open(dir: &Path, device: Device, kind: Kind) -> Result<(Self, [u8; 32])> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let config: Config = serde_json::from_str(&text)
            .map_err(|e| Error::format(&path, "a CLIP text encoder configuration", e))?;
        let activation = match config.hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            other => {
                return Err(Error::format(
                    &path,
                    "hidden_act \"quick_gelu\" or \"gelu\"",
                    format!("{other:?}"),
                ));
            }
        };
        if config.num_attention_heads < 1
            || config.hidden_size % config.num_attention_heads != 0
        {
            return Err(Error::format(
                &path,
                "hidden_size that num_attention_heads divides",
                format!("{} and {}", config.hidden_size, config.num_attention_heads),
            ));
        }
        let weights = Weights::open(dir, "model", device, kind)?;
        let root = weights.root();
        let root = if weights.has("text_model.embeddings.token_embedding.weight") {
            root.sub("text_model")
        } else {
            root
        };
        let (w, eps) = (config.hidden_size, config.layer_norm_eps);
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let s = root.sub("encoder.layers").sub(i);
                let a = s.sub("self_attn");
                Ok(Layer {
                    norm1: LayerNorm::load(&s.sub("layer_norm1"), w, eps)?,
                    query: Linear::load(&a.sub("q_proj"), w, w, true)?,
                    key: Linear::load(&a.sub("k_proj"), w, w, true)?,
                    value: Linear::load(&a.sub("v_proj"), w, w, true)?,
                    out: Linear::load(&a.sub("out_proj"), w, w, true)?,
                    norm2: LayerNorm::load(&s.sub("layer_norm2"), w, eps)?,
                    fc1: Linear::load(&s.sub("mlp.fc1"), w, config.intermediate_size, true)?,
                    fc2: Linear::load(&s.sub("mlp.fc2"), config.intermediate_size, w, true)?,
                })
            })
            .collect::<Result<_>>()?;
        let embeddings = root.sub("embeddings");
        let encoder = Self {
            tokens: embeddings.tensor("token_embedding.weight", &[config.vocab_size, w])?,
            positions: embeddings.tensor(
                "position_embedding.weight",
                &[config.max_position_embeddings, w],
            )?,
            last_norm: LayerNorm::load(&root.sub("final_layer_norm"), w, eps)?,
            layers,
            heads: config.num_attention_heads,
            width: w,
            vocabulary: config.vocab_size,
            activation,
            device,
        };
        weights.finish()?;
        Ok((encoder, weights.digest()?))
    }

    /// Width of the embedding.
    pub fn width(&self) -> i64 {
        self.width
    }

    /// Hidden states `[n, length, width]` of `ids` (rows of equal length), after the final norm.
    /// `skip` layers at the end are left out (1: the penultimate layer).
    ///
    /// # Errors
    /// [`Error::Value`] for ids outside the vocabulary, rows that are longer than the position
    /// table, or a `skip` that leaves no layer.
    pub fn forward(&self, ids: &[Vec<i64>], skip: usize) -> Result<Tensor> {
        let length = ids.first().map_or(0, Vec::len);
        let limit = self.positions.size()[0];
        if length == 0 || length as i64 > limit || ids.iter().any(|r| r.len() != length) {
            return Err(Error::value(
                "token ids",
                format!("rows of one length, 1..={limit}"),
                format!("lengths {:?}", ids.iter().map(Vec::len).collect::<Vec<_>>()),
            ));
        }
        if let Some(id) = ids
            .iter()
            .flatten()
            .find(|&&i| i < 0 || i >= self.vocabulary)
        {
            return Err(Error::value(
                "token id",
                format!(
                    "0..{} (vocab_size of text_encoder/config.json)",
                    self.vocabulary
                ),
                id,
            ));
        }
        if skip >= self.layers.len() {
            return Err(Error::value(
                "clip_skip",
                format!("less than the {} layers", self.layers.len()),
                skip,
            ));
        }
        let flat: Vec<i64> = ids.iter().flatten().copied().collect();
        let (n, length, width) = (ids.len() as i64, length as i64, self.width);
        let ids = Tensor::from_slice(&flat)
            .view([n, length])
            .to_device(self.device);
        let mut x = Tensor::embedding(&self.tokens, &ids, -1, false, false)
            + self.positions.narrow(0, 0, length);
        let split = |t: Tensor| {
            t.view([n, length, self.heads, width / self.heads])
                .transpose(1, 2)
        };
        for layer in &self.layers[..self.layers.len() - skip] {
            let y = layer.norm1.forward(&x);
            let attended = Tensor::scaled_dot_product_attention::<Tensor>(
                &split(layer.query.forward(&y)),
                &split(layer.key.forward(&y)),
                &split(layer.value.forward(&y)),
                None,
                0.0,
                true,
                None,
                false,
            );
            let joined = attended.transpose(1, 2).reshape([n, length, width]);
            x += layer.out.forward(&joined);
            let y = layer.fc1.forward(&layer.norm2.forward(&x));
            let y = match self.activation {
                Activation::QuickGelu => &y * (&y * 1.702).sigmoid(),
                Activation::Gelu => y.gelu("none"),
            };
            x += layer.fc2.forward(&y);
        }
        Ok(self.last_norm.forward(&x))
    }
}
