//! The conditional UNet of Stable Diffusion 1.x and 2.x (Rombach et al., 2022).

use std::ops::Range;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::attention::{KeyValue, SpatialTransformer, TransformerShape};
use super::blocks::{Conv, GroupNorm, Resnet, Upsample, preferred_format};
use super::config::UnetConfig;
use super::watch::{Layer, Stage, Watch};
use crate::error::{Error, Result};
use crate::nn::Linear;
use crate::weights::{Scope, Weights};

/// A residual block with the transformer that may follow it.
struct Unit {
    resnet: Resnet,
    transformer: Option<SpatialTransformer>,
}

struct DownBlock {
    units: Vec<Unit>,
    downsample: Option<Conv>,
}

struct UpBlock {
    units: Vec<Unit>,
    upsample: Option<Upsample>,
}

/// Keys and values of a batch of prompts for every cross-attention layer; they do not depend on
/// the step, so they are computed once.
pub struct Context {
    layers: Vec<Vec<KeyValue>>,
    batch: i64,
    conditional: Range<i64>,
}

/// A UNet that predicts the noise in a latent, given a timestep and a prompt.
pub struct Unet {
    config: UnetConfig,
    conv_in: Conv,
    time1: Linear,
    time2: Linear,
    guidance: Option<Linear>,
    down: Vec<DownBlock>,
    mid: (Resnet, SpatialTransformer, Resnet),
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv,
    device: Device,
    kind: Kind,
}

impl Unet {
    /// Loads the `unet/` directory of a diffusers-layout model, for prompt embeddings of
    /// `text_width`. Gives its digest, too.
    ///
    /// # Errors
    /// [`Error::Format`] for a configuration that is malformed, not supported, or does not fit
    /// the text encoder; those of [`Weights`].
    pub fn open(
        dir: &Path,
        text_width: i64,
        device: Device,
        kind: Kind,
    ) -> Result<(Self, [u8; 32])> {
        let path = dir.join("config.json");
        let config = UnetConfig::read(&path)?;
        if config.cross_attention_dim != text_width {
            return Err(Error::format(
                path,
                format!("cross_attention_dim {text_width} (the text encoder's hidden_size)"),
                config.cross_attention_dim,
            ));
        }
        let weights = Weights::open(dir, "diffusion_pytorch_model", device, kind)?;
        let unet = Self::build(config, &weights.root(), device, kind)?;
        weights.finish()?;
        Ok((unet, weights.digest()?))
    }

    fn build(config: UnetConfig, root: &Scope, device: Device, kind: Kind) -> Result<Self> {
        let n = config.channels.len();
        let first = config.channels[0];
        let last = config.channels[n - 1];
        let time = 4 * first;
        let resnet = |scope: &Scope, inputs: i64, outputs: i64| {
            Resnet::load(
                scope,
                inputs,
                outputs,
                Some(time),
                config.groups,
                config.eps,
            )
        };
        let transformer = |scope: &Scope, level: usize| {
            let shape = TransformerShape {
                heads: config.heads[level],
                layers: config.transformer_layers[level],
                context: config.cross_attention_dim,
                groups: config.groups,
                upcast: config.upcast_attention,
            };
            SpatialTransformer::load(scope, config.channels[level], &shape)
        };

        let mut down = Vec::with_capacity(n);
        let mut skips = vec![first];
        let mut channels = first;
        for level in 0..n {
            let scope = root.sub("down_blocks").sub(level);
            let outputs = config.channels[level];
            let mut units = Vec::new();
            for i in 0..config.layers[level] {
                units.push(Unit {
                    resnet: resnet(&scope.sub("resnets").sub(i), channels, outputs)?,
                    transformer: if config.down_attention[level] {
                        Some(transformer(&scope.sub("attentions").sub(i), level)?)
                    } else {
                        None
                    },
                });
                channels = outputs;
                skips.push(outputs);
            }
            let downsample = if level + 1 < n {
                skips.push(outputs);
                let s = scope.sub("downsamplers.0.conv");
                Some(Conv::load(&s, outputs, outputs, 3, 2, 1)?)
            } else {
                None
            };
            down.push(DownBlock { units, downsample });
        }

        let scope = root.sub("mid_block");
        let mid = (
            resnet(&scope.sub("resnets.0"), last, last)?,
            transformer(&scope.sub("attentions.0"), n - 1)?,
            resnet(&scope.sub("resnets.1"), last, last)?,
        );

        let mut up = Vec::with_capacity(n);
        for block in 0..n {
            let level = n - 1 - block;
            let scope = root.sub("up_blocks").sub(block);
            let outputs = config.channels[level];
            let mut units = Vec::new();
            // One layer more than on the way down, each with the skip of its level.
            for i in 0..=config.layers[level] {
                let skip = skips.pop().unwrap_or(first);
                units.push(Unit {
                    resnet: resnet(&scope.sub("resnets").sub(i), channels + skip, outputs)?,
                    transformer: if config.up_attention[block] {
                        Some(transformer(&scope.sub("attentions").sub(i), level)?)
                    } else {
                        None
                    },
                });
                channels = outputs;
            }
            let upsample = if level > 0 {
                Some(Upsample::load(&scope, outputs)?)
            } else {
                None
            };
            up.push(UpBlock { units, upsample });
        }

        let embedding = root.sub("time_embedding");
        Ok(Self {
            conv_in: Conv::load3(&root.sub("conv_in"), config.in_channels, first)?,
            time1: Linear::load(&embedding.sub("linear_1"), first, time, true)?,
            time2: Linear::load(&embedding.sub("linear_2"), time, time, true)?,
            guidance: match config.time_cond_proj_dim {
                Some(width) => Some(Linear::load(
                    &embedding.sub("cond_proj"),
                    width,
                    first,
                    false,
                )?),
                None => None,
            },
            down,
            mid,
            up,
            norm_out: GroupNorm::load(
                &root.sub("conv_norm_out"),
                first,
                config.groups,
                config.eps,
            )?,
            conv_out: Conv::load3(&root.sub("conv_out"), first, config.out_channels)?,
            config,
            device,
            kind,
        })
    }

    /// Channels of the latent.
    pub fn channels(&self) -> i64 {
        self.config.in_channels
    }

    /// Whether guidance is an input (distilled models) instead of a second pass.
    pub fn embeds_guidance(&self) -> bool {
        self.guidance.is_some()
    }

    /// Prepares a batch of prompt embeddings `[batch, tokens, width]`, of which the rows
    /// `conditional` are told to observers as such.
    ///
    /// # Errors
    /// [`Error::Value`] when the width is not the configuration's `cross_attention_dim`.
    pub fn context(&self, embeddings: &Tensor, conditional: Range<i64>) -> Result<Context> {
        let size = embeddings.size();
        if size.len() != 3 || size[2] != self.config.cross_attention_dim {
            return Err(Error::value(
                "prompt embeddings",
                format!("[batch, tokens, {}]", self.config.cross_attention_dim),
                format!("{size:?}"),
            ));
        }
        let embeddings = embeddings.to_device(self.device).to_kind(self.kind);
        let units = self.down.iter().flat_map(|b| &b.units);
        let mid = std::iter::once(&self.mid.1);
        let layers = units
            .filter_map(|u| u.transformer.as_ref())
            .chain(mid)
            .chain(
                self.up
                    .iter()
                    .flat_map(|b| &b.units)
                    .filter_map(|u| u.transformer.as_ref()),
            )
            .map(|t| t.key_values(&embeddings))
            .collect();
        Ok(Context {
            layers,
            batch: size[0],
            conditional,
        })
    }

    /// Sinusoidal features of `value` (Vaswani et al., 2017).
    fn sinusoid(value: f64, width: i64, shift: f64, cos_first: bool) -> Tensor {
        let half = width / 2;
        let steps = Tensor::arange(half, (Kind::Double, Device::Cpu));
        let angle = (steps * (-(10_000f64.ln()) / (half as f64 - shift))).exp() * value;
        let mut parts = [angle.sin(), angle.cos()];
        if cos_first {
            parts.swap(0, 1);
        }
        let out = Tensor::cat(&parts, 0).view([1, 2 * half]);
        if width % 2 == 1 {
            out.constant_pad_nd([0, 1])
        } else {
            out
        }
    }

    /// The time embedding `[1, 4 * channels]`, through its activation.
    fn embed_time(&self, timestep: f64, guidance: f64) -> Tensor {
        let width = self.config.channels[0];
        let config = &self.config;
        let mut x = Self::sinusoid(timestep, width, config.freq_shift, config.flip_sin_to_cos)
            .to_device(self.device)
            .to_kind(self.kind);
        if let (Some(layer), Some(width)) = (&self.guidance, config.time_cond_proj_dim) {
            // Meng et al., 2023: the guidance weight as a second sinusoid.
            let w = Self::sinusoid((guidance - 1.0) * 1000.0, width, 1.0, false)
                .to_device(self.device)
                .to_kind(self.kind);
            x += layer.forward(&w);
        }
        self.time2.forward(&self.time1.forward(&x).silu_()).silu_()
    }

    /// The prediction for `sample [batch, channels, h, w]` at `timestep`, float32 of the same
    /// shape. `guidance` is used by distilled models only.
    ///
    /// # Errors
    /// [`Error::Value`] when the batch or the channels do not fit the context or the model;
    /// what `watch` returns.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: f64,
        guidance: f64,
        context: &Context,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let size = sample.size();
        if size.len() != 4 || size[0] != context.batch || size[1] != self.config.in_channels {
            return Err(Error::value(
                "latent",
                format!("[{}, {}, h, w]", context.batch, self.config.in_channels),
                format!("{size:?}"),
            ));
        }
        let time = self.embed_time(timestep, guidance);
        let mut contexts = context.layers.iter().map(Vec::as_slice);
        // Down, middle, up: the order in which `context` laid them out.
        let mut next = Layer {
            stage: Stage::Down,
            index: 0,
        };
        let mut transform =
            |t: &SpatialTransformer, x: &Tensor, stage: Stage, watch: &mut Watch<'_>| {
                if stage != next.stage {
                    next = Layer { stage, index: 0 };
                }
                let first = next;
                next.index += t.layers();
                let kv = contexts.next().unwrap_or_default();
                t.forward(x, kv, first, &context.conditional, watch)
            };
        let sample = preferred_format(&sample.to_device(self.device).to_kind(self.kind));
        let mut x = self.conv_in.forward(&sample);
        let mut skips = vec![x.shallow_clone()];
        for block in &self.down {
            for unit in &block.units {
                watch.check()?;
                x = unit.resnet.forward(&x, Some(&time));
                if let Some(transformer) = &unit.transformer {
                    x = transform(transformer, &x, Stage::Down, watch)?;
                }
                skips.push(x.shallow_clone());
            }
            if let Some(conv) = &block.downsample {
                x = conv.forward(&x);
                skips.push(x.shallow_clone());
            }
        }
        watch.check()?;
        x = self.mid.0.forward(&x, Some(&time));
        x = transform(&self.mid.1, &x, Stage::Mid, watch)?;
        x = self.mid.2.forward(&x, Some(&time));
        for block in &self.up {
            for unit in &block.units {
                watch.check()?;
                let skip = skips.pop().unwrap_or_else(|| x.shallow_clone());
                let joined = Tensor::cat(&[&x, &skip], 1);
                drop(skip);
                x = unit.resnet.forward(&joined, Some(&time));
                if let Some(transformer) = &unit.transformer {
                    x = transform(transformer, &x, Stage::Up, watch)?;
                }
            }
            if let Some(upsample) = &block.upsample {
                // Odd sizes: the skip of the level above says how large it was.
                let (_, _, h, w) = skips.last().unwrap_or(&x).size4().unwrap_or((0, 0, 0, 0));
                x = upsample.forward(&x, h, w);
            }
        }
        let out = self.conv_out.forward(&self.norm_out.forward_silu(&x));
        Ok(out.to_kind(Kind::Float).contiguous())
    }
}
