//! A set of category indices, written as ranges: `"0-3,7,40-52"`. Short for the sets that occur, and
//! a few kilobytes at worst (every other one of 1,203 categories), so that the status file keeps
//! its size.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Ascending indices, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IndexSet(Vec<u32>);

impl IndexSet {
    /// The indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u32> for IndexSet {
    fn from_iter<I: IntoIterator<Item = u32>>(indices: I) -> Self {
        let mut all: Vec<u32> = indices.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }
}

impl From<IndexSet> for String {
    fn from(set: IndexSet) -> Self {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in set.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => ranges.push((index, index)),
            }
        }
        let words: Vec<Self> = ranges
            .into_iter()
            .map(|(first, last)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            })
            .collect();
        words.join(",")
    }
}

/// More categories than any dataset has: keeps a damaged file from asking for gigabytes.
const MOST: u32 = 1 << 20;

impl TryFrom<String> for IndexSet {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let wrong = || {
            Error::value(
                "category indices",
                "ascending ranges such as 0-3,7",
                format!("{text:?}"),
            )
        };
        let mut all: Vec<u32> = Vec::new();
        for word in text.split(',').filter(|w| !w.is_empty()) {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let number = |w: &str| w.parse::<u32>().ok().filter(|n| *n < MOST);
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(wrong());
            };
            if last < first || all.last().is_some_and(|l| *l >= first) {
                return Err(wrong());
            }
            all.extend(first..=last);
        }
        Ok(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_ranges_and_read_again() {
        for (indices, text) in [
            (vec![], ""),
            (vec![7], "7"),
            (vec![3, 0, 1, 2, 2, 9, 10, 5], "0-3,5,9-10"),
        ] {
            let set: IndexSet = indices.into_iter().collect();
            assert_eq!(String::from(set.clone()), text);
            assert_eq!(IndexSet::try_from(text.to_owned()).unwrap(), set);
        }
        // The worst that LVIS can ask for.
        let every_other: IndexSet = (0..1203).step_by(2).collect();
        assert!(String::from(every_other).len() < 4096);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["a", "3-1", "5,4", "1,1", "-1", "0-99999999999", "0-1048576"] {
            assert!(IndexSet::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
