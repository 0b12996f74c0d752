//! From a region's mask to instances on the canvas, or the reason why not.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::BinaryMask;
use super::components::components;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};

/// What the filter measures of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Columns of its box.
    Width,
    /// Rows of its box.
    Height,
    /// Positions.
    Area,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Width => "width",
            Self::Height => "height",
            Self::Area => "area",
        })
    }
}

/// Whether a region gave an instance, and why not.
///
/// Its text (`Display`) is for people; serde writes `"kept"` or `{"too_small": {...}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Verdict {
    /// It did.
    Kept,
    /// There is no usable attention map: none was asked for, it holds values that are not
    /// finite, or the picture is unusable.
    NoAttention,
    /// No mask source proposed a mask.
    NoProposal,
    /// The mask is empty on the region's own part of the canvas.
    NoComponent,
    /// The best component is below a bound.
    TooSmall {
        /// What is.
        what: Measure,
        /// In pixels.
        got: u64,
        /// The bound.
        least: u64,
    },
    /// The best component is above a bound.
    TooLarge {
        /// What is.
        what: Measure,
        /// In pixels.
        got: u64,
        /// The bound.
        most: u64,
    },
    /// More than one component is within the bounds.
    TooManyComponents {
        /// How many.
        found: u32,
    },
    /// It would have, but others of its canvas did not, and the recipe keeps whole canvases.
    CanvasDropped {
        /// How many regions failed.
        failed: u32,
    },
    /// A check's number misses its threshold.
    Score {
        /// Name of the check.
        check: String,
        /// The best number that an instance of the region had.
        score: f32,
        /// The least number that passes.
        threshold: f32,
    },
}

impl Verdict {
    /// Whether the region gave an instance.
    pub const fn is_kept(&self) -> bool {
        matches!(self, Self::Kept)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => write!(f, "kept"),
            Self::NoAttention => write!(f, "there is no usable attention map"),
            Self::CanvasDropped { failed } => {
                write!(
                    f,
                    "good, but {failed} other region(s) of its canvas are not"
                )
            }
            Self::NoProposal => write!(f, "no mask source proposed a mask"),
            Self::NoComponent => write!(f, "the mask is empty"),
            Self::TooSmall { what, got, least } => {
                write!(f, "{what} of {got} px is below {least} px")
            }
            Self::TooLarge { what, got, most } => {
                write!(f, "{what} of {got} px is above {most} px")
            }
            Self::TooManyComponents { found } => write!(f, "{found} components, expected one"),
            Self::Score {
                check,
                score,
                threshold,
            } => write!(f, "{check} score of {score} is below {threshold}"),
        }
    }
}

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
pub struct FilterParams {
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

impl Default for FilterParams {
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

impl FilterParams {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`Error::Value`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if self.min_width > self.max_width {
            return Err(Error::value(
                "filter.min_width",
                format!("at most filter.max_width = {}", self.max_width),
                self.min_width,
            ));
        }
        if self.min_height > self.max_height {
            return Err(Error::value(
                "filter.min_height",
                format!("at most filter.max_height = {}", self.max_height),
                self.min_height,
            ));
        }
        for (key, v) in [("min_area", self.min_area), ("max_area", self.max_area)] {
            if !(0.0..=1.0).contains(&v) {
                return Err(Error::value(
                    format!("filter.{key}"),
                    "a share of the base region from 0 to 1",
                    v,
                ));
            }
        }
        if self.min_area > self.max_area {
            return Err(Error::value(
                "filter.min_area",
                format!("at most filter.max_area = {}", self.max_area),
                self.min_area,
            ));
        }
        Ok(())
    }

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
}

/// Puts a region's mask on the canvas (its own part only), finds the 4-connected components
/// and keeps those within the bounds.
///
/// - `mask` has the size of `region`, the region's box on the canvas, overlap included;
/// - `own` is the part of the canvas that is the region's own (the *paste box*; the same part
///   seen from the region's corner is the *crop box*);
/// - `base` is the base region (384 x 512 in the paper), of which the area bounds are shares.
///
/// Returns the verdict and the kept masks on the whole canvas: at least one with
/// [`Verdict::Kept`], otherwise none. Where nothing passes, the verdict speaks of the largest
/// component.
///
/// # Errors
/// [`Error::Value`] when `own` is empty or not inside `region`, `region` not inside the canvas,
/// or the mask's size is not the region's.
pub fn filter_region(
    params: &FilterParams,
    mask: &BinaryMask,
    region: PixelBox,
    own: PixelBox,
    canvas: Size,
    base: Size,
) -> Result<(Verdict, Vec<BinaryMask>)> {
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
    let found = components(&mask.crop(crop)?);
    let Some(largest) = found.largest() else {
        return Ok((Verdict::NoComponent, Vec::new()));
    };
    // Bounds do not depend on where the own part lies.
    let good: Vec<_> = found
        .items
        .iter()
        .filter(|c| params.reject(c.area, c.bbox, base).is_none())
        .collect();
    if good.is_empty() {
        let why = params.reject(largest.area, largest.bbox, base);
        return Ok((why.unwrap_or(Verdict::NoComponent), Vec::new()));
    }
    if params.components == ComponentRule::One && good.len() > 1 {
        let found = good.len() as u32;
        return Ok((Verdict::TooManyComponents { found }, Vec::new()));
    }
    let (own_width, canvas_width) = (own.width() as usize, canvas.width as usize);
    let masks = good
        .into_iter()
        .map(|c| {
            let mut placed = BinaryMask::zeros(canvas);
            for y in c.bbox.y0..c.bbox.y1 {
                let from = y as usize * own_width;
                let to = (y + own.y0) as usize * canvas_width + own.x0 as usize;
                let labels = &found.labels[from..from + own_width];
                let row = &mut placed.data_mut()[to..to + own_width];
                for (v, &label) in row.iter_mut().zip(labels) {
                    *v = u8::from(label == c.label);
                }
            }
            placed
        })
        .collect();
    Ok((Verdict::Kept, masks))
}
