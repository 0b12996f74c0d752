//! A training file and synthetic ones into one.
//!
//! The training file's own text is copied as it stands (records, unknown keys, the digits of
//! its numbers); the synthetic records are put at the end of its lists, and only its category list
//! is written anew, with the counts added.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::category::CategoryTable;
use super::export::FIRST_IMAGE_ID;
use super::file::{
    JsonFile, KeyRule, Record, explain, is_id, is_ids, kind, records, write_beside,
};
use super::mark::SourceMark;
use super::reader;
use crate::error::{Error, Result};

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergeReport {
    /// Images added.
    pub images: usize,
    /// Annotations added.
    pub annotations: usize,
    /// Synthetic images that the training file (or an earlier synthetic file) holds already:
    /// left out.
    pub already: usize,
    /// Ids of the first and the last image added.
    pub image_ids: Option<(u64, u64)>,
    /// Ids of the first and the last annotation added.
    pub annotation_ids: Option<(u64, u64)>,
    /// By category name: images and instances added.
    pub categories: BTreeMap<String, (u64, u64)>,
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "added {} images and {} annotations of {} categories",
            self.images,
            self.annotations,
            self.categories.len()
        )?;
        if self.already > 0 {
            write!(
                f,
                "; {} synthetic images were in the file already and are not added again",
                self.already
            )?;
        }
        Ok(())
    }
}

/// The top-level keys of a file, in order, unread.
struct Top<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Top<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Keys<'a> {
            type Value = Top<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top<'a>, A::Error> {
                let mut keys: Vec<(String, &'a RawValue)> = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if keys.iter().any(|(k, _)| *k == key) {
                        return Err(de::Error::custom(format!("key {key:?} occurs twice")));
                    }
                    keys.push((key, map.next_value()?));
                }
                Ok(Top(keys))
            }
        }
        deserializer.deserialize_map(Keys(std::marker::PhantomData))
    }
}

impl<'a> Top<'a> {
    fn get(&self, file: &JsonFile, key: &str) -> Result<&'a RawValue> {
        self.0
            .iter()
            .find_map(|(k, v)| (k == key).then_some(*v))
            .ok_or_else(|| {
                Error::format(
                    file.path(),
                    format!("key {key:?}, as in an LVIS or COCO annotation file"),
                    format!(
                        "only {:?}",
                        self.0.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>()
                    ),
                )
            })
    }
}

/// One of a file's lists, with the index of a bad record in the error.
fn list<R: Record + for<'d> Deserialize<'d>>(
    file: &JsonFile,
    raw: &RawValue,
) -> Result<Vec<R>> {
    let mut de = serde_json::Deserializer::from_str(raw.get());
    records::<_, R>(&mut de).map_err(|e| {
        let message = e.to_string();
        // The parser's position is within this list: say which key it is instead.
        let key = message
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']')?.0.parse::<usize>().ok())
            .and_then(|index| {
                let all: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
                let record: Value = serde_json::from_str(all.get(index)?.get()).ok()?;
                Some(format!("{}[{index}]: {}", R::LIST, explain::<R>(&record)?))
            });
        Error::format(
            file.path(),
            format!("a list of {}", R::LIST),
            key.unwrap_or(message),
        )
    })
}

#[derive(Deserialize)]
struct ImageHead {
    id: u64,
    file_name: Option<String>,
    mosaicbank: Option<SourceMark>,
}

impl Record for ImageHead {
    const LIST: &'static str = "images";

    fn keys() -> &'static [KeyRule] {
        &[
            ("id", true, "a whole number", is_id),
            ("file_name", false, "text", |v| v.is_string() || v.is_null()),
            ("mosaicbank", false, "a source mark", |v| {
                v.is_null() || SourceMark::deserialize(v).is_ok()
            }),
        ]
    }
}

#[derive(Deserialize)]
struct AnnotationHead {
    id: u64,
}

impl Record for AnnotationHead {
    const LIST: &'static str = "annotations";

    fn keys() -> &'static [KeyRule] {
        &[("id", true, "a whole number", is_id)]
    }
}

/// A record kept with all its keys.
#[derive(Deserialize)]
#[serde(transparent)]
struct Whole<const LIST: char>(Map<String, Value>);

type WholeImage = Whole<'i'>;
type WholeAnnotation = Whole<'a'>;
type WholeCategory = Whole<'c'>;

impl Record for WholeImage {
    const LIST: &'static str = "images";

    fn keys() -> &'static [KeyRule] {
        ImageHead::keys()
    }
}

impl Record for WholeAnnotation {
    const LIST: &'static str = "annotations";

    fn keys() -> &'static [KeyRule] {
        AnnotationHead::keys()
    }
}

impl Record for WholeCategory {
    const LIST: &'static str = "categories";

    fn keys() -> &'static [KeyRule] {
        &[("id", true, "a whole number", is_id)]
    }
}

/// Everything of the training file that a merge must know.
struct Train<'a> {
    top: Top<'a>,
    table: CategoryTable,
    categories: Vec<WholeCategory>,
    next_image: u64,
    next_annotation: u64,
    /// Ids of the mosaics in it.
    marks: HashSet<String>,
    /// File names in use.
    names: HashSet<String>,
}

impl<'a> Train<'a> {
    fn read(file: &'a JsonFile) -> Result<Self> {
        file.text()?;
        let top: Top<'a> = file.parse("an LVIS or COCO annotation file")?;
        let images: Vec<ImageHead> = list(file, top.get(file, "images")?)?;
        let annotations: Vec<AnnotationHead> = list(file, top.get(file, "annotations")?)?;
        let categories: Vec<WholeCategory> = list(file, top.get(file, "categories")?)?;
        let after = |last: Option<u64>, first: u64, list: &str| {
            last.map_or(Some(first), |l| l.checked_add(1))
                .map(|n| n.max(first))
                .filter(|n| *n < u64::MAX / 2)
                .ok_or_else(|| {
                    Error::format(
                        file.path(),
                        format!("{list} ids that leave room for more"),
                        format!("{last:?}"),
                    )
                })
        };
        Ok(Self {
            next_image: after(images.iter().map(|i| i.id).max(), FIRST_IMAGE_ID, "image")?,
            next_annotation: after(annotations.iter().map(|a| a.id).max(), 1, "annotation")?,
            marks: images
                .iter()
                .filter_map(|i| Some(i.mosaicbank.as_ref()?.mosaic.clone()))
                .collect(),
            names: images.into_iter().filter_map(|i| i.file_name).collect(),
            table: reader::read_categories(file)?,
            categories,
            top,
        })
    }
}

/// The synthetic records to append.
#[derive(Default)]
struct Added {
    images: Vec<Map<String, Value>>,
    annotations: Vec<Map<String, Value>>,
    /// By category id: images and instances.
    counts: HashMap<u64, (u64, u64)>,
}

/// Merges `train` with synthetic files (written by `export`) into `out`, which is written
/// beside and renamed and may be `train` itself.
///
/// - Synthetic images get ids after the training file's largest, at least
///   [`FIRST_IMAGE_ID`]; annotation ids continue after the largest in the file.
/// - Categories are matched by name, and must be in the training file; their ids become the
///   training file's, and their image and instance counts add up where the training file
///   has counts. Frequencies stay: they speak of the real images.
/// - A synthetic image that is in the training file already (by its mosaic's id) is not added
///   again, so that merging twice changes nothing.
///
/// The training file is mapped, not loaded; memory goes with its number of records.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`]; [`Error::Format`], naming file, record and key, when a
/// file cannot be read, a synthetic file holds an image without the source mark (a real one),
/// an annotation's image or category is not in its file, or a picture's name is taken;
/// [`Error::UnknownCategory`] when the training file does not have a category.
pub fn merge_files(train: &Path, synthetic: &[PathBuf], out: &Path) -> Result<MergeReport> {
    let file = JsonFile::open(train)?;
    let mut train = Train::read(&file)?;
    let mut report = MergeReport::default();
    let mut added = Added::default();
    for path in synthetic {
        append(&mut train, path, &mut added, &mut report)?;
    }
    report.images = added.images.len();
    report.annotations = added.annotations.len();
    for (id, &(images, instances)) in &added.counts {
        if let Some(c) = train.table.by_id(*id) {
            report
                .categories
                .insert(c.name.clone(), (images, instances));
        }
    }
    for Whole(category) in &mut train.categories {
        let Some(&(images, instances)) = category
            .get("id")
            .and_then(Value::as_u64)
            .and_then(|id| added.counts.get(&id))
        else {
            continue;
        };
        for (key, n) in [("image_count", images), ("instance_count", instances)] {
            if let Some(v) = category.get_mut(key)
                && let Some(before) = v.as_u64()
            {
                *v = before.saturating_add(n).into();
            }
        }
    }
    write_beside(out, |w| write_merged(w, &train, &added))?;
    Ok(report)
}

/// Checks one synthetic file and adds its new images.
fn append(
    train: &mut Train<'_>,
    path: &Path,
    added: &mut Added,
    report: &mut MergeReport,
) -> Result<()> {
    let file = JsonFile::open(path)?;
    let top: Top<'_> = file.parse("a synthetic annotation file")?;
    let heads: Vec<ImageHead> = list(&file, top.get(&file, "images")?)?;
    let images: Vec<WholeImage> = list(&file, top.get(&file, "images")?)?;
    let annotations: Vec<WholeAnnotation> = list(&file, top.get(&file, "annotations")?)?;
    let own = reader::read_categories(&file)?;
    let bad = |record: String, expected: &str, got: String| {
        Error::format(path, format!("{record}: {expected}"), got)
    };
    // From the file's category ids to the training file's, as far as they are used.
    let to_train = |id: u64, record: &dyn Fn() -> String| -> Result<u64> {
        let category = own.by_id(id).ok_or_else(|| {
            bad(
                record(),
                "the id of a category of this file",
                id.to_string(),
            )
        })?;
        Ok(train.table.get(&category.name)?.id)
    };
    // From the file's image ids to new ones; `None` for an image that is there already.
    let mut ids: HashMap<u64, Option<u64>> = HashMap::new();
    for (i, (head, Whole(mut image))) in heads.into_iter().zip(images).enumerate() {
        let at = |key: &str| format!("images[{i}], key {key:?}");
        let Some(mark) = head.mosaicbank else {
            return Err(bad(
                at("mosaicbank"),
                "the mark of a synthetic image",
                "an image without it\nhint: give the training file as --train and only \
                 exported files as --synthetic"
                    .into(),
            ));
        };
        if ids.contains_key(&head.id) {
            return Err(bad(at("id"), "an id used once", head.id.to_string()));
        }
        if !train.marks.insert(mark.mosaic) {
            ids.insert(head.id, None);
            report.already += 1;
            continue;
        }
        if let Some(name) = head.file_name
            && !train.names.insert(name.clone())
        {
            return Err(bad(
                at("file_name"),
                "a name that no other image has",
                format!("{name:?}\nhint: export each folder with its own --image-folder"),
            ));
        }
        let id = train.next_image;
        train.next_image += 1;
        ids.insert(head.id, Some(id));
        image.insert("id".into(), id.into());
        for key in ["neg_category_ids", "not_exhaustive_category_ids"] {
            let Some(v) = image.get_mut(key) else {
                continue;
            };
            if !is_ids(v) {
                return Err(bad(at(key), "a list of category ids", kind(v)));
            }
            let mapped = v
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .map(|c| to_train(c, &|| at(key)).map(Value::from))
                .collect::<Result<Vec<_>>>()?;
            *v = mapped.into();
        }
        let first = report.image_ids.map_or(id, |(first, _)| first);
        report.image_ids = Some((first, id));
        added.images.push(image);
    }
    let mut shown: BTreeSet<(u64, u64)> = BTreeSet::new();
    for (i, Whole(mut annotation)) in annotations.into_iter().enumerate() {
        let at = |key: &str| format!("annotations[{i}], key {key:?}");
        let field = |key: &str| {
            annotation.get(key).and_then(Value::as_u64).ok_or_else(|| {
                let got = annotation.get(key).map_or("nothing".into(), kind);
                bad(at(key), "a whole number", got)
            })
        };
        let (image, category) = (field("image_id")?, field("category_id")?);
        let Some(&image_id) = ids.get(&image) else {
            return Err(bad(
                at("image_id"),
                "the id of an image of this file",
                image.to_string(),
            ));
        };
        let Some(image_id) = image_id else {
            continue;
        };
        let category_id = to_train(category, &|| at("category_id"))?;
        let id = train.next_annotation;
        train.next_annotation += 1;
        annotation.insert("id".into(), id.into());
        annotation.insert("image_id".into(), image_id.into());
        annotation.insert("category_id".into(), category_id.into());
        let first = report.annotation_ids.map_or(id, |(first, _)| first);
        report.annotation_ids = Some((first, id));
        added.annotations.push(annotation);
        let count = added.counts.entry(category_id).or_default();
        count.0 += u64::from(shown.insert((image_id, category_id)));
        count.1 += 1;
    }
    Ok(())
}

/// The training file's text with the new records at the ends of its lists.
fn write_merged(out: &mut dyn Write, train: &Train<'_>, added: &Added) -> std::io::Result<()> {
    out.write_all(b"{")?;
    for (i, (key, raw)) in train.top.0.iter().enumerate() {
        if i > 0 {
            out.write_all(b", ")?;
        }
        serde_json::to_writer(&mut *out, key)?;
        out.write_all(b": ")?;
        match key.as_str() {
            "images" => extend(out, raw, &added.images)?,
            "annotations" => extend(out, raw, &added.annotations)?,
            "categories" if !added.counts.is_empty() => {
                let all: Vec<_> = train.categories.iter().map(|c| &c.0).collect();
                serde_json::to_writer(&mut *out, &all)?;
            }
            _ => out.write_all(raw.get().as_bytes())?,
        }
    }
    out.write_all(b"}\n")
}

/// A list's text with more records at its end.
fn extend(
    out: &mut dyn Write,
    raw: &RawValue,
    more: &[Map<String, Value>],
) -> std::io::Result<()> {
    // It was read as a list before, so that it ends in a bracket.
    let text = raw.get().trim_end();
    let open = text.strip_suffix(']').unwrap_or(text).trim_end();
    out.write_all(open.as_bytes())?;
    let mut bare = open.trim_start() == "[";
    for record in more {
        out.write_all(if bare { b"" } else { b", " })?;
        bare = false;
        serde_json::to_writer(&mut *out, record)?;
    }
    out.write_all(b"]")
}
