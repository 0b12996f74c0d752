//! Whether a region gave an instance, and why not.

use std::fmt;

use serde::{Deserialize, Serialize};

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
