//! What is short, and by how much: the bank's stock against the target, weighted by how much each
//! category is wanted ([`crate::priority`]).

use std::time::{Duration, Instant};

use super::plan::Shortage;
use crate::bank::{Bank, Demand, Kind};
use crate::dataset::Vocabulary;
use crate::error::{Error, Result};
use crate::priority::{self, RARE_IMAGES, anticipated, images_of};

/// A slot that the bank could not answer counts as this many that it could.
const MISS: f64 = 4.0;
/// Half-life of the exponentially decayed request counts.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// Requests made before the engine started count as this many at most.
const HISTORY: f64 = 100.0;

/// Use counts are scanned again after this time even if nothing seems to have changed: pasted
/// instances do not show on the demand board.
const RESCAN: Duration = Duration::from_secs(5);
/// ... and not more often than this.
const LEAST_RESCAN: Duration = Duration::from_millis(200);

/// Which categories of the bank the model can draw: those that the vocabulary has words for.
pub fn drawable(bank: &Bank, vocabulary: &Vocabulary) -> Vec<bool> {
    let known = |name: &str| vocabulary.get(name).is_some();
    bank.categories().iter().map(|c| known(&c.name)).collect()
}

/// Which categories are meant: `all`, `rare`, `common`, `frequent`, or names. Of the groups those
/// that are not [`drawable`] are left out, with a warning.
///
/// # Errors
/// [`Error::UnknownCategory`]; [`Error::Value`] when a name is not drawable, or none is left.
pub fn choose(bank: &Bank, words: &[String], drawable: &[bool]) -> Result<Vec<u32>> {
    let mut chosen = vec![false; bank.categories().len()];
    for word in words.iter().map(|w| w.trim()).filter(|w| !w.is_empty()) {
        let band = match word {
            "rare" => Some("r"),
            "common" => Some("c"),
            "frequent" => Some("f"),
            _ => None,
        };
        if word == "all" {
            chosen.fill(true);
        } else if let Some(band) = band {
            for (chosen, category) in chosen.iter_mut().zip(bank.categories()) {
                *chosen |= category.frequency.as_deref() == Some(band);
            }
        } else {
            let at = bank.category(word)? as usize;
            if drawable.get(at) == Some(&false) {
                return Err(Error::value(
                    format!("category {word:?}"),
                    "one that the model was trained on (its categories.json; --aliases gives it \
                     another name)",
                    "another one",
                ));
            }
            if let Some(chosen) = chosen.get_mut(at) {
                *chosen = true;
            }
        }
    }
    let meant = chosen.iter().filter(|c| **c).count();
    for (chosen, drawable) in chosen.iter_mut().zip(drawable) {
        *chosen &= drawable;
    }
    let left = chosen.iter().filter(|c| **c).count();
    if left < meant {
        tracing::warn!(
            "{} of {meant} categories are left out: the model was not trained on them (its \
             categories.json; --aliases gives them other names)",
            meant - left
        );
    }
    let found: Vec<u32> = (0..)
        .zip(chosen)
        .filter_map(|(i, chosen)| chosen.then_some(i))
        .collect();
    if found.is_empty() {
        return Err(Error::value(
            "categories",
            "all, rare, common, frequent or names, at least one of them in the bank",
            format!("{:?}", words.join(",")),
        ));
    }
    Ok(found)
}

/// Counts that say whether anything happened since the last look.
type Mark = (u64, u64, u64);

/// Keeps what every category needs, looking at the bank as seldom as it can.
#[derive(Debug)]
pub struct DemandTracker {
    target: u64,
    wanted: Vec<u32>,
    rarity: Vec<f64>,
    /// Exponentially decayed request counts.
    asked: Vec<f64>,
    board: Vec<Demand>,
    counted: Instant,
    /// Unused mosaics of each category, up to the target.
    fresh: Vec<u64>,
    scanned: Option<(Instant, Duration)>,
    mark: Mark,
}

impl DemandTracker {
    /// Of the categories `wanted` (indices into the bank's table), each with `target` unused
    /// mosaics.
    pub fn new(bank: &Bank, wanted: Vec<u32>, target: u64) -> Self {
        let n = bank.categories().len();
        let board = bank.board().map_or_else(Vec::new, |b| b.snapshot());
        let mut asked: Vec<f64> = board.iter().map(requests).collect();
        asked.resize(n, 0.0);
        let total: f64 = asked.iter().sum();
        if total > HISTORY {
            asked.iter_mut().for_each(|a| *a *= HISTORY / total);
        }
        Self {
            target,
            wanted,
            rarity: bank
                .categories()
                .iter()
                .map(|c| priority::rarity(images_of(c), RARE_IMAGES))
                .collect(),
            asked,
            board,
            counted: Instant::now(),
            fresh: vec![0; n],
            scanned: None,
            mark: (0, 0, 0),
        }
    }

    /// Categories that are wanted.
    pub fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// Unused mosaics of each category as last seen, the target at most.
    pub fn fresh(&self) -> &[u64] {
        &self.fresh
    }

    /// Looks at the board, and at the stock where it may have changed.
    ///
    /// # Errors
    /// Those of the bank's reader.
    pub fn refresh(&mut self, bank: &Bank) -> Result<()> {
        self.count_requests(bank);
        let stock = bank.stock()?;
        let served: u64 = self
            .board
            .iter()
            .map(|d| d.served_fresh + d.served_again)
            .sum();
        let mark = (stock.added, stock.removed, served);
        let due = match self.scanned {
            None => true,
            // A scan of a large bank takes a while: at most a tenth of the time goes into it.
            Some((at, took)) => {
                let since = at.elapsed();
                since >= LEAST_RESCAN.max(10 * took) && (mark != self.mark || since >= RESCAN)
            }
        };
        if due {
            let start = Instant::now();
            for &c in &self.wanted {
                let (mosaics, instances) = match (
                    stock.mosaics.get(c as usize),
                    stock.instances.get(c as usize),
                ) {
                    (Some(&m), Some(&i)) => (m, i),
                    _ => (0, 0),
                };
                let mut fresh = unused(bank, Kind::Mosaic, c, mosaics, self.target)?;
                if fresh > 0 {
                    fresh = unused(bank, Kind::Instance, c, instances, fresh)?;
                }
                if let Some(cell) = self.fresh.get_mut(c as usize) {
                    *cell = fresh;
                }
            }
            self.mark = mark;
            self.scanned = Some((Instant::now(), start.elapsed()));
        }
        Ok(())
    }

    /// Takes over what trainers asked for since the last look.
    fn count_requests(&mut self, bank: &Bank) {
        let Some(board) = bank.board() else { return };
        let now = Instant::now();
        let decay = 0.5f64.powf((now - self.counted).as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.counted = now;
        let snapshot = board.snapshot();
        for ((asked, new), old) in self.asked.iter_mut().zip(&snapshot).zip(&self.board) {
            // A board that was rebuilt starts at 0 again.
            *asked = *asked * decay + (requests(new) - requests(old)).max(0.0);
        }
        self.board = snapshot;
    }

    /// How much each category is wanted: what trainers request, or by rarity and feedback while
    /// none requests anything.
    fn wanted_by(&self) -> Vec<f64> {
        let feedback = |c: usize| self.board.get(c).map_or(1.0, |d| f64::from(d.weight));
        let prior: Vec<f64> = (0..)
            .zip(&self.rarity)
            .map(|(c, &rarity)| priority::priority(rarity, 1.0, feedback(c)))
            .collect();
        anticipated(&self.asked, &prior)
    }

    /// What each category of the bank needs, with `coming` mosaics of each on their way.
    pub fn needs(&self, coming: &[u64]) -> Vec<Shortage> {
        let wanted_by = self.wanted_by();
        let mut needs = vec![Shortage::default(); self.fresh.len()];
        for &c in &self.wanted {
            let c = c as usize;
            let there = self.fresh.get(c).copied().unwrap_or_default()
                + coming.get(c).copied().unwrap_or_default();
            if let Some(need) = needs.get_mut(c) {
                *need = Shortage {
                    missing: self.target.saturating_sub(there),
                    weight: wanted_by.get(c).copied().unwrap_or_default(),
                    barred: false,
                };
            }
        }
        needs
    }

    /// Categories that trainers ask for and of which there is nothing, nor anything coming.
    pub fn urgent(&self, coming: &[u64]) -> usize {
        self.wanted
            .iter()
            .filter(|&&c| {
                let c = c as usize;
                self.asked.get(c).is_some_and(|a| *a >= 0.5)
                    && self.fresh.get(c) == Some(&0)
                    && coming.get(c).is_none_or(|n| *n == 0)
            })
            .count()
    }

    /// A mosaic with these categories was written.
    pub fn written(&mut self, categories: &[u32]) {
        for &c in categories {
            if let Some(fresh) = self.fresh.get_mut(c as usize) {
                *fresh = (*fresh + 1).min(self.target);
            }
        }
    }
}

fn requests(d: &Demand) -> f64 {
    d.asked as f64 + (MISS - 1.0) * d.missed as f64
}

/// Records of a category that nobody has used, counted up to `most`.
fn unused(bank: &Bank, kind: Kind, category: u32, stock: u64, most: u64) -> Result<u64> {
    if stock == 0 || most == 0 {
        return Ok(0);
    }
    let mut found = 0;
    // The newest are listed last, and are the likeliest to be unused.
    for id in bank.ids_of(kind, category)?.into_iter().rev() {
        if bank.use_count(kind, id)? == Some(0) {
            found += 1;
            if found >= most {
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{BankInfo, Category, Limits};
    use crate::dataset::{Aliases, CategoryTable};

    fn bank(dir: &std::path::Path, bands: &[Option<&str>]) -> Bank {
        let categories = (1..)
            .zip(bands)
            .map(|(id, band)| Category {
                id,
                name: format!("c{id}"),
                frequency: band.map(str::to_owned),
                image_count: None,
            })
            .collect();
        Bank::create(
            dir,
            BankInfo::new(categories, "", Limits::default()).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn categories_by_band_or_name() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path(), &[Some("r"), Some("f"), Some("r"), None]);
        let choose = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            super::choose(&bank, &words, &[true; 4])
        };
        assert_eq!(choose(&["rare"]).unwrap(), [0, 2]);
        assert_eq!(choose(&["all"]).unwrap(), [0, 1, 2, 3]);
        assert_eq!(choose(&["c4", "frequent", "c4"]).unwrap(), [1, 3]);
        let error = choose(&["common"]).unwrap_err().to_string();
        assert!(error.contains("rare"), "{error}");
        assert!(choose(&["c9"]).is_err());
        let table = |names: &[&str]| CategoryTable::from_names(names.to_vec()).unwrap();
        let dataset = table(&["c1", "c2", "c3", "c4"]);
        let model = table(&["c1", "C4"]);
        let words = Vocabulary::new(&dataset, Some(&model), &Aliases::default()).unwrap();
        let only = drawable(&bank, &words);
        assert_eq!(only, [true, false, false, true]);
        let of = |word: &str| super::choose(&bank, &[word.to_owned()], &only);
        assert_eq!(of("all").unwrap(), [0, 3]);
        assert_eq!(of("rare").unwrap(), [0]);
        assert!(of("frequent").is_err());
        assert!(of("c3").unwrap_err().to_string().contains("trained"));
    }

    #[test]
    fn what_is_asked_for_goes_before_everything_else() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path(), &[Some("r"), Some("f"), Some("r")]);
        let mut needs = DemandTracker::new(&bank, vec![0, 1, 2], 25);
        needs.refresh(&bank).unwrap();
        let before = needs.needs(&[]);
        assert!(before[0].deficit() > before[1].deficit());
        assert_eq!(needs.urgent(&[]), 0);
        bank.board().unwrap().asked(1);
        bank.board().unwrap().missed(1);
        needs.refresh(&bank).unwrap();
        // Down to the last one missing of it.
        let after = needs.needs(&[0, 24, 0]);
        assert!(after[1].deficit() > after[0].deficit(), "{after:?}");
        assert_eq!(after[1].missing, 1);
        assert_eq!(needs.urgent(&[0, 0, 0]), 1);
        assert_eq!(needs.urgent(&[0, 1, 0]), 0);
        assert_eq!(needs.needs(&[0, 25, 0])[1].missing, 0);
    }

    #[test]
    fn feedback_multiplies_and_0_switches_off() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path(), &[Some("r"), Some("r"), Some("r")]);
        let board = bank.board().unwrap();
        board.set_feedback(0, 2.0, 1.0).unwrap();
        board.set_feedback(1, 0.0, 1.0).unwrap();
        let mut needs = DemandTracker::new(&bank, vec![0, 1, 2], 5);
        needs.refresh(&bank).unwrap();
        let got: Vec<f64> = needs.needs(&[]).iter().map(|n| n.deficit()).collect();
        assert!(
            (got[0] - 2.0 * got[2]).abs() < 1e-9 && got[1] == 0.0,
            "{got:?}"
        );
    }

    #[test]
    fn feedback_acts_once_when_trainers_ask() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path(), &[Some("r"), Some("r")]);
        let board = bank.board().unwrap();
        let mut needs = DemandTracker::new(&bank, vec![0, 1], 5);
        // A feedback of 3 makes trainers ask three times as often: no more than that.
        board.set_feedback(0, 3.0, 1.0).unwrap();
        for category in [0, 0, 0, 1] {
            board.asked(category);
        }
        needs.refresh(&bank).unwrap();
        let got: Vec<f64> = needs.needs(&[]).iter().map(|n| n.deficit()).collect();
        assert!((got[0] / got[1] - 3.0).abs() < 0.05, "{got:?}");
    }

    #[test]
    fn only_wanted_categories_need_anything() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path(), &[Some("r"), Some("r")]);
        let mut needs = DemandTracker::new(&bank, vec![1], 5);
        needs.refresh(&bank).unwrap();
        assert_eq!(needs.needs(&[])[0].missing, 0);
        assert_eq!(needs.needs(&[])[1].missing, 5);
        needs.written(&[0, 1]);
        assert_eq!(needs.needs(&[])[1].missing, 4);
    }
}
