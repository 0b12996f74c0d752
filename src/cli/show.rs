//! `mosaicbank show`: a contact sheet of what a bank holds.

use std::path::PathBuf;

use clap::Args;
use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};
use rand::seq::index::sample;

use super::context::{catch_stop, check_stop};
use crate::bank::{Bank, InstanceRecord, Kind, MosaicRecord, RecordId, format::FOREGROUND};
use crate::dataset::write_beside;
use crate::error::{Error, Result};
use crate::picture::{Overlay, image_png};
use crate::rng;

/// Pixels between the tiles.
const GAP: u32 = 4;
/// Colour between the tiles.
const PAPER: Rgb<u8> = Rgb([24, 24, 27]);
/// The two greys behind a cut-out object.
const CHECKS: [u8; 2] = [205, 235];
/// Side of a square of the chequered ground, pixels.
const CHECK: u32 = 8;

/// Draw a contact sheet of a bank's mosaics with their masks, or of its instances
///
/// Where the bank holds no mosaics (or with --instances) cut-out instances are drawn. The same
/// bank, options and seed give the same sheet.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank show --bank bank/ --out grid.png\n  \
    mosaicbank show --bank bank/ --category teapot --n 16 --out teapots.png\n  \
    mosaicbank show --bank bank/ --instances --n 64 --tile 96 --out instances.png")]
pub struct ShowArgs {
    /// The bank's directory
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// Only what holds this category
    #[arg(long, value_name = "NAME")]
    category: Option<String>,
    /// Tiles
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    n: u32,
    /// Columns [default: as square as it gets]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    columns: Option<u32>,
    /// Longest side of a tile, pixels
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=2048))]
    tile: u32,
    /// Draw cut-out instances instead of mosaics
    #[arg(long)]
    instances: bool,
    /// Draw the pictures alone, without masks, boxes and names
    #[arg(long)]
    plain: bool,
    /// Decides which are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The PNG to write
    #[arg(long, value_name = "PNG")]
    out: PathBuf,
}

/// Runs `mosaicbank show`.
///
/// # Errors
/// A bank that cannot be read or holds nothing to draw, an unknown category, or a file that
/// cannot be written.
pub fn run(args: &ShowArgs) -> Result<()> {
    catch_stop()?;
    let bank = Bank::open(&args.bank)?;
    let category = args
        .category
        .as_deref()
        .map(|name| bank.category(name))
        .transpose()?;
    let mut kind = if args.instances {
        Kind::Instance
    } else {
        Kind::Mosaic
    };
    let mut ids = ids(&bank, kind, category)?;
    if ids.is_empty() && kind == Kind::Mosaic {
        kind = Kind::Instance;
        ids = self::ids(&bank, kind, category)?;
    }
    if ids.is_empty() {
        return Err(Error::value(
            format!("bank {}", bank.path().display()),
            match &args.category {
                Some(name) => format!("mosaics or instances of {name:?}"),
                None => "mosaics or instances".to_owned(),
            },
            "none\nhint: mosaicbank prewarm --bank DIR fills a bank",
        ));
    }
    let mut draw = rng::keyed(args.seed, "show", 0);
    let mut chosen = sample(&mut draw, ids.len(), ids.len().min(args.n as usize)).into_vec();
    chosen.sort_unstable();
    let mut tiles = Vec::with_capacity(chosen.len());
    for id in chosen.into_iter().filter_map(|i| ids.get(i)) {
        check_stop()?;
        let tile = match kind {
            Kind::Mosaic => bank.mosaic(*id).and_then(|m| mosaic_tile(&bank, &m, args)),
            Kind::Instance => bank.instance(*id).and_then(|i| instance_tile(&i, args)),
        };
        match tile {
            Ok(tile) => tiles.push(tile),
            Err(e) => tracing::warn!("left out: {e}"),
        }
    }
    let sheet = arrange(&tiles, args)?;
    let (width, height) = sheet.dimensions();
    let png = image_png(&sheet)?;
    write_beside(&args.out, |out| out.write_all(&png))?;
    println!(
        "{}: {} of {} {}s, {width} x {height} px",
        args.out.display(),
        tiles.len(),
        ids.len(),
        kind.name()
    );
    Ok(())
}

/// The records of a kind, those of `category` where one is asked for.
fn ids(bank: &Bank, kind: Kind, category: Option<u32>) -> Result<Vec<RecordId>> {
    match category {
        None => bank.ids(kind),
        Some(category) => bank.ids_of(kind, category),
    }
}

fn mosaic_tile(bank: &Bank, mosaic: &MosaicRecord, args: &ShowArgs) -> Result<RgbImage> {
    let size = mosaic.size;
    let picture = RgbImage::from_raw(size.width, size.height, mosaic.image.clone())
        .ok_or_else(|| Error::backend("drawing a mosaic", "a picture of another size"))?;
    if args.plain {
        return Ok(picture);
    }
    let mut overlay = Overlay::new(&picture);
    for i in &mosaic.instances {
        let name = bank.categories().get(i.category as usize).map(|c| &c.name);
        overlay.draw(&i.mask, i.bbox, name.map_or("?", String::as_str));
    }
    Ok(overlay.into_picture())
}

/// A cut-out object on a chequered ground.
fn instance_tile(instance: &InstanceRecord, args: &ShowArgs) -> Result<RgbImage> {
    let size = instance.size;
    let mut picture = RgbImage::from_raw(size.width, size.height, instance.image.clone())
        .ok_or_else(|| Error::backend("drawing an instance", "a picture of another size"))?;
    if args.plain {
        return Ok(picture);
    }
    for ((x, y, pixel), alpha) in picture.enumerate_pixels_mut().zip(&instance.alpha) {
        if *alpha <= FOREGROUND {
            let dark = (x / CHECK + y / CHECK).is_multiple_of(2);
            *pixel = Rgb([CHECKS[usize::from(!dark)]; 3]);
        }
    }
    Ok(picture)
}

/// The tiles in rows, each made as large as its place allows.
fn arrange(tiles: &[RgbImage], args: &ShowArgs) -> Result<RgbImage> {
    let count = u32::try_from(tiles.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return Err(Error::value(
            "tiles",
            "at least one record that can be read",
            "none",
        ));
    }
    let columns = args
        .columns
        .unwrap_or_else(|| f64::from(count).sqrt().ceil() as u32)
        .min(count);
    let rows = count.div_ceil(columns);
    let step = args.tile + GAP;
    let mut sheet = RgbImage::from_pixel(columns * step + GAP, rows * step + GAP, PAPER);
    for (i, tile) in (0..).zip(tiles) {
        let (width, height) = tile.dimensions();
        let scale = f64::from(args.tile) / f64::from(width.max(height).max(1));
        let side = |n: u32| ((f64::from(n) * scale).round() as u32).clamp(1, args.tile);
        let filter = if scale > 1.0 {
            FilterType::Nearest
        } else {
            FilterType::Triangle
        };
        let tile = resize(tile, side(width), side(height), filter);
        let x = GAP + i % columns * step + (args.tile - tile.width()) / 2;
        let y = GAP + i / columns * step + (args.tile - tile.height()) / 2;
        overlay(&mut sheet, &tile, i64::from(x), i64::from(y));
    }
    Ok(sheet)
}
