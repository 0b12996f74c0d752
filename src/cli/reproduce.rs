//! `mosaicbank reproduce`: a mosaic of a bank made again, and compared.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::context::{Context, catch_stop, check_stop};
use super::generate::write_png;
use super::overlay::Overlay;
use crate::bank::trace::{self, Generation};
use crate::bank::{Bank, MosaicRecord, RecordId};
use crate::engine::backend::canvas_of;
use crate::error::{Error, Result};
use crate::mosaic::{
    Generator, Mosaic, Options, Progress, device_kind, dtype_name, parse_device, parse_dtype,
};
use crate::recipe::Recipe;

/// Make a mosaic of a bank again, and say whether it is the same
///
/// The record says how it was made: recipe, seed, regions, weights, device and type. On the same
/// kind of device the picture and the masks are identical; another one, or another number of
/// threads, computes other last digits.
/// The exit status is 0 when both are identical.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank reproduce --bank bank/ --id 4c19f0a2d0e1b3c5a7f9e8d6c4b2a091\n  \
    mosaicbank reproduce --bank bank/ --id ID --model DIR --device cuda:0 --out again/")]
pub(super) struct ReproduceArgs {
    /// The bank's directory
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// Id of a mosaic, or of an instance that was cut from one
    #[arg(long)]
    id: String,
    /// The model that made it: a diffusers-layout directory, or `embedded`
    #[arg(long, default_value = "embedded", value_name = "DIR")]
    model: PathBuf,
    /// cpu, cuda or cuda:<index> [default: as it was made]
    #[arg(long)]
    device: Option<String>,
    /// float32, float16 or bfloat16 [default: as it was made]
    #[arg(long)]
    dtype: Option<String>,
    /// Threads that the CPU computes with [default: as it was made]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Folder for the picture and the picture with its masks
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// The mosaic with this id, or the one that the instance with this id was cut from.
fn find(bank: &Bank, id: &str) -> Result<MosaicRecord> {
    let wanted: RecordId = id.parse()?;
    match bank.mosaic(wanted) {
        Err(e) => {
            let instance = bank.instance(wanted).map_err(|_| e)?;
            bank.mosaic(instance.provenance.mosaic.parse()?)
        }
        found => found,
    }
}

/// Runs the command.
pub(super) fn run(args: &ReproduceArgs, context: &Context) -> Result<()> {
    catch_stop()?;
    let bank = Bank::open(&args.bank)?;
    let kept = find(&bank, &args.id)?;
    let Some(generation) = &kept.generation else {
        return Err(Error::value(
            format!("mosaic {}", kept.id),
            "one that an engine or prewarm made",
            "an imported one, which does not say how it was made",
        ));
    };
    let recipe = recipe_of(&bank, &kept)?;
    let device = parse_device(args.device.as_deref().unwrap_or(&generation.device))?;
    let dtype = parse_dtype(args.dtype.as_deref().unwrap_or(&generation.dtype))?;
    let threads = args.threads.unwrap_or(generation.threads);
    if threads > 0 {
        tch::set_num_threads(threads.min(1024) as i32);
    }
    let model = context.model(&args.model)?;
    let generator = Generator::open(&model, device, dtype)?;
    let found = &generator.model().id;
    if found.weights != kept.weights {
        return Err(Error::value(
            format!("weights of {}", model.display()),
            format!(
                "those of {:?} that made the mosaic, SHA-256 {}",
                kept.model, kept.weights
            ),
            format!(
                "{}\nhint: --model DIR names the model's directory",
                found.weights
            ),
        ));
    }
    let canvas = canvas_of(generation, kept.seed)?;
    let mut progress = Progress {
        check: &mut check_stop,
        step: &mut |_, _| {},
    };
    let canvases = [canvas];
    let made = generator
        .generate(&recipe, &canvases, None, Options::default(), &mut progress)?
        .pop()
        .ok_or_else(|| Error::backend("reproduce", "no mosaic was made"))?;
    let report = Comparison::of(&kept, generation, &made);
    if let Some(out) = &args.out {
        write(out, &kept, &made)?;
    }
    let alike = generation.device == device_kind(device)
        && generation.dtype == dtype_name(dtype)
        && generation.threads == threads;
    if args.json {
        println!("{}", report.json(&kept));
    } else {
        report.print(&kept);
    }
    if report.identical() {
        return Ok(());
    }
    let hint = if alike {
        "\nhint: another kind of processor computes other last digits, too"
    } else {
        "\nhint: another kind of device, type or number of threads computes other last digits"
    };
    Err(Error::value(
        format!("mosaic {} made again", kept.id),
        format!(
            "the same picture and masks (made on {} in {}, {} threads)",
            generation.device, generation.dtype, generation.threads
        ),
        format!(
            "others (on {} in {}, {threads} threads){hint}",
            device_kind(device),
            dtype_name(dtype)
        ),
    ))
}

/// The recipe that the bank keeps for a mosaic.
fn recipe_of(bank: &Bank, kept: &MosaicRecord) -> Result<Recipe> {
    let text = bank.recipe(&kept.recipe)?;
    let place = bank
        .path()
        .join("recipes")
        .join(format!("{}.json", kept.recipe));
    Recipe::read_stored(&text, &kept.recipe, &place)
}

/// What is the same of a mosaic that was made again.
struct Comparison {
    pixels: bool,
    /// Largest difference to the bank's picture, which lost a little by its coding, 0..255.
    largest: Option<u8>,
    /// IoU of each kept mask with the one made again.
    masks: Vec<f64>,
    /// Instances made again.
    instances: usize,
    verdicts: bool,
}

impl Comparison {
    fn of(kept: &MosaicRecord, generation: &Generation, made: &Mosaic) -> Self {
        let masks = kept
            .instances
            .iter()
            .enumerate()
            .map(|(i, instance)| {
                made.instances
                    .get(i)
                    .and_then(|again| instance.mask.iou(&again.mask).ok())
                    .unwrap_or(0.0)
            })
            .collect();
        let verdict = |v: &crate::mask::Verdict| {
            if v.is_kept() {
                crate::bank::format::KEPT.to_owned()
            } else {
                v.to_string()
            }
        };
        Self {
            pixels: trace::fingerprint(&made.rgb, made.size) == generation.pixels,
            largest: (made.rgb.len() == kept.image.len()).then(|| {
                let differences = made
                    .rgb
                    .iter()
                    .zip(&kept.image)
                    .map(|(a, b)| a.abs_diff(*b));
                differences.max().unwrap_or(0)
            }),
            masks,
            instances: made.instances.len(),
            verdicts: kept.regions.len() == made.regions.len()
                && kept
                    .regions
                    .iter()
                    .zip(&made.regions)
                    .all(|(a, b)| a.verdict == verdict(&b.verdict)),
        }
    }

    fn same_masks(&self) -> bool {
        self.instances == self.masks.len() && self.masks.iter().all(|&iou| iou >= 1.0)
    }

    fn identical(&self) -> bool {
        self.pixels && self.same_masks() && self.verdicts
    }

    fn print(&self, kept: &MosaicRecord) {
        println!(
            "mosaic {}, {} x {} px, seed {}, {} regions",
            kept.id,
            kept.size.height,
            kept.size.width,
            kept.seed,
            kept.regions.len()
        );
        let coded = self.largest.map_or_else(
            || "of another size than the bank's".to_owned(),
            |d| format!("at most {d} of 255 from the bank's coded picture"),
        );
        println!(
            "pixels:   {} ({coded})",
            if self.pixels {
                "identical"
            } else {
                "different"
            }
        );
        let least = self.masks.iter().copied().fold(1.0, f64::min);
        let same = self.masks.iter().filter(|&&iou| iou >= 1.0).count();
        println!(
            "masks:    {same} of {} identical, {} made again, least IoU {least:.4}",
            self.masks.len(),
            self.instances
        );
        println!(
            "verdicts: {}",
            if self.verdicts {
                "identical"
            } else {
                "different"
            }
        );
    }

    fn json(&self, kept: &MosaicRecord) -> Value {
        serde_json::json!({
            "id": kept.id.to_string(), "identical": self.identical(), "pixels": self.pixels,
            "largest_difference": self.largest, "masks": self.same_masks(),
            "mask_iou": self.masks, "instances": self.instances, "verdicts": self.verdicts,
        })
    }
}

/// Writes `<id>.png` and `<id>_overlay.png`.
fn write(out: &std::path::Path, kept: &MosaicRecord, made: &Mosaic) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let Some(picture) =
        image::RgbImage::from_raw(made.size.width, made.size.height, made.rgb.clone())
    else {
        return Err(Error::backend("reproduce", "a picture of another size"));
    };
    let mut overlay = Overlay::new(&picture);
    for i in &made.instances {
        overlay.draw(&i.mask, i.bbox, &i.category);
    }
    for (name, picture) in [("", picture), ("_overlay", overlay.into_picture())] {
        let path = out.join(format!("{}{name}.png", kept.id));
        let (width, height) = picture.dimensions();
        write_png(
            &path,
            &picture,
            width,
            height,
            image::ExtendedColorType::Rgb8,
        )?;
        println!("{}", path.display());
    }
    Ok(())
}
