//! Reading of the `config.json` files of a diffusers-layout directory: what decides the
//! architecture is read, what this crate does not implement is refused by name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// A JSON object whose keys are taken one by one; what is left over must be harmless.
pub(super) struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
    taken: BTreeSet<String>,
}

impl Keys {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| Error::format(path, "a JSON object", e))?;
        Self::from_value(path, value)
    }

    pub(super) fn from_value(path: &Path, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self {
                path: path.to_path_buf(),
                map,
                taken: BTreeSet::new(),
            }),
            other => Err(Error::format(path, "a JSON object", kind_of(&other))),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `key`; `None` when absent or null.
    pub(super) fn maybe<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        self.taken.insert(key.to_owned());
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|e| {
                Error::format(
                    &self.path,
                    format!("key {key:?} as {}", std::any::type_name::<T>()),
                    format!("{value} ({e})"),
                )
            }),
        }
    }

    pub(super) fn or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.maybe(key)?.unwrap_or(default))
    }

    pub(super) fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.maybe(key)?.ok_or_else(|| {
            Error::format(
                &self.path,
                format!("key {key:?}"),
                "nothing under that name",
            )
        })
    }

    /// Refuses any value of `key` but `accepted` (an absent key or null is accepted too).
    pub(super) fn only(&mut self, key: &str, accepted: &[Value]) -> Result<()> {
        self.taken.insert(key.to_owned());
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if accepted.iter().any(|a| same(a, value)) => Ok(()),
            Some(value) => Err(Error::format(
                &self.path,
                format!(
                    "key {key:?} to be {}",
                    accepted
                        .iter()
                        .map(Value::to_string)
                        .collect::<Vec<_>>()
                        .join(" or ")
                ),
                format!("{value} (not supported)"),
            )),
        }
    }

    /// Takes keys that do not change inference.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        self.taken.extend(keys.iter().map(|k| (*k).to_owned()));
    }

    /// Refuses keys that nobody took, unless they are null, false, or private (`_...`).
    pub(super) fn finish(&self) -> Result<()> {
        let unknown = self.map.iter().find(|(key, value)| {
            !key.starts_with('_')
                && !self.taken.contains(*key)
                && !matches!(value, Value::Null | Value::Bool(false))
        });
        match unknown {
            None => Ok(()),
            Some((key, value)) => Err(Error::format(
                &self.path,
                "only keys that this version implements",
                format!("key {key:?} = {value}"),
            )),
        }
    }

    /// `key` as one value for each of `n` blocks: a scalar is repeated.
    pub(super) fn per_block<T: DeserializeOwned + Clone>(
        &mut self,
        key: &str,
        n: usize,
        default: Option<T>,
    ) -> Result<Vec<T>> {
        if let Some(Value::Array(items)) = self.map.get(key) {
            let found = items.len();
            let list: Vec<T> = self.need(key)?;
            if found != n {
                return Err(Error::format(
                    &self.path,
                    format!("key {key:?} with one value per block ({n})"),
                    format!("{found} values"),
                ));
            }
            return Ok(list);
        }
        match (self.maybe::<T>(key)?, default) {
            (Some(value), _) | (None, Some(value)) => Ok(vec![value; n]),
            (None, None) => Err(Error::format(
                &self.path,
                format!("key {key:?}"),
                "nothing under that name",
            )),
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// `unet/config.json`.
#[derive(Debug, Clone)]
pub(super) struct UnetConfig {
    pub in_channels: i64,
    pub out_channels: i64,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    /// For each level from the top: output channels.
    pub channels: Vec<i64>,
    pub down_attention: Vec<bool>,
    /// In the order of the up path (from the deepest level).
    pub up_attention: Vec<bool>,
    pub layers: Vec<usize>,
    pub transformer_layers: Vec<usize>,
    /// Number of heads per level (the config calls it `attention_head_dim`).
    pub heads: Vec<i64>,
    pub cross_attention_dim: i64,
    pub groups: i64,
    pub eps: f64,
    pub upcast_attention: bool,
    pub time_cond_proj_dim: Option<i64>,
}

impl UnetConfig {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut keys = Keys::read(path)?;
        let k = &mut keys;
        k.only("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
        k.only("act_fn", &[json!("silu"), json!("swish")])?;
        k.only("resnet_time_scale_shift", &[json!("default")])?;
        k.only("time_embedding_type", &[json!("positional")])?;
        k.only("attention_type", &[json!("default")])?;
        k.only("downsample_padding", &[json!(1)])?;
        k.only("conv_in_kernel", &[json!(3)])?;
        k.only("conv_out_kernel", &[json!(3)])?;
        k.only("mid_block_scale_factor", &[json!(1)])?;
        k.only("resnet_out_scale_factor", &[json!(1)])?;
        k.only("only_cross_attention", &[json!(false)])?;
        k.ignore(&["sample_size", "dropout", "addition_embed_type_num_heads"]);
        // A linear projection and a 1x1 convolution are the same product; the weights' shape
        // tells them apart.
        k.ignore(&["use_linear_projection"]);
        let channels: Vec<i64> = k.need("block_out_channels")?;
        let n = channels.len();
        if n == 0 || channels.iter().any(|&c| c < 1) {
            return Err(Error::format(path, "positive block_out_channels", "none"));
        }
        let attention =
            |keys: &mut Keys, key: &str, with: &str, without: &str| -> Result<Vec<bool>> {
                let types: Vec<String> = keys.need(key)?;
                if types.len() != n {
                    return Err(Error::format(
                        path,
                        format!("{key:?} with one type per block ({n})"),
                        format!("{} types", types.len()),
                    ));
                }
                types
                    .iter()
                    .map(|t| match t.as_str() {
                        t if t == with => Ok(true),
                        t if t == without => Ok(false),
                        t => Err(Error::format(
                            path,
                            format!("{key:?} of {with:?} and {without:?}"),
                            format!("{t:?} (not supported)"),
                        )),
                    })
                    .collect()
            };
        let down_attention =
            attention(k, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D")?;
        let up_attention = attention(k, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D")?;
        let head_key = match k.maybe::<Value>("num_attention_heads")? {
            Some(_) => "num_attention_heads",
            None => "attention_head_dim",
        };
        let heads = k.per_block(head_key, n, Some(8))?;
        k.ignore(&["attention_head_dim"]);
        let config = Self {
            in_channels: k.or("in_channels", 4)?,
            out_channels: k.or("out_channels", 4)?,
            flip_sin_to_cos: k.or("flip_sin_to_cos", true)?,
            freq_shift: k.or("freq_shift", 0.0)?,
            down_attention,
            up_attention,
            layers: k.per_block("layers_per_block", n, Some(2))?,
            transformer_layers: k.per_block("transformer_layers_per_block", n, Some(1))?,
            heads,
            cross_attention_dim: k.or("cross_attention_dim", 1280)?,
            groups: k.or("norm_num_groups", 32)?,
            eps: k.or("norm_eps", 1e-5)?,
            upcast_attention: k.or("upcast_attention", false)?,
            time_cond_proj_dim: k.maybe("time_cond_proj_dim")?,
            channels,
        };
        k.finish()?;
        for (&c, &h) in config.channels.iter().zip(&config.heads) {
            if h < 1 || c % h != 0 || config.groups < 1 || c % config.groups != 0 {
                return Err(Error::format(
                    path,
                    "block_out_channels that attention_head_dim (the number of heads) and \
                     norm_num_groups divide",
                    format!("{c} channels, {h} heads, {} groups", config.groups),
                ));
            }
        }
        if config.in_channels < 1 || config.out_channels != config.in_channels {
            return Err(Error::format(
                path,
                "as many out_channels as in_channels",
                format!("{} and {}", config.out_channels, config.in_channels),
            ));
        }
        Ok(config)
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone)]
pub(super) struct VaeConfig {
    pub channels: Vec<i64>,
    pub layers: usize,
    pub latent_channels: i64,
    pub groups: i64,
    pub scaling_factor: f64,
    pub shift_factor: f64,
    pub force_upcast: bool,
    pub quant_conv: bool,
    pub post_quant_conv: bool,
    pub mid_attention: bool,
}

impl VaeConfig {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut keys = Keys::read(path)?;
        let k = &mut keys;
        k.only("_class_name", &[json!("AutoencoderKL")])?;
        k.only("in_channels", &[json!(3)])?;
        k.only("out_channels", &[json!(3)])?;
        k.only("act_fn", &[json!("silu"), json!("swish")])?;
        k.ignore(&["sample_size"]);
        let channels: Vec<i64> = k.need("block_out_channels")?;
        let n = channels.len();
        for (key, accepted) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            let types: Vec<String> = k.need(key)?;
            if types.len() != n || types.iter().any(|t| t != accepted) {
                return Err(Error::format(
                    path,
                    format!("{key:?} of {n} x {accepted:?}"),
                    format!("{types:?} (not supported)"),
                ));
            }
        }
        let config = Self {
            layers: k.or("layers_per_block", 1)?,
            latent_channels: k.or("latent_channels", 4)?,
            groups: k.or("norm_num_groups", 32)?,
            scaling_factor: k.or("scaling_factor", 0.18215)?,
            shift_factor: k.or("shift_factor", 0.0)?,
            force_upcast: k.or("force_upcast", true)?,
            quant_conv: k.or("use_quant_conv", true)?,
            post_quant_conv: k.or("use_post_quant_conv", true)?,
            mid_attention: k.or("mid_block_add_attention", true)?,
            channels,
        };
        k.finish()?;
        let groups = config.groups;
        if n == 0 || groups < 1 || config.channels.iter().any(|c| *c < 1 || c % groups != 0) {
            return Err(Error::format(
                path,
                "block_out_channels that norm_num_groups divides",
                format!("{:?} and {groups}", config.channels),
            ));
        }
        if !(config.scaling_factor.is_finite() && config.scaling_factor > 0.0) {
            return Err(Error::format(
                path,
                "a positive scaling_factor",
                config.scaling_factor,
            ));
        }
        Ok(config)
    }
}
