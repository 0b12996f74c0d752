//! The options that limit a bank, for every command that may create one.

use crate::bank::{Bank, LimitChanges, Limits};
use crate::error::Result;

/// Limits of the bank; those that are not given stay as they are.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
#[command(next_help_heading = "Limits of the bank")]
pub struct LimitArgs {
    /// Most bytes of records; 0 is no limit
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Most mosaics and most instances of one category; 0 is no limit
    #[arg(long, value_name = "N")]
    max_per_category: Option<u64>,
    /// Retire a record that was used N times; 0 is never. For a bank that an engine keeps stocked
    #[arg(long, value_name = "N")]
    max_uses: Option<u32>,
}

impl LimitArgs {
    const fn changes(self) -> LimitChanges {
        LimitChanges {
            max_bytes: self.max_bytes,
            max_per_category: self.max_per_category,
            max_uses: self.max_uses,
        }
    }

    /// For a new bank whose limits would be `limits`.
    pub(super) fn over(self, limits: Limits) -> Limits {
        self.changes().applied_to(limits)
    }

    /// For a bank that exists.
    ///
    /// # Errors
    /// As [`Bank::set_limits`].
    pub(super) fn apply(self, bank: &Bank) -> Result<()> {
        if self.changes() == LimitChanges::default() {
            return Ok(());
        }
        let (before, after) = bank.set_limits(self.changes())?;
        if before != after {
            tracing::info!(
                "limits of {}: {after}; before: {before}",
                bank.path().display()
            );
        }
        Ok(())
    }
}
