//! `mosaicbank generate`: labelled mosaics into a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageEncoder, RgbImage};
use serde_json::{Map, Value};

use super::context::{Context, catch_stop, check_stop};
use super::folder::own_folder;
use super::overlay::Overlay;
use super::progress::Bars;
use crate::dataset::record::{IMAGES, MASKS, OVERLAYS};
use crate::dataset::{
    CategoryTable, ExportFormat, ExportOptions, Exporter, InstanceRecord, MosaicRecord,
    RECORD_FORMAT, RegionRecord, write_beside,
};
use crate::error::{Error, Result};
use crate::mosaic::{
    Canvas, Generator, Mosaic, Options, Progress, choose_categories, parse_device, parse_dtype,
};
use crate::recipe::Recipe;

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
    /// One recipe value, over those of the file; VALUE is JSON or a plain word
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
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
    let mut generator = Generator::open(
        &model,
        parse_device(&args.device)?,
        parse_dtype(&args.dtype)?,
    )?;
    if let Some(path) = &args.annotations {
        generator = generator.with_categories(CategoryTable::read(path)?);
    }
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
    let folder = Folder::open(&args.out, &generator, &recipe, args.resume)?;
    let todo: Vec<Canvas> = canvases
        .iter()
        .filter(|c| {
            !folder
                .finished
                .contains(&generator.mosaic_id(&recipe, c).unwrap_or_default())
        })
        .cloned()
        .collect();
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
        for mosaic in &made {
            folder.write(mosaic)?;
            kept += mosaic
                .regions
                .iter()
                .filter(|r| r.verdict.is_kept())
                .count();
            all += mosaic.regions.len();
        }
        bars.add(made.len() as u64, format!("{kept} of {all} regions kept"));
        check_stop().inspect_err(|_| bars.finish())?;
    }
    bars.finish();
    folder.finish()
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

/// The folder that mosaics are written to.
struct Folder<'a> {
    path: &'a Path,
    generator: &'a Generator,
    recipe: String,
    finished: BTreeSet<String>,
}

impl<'a> Folder<'a> {
    fn open(
        path: &'a Path,
        generator: &'a Generator,
        recipe: &Recipe,
        resume: bool,
    ) -> Result<Self> {
        let finished: BTreeSet<String> = MosaicRecord::finished(path)?.into_iter().collect();
        if !finished.is_empty() && !resume {
            return Err(Error::value(
                "--out",
                "a folder without mosaics, or --resume",
                format!("{} with {} mosaics", path.display(), finished.len()),
            ));
        }
        own_folder(path, "generate", !finished.is_empty())?;
        for part in [IMAGES, MASKS, OVERLAYS] {
            let dir = path.join(part);
            std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        }
        let file = path.join("recipe.json");
        if !finished.is_empty() && file.is_file() {
            let before = Recipe::resolve(&Map::new(), &Recipe::read_overrides(&file)?)?;
            if before != *recipe {
                return Err(Error::format(
                    &file,
                    "the recipe of this command, so that the folder can be continued",
                    format!("another one (hash {})", before.hash()?),
                ));
            }
        }
        let text = serde_json::to_string_pretty(recipe)
            .map_err(|e| Error::backend("writing the recipe", e))?;
        write_beside(&file, |out| out.write_all(text.as_bytes()))?;
        Ok(Self {
            path,
            generator,
            recipe: recipe.hash()?,
            finished,
        })
    }

    /// Writes the pictures, then the record that says that they are complete.
    fn write(&self, mosaic: &Mosaic) -> Result<()> {
        let (height, width) = (mosaic.size.height, mosaic.size.width);
        let file_name = format!("{}.png", mosaic.id);
        let image = self.path.join(IMAGES).join(&file_name);
        write_png(&image, &mosaic.rgb, width, height, ExtendedColorType::Rgb8)?;
        for (k, instance) in mosaic.instances.iter().enumerate() {
            let mask = instance.mask.decode();
            let bytes: Vec<u8> = mask.data().iter().map(|&v| 255 * v).collect();
            let path = self.path.join(MASKS).join(format!("{}_{k}.png", mosaic.id));
            write_png(&path, &bytes, width, height, ExtendedColorType::L8)?;
        }
        if let Some(picture) = RgbImage::from_raw(width, height, mosaic.rgb.clone()) {
            let mut overlay = Overlay::new(&picture);
            for i in &mosaic.instances {
                overlay.draw(&i.mask, i.bbox, &i.category);
            }
            let picture = overlay.into_picture();
            let path = self.path.join(OVERLAYS).join(&file_name);
            let (width, height) = picture.dimensions();
            write_png(&path, &picture, width, height, ExtendedColorType::Rgb8)?;
        }
        let table = self.generator.categories();
        let id = |name: &str| table.and_then(|t| t.get(name).ok()).map(|c| c.id);
        let model = &self.generator.model().id;
        let record = MosaicRecord {
            format: RECORD_FORMAT,
            id: mosaic.id.clone(),
            file_name,
            height,
            width,
            seed: mosaic.seed,
            recipe: self.recipe.clone(),
            model: model.name.clone(),
            weights: model.weights.clone(),
            regions: mosaic
                .regions
                .iter()
                .map(|r| RegionRecord {
                    bbox: r.bbox,
                    own: r.own,
                    prompt: r.subject.prompt.clone(),
                    subject: [r.subject.span.start as u32, r.subject.span.end as u32],
                    guidance: r.guidance,
                    category_id: id(&r.category),
                    category: r.category.clone(),
                    verdict: r.verdict,
                })
                .collect(),
            instances: mosaic
                .instances
                .iter()
                .map(|i| InstanceRecord {
                    category_id: id(&i.category),
                    ..InstanceRecord::from(i.clone())
                })
                .collect(),
        };
        record.write(self.path)?;
        Ok(())
    }

    /// Writes the annotations of everything in the folder.
    fn finish(&self) -> Result<()> {
        let records = MosaicRecord::read_folder(self.path)?;
        let table = match self.generator.categories() {
            Some(table) => table.clone(),
            None => Exporter::table_of(&records)?,
        };
        let options = ExportOptions {
            format: ExportFormat::Lvis,
            image_folder: IMAGES.into(),
            ..ExportOptions::default()
        };
        let mut exporter = Exporter::new(table, options)?;
        for record in &records {
            exporter.add(record)?;
        }
        let path = self.path.join("annotations.json");
        let report = exporter.write(&path)?;
        println!("{}: {report}", path.display());
        Ok(())
    }
}

/// Writes a picture beside its place and renames it.
pub(super) fn write_png(
    path: &Path,
    data: &[u8],
    width: u32,
    height: u32,
    colour: ExtendedColorType,
) -> Result<()> {
    write_beside(path, |out| {
        image::codecs::png::PngEncoder::new(out)
            .write_image(data, width, height, colour)
            .map_err(std::io::Error::other)
    })
}
