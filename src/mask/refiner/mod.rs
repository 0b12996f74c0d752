//! Refiners: a mask and its picture to a better mask.
//!
//! A new one: a file here with its parameters, which implement [`Refiner`], and one line in
//! [`AnyRefiner`]. `DESIGN.md` has the steps.

pub mod bilateral;

use super::BinaryMask;
use super::kinds::kinds;
use super::region::RegionView;
use super::source::Proposal;
use super::tools::Tools;
use crate::error::Result;

/// A region with the mask so far.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// The region.
    pub region: &'a RegionView<'a>,
    /// What the source proposed.
    pub proposal: &'a Proposal,
    /// The mask that the refiner before this one left, of the region's size.
    pub mask: &'a BinaryMask,
}

/// Improves masks.
pub trait Refiner: Send + Sync {
    /// Checks the parameters; `place` is the recipe's key.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the key.
    fn validate(&self, place: &str) -> Result<()>;

    /// As [`super::Source::on_device`].
    fn on_device(&self) -> bool {
        false
    }

    /// The refined mask of each draft, in their order and of the same sizes.
    ///
    /// # Errors
    /// What makes the whole batch fail.
    fn refine(&self, drafts: &[Draft<'_>], tools: &Tools) -> Result<Vec<BinaryMask>>;
}

kinds! {
    /// A refiner as a recipe names it.
    AnyRefiner: dyn Refiner {
        "bilateral" => Bilateral(bilateral::Bilateral),
    }
}
