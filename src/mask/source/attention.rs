//! The region's cross-attention above a threshold (MosaicFusion, arXiv 2309.13042, section 3.2).

use serde::{Deserialize, Serialize};

use super::{Proposal, Source};
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::region::{Block, Reading, RegionView, SubjectTokens};
use crate::mask::tools::Tools;
use crate::mask::{Threshold, aggregate, aggregate_8_bit};

/// How the maps of all levels become one of the region's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// [`aggregate`]: in floating point.
    #[default]
    Float,
    /// [`aggregate_8_bit`]: as the authors of MosaicFusion do it, with Pillow.
    Paper,
}

impl Aggregation {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The mean of the attention maps above a threshold; the defaults are MosaicFusion's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attention {
    /// Parts of the UNet, see [`Reading::blocks`].
    pub blocks: Vec<Block>,
    /// Resolutions, see [`Reading::levels`].
    pub levels: Vec<u32>,
    /// Tokens.
    pub subject: SubjectTokens,
    /// From map to mask.
    pub threshold: Threshold,
    /// From maps to one map.
    #[serde(skip_serializing_if = "Aggregation::is_default")]
    pub aggregation: Aggregation,
}

impl Default for Attention {
    fn default() -> Self {
        Self {
            blocks: vec![Block::Down, Block::Up],
            levels: vec![0, 1, 2],
            subject: SubjectTokens::Last,
            threshold: Threshold::Otsu,
            aggregation: Aggregation::Float,
        }
    }
}

impl Attention {
    fn reading(&self) -> Reading {
        Reading {
            blocks: self.blocks.clone(),
            levels: self.levels.clone(),
            subject: self.subject,
        }
    }

    fn one(&self, region: &RegionView<'_>) -> Result<Option<Proposal>> {
        let Some(levels) = region.levels(&self.reading()) else {
            return Ok(None);
        };
        let size = region.bbox.size();
        let maps: Vec<(Size, &[f32])> =
            levels.iter().map(|l| (l.size, l.data.as_slice())).collect();
        let soft = match self.aggregation {
            Aggregation::Float => aggregate(&maps, size)?,
            Aggregation::Paper => aggregate_8_bit(&maps, size)?,
        };
        let mask = self.threshold.apply(&soft, size)?;
        Ok(Some(Proposal {
            confidence: contrast(&soft, mask.data()),
            threshold: self.threshold.level(&soft),
            mask,
            soft,
        }))
    }
}

/// Mean of the map inside the mask minus its mean outside, at least 0.
fn contrast(soft: &[f32], mask: &[u8]) -> f32 {
    let (mut sums, mut counts) = ([0f64; 2], [0u64; 2]);
    for (v, &inside) in soft.iter().zip(mask) {
        sums[usize::from(inside != 0)] += f64::from(*v);
        counts[usize::from(inside != 0)] += 1;
    }
    let mean = |i: usize| sums[i] / counts[i].max(1) as f64;
    (mean(1) - mean(0)).max(0.0) as f32
}

impl Source for Attention {
    fn validate(&self, place: &str) -> Result<()> {
        let distinct = |n: usize, same: &dyn Fn(usize, usize) -> bool| {
            n > 0 && (0..n).all(|i| (i + 1..n).all(|j| !same(i, j)))
        };
        let (blocks, levels) = (&self.blocks, &self.levels);
        if !distinct(blocks.len(), &|i, j| blocks[i] == blocks[j]) {
            return Err(Error::value(
                format!("{place}.blocks"),
                "a list of \"down\", \"mid\", \"up\", each at most once",
                format!("{blocks:?}"),
            ));
        }
        if !distinct(levels.len(), &|i, j| levels[i] == levels[j])
            || levels.iter().any(|l| *l >= 8)
        {
            return Err(Error::value(
                format!("{place}.levels"),
                "a list of levels 0..8, each at most once",
                format!("{levels:?}"),
            ));
        }
        self.threshold.validate(&format!("{place}.threshold"))
    }

    fn reading(&self) -> Option<Reading> {
        Some(self.reading())
    }

    fn propose(
        &self,
        regions: &[RegionView<'_>],
        _tools: &Tools,
    ) -> Result<Vec<Vec<Proposal>>> {
        regions
            .iter()
            .map(|r| Ok(self.one(r)?.into_iter().collect()))
            .collect()
    }
}
