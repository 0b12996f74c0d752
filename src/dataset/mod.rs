//! LVIS/COCO JSON: categories and frequencies in, annotations and merged files out.
//!
//! ```text
//! train.json -> CategoryTable, Dataset          (category, reader)
//! folder of mosaics -> MosaicRecord             (record)
//! MosaicRecord -> Exporter -> synthetic.json    (export)
//! train.json + synthetic.json -> merged.json    (merge)
//! ```
//!
//! No pixel is read or written here.

pub mod category;
pub mod export;
mod file;
pub mod merge;
pub mod reader;
pub mod record;

pub use category::{Category, CategoryTable, Frequency};
pub use export::{
    ExportFormat, ExportOptions, ExportReport, Exporter, FIRST_IMAGE_ID, MaskFormat, SourceMark,
};
pub use file::write_beside;
pub use merge::{MergeReport, merge_files};
pub use reader::{Annotation, Dataset, ImageEntry, RawCounts, ReadOptions, Segmentation};
pub use record::{InstanceRecord, MosaicRecord, RECORD_FORMAT, RegionRecord};
