//! `mosaicbank verify`: reads and decodes every record of a bank.

use std::path::PathBuf;

use clap::Args;

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::Bank;
use crate::error::{Error, Result};

/// Check every record of a bank and list the damaged ones
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
    mosaicbank verify bank/")]
pub struct VerifyArgs {
    /// The bank's directory
    bank: PathBuf,
}

/// Runs `mosaicbank verify`.
///
/// # Errors
/// A bank that cannot be opened, or (after all that is wrong was printed) damage.
pub fn run(args: &VerifyArgs) -> Result<()> {
    catch_stop()?;
    let bank = Bank::open(&args.bank)?;
    let mut counter = Counter::new("records");
    let report = bank.verify(&mut |done, total| {
        counter.set(done, total);
        check_stop()
    })?;
    counter.finish();
    for bad in &report.bad {
        println!("{} {}: {}", bad.kind.name(), bad.id, bad.why);
    }
    for problem in &report.problems {
        println!("{problem}");
    }
    println!(
        "{}: {} mosaics and {} instances are good, {} records are bad, {} other problems",
        bank.path().display(),
        report.mosaics,
        report.instances,
        report.bad.len(),
        report.problems.len()
    );
    if report.is_sound() {
        return Ok(());
    }
    Err(Error::format(
        bank.path(),
        "a sound bank",
        "damage (see above)\nhint: training skips damaged records; `mosaicbank compact` leaves \
         them behind",
    ))
}
