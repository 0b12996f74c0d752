//! `mosaicbank reproduce`: a mosaic of a bank made again, and compared.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::context::{Context, catch_stop, check_stop};
use crate::bank::{Bank, MosaicRecord};
use crate::dataset::write_beside;
use crate::engine::reproduce::{Comparison, find, recipe_of};
use crate::error::{Error, Result};
use crate::mosaic::{
    Canvas, Generator, Labelled, Options, Progress, device_kind, dtype_name, parse_device,
    parse_dtype,
};
use crate::picture;

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
    let canvas = Canvas::of_record(generation, kept.seed)?;
    let mut progress = Progress {
        check: &mut check_stop,
        step: &mut |_, _| {},
    };
    let canvases = [canvas];
    let made = generator
        .generate(&recipe, &canvases, None, Options::default(), &mut progress)?
        .pop()
        .ok_or_else(|| Error::backend("reproduce", "no mosaic was made"))?;
    let report = Comparison::of(&kept, &made);
    if let Some(out) = &args.out {
        write(out, &kept, &made)?;
    }
    let alike = generation.device == device_kind(device)
        && generation.dtype == dtype_name(dtype)
        && generation.threads == threads;
    if args.json {
        println!("{}", json(&report, &kept));
    } else {
        print(&report, &kept);
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

fn print(report: &Comparison, kept: &MosaicRecord) {
    println!(
        "mosaic {}, {} x {} px, seed {}, {} regions",
        kept.id,
        kept.size.height,
        kept.size.width,
        kept.seed,
        kept.regions.len()
    );
    let coded = report.largest.map_or_else(
        || "of another size than the bank's".to_owned(),
        |d| format!("at most {d} of 255 from the bank's coded picture"),
    );
    println!(
        "pixels:   {} ({coded})",
        if report.pixels {
            "identical"
        } else {
            "different"
        }
    );
    let least = report.masks.iter().copied().fold(1.0, f64::min);
    let same = report.masks.iter().filter(|&&iou| iou >= 1.0).count();
    println!(
        "masks:    {same} of {} identical, {} made again, least IoU {least:.4}",
        report.masks.len(),
        report.instances
    );
    println!(
        "verdicts: {}",
        if report.verdicts {
            "identical"
        } else {
            "different"
        }
    );
}

fn json(report: &Comparison, kept: &MosaicRecord) -> Value {
    serde_json::json!({
        "id": kept.id.to_string(), "identical": report.identical(), "pixels": report.pixels,
        "largest_difference": report.largest, "masks": report.same_masks(),
        "mask_iou": report.masks, "instances": report.instances, "verdicts": report.verdicts,
    })
}

/// Writes `<id>.png` and `<id>_overlay.png`.
fn write(out: &Path, kept: &MosaicRecord, made: &Labelled) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let m = &made.record;
    let objects = m.instances.iter();
    let objects = objects.map(|i| (&i.mask, i.bbox, i.category.as_str()));
    let drawn = picture::overlay(&m.image, m.size, objects)?;
    for (name, png) in [
        ("", picture::png(&m.image, m.size)?),
        ("_overlay", picture::image_png(&drawn)?),
    ] {
        let path = out.join(format!("{}{name}.png", kept.id));
        write_beside(&path, |out| out.write_all(&png))?;
        println!("{}", path.display());
    }
    Ok(())
}
