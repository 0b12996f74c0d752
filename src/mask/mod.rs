//! Masks on plain arrays: from a finished picture and its attention to instances or a verdict.
//!
//! ```text
//! picture, prompt, attention -> proposals        source (attention: aggregate, threshold)
//!   -> mask that follows the picture             refiner (bilateral solver)
//!   -> objects on the canvas, scores, verdict    components, check (size)
//!   -> runs, polygons                            rle, contour
//! ```
//!
//! Sources, refiners and checks are the room's seams: a recipe lists them by kind, and
//! `mosaic::examine` walks the lists. Nothing here knows a model, a file or a thread pool; what a
//! kind needs from outside is lent to it ([`Tools`]).

mod kinds;
pub mod region;
pub mod tools;
//
pub mod aggregate;
pub mod eight_bit;
pub mod source;
pub mod threshold;
//
pub mod refiner;
//
pub mod check;
pub mod components;
pub mod verdict;
//
pub(crate) mod contour;
pub mod rle;

pub use aggregate::{aggregate, resize_bicubic};
pub use check::size::{ComponentRule, SizeCheck, filter_region};
pub use check::{AnyCheck, Candidate, Check, Finding, Objects};
pub use components::{Component, Components, components, largest_component};
pub use eight_bit::aggregate_8_bit;
pub use refiner::bilateral::{Bilateral, BilateralGrid, SolveReport, bilateral_solve};
pub use refiner::{AnyRefiner, Draft, Refiner};
pub use region::{Block, Captured, LevelMap, Reading, RegionView, SubjectTokens};
pub use rle::Rle;
pub use source::attention::Attention;
pub use source::{AnySource, Proposal, Source};
pub use threshold::{Threshold, otsu};
pub use tools::Tools;
pub use verdict::{Measure, Verdict};

use crate::geometry::{PixelBox, Size};

/// A binary mask, row-major, one byte per position, each 0 or 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinaryMask {
    size: Size,
    data: Vec<u8>,
}

impl BinaryMask {
    /// An all-background mask.
    pub fn zeros(size: Size) -> Self {
        Self {
            size,
            data: vec![0; size.area() as usize],
        }
    }

    /// A mask from row-major bytes; whatever is not 0 is foreground.
    ///
    /// # Errors
    /// [`crate::Error::Value`] when the length is not `height * width`.
    pub fn from_vec(size: Size, mut data: Vec<u8>) -> crate::Result<Self> {
        if data.len() as u64 != size.area() {
            return Err(crate::Error::value(
                "mask data",
                format!("{} x {} bytes", size.height, size.width),
                format!("{} bytes", data.len()),
            ));
        }
        data.iter_mut().for_each(|v| *v = u8::from(*v != 0));
        Ok(Self { size, data })
    }

    /// Height and width.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Row-major bytes, each 0 or 1.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Row-major bytes to write to; keep them 0 or 1.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Row-major bytes, each 0 or 1, given away.
    pub fn into_vec(self) -> Vec<u8> {
        self.data
    }

    /// Number of foreground positions.
    pub fn area(&self) -> u64 {
        self.data.iter().map(|&v| u64::from(v)).sum()
    }

    /// The part inside `window`.
    ///
    /// # Errors
    /// [`crate::Error::Value`] when the window is empty or leaves the mask.
    pub fn crop(&self, window: PixelBox) -> crate::Result<Self> {
        if window.is_empty() || window.x1 > self.size.width || window.y1 > self.size.height {
            return Err(crate::Error::value(
                "crop box",
                format!(
                    "(x0, y0, x1, y1) with x0 < x1 <= {} and y0 < y1 <= {}",
                    self.size.width, self.size.height
                ),
                format!("{:?}", <[u32; 4]>::from(window)),
            ));
        }
        let data = self
            .data
            .chunks_exact(self.size.width as usize)
            .skip(window.y0 as usize)
            .take(window.height() as usize)
            .flat_map(|row| &row[window.x0 as usize..window.x1 as usize])
            .copied()
            .collect();
        Ok(Self {
            size: window.size(),
            data,
        })
    }

    /// The tight box around the foreground, `None` when there is none.
    pub fn tight_box(&self) -> Option<PixelBox> {
        let w = self.size.width as usize;
        let (mut x0, mut x1, mut y0, mut y1) = (usize::MAX, 0, usize::MAX, 0);
        if w == 0 {
            return None;
        }
        for (y, row) in self.data.chunks_exact(w).enumerate() {
            if let Some(first) = row.iter().position(|&v| v != 0) {
                let last = row.iter().rposition(|&v| v != 0).unwrap_or(first);
                x0 = x0.min(first);
                x1 = x1.max(last + 1);
                y0 = y0.min(y);
                y1 = y + 1;
            }
        }
        (y0 != usize::MAX).then(|| PixelBox::new(x0 as u32, y0 as u32, x1 as u32, y1 as u32))
    }
}
