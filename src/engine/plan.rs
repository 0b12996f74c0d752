//! Which categories the next mosaics hold: plain arithmetic over what each category needs.

use rand::{Rng, RngExt};

use crate::error::{Error, Result};

/// Region counts that a mosaic can have.
pub const REGION_COUNTS: [u32; 3] = [1, 2, 4];

/// Of the chance that a further region draws a category, what goes to those that are not short.
const SHARE_OF_ALL: f64 = 0.2;

/// What one category lacks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shortage {
    /// Mosaics with it that are missing, what is being made already taken off.
    pub missing: u64,
    /// How much it is wanted ([`crate::priority`]); at least 0.
    pub weight: f64,
    /// Never shown, not beside others either.
    pub barred: bool,
}

impl Shortage {
    /// How much the category is short of.
    pub fn deficit(self) -> f64 {
        self.weight * self.missing as f64
    }
}

/// What the regions beside the main one show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Any category (as MosaicFusion draws them), in favour of those that are short.
    All,
    /// Only categories that are short, so that no stock grows beyond what was asked for; there
    /// are never more regions than such categories.
    Short,
}

/// How likely mosaics have 1, 2 and 4 regions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Odds([f64; 3]);

impl Odds {
    /// Odds of 1, 2 and 4 regions; they need not sum to 1.
    ///
    /// # Errors
    /// [`Error::Value`] when one is negative or not finite, or all are 0.
    pub fn new(odds: [f64; 3]) -> Result<Self> {
        let valid = odds.iter().all(|o| o.is_finite() && *o >= 0.0);
        if valid && odds.iter().sum::<f64>() > 0.0 {
            Ok(Self(odds))
        } else {
            Err(Error::value(
                "odds of 1, 2 and 4 regions",
                "three numbers of at least 0, not all 0",
                format!("{odds:?}"),
            ))
        }
    }

    /// The region counts that can come.
    pub fn counts(self) -> impl Iterator<Item = u32> {
        REGION_COUNTS
            .into_iter()
            .zip(self.0)
            .filter_map(|(n, odds)| (odds > 0.0).then_some(n))
    }

    /// A region count of at most `most`; 1 where the odds allow none.
    fn draw(self, most: usize, draw: &mut impl Rng) -> u32 {
        let odds = |n: u32, o: f64| if n as usize <= most { o } else { 0.0 };
        let weights: Vec<f64> = REGION_COUNTS
            .into_iter()
            .zip(self.0)
            .map(|(n, o)| odds(n, o))
            .collect();
        pick(&weights, draw)
            .and_then(|i| REGION_COUNTS.get(i).copied())
            .unwrap_or(1)
    }
}

impl Default for Odds {
    /// Four regions half of the time: they cost least per instance.
    fn default() -> Self {
        Self([0.25, 0.25, 0.5])
    }
}

/// Mosaics that are made together: they have the same number of regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Regions of each.
    pub regions: u32,
    /// For each mosaic the main category and those of the other regions, shuffled.
    pub mosaics: Vec<Vec<u32>>,
}

/// An index drawn by weight; `None` when all are 0.
fn pick(weights: &[f64], draw: &mut impl Rng) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    if total.is_nan() || total <= 0.0 {
        return None;
    }
    let mut at = draw.random::<f64>() * total;
    let mut last = None;
    for (i, &w) in weights.iter().enumerate() {
        if w > 0.0 {
            last = Some(i);
            if at < w {
                return last;
            }
            at -= w;
        }
    }
    last
}

/// The next mosaics, at most `most`; `None` when nothing is missing.
///
/// The main category of each is the one with the largest deficit (after what the mosaics before
/// it will bring); one category stands in a mosaic once, as long as there are enough.
pub fn next_batch(
    needs: &[Shortage],
    odds: Odds,
    others: Others,
    most: usize,
    draw: &mut impl Rng,
) -> Option<Batch> {
    let mut needs = needs.to_vec();
    let short = |needs: &[Shortage]| needs.iter().filter(|n| n.deficit() > 0.0).count();
    let limit = match others {
        Others::All => usize::MAX,
        Others::Short => short(&needs),
    };
    let regions = odds.draw(limit, draw);
    let mut mosaics = Vec::new();
    for _ in 0..most {
        if others == Others::Short && short(&needs) < regions as usize {
            break;
        }
        let Some(main) = largest(&needs) else { break };
        let mut chosen = vec![main];
        while chosen.len() < regions as usize {
            let Some(next) = another(&needs, others, &chosen, draw) else {
                // Fewer categories than regions: the main one fills up.
                chosen.push(main);
                continue;
            };
            chosen.push(next);
        }
        let mut once = chosen.clone();
        once.sort_unstable();
        once.dedup();
        for category in once {
            if let Some(need) = needs.get_mut(category) {
                need.missing = need.missing.saturating_sub(1);
            }
        }
        shuffle(&mut chosen, draw);
        mosaics.push(chosen.into_iter().map(|c| c as u32).collect());
    }
    (!mosaics.is_empty()).then_some(Batch { regions, mosaics })
}

/// The category with the largest deficit, the first of equals.
fn largest(needs: &[Shortage]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, need) in needs.iter().enumerate() {
        let deficit = need.deficit();
        if deficit > 0.0 && best.is_none_or(|(_, b)| deficit > b) {
            best = Some((i, deficit));
        }
    }
    best.map(|(i, _)| i)
}

/// One more category for a mosaic.
fn another(
    needs: &[Shortage],
    others: Others,
    chosen: &[usize],
    draw: &mut impl Rng,
) -> Option<usize> {
    let free = |i: usize| !chosen.contains(&i) && !needs.get(i).is_some_and(|n| n.barred);
    let deficit = |(i, n): (usize, &Shortage)| if free(i) { n.deficit() } else { 0.0 };
    let total: f64 = needs.iter().enumerate().map(deficit).sum();
    let (of_short, of_all) = match (others, total > 0.0) {
        (Others::Short, _) => (1.0, 0.0),
        (Others::All, true) => (1.0 - SHARE_OF_ALL, SHARE_OF_ALL),
        (Others::All, false) => (0.0, 1.0),
    };
    let weights: Vec<f64> = needs
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let short = if total > 0.0 {
                of_short * deficit((i, n)) / total
            } else {
                0.0
            };
            let any = if free(i) {
                of_all / needs.len() as f64
            } else {
                0.0
            };
            short + any
        })
        .collect();
    pick(&weights, draw)
}

fn shuffle(items: &mut [usize], draw: &mut impl Rng) {
    use rand::seq::SliceRandom;
    items.shuffle(draw);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::keyed;

    fn needs(missing: &[u64]) -> Vec<Shortage> {
        missing
            .iter()
            .map(|&missing| Shortage {
                missing,
                weight: 1.0,
                barred: false,
            })
            .collect()
    }

    fn only(regions: u32) -> Odds {
        Odds::new(REGION_COUNTS.map(|n| f64::from(u8::from(n == regions)))).unwrap()
    }

    #[test]
    fn the_main_category_has_the_largest_deficit() {
        let mut all = needs(&[3, 9, 5]);
        let plan = |all: &[Shortage]| {
            next_batch(all, only(1), Others::All, 4, &mut keyed(0, "t", 0))
                .unwrap()
                .mosaics
        };
        // 9, then 8, 7, 6: only then would the third's 5 come.
        assert_eq!(plan(&all), [[1], [1], [1], [1]]);
        all[2].weight = 3.0;
        // 15, 12, then 9 against 9: the first of equals.
        assert_eq!(plan(&all), [[2], [2], [1], [2]]);
        all[1].weight = 0.0;
        all[2].weight = 0.0;
        assert_eq!(plan(&all), [[0], [0], [0]]);
    }

    #[test]
    fn nothing_is_planned_when_nothing_is_missing() {
        for others in [Others::All, Others::Short] {
            let mut draw = keyed(0, "t", 0);
            assert_eq!(
                next_batch(&needs(&[0, 0]), Odds::default(), others, 8, &mut draw),
                None
            );
            assert_eq!(next_batch(&[], Odds::default(), others, 8, &mut draw), None);
        }
    }

    #[test]
    fn other_regions_favour_what_is_short_and_leave_nothing_out() {
        let mut all = vec![Shortage::default(); 50];
        for need in &mut all[..4] {
            *need = Shortage {
                missing: 1000,
                weight: 1.0,
                barred: false,
            };
        }
        let mut draw = keyed(1, "t", 0);
        let batch = next_batch(&all, only(2), Others::All, 2000, &mut draw).unwrap();
        assert!(batch.mosaics.iter().all(|m| m.iter().any(|&c| c < 4)));
        let both = batch
            .mosaics
            .iter()
            .filter(|m| m.iter().all(|&c| c < 4))
            .count() as f64;
        // 80 % by deficit, and 3 of the 49 others in the rest.
        let expected = 2000.0 * (0.8 + 0.2 * 3.0 / 49.0);
        let spread = 4.0 * (2000.0_f64 * 0.81 * 0.19).sqrt();
        assert!((both - expected).abs() < spread, "{both} of {expected}");
        let seen: std::collections::BTreeSet<u32> =
            batch.mosaics.concat().into_iter().collect();
        assert!(seen.len() > 45, "{seen:?}");
        for need in &mut all[4..30] {
            need.barred = true;
        }
        let batch = next_batch(&all, only(2), Others::All, 2000, &mut draw).unwrap();
        let seen: std::collections::BTreeSet<u32> =
            batch.mosaics.concat().into_iter().collect();
        assert!(seen.iter().all(|c| !(4..30).contains(c)), "{seen:?}");
        assert!(seen.len() > 20, "{seen:?}");
    }

    #[test]
    fn region_counts_come_by_their_odds() {
        let odds = Odds::new([1.0, 0.0, 3.0]).unwrap();
        let all = needs(&[9; 8]);
        let mut draw = keyed(2, "t", 0);
        let fours = (0..2000)
            .filter_map(|_| next_batch(&all, odds, Others::All, 1, &mut draw))
            .filter(|b| {
                assert_ne!(b.regions, 2);
                b.regions == 4
            })
            .count();
        assert!((1400..1600).contains(&fours), "{fours}");
        assert!(Odds::new([0.0; 3]).is_err() && Odds::new([1.0, -1.0, 1.0]).is_err());
    }

    proptest! {
        /// Whatever is asked for: made one batch after the other, exactly that comes.
        #[test]
        fn short_only_never_makes_more_than_is_missing(
            missing in prop::collection::vec(0u64..6, 1..12),
            odds in prop::array::uniform3(0.0f64..1.0), most in 1usize..5, seed: u64,
        ) {
            let Ok(odds) = Odds::new(odds) else { return Ok(()) };
            let mut left = needs(&missing);
            let mut draw = keyed(seed, "t", 0);
            let mut rounds = 0;
            while let Some(batch) = next_batch(&left, odds, Others::Short, most, &mut draw) {
                prop_assert!(batch.mosaics.len() <= most);
                for mosaic in &batch.mosaics {
                    prop_assert_eq!(mosaic.len(), batch.regions as usize);
                    for (i, &c) in mosaic.iter().enumerate() {
                        prop_assert!(!mosaic[..i].contains(&c), "{:?}", mosaic);
                        prop_assert!(left[c as usize].missing > 0);
                        left[c as usize].missing -= 1;
                    }
                }
                rounds += 1;
                prop_assert!(rounds < 100);
            }
            prop_assert!(left.iter().all(|n| n.missing == 0), "{:?}", left);
        }

        #[test]
        fn every_mosaic_brings_something_that_is_short(
            missing in prop::collection::vec(0u64..4, 1..8), most in 1usize..6, seed: u64,
        ) {
            let all = needs(&missing);
            let mut draw = keyed(seed, "t", 0);
            if let Some(batch) = next_batch(&all, Odds::default(), Others::All, most, &mut draw) {
                for mosaic in &batch.mosaics {
                    prop_assert!(mosaic.iter().any(|&c| all[c as usize].missing > 0));
                }
            }
        }
    }
}
