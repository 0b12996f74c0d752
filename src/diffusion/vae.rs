//! The KL autoencoder: latents to pixels and back (Rombach et al., 2022).

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::attention::MidAttention;
use super::blocks::{Conv, GroupNorm, Resnet, Upsample, preferred_format};
use super::config::VaeConfig;
use super::latent::LatentSpace;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::weights::{Scope, Weights};

/// Epsilon of the autoencoder's group norms.
const EPS: f64 = 1e-6;

struct Mid {
    first: Resnet,
    attention: Option<MidAttention>,
    second: Resnet,
}

impl Mid {
    fn load(scope: &Scope, channels: i64, config: &VaeConfig) -> Result<Self> {
        let resnet = |name: &str| {
            Resnet::load(
                &scope.sub(name),
                channels,
                channels,
                None,
                config.groups,
                EPS,
            )
        };
        Ok(Self {
            first: resnet("resnets.0")?,
            attention: if config.mid_attention {
                let s = scope.sub("attentions.0");
                Some(MidAttention::load(&s, channels, config.groups, EPS)?)
            } else {
                None
            },
            second: resnet("resnets.1")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.first.forward(x, None);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
        }
        self.second.forward(&x, None)
    }
}

struct Encoder {
    conv_in: Conv,
    blocks: Vec<(Vec<Resnet>, Option<Conv>)>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv,
    quant: Option<Conv>,
}

struct Decoder {
    post_quant: Option<Conv>,
    conv_in: Conv,
    mid: Mid,
    blocks: Vec<(Vec<Resnet>, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// An autoencoder with its latent scale.
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    device: Device,
    kind: Kind,
}

impl Vae {
    /// Loads the `vae/` directory of a diffusers-layout model, for latents of `channels`. Where
    /// `kind` is float16 and the configuration says `force_upcast`, the autoencoder runs in
    /// float32. Gives its digest, too.
    ///
    /// # Errors
    /// [`Error::Format`] for a configuration that is malformed, not supported, or does not fit
    /// the UNet; those of [`Weights`].
    pub fn open(
        dir: &Path,
        channels: i64,
        device: Device,
        kind: Kind,
    ) -> Result<(Self, [u8; 32])> {
        let path = dir.join("config.json");
        let config = VaeConfig::read(&path)?;
        if config.latent_channels != channels {
            return Err(Error::format(
                path,
                format!("latent_channels {channels} (the UNet's in_channels)"),
                config.latent_channels,
            ));
        }
        let kind = if kind == Kind::Half && config.force_upcast {
            Kind::Float
        } else {
            kind
        };
        let weights = Weights::open(dir, "diffusion_pytorch_model", device, kind)?;
        let root = weights.root();
        let vae = Self {
            encoder: Self::encoder(&config, &root)?,
            decoder: Self::decoder(&config, &root)?,
            config,
            device,
            kind,
        };
        weights.finish()?;
        Ok((vae, weights.digest()?))
    }

    fn encoder(config: &VaeConfig, root: &Scope) -> Result<Encoder> {
        let scope = root.sub("encoder");
        let (n, groups) = (config.channels.len(), config.groups);
        let (first, last) = (config.channels[0], config.channels[n - 1]);
        let mut blocks = Vec::new();
        let mut channels = first;
        for (level, &outputs) in config.channels.iter().enumerate() {
            let s = scope.sub("down_blocks").sub(level);
            let mut resnets = Vec::new();
            for i in 0..config.layers {
                let r = s.sub("resnets").sub(i);
                resnets.push(Resnet::load(&r, channels, outputs, None, groups, EPS)?);
                channels = outputs;
            }
            let downsample = if level + 1 < n {
                let d = s.sub("downsamplers.0.conv");
                Some(Conv::load(&d, outputs, outputs, 3, 2, 0)?)
            } else {
                None
            };
            blocks.push((resnets, downsample));
        }
        // Mean and log-variance side by side.
        let moments = 2 * config.latent_channels;
        Ok(Encoder {
            conv_in: Conv::load3(&scope.sub("conv_in"), 3, first)?,
            blocks,
            mid: Mid::load(&scope.sub("mid_block"), last, config)?,
            norm_out: GroupNorm::load(&scope.sub("conv_norm_out"), last, groups, EPS)?,
            conv_out: Conv::load3(&scope.sub("conv_out"), last, moments)?,
            quant: if config.quant_conv {
                Some(Conv::load(
                    &root.sub("quant_conv"),
                    moments,
                    moments,
                    1,
                    1,
                    0,
                )?)
            } else {
                None
            },
        })
    }

    fn decoder(config: &VaeConfig, root: &Scope) -> Result<Decoder> {
        let scope = root.sub("decoder");
        let (n, groups) = (config.channels.len(), config.groups);
        let (first, last) = (config.channels[0], config.channels[n - 1]);
        let latent = config.latent_channels;
        let mut blocks = Vec::new();
        let mut channels = last;
        for (block, &outputs) in config.channels.iter().rev().enumerate() {
            let s = scope.sub("up_blocks").sub(block);
            let mut resnets = Vec::new();
            for i in 0..=config.layers {
                let r = s.sub("resnets").sub(i);
                resnets.push(Resnet::load(&r, channels, outputs, None, groups, EPS)?);
                channels = outputs;
            }
            let upsample = if block + 1 < n {
                Some(Upsample::load(&s, outputs)?)
            } else {
                None
            };
            blocks.push((resnets, upsample));
        }
        Ok(Decoder {
            post_quant: if config.post_quant_conv {
                Some(Conv::load(
                    &root.sub("post_quant_conv"),
                    latent,
                    latent,
                    1,
                    1,
                    0,
                )?)
            } else {
                None
            },
            conv_in: Conv::load3(&scope.sub("conv_in"), latent, last)?,
            mid: Mid::load(&scope.sub("mid_block"), last, config)?,
            blocks,
            norm_out: GroupNorm::load(&scope.sub("conv_norm_out"), first, groups, EPS)?,
            conv_out: Conv::load3(&scope.sub("conv_out"), first, 3)?,
        })
    }

    /// Its latents, of which the denoiser takes `patch` x `patch` cells as one position.
    pub fn space(&self, patch: u32) -> LatentSpace {
        LatentSpace {
            channels: self.config.latent_channels,
            factor: self.factor(),
            patch,
            scale: self.config.scaling_factor,
            shift: self.config.shift_factor,
        }
    }

    /// Pixels per latent cell, along each axis.
    fn factor(&self) -> u32 {
        1 << (self.config.channels.len() - 1)
    }

    /// Latents `[batch, channels, h, w]` as the diffusion model has them to pixels
    /// `[batch, 3, H, W]`, float32, about -1..1.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape; what `watch` returns.
    pub fn decode(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        let size = latents.size();
        if size.len() != 4 || size[1] != self.config.latent_channels {
            return Err(Error::value(
                "latent",
                format!("[batch, {}, h, w]", self.config.latent_channels),
                format!("{size:?}"),
            ));
        }
        let z = self.space(1).to_autoencoder(latents);
        let mut x = preferred_format(&z.to_device(self.device).to_kind(self.kind));
        if let Some(conv) = &self.decoder.post_quant {
            x = conv.forward(&x);
        }
        x = self.decoder.mid.forward(&self.decoder.conv_in.forward(&x));
        for (resnets, upsample) in &self.decoder.blocks {
            for resnet in resnets {
                watch.check()?;
                x = resnet.forward(&x, None);
            }
            if let Some(upsample) = upsample {
                let (_, _, h, w) = x.size4().unwrap_or((0, 0, 0, 0));
                x = upsample.forward(&x, 2 * h, 2 * w);
            }
        }
        let out = self
            .decoder
            .conv_out
            .forward(&self.decoder.norm_out.forward_silu(&x));
        Ok(out.to_kind(Kind::Float).contiguous())
    }

    /// Pixels `[batch, 3, H, W]`, -1..1, to the mean latents `[batch, channels, h, w]`, float32,
    /// at the diffusion model's scale.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape or sides that the factor does not divide; what
    /// `watch` returns.
    pub fn encode(&self, pixels: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        let size = pixels.size();
        let factor = i64::from(self.factor());
        if size.len() != 4 || size[1] != 3 || size[2] % factor != 0 || size[3] % factor != 0 {
            return Err(Error::value(
                "image",
                format!("[batch, 3, H, W] with sides that {factor} divides"),
                format!("{size:?}"),
            ));
        }
        let mut x = preferred_format(&pixels.to_device(self.device).to_kind(self.kind));
        x = self.encoder.conv_in.forward(&x);
        for (resnets, downsample) in &self.encoder.blocks {
            for resnet in resnets {
                watch.check()?;
                x = resnet.forward(&x, None);
            }
            if let Some(conv) = downsample {
                // The padding is on the right and the bottom only.
                x = conv.forward(&x.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        x = self.encoder.mid.forward(&x);
        x = self
            .encoder
            .conv_out
            .forward(&self.encoder.norm_out.forward_silu(&x));
        if let Some(conv) = &self.encoder.quant {
            x = conv.forward(&x);
        }
        let mean = x
            .narrow(1, 0, self.config.latent_channels)
            .to_kind(Kind::Float);
        Ok(self.space(1).to_denoiser(&mean))
    }
}
