//! The record that `generate` writes for each mosaic, and `export` and the bank read.
//!
//! A folder of mosaics:
//!
//! ```text
//! <out>/mosaics/<id>.json     the record, written last: a mosaic without one is unfinished
//! <out>/images/<id>.png       the picture (`file_name` is its name, below `images/`)
//! <out>/masks/<id>_<k>.png    one mask for each instance
//! <out>/overlays/<id>.png     for looking at
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::file::{JsonFile, write_beside};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::instance::{Instance, Provenance};
use crate::mask::{Rle, Verdict};

/// The version that [`MosaicRecord::format`] holds.
pub const RECORD_FORMAT: u32 = 1;

/// Folder of the records.
pub const MOSAICS: &str = "mosaics";
/// Folder of the pictures.
pub const IMAGES: &str = "images";
/// Folder of the masks.
pub const MASKS: &str = "masks";
/// Folder of the overlay pictures.
pub const OVERLAYS: &str = "overlays";

/// One region of a mosaic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRecord {
    /// The region on the canvas, overlap included.
    #[serde(rename = "box")]
    pub bbox: PixelBox,
    /// Its own part of the canvas, up to the centre lines.
    pub own: PixelBox,
    /// Its prompt.
    pub prompt: String,
    /// First and one past the last character of the subject in the prompt.
    pub subject: [u32; 2],
    /// Weight of classifier-free guidance.
    pub guidance: f64,
    /// The dataset's category name.
    pub category: String,
    /// The dataset's category id, where a table was at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category_id: Option<u64>,
    /// Kept, or why not.
    pub verdict: Verdict,
}

/// One instance of a mosaic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceRecord {
    /// The dataset's category name.
    pub category: String,
    /// The dataset's category id, where a table was at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category_id: Option<u64>,
    /// The tight box around the mask.
    pub bbox: PixelBox,
    /// Number of mask pixels.
    pub area: u64,
    /// Mean attention inside the mask, 0..1.
    pub score: f32,
    /// The mask, on the whole canvas.
    pub rle: Rle,
    /// Where it came from.
    pub provenance: Provenance,
}

impl From<Instance> for InstanceRecord {
    fn from(i: Instance) -> Self {
        Self {
            category: i.category,
            category_id: None,
            bbox: i.bbox,
            area: i.area,
            score: i.score,
            rle: i.mask,
            provenance: i.provenance,
        }
    }
}

impl From<InstanceRecord> for Instance {
    fn from(r: InstanceRecord) -> Self {
        Self {
            category: r.category,
            mask: r.rle,
            bbox: r.bbox,
            area: r.area,
            score: r.score,
            provenance: r.provenance,
        }
    }
}

/// A mosaic, its regions and its instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MosaicRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The mosaic's id: letters, digits, `_`, `-` and `.`, since files are named after it.
    pub id: String,
    /// The picture's file name, below `images/`.
    pub file_name: String,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// The mosaic's seed.
    pub seed: u64,
    /// Hash of the resolved recipe, hex.
    pub recipe: String,
    /// Name of the model directory (or hub id).
    pub model: String,
    /// SHA-256 over the weights files, hex.
    pub weights: String,
    /// The regions.
    pub regions: Vec<RegionRecord>,
    /// The instances; none when the canvas was dropped.
    pub instances: Vec<InstanceRecord>,
}

/// Whether text can name a file in any folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

impl MosaicRecord {
    /// Height and width.
    pub const fn size(&self) -> Size {
        Size::new(self.height, self.width)
    }

    /// Checks everything that readers rely on; `place` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Format`] naming the record's part: another format version, a name that is not a
    /// plain file name, a region outside the canvas, or an instance whose mask is empty, of
    /// another size, or not described by its box and area.
    pub fn validate(&self, place: &Path) -> Result<()> {
        let check = |ok: bool, what: String, expected: &str, got: String| {
            if ok {
                Ok(())
            } else {
                Err(Error::format(place, format!("{what}: {expected}"), got))
            }
        };
        check(
            self.format == RECORD_FORMAT,
            "format".into(),
            "version 1 (the only one that this mosaicbank knows)",
            self.format.to_string(),
        )?;
        for (key, name) in [("id", &self.id), ("file_name", &self.file_name)] {
            check(
                is_plain_name(name),
                key.into(),
                "letters, digits, '_', '-' and '.', not starting with '.'",
                format!("{name:?}"),
            )?;
        }
        check(
            self.height > 0 && self.width > 0,
            "height and width".into(),
            "more than 0",
            format!("{} x {}", self.height, self.width),
        )?;
        for (i, r) in self.regions.iter().enumerate() {
            check(
                !r.bbox.is_empty() && r.bbox.x1 <= self.width && r.bbox.y1 <= self.height,
                format!("regions[{i}].box"),
                "a box on the canvas",
                format!("{:?}", <[u32; 4]>::from(r.bbox)),
            )?;
            check(
                !r.own.is_empty() && r.own.intersect(r.bbox) == r.own,
                format!("regions[{i}].own"),
                "a box inside the region's",
                format!("{:?}", <[u32; 4]>::from(r.own)),
            )?;
        }
        for (i, instance) in self.instances.iter().enumerate() {
            let at = |key: &str| format!("instances[{i}].{key}");
            let rle = &instance.rle;
            check(
                rle.size() == self.size(),
                at("rle"),
                "a mask of the canvas' size",
                rle.to_string(),
            )?;
            check(
                !rle.is_empty(),
                at("rle"),
                "a mask that is not empty",
                rle.to_string(),
            )?;
            check(
                rle.area() == instance.area,
                at("area"),
                &format!("the mask's area {}", rle.area()),
                instance.area.to_string(),
            )?;
            check(
                rle.bbox() == Some(instance.bbox),
                at("bbox"),
                &format!("the box around the mask {:?}", rle.bbox()),
                format!("{:?}", instance.bbox),
            )?;
            check(
                instance.score.is_finite(),
                at("score"),
                "a number",
                instance.score.to_string(),
            )?;
        }
        Ok(())
    }

    /// What this mosaic is made of, as 32 hex digits: two mosaics with the same weights,
    /// recipe, seed, regions, prompts and guidance are one and the same.
    pub fn content_key(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(self.weights.as_bytes());
        add(self.recipe.as_bytes());
        add(&self.seed.to_le_bytes());
        for side in [self.height, self.width] {
            add(&side.to_le_bytes());
        }
        for r in &self.regions {
            for side in <[u32; 4]>::from(r.bbox)
                .into_iter()
                .chain(<[u32; 4]>::from(r.own))
                .chain(r.subject)
            {
                add(&side.to_le_bytes());
            }
            add(&r.guidance.to_le_bytes());
            add(r.prompt.as_bytes());
            add(r.category.as_bytes());
        }
        hash.finalize()
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// Where the record of a mosaic lies in a folder of mosaics.
    pub fn path_in(folder: &Path, id: &str) -> PathBuf {
        folder.join(MOSAICS).join(format!("{id}.json"))
    }

    /// Checks the record and writes it into a folder of mosaics (made where missing), beside
    /// and renamed.
    ///
    /// # Errors
    /// As [`MosaicRecord::validate`], and [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = Self::path_in(folder, &self.id);
        self.validate(&path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        }
        let text = serde_json::to_vec(self).map_err(|e| Error::backend("mosaic record", e))?;
        write_beside(&path, |out| out.write_all(&text))?;
        Ok(path)
    }

    /// Reads and checks one record.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], and as [`MosaicRecord::validate`].
    pub fn read(path: &Path) -> Result<Self> {
        let file = JsonFile::open(path)?;
        let record: Self = file.parse("a mosaic record")?;
        record.validate(path)?;
        if path.file_stem().and_then(|s| s.to_str()) != Some(record.id.as_str()) {
            return Err(Error::format(
                path,
                "id: the file's name",
                format!("{:?}", record.id),
            ));
        }
        Ok(record)
    }

    /// The ids of the finished mosaics of a folder, sorted; none when it has no record folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finished(folder: &Path) -> Result<Vec<String>> {
        let dir = folder.join(MOSAICS);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&dir, e)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| Error::io(&dir, e))?.file_name();
            let id = name.to_str().and_then(|n| n.strip_suffix(".json"));
            ids.extend(id.filter(|id| is_plain_name(id)).map(String::from));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads all records of a folder of mosaics, in the order of their ids.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the folder holds no record; otherwise as [`MosaicRecord::read`].
    pub fn read_folder(folder: &Path) -> Result<Vec<Self>> {
        let ids = Self::finished(folder)?;
        if ids.is_empty() {
            return Err(Error::NotFound {
                what: "mosaic records".into(),
                path: folder.join(MOSAICS),
                hint: "\nhint: `mosaicbank generate --out DIR` writes them".into(),
            });
        }
        ids.iter()
            .map(|id| Self::read(&Self::path_in(folder, id)))
            .collect()
    }
}
