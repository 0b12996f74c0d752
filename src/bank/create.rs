//! Making a bank: whole or not at all.
//!
//! The parts are made in place, under a lock on the directory (`flock`) that the system releases
//! when its holder dies. [`MARKER`] is made first and removed last; `bank.toml`, without which a
//! directory is no bank, is the last part. What an interrupted creation left has no `bank.toml` and
//! holds no records: the next creation removes it and starts again. Everything else in the
//! directory is not ours and is refused.

use std::fs::{DirEntry, File, TryLockError};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use memmap2::Mmap;

use super::board::{self, BOARD_FILE};
use super::env::{DATA_FILE, LOCK_FILE, TABLE_NAMES};
use super::uses::{USES_FILE, UseCounts};
use super::{BankInfo, INFO_FILE, env, lmdb_pages};
use crate::error::{Error, Result};

/// Says that the directory holds an unfinished bank.
const MARKER: &str = ".unfinished";
/// Written by feedback.
const FEEDBACK: &str = "feedback";
/// How long another process may take to make the same bank.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the bank in `dir`; false when there is one already.
///
/// # Errors
/// [`Error::Value`] when the directory holds something else, [`Error::Io`] when it cannot be
/// written, [`Error::Backend`] when another process holds it for too long.
pub(super) fn create(dir: &Path, info: &BankInfo) -> Result<bool> {
    let io = |e| Error::io(dir, e);
    std::fs::create_dir_all(dir).map_err(io)?;
    let lock = File::open(dir).map_err(io)?;
    acquire(&lock, dir)?;
    let made = create_locked(dir, info);
    // Closing would do, but a child that was forked meanwhile keeps the descriptor open.
    let _ = lock.unlock();
    made
}

fn acquire(lock: &File, dir: &Path) -> Result<()> {
    let begin = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(Error::io(dir, e)),
            Err(TryLockError::WouldBlock) if begin.elapsed() > PATIENCE => {
                return Err(Error::backend(
                    format!("making the bank {}", dir.display()),
                    format!("another process has locked the directory for {PATIENCE:?}"),
                ));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn create_locked(dir: &Path, info: &BankInfo) -> Result<bool> {
    if dir.join(INFO_FILE).exists() {
        // Only its last step was missing.
        let _ = std::fs::remove_file(dir.join(MARKER));
        return Ok(false);
    }
    clear(dir)?;
    let marker = dir.join(MARKER);
    File::create(&marker).map_err(|e| Error::io(&marker, e))?;
    let made = make_parts(dir, info);
    if made.is_err() {
        // Best effort: what stays, the next creation removes.
        let _ = clear(dir);
        return made.map(|()| true);
    }
    std::fs::remove_file(&marker).map_err(|e| Error::io(&marker, e))?;
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io(dir, e))?;
    Ok(true)
}

fn make_parts(dir: &Path, info: &BankInfo) -> Result<()> {
    let feedback = dir.join(FEEDBACK);
    std::fs::create_dir(&feedback).map_err(|e| Error::io(&feedback, e))?;
    env::create_env(dir)?;
    board::rebuild(dir, info.categories.len(), info.table_hash())?;
    drop(UseCounts::open(dir)?);
    info.write(dir)
}

/// Removes what an interrupted creation left.
///
/// # Errors
/// [`Error::Value`] when the directory holds anything else; nothing is removed then.
fn clear(dir: &Path) -> Result<()> {
    let io = |e| Error::io(dir, e);
    let ours = dir.join(MARKER).exists();
    let mut parts = Vec::new();
    let mut foreign = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        match Found::of(&entry, ours) {
            Found::Part => parts.push(entry.path()),
            Found::Kept => {}
            Found::Foreign => foreign.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    if !foreign.is_empty() {
        foreign.sort();
        let more = if foreign.len() > 5 { ", ..." } else { "" };
        foreign.truncate(5);
        return Err(Error::value(
            "bank directory",
            "a new or an empty directory",
            format!("{} with {}{more}", dir.display(), foreign.join(", ")),
        ));
    }
    // The marker goes last: it vouches for the others.
    parts.sort_by_key(|p| p.ends_with(MARKER));
    for part in parts {
        let removed = if part.ends_with(FEEDBACK) {
            std::fs::remove_dir(&part)
        } else {
            std::fs::remove_file(&part)
        };
        removed.map_err(|e| Error::io(&part, e))?;
    }
    Ok(())
}

/// What an entry of a directory without `bank.toml` is.
enum Found {
    /// Left by a creation; holds nothing.
    Part,
    /// Not in the way: an engine's log and state, a bank of its own, a file system's own folder.
    Kept,
    Foreign,
}

impl Found {
    /// `ours`: the marker says that all of our names were made by a creation. (Version 0.1 made
    /// none; there a file counts when its content says so.)
    fn of(entry: &DirEntry, ours: bool) -> Self {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Self::Foreign;
        };
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            return Self::Foreign;
        };
        let part = match name {
            FEEDBACK => {
                kind.is_dir() && std::fs::read_dir(&path).is_ok_and(|mut d| d.next().is_none())
            }
            _ if name.starts_with("engine-") || name.starts_with(".engine-") => {
                return Self::Kept;
            }
            "lost+found" => return Self::Kept,
            // The banks of prewarm's shards, before they are merged.
            _ if kind.is_dir() && path.join(INFO_FILE).is_file() => return Self::Kept,
            _ if !kind.is_file() => false,
            MARKER => true,
            DATA_FILE => ours || has_no_records(&path),
            BOARD_FILE => ours || starts_with(&path, &[b"MBDEMAND"]),
            USES_FILE => ours || starts_with(&path, &[b"MBUSES"]),
            LOCK_FILE => ours || starts_with(&path, &[&[0; 4], &LMDB_MAGIC]),
            // `tempfile`'s names.
            _ if name.starts_with(".tmp") && ours => true,
            _ => false,
        };
        if part { Self::Part } else { Self::Foreign }
    }
}

/// First bytes of a lock file in use.
const LMDB_MAGIC: [u8; 4] = 0xBEEF_C0DE_u32.to_le_bytes();

/// Whether a file is empty or starts with one of these.
fn starts_with(path: &Path, heads: &[&[u8]]) -> bool {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|f| f.take(8).read_to_end(&mut head))
        .is_ok()
        && (head.is_empty() || heads.iter().any(|h| head.starts_with(h)))
}

/// Whether this is the data file of a bank that never held anything, or the beginning of one.
fn has_no_records(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        return true;
    }
    // SAFETY: only read, and nobody has the bank open that is not finished.
    let Ok(map) = (unsafe { Mmap::map(&file) }) else {
        return false;
    };
    lmdb_pages::holds_nothing(&map, &TABLE_NAMES)
}
