//! LVIS/COCO JSON: categories and frequencies in, annotations and merged files out.
//!
//! ```text
//! train.json -> CategoryTable, Dataset          (category, reader)
//! folder of mosaics -> MosaicRecord             (record)
//! MosaicRecord -> Exporter -> synthetic.json    (export)
//! train.json + synthetic.json -> merged.json    (merge)
//! MosaicRecord -> YOLO folder, tar shards       (yolo, webdataset)
//! ```
//!
//! No pixel is read or changed here.

pub mod category;
pub mod export;
mod file;
pub mod merge;
pub mod reader;
pub mod record;
pub mod vocabulary;
mod webdataset;
mod yolo;

pub use category::{Category, CategoryTable, Frequency};
pub use export::{
    ExportFormat, ExportOptions, ExportReport, Exporter, FIRST_IMAGE_ID, MaskFormat, SourceMark,
};
pub use file::write_beside;
pub use merge::{MergeReport, merge_files};
pub use reader::{Annotation, Dataset, ImageEntry, RawCounts, ReadOptions, Segmentation};
pub use record::{InstanceRecord, MosaicRecord, RECORD_FORMAT, RegionRecord};
pub use vocabulary::{Alias, Aliases, Vocabulary, Words};
pub use webdataset::write_webdataset;
pub use yolo::{label_text, single_outline, write_yolo};
