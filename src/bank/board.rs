//! The demand board: a small memory-mapped file of atomic counters through which trainers say
//! what they need, and engines and feedback answer.
//!
//! Layout, little endian: a header of 64 bytes, then one line of 64 bytes per category in the
//! order of the bank's category table, so that two workers never share a cache line over two
//! categories.
//!
//! | header byte | holds |
//! | --- | --- |
//! | 0..8 | magic `MBDEMAND` |
//! | 8..12 | version |
//! | 12..16 | number of categories |
//! | 16..24 | hash of the category table |
//! | 24..28 | CRC-32 of bytes 0..24 |
//!
//! | line byte | holds |
//! | --- | --- |
//! | 0..8 | asked: slots resolved for the category |
//! | 8..16 | served fresh: answered with something never used before |
//! | 16..24 | served again |
//! | 24..32 | missed: answered with a real image because the bank had nothing |
//! | 32..36 | weight, f32 (feedback; 1 is neutral) |
//! | 36..40 | size factor, f32 (feedback; 1 is neutral) |
//!
//! Everything is allocated when the file is made, so a full disk cannot turn an increment into
//! a SIGBUS. Counters are relaxed atomics: trainers add, engines read, nobody locks.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::disk::{allocate, may_have_holes, write_beside};
use crate::error::{Error, Result};

/// Name of the board's file in the bank directory.
pub const BOARD_FILE: &str = "demand.bin";
const MAGIC: &[u8; 8] = b"MBDEMAND";
const VERSION: u32 = 1;
const LINE: usize = 64;
/// More categories than any dataset has; keeps a damaged header from asking for gigabytes.
const MAX_CATEGORIES: usize = 1 << 20;

/// What the trainers have asked of one category, and what feedback says about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Slots resolved for the category.
    pub asked: u64,
    /// Answered with something never used before.
    pub served_fresh: u64,
    /// Answered with something used before.
    pub served_again: u64,
    /// Not answered: the bank had nothing.
    pub missed: u64,
    /// Feedback: share of the category relative to neutral 1.
    pub weight: f32,
    /// Feedback: factor on the pasted size relative to neutral 1.
    pub size_factor: f32,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            asked: 0,
            served_fresh: 0,
            served_again: 0,
            missed: 0,
            weight: 1.0,
            size_factor: 1.0,
        }
    }
}

/// The mapped board.
#[derive(Debug)]
pub struct DemandBoard {
    map: MmapRaw,
    categories: usize,
    path: PathBuf,
}

/// Checks a board's bytes against the category table; shared with the fuzz target.
///
/// # Errors
/// [`Error::Format`] saying what is wrong; a newer version says so.
pub fn check(path: &Path, bytes: &[u8], categories: usize, table_hash: u64) -> Result<()> {
    let header = header(categories, table_hash);
    let wrong = |expected: String, got: String| Err(Error::format(path, expected, got));
    let Some(found) = bytes.get(..LINE) else {
        return wrong(
            format!("a demand board of {} bytes", file_bytes(categories)),
            format!("{} bytes", bytes.len()),
        );
    };
    if found.get(..8) != Some(MAGIC) {
        return wrong(
            "a demand board (magic MBDEMAND)".into(),
            "other bytes".into(),
        );
    }
    let version = u32_at(found, 8);
    if version > VERSION && u32_at(found, 24) == crc(found) {
        return wrong(
            format!("a demand board of version {VERSION} or older"),
            format!("version {version}: it was written by a newer mosaicbank"),
        );
    }
    if found != header.as_slice() {
        return wrong(
            format!("the header for this bank's {categories} categories"),
            "another or a damaged header".into(),
        );
    }
    if bytes.len() != file_bytes(categories) {
        return wrong(
            format!("{} bytes", file_bytes(categories)),
            format!("{} bytes", bytes.len()),
        );
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn crc(header: &[u8]) -> u32 {
    crc32fast::hash(header.get(..24).unwrap_or_default())
}

fn file_bytes(categories: usize) -> usize {
    LINE * (categories + 1)
}

fn header(categories: usize, table_hash: u64) -> [u8; LINE] {
    let mut fixed = Vec::with_capacity(LINE);
    fixed.extend_from_slice(MAGIC);
    fixed.extend_from_slice(&VERSION.to_le_bytes());
    fixed.extend_from_slice(&(categories as u32).to_le_bytes());
    fixed.extend_from_slice(&table_hash.to_le_bytes());
    let crc = crc32fast::hash(&fixed);
    fixed.extend_from_slice(&crc.to_le_bytes());
    let mut header = [0; LINE];
    header
        .iter_mut()
        .zip(fixed)
        .for_each(|(to, from)| *to = from);
    header
}

/// Writes a new, neutral board beside the old one and renames it into place.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be written.
pub fn rebuild(dir: &Path, categories: usize, table_hash: u64) -> Result<()> {
    let path = dir.join(BOARD_FILE);
    let mut bytes = Vec::with_capacity(file_bytes(categories));
    bytes.extend_from_slice(&header(categories, table_hash));
    let mut line = [0u8; LINE];
    for (i, byte) in 1f32.to_le_bytes().into_iter().enumerate() {
        line[32 + i] = byte;
        line[36 + i] = byte;
    }
    for _ in 0..categories {
        bytes.extend_from_slice(&line);
    }
    write_beside(&path, &bytes)
}

impl DemandBoard {
    /// Maps the board of the bank in `dir`; a missing or damaged one is rebuilt.
    ///
    /// # Errors
    /// [`Error::Format`] when it was written by a newer version, [`Error::Io`] when it cannot
    /// be read, mapped or rebuilt.
    pub fn open(dir: &Path, categories: usize, table_hash: u64) -> Result<Self> {
        if categories > MAX_CATEGORIES {
            return Err(Error::value(
                "categories",
                format!("at most {MAX_CATEGORIES}"),
                categories,
            ));
        }
        let path = dir.join(BOARD_FILE);
        let io = |e| Error::io(&path, e);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e)),
        };
        if let Err(e) = check(&path, &bytes, categories, table_hash) {
            if e.to_string().contains("newer mosaicbank") {
                return Err(e);
            }
            tracing::warn!("rebuilding the demand board: {e}");
            rebuild(dir, categories, table_hash)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io)?;
        let len = file_bytes(categories) as u64;
        if may_have_holes(&file.metadata().map_err(io)?, len) {
            allocate(&file, 0, len).map_err(io)?;
        }
        let map = MmapOptions::new()
            .len(file_bytes(categories))
            .map_raw(&file)
            .map_err(io)?;
        Ok(Self {
            map,
            categories,
            path,
        })
    }

    /// Number of categories.
    pub fn len(&self) -> usize {
        self.categories
    }

    /// Whether the table has no category.
    pub fn is_empty(&self) -> bool {
        self.categories == 0
    }

    /// The board's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn counter(&self, category: u32, field: usize) -> Option<&AtomicU64> {
        let category = category as usize;
        if category >= self.categories {
            return None;
        }
        // SAFETY: inside the mapping (`file_bytes(categories)` long), 8-byte aligned (mappings
        // are page-aligned, lines and fields multiples of 8), and only used atomically.
        Some(unsafe {
            &*self
                .map
                .as_ptr()
                .add(LINE * (category + 1) + 8 * field)
                .cast::<AtomicU64>()
        })
    }

    fn factor(&self, category: u32, field: usize) -> Option<&AtomicU32> {
        let category = category as usize;
        if category >= self.categories {
            return None;
        }
        // SAFETY: as in `counter`; 4-byte aligned.
        Some(unsafe {
            &*self
                .map
                .as_ptr()
                .add(LINE * (category + 1) + 32 + 4 * field)
                .cast::<AtomicU32>()
        })
    }

    fn add(&self, category: u32, field: usize) {
        if let Some(counter) = self.counter(category, field) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a slot that was resolved for `category` (an index into the category table).
    pub fn asked(&self, category: u32) {
        self.add(category, 0);
    }

    /// Counts an answer from the bank; `fresh` when it had never been used.
    pub fn served(&self, category: u32, fresh: bool) {
        self.add(category, if fresh { 1 } else { 2 });
    }

    /// Counts a slot for which the bank had nothing.
    pub fn missed(&self, category: u32) {
        self.add(category, 3);
    }

    /// What the board says about one category; neutral when it is not in the table.
    pub fn get(&self, category: u32) -> Demand {
        let count = |field| {
            self.counter(category, field)
                .map_or(0, |c| c.load(Ordering::Relaxed))
        };
        let factor = |field| {
            self.factor(category, field)
                .map(|f| f32::from_bits(f.load(Ordering::Relaxed)))
                .filter(|f| f.is_finite() && *f >= 0.0)
                .unwrap_or(1.0)
        };
        Demand {
            asked: count(0),
            served_fresh: count(1),
            served_again: count(2),
            missed: count(3),
            weight: factor(0),
            size_factor: factor(1),
        }
    }

    /// What the board says about every category, in table order.
    pub fn snapshot(&self) -> Vec<Demand> {
        (0..self.categories as u32).map(|c| self.get(c)).collect()
    }

    /// Sets the feedback of one category.
    ///
    /// # Errors
    /// [`Error::Value`] when a factor is negative or not finite, or the category is not in
    /// the table.
    pub fn set_feedback(&self, category: u32, weight: f32, size_factor: f32) -> Result<()> {
        for (name, value, field) in [("weight", weight, 0), ("size_factor", size_factor, 1)] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::value(name, "a finite number >= 0", value));
            }
            self.factor(category, field)
                .ok_or_else(|| {
                    Error::value(
                        "category index",
                        format!("below {}", self.categories),
                        category,
                    )
                })?
                .store(value.to_bits(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks the system to write the board to disk soon.
    ///
    /// # Errors
    /// [`Error::Io`] when it refuses.
    pub fn flush(&self) -> Result<()> {
        self.map.flush_async().map_err(|e| Error::io(&self.path, e))
    }
}
