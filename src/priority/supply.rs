//! Supply: which categories the bank holds, or a running engine says that it draws.

use crate::bank::Bank;
use crate::error::Result;
use crate::status::{EngineStatus, State};

/// Names that a line lists.
const LISTED: usize = 12;

/// Where each category of a bank can come from, in table order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supply {
    stocked: Vec<bool>,
    drawn: Vec<bool>,
}

impl Supply {
    /// As of now: the bank's mosaics, and what its running engines publish in their status
    /// ([`EngineStatus::draws`]). A paused or blocked engine supplies nothing.
    ///
    /// # Errors
    /// Those of the bank's reader; [`crate::Error::Io`] when its directory cannot be read.
    pub fn of(bank: &Bank) -> Result<Self> {
        let stock = bank.stock()?;
        let mut drawn = vec![false; bank.categories().len()];
        for engine in EngineStatus::read_all(bank.path())? {
            let at_work = matches!(
                engine.observed(),
                State::Loading | State::Working | State::Stocked
            );
            for c in engine.draws.iter().filter(|_| at_work) {
                if let Some(cell) = drawn.get_mut(c as usize) {
                    *cell = true;
                }
            }
        }
        Ok(Self {
            stocked: stock.mosaics.iter().map(|n| *n > 0).collect(),
            drawn,
        })
    }

    /// Whether the category can come.
    pub fn has(&self, category: usize) -> bool {
        let get = |list: &[bool]| list.get(category).copied().unwrap_or_default();
        get(&self.stocked) || get(&self.drawn)
    }

    /// [`Supply::has`] of every category.
    pub fn mask(&self) -> Vec<bool> {
        (0..self.stocked.len()).map(|c| self.has(c)).collect()
    }

    /// One line about the categories that cannot come; nothing where all can. `wanted`: those that
    /// matter, in table order.
    pub fn shortfall(&self, bank: &Bank, wanted: &[bool]) -> Option<String> {
        let meant: Vec<(usize, &str)> = bank
            .categories()
            .iter()
            .enumerate()
            .filter(|(c, _)| wanted.get(*c).copied().unwrap_or(true))
            .map(|(c, category)| (c, category.name.as_str()))
            .collect();
        let missing: Vec<&str> = meant
            .iter()
            .filter(|(c, _)| !self.has(*c))
            .map(|(_, name)| *name)
            .collect();
        let shown = missing.get(..LISTED.min(missing.len())).unwrap_or_default();
        let more = match missing.len() - shown.len() {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        (!missing.is_empty()).then(|| {
            format!(
                "{} of {} categories have no supply: {}{more}",
                missing.len(),
                meant.len(),
                shown.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{BankInfo, Category, Limits};

    #[test]
    fn running_engines_supply_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let categories = (1..=20)
            .map(|id| Category {
                id,
                name: format!("c{id}"),
                frequency: None,
                image_count: None,
            })
            .collect();
        let info = BankInfo::new(categories, "", Limits::default()).unwrap();
        let bank = Bank::create(&dir.path().join("bank"), info).unwrap();
        let supplied = || Supply::of(&bank).unwrap().mask();
        assert_eq!(supplied(), [false; 20]);
        let line = Supply::of(&bank).unwrap().shortfall(&bank, &[]).unwrap();
        assert_eq!(
            line,
            "20 of 20 categories have no supply: c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, \
             c12, and 8 more"
        );
        let mut engine = EngineStatus::new("engine");
        engine.draws = [0, 1, 2, 18, 99].into_iter().collect();
        engine.write(bank.path()).unwrap();
        let of = |c: usize| supplied()[c];
        assert!(of(0) && of(2) && of(18) && !of(3) && !of(19));
        let mut wanted = vec![false; 20];
        wanted[0] = true;
        let now = Supply::of(&bank).unwrap();
        assert_eq!(now.shortfall(&bank, &wanted), None);
        wanted[5] = true;
        let line = now.shortfall(&bank, &wanted).unwrap();
        assert_eq!(line, "1 of 2 categories have no supply: c6");
        for state in [State::Paused, State::Stopped, State::Failed, State::Blocked] {
            engine.state = state;
            engine.write(bank.path()).unwrap();
            assert_eq!(supplied(), [false; 20], "{state:?}");
        }
    }
}
