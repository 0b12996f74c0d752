//! What keeps a bank from growing for ever, and how that is changed while the bank is in use.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{Bank, BankInfo};
use crate::error::{Error, Result};

/// What keeps a bank from growing for ever. The defaults below are the only ones: commands and
/// training configs change single limits, and leave the others as the bank has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most bytes of records; 0 is unlimited.
    pub max_bytes: u64,
    /// Most mosaics and most instances listed per category; 0 is unlimited.
    pub max_per_category: u64,
    /// A record that was used this often is retired; 0 is never.
    pub max_uses: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_per_category: 1000,
            // A bank without an engine would run dry.
            max_uses: 0,
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            max_bytes,
            max_per_category,
            max_uses,
        } = self;
        write!(
            f,
            "max_bytes {max_bytes}, max_per_category {max_per_category}, max_uses {max_uses}"
        )
    }
}

impl Limits {
    /// # Errors
    /// [`Error::Value`] for a number that `bank.toml` cannot hold.
    pub(super) fn validate(self) -> Result<()> {
        fits("max_bytes", self.max_bytes)?;
        fits("max_per_category", self.max_per_category)
    }
}

/// Refuses numbers that TOML cannot hold: its integers are signed.
pub(super) fn fits(what: &str, value: u64) -> Result<()> {
    if i64::try_from(value).is_err() {
        return Err(Error::value(what, format!("at most {}", i64::MAX), value));
    }
    Ok(())
}

/// New values for some of the limits; the others stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitChanges {
    /// See [`Limits::max_bytes`].
    pub max_bytes: Option<u64>,
    /// See [`Limits::max_per_category`].
    pub max_per_category: Option<u64>,
    /// See [`Limits::max_uses`].
    pub max_uses: Option<u32>,
}

impl LimitChanges {
    /// `limits` with the changes.
    #[must_use]
    pub fn applied_to(self, limits: Limits) -> Limits {
        Limits {
            max_bytes: self.max_bytes.unwrap_or(limits.max_bytes),
            max_per_category: self.max_per_category.unwrap_or(limits.max_per_category),
            max_uses: self.max_uses.unwrap_or(limits.max_uses),
        }
    }
}

/// The limits of an open bank: atomics, since a lock could be inherited by a forked child.
#[derive(Debug)]
pub(super) struct LiveLimits {
    max_bytes: AtomicU64,
    max_per_category: AtomicU64,
    max_uses: AtomicU32,
}

impl LiveLimits {
    pub(super) const fn new(l: Limits) -> Self {
        Self {
            max_bytes: AtomicU64::new(l.max_bytes),
            max_per_category: AtomicU64::new(l.max_per_category),
            max_uses: AtomicU32::new(l.max_uses),
        }
    }

    fn set(&self, l: Limits) {
        self.max_bytes.store(l.max_bytes, Ordering::Relaxed);
        self.max_per_category
            .store(l.max_per_category, Ordering::Relaxed);
        self.max_uses.store(l.max_uses, Ordering::Relaxed);
    }

    fn get(&self) -> Limits {
        Limits {
            max_bytes: self.max_bytes.load(Ordering::Relaxed),
            max_per_category: self.max_per_category.load(Ordering::Relaxed),
            max_uses: self.max_uses.load(Ordering::Relaxed),
        }
    }
}

impl Bank {
    /// The limits as this process last read or set them.
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Changes limits of the bank, in `bank.toml` (replaced as a whole) and for this process.
    /// Other processes take them over when they open the bank or call
    /// [`Bank::read_limits`] (engines do, about once a minute). Returns the limits before and
    /// after; without a difference nothing is written.
    ///
    /// # Errors
    /// [`Error::Value`] for a number that `bank.toml` cannot hold; [`Error::Io`] when it cannot
    /// be written.
    pub fn set_limits(&self, changes: LimitChanges) -> Result<(Limits, Limits)> {
        // What another process changed meanwhile stays.
        let mut info = BankInfo::read(&self.dir)?;
        let before = info.limits;
        info.limits = changes.applied_to(before);
        info.limits.validate()?;
        if info.limits != before {
            info.write(&self.dir)?;
        }
        self.limits.set(info.limits);
        Ok((before, info.limits))
    }

    /// Takes over the limits that `bank.toml` holds now.
    ///
    /// # Errors
    /// As [`Bank::open`].
    pub fn read_limits(&self) -> Result<Limits> {
        let limits = BankInfo::read(&self.dir)?.limits;
        self.limits.set(limits);
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::Category;

    fn info(image_count: Option<u64>, limits: Limits) -> Result<BankInfo> {
        let category = Category {
            id: 1,
            name: "a".into(),
            frequency: None,
            image_count,
        };
        BankInfo::new(vec![category], "", limits)
    }

    #[test]
    fn numbers_that_the_file_cannot_hold_are_refused() {
        let large = Limits {
            max_bytes: 1 << 63,
            ..Limits::default()
        };
        let error = info(None, large).unwrap_err().to_string();
        assert!(
            error.contains("max_bytes") && error.contains("at most"),
            "{error}"
        );
        let error = info(Some(1 << 63), Limits::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("image_count"), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let bank = Bank::create(dir.path(), info(None, Limits::default()).unwrap()).unwrap();
        let changes = LimitChanges {
            max_per_category: Some(u64::MAX),
            ..LimitChanges::default()
        };
        assert!(bank.set_limits(changes).is_err());
        assert_eq!(Bank::open(dir.path()).unwrap().limits(), Limits::default());
    }

    #[test]
    fn single_limits_change_and_others_hear_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = Bank::create(dir.path(), info(None, Limits::default()).unwrap()).unwrap();
        let other = Bank::open(dir.path()).unwrap();
        let of = |max_bytes, max_uses| LimitChanges {
            max_bytes,
            max_uses,
            ..LimitChanges::default()
        };
        made.set_limits(of(Some(7), None)).unwrap();
        // The second writer keeps what the first one changed.
        let (before, after) = other.set_limits(of(None, Some(3))).unwrap();
        assert_eq!((before.max_bytes, before.max_uses), (7, 0));
        assert_eq!((after.max_bytes, after.max_uses), (7, 3));
        assert_eq!(made.limits().max_uses, 0);
        assert_eq!(made.read_limits().unwrap(), after);
        assert_eq!(made.limits(), after);
        let unchanged = std::fs::metadata(dir.path().join("bank.toml")).unwrap();
        other.set_limits(LimitChanges::default()).unwrap();
        let now = std::fs::metadata(dir.path().join("bank.toml")).unwrap();
        assert_eq!(unchanged.modified().unwrap(), now.modified().unwrap());
    }
}
