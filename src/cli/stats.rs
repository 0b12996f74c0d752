//! `mosaicbank stats`: what is in a bank, and what is asked of it.

use std::path::PathBuf;

use clap::Args;

use crate::bank::{Bank, Demand, DemandBoard};
use crate::error::{Error, Result};

/// Show what is in a bank and what training asks of it
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank stats bank/\n  \
    mosaicbank stats bank/ --json --all")]
pub struct StatsArgs {
    /// The bank's directory
    bank: PathBuf,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
    /// Show every category, not only those in stock or asked for
    #[arg(long)]
    all: bool,
}

/// Runs `mosaicbank stats`. Counters are kept as records come and go: nothing is scanned.
///
/// # Errors
/// A bank that cannot be opened or read.
pub fn run(args: &StatsArgs) -> Result<()> {
    let bank = Bank::open(&args.bank)?;
    let stock = bank.stock()?;
    let demand = bank.board().map_or_else(
        || vec![Demand::default(); bank.categories().len()],
        DemandBoard::snapshot,
    );
    let rows = bank.categories().iter().enumerate().map(|(i, c)| {
        let count = |list: &[u64]| list.get(i).copied().unwrap_or_default();
        let d = demand.get(i).copied().unwrap_or_default();
        (c, count(&stock.mosaics), count(&stock.instances), d)
    });
    let rows = rows.filter(|(_, m, n, d)| args.all || m + n + d.asked > 0);
    if args.json {
        let categories: Vec<serde_json::Value> = rows
            .map(|(c, mosaics, instances, d)| {
                serde_json::json!({
                    "id": c.id, "name": c.name, "frequency": c.frequency,
                    "mosaics": mosaics, "instances": instances,
                    "asked": d.asked, "served_fresh": d.served_fresh,
                    "served_again": d.served_again, "missed": d.missed,
                    "weight": d.weight, "size_factor": d.size_factor,
                })
            })
            .collect();
        let limits = bank.info().limits;
        let all = serde_json::json!({
            "bank": bank.path(), "format": bank.info().format,
            "mosaics": stock.total_mosaics, "instances": stock.total_instances,
            "bytes": stock.bytes, "added": stock.added, "removed": stock.removed,
            "limits": limits, "categories": categories,
        });
        let text = serde_json::to_string_pretty(&all)
            .map_err(|e| Error::backend("writing JSON", e))?;
        println!("{text}");
        return Ok(());
    }
    println!(
        "{}: {} mosaics, {} instances, {:.1} MiB; {} added, {} evicted or retired",
        bank.path().display(),
        stock.total_mosaics,
        stock.total_instances,
        stock.bytes as f64 / f64::from(1 << 20),
        stock.added,
        stock.removed
    );
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
    for (c, mosaics, instances, d) in rows {
        println!(
            "{:>6} {:<28} {:>2} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7.2}",
            c.id,
            c.name,
            c.frequency.as_deref().unwrap_or(""),
            mosaics,
            instances,
            d.asked,
            d.served_fresh,
            d.served_again,
            d.missed,
            d.weight
        );
    }
    Ok(())
}
