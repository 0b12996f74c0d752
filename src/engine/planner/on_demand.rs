//! The planner of `mosaicbank engine`: new mosaics of what trainers need most.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;

use super::{Next, Outlook, Planner, Report, count_fails};
use crate::bank::Bank;
use crate::engine::demand::DemandTracker;
use crate::engine::plan::{self, Odds, Others};
use crate::error::Result;
use crate::rng;
use crate::status::EngineStatus;

/// How often the other engines of the bank are looked at.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// A category whose regions failed this often in a row counts half as much, and so on: one that
/// the model cannot draw does not hold up the others.
const PATIENCE: f64 = 10.0;

/// Keeps the stock of unused mosaics, in the order of what the trainers need most.
pub struct OnDemand {
    needs: DemandTracker,
    target: u64,
    odds: Odds,
    draw: ChaCha8Rng,
    /// What the model can draw.
    drawable: Vec<bool>,
    /// Failures in a row.
    fails: Vec<u32>,
    /// What the other engines of the bank are making.
    elsewhere: Vec<u64>,
    looked: Option<Instant>,
    own_id: String,
    outlook: Outlook,
}

impl OnDemand {
    /// For `wanted` categories with `target` unused mosaics each; `id` is this engine's.
    pub fn new(bank: &Bank, wanted: Vec<u32>, target: u64, odds: Odds, id: &str) -> Self {
        let n = bank.categories().len();
        Self {
            needs: DemandTracker::new(bank, wanted, target),
            target,
            odds,
            draw: rng::keyed(u64::from(std::process::id()), id, 0),
            drawable: vec![true; n],
            fails: vec![0; n],
            elsewhere: vec![0; n],
            looked: None,
            own_id: id.to_owned(),
            outlook: Outlook::default(),
        }
    }

    /// Shows nothing else than what is drawable (see [`crate::engine::demand::drawable`]) beside the wanted
    /// categories, either.
    #[must_use]
    pub fn with_drawable(mut self, drawable: Vec<bool>) -> Self {
        self.drawable = drawable;
        self
    }

    fn look_around(&mut self, bank: &Bank) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_AROUND) {
            return;
        }
        self.looked = Some(Instant::now());
        self.elsewhere.fill(0);
        for other in EngineStatus::read_all(bank.path()).unwrap_or_default() {
            if other.id != self.own_id && other.is_alive() {
                for (c, n) in other.coming {
                    if let Some(cell) = self.elsewhere.get_mut(c as usize) {
                        *cell += n;
                    }
                }
            }
        }
    }
}

impl Planner for OnDemand {
    fn next(&mut self, bank: &Bank, coming: &[u64], most: usize) -> Result<Next> {
        self.needs.refresh(bank)?;
        self.look_around(bank);
        let coming: Vec<u64> = coming
            .iter()
            .zip(&self.elsewhere)
            .map(|(a, b)| a + b)
            .collect();
        let mut needs = self.needs.needs(&coming);
        for (need, drawable) in needs.iter_mut().zip(&self.drawable) {
            need.barred = !drawable;
        }
        for (need, fails) in needs.iter_mut().zip(&self.fails) {
            need.weight *= 0.5f64.powf((f64::from(*fails) / PATIENCE).floor().min(20.0));
        }
        let fresh = self.needs.fresh();
        let full = |c: &&u32| fresh.get(**c as usize).is_some_and(|n| *n >= self.target);
        self.outlook = Outlook {
            target: self.target,
            categories: self.needs.wanted().len(),
            stocked: self.needs.wanted().iter().filter(full).count(),
            missing: needs.iter().map(|n| n.missing).sum(),
        };
        // The first of a category that a trainer waits for comes as soon as it can.
        let most = match self.needs.urgent(&coming) {
            0 => most,
            urgent => most.min(urgent),
        };
        Ok(
            plan::next_batch(&needs, self.odds, Others::All, most, &mut self.draw)
                .map_or(Next::Wait, Next::Make),
        )
    }

    fn written(&mut self, report: &Report) {
        self.needs.written(&report.kept);
        count_fails(&mut self.fails, report);
    }

    fn outlook(&self) -> Outlook {
        self.outlook
    }
}
