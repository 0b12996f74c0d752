//! `mosaicbank prewarm`: fills a bank before a training run.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use super::context::Context;
use super::engine::{MakeArgs, Work, summary};
use crate::bank::Bank;
use crate::engine::demand;
use crate::engine::planner::{Next, Outlook, Planner, Prewarm, Report};
use crate::engine::seeds::Seeds;
use crate::engine::shard::Shard;
use crate::engine::worker::run as run_loop;
use crate::error::{Error, Result};

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Categories that are listed as short at the end.
const LISTED: usize = 20;

/// Fill a bank with exactly so many mosaics of each category, and end.
///
/// Run it again to go on where it was stopped or killed. With --shard (or under torchrun or
/// Slurm: RANK and WORLD_SIZE, SLURM_PROCID and SLURM_NTASKS) each process makes its part, into
/// the bank DIR/shard-<i>-of-<n>; `mosaicbank merge-banks DIR DIR/shard-*` then joins them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank prewarm --bank bank/ --annotations lvis_v1_train.json\n  \
    mosaicbank prewarm --bank bank/ --categories banana,teapot --per-category 5\n  \
    torchrun --nproc-per-node 8 -m mosaicbank prewarm --bank bank/ --device cuda ...")]
pub(super) struct PrewarmArgs {
    /// The bank's directory; created when it is not there
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// rare, common, frequent, all, or names separated by commas
    #[arg(
        long,
        default_value = "rare",
        value_delimiter = ',',
        value_name = "NAME,..."
    )]
    categories: Vec<String>,
    /// Mosaics of each category, each with one instance of it
    #[arg(long, default_value_t = 25)]
    per_category: u64,
    /// Makes part i (from 0) of n [default: as torchrun or Slurm say, or all]
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// Gives a category up that failed this often in a row
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    #[command(flatten)]
    make: MakeArgs,
}

/// Runs the command.
pub(super) fn run(args: &PrewarmArgs, context: &Context) -> Result<()> {
    let shard = match &args.shard {
        Some(text) => Shard::parse(text)?,
        None => Shard::from_environment(|name| std::env::var(name).ok())?,
    };
    let dir = match shard.directory() {
        Some(name) => args.bank.join(name),
        None => args.bank.clone(),
    };
    let work = Work::start(&args.make, context, &dir, "prewarm")?;
    work.run(|load_backend, work| {
        let _only = only_one(&work.bank)?;
        let wanted = demand::choose(&work.bank, &args.categories, &work.drawable())?;
        work.draws(&wanted);
        let mut goals = vec![0; work.bank.categories().len()];
        for (&c, goal) in wanted
            .iter()
            .zip(shard.goals(wanted.len(), args.per_category))
        {
            if let Some(cell) = goals.get_mut(c as usize) {
                *cell = goal;
            }
        }
        let inner = Prewarm::new(&work.bank, goals, work.odds, args.tries)?;
        let mut source = Shown::new(inner, &work.bank)?;
        if source.left() > 0 {
            let backend = load_backend()?;
            let mut seeds =
                Seeds::new(work.bank.path(), args.make.seed.map(|s| s ^ shard.index));
            let out = run_loop(
                &backend,
                &work.bank,
                &mut source,
                &mut seeds,
                &work.control(),
                work.settings,
                &work.status,
            );
            source.finish();
            out?;
        }
        source.finish();
        println!("{}: {}", work.bank.path().display(), summary(&work.status));
        source.verdict(&work.bank, args.tries)
    })
}

/// Two processes that fill one bank would fill it twice.
fn only_one(bank: &Bank) -> Result<std::fs::File> {
    let path = bank.path().join("prewarm.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::value(
            "bank",
            "one that no other prewarm is filling (--shard gives each process its own)",
            bank.path().display(),
        )),
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io(&path, e)),
    }
}

/// A planner with its progress on the terminal, or in lines of a log.
struct Shown<'a> {
    inner: Prewarm,
    bank: &'a Bank,
    total: u64,
    bars: Option<[ProgressBar; 2]>,
    began: Instant,
    last_line: Instant,
    made: u64,
    tried: u64,
    kept: u64,
}

impl<'a> Shown<'a> {
    fn new(mut inner: Prewarm, bank: &'a Bank) -> Result<Self> {
        // Takes stock of what earlier runs left.
        let _ = inner.next(bank, &[], 0)?;
        let total = inner.goals().iter().sum();
        let bars = std::io::stderr().is_terminal().then(|| {
            let bars = MultiProgress::new();
            let style = |text: &str| {
                ProgressStyle::with_template(text)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
            };
            let items = bars.add(ProgressBar::new(total));
            items.set_style(style("{bar:24} {pos}/{len} {wide_msg}"));
            let now = bars.add(ProgressBar::new(0));
            now.set_style(style("{bar:24} {pos}/{len} steps {wide_msg}"));
            [items, now]
        });
        let now = Instant::now();
        let mut shown = Self {
            inner,
            bank,
            total,
            bars,
            began: now,
            last_line: now,
            made: 0,
            tried: 0,
            kept: 0,
        };
        shown.show(true);
        Ok(shown)
    }

    fn left(&self) -> u64 {
        self.inner.outlook().missing
    }

    /// What stands beside the bar, and in the log.
    fn status(&self) -> String {
        let outlook = self.inner.outlook();
        let mut text = format!("{}/{} categories", outlook.stocked, outlook.categories);
        if self.tried > 0 {
            let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
            let rate = self.made as f64 / seconds;
            let rejected = 100.0 * (1.0 - self.kept as f64 / self.tried as f64);
            text += &format!(", {rate:.2}/s, {rejected:.0} % rejected");
            if rate > 0.0 && outlook.missing > 0 {
                let left = Duration::try_from_secs_f64(outlook.missing as f64 / rate)
                    .unwrap_or(Duration::MAX);
                text += &format!(", {} left", HumanDuration(left));
            }
        }
        text
    }

    fn done(&self) -> u64 {
        self.total - self.left().min(self.total)
    }

    fn show(&mut self, now: bool) {
        let status = self.status();
        if let Some([items, _]) = &self.bars {
            items.set_position(self.done());
            items.set_message(status);
        } else if now || self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            tracing::info!("{}/{} mosaics, {status}", self.done(), self.total);
        }
    }

    fn name(&self, c: u32) -> &str {
        self.bank
            .categories()
            .get(c as usize)
            .map_or("?", |c| c.name.as_str())
    }

    fn finish(&mut self) {
        // What was written last counts, too.
        if let Ok(stock) = self.bank.stock() {
            self.inner.take_stock(&stock.mosaics);
        }
        if let Some(bars) = self.bars.take() {
            bars.iter().for_each(ProgressBar::finish_and_clear);
        }
    }

    /// An error when something is short.
    fn verdict(&self, bank: &Bank, tries: u32) -> Result<()> {
        let short = self.inner.given_up();
        let lines: Vec<String> = short
            .iter()
            .take(LISTED)
            .map(|&c| {
                let at = c as usize;
                let get = |list: &[u64]| list.get(at).copied().unwrap_or_default();
                format!(
                    "{} {} of {}",
                    self.name(c),
                    get(self.inner.stock()),
                    get(self.inner.goals())
                )
            })
            .collect();
        if lines.is_empty() {
            return Ok(());
        }
        let more = short.len().saturating_sub(LISTED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Err(Error::value(
            format!("stock of {}", bank.path().display()),
            "what was asked for",
            format!(
                "{}{more}: {tries} regions in a row gave no instance (--tries)",
                lines.join(", ")
            ),
        ))
    }
}

impl Planner for Shown<'_> {
    fn next(&mut self, bank: &Bank, coming: &[u64], most: usize) -> Result<Next> {
        let next = self.inner.next(bank, coming, most)?;
        if let (Next::Make(batch), Some([_, now])) = (&next, &self.bars) {
            let mut names: Vec<String> = batch
                .mosaics
                .iter()
                .flatten()
                .map(|&c| {
                    let of = |list: &[u64]| list.get(c as usize).copied().unwrap_or_default();
                    format!(
                        "{} {}/{}",
                        self.name(c),
                        of(self.inner.stock()),
                        of(self.inner.goals())
                    )
                })
                .collect();
            names.sort_unstable();
            names.dedup();
            now.set_message(names.join(", "));
        }
        self.show(false);
        Ok(next)
    }

    fn written(&mut self, report: &Report) {
        self.made += report.kept.len() as u64;
        self.tried += report.tried.len() as u64;
        self.kept += report.kept.len() as u64;
        self.inner.written(report);
        self.show(false);
    }

    fn step(&mut self, done: usize, all: usize) {
        if let Some([_, now]) = &self.bars {
            now.set_length(all as u64);
            now.set_position(done as u64);
        } else {
            self.show(false);
        }
    }

    fn outlook(&self) -> Outlook {
        self.inner.outlook()
    }
}
