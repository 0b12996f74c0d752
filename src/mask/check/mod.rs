//! Checks: which objects of a mask become instances, and with which scores.
//!
//! A new one: a file here with its parameters, which implement [`Check`], and one line in
//! [`AnyCheck`]. `DESIGN.md` has the steps.

#[cfg(test)]
pub(crate) mod no_op;
pub mod size;

use super::BinaryMask;
use super::components::{Component, Components, components};
use super::kinds::kinds;
use super::region::{Reading, RegionView};
use super::source::Proposal;
use super::tools::Tools;
use super::verdict::Verdict;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};

/// The objects of a region: the 4-connected components of its mask on its own part.
#[derive(Debug, Clone)]
pub struct Objects {
    found: Components,
    own: PixelBox,
    canvas: Size,
}

impl Objects {
    /// Finds them. `mask` has the size of `region`, the region's box on the canvas, overlap
    /// included; `own` is the part of the canvas that is the region's own (the *paste box*; the
    /// same part seen from the region's corner is the *crop box*).
    ///
    /// # Errors
    /// [`Error::Value`] when `own` is empty or not inside `region`, `region` not inside the
    /// canvas, or the mask's size is not the region's.
    pub fn find(
        mask: &BinaryMask,
        region: PixelBox,
        own: PixelBox,
        canvas: Size,
    ) -> Result<Self> {
        let inside = !own.is_empty()
            && own.x0 >= region.x0
            && own.y0 >= region.y0
            && own.x1 <= region.x1
            && own.y1 <= region.y1
            && region.x1 <= canvas.width
            && region.y1 <= canvas.height;
        if !inside {
            return Err(Error::value(
                "region placement",
                format!(
                    "a paste box inside its region inside a canvas of {} x {}",
                    canvas.height, canvas.width
                ),
                format!(
                    "paste box {:?}, region {:?}",
                    <[u32; 4]>::from(own),
                    <[u32; 4]>::from(region)
                ),
            ));
        }
        let size = region.size();
        if mask.size() != size {
            return Err(Error::value(
                "region mask",
                format!("{} x {}, as its region", size.height, size.width),
                format!("{} x {}", mask.size().height, mask.size().width),
            ));
        }
        let crop = PixelBox::new(
            own.x0 - region.x0,
            own.y0 - region.y0,
            own.x1 - region.x0,
            own.y1 - region.y0,
        );
        Ok(Self {
            found: components(&mask.crop(crop)?),
            own,
            canvas,
        })
    }

    /// All of them, in the order of their first positions; boxes are relative to the own part.
    pub fn all(&self) -> &[Component] {
        &self.found.items
    }

    /// One of them on the whole canvas.
    pub fn mask(&self, object: &Component) -> BinaryMask {
        let (own_width, canvas_width) = (self.own.width() as usize, self.canvas.width as usize);
        let mut placed = BinaryMask::zeros(self.canvas);
        for y in object.bbox.y0..object.bbox.y1 {
            let from = y as usize * own_width;
            let to = (y + self.own.y0) as usize * canvas_width + self.own.x0 as usize;
            let labels = &self.found.labels[from..from + own_width];
            let row = &mut placed.data_mut()[to..to + own_width];
            for (v, &label) in row.iter_mut().zip(labels) {
                *v = u8::from(label == object.label);
            }
        }
        placed
    }
}

/// A region whose objects are checked.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The region.
    pub region: &'a RegionView<'a>,
    /// What each source proposed, with the source's kind: its most confident mask, before
    /// refinement. The first is the one that was refined.
    pub proposals: &'a [(&'static str, Proposal)],
    /// The refined mask, of the region's size.
    pub mask: &'a BinaryMask,
    /// The mask's objects.
    pub objects: &'a Objects,
    /// Those that passed all checks before this one; at least one.
    pub standing: &'a [Component],
}

/// What a check found in one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// For each standing object whether it passes.
    pub pass: Vec<bool>,
    /// For each standing object its score; empty when the check has no number.
    pub scores: Vec<f32>,
    /// Kept when at least one passes, otherwise why none does.
    pub verdict: Verdict,
}

impl Finding {
    /// The finding of a check that gives each standing object a number: those of at least
    /// `threshold` pass. A number that is not finite does not.
    pub fn from_scores(check: &str, scores: Vec<f32>, threshold: f32) -> Self {
        let pass: Vec<bool> = scores
            .iter()
            .map(|s| s.is_finite() && *s >= threshold)
            .collect();
        let verdict = if pass.contains(&true) {
            Verdict::Kept
        } else {
            Verdict::Score {
                check: check.into(),
                score: scores.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                threshold,
            }
        };
        Self {
            pass,
            scores,
            verdict,
        }
    }
}

/// Judges the objects of regions.
pub trait Check: Send + Sync {
    /// Checks the parameters; `place` is the recipe's key.
    ///
    /// # Errors
    /// [`Error::Value`] naming the key.
    fn validate(&self, place: &str) -> Result<()>;

    /// Attention that it needs besides that of the sources.
    fn reading(&self) -> Option<Reading> {
        None
    }

    /// As [`super::Source::on_device`].
    fn on_device(&self) -> bool {
        false
    }

    /// What it finds in each candidate, in their order. Regions that an earlier check rejected
    /// are not among them.
    ///
    /// # Errors
    /// What makes the whole batch fail.
    fn examine(&self, candidates: &[Candidate<'_>], tools: &Tools) -> Result<Vec<Finding>>;
}

kinds! {
    /// A check as a recipe names it.
    AnyCheck: dyn Check {
        "size" => Size(size::SizeCheck),
        #[cfg(test)] "no_op" => NoOp(no_op::NoOp),
    }
}
