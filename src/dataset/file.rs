//! Reading large JSON files and writing whole ones.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};

/// Writes a temporary file in the same folder and renames it to `path`, so that a reader sees the
/// old file or the new one, never a part. On failure the temporary file is removed.
///
/// # Errors
/// What `write` returns, and [`Error::Io`] or [`Error::NotFound`] naming the path.
pub fn write_beside(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let name = path.file_name().ok_or_else(|| {
        Error::value("output file", "a path that ends in a name", path.display())
    })?;
    let beside = path.with_file_name(format!(
        ".{}.{}.part",
        name.to_string_lossy(),
        std::process::id()
    ));
    let attempt = || -> std::io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&beside)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        out.into_inner()?.sync_all()?;
        fs::rename(&beside, path)
    };
    attempt().map_err(|e| {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&beside);
        Error::io(path, e)
    })
}

/// A file's bytes, mapped: a 1 GB annotation file costs address space, not memory.
pub(super) struct JsonFile {
    path: PathBuf,
    map: Option<Mmap>,
}

impl JsonFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() {
            return Err(Error::format(path, "a JSON file", "a directory"));
        }
        let map = if metadata.len() == 0 {
            // An empty map is an error on some systems.
            None
        } else {
            // SAFETY: the map is only read, as bytes, and dropped before the command ends. Another
            // process that truncates the file meanwhile kills this one, as with every mapped
            // file; files are replaced by renaming, which does not touch the map.
            Some(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?)
        };
        Ok(Self {
            path: path.to_path_buf(),
            map,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    pub(super) fn text(&self) -> Result<&str> {
        std::str::from_utf8(self.bytes()).map_err(|e| {
            Error::format(
                &self.path,
                "UTF-8 text",
                format!("an invalid byte at offset {}", e.valid_up_to()),
            )
        })
    }

    /// Parses the whole file.
    pub(super) fn parse<'a, T: Deserialize<'a>>(&'a self, expected: &str) -> Result<T> {
        serde_json::from_slice(self.bytes()).map_err(|e| self.error(expected, &e))
    }

    pub(super) fn error(&self, expected: &str, e: &serde_json::Error) -> Error {
        Error::format(&self.path, expected, e)
    }
}

/// A record of an annotation file.
pub(super) trait Record: Sized {
    /// The list that holds it: `images`, ...
    const LIST: &'static str;

    /// The key to name when a record cannot be read, and its expected value.
    fn keys() -> &'static [KeyRule];
}

/// A key of a record: its name, whether it is required, its expected value, and the test.
pub(super) type KeyRule = (&'static str, bool, &'static str, fn(&Value) -> bool);

/// Whether a value is an id.
pub(super) fn is_id(v: &Value) -> bool {
    v.as_u64().is_some()
}

/// Whether a value is a size in pixels.
pub(super) fn is_side(v: &Value) -> bool {
    v.as_u64().is_some_and(|n| u32::try_from(n).is_ok())
}

/// Whether a value is text.
pub(super) fn is_text(v: &Value) -> bool {
    v.is_string()
}

/// Whether a value is a list of ids.
pub(super) fn is_ids(v: &Value) -> bool {
    v.as_array().is_some_and(|a| a.iter().all(is_id))
}

/// Whether a value is a list of texts.
pub(super) fn is_texts(v: &Value) -> bool {
    v.as_array().is_some_and(|a| a.iter().all(is_text))
}

/// Finds the wrong key of a record.
pub(super) fn explain<R: Record>(record: &Value) -> Option<String> {
    let Some(fields) = record.as_object() else {
        return Some(format!("expected an object, got {}", kind(record)));
    };
    R::keys()
        .iter()
        .find_map(|(key, required, expected, test)| match fields.get(*key) {
            None if *required => Some(format!("key {key:?} is missing, expected {expected}")),
            Some(v) if !test(v) => {
                Some(format!("key {key:?}: expected {expected}, got {}", kind(v)))
            }
            _ => None,
        })
}

/// A value in a few words.
pub(super) fn kind(v: &Value) -> String {
    match v {
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(_) => "an object".into(),
        Value::String(s) => format!("{:?}", s.chars().take(40).collect::<String>()),
        other => other.to_string(),
    }
}

/// Reads a list record by record; an error names the list and the record's index.
pub(super) fn records<'de, D, R>(deserializer: D) -> Result<Vec<R>, D::Error>
where
    D: Deserializer<'de>,
    R: Record + Deserialize<'de>,
{
    struct List<R>(PhantomData<R>);
    impl<'de, R: Record + Deserialize<'de>> Visitor<'de> for List<R> {
        type Value = Vec<R>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?}: a list", R::LIST)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            loop {
                match seq.next_element() {
                    Ok(Some(r)) => out.push(r),
                    Ok(None) => return Ok(out),
                    Err(e) => {
                        return Err(de::Error::custom(format!(
                            "{}[{}]: {e}",
                            R::LIST,
                            out.len()
                        )));
                    }
                }
            }
        }
    }
    deserializer.deserialize_seq(List(PhantomData))
}

/// The record at `index` of a list, however wrong it is; for error messages only.
pub(super) struct Nth {
    /// Set by hand before reading.
    pub index: usize,
}

impl<'de> de::DeserializeSeed<'de> for Nth {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Nth {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        for _ in 0..self.index {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(None);
            }
        }
        let found = seq.next_element()?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }
}
