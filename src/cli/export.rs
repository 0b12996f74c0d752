//! `mosaicbank export`: mosaics in the formats that other tools read.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::Bank;
use crate::bank::export::is_bank;
use crate::bank::import::read_picture;
use crate::dataset::{
    CategoryTable, Entry, ExportFormat, ExportOptions, Exporter, FIRST_IMAGE_ID, Folder,
    IMAGES, MaskFormat, folder, own_folder, write_beside, write_webdataset, write_yolo,
};
use crate::error::{Error, Result};
use crate::record::{Class, Mosaic};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// LVIS v1
    Lvis,
    /// COCO
    Coco,
    /// A folder with pictures, polygons as text, and data.yaml (Ultralytics' YOLO, segmentation)
    Yolo,
    /// A folder of WebDataset tar shards: <id>.png and <id>.json for each mosaic
    Webdataset,
    /// A folder of mosaics as `generate` writes it, with everything that is known of each;
    /// `import --mosaics` reads it
    Mosaics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Masks {
    /// COCO compressed RLE, exact
    Rle,
    /// Outlines with holes filled, for Detectron2's load_lvis_json and INPUT.MASK_FORMAT polygon
    Polygons,
}

/// Write mosaics as LVIS, COCO, YOLO or WebDataset files, or as a folder to import again
///
/// LVIS and COCO are one annotation file, which FiftyOne, CVAT and Detectron2 read, too; the others
/// are folders.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank export --from bank/ --out synthetic/annotations.json\n  \
    mosaicbank export --from bank/ --format lvis --masks polygons --out synthetic/train.json\n  \
    mosaicbank export --from out/ --format yolo --out yolo/\n  \
    mosaicbank export --from bank/ --format webdataset --shard-size 500 --out shards/\n  \
    mosaicbank export --from bank/ --format mosaics --out copy/")]
pub struct ExportArgs {
    /// Folder that `mosaicbank generate` wrote, or a bank (for LVIS and COCO its pictures are
    /// written beside the file, in the image folder)
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "lvis")]
    format: Format,
    /// Annotation file (or list of categories) of the training set; without it the names and
    /// ids are those of the mosaics
    #[arg(long, value_name = "JSON")]
    categories: Option<PathBuf>,
    /// How masks are written (LVIS and COCO)
    #[arg(long, value_enum, default_value = "rle")]
    masks: Masks,
    /// Folder of the pictures below the training run's image root (LVIS and COCO)
    #[arg(long, value_name = "NAME", default_value = IMAGES)]
    image_folder: String,
    /// Id of the first image (LVIS and COCO)
    #[arg(long, value_name = "ID", default_value_t = FIRST_IMAGE_ID)]
    first_image_id: u64,
    /// Mosaics in a shard (WebDataset)
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: u32,
    /// File (LVIS and COCO) or folder (all others) to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

/// Where mosaics come from.
enum Source<'a> {
    Folder(&'a Path),
    Bank(Box<Bank>),
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        Ok(if is_bank(path) {
            Self::Bank(Box::new(Bank::open(path)?))
        } else {
            Self::Folder(path)
        })
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        match self {
            Self::Folder(path) => Entry::read_folder(path),
            Self::Bank(bank) => {
                let mut counter = Counter::new("mosaics read");
                let entries = bank.entries(&mut |done, of| {
                    counter.set(done, of);
                    check_stop()
                });
                counter.finish();
                entries
            }
        }
    }

    fn table(&self, entries: &[Entry]) -> Result<CategoryTable> {
        match self {
            Self::Folder(_) => Exporter::table_of(entries),
            Self::Bank(bank) => bank.category_table(),
        }
    }

    /// The entry's picture as a PNG file.
    fn picture(&self, entry: &Entry) -> Result<Vec<u8>> {
        match self {
            Self::Folder(path) => {
                let path = entry.picture_in(path);
                std::fs::read(&path).map_err(|e| Error::io(&path, e))
            }
            Self::Bank(bank) => bank.picture_of(entry),
        }
    }

    /// The entry's mosaic with its picture.
    fn whole(&self, entry: &Entry) -> Result<Mosaic<Class>> {
        match self {
            Self::Folder(path) => {
                let (_, image, _) = read_picture(&entry.picture_in(path))?;
                let mosaic = entry.mosaic.clone();
                Ok(Mosaic { image, ..mosaic })
            }
            Self::Bank(bank) => bank.whole(entry),
        }
    }

    fn recipes_into(&self, out: &Folder, entries: &[Entry]) -> Result<()> {
        match self {
            Self::Folder(path) => folder::recipes(path)?
                .iter()
                .try_for_each(|(hash, text)| out.keep_recipe(hash, text)),
            Self::Bank(bank) => bank.recipes_into(out, entries),
        }
    }
}

/// Writes a folder of mosaics.
fn write_mosaics(source: &Source<'_>, entries: &[Entry], out: &Path) -> Result<()> {
    let folder = Folder::open(out, "export", false)?;
    source.recipes_into(&folder, entries)?;
    let mut counter = Counter::new("mosaics");
    for (i, entry) in entries.iter().enumerate() {
        check_stop()?;
        counter.set(i as u64, entries.len() as u64);
        folder.write(&source.whole(entry)?)?;
    }
    counter.finish();
    println!("{}: {} mosaics", out.display(), entries.len());
    Ok(())
}

/// Runs `mosaicbank export` and says on standard output what was written.
///
/// # Errors
/// A folder, record or category that cannot be read, or a file that cannot be written.
pub fn run(args: &ExportArgs) -> Result<()> {
    catch_stop()?;
    let source = Source::open(&args.from)?;
    let entries = source.entries()?;
    if args.format == Format::Mosaics {
        return write_mosaics(&source, &entries, &args.out);
    }
    let table = match &args.categories {
        Some(path) => CategoryTable::read(path)?,
        None => source.table(&entries)?,
    };
    let mut counter = Counter::new("pictures");
    let mut written = 0;
    let mut picture = |entry: &Entry| {
        check_stop()?;
        counter.set(written, entries.len() as u64);
        written += 1;
        source.picture(entry)
    };
    let out = args.out.display();
    let format = match args.format {
        Format::Yolo => {
            own_folder(&args.out, "export", false)?;
            let (images, instances) = write_yolo(&args.out, &entries, &table, &mut picture)?;
            counter.finish();
            println!("{out}: {images} images, {instances} instances");
            return Ok(());
        }
        Format::Webdataset => {
            own_folder(&args.out, "export", false)?;
            let per_shard = args.shard_size as usize;
            let (shards, images, instances) =
                write_webdataset(&args.out, &entries, &table, per_shard, &mut picture)?;
            counter.finish();
            println!("{out}: {shards} shards, {images} images, {instances} instances");
            return Ok(());
        }
        Format::Coco => ExportFormat::Coco,
        Format::Lvis | Format::Mosaics => ExportFormat::Lvis,
    };
    let options = ExportOptions {
        format,
        masks: match args.masks {
            Masks::Rle => MaskFormat::Rle,
            Masks::Polygons => MaskFormat::Polygons,
        },
        first_image_id: args.first_image_id,
        image_folder: args.image_folder.clone(),
        ..ExportOptions::default()
    };
    let mut exporter = Exporter::new(table, options)?;
    for entry in &entries {
        exporter.add(entry)?;
    }
    if matches!(source, Source::Bank(_)) {
        let root = args.out.parent().unwrap_or(Path::new("."));
        let folder = root.join(&args.image_folder);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let full = entries.iter().filter(|e| !e.mosaic.instances.is_empty());
        for entry in full {
            let png = picture(entry)?;
            write_beside(&folder.join(&entry.file_name), |f| f.write_all(&png))?;
        }
    }
    counter.finish();
    let report = exporter.write(&args.out)?;
    println!("{out}: {report}");
    if args.format == Format::Lvis && args.masks == Masks::Rle {
        println!(
            "note: Detectron2's load_lvis_json and INPUT.MASK_FORMAT polygon take polygons only; \
             for them add `--masks polygons`"
        );
    }
    Ok(())
}
