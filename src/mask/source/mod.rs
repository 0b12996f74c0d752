//! Mask sources: from a finished picture, its prompt and its attention to proposals.
//!
//! A new one: a file here with its parameters, which implement [`Source`], and one line in
//! [`AnySource`]. `DESIGN.md` has the steps.

pub mod attention;
#[cfg(test)]
pub(crate) mod no_op;

use super::BinaryMask;
use super::kinds::kinds;
use super::region::{Reading, RegionView};
use super::tools::Tools;
use crate::error::Result;

/// One mask that a source proposes for a region.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The region's size.
    pub mask: BinaryMask,
    /// What the mask was cut from, row-major of the region's size, 0..1: how much each pixel is
    /// object. An instance's score is its mean inside the mask.
    pub soft: Vec<f32>,
    /// The soft map above this is the mask, 0..1.
    pub threshold: f32,
    /// How sure the source is, 0..1; decides between the proposals of one source only.
    pub confidence: f32,
}

/// Proposes masks for regions of finished pictures.
pub trait Source: Send + Sync {
    /// Checks the parameters; `place` is the recipe's key.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the key.
    fn validate(&self, place: &str) -> Result<()>;

    /// The attention that it needs; without any, sampling runs without capture.
    fn reading(&self) -> Option<Reading> {
        None
    }

    /// Whether it computes on a device: it then gets all regions of a batch in one call, from
    /// one thread. Otherwise it is called from several threads at once, with a few regions each.
    fn on_device(&self) -> bool {
        false
    }

    /// The proposals for each of `regions`, in their order; none where it sees no object.
    ///
    /// # Errors
    /// What makes the whole batch fail; a region without an object is not an error.
    fn propose(&self, regions: &[RegionView<'_>], tools: &Tools) -> Result<Vec<Vec<Proposal>>>;
}

kinds! {
    /// A mask source as a recipe names it.
    AnySource: dyn Source {
        "attention" => Attention(attention::Attention),
        #[cfg(test)] "no_op" => NoOp(no_op::NoOp),
    }
}
