//! Shares of the work of several processes: disjoint, and together complete.

use crate::error::{Error, Result};

/// Pairs of environment variables that launchers set: this process's rank, and the world size.
const VARIABLES: [[&str; 2]; 2] = [["RANK", "WORLD_SIZE"], ["SLURM_PROCID", "SLURM_NTASKS"]];

/// Part `index` of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: u64,
    /// At least 1.
    pub count: u64,
}

impl Shard {
    /// All of the work.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// From `i/n`, i from 0 to n - 1.
    ///
    /// # Errors
    /// [`Error::Value`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(i, n)| {
            Some((i.trim().parse::<u64>().ok()?, n.trim().parse::<u64>().ok()?))
        });
        match numbers {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err(Error::value(
                "shard",
                "i/n with i from 0 to n - 1",
                format!("{text:?}"),
            )),
        }
    }

    /// From what `torchrun` or Slurm set, [`Shard::WHOLE`] without it.
    ///
    /// # Errors
    /// [`Error::Value`] when the variables are set but invalid.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        for [index, count] in VARIABLES {
            if let (Some(i), Some(n)) = (get(index), get(count)) {
                return Self::parse(&format!("{i}/{n}")).map_err(|_| {
                    Error::value(
                        format!("environment variables {index} and {count}"),
                        "a number from 0, and a larger one",
                        format!("{i:?} and {n:?}"),
                    )
                });
            }
        }
        Ok(Self::WHOLE)
    }

    /// Its share of `per_category` mosaics of each of `categories` categories: the mosaics are
    /// numbered consecutively and distributed round-robin.
    pub fn goals(self, categories: usize, per_category: u64) -> Vec<u64> {
        (0..categories as u64)
            .map(|c| {
                let first = c * per_category;
                // How many of first..first + per_category are index modulo count.
                let below =
                    |end: u64| end / self.count + u64::from(end % self.count > self.index);
                below(first + per_category) - below(first)
            })
            .collect()
    }

    /// Name of this share's bank, a folder inside the named bank's.
    pub fn directory(self) -> Option<String> {
        (self.count > 1).then(|| format!("shard-{}-of-{}", self.index, self.count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_are_written_i_of_n_from_0() {
        assert_eq!(Shard::parse("1/4").unwrap(), Shard { index: 1, count: 4 });
        for wrong in ["4/4", "1", "a/b", "-1/2", "0/0", ""] {
            assert!(Shard::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn launchers_are_understood() {
        let from = |pairs: &[(&str, &str)]| {
            Shard::from_environment(|name| {
                let found = pairs.iter().find(|(n, _)| *n == name)?;
                Some(found.1.to_owned())
            })
        };
        assert_eq!(from(&[]).unwrap(), Shard::WHOLE);
        assert_eq!(from(&[("RANK", "3")]).unwrap(), Shard::WHOLE);
        let two_of_eight = Shard { index: 2, count: 8 };
        assert_eq!(
            from(&[("RANK", "2"), ("WORLD_SIZE", "8")]).unwrap(),
            two_of_eight
        );
        assert_eq!(
            from(&[("SLURM_PROCID", "2"), ("SLURM_NTASKS", "8")]).unwrap(),
            two_of_eight
        );
        let error = from(&[("RANK", "8"), ("WORLD_SIZE", "8")]).unwrap_err();
        assert!(error.to_string().contains("WORLD_SIZE"), "{error}");
    }

    proptest! {
        #[test]
        fn parts_are_together_everything_and_even(
            categories in 0usize..30, per_category in 0u64..40, count in 1u64..9,
        ) {
            let mut sum = vec![0; categories];
            let mut totals = Vec::new();
            for index in 0..count {
                let goals = Shard { index, count }.goals(categories, per_category);
                totals.push(goals.iter().sum::<u64>());
                for (sum, goal) in sum.iter_mut().zip(goals) {
                    *sum += goal;
                }
            }
            prop_assert_eq!(sum, vec![per_category; categories]);
            let (least, most) = (totals.iter().min(), totals.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(m, l)| m - l <= 1), "{:?}", totals);
        }
    }
}
