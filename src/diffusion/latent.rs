//! The space that a denoiser works in.

use tch::Tensor;

/// How latents relate to pixels, to the denoiser and to the autoencoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentSpace {
    /// Channels of a latent.
    pub channels: i64,
    /// Pixels per latent cell, along each axis.
    pub factor: u32,
    /// Latent cells per position of the denoiser, along each axis (1 where every cell is one).
    pub patch: u32,
    /// `scaling_factor`: the denoiser's latents are the autoencoder's, less `shift`, times this.
    pub scale: f64,
    /// `shift_factor`.
    pub shift: f64,
}

impl LatentSpace {
    /// What the sides of canvases and regions must be multiples of, pixels.
    pub const fn multiple(&self) -> u32 {
        self.factor * self.patch
    }

    /// The denoiser's latents as the autoencoder has them; same shape.
    pub(super) fn to_autoencoder(self, latents: &Tensor) -> Tensor {
        latents / self.scale + self.shift
    }

    /// The autoencoder's latents as the denoiser has them; same shape.
    pub(super) fn to_denoiser(self, latents: &Tensor) -> Tensor {
        (latents - self.shift) * self.scale
    }
}
