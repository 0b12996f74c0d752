//! The two planners: on demand beside a training run, and once before it.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;

use super::demand::DemandTracker;
use super::plan::{self, Odds, Others, Shortage};
use super::worker::{Next, Outlook, Planner, Report};
use crate::bank::Bank;
use crate::error::{Error, Result};
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

    /// Shows nothing else than what is drawable (see [`super::demand::drawable`]) beside the wanted
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

/// Fills the bank with exactly what is asked for, and ends.
pub struct Prewarm {
    goals: Vec<u64>,
    stock: Vec<u64>,
    odds: Odds,
    draw: ChaCha8Rng,
    fails: Vec<u32>,
    tries: u32,
    evicted: u64,
}

impl Prewarm {
    /// For `goals` mosaics of each category of the bank; a category that failed `tries` times
    /// in a row is given up.
    ///
    /// # Errors
    /// [`Error::Value`] when the bank's limit per category is below a goal.
    pub fn new(bank: &Bank, goals: Vec<u64>, odds: Odds, tries: u32) -> Result<Self> {
        let limit = bank.info().limits.max_per_category;
        let most = goals.iter().copied().max().unwrap_or_default();
        if limit > 0 && most > limit {
            return Err(Error::value(
                "mosaics per category",
                format!("at most {limit}, the bank's limit (bank.toml)"),
                most,
            ));
        }
        Ok(Self {
            stock: vec![0; goals.len()],
            fails: vec![0; goals.len()],
            goals,
            odds,
            draw: rng::keyed(u64::from(std::process::id()), "prewarm", 0),
            tries,
            evicted: 0,
        })
    }

    /// The goal of each category.
    pub fn goals(&self) -> &[u64] {
        &self.goals
    }

    /// Mosaics of each category when last looked at.
    pub fn stock(&self) -> &[u64] {
        &self.stock
    }

    /// Looks at the stock anew.
    pub fn take_stock(&mut self, mosaics: &[u64]) {
        mosaics.clone_into(&mut self.stock);
    }

    /// Categories that are short and were given up.
    pub fn given_up(&self) -> Vec<u32> {
        (0..)
            .zip(self.goals.iter().zip(&self.stock).zip(&self.fails))
            .filter(|(_, ((goal, stock), fails))| stock < goal && **fails >= self.tries)
            .map(|(c, _)| c)
            .collect()
    }
}

impl Planner for Prewarm {
    fn next(&mut self, bank: &Bank, coming: &[u64], most: usize) -> Result<Next> {
        if self.evicted > 0 {
            return Err(Error::value(
                "size of the bank",
                "room for what is asked for (limits.max_bytes and limits.max_per_category in \
                 bank.toml)",
                format!("{} records had to go for new ones", self.evicted),
            ));
        }
        self.stock.clone_from(&bank.stock()?.mosaics);
        let needs: Vec<Shortage> = (0..self.goals.len())
            .map(|c| {
                let of = |list: &[u64]| list.get(c).copied().unwrap_or_default();
                let given_up = self.fails.get(c).is_some_and(|n| *n >= self.tries);
                Shortage {
                    missing: of(&self.goals).saturating_sub(of(&self.stock) + of(coming)),
                    weight: if given_up { 0.0 } else { 1.0 },
                    barred: false,
                }
            })
            .collect();
        Ok(
            plan::next_batch(&needs, self.odds, Others::Short, most, &mut self.draw)
                .map_or(Next::Done, Next::Make),
        )
    }

    fn written(&mut self, report: &Report) {
        self.evicted += report.evicted;
        count_fails(&mut self.fails, report);
    }

    fn outlook(&self) -> Outlook {
        let pairs = || self.goals.iter().zip(&self.stock).filter(|(g, _)| **g > 0);
        Outlook {
            target: self.goals.iter().copied().max().unwrap_or_default(),
            categories: pairs().count(),
            stocked: pairs().filter(|(g, s)| s >= g).count(),
            missing: pairs().map(|(g, s)| g.saturating_sub(*s)).sum(),
        }
    }
}
