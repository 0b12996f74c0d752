//! A check that gives every object the same score: shows what the seam needs, and tests it.

use serde::{Deserialize, Serialize};

use super::{Candidate, Check, Finding};
use crate::error::Result;
use crate::mask::tools::Tools;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoOp {
    score: f32,
    threshold: f32,
}

impl Check for NoOp {
    fn validate(&self, _place: &str) -> Result<()> {
        Ok(())
    }

    fn examine(&self, candidates: &[Candidate<'_>], _tools: &Tools) -> Result<Vec<Finding>> {
        Ok(candidates
            .iter()
            .map(|c| {
                Finding::from_scores(
                    "no_op",
                    vec![self.score; c.standing.len()],
                    self.threshold,
                )
            })
            .collect())
    }
}
