//! LVIS/COCO JSON: categories and frequencies in, annotations and merged files out.
//!
//! ```text
//! train.json -> CategoryTable, Dataset          (category, reader)
//! folder of mosaics <-> Entry                   (entry, folder)
//! Entry -> Exporter -> synthetic.json           (export, mark)
//! train.json + synthetic.json -> merged.json    (merge)
//! Entry -> YOLO folder, tar shards              (yolo, webdataset)
//! ```
//!
//! No pixel is read or changed here; the room `picture` writes them.

pub mod category;
mod entry;
pub mod export;
mod file;
pub mod folder;
mod mark;
pub mod merge;
mod own_folder;
pub mod reader;
pub mod vocabulary;
mod webdataset;
mod yolo;

pub use category::{Category, CategoryTable, Frequency};
pub use entry::{Entry, IMAGES};
pub use export::{
    ExportFormat, ExportOptions, ExportReport, Exporter, FIRST_IMAGE_ID, MaskFormat,
};
pub use file::write_beside;
pub use folder::Folder;
pub use mark::SourceMark;
pub use merge::{MergeReport, merge_files};
pub use own_folder::own_folder;
pub use reader::{Annotation, Dataset, ImageEntry, RawCounts, ReadOptions, Segmentation};
pub use vocabulary::{Alias, Aliases, Vocabulary, Words};
pub use webdataset::write_webdataset;
pub use yolo::{label_text, single_outline, write_yolo};
