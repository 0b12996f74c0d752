//! Bounds on an object's size, and on how many objects a region may have.

use serde::{Deserialize, Serialize};

use super::{Candidate, Check, Finding, Objects};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::BinaryMask;
use crate::mask::components::Component;
use crate::mask::tools::Tools;
use crate::mask::verdict::{Measure, Verdict};

/// How many components of a region may become instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentRule {
    /// Exactly one (MosaicFusion): a region with several within the bounds fails.
    #[default]
    One,
    /// Each one within the bounds becomes an instance.
    Each,
}

/// Bounds on a region's components; the defaults are MosaicFusion's (arXiv 2309.13042).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SizeCheck {
    /// Least width of a component's box, px.
    pub min_width: u32,
    /// Greatest width, px.
    pub max_width: u32,
    /// Least height, px.
    pub min_height: u32,
    /// Greatest height, px.
    pub max_height: u32,
    /// Least area, as a share of the base region's area (rounded to whole pixels).
    pub min_area: f64,
    /// Greatest area, as a share of the base region's area.
    pub max_area: f64,
    /// How many components of a region may become instances.
    pub components: ComponentRule,
}

impl Default for SizeCheck {
    fn default() -> Self {
        Self {
            min_width: 1,
            max_width: 768,
            min_height: 1,
            max_height: 1024,
            min_area: 0.05,
            max_area: 0.95,
            components: ComponentRule::One,
        }
    }
}

impl SizeCheck {
    /// Least and greatest area in pixels, both allowed, for a base region of `base`.
    pub fn area_bounds(&self, base: Size) -> (u64, u64) {
        let pixels = |share: f64| (share * base.area() as f64).round() as u64;
        (pixels(self.min_area), pixels(self.max_area))
    }

    /// Why a component is out of bounds, `None` when it is not.
    fn reject(&self, area: u64, bbox: PixelBox, base: Size) -> Option<Verdict> {
        let (min_area, max_area) = self.area_bounds(base);
        let bounds = [
            (Measure::Area, area, min_area, max_area),
            (
                Measure::Width,
                u64::from(bbox.width()),
                u64::from(self.min_width),
                u64::from(self.max_width),
            ),
            (
                Measure::Height,
                u64::from(bbox.height()),
                u64::from(self.min_height),
                u64::from(self.max_height),
            ),
        ];
        bounds.into_iter().find_map(|(what, got, least, most)| {
            if got < least {
                Some(Verdict::TooSmall { what, got, least })
            } else if got > most {
                Some(Verdict::TooLarge { what, got, most })
            } else {
                None
            }
        })
    }

    /// Which objects are within the bounds. Bounds do not depend on where the own part lies.
    fn select(&self, objects: &[Component], base: Size) -> Finding {
        let mut pass: Vec<bool> = objects
            .iter()
            .map(|c| self.reject(c.area, c.bbox, base).is_none())
            .collect();
        let good = pass.iter().filter(|p| **p).count();
        // The first of equals.
        let largest = objects.iter().rev().max_by_key(|c| c.area);
        let verdict = if good == 0 {
            largest
                .and_then(|c| self.reject(c.area, c.bbox, base))
                .unwrap_or(Verdict::NoComponent)
        } else if self.components == ComponentRule::One && good > 1 {
            pass.fill(false);
            Verdict::TooManyComponents { found: good as u32 }
        } else {
            Verdict::Kept
        };
        Finding {
            pass,
            scores: Vec::new(),
            verdict,
        }
    }
}

impl Check for SizeCheck {
    fn validate(&self, place: &str) -> Result<()> {
        if self.min_width > self.max_width {
            return Err(Error::value(
                format!("{place}.min_width"),
                format!("at most max_width = {}", self.max_width),
                self.min_width,
            ));
        }
        if self.min_height > self.max_height {
            return Err(Error::value(
                format!("{place}.min_height"),
                format!("at most max_height = {}", self.max_height),
                self.min_height,
            ));
        }
        for (key, v) in [("min_area", self.min_area), ("max_area", self.max_area)] {
            if !(0.0..=1.0).contains(&v) {
                return Err(Error::value(
                    format!("{place}.{key}"),
                    "a share of the base region from 0 to 1",
                    v,
                ));
            }
        }
        if self.min_area > self.max_area {
            return Err(Error::value(
                format!("{place}.min_area"),
                format!("at most max_area = {}", self.max_area),
                self.min_area,
            ));
        }
        Ok(())
    }

    fn examine(&self, candidates: &[Candidate<'_>], _tools: &Tools) -> Result<Vec<Finding>> {
        Ok(candidates
            .iter()
            .map(|c| self.select(c.standing, c.region.base))
            .collect())
    }
}

/// Finds the objects of a region's mask and keeps those within the bounds.
///
/// - `mask`, `region`, `own` and `canvas` as in [`Objects::find`];
/// - `base` is the base region (384 x 512 in the paper), of which the area bounds are shares.
///
/// Returns the verdict and the kept masks on the whole canvas: at least one with
/// [`Verdict::Kept`], otherwise none. Where nothing passes, the verdict speaks of the largest
/// object.
///
/// # Errors
/// As [`Objects::find`].
pub fn filter_region(
    params: &SizeCheck,
    mask: &BinaryMask,
    region: PixelBox,
    own: PixelBox,
    canvas: Size,
    base: Size,
) -> Result<(Verdict, Vec<BinaryMask>)> {
    let objects = Objects::find(mask, region, own, canvas)?;
    let finding = params.select(objects.all(), base);
    let masks = objects
        .all()
        .iter()
        .zip(&finding.pass)
        .filter(|(_, pass)| **pass)
        .map(|(object, _)| objects.mask(object))
        .collect();
    Ok((finding.verdict, masks))
}
