//! The mark on generated images in annotation files.

use serde::{Deserialize, Serialize};

/// The mark on a synthetic image (key `mosaicbank` of the image's entry).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMark {
    /// The mosaic's id: what it is made of ([`crate::record::identity`]).
    pub mosaic: String,
    /// The mosaic's seed.
    pub seed: u64,
    /// Hash of the resolved recipe, hex.
    pub recipe: String,
    /// Name of the model.
    pub model: String,
    /// SHA-256 over the weights, hex.
    pub weights: String,
}
