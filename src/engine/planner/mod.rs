//! What the engine makes next: the seam [`Planner`], and the planners that there are.
//!
//! A planner is asked for a batch whenever the device is free, and told what became of it. It reads
//! the bank and never writes it; it links no libtorch. [`OnDemand`] keeps a stock beside a training
//! run, [`Prewarm`] makes an exact number of mosaics and ends. A new planner is one file here with
//! its `mod` line, and a command that passes it to the loop.

mod on_demand;
mod prewarm;

pub use on_demand::OnDemand;
pub use prewarm::Prewarm;

use super::plan::Batch;
use crate::bank::Bank;
use crate::error::Result;

/// What became of one mosaic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Categories of its regions.
    pub tried: Vec<u32>,
    /// Those of its instances, each once.
    pub kept: Vec<u32>,
    /// Its instances.
    pub instances: u64,
    /// Records that had to go because the bank is full.
    pub evicted: u64,
}

/// What the planner answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Make these.
    Make(Batch),
    /// There is nothing to make now.
    Wait,
    /// There will be nothing to make.
    Done,
}

/// A planner's part of the engine status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Mosaics that every category should have.
    pub target: u64,
    /// Categories that are looked after.
    pub categories: usize,
    /// Those of them that have the target.
    pub stocked: usize,
    /// Mosaics that are missing.
    pub missing: u64,
}

/// Says what to make next: where the engine's wishes come from.
pub trait Planner {
    /// The next batch of at most `most` mosaics; `coming` says how many mosaics of each category
    /// are on their way.
    ///
    /// # Errors
    /// Whatever makes it pointless to go on.
    fn next(&mut self, bank: &Bank, coming: &[u64], most: usize) -> Result<Next>;

    /// A mosaic was written, or came to nothing.
    fn written(&mut self, report: &Report);

    /// A denoising step is done.
    fn step(&mut self, _done: usize, _all: usize) {}

    /// Its part of the engine status.
    fn outlook(&self) -> Outlook;
}

/// Counts failures in a row of each category.
fn count_fails(fails: &mut [u32], report: &Report) {
    for &c in &report.tried {
        if let Some(n) = fails.get_mut(c as usize) {
            *n = if report.kept.contains(&c) {
                0
            } else {
                n.saturating_add(1)
            };
        }
    }
}
