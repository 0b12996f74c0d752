//! From mosaics to an LVIS or COCO annotation file.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::category::{Category, CategoryTable, Frequency};
use super::entry::{Entry, IMAGES};
use super::file::write_beside;
use super::mark::SourceMark;
use crate::error::{Error, Result};
use crate::mask::Rle;
use crate::record::{Class, RecordId, Scores};

/// Id of the first synthetic image; LVIS and COCO end at 581,929.
pub const FIRST_IMAGE_ID: u64 = 1_000_000;

/// Which style of annotation file to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// LVIS v1: federated lists on every image, frequencies and counts on every category.
    #[default]
    Lvis,
    /// COCO: without those.
    Coco,
}

/// How masks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskFormat {
    /// COCO's compressed RLE: exact.
    #[default]
    Rle,
    /// Outlines (holes are filled), for Detectron2's `load_lvis_json` and
    /// `INPUT.MASK_FORMAT: polygon`, which take nothing else.
    Polygons,
}

/// How an annotation file is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// LVIS or COCO.
    pub format: ExportFormat,
    /// RLE or polygons.
    pub masks: MaskFormat,
    /// Id of the first image.
    pub first_image_id: u64,
    /// Id of the first annotation.
    pub first_annotation_id: u64,
    /// Folder of the pictures as seen from the image root of the training run; file names are
    /// `<folder>/<picture>`. Empty for none.
    pub image_folder: String,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            format: ExportFormat::Lvis,
            masks: MaskFormat::Rle,
            first_image_id: FIRST_IMAGE_ID,
            first_annotation_id: 1,
            image_folder: IMAGES.into(),
        }
    }
}

/// The mark on a synthetic annotation (key `mosaicbank`).
#[derive(Debug, Clone, PartialEq, Serialize)]
struct InstanceMark {
    region: u32,
    prompt: String,
    score: f32,
    #[serde(skip_serializing_if = "Scores::is_empty")]
    scores: Scores,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outline {
    Rle(Rle),
    Polygons(Vec<Vec<f64>>),
}

#[derive(Debug, Serialize)]
struct ImageOut {
    id: u64,
    file_name: String,
    /// Detectron2 takes LVIS file names from the last two parts of this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    coco_url: Option<String>,
    height: u32,
    width: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    neg_category_ids: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_exhaustive_category_ids: Option<Vec<u64>>,
    mosaicbank: SourceMark,
}

#[derive(Debug, Serialize)]
struct AnnotationOut {
    id: u64,
    image_id: u64,
    category_id: u64,
    bbox: [u32; 4],
    area: u64,
    iscrowd: u8,
    segmentation: Outline,
    mosaicbank: InstanceMark,
}

#[derive(Debug, Serialize)]
struct CategoryOut<'a> {
    id: u64,
    name: &'a str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    more: Option<LvisCategory<'a>>,
}

#[derive(Debug, Serialize)]
struct LvisCategory<'a> {
    synset: &'a str,
    def: &'a str,
    synonyms: &'a [String],
    frequency: Frequency,
    image_count: u64,
    instance_count: u64,
}

#[derive(Debug, Serialize)]
struct FileOut<'a> {
    info: Info,
    licenses: [(); 0],
    images: &'a [ImageOut],
    annotations: &'a [AnnotationOut],
    categories: Vec<CategoryOut<'a>>,
}

#[derive(Debug, Serialize)]
struct Info {
    description: &'static str,
    version: &'static str,
}

/// What an export holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportReport {
    /// Images written.
    pub images: usize,
    /// Annotations written.
    pub annotations: usize,
    /// Categories that have at least one annotation.
    pub categories: usize,
    /// Mosaics left out because they have no instance.
    pub empty: usize,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} images, {} annotations of {} categories ({} mosaics without an instance left out)",
            self.images, self.annotations, self.categories, self.empty
        )
    }
}

/// Builds an annotation file, mosaic by mosaic.
#[derive(Debug)]
pub struct Exporter {
    table: CategoryTable,
    options: ExportOptions,
    images: Vec<ImageOut>,
    annotations: Vec<AnnotationOut>,
    /// Images and instances of each category.
    counts: HashMap<u64, (u64, u64)>,
    file_names: HashMap<String, RecordId>,
    empty: usize,
}

impl Exporter {
    /// An empty file with the categories of `table`.
    ///
    /// # Errors
    /// [`Error::Value`] when the image folder is absolute or climbs (`..`).
    pub fn new(table: CategoryTable, options: ExportOptions) -> Result<Self> {
        let folder = Path::new(&options.image_folder);
        let plain = folder
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain {
            return Err(Error::value(
                "image folder",
                "a folder below the image root, without `..`",
                format!("{:?}", options.image_folder),
            ));
        }
        Ok(Self {
            table,
            options,
            images: Vec::new(),
            annotations: Vec::new(),
            counts: HashMap::new(),
            file_names: HashMap::new(),
            empty: 0,
        })
    }

    /// The table for mosaics that come without one: the ids that the records give, or, when no
    /// record gives any, ids from 1 in the order of the names.
    ///
    /// # Errors
    /// [`Error::Value`] when a name has two ids, an id two names, or only some have ids.
    pub fn table_of(entries: &[Entry]) -> Result<CategoryTable> {
        let used: BTreeSet<(&str, Option<u64>)> = entries
            .iter()
            .flat_map(|e| {
                let regions = e.mosaic.regions.iter().map(|r| &r.category);
                regions.chain(e.mosaic.instances.iter().map(|i| &i.category))
            })
            .map(|c| (c.name.as_str(), c.id))
            .collect();
        let given = used.iter().filter(|(_, id)| id.is_some()).count();
        if given == 0 {
            return CategoryTable::from_names(used.iter().map(|(name, _)| *name));
        }
        let bare = used.iter().find(|(_, id)| id.is_none());
        if let Some((name, _)) = bare {
            return Err(Error::value(
                "the records' categories",
                "an id for each, or for none",
                format!("none for {name:?}\nhint: give a category table (--categories)"),
            ));
        }
        let categories = used
            .iter()
            .filter_map(|&(name, id)| {
                Some(Category {
                    id: id?,
                    name: name.into(),
                    synset: String::new(),
                    definition: String::new(),
                    synonyms: vec![name.into()],
                    frequency: Frequency::Rare,
                    image_count: 0,
                    instance_count: 0,
                })
            })
            .collect();
        CategoryTable::new("the mosaic records", categories)
    }

    /// Adds a mosaic; one without instances is counted and left out. Categories are found in
    /// the table by name; where regions failed beside kept ones, their categories become
    /// `not_exhaustive_category_ids` (LVIS), since their objects are in the picture unlabelled.
    ///
    /// # Errors
    /// [`Error::UnknownCategory`]; [`Error::Value`] when the record's category id is another
    /// than the table's, or two mosaics have the same picture.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        let record = &entry.mosaic;
        if record.instances.is_empty() {
            self.empty += 1;
            return Ok(());
        }
        let lookup = |class: &Class| -> Result<u64> {
            let found = self.table.get(&class.name)?.id;
            match class.id {
                Some(id) if id != found => Err(Error::value(
                    format!("mosaic {}: category {:?}", record.id, class.name),
                    format!("id {found}, as in {}", self.table.place()),
                    id,
                )),
                _ => Ok(found),
            }
        };
        let categories = record
            .instances
            .iter()
            .map(|i| lookup(&i.category))
            .collect::<Result<Vec<_>>>()?;
        let failed = record
            .not_exhaustive()
            .into_iter()
            .map(lookup)
            .collect::<Result<BTreeSet<_>>>()?;
        let folder = self.options.image_folder.trim_end_matches('/');
        let file_name = if folder.is_empty() {
            entry.file_name.clone()
        } else {
            format!("{folder}/{}", entry.file_name)
        };
        if let Some(other) = self.file_names.insert(file_name.clone(), record.id) {
            return Err(Error::value(
                format!("mosaic {}: file_name", record.id),
                format!("another picture than that of mosaic {other}"),
                file_name,
            ));
        }
        let lvis = self.options.format == ExportFormat::Lvis;
        let image_id = self.options.first_image_id + self.images.len() as u64;
        for (instance, &category_id) in record.instances.iter().zip(&categories) {
            let segmentation = match self.options.masks {
                MaskFormat::Rle => Outline::Rle(instance.mask.clone()),
                MaskFormat::Polygons => Outline::Polygons(instance.mask.to_polygons()),
            };
            self.annotations.push(AnnotationOut {
                id: self.options.first_annotation_id + self.annotations.len() as u64,
                image_id,
                category_id,
                bbox: instance.bbox.to_xywh(),
                area: instance.area,
                iscrowd: 0,
                segmentation,
                mosaicbank: InstanceMark {
                    region: instance.region,
                    prompt: record
                        .regions
                        .get(instance.region as usize)
                        .map(|r| r.prompt.clone())
                        .unwrap_or_default(),
                    score: instance.score,
                    scores: instance.scores.clone(),
                },
            });
            self.counts.entry(category_id).or_default().1 += 1;
        }
        for id in categories.iter().collect::<BTreeSet<_>>() {
            self.counts.entry(*id).or_default().0 += 1;
        }
        self.images.push(ImageOut {
            id: image_id,
            coco_url: lvis.then(|| format!("mosaicbank://{file_name}")),
            file_name,
            height: record.size.height,
            width: record.size.width,
            neg_category_ids: lvis.then(Vec::new),
            not_exhaustive_category_ids: lvis.then(|| failed.into_iter().collect()),
            mosaicbank: SourceMark {
                mosaic: record.id.to_string(),
                seed: record.seed,
                recipe: record.recipe.clone(),
                model: record.model.clone(),
                weights: record.weights.clone(),
            },
        });
        Ok(())
    }

    /// What the file holds so far.
    pub fn report(&self) -> ExportReport {
        ExportReport {
            images: self.images.len(),
            annotations: self.annotations.len(),
            categories: self.counts.len(),
            empty: self.empty,
        }
    }

    /// Writes the file beside its place and renames it.
    ///
    /// Image and instance counts are those of this file; frequencies stay the table's.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::NotFound`] naming the path.
    pub fn write(&self, path: &Path) -> Result<ExportReport> {
        let categories = self
            .table
            .categories()
            .iter()
            .map(|c| {
                let (images, instances) = self.counts.get(&c.id).copied().unwrap_or((0, 0));
                CategoryOut {
                    id: c.id,
                    name: &c.name,
                    more: (self.options.format == ExportFormat::Lvis).then(|| LvisCategory {
                        synset: &c.synset,
                        def: &c.definition,
                        synonyms: &c.synonyms,
                        frequency: c.frequency,
                        image_count: images,
                        instance_count: instances,
                    }),
                }
            })
            .collect();
        let file = FileOut {
            info: Info {
                description: "synthetic mosaics by mosaicbank",
                version: env!("CARGO_PKG_VERSION"),
            },
            licenses: [],
            images: &self.images,
            annotations: &self.annotations,
            categories,
        };
        write_beside(path, |out| {
            serde_json::to_writer(&mut *out, &file).map_err(std::io::Error::from)?;
            out.write_all(b"\n")
        })?;
        Ok(self.report())
    }
}
