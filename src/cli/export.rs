//! `mosaicbank export`: a folder of mosaics to an LVIS or COCO annotation file.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::export_bank;
use crate::dataset::{
    CategoryTable, ExportFormat, ExportOptions, Exporter, FIRST_IMAGE_ID, MaskFormat,
    MosaicRecord, record,
};
use crate::error::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// LVIS v1
    Lvis,
    /// COCO
    Coco,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Masks {
    /// COCO compressed RLE, exact
    Rle,
    /// Outlines with holes filled, for Detectron2's load_lvis_json and INPUT.MASK_FORMAT polygon
    Polygons,
}

/// Write an LVIS or COCO annotation file for a folder of mosaics
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Folder that `mosaicbank generate` wrote, or a bank (its pictures are then written beside
    /// the file, in the image folder)
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Style of the file
    #[arg(long, value_enum, default_value = "lvis")]
    format: Format,
    /// Annotation file (or list of categories) of the training set; without it the names and
    /// ids are those of the mosaics
    #[arg(long, value_name = "JSON")]
    categories: Option<PathBuf>,
    /// How masks are written
    #[arg(long, value_enum, default_value = "rle")]
    masks: Masks,
    /// Folder of the pictures below the training run's image root
    #[arg(long, value_name = "NAME", default_value = record::IMAGES)]
    image_folder: String,
    /// Id of the first image
    #[arg(long, value_name = "ID", default_value_t = FIRST_IMAGE_ID)]
    first_image_id: u64,
    /// File to write
    #[arg(long, value_name = "JSON")]
    out: PathBuf,
}

/// Runs `mosaicbank export` and says on standard output what was written.
///
/// # Errors
/// A folder, record or category that cannot be read, or a file that cannot be written.
pub fn run(args: &ExportArgs) -> Result<()> {
    let records = if export_bank::is_bank(&args.from) {
        let root = args.out.parent().unwrap_or(std::path::Path::new("."));
        export_bank::records(&args.from, &root.join(&args.image_folder))?
    } else {
        MosaicRecord::read_folder(&args.from)?
    };
    let table = match &args.categories {
        Some(path) => CategoryTable::read(path)?,
        None => Exporter::table_of(&records)?,
    };
    let options = ExportOptions {
        format: match args.format {
            Format::Lvis => ExportFormat::Lvis,
            Format::Coco => ExportFormat::Coco,
        },
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
    let report = exporter.write(&args.out)?;
    println!("{}: {report}", args.out.display());
    if args.format == Format::Lvis && args.masks == Masks::Rle {
        println!(
            "note: Detectron2's load_lvis_json and INPUT.MASK_FORMAT polygon take polygons only; \
             for them add `--masks polygons`"
        );
    }
    Ok(())
}
