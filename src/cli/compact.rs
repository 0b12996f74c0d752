//! `mosaicbank compact`: copies the readable part of a bank into a new one.

use std::path::PathBuf;

use clap::Args;

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::Bank;
use crate::error::Result;

/// Copy a bank without free space and damaged records
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
    mosaicbank compact bank/ smaller/")]
pub struct CompactArgs {
    /// The bank's directory; not changed
    bank: PathBuf,
    /// Directory of the new bank
    out: PathBuf,
}

/// Runs `mosaicbank compact` and says what was copied.
///
/// # Errors
/// A bank that cannot be opened, an `out` that is a bank already, a full disk.
pub fn run(args: &CompactArgs) -> Result<()> {
    catch_stop()?;
    let bank = Bank::open(&args.bank)?;
    let mut counter = Counter::new("records");
    let (new, report) = bank.compact_into(&args.out, &mut |done, total| {
        counter.set(done, total);
        check_stop()
    })?;
    counter.finish();
    println!(
        "{}: {} records copied, {} damaged ones left out",
        new.path().display(),
        report.added,
        report.refused
    );
    Ok(())
}
