//! Use counts: one atomic `u32` per record in a memory-mapped file, so that a draw is counted
//! by a trainer without a write transaction, and never waits for the engine's writer.
//!
//! Every record has a slot number; the counter of slot `s` is at byte `64 + 4 s`. The file is
//! sparse and as long as [`CAPACITY`] slots; the writer allocates blocks before it hands out
//! slots, and says in the header how far, so that a count never lands on a hole (on a full
//! disk that would be a SIGBUS). Lost counts (a power cut) cost nothing but freshness.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::disk::{allocate, may_have_holes, share};
use crate::error::{Error, Result};

/// Name of the file in the bank directory.
pub const USES_FILE: &str = "uses.bin";
const MAGIC: &[u8; 8] = b"MBUSES\0\x01";
const HEADER: usize = 64;
/// Records that can be counted; further ones work but always look unused.
pub const CAPACITY: u32 = 1 << 24;
const FILE_BYTES: usize = HEADER + 4 * CAPACITY as usize;
/// Slots are allocated in blocks of 64 KiB.
const BLOCK: u32 = 16 * 1024;

/// The mapped use counts.
#[derive(Debug)]
pub struct UseCounts {
    map: MmapRaw,
    file: File,
    path: PathBuf,
}

impl UseCounts {
    /// Maps the use counts of the bank in `dir`; a missing or damaged file is started anew.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made, opened or mapped.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(USES_FILE);
        let io = |e| Error::io(dir.join(USES_FILE), e);
        if !valid(&path) {
            create(dir, &path)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io)?;
        let map = MmapOptions::new()
            .len(FILE_BYTES)
            .map_raw(&file)
            .map_err(io)?;
        let counts = Self { map, file, path };
        // Below the header's number no slot may lie in a hole.
        let len = bytes_of(counts.allocated().load(Ordering::Acquire).min(CAPACITY));
        if may_have_holes(&counts.file.metadata().map_err(io)?, len) {
            allocate(&counts.file, 0, len).map_err(io)?;
        }
        Ok(counts)
    }

    fn allocated(&self) -> &AtomicU32 {
        // SAFETY: inside the header, aligned, only used atomically.
        unsafe { &*self.map.as_ptr().add(8).cast::<AtomicU32>() }
    }

    fn cell(&self, slot: u32) -> Option<&AtomicU32> {
        if slot >= self.allocated().load(Ordering::Acquire).min(CAPACITY) {
            return None;
        }
        // SAFETY: inside the mapping, aligned, only used atomically.
        Some(unsafe {
            &*self
                .map
                .as_ptr()
                .add(HEADER + 4 * slot as usize)
                .cast::<AtomicU32>()
        })
    }

    /// How often the record in `slot` was used.
    pub fn get(&self, slot: u32) -> u32 {
        self.cell(slot).map_or(0, |c| c.load(Ordering::Relaxed))
    }

    /// Counts a use and returns how often it had been used before.
    pub fn add(&self, slot: u32) -> u32 {
        self.cell(slot)
            .map_or(0, |c| c.fetch_add(1, Ordering::Relaxed))
    }

    /// Sets the count of a slot (a new record starts at 0; a compacted bank keeps its counts).
    pub(super) fn set(&self, slot: u32, uses: u32) {
        if let Some(cell) = self.cell(slot) {
            cell.store(uses, Ordering::Relaxed);
        }
    }

    /// Makes slots below `end` countable, allocating disk blocks for them (writers only).
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full.
    pub(super) fn reserve(&self, end: u32) -> Result<()> {
        let have = self.allocated().load(Ordering::Acquire);
        let end = end.min(CAPACITY);
        if end <= have {
            return Ok(());
        }
        let end = end.next_multiple_of(BLOCK).min(CAPACITY);
        let (from, to) = (bytes_of(have), bytes_of(end));
        allocate(&self.file, from, to - from).map_err(|e| Error::io(&self.path, e))?;
        self.allocated().fetch_max(end, Ordering::AcqRel);
        Ok(())
    }
}

/// Length of a file whose first `slots` slots can be counted.
fn bytes_of(slots: u32) -> u64 {
    HEADER as u64 + 4 * u64::from(slots)
}

fn valid(path: &Path) -> bool {
    use std::io::Read;
    let Ok(mut file) = File::open(path) else {
        return false;
    };
    let mut header = [0u8; HEADER];
    file.metadata().is_ok_and(|m| m.len() == FILE_BYTES as u64)
        && file.read_exact(&mut header).is_ok()
        && header.starts_with(MAGIC)
        && header
            .get(8..12)
            .and_then(|b| b.try_into().ok())
            .is_some_and(|b| u32::from_le_bytes(b) <= CAPACITY)
}

fn create(dir: &Path, path: &Path) -> Result<()> {
    use std::io::Write;
    let io = |e| Error::io(path, e);
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(io)?;
    file.as_file().set_len(FILE_BYTES as u64).map_err(io)?;
    allocate(file.as_file(), 0, bytes_of(BLOCK)).map_err(io)?;
    let mut header = [0u8; HEADER];
    let fields = MAGIC.iter().copied().chain(BLOCK.to_le_bytes());
    header
        .iter_mut()
        .zip(fields)
        .for_each(|(to, from)| *to = from);
    file.write_all(&header).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    share(file.path(), dir);
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}
