//! `mosaicbank export`: mosaics in the formats that other tools read.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::context::{catch_stop, check_stop};
use super::export_bank;
use super::folder::own_folder;
use super::progress::Counter;
use crate::bank::Bank;
use crate::dataset::{
    CategoryTable, ExportFormat, ExportOptions, Exporter, FIRST_IMAGE_ID, MaskFormat,
    MosaicRecord, record, write_beside, write_webdataset, write_yolo,
};
use crate::error::{Error, Result};

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Masks {
    /// COCO compressed RLE, exact
    Rle,
    /// Outlines with holes filled, for Detectron2's load_lvis_json and INPUT.MASK_FORMAT polygon
    Polygons,
}

/// Write mosaics as LVIS, COCO, YOLO or WebDataset files
///
/// LVIS and COCO are one annotation file, which FiftyOne, CVAT and Detectron2 read, too; YOLO and
/// WebDataset are folders.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank export --from bank/ --out synthetic/annotations.json\n  \
    mosaicbank export --from bank/ --format lvis --masks polygons --out synthetic/train.json\n  \
    mosaicbank export --from out/ --format yolo --out yolo/\n  \
    mosaicbank export --from bank/ --format webdataset --shard-size 500 --out shards/")]
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
    #[arg(long, value_name = "NAME", default_value = record::IMAGES)]
    image_folder: String,
    /// Id of the first image (LVIS and COCO)
    #[arg(long, value_name = "ID", default_value_t = FIRST_IMAGE_ID)]
    first_image_id: u64,
    /// Mosaics in a shard (WebDataset)
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: u32,
    /// File (LVIS and COCO) or folder (YOLO and WebDataset) to write
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
        Ok(if export_bank::is_bank(path) {
            Self::Bank(Box::new(Bank::open(path)?))
        } else {
            Self::Folder(path)
        })
    }

    fn records(&self) -> Result<Vec<MosaicRecord>> {
        match self {
            Self::Folder(path) => MosaicRecord::read_folder(path),
            Self::Bank(bank) => export_bank::records(bank),
        }
    }

    fn table(&self, records: &[MosaicRecord]) -> Result<CategoryTable> {
        match self {
            Self::Folder(_) => Exporter::table_of(records),
            Self::Bank(bank) => export_bank::table(bank),
        }
    }

    /// The record's picture as a PNG file.
    fn picture(&self, record: &MosaicRecord) -> Result<Vec<u8>> {
        match self {
            Self::Folder(path) => {
                let path = path.join(record::IMAGES).join(&record.file_name);
                std::fs::read(&path).map_err(|e| Error::io(&path, e))
            }
            Self::Bank(bank) => export_bank::picture(bank, record),
        }
    }
}

/// Runs `mosaicbank export` and says on standard output what was written.
///
/// # Errors
/// A folder, record or category that cannot be read, or a file that cannot be written.
pub fn run(args: &ExportArgs) -> Result<()> {
    catch_stop()?;
    let source = Source::open(&args.from)?;
    let records = source.records()?;
    let table = match &args.categories {
        Some(path) => CategoryTable::read(path)?,
        None => source.table(&records)?,
    };
    let mut counter = Counter::new("pictures");
    let mut written = 0;
    let mut picture = |record: &MosaicRecord| {
        check_stop()?;
        counter.set(written, records.len() as u64);
        written += 1;
        source.picture(record)
    };
    let out = args.out.display();
    let format = match args.format {
        Format::Yolo => {
            own_folder(&args.out, "export", false)?;
            let (images, instances) = write_yolo(&args.out, &records, &table, &mut picture)?;
            counter.finish();
            println!("{out}: {images} images, {instances} instances");
            return Ok(());
        }
        Format::Webdataset => {
            own_folder(&args.out, "export", false)?;
            let per_shard = args.shard_size as usize;
            let (shards, images, instances) =
                write_webdataset(&args.out, &records, &table, per_shard, &mut picture)?;
            counter.finish();
            println!("{out}: {shards} shards, {images} images, {instances} instances");
            return Ok(());
        }
        Format::Lvis => ExportFormat::Lvis,
        Format::Coco => ExportFormat::Coco,
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
    for record in &records {
        exporter.add(record)?;
    }
    if matches!(source, Source::Bank(_)) {
        let root = args.out.parent().unwrap_or(Path::new("."));
        let folder = root.join(&args.image_folder);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        for record in records.iter().filter(|r| !r.instances.is_empty()) {
            let png = picture(record)?;
            write_beside(&folder.join(&record.file_name), |f| f.write_all(&png))?;
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
