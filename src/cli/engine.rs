//! `mosaicbank engine`: new mosaics on demand, beside a training run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::context::{Context, catch_stop, check_stop};
use super::generate::recipe_values;
use super::limits::LimitArgs;
use crate::bank::{Bank, INFO_FILE, Limits};
use crate::dataset::{Aliases, CategoryTable, Vocabulary};
use crate::engine::backend::{ModelBackend, bank_info, prompt_table};
use crate::engine::control::{Control, when_process_ends};
use crate::engine::demand;
use crate::engine::plan::{Odds, REGION_COUNTS};
use crate::engine::planner::OnDemand;
use crate::engine::seeds::Seeds;
use crate::engine::worker::{Settings, run as run_loop};
use crate::error::{Error, Result};
use crate::mosaic::{Generator, parse_device, parse_dtype, regions_per_call};
use crate::status::StatusWriter;

/// Mosaics made at once where nobody says otherwise: a GPU wants more work than a CPU.
const BATCH_ON_CPU: usize = 1;
const BATCH_ON_GPU: usize = 8;

/// What all commands share that make mosaics into a bank.
#[derive(Debug, clap::Args)]
pub(super) struct MakeArgs {
    /// A diffusers-layout directory, or `embedded` for the model that comes with mosaicbank
    #[arg(long, default_value = "embedded", value_name = "DIR")]
    pub model: PathBuf,
    /// cpu, cuda or cuda:<index>
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// float32, float16 or bfloat16
    #[arg(long, default_value = "float32")]
    pub dtype: String,
    /// LVIS or COCO JSON: the categories of a new bank, and definitions for prompts
    #[arg(long, value_name = "JSON")]
    pub annotations: Option<PathBuf>,
    /// Mosaics made at once; does not change them [default: 1 on a CPU, 8 on a GPU]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch: Option<u32>,
    /// Odds of mosaics with 1, 2 and 4 regions
    #[arg(
        long,
        default_value = "0.25,0.25,0.5",
        value_delimiter = ',',
        value_name = "A,B,C"
    )]
    pub odds: Vec<f64>,
    /// Share of the device's time to use, above 0 and at most 1
    #[arg(long, default_value_t = 1.0)]
    pub duty: f64,
    /// Politeness towards other processes, 0 to 19, as the command nice has it
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=19))]
    pub nice: i32,
    /// Threads that the CPU computes with [default: all]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub threads: Option<i32>,
    /// Recipe values, a JSON or TOML file
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// One recipe value, over those of the file; VALUE is JSON or a plain word, and dots in KEY
    /// lead inside: checks.size.min_area=0.01
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Makes the seeds of a new bank reproducible [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Names, definitions or prompts under which the model draws categories: CATEGORY=NAME, or a JSON
    /// or TOML file of "CATEGORY": "NAME" or "CATEGORY": {"name", "definition", "prompt"}; may be
    /// given several times
    #[arg(long, value_name = "CATEGORY=NAME|FILE")]
    pub aliases: Vec<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// End when this process ends (for whoever starts the command)
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<u32>,
}

/// Keep a bank stocked: new mosaics of what trainers ask for, until stopped.
///
/// One engine per device; several may feed one bank. The bank is created when it is not there,
/// for the categories of --annotations or else of the model.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank engine --bank bank/ --idle-exit 60\n  \
    mosaicbank engine --bank bank/ --model DIR --device cuda:0 --dtype bfloat16 --duty 0.3\n\n\
    While the bank holds a file named `pause`, its engines pause (mosaicbank status --pause).")]
pub(super) struct EngineArgs {
    /// The bank's directory
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// rare, common, frequent, all, or names separated by commas
    #[arg(
        long,
        default_value = "all",
        value_delimiter = ',',
        value_name = "NAME,..."
    )]
    categories: Vec<String>,
    /// Unused mosaics that every category should have
    #[arg(long, default_value_t = 25)]
    target: u64,
    /// End after having had nothing to do for so many seconds
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<f64>,
    #[command(flatten)]
    make: MakeArgs,
}

/// Runs the command.
pub(super) fn run(args: &EngineArgs, context: &Context) -> Result<()> {
    let idle_exit =
        match args.idle_exit {
            Some(s) => Some(Duration::try_from_secs_f64(s).map_err(|_| {
                Error::value("--idle-exit", "a number of seconds, at least 0", s)
            })?),
            None => None,
        };
    let work = Work::start(&args.make, context, &args.bank, "engine")?;
    work.run(|load_backend, work| {
        let drawable = work.drawable();
        let wanted = demand::choose(&work.bank, &args.categories, &drawable)?;
        work.draws(&wanted);
        let backend = load_backend()?;
        let id = work.status.update(|b| b.id.clone());
        let mut source = OnDemand::new(&work.bank, wanted, args.target, work.odds, &id)
            .with_drawable(drawable);
        let mut seeds = Seeds::new(work.bank.path(), args.make.seed);
        tracing::info!("engine {id} feeds {}", work.bank.path().display());
        let mut settings = work.settings;
        settings.idle_exit = idle_exit;
        run_loop(
            &backend,
            &work.bank,
            &mut source,
            &mut seeds,
            &work.control(),
            settings,
            &work.status,
        )
    })
}

/// A bank, a status writer and settings: what has to stand before the model is loaded, so that a model
/// that does not load shows in the status.
pub(super) struct Work<'a> {
    args: &'a MakeArgs,
    model: PathBuf,
    /// The bank's categories, with definitions.
    table: CategoryTable,
    /// What the model calls them.
    vocabulary: Vocabulary,
    pub bank: Bank,
    pub status: std::sync::Arc<StatusWriter>,
    pub odds: Odds,
    pub settings: Settings,
    own: Map<String, Value>,
}

impl<'a> Work<'a> {
    pub(super) fn start(
        args: &'a MakeArgs,
        context: &Context,
        dir: &Path,
        command: &str,
    ) -> Result<Self> {
        catch_stop()?;
        if let Some(pid) = args.parent {
            when_process_ends(pid, || {
                // The way that Ctrl-C goes.
                // SAFETY: a system call without pointers.
                unsafe { libc::raise(libc::SIGTERM) };
            })?;
        }
        be_nice(args.nice)?;
        let odds: [f64; 3] = args.odds.as_slice().try_into().map_err(|_| {
            Error::value("--odds", "three numbers: A,B,C", format!("{:?}", args.odds))
        })?;
        let odds = Odds::new(odds)?;
        let table = args
            .annotations
            .as_ref()
            .map(CategoryTable::read)
            .transpose()?;
        let own = own_values(args)?;
        let model = context.model(&args.model)?;
        let aliases = Aliases::collect(&args.aliases)?;
        let bank = open_or_create(dir, &model, table.as_ref(), &own, args.limits)?;
        let trained = Generator::trained_categories(&model)?;
        let sources: Vec<&CategoryTable> = table.as_ref().into_iter().chain(&trained).collect();
        let table = prompt_table(&bank, &sources)?;
        let vocabulary = Vocabulary::new(&table, trained.as_ref(), &aliases)?;
        for problem in vocabulary.problems() {
            tracing::warn!("{problem}");
        }
        let status = StatusWriter::start(bank.path(), command, stopped)?;
        status.update(|b| b.device = format!("{}, {}", args.device, args.dtype));
        let batch = args.batch.map_or_else(
            || {
                if args.device.starts_with("cuda") {
                    BATCH_ON_GPU
                } else {
                    BATCH_ON_CPU
                }
            },
            |n| n as usize,
        );
        Ok(Self {
            args,
            model,
            table,
            vocabulary,
            bank,
            status,
            odds,
            settings: Settings {
                batch,
                regions_at_once: regions_per_call(parse_device(&args.device)?),
                duty: args.duty,
                idle_exit: None,
            },
            own,
        })
    }

    /// Runs `work`, which gets a function that loads the model, and records in the status how it
    /// ended.
    pub(super) fn run(
        &self,
        work: impl FnOnce(&dyn Fn() -> Result<ModelBackend>, &Self) -> Result<()>,
    ) -> Result<()> {
        let out = work(&|| self.load(), self);
        self.status.end(&out);
        out
    }

    /// See [`demand::drawable`].
    pub(super) fn drawable(&self) -> Vec<bool> {
        demand::drawable(&self.bank, &self.vocabulary)
    }

    /// Publishes what the engine draws when it is asked for: trainers then ask.
    pub(super) fn draws(&self, categories: &[u32]) {
        self.status
            .update(|s| s.draws = categories.iter().copied().collect());
    }

    pub(super) fn control(&self) -> Control<'static> {
        Control::new(self.bank.path(), &stopped)
    }

    fn load(&self) -> Result<ModelBackend> {
        if let Some(threads) = self.args.threads {
            tch::set_num_threads(threads);
            // Made once per process; a second engine in it keeps the first one's.
            let _ = rayon::ThreadPoolBuilder::new()
                .num_threads(threads as usize)
                .build_global();
        }
        let generator = Generator::open(
            &self.model,
            parse_device(&self.args.device)?,
            parse_dtype(&self.args.dtype)?,
        )?;
        let generator = generator.with_vocabulary(self.table.clone(), self.vocabulary.clone());
        let id = generator.model().id.clone();
        self.status.update(|b| {
            b.model = id.name;
            b.weights = id.weights;
        });
        check_stop()?;
        let backend = ModelBackend::new(generator, &self.own, self.odds.counts())?;
        backend.keep_recipes(&self.bank)?;
        Ok(backend)
    }
}

fn stopped() -> bool {
    check_stop().is_err()
}

/// Lowers the priority of this process.
fn be_nice(by: i32) -> Result<()> {
    if by == 0 {
        return Ok(());
    }
    // SAFETY: a system call without pointers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, by) };
    if done == 0 {
        Ok(())
    } else {
        Err(Error::backend("--nice", std::io::Error::last_os_error()))
    }
}

/// The bank in `dir`; a new one for the categories of `table`, or else of the model.
fn open_or_create(
    dir: &Path,
    model: &Path,
    table: Option<&CategoryTable>,
    own: &Map<String, Value>,
    limits: LimitArgs,
) -> Result<Bank> {
    if dir.join(INFO_FILE).exists() {
        let bank = Bank::open(dir)?;
        limits.apply(&bank)?;
        return Ok(bank);
    }
    let trained = Generator::trained_categories(model)?;
    let table = match table.or(trained.as_ref()) {
        Some(table) => table,
        None => {
            return Err(Error::NotFound {
                what: "bank".into(),
                path: dir.join(INFO_FILE),
                hint: "\nhint: --annotations JSON says for which categories to make one".into(),
            });
        }
    };
    let recipe = serde_json::to_string(own).map_err(|e| Error::backend("recipe", e))?;
    let bank = Bank::open_or_create(dir, || {
        bank_info(table, &recipe, limits.over(Limits::default()))
    })?;
    // Another engine may have been faster.
    limits.apply(&bank)?;
    Ok(bank)
}

/// The recipe values that the command line gives.
fn own_values(args: &MakeArgs) -> Result<Map<String, Value>> {
    let own = recipe_values(args.recipe.as_deref(), &args.set)?;
    if own.contains_key("regions") {
        return Err(Error::value(
            "recipe, key \"regions\"",
            format!("odds of {REGION_COUNTS:?} regions (--odds)"),
            "a fixed number",
        ));
    }
    Ok(own)
}

/// For the end of a command: what was made.
pub(super) fn summary(status: &StatusWriter) -> String {
    status.update(|b| {
        let share = 100.0 * b.rejected as f64 / b.regions.max(1) as f64;
        format!(
            "{} mosaics, {} instances, {share:.0} % of {} regions rejected",
            b.mosaics, b.instances, b.regions
        )
    })
}
