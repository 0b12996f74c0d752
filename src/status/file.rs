//! The status file in the bank: `engine-<id>.json`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{EngineStatus, now, process};
use crate::dataset::write_beside;
use crate::error::{Error, Result};

/// Status files of engines that ended this long ago, seconds, are removed.
const KEPT_FOR: f64 = 24.0 * 3600.0;
/// Size of the file, bytes. It is padded with spaces, so that it can be overwritten in place when
/// the disk is full.
pub(super) const FILE_BYTES: usize = 16_384;
/// Larger files are not read.
const MAX_BYTES: u64 = 1 << 20;

impl EngineStatus {
    /// The status file of this engine in the bank directory `dir`.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("engine-{}.json", self.id))
    }

    /// Sets `time` and `peak_memory` and writes the file: beside and renamed, or in place when the
    /// disk is full.
    ///
    /// # Errors
    /// [`Error::Io`] when neither is possible.
    pub fn write(&mut self, dir: &Path) -> Result<()> {
        self.time = now();
        self.peak_memory = process::peak_memory();
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::backend("writing the engine status", e))?;
        text.push('\n');
        while text.len() < FILE_BYTES {
            text.push(' ');
        }
        let path = self.path(dir);
        write_beside(&path, |out| out.write_all(text.as_bytes())).or_else(|error| {
            if !path.is_file() {
                return Err(error);
            }
            // Its blocks are allocated already.
            let overwrite = || -> std::io::Result<()> {
                let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
                file.write_all(text.as_bytes())?;
                file.set_len(text.len() as u64)
            };
            overwrite().map_err(|e| Error::io(&path, e))
        })
    }

    /// Reads one status file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Format`] when it is not a status file.
    pub fn read(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let wrong = |got: &dyn std::fmt::Display| Error::format(path, "an engine status", got);
        // Never opens a FIFO, which would block.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(wrong(&"something that is not a regular file"));
        }
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(io)?;
        let status: Self = serde_json::from_slice(&text).map_err(|e| wrong(&e))?;
        if status.id.is_empty() {
            return Err(wrong(&"one without an id"));
        }
        Ok(status)
    }

    /// Reads the status of every engine of the bank in `dir`, oldest first. Files that cannot be
    /// read are skipped: they may be of another version.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be read.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("engine-") && name.ends_with(".json") {
                found.extend(Self::read(&path).ok());
            }
        }
        found.sort_by(|a, b| a.started.total_cmp(&b.started).then(a.id.cmp(&b.id)));
        Ok(found)
    }

    /// Removes the status files of engines that ended long ago.
    pub fn clean(dir: &Path) {
        for old in Self::read_all(dir).unwrap_or_default() {
            if !old.is_alive() && now() - old.time > KEPT_FOR {
                let _ = std::fs::remove_file(old.path(dir));
            }
        }
    }
}
