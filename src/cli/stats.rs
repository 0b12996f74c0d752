//! `mosaicbank stats`: what is in a bank, and what is asked of it.

use std::path::PathBuf;

use clap::Args;

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::Bank;
use crate::error::{Error, Result};
use crate::report::{EngineFacts, Figures};

/// Show what is in a bank and what training asks of it
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank stats bank/\n  \
    mosaicbank stats bank/ --json --all --scan   # all the figures of `report`")]
pub struct StatsArgs {
    /// The bank's directory
    bank: PathBuf,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
    /// Show every category, not only those in stock or asked for
    #[arg(long)]
    all: bool,
    /// Read the records, too: unused ones, uses, regions, and why some were rejected
    #[arg(long)]
    scan: bool,
}

/// Runs `mosaicbank stats`. Counters are kept as records come and go: nothing is scanned unless
/// `--scan` asks for it.
///
/// # Errors
/// A bank that cannot be opened or read.
pub fn run(args: &StatsArgs) -> Result<()> {
    let bank = Bank::open(&args.bank)?;
    let mut figures = Figures::gather(&bank, EngineFacts::read_all(&bank)?)?;
    if args.scan {
        catch_stop()?;
        let mut counter = Counter::new("mosaics");
        figures.scan(&bank, &mut |done, total| {
            counter.set(done, total);
            check_stop()
        })?;
        counter.finish();
    }
    if !args.all {
        figures.drop_idle();
    }
    if args.json {
        let text = serde_json::to_string_pretty(&figures)
            .map_err(|e| Error::backend("writing JSON", e))?;
        println!("{text}");
    } else {
        print(&figures);
    }
    Ok(())
}

fn print(figures: &Figures) {
    println!(
        "{}: {} mosaics, {} instances, {:.1} MiB; {} added, {} evicted or retired",
        figures.bank.display(),
        figures.mosaics,
        figures.instances,
        figures.bytes as f64 / f64::from(1 << 20),
        figures.added,
        figures.removed
    );
    if let Some(shortfall) = &figures.shortfall {
        println!("{shortfall}");
    }
    if let Some(contents) = &figures.contents {
        println!(
            "{} regions, {} rejected; {} mosaics could not be read",
            contents.regions, contents.rejected, contents.damaged
        );
        for reason in &contents.reasons {
            println!("{:>8} {}", reason.regions, reason.reason);
        }
    }
    println!(
        "{:>6} {:<28} {:>2} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7}",
        "id",
        "category",
        "",
        "mosaics",
        "instances",
        "asked",
        "fresh",
        "again",
        "missed",
        "weight"
    );
    for c in &figures.categories {
        println!(
            "{:>6} {:<28} {:>2} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7.2}",
            c.id,
            c.name,
            c.frequency.as_deref().unwrap_or(""),
            c.mosaics,
            c.instances,
            c.asked,
            c.served_fresh,
            c.served_again,
            c.missed,
            c.weight
        );
    }
}
