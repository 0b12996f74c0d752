//! `mosaicbank merge-banks`: several banks into one.

use std::path::PathBuf;

use super::limits::LimitArgs;
use crate::bank::{Bank, BankInfo};
use crate::error::{Error, Result};

/// Put everything of some banks into one.
///
/// OUT is created for the categories of the first bank when it is not there. Every record keeps
/// its id, so doing it again, or with banks that share records, changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mosaicbank merge-banks bank/ bank/shard-*")]
pub struct MergeBanksArgs {
    /// The bank that gets everything
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The banks that it comes from; they are only read
    #[arg(value_name = "BANK", required = true)]
    banks: Vec<PathBuf>,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Runs the command.
///
/// # Errors
/// As [`Bank::merge_from`]; [`Error::Value`] when OUT is one of the banks, or a record cannot be
/// taken.
pub fn run(args: &MergeBanksArgs) -> Result<()> {
    let banks = args
        .banks
        .iter()
        .map(|path| Bank::open(path))
        .collect::<Result<Vec<_>>>()?;
    let out = Bank::open_or_create(&args.out, || {
        let Some(first) = banks.first() else {
            return Err(Error::value("banks", "at least one", "none"));
        };
        let info = first.info();
        let mut new = BankInfo::new(
            info.categories.clone(),
            &info.recipe,
            args.limits.over(info.limits),
        )?;
        new.mosaic_codec = info.mosaic_codec;
        new.instance_codec = info.instance_codec;
        Ok(new)
    })?;
    if let Some(same) = banks.iter().find(|b| b.path() == out.path()) {
        return Err(Error::value(
            "OUT",
            "another bank than those that are merged",
            same.path().display(),
        ));
    }
    args.limits.apply(&out)?;
    let mut refused = 0;
    for bank in &banks {
        let report = out.merge_from(bank)?;
        refused += report.refused;
        println!(
            "{}: {} records added, {} known, {} refused, {} evicted",
            bank.path().display(),
            report.added,
            report.known,
            report.refused,
            report.evicted
        );
    }
    let stock = out.stock()?;
    println!(
        "{}: {} mosaics, {} instances",
        out.path().display(),
        stock.total_mosaics,
        stock.total_instances
    );
    if refused > 0 {
        return Err(Error::value(
            "records",
            format!(
                "categories that {} has, and whole records",
                args.out.display()
            ),
            format!("{refused} that were refused (listed above)"),
        ));
    }
    Ok(())
}
