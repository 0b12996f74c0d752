//! `mosaicbank merge`: merges synthetic annotation files into a training file.

use std::path::PathBuf;

use clap::Args;

use crate::dataset::merge_files;
use crate::error::Result;

/// Merge exported mosaics into a training annotation file
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
    mosaicbank merge --train lvis_v1_train.json --synthetic out/annotations.json --out all.json")]
pub struct MergeArgs {
    /// The training set's annotation file
    #[arg(long, value_name = "JSON")]
    train: PathBuf,
    /// Files that `mosaicbank export` wrote
    #[arg(long, value_name = "JSON", num_args = 1.., required = true)]
    synthetic: Vec<PathBuf>,
    /// Output file
    #[arg(long, value_name = "JSON")]
    out: PathBuf,
}

/// Runs `mosaicbank merge` and says on standard output what was added.
///
/// # Errors
/// As [`merge_files`].
pub fn run(args: &MergeArgs) -> Result<()> {
    let report = merge_files(&args.train, &args.synthetic, &args.out)?;
    println!("{}: {report}", args.out.display());
    Ok(())
}
