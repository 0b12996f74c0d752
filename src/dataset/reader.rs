//! LVIS and COCO annotation files in.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::category::{CategoryFields, CategoryTable, count_pairs};
use super::file::{
    JsonFile, KeyRule, Nth, Record, explain, is_id, is_ids, is_side, is_text, kind, records,
};
use super::mark::SourceMark;
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::Rle;

/// An image of an annotation file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ImageEntry {
    /// Id, unique in the file.
    pub id: u64,
    /// File name; LVIS v1 files give a `coco_url` instead.
    pub file_name: Option<String>,
    /// Download address, whose last two parts are split and file name in LVIS v1.
    pub coco_url: Option<String>,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// Federated annotation: categories verified as absent.
    #[serde(default)]
    pub neg_category_ids: Vec<u64>,
    /// Federated annotation: categories of which not every instance is annotated.
    #[serde(default)]
    pub not_exhaustive_category_ids: Vec<u64>,
    /// Present on a generated image.
    pub mosaicbank: Option<SourceMark>,
}

impl ImageEntry {
    /// Height and width.
    pub const fn size(&self) -> Size {
        Size::new(self.height, self.width)
    }

    /// The image's path below the image root: the file name, or the last two parts of
    /// `coco_url` (`train2017/000000000009.jpg`).
    pub fn path(&self) -> Option<String> {
        self.file_name.clone().or_else(|| {
            let mut parts = self.coco_url.as_deref()?.rsplit('/');
            let name = parts.next()?;
            let split = parts.next()?;
            Some(format!("{split}/{name}"))
        })
    }
}

impl Record for ImageEntry {
    const LIST: &'static str = "images";

    fn keys() -> &'static [KeyRule] {
        &[
            ("id", true, "a whole number", is_id),
            ("height", true, "a number of pixels", is_side),
            ("width", true, "a number of pixels", is_side),
            ("file_name", false, "text", |v| is_text(v) || v.is_null()),
            ("coco_url", false, "text", |v| is_text(v) || v.is_null()),
            ("neg_category_ids", false, "a list of ids", is_ids),
            (
                "not_exhaustive_category_ids",
                false,
                "a list of ids",
                is_ids,
            ),
            ("mosaicbank", false, "a source mark", |v| {
                v.is_null() || SourceMark::deserialize(v).is_ok()
            }),
        ]
    }
}

/// Run lengths as files hold them, not yet checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RawCounts {
    /// COCO's compressed string.
    Compressed(String),
    /// The plain list.
    Plain(Vec<u32>),
}

/// An annotation's outline, as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Segmentation {
    /// Flat `[x0, y0, x1, y1, ...]` lists, in pixels.
    Polygons(Vec<Vec<f64>>),
    /// Run lengths.
    Rle {
        /// `[height, width]`.
        size: [u32; 2],
        /// The runs.
        counts: RawCounts,
    },
}

impl<'de> Deserialize<'de> for Segmentation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Outline;
        impl<'de> Visitor<'de> for Outline {
            type Value = Segmentation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("polygons or an RLE")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut polygons = Vec::new();
                while let Some(mut polygon) = seq.next_element::<Vec<f64>>()? {
                    polygon.shrink_to_fit();
                    polygons.push(polygon);
                }
                Ok(Segmentation::Polygons(polygons))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                #[derive(Deserialize)]
                struct Fields {
                    size: [u32; 2],
                    counts: RawCounts,
                }
                let fields = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Segmentation::Rle {
                    size: fields.size,
                    counts: fields.counts,
                })
            }
        }
        deserializer.deserialize_any(Outline)
    }
}

impl Segmentation {
    /// The mask on an image of `size`.
    ///
    /// # Errors
    /// [`Error::Value`] when the runs or polygons are not valid, or the runs are for another size.
    pub fn to_rle(&self, size: Size) -> Result<Rle> {
        match self {
            Self::Polygons(polygons) => Rle::from_polygons(polygons, size),
            Self::Rle {
                size: [h, w],
                counts,
            } => {
                if Size::new(*h, *w) != size {
                    return Err(Error::value(
                        "RLE size",
                        format!("[{}, {}], as the image", size.height, size.width),
                        format!("[{h}, {w}]"),
                    ));
                }
                match counts {
                    RawCounts::Compressed(text) => Rle::from_coco_string(text, size),
                    RawCounts::Plain(counts) => Rle::new(size, counts),
                }
            }
        }
    }
}

/// One annotated object.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// Id, unique in the file.
    pub id: u64,
    /// The image's id.
    pub image_id: u64,
    /// The category's id.
    pub category_id: u64,
    /// Area in pixels, as the file says.
    pub area: f64,
    /// `[x, y, width, height]` in pixels, as the file says.
    pub bbox: [f64; 4],
    /// Whether it stands for a crowd.
    pub iscrowd: bool,
    /// The outline; `None` where the file has none or it was not asked for.
    pub segmentation: Option<Segmentation>,
}

/// An annotation without its outline, which the parser then skips unread.
#[derive(Deserialize)]
struct AnnotationHead {
    id: u64,
    image_id: u64,
    category_id: u64,
    #[serde(default)]
    area: f64,
    #[serde(default)]
    bbox: [f64; 4],
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct AnnotationFull {
    id: u64,
    image_id: u64,
    category_id: u64,
    #[serde(default)]
    area: f64,
    #[serde(default)]
    bbox: [f64; 4],
    #[serde(default)]
    iscrowd: u8,
    segmentation: Option<Segmentation>,
}

impl From<AnnotationHead> for Annotation {
    fn from(a: AnnotationHead) -> Self {
        Self {
            id: a.id,
            image_id: a.image_id,
            category_id: a.category_id,
            area: a.area,
            bbox: a.bbox,
            iscrowd: a.iscrowd != 0,
            segmentation: None,
        }
    }
}

impl From<AnnotationFull> for Annotation {
    fn from(a: AnnotationFull) -> Self {
        Self {
            id: a.id,
            image_id: a.image_id,
            category_id: a.category_id,
            area: a.area,
            bbox: a.bbox,
            iscrowd: a.iscrowd != 0,
            segmentation: a.segmentation,
        }
    }
}

const ANNOTATION_KEYS: &[KeyRule] = &[
    ("id", true, "a whole number", is_id),
    ("image_id", true, "a whole number", is_id),
    ("category_id", true, "a whole number", is_id),
    ("area", false, "a number", Value::is_number),
    ("bbox", false, "[x, y, width, height]", |v| {
        v.as_array()
            .is_some_and(|a| a.len() == 4 && a.iter().all(Value::is_number))
    }),
    ("iscrowd", false, "0 or 1", |v| {
        v.as_u64().is_some_and(|n| n < 256)
    }),
    ("segmentation", false, "polygons or an RLE", |v| {
        v.is_null() || Segmentation::deserialize(v).is_ok()
    }),
];

impl Record for AnnotationHead {
    const LIST: &'static str = "annotations";

    fn keys() -> &'static [KeyRule] {
        ANNOTATION_KEYS
    }
}

impl Record for AnnotationFull {
    const LIST: &'static str = "annotations";

    fn keys() -> &'static [KeyRule] {
        ANNOTATION_KEYS
    }
}

/// Who is where, for counting.
#[derive(Deserialize)]
struct Pair {
    image_id: u64,
    category_id: u64,
}

impl Record for Pair {
    const LIST: &'static str = "annotations";

    fn keys() -> &'static [KeyRule] {
        &ANNOTATION_KEYS[1..3]
    }
}

#[derive(Deserialize)]
struct CategoriesOnly {
    #[serde(deserialize_with = "records")]
    categories: Vec<CategoryFields>,
}

#[derive(Deserialize)]
struct PairsOnly {
    #[serde(deserialize_with = "records", default)]
    annotations: Vec<Pair>,
}

#[derive(Deserialize)]
#[serde(bound = "A: Record + Deserialize<'de>")]
struct Whole<A> {
    #[serde(deserialize_with = "records")]
    images: Vec<ImageEntry>,
    #[serde(deserialize_with = "records")]
    annotations: Vec<A>,
    #[serde(deserialize_with = "records")]
    categories: Vec<CategoryFields>,
}

/// Reads the file as `T`; when it fails in a record, the error says which key is to blame.
fn parse<'a, T: Deserialize<'a>>(file: &'a JsonFile, expected: &str) -> Result<T> {
    serde_json::from_slice(file.bytes()).map_err(|e| match blame(file, &e.to_string()) {
        Some(why) => Error::format(file.path(), expected, why),
        None => file.error(expected, &e),
    })
}

/// For a parser message that starts with `list[index]`: that record again, key by key.
fn blame(file: &JsonFile, message: &str) -> Option<String> {
    let (list, rest) = message.split_once('[')?;
    let index = rest.split_once(']')?.0.parse().ok()?;
    let check = match list {
        "images" => explain::<ImageEntry>,
        "annotations" => explain::<AnnotationHead>,
        "categories" => explain::<CategoryFields>,
        _ => return None,
    };
    let record = nth_record(file, list, index)?;
    Some(format!("{list}[{index}]: {}", check(&record)?))
}

/// One record of a top-level list, or of the file itself when that is a list.
fn nth_record(file: &JsonFile, list: &str, index: usize) -> Option<Value> {
    struct Finder<'a>(&'a str, usize);
    impl<'de> Visitor<'de> for Finder<'_> {
        type Value = Option<Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<String>()? {
                if key == self.0 {
                    found = map.next_value_seed(Nth { index: self.1 })?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Nth { index: self.1 }.visit_seq(seq)
        }
    }
    let mut de = serde_json::Deserializer::from_slice(file.bytes());
    Deserializer::deserialize_any(&mut de, Finder(list, index)).ok()?
}

const EXPECTED: &str = "an LVIS or COCO annotation file";

impl CategoryTable {
    /// Reads the categories of an LVIS or COCO annotation file (nothing else of it is kept in
    /// memory), or a bare JSON list of categories.
    ///
    /// Counts that the file's categories lack are taken from its annotations; a missing
    /// frequency follows from the image count.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`]; [`Error::Format`] naming file, record and key.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        read_categories(&JsonFile::open(path.as_ref())?)
    }
}

pub(super) fn read_categories(file: &JsonFile) -> Result<CategoryTable> {
    let first = file.bytes().iter().find(|b| !b.is_ascii_whitespace());
    let fields = if first == Some(&b'[') {
        struct Bare(Vec<CategoryFields>);
        impl<'de> Deserialize<'de> for Bare {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                records(d).map(Self)
            }
        }
        let bare: Bare = parse(file, "a list of categories")?;
        return CategoryTable::from_fields(file.path(), bare.0, None);
    } else {
        parse::<CategoriesOnly>(file, EXPECTED)?.categories
    };
    let counts = if fields.iter().any(CategoryFields::needs_counts) {
        let pairs = parse::<PairsOnly>(file, EXPECTED)?.annotations;
        Some(count_pairs(
            pairs.iter().map(|p| (p.image_id, p.category_id)),
        ))
    } else {
        None
    };
    CategoryTable::from_fields(file.path(), fields, counts.as_ref())
}

/// What to read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Whether to keep the outlines; without them a file of LVIS v1 train's size takes about
    /// 180 MB of memory in place of 1.5 GB.
    pub segmentation: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { segmentation: true }
    }
}

/// An annotation file in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Where it was read from.
    pub path: PathBuf,
    /// The images, in the file's order.
    pub images: Vec<ImageEntry>,
    /// The annotations, in the file's order.
    pub annotations: Vec<Annotation>,
    /// The categories.
    pub categories: CategoryTable,
    by_image: HashMap<u64, usize>,
}

impl Dataset {
    /// Reads an LVIS or COCO annotation file, outlines included.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`]; [`Error::Format`], naming file, record index and
    /// key, when it is not such a file, an id occurs twice, or an annotation's image or category is
    /// not in the file. Outlines are checked when they are used: see [`Dataset::rle`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_with(path, ReadOptions::default())
    }

    /// Reads what `options` ask for.
    ///
    /// # Errors
    /// As [`Dataset::read`].
    pub fn read_with(path: impl AsRef<Path>, options: ReadOptions) -> Result<Self> {
        let file = JsonFile::open(path.as_ref())?;
        if options.segmentation {
            Self::build(&file, parse::<Whole<AnnotationFull>>(&file, EXPECTED)?)
        } else {
            Self::build(&file, parse::<Whole<AnnotationHead>>(&file, EXPECTED)?)
        }
    }

    fn build<A: Into<Annotation>>(file: &JsonFile, whole: Whole<A>) -> Result<Self> {
        let path = file.path();
        let record = |list: &str, i: usize, key: &str, expected: &str, got: u64| {
            Error::format(path, format!("{list}[{i}], key {key:?}: {expected}"), got)
        };
        let annotations: Vec<Annotation> =
            whole.annotations.into_iter().map(Into::into).collect();
        let mut by_image = HashMap::with_capacity(whole.images.len());
        for (i, image) in whole.images.iter().enumerate() {
            if by_image.insert(image.id, i).is_some() {
                return Err(record("images", i, "id", "an id used once", image.id));
            }
        }
        let counts = whole
            .categories
            .iter()
            .any(CategoryFields::needs_counts)
            .then(|| count_pairs(annotations.iter().map(|a| (a.image_id, a.category_id))));
        let categories = CategoryTable::from_fields(path, whole.categories, counts.as_ref())?;
        let mut ids = std::collections::HashSet::with_capacity(annotations.len());
        for (i, a) in annotations.iter().enumerate() {
            let bad = |key, expected, got| Err(record("annotations", i, key, expected, got));
            if !ids.insert(a.id) {
                return bad("id", "an id used once", a.id);
            }
            if !by_image.contains_key(&a.image_id) {
                return bad("image_id", "the id of an image of this file", a.image_id);
            }
            if categories.by_id(a.category_id).is_none() {
                return bad(
                    "category_id",
                    "the id of a category of this file",
                    a.category_id,
                );
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            images: whole.images,
            annotations,
            categories,
            by_image,
        })
    }

    /// Position in [`Dataset::images`] of an image id.
    pub fn image_index(&self, id: u64) -> Option<usize> {
        self.by_image.get(&id).copied()
    }

    /// For each image, the positions in [`Dataset::annotations`] of its annotations.
    pub fn annotations_by_image(&self) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); self.images.len()];
        for (i, a) in self.annotations.iter().enumerate() {
            if let Some(&image) = self.by_image.get(&a.image_id) {
                lists[image].push(i as u32);
            }
        }
        lists
    }

    /// The mask of an annotation (an index into [`Dataset::annotations`]) on its image.
    ///
    /// # Errors
    /// [`Error::Format`], naming file and record, when there is no such annotation, it has no
    /// outline, or its outline is not valid.
    pub fn rle(&self, index: usize) -> Result<Rle> {
        let place = self.path.join(format!("annotations[{index}]"));
        let annotation = self.annotations.get(index).ok_or_else(|| {
            Error::format(
                &self.path,
                format!("an index below {}", self.annotations.len()),
                format!("annotations[{index}]"),
            )
        })?;
        let image = self
            .image_index(annotation.image_id)
            .and_then(|i| self.images.get(i))
            .ok_or_else(|| Error::format(&place, "an image", annotation.image_id))?;
        let outline = annotation.segmentation.as_ref().ok_or_else(|| {
            Error::format(
                &place,
                "key \"segmentation\"",
                kind(&Value::Null) + " (or read without outlines)",
            )
        })?;
        outline
            .to_rle(image.size())
            .map_err(|e| Error::format(&place, "key \"segmentation\": a valid outline", e))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::PixelBox;

    const FILE: &str = r#"{
        "images": [
            {"id": 7, "file_name": "a.png", "height": 4, "width": 5, "neg_category_ids": [3]},
            {"id": 2, "coco_url": "http://x/train2017/b.jpg", "height": 4, "width": 5}
        ],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 3, "area": 4, "bbox": [1, 1, 2, 2],
             "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
            {"id": 5, "image_id": 7, "category_id": 3, "iscrowd": 1,
             "segmentation": {"counts": [5, 2, 13], "size": [4, 5]}},
            {"id": 6, "image_id": 2, "category_id": 3,
             "segmentation": {"size": [4, 5], "counts": "52=0"}},
            {"id": 8, "image_id": 2, "category_id": 3, "segmentation": null}
        ],
        "categories": [{"id": 3, "name": "cup", "more": {"x": []}}]
    }"#;

    fn read(text: &str, options: ReadOptions) -> Result<Dataset> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("file.json");
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
        Dataset::read_with(&path, options)
    }

    #[test]
    fn images_annotations_and_outlines() -> Result<()> {
        let d = read(FILE, ReadOptions::default())?;
        assert_eq!(d.images[0].path().as_deref(), Some("a.png"));
        assert_eq!(d.images[1].path().as_deref(), Some("train2017/b.jpg"));
        assert_eq!(d.images[0].neg_category_ids, [3]);
        assert_eq!(d.annotations_by_image(), [vec![1], vec![0, 2, 3]]);
        assert_eq!(d.rle(0)?.bbox(), Some(PixelBox::new(1, 1, 3, 3)));
        assert_eq!(d.rle(1)?.area(), 2);
        assert!(d.annotations[1].iscrowd);
        assert!(d.rle(3).is_err() && d.rle(4).is_err());
        let cup = d.categories.get("cup")?;
        assert_eq!((cup.image_count, cup.instance_count), (2, 4));
        let light = read(
            FILE,
            ReadOptions {
                segmentation: false,
            },
        )?;
        assert!(light.annotations.iter().all(|a| a.segmentation.is_none()));
        assert_eq!(light.annotations[0].bbox, [1.0, 1.0, 2.0, 2.0]);
        Ok(())
    }

    #[test]
    fn errors_name_file_record_and_key() {
        for (from, to, says) in [
            (r#""id": 7"#, r#""id": 2"#, r#"images[1], key "id""#),
            (
                r#""height": 4"#,
                r#""height": -4"#,
                r#"images[0]: key "height""#,
            ),
            (r#""id": 5"#, r#""id": 1"#, r#"annotations[1], key "id""#),
            (
                r#""image_id": 7"#,
                r#""image_id": 70"#,
                r#"annotations[1], key "image_id""#,
            ),
            (
                r#""category_id": 3, "iscrowd""#,
                r#""category_id": 4, "iscrowd""#,
                r#"annotations[1], key "category_id""#,
            ),
            (
                r#""bbox": [1, 1, 2, 2]"#,
                r#""bbox": [1, 1, 2]"#,
                r#"annotations[0]: key "bbox": expected [x, y, width, height], got a list of 3"#,
            ),
            (
                r#"[[1, 1, 3, 1, 3, 3, 1, 3]]"#,
                r#""none""#,
                r#"annotations[0]: key "segmentation""#,
            ),
            (r#""annotations""#, r#""annotation""#, "annotations"),
        ] {
            let e = read(&FILE.replacen(from, to, 1), ReadOptions::default())
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default();
            assert!(e.contains(says) && e.contains("file.json"), "{to}: {e}");
        }
        let spoilt = FILE.replace("[5, 2, 13]", "[5, 2, 14]");
        let e = read(&spoilt, ReadOptions::default())
            .and_then(|d| d.rle(1))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(
            e.contains("annotations[1]") && e.contains("add up to 21"),
            "{e}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A file with a few bytes changed is read or refused, never a panic.
        #[test]
        fn spoilt_files_are_errors(
            edits in prop::collection::vec((0usize..FILE.len(), "[0-9\\[\\]{},\":a-e.-]"), 1..6),
        ) {
            let mut text = FILE.to_string();
            for (at, with) in edits {
                text.replace_range(at..at + 1, &with);
            }
            if let Ok(d) = read(&text, ReadOptions::default()) {
                for i in 0..d.annotations.len() {
                    let _ = d.rle(i);
                }
            }
        }
    }
}
