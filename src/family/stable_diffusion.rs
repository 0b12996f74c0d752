//! Stable Diffusion 1.x and 2.x, and the embedded model: CLIP, a UNet with cross-attention, and
//! the KL autoencoder (Rombach et al., 2022).

use tch::Tensor;

use super::{
    Conditioned, Conditioning, Denoiser, Family, Parts, Source, TextEmbedding, TextStack,
};
use crate::diffusion::{Context, SchedulerConfig, Unet, Vae, Watch};
use crate::error::Result;
use crate::text::{TextEncoder, TokenizedPrompt, Tokenizer};

pub(super) const FAMILY: Family = Family {
    name: "stable_diffusion",
    models: "Stable Diffusion 1.x and 2.x, and the embedded model",
    components: &[
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "CLIPTextModel"),
        ("tokenizer", "CLIPTokenizer"),
    ],
    foreign: &[("text_encoder_2", "Stable Diffusion XL")],
    open,
};

fn open(source: &Source<'_>) -> Result<Parts> {
    let Source { dir, device, kind } = *source;
    let (encoder, text_digest) = TextEncoder::open(&dir.join("text_encoder"), device, kind)?;
    let (unet, unet_digest) = Unet::open(&dir.join("unet"), encoder.width(), device, kind)?;
    let (vae, vae_digest) = Vae::open(&dir.join("vae"), unet.channels(), device, kind)?;
    let tokenizer = Tokenizer::open(&dir.join("tokenizer"))?;
    let scheduler =
        SchedulerConfig::read(&dir.join("scheduler").join("scheduler_config.json"))?;
    Ok(Parts {
        text: Box::new(Clip { tokenizer, encoder }),
        denoiser: Box::new(unet),
        // The UNet's odd levels are padded, so that every cell is a position of its own.
        space: vae.space(1),
        autoencoder: Box::new(vae),
        scheduler,
        digests: vec![text_digest, unet_digest, vae_digest],
    })
}

/// One CLIP encoder, without a pooled vector.
struct Clip {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
}

impl TextStack for Clip {
    fn tokens(&self, prompt: &str) -> Result<TokenizedPrompt> {
        self.tokenizer.encode(prompt)
    }

    fn encode(&self, prompt: &str, clip_skip: usize) -> Result<TextEmbedding> {
        let ids = self.tokenizer.encode(prompt)?.ids;
        Ok(TextEmbedding {
            sequence: self.encoder.forward(&[ids], clip_skip)?,
            pooled: None,
        })
    }
}

impl Denoiser for Unet {
    fn embeds_guidance(&self) -> bool {
        Unet::embeds_guidance(self)
    }

    fn condition<'a>(&'a self, on: Conditioning) -> Result<Box<dyn Conditioned + 'a>> {
        Ok(Box::new(ConditionedUnet {
            context: self.context(&on.text.sequence, on.conditional)?,
            guidance: on.guidance,
            unet: self,
        }))
    }
}

struct ConditionedUnet<'a> {
    unet: &'a Unet,
    context: Context,
    guidance: f64,
}

impl Conditioned for ConditionedUnet<'_> {
    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        self.unet
            .forward(latents, timestep, self.guidance, &self.context, watch)
    }
}
