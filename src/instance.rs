//! An instance, and where it came from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::geometry::PixelBox;
use crate::mask::Rle;

/// Where a generated instance came from; enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Name of the model directory (or hub id) that made it.
    pub model: String,
    /// SHA-256 over the weights files, hex.
    pub weights: String,
    /// The region's prompt.
    pub prompt: String,
    /// The mosaic's seed.
    pub seed: u64,
    /// Hash of the resolved recipe, hex.
    pub recipe: String,
    /// Id of the mosaic.
    pub mosaic: String,
    /// Index of the region within the mosaic.
    pub region: u32,
}

/// One object on a canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The dataset's category name.
    pub category: String,
    /// The mask, on the whole canvas.
    pub mask: Rle,
    /// The tight box around the mask.
    pub bbox: PixelBox,
    /// Number of mask pixels.
    pub area: u64,
    /// Mean of the mask source's soft map (attention, say) inside the mask, 0..1.
    pub score: f32,
    /// Numbers of the recipe's checks, by kind; those of checks without a number are not there.
    pub scores: BTreeMap<String, f32>,
    /// Where it came from.
    pub provenance: Provenance,
}
