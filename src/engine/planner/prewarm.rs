//! The planner of `mosaicbank prewarm`: exactly so many mosaics of each category.

use rand_chacha::ChaCha8Rng;

use super::{Next, Outlook, Planner, Report, count_fails};
use crate::bank::Bank;
use crate::engine::plan::{self, Odds, Others, Shortage};
use crate::error::{Error, Result};
use crate::rng;

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
        let limit = bank.limits().max_per_category;
        let most = goals.iter().copied().max().unwrap_or_default();
        if limit > 0 && most > limit {
            return Err(Error::value(
                "mosaics per category",
                format!("at most {limit}, the bank's limit (--max-per-category)"),
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
                "room for what is asked for (limits max_bytes and max_per_category)",
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
