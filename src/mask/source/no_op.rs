//! A source that takes the whole region for the object: shows what the seam needs, and tests it.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::{Proposal, Source};
use crate::error::Result;
use crate::mask::BinaryMask;
use crate::mask::region::RegionView;
use crate::mask::tools::Tools;

/// A tool that notes how many regions each call got.
pub type Calls = Mutex<Vec<usize>>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoOp {
    on_device: bool,
    /// Whether it asks for [`Calls`].
    counted: bool,
}

impl Source for NoOp {
    fn validate(&self, _place: &str) -> Result<()> {
        Ok(())
    }

    fn on_device(&self) -> bool {
        self.on_device
    }

    fn propose(&self, regions: &[RegionView<'_>], tools: &Tools) -> Result<Vec<Vec<Proposal>>> {
        if self.counted {
            let mut calls = tools.get::<Calls>("the mask source no_op")?.lock().unwrap();
            calls.push(regions.len());
        }
        regions
            .iter()
            .map(|r| {
                let size = r.bbox.size();
                let n = size.area() as usize;
                Ok(vec![Proposal {
                    mask: BinaryMask::from_vec(size, vec![1; n])?,
                    soft: vec![1.0; n],
                    threshold: 0.5,
                    confidence: 1.0,
                }])
            })
            .collect()
    }
}
