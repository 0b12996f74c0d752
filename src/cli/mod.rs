//! The command line: one file per subcommand; no logic lives here.

#[cfg(feature = "engine")]
mod bench;
mod compact;
mod context;
#[cfg(feature = "engine")]
mod engine;
mod export;
#[cfg(feature = "engine")]
mod generate;
pub mod import;
mod limits;
mod merge;
mod merge_banks;
#[cfg(feature = "engine")]
mod prewarm;
mod progress;
mod report;
#[cfg(feature = "engine")]
mod reproduce;
mod show;
mod stats;
mod status;
mod verify;

use clap::{Parser, Subcommand};

pub use context::Context;

use crate::error::{Error, Result};

/// Exit status of a command that failed.
const EXIT_FAILED: u8 = 1;
/// Exit status for a wrong command line, as clap has it.
const EXIT_USAGE: u8 = 2;
/// Exit status after Ctrl-C: 128 + SIGINT, as shells report it.
const EXIT_INTERRUPTED: u8 = 130;

/// Online mosaic augmentation for instance segmentation.
///
/// A diffusion model makes multi-object pictures with instance masks; a bank keeps them; a
/// sampler injects them into a training run.
#[derive(Debug, Parser)]
#[command(name = "mosaicbank", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Commands that `mosaicbank._engine` has; without it they are listed, and say how to get it.
#[cfg(not(feature = "engine"))]
#[derive(Debug, clap::Args)]
struct NeedsEngine {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "engine")]
    Generate(generate::Args),
    /// Make mosaics with instance masks, and one annotation file for all of them
    #[cfg(not(feature = "engine"))]
    #[command(disable_help_flag = true)]
    Generate(NeedsEngine),
    #[cfg(feature = "engine")]
    Engine(engine::EngineArgs),
    /// Keep a bank stocked: new mosaics of what trainers ask for, until stopped
    #[cfg(not(feature = "engine"))]
    #[command(disable_help_flag = true)]
    Engine(NeedsEngine),
    #[cfg(feature = "engine")]
    Prewarm(prewarm::PrewarmArgs),
    /// Fill a bank with exactly so many mosaics of each category, and end
    #[cfg(not(feature = "engine"))]
    #[command(disable_help_flag = true)]
    Prewarm(NeedsEngine),
    #[cfg(feature = "engine")]
    Bench(bench::BenchArgs),
    /// Measure generation, injection, and a training loop beside an engine
    #[cfg(not(feature = "engine"))]
    #[command(disable_help_flag = true)]
    Bench(NeedsEngine),
    #[cfg(feature = "engine")]
    Reproduce(reproduce::ReproduceArgs),
    /// Make a mosaic of a bank again, and say whether it is the same
    #[cfg(not(feature = "engine"))]
    #[command(disable_help_flag = true)]
    Reproduce(NeedsEngine),
    Show(show::ShowArgs),
    Status(status::StatusArgs),
    MergeBanks(merge_banks::MergeBanksArgs),
    Export(export::ExportArgs),
    Merge(merge::MergeArgs),
    Import(import::ImportArgs),
    Stats(stats::StatsArgs),
    Report(report::ReportArgs),
    Verify(verify::VerifyArgs),
    Compact(compact::CompactArgs),
}

/// Runs the command line `argv` (without the program's name) and returns the exit status.
/// Errors are printed on standard error.
pub fn run(argv: &[String], context: &Context) -> u8 {
    context::start_logging();
    let words = std::iter::once("mosaicbank".to_owned()).chain(argv.iter().cloned());
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are "errors" of exit status 0.
            let _ = e.print();
            return u8::try_from(e.exit_code()).unwrap_or(EXIT_USAGE);
        }
    };
    match dispatch(cli.command, context) {
        Ok(()) => 0,
        Err(Error::Interrupted) => {
            eprintln!("mosaicbank: stopped");
            EXIT_INTERRUPTED
        }
        Err(e) => {
            eprintln!("mosaicbank: {e}");
            EXIT_FAILED
        }
    }
}

#[cfg_attr(
    not(feature = "engine"),
    allow(unused_variables, reason = "for the engine's commands")
)]
fn dispatch(command: Command, context: &Context) -> Result<()> {
    match command {
        #[cfg(feature = "engine")]
        Command::Generate(args) => generate::run(&args, context),
        #[cfg(feature = "engine")]
        Command::Engine(args) => engine::run(&args, context),
        #[cfg(feature = "engine")]
        Command::Prewarm(args) => prewarm::run(&args, context),
        #[cfg(feature = "engine")]
        Command::Bench(args) => bench::run(&args, context),
        #[cfg(not(feature = "engine"))]
        Command::Bench(args) => Err(needs_engine("bench", &args)),
        #[cfg(feature = "engine")]
        Command::Reproduce(args) => reproduce::run(&args, context),
        Command::Show(args) => show::run(&args),
        Command::Status(args) => status::run(&args),
        Command::MergeBanks(args) => merge_banks::run(&args),
        #[cfg(not(feature = "engine"))]
        Command::Generate(args) => Err(needs_engine("generate", &args)),
        #[cfg(not(feature = "engine"))]
        Command::Engine(args) => Err(needs_engine("engine", &args)),
        #[cfg(not(feature = "engine"))]
        Command::Prewarm(args) => Err(needs_engine("prewarm", &args)),
        #[cfg(not(feature = "engine"))]
        Command::Reproduce(args) => Err(needs_engine("reproduce", &args)),
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Compact(args) => compact::run(&args),
    }
}

#[cfg(not(feature = "engine"))]
fn needs_engine(command: &str, args: &NeedsEngine) -> Error {
    Error::backend(
        format!("{command} {}", args.arguments.join(" ")).trim_end(),
        "needs the diffusion engine, which this build is without \
         (`pip install 'torch==2.11.*'`, then install mosaicbank again)",
    )
}

// The engine's commands are placeholders without it.
#[cfg(all(test, feature = "engine"))]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    /// The words of the commands in a text: lines that begin with the program's name (or with
    /// `... -m` before it), joined where they end in a backslash.
    fn commands(text: &str) -> Vec<Vec<String>> {
        let joined = text.replace("\\\n", " ");
        joined
            .lines()
            .filter_map(|line| {
                let line = line.split(" #").next()?.trim();
                let at = line.find("mosaicbank ")?;
                let alone = at == 0 || line[..at].ends_with(" -m ");
                let words = line[at..].split_whitespace().filter(|w| *w != "...");
                alone.then(|| words.map(|w| w.replace('\'', "")).collect())
            })
            .collect()
    }

    #[test]
    fn the_commands_in_the_documents_are_those_of_the_command_line() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = vec![root.join("README.md")];
        let guides = std::fs::read_dir(root.join("configs/guides")).unwrap();
        files.extend(guides.map(|e| e.unwrap().path()));
        let mut seen = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let blocks: String = text.split("```").skip(1).step_by(2).collect();
            for words in commands(&blocks) {
                if let Err(e) = Cli::try_parse_from(&words) {
                    panic!("{}: {words:?}: {e}", file.display());
                }
                seen += 1;
            }
        }
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn every_command_has_examples_that_it_takes() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            let found = commands(&help.unwrap_or_default());
            assert!(!found.is_empty(), "{} has no example", command.get_name());
            for words in found {
                if let Err(e) = Cli::try_parse_from(&words) {
                    panic!("{words:?}: {e}");
                }
            }
        }
    }
}
