//! What is asked for: a canvas with its regions, each with a prompt.

use super::layout::Part;
use super::prompt::Subject;
use crate::diffusion::LatentSpace;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};

/// A picture that a region starts from instead of pure noise.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionImage {
    /// Row-major RGB of the region's size, 8 bits per channel.
    pub rgb: Vec<u8>,
    /// Share of the steps that may change it, 0..1; 1 leaves nothing of the picture.
    pub strength: f64,
}

/// One rectangle of the canvas, with one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// What is denoised for it.
    pub bbox: PixelBox,
    /// The part of the canvas that its instance may lie in.
    pub own: PixelBox,
    /// Category of its subject.
    pub category: String,
    /// Prompt and subject.
    pub subject: Subject,
    /// Weight of classifier-free guidance.
    pub guidance: f64,
    /// Draws the region's own part of the initial noise from another seed.
    pub noise_seed: Option<u64>,
    /// Starts from a picture.
    pub image: Option<RegionImage>,
}

impl Region {
    /// A region of a drawn layout.
    pub fn new(part: Part, category: &str, subject: Subject, guidance: f64) -> Self {
        Self {
            bbox: part.region,
            own: part.own,
            category: category.to_owned(),
            subject,
            guidance,
            noise_seed: None,
            image: None,
        }
    }
}

/// One mosaic to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Canvas {
    /// Pixels.
    pub size: Size,
    /// At least one.
    pub regions: Vec<Region>,
    /// Decides the noise.
    pub seed: u64,
}

impl Canvas {
    /// Refuses what cannot be made in this latent space.
    ///
    /// # Errors
    /// [`Error::Value`] with the region's index, what was expected and what was found.
    pub fn validate(&self, space: &LatentSpace) -> Result<()> {
        let multiple = space.multiple();
        self.size.to_latent(multiple)?;
        if self.regions.is_empty() {
            return Err(Error::value("regions", "at least one", "none"));
        }
        for (i, region) in self.regions.iter().enumerate() {
            let at = |e: Error| match e {
                Error::Value {
                    what,
                    expected,
                    got,
                } => Error::Value {
                    what: format!("region {i}: {what}"),
                    expected,
                    got,
                },
                other => other,
            };
            region.bbox.to_latent(multiple, self.size).map_err(at)?;
            let own = region.own;
            if own.is_empty() || own.intersect(region.bbox) != own {
                return Err(Error::value(
                    format!("region {i}: own part"),
                    format!("a box inside {:?}", <[u32; 4]>::from(region.bbox)),
                    format!("{:?}", <[u32; 4]>::from(own)),
                ));
            }
            if !region.guidance.is_finite() || region.guidance < 0.0 {
                return Err(Error::value(
                    format!("region {i}: guidance"),
                    "a number of at least 0",
                    region.guidance,
                ));
            }
            if let Some(image) = &region.image {
                let bytes = 3 * region.bbox.size().area();
                if image.rgb.len() as u64 != bytes {
                    return Err(Error::value(
                        format!("region {i}: image"),
                        format!(
                            "uint8 [{}, {}, 3]",
                            region.bbox.height(),
                            region.bbox.width()
                        ),
                        format!("{} bytes", image.rgb.len()),
                    ));
                }
                if !(0.0..=1.0).contains(&image.strength) {
                    return Err(Error::value(
                        format!("region {i}: strength"),
                        "0..=1",
                        image.strength,
                    ));
                }
            }
        }
        Ok(())
    }
}
