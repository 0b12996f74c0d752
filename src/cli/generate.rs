//! `mosaicbank generate`: labelled mosaics into a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::context::{Context, catch_stop, check_stop};
use super::progress::Bars;
use crate::dataset::{CategoryTable, Folder};
use crate::error::{Error, Result};
use crate::mosaic::{
    Canvas, Generator, Labelled, Options, Progress, choose_categories, parse_device,
    parse_dtype,
};
use crate::recipe::Recipe;
use crate::record::{Class, Mosaic};

/// Make mosaics with instance masks, and one annotation file for all of them.
///
/// For each mosaic the folder gets images/<id>.png, overlays/<id>.png, masks/<id>_<k>.png for
/// every kept instance, and mosaics/<id>.json with regions, verdicts and provenance; at the end
/// annotations.json (LVIS style) and recipe.json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank generate --categories banana,teapot,dog,school_bus --count 4 --out out/\n  \
    mosaicbank generate --model DIR --device cuda:0 --dtype bfloat16 --categories banana \\\n      \
    --annotations lvis_v1_train.json --regions 2 --count 100 --batch 8 --out out/")]
pub(super) struct Args {
    /// A diffusers-layout directory, or `embedded` for the model that comes with mosaicbank
    #[arg(long, default_value = "embedded", value_name = "DIR")]
    model: PathBuf,
    /// Category names, separated by commas; `all` for every category of the table
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME,...")]
    categories: Vec<String>,
    /// LVIS or COCO JSON whose categories give ids and definitions [default: the model's own]
    #[arg(long, value_name = "JSON")]
    annotations: Option<PathBuf>,
    /// Regions of a mosaic: 1, 2 or 4 [default: the recipe's]
    #[arg(long)]
    regions: Option<u32>,
    /// Number of mosaics
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Seed of the first mosaic; the next ones count up
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for everything that is written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Leave out the mosaics that the folder holds already
    #[arg(long)]
    resume: bool,
    /// cpu, cuda or cuda:<index>
    #[arg(long, default_value = "cpu")]
    device: String,
    /// float32, float16 or bfloat16
    #[arg(long, default_value = "float32")]
    dtype: String,
    /// Threads that the CPU computes with [default: all]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,
    /// Mosaics made at once; does not change them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,
    /// Recipe values, a JSON or TOML file
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// One recipe value, over those of the file; VALUE is JSON or a plain word, and dots in KEY
    /// lead inside: checks.size.min_area=0.01
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Names, definitions or prompts under which the model draws categories: CATEGORY=NAME, or a JSON
    /// or TOML file of "CATEGORY": "NAME" or "CATEGORY": {"name", "definition", "prompt"}; may be
    /// given several times
    #[arg(long, value_name = "CATEGORY=NAME|FILE")]
    aliases: Vec<String>,
    /// Denoising steps [default: the recipe's]
    #[arg(long)]
    steps: Option<u32>,
    /// Guidance weight [default: the recipe's]
    #[arg(long)]
    guidance: Option<f64>,
    /// pndm, ddim, euler, dpm_solver, dpm_solver_karras or lcm [default: the model's own]
    #[arg(long)]
    scheduler: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args, context: &Context) -> Result<()> {
    catch_stop()?;
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    let model = context.model(&args.model)?;
    let generator = Generator::open(
        &model,
        parse_device(&args.device)?,
        parse_dtype(&args.dtype)?,
    )?
    .for_dataset(args.annotations.as_deref(), &args.aliases)?;
    let recipe = generator.recipe(&own_values(args)?)?;
    let categories = category_names(&generator, &args.categories)?;
    let canvases = (0..args.count)
        .map(|i| {
            let seed = args.seed.checked_add(i).ok_or_else(|| {
                Error::value("seed + count", format!("at most {}", u64::MAX), "more")
            })?;
            let main = i as usize % categories.len();
            let names = choose_categories(&categories, main, recipe.regions as usize, seed);
            generator.canvas(&recipe, &names, seed)
        })
        .collect::<Result<Vec<_>>>()?;
    let folder = Folder::open(&args.out, "generate", args.resume)?;
    folder.set_recipe(&recipe)?;
    let mut todo: Vec<Canvas> = Vec::new();
    for canvas in canvases {
        if !folder.holds(generator.mosaic_id(&recipe, &canvas)?) {
            todo.push(canvas);
        }
    }
    let mut bars = Bars::new("mosaics", args.count, args.count - todo.len() as u64);
    let (mut kept, mut all) = (0, 0);
    for batch in todo.chunks(args.batch as usize) {
        let made = generator.generate(
            &recipe,
            batch,
            None,
            Options::default(),
            &mut Progress {
                check: &mut check_stop,
                step: &mut |done, of| bars.step(done, of),
            },
        );
        let made = match made {
            Ok(made) => made,
            Err(e) => {
                bars.finish();
                return Err(e);
            }
        };
        let count = made.len() as u64;
        for Labelled { record, .. } in made {
            let good = record.regions.iter().filter(|r| r.verdict.is_kept());
            kept += good.count();
            all += record.regions.len();
            folder.write(&classed(record, generator.categories())?)?;
        }
        bars.add(count, format!("{kept} of {all} regions kept"));
        check_stop().inspect_err(|_| bars.finish())?;
    }
    bars.finish();
    let (path, report) = folder.annotate(generator.categories())?;
    println!("{}: {report}", path.display());
    Ok(())
}

/// A mosaic with the ids that its categories have in `table`.
fn classed(mosaic: Mosaic, table: Option<&CategoryTable>) -> Result<Mosaic<Class>> {
    mosaic.with_categories(|name| {
        let id = table.and_then(|t| t.get(name).ok()).map(|c| c.id);
        let name = name.clone();
        Ok(Class { name, id })
    })
}

/// The values of a recipe file, with those of `--set KEY=VALUE` over them.
pub(super) fn recipe_values(
    file: Option<&Path>,
    sets: &[String],
) -> Result<Map<String, Value>> {
    let mut own = match file {
        Some(path) => Recipe::read_overrides(path)?,
        None => Map::new(),
    };
    for pair in sets {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::value("--set", "KEY=VALUE", format!("{pair:?}")));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        own.insert(key.trim().to_owned(), value);
    }
    Ok(own)
}

/// The recipe values that the command line gives.
fn own_values(args: &Args) -> Result<Map<String, Value>> {
    let mut own = recipe_values(args.recipe.as_deref(), &args.set)?;
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            own.insert(key.to_owned(), value);
        }
    };
    put("regions", args.regions.map(Value::from));
    put("steps", args.steps.map(Value::from));
    put("guidance", args.guidance.map(Value::from));
    put("scheduler", args.scheduler.as_deref().map(Value::from));
    Ok(own)
}

/// The names as the table writes them, each once.
fn category_names(generator: &Generator, asked: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in asked.iter().map(|n| n.trim()) {
        match generator.categories() {
            Some(table) if name == "all" => {
                names.extend(table.categories().iter().map(|c| c.name.clone()));
            }
            Some(table) => names.push(table.get(name)?.name.clone()),
            None if name.is_empty() => {
                return Err(Error::value("--categories", "names", format!("{asked:?}")));
            }
            None => names.push(name.to_owned()),
        }
    }
    let mut seen = BTreeSet::new();
    names.retain(|n| seen.insert(n.clone()));
    if names.is_empty() {
        return Err(Error::value("--categories", "at least one name", "none"));
    }
    Ok(names)
}
