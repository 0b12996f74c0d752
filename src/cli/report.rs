//! `mosaicbank report`: shows a bank on one HTML page.

use std::path::PathBuf;

use clap::Args;
use parking_lot::Mutex;

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::Bank;
use crate::dataset::write_beside;
use crate::error::Result;
use crate::report::{EngineFacts, Options, build};

/// Write an HTML page about a bank: stock, use, rejects, rates, and a gallery
///
/// The page is one file and needs neither a network nor a server. It shows each mosaic with its
/// masks and boxes, and how each region got its verdict. The figures are those of `mosaicbank stats
/// --json --all --scan`. The bank is only read and may be in use.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank report --bank output/bank --out report.html\n  \
    mosaicbank report --bank output/bank --out small.html --max-mosaics 100 --pixels 192")]
pub struct ReportArgs {
    /// The bank's directory
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// Output file; replaced if it exists
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Maximum number of mosaics shown; chosen to cover the categories evenly
    #[arg(long, value_name = "N", default_value_t = Options::default().mosaics)]
    max_mosaics: usize,
    /// Maximum number of instances shown, chosen likewise
    #[arg(long, value_name = "N", default_value_t = Options::default().instances)]
    max_instances: usize,
    /// Longest side of a mosaic's image on the page, 32 to 2048 [default: chosen for a page of a
    /// few megabytes]
    #[arg(long, value_name = "N")]
    pixels: Option<u32>,
}

/// Runs `mosaicbank report` and says what was written.
///
/// # Errors
/// A bank that cannot be opened or read, a file that cannot be written.
pub fn run(args: &ReportArgs) -> Result<()> {
    catch_stop()?;
    let bank = Bank::open(&args.bank)?;
    let options = Options {
        mosaics: args.max_mosaics,
        instances: args.max_instances,
        pixels: args.pixels,
    };
    let counter = Mutex::new(Counter::new("records"));
    let report = build(
        &bank,
        EngineFacts::read_all(&bank)?,
        options,
        &|done, total| {
            counter.lock().set(done, total);
            check_stop()
        },
    )?;
    counter.into_inner().finish();
    write_beside(&args.out, |out| out.write_all(report.html.as_bytes()))?;
    println!(
        "{}: {} of {} mosaics and {} of {} instances, {:.1} MiB",
        args.out.display(),
        report.mosaics,
        report.figures.mosaics,
        report.instances,
        report.figures.instances,
        report.html.len() as f64 / f64::from(1 << 20)
    );
    Ok(())
}
