//! One mosaic of a folder: its record, and the name of its picture.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::file::JsonFile;
use crate::error::{Error, Result};
use crate::record::json::{MosaicJson, RECORD_FORMAT};
use crate::record::{Class, Mosaic, RecordId};

/// Folder of the records.
pub(super) const MOSAICS: &str = "mosaics";
/// Folder of the pictures.
pub const IMAGES: &str = "images";

/// A mosaic of a folder; its picture is a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The picture's file name, below `images/`.
    pub file_name: String,
    /// The record, without the picture.
    pub mosaic: Mosaic<Class>,
}

/// Whether text can name a file in any folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// The picture's file name of a mosaic that has none yet.
pub(super) fn file_name(id: RecordId) -> String {
    format!("{id}.png")
}

/// Where the record of a mosaic lies in a folder.
pub(super) fn path_in(folder: &Path, id: &str) -> PathBuf {
    folder.join(MOSAICS).join(format!("{id}.json"))
}

impl Entry {
    /// A mosaic whose picture is named after it.
    pub fn new(mosaic: Mosaic<Class>) -> Self {
        Self {
            file_name: file_name(mosaic.id),
            mosaic,
        }
    }

    /// Reads and checks one record.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`]; [`Error::Format`] naming the record's part: another
    /// format version, a name that is not a plain file name or not the file's, and what
    /// [`Mosaic::validate`] checks.
    pub fn read(path: &Path) -> Result<Self> {
        let file = JsonFile::open(path)?;
        let json: MosaicJson = file.parse("a mosaic record")?;
        let check = |ok: bool, expected: String, got: String| {
            if ok {
                Ok(())
            } else {
                Err(Error::format(path, expected, got))
            }
        };
        check(
            json.format == RECORD_FORMAT,
            format!(
                "format: version {RECORD_FORMAT} (the only one that this mosaicbank knows)"
            ),
            json.format.to_string(),
        )?;
        for (key, name) in [("id", &json.id), ("file_name", &json.file_name)] {
            check(
                is_plain_name(name),
                format!("{key}: letters, digits, '_', '-' and '.', not starting with '.'"),
                format!("{name:?}"),
            )?;
        }
        check(
            path.file_stem().and_then(|s| s.to_str()) == Some(json.id.as_str()),
            "id: the file's name".into(),
            format!("{:?}", json.id),
        )?;
        let file_name = json.file_name.clone();
        let mosaic = json.mosaic();
        mosaic.validate().map_err(|e| match e {
            Error::Value {
                what,
                expected,
                got,
            } => Error::format(path, format!("{what}: {expected}"), got),
            other => other,
        })?;
        Ok(Self { file_name, mosaic })
    }

    /// Reads all records of a folder of mosaics, in the order of their ids.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the folder holds no record; otherwise as [`Entry::read`].
    pub fn read_folder(folder: &Path) -> Result<Vec<Self>> {
        let ids = finished(folder)?;
        if ids.is_empty() {
            return Err(Error::NotFound {
                what: "mosaic records".into(),
                path: folder.join(MOSAICS),
                hint: "\nhint: `mosaicbank generate --out DIR` writes them".into(),
            });
        }
        ids.iter()
            .map(|id| Self::read(&path_in(folder, id)))
            .collect()
    }

    /// Where its picture lies.
    pub fn picture_in(&self, folder: &Path) -> PathBuf {
        folder.join(IMAGES).join(&self.file_name)
    }
}

/// The ids of the finished mosaics of a folder; none when it has no record folder.
pub(super) fn finished(folder: &Path) -> Result<BTreeSet<String>> {
    let dir = folder.join(MOSAICS);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(Error::io(&dir, e)),
    };
    let mut ids = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::io(&dir, e))?.file_name();
        let id = name.to_str().and_then(|n| n.strip_suffix(".json"));
        ids.extend(id.filter(|id| is_plain_name(id)).map(String::from));
    }
    Ok(ids)
}
