//! One region of a finished picture, as sources, refiners and checks see it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};

/// The parts of the UNet whose cross-attention is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Down blocks.
    Down,
    /// The middle block.
    Mid,
    /// Up blocks.
    Up,
}

/// The tokens of a category's name whose attention is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectTokens {
    /// The last one (MosaicFusion's).
    Last,
    /// The mean over all of them.
    Mean,
}

/// Which cross-attention is read while the picture is sampled: the mean over heads, layers and
/// steps at each level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Parts of the UNet.
    pub blocks: Vec<Block>,
    /// Resolutions: 0 is the latent's own (1/8 of the image for Stable Diffusion), each next
    /// one half of it, rounded up.
    pub levels: Vec<u32>,
    /// Tokens.
    pub subject: SubjectTokens,
}

/// The mean attention of one region at one resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelMap {
    /// Size of the feature map.
    pub size: Size,
    /// Row-major probabilities.
    pub data: Vec<f32>,
}

/// A reading with what it gave for one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// What was asked for.
    pub reading: Reading,
    /// One map per level, the largest first.
    pub levels: Vec<LevelMap>,
}

/// One region of a finished picture.
#[derive(Debug, Clone)]
pub struct RegionView<'a> {
    /// The whole picture, row-major RGB of size `canvas`.
    pub rgb: &'a [u8],
    /// Size of the whole picture.
    pub canvas: Size,
    /// The region on the canvas, overlap included; masks and soft maps have its size.
    pub bbox: PixelBox,
    /// Its own part, inside `bbox`: where instances may lie.
    pub own: PixelBox,
    /// The recipe's base region, of which area bounds are shares.
    pub base: Size,
    /// Category of the subject.
    pub category: &'a str,
    /// What was drawn.
    pub prompt: &'a str,
    /// The subject's bytes in the prompt.
    pub subject: Range<usize>,
    /// Seed of the picture, for what is random in a kind.
    pub seed: u64,
    /// The readings that the recipe's sources and checks asked for; empty without capture.
    pub captured: &'a [Captured],
}

impl RegionView<'_> {
    /// The maps of a reading; `None` when it was not made or holds values that are not finite
    /// (16-bit overflow).
    pub fn levels(&self, reading: &Reading) -> Option<&[LevelMap]> {
        let found = self.captured.iter().find(|c| c.reading == *reading)?;
        let finite = found
            .levels
            .iter()
            .all(|l| l.data.iter().all(|v| v.is_finite()));
        (finite && !found.levels.is_empty()).then_some(&found.levels)
    }

    /// The region's pixels, row-major RGB of `bbox`'s size.
    ///
    /// # Errors
    /// [`Error::Value`] when the picture does not have the canvas's size or does not contain the
    /// region.
    pub fn pixels(&self) -> Result<Vec<u8>> {
        let (size, b) = (self.canvas, self.bbox);
        if self.rgb.len() as u64 != 3 * size.area() || b.x1 > size.width || b.y1 > size.height {
            return Err(Error::value(
                "picture of a region",
                format!(
                    "{} x {} RGB pixels around {:?}",
                    size.height,
                    size.width,
                    <[u32; 4]>::from(b)
                ),
                format!("{} bytes", self.rgb.len()),
            ));
        }
        Ok(cut(self.rgb, size, b))
    }
}

/// The pixels of `window`, which lies inside the picture; all row-major RGB.
pub(crate) fn cut(rgb: &[u8], size: Size, window: PixelBox) -> Vec<u8> {
    let stride = 3 * size.width as usize;
    let (x0, x1) = (3 * window.x0 as usize, 3 * window.x1 as usize);
    (window.y0 as usize..window.y1 as usize)
        .flat_map(|y| &rgb[y * stride + x0..y * stride + x1])
        .copied()
        .collect()
}
