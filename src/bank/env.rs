//! LMDB environments, one per bank and process, never used across a fork.
//!
//! An LMDB environment belongs to the process that opened it, and a process may open a
//! file only once. So the process keeps one table of open environments, by canonical path;
//! banks hold a path and look it up for each operation. When the process id has changed (we
//! are a forked DataLoader worker), every inherited environment is closed (LMDB's close
//! touches only what belongs to the calling process) and opened afresh.
//!
//! The table's lock is taken by a `pthread_atfork` handler before a fork and released on both
//! sides after it, so a child never inherits it (nor `heed`'s own, which is only taken
//! under ours) in a locked state.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, WithoutTls};
use memmap2::Mmap;
use parking_lot::Mutex;

use super::disk::{FileId, allocate, may_have_holes, share};
use super::lmdb_pages::{self, Meta, Trees};
use crate::error::{Error, Result};

/// Bytes to bytes; keys sort as bytes.
pub(super) type Db = Database<Bytes, Bytes>;

/// File that holds the records.
pub(super) const DATA_FILE: &str = "data.mdb";
/// LMDB's reader table and writer mutex.
pub(super) const LOCK_FILE: &str = "lock.mdb";
/// Reader slots: one per read transaction open at the same moment, over all processes.
const MAX_READERS: u32 = 1022;
/// Bytes of a lock file with that many slots (64 bytes each and a header of two pages at most).
const LOCK_BYTES: u64 = (MAX_READERS as u64 + 2) * 64 + 8192;
/// Address space tried for the map, largest first; the file is sparse, no memory is used.
const MAP_SIZES: [usize; 5] = [1 << 40, 1 << 38, 1 << 36, 1 << 34, 1 << 32];

/// The tables of a bank.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    /// Mosaic id (16 bytes) to frame.
    pub mosaics: Db,
    /// Instance id (16 bytes) to frame.
    pub instances: Db,
    /// (kind, category, position) to [`super::index::Entry`]; positions are dense.
    pub by_category: Db,
    /// (kind, id) to [`super::index::Place`].
    pub places: Db,
    /// Counters, see [`super::index`].
    pub counters: Db,
    /// Slots of the use-count file that are free again.
    pub free_slots: Db,
    /// Ids that were evicted or retired: they never come back.
    pub gone: Db,
}

/// Names of the tables, in the order of [`Tables`].
pub(super) const TABLE_NAMES: [&str; 7] = [
    "mosaics",
    "instances",
    "by_category",
    "places",
    "counters",
    "free_slots",
    "gone",
];

/// An open environment of this process.
pub(super) struct OpenEnv {
    env: ManuallyDrop<Env<WithoutTls>>,
    /// The tables for writing, opened (after a check of the whole file) by the first writer.
    tables: OnceLock<Tables>,
    /// The data file for reading; as long as the file was at last look.
    map: Mutex<Arc<Mmap>>,
    file: File,
    id: FileId,
    /// Whether write transactions are possible.
    pub writable: bool,
    dir: PathBuf,
}

impl OpenEnv {
    /// The environment.
    pub fn env(&self) -> &Env<WithoutTls> {
        &self.env
    }

    /// Runs `f` on the newest commit: its trees, and its number.
    ///
    /// # Errors
    /// What `f` returns; [`Error::Format`] when the file is damaged so badly that there is no
    /// commit to read.
    pub fn read<T>(&self, f: impl FnOnce(&Trees<'_>, u64) -> Result<T>) -> Result<T> {
        self.snapshot(|map, meta| f(&Trees::new(map, meta), meta.txn))
    }

    /// Walks every tree page of the newest commit.
    ///
    /// # Errors
    /// [`Error::Format`] with the first damage.
    pub fn check(&self) -> Result<lmdb_pages::Checked> {
        self.snapshot(|map, meta| {
            lmdb_pages::check_file(map, meta).map_err(|d| self.damaged(d))
        })
    }

    fn snapshot<T>(&self, f: impl FnOnce(&[u8], &Meta) -> Result<T>) -> Result<T> {
        // The meta page of commit n is overwritten by commit n + 2, which cannot begin before
        // n + 1 is announced; so as long as a later transaction still sees n, what we copied is
        // whole. (The newest meta page says less: a writer killed before its announcement
        // leaves it one ahead.)
        let mut txn = self.begin()?;
        for _ in 0..1000 {
            let id = txn.id();
            let map = self.map.lock().clone();
            self.check_length(&map)?;
            let found = lmdb_pages::meta_of(&map, id as u64);
            let probe = self.begin()?;
            if probe.id() != id {
                txn = probe;
                continue;
            }
            drop(probe);
            let meta = found.map_err(|d| self.damaged(d))?;
            if meta.txn != id as u64 {
                let found = format!("the meta page of commit {}, not of {id}", meta.txn);
                return Err(self.damaged(found));
            }
            let map = self.map_for(map, &meta)?;
            let out = f(&map, &meta);
            drop(txn);
            return out;
        }
        Err(Error::backend(
            "reading the bank",
            "commits came too fast to see one",
        ))
    }

    fn begin(&self) -> Result<RoTxn<'_, WithoutTls>> {
        match self.env.read_txn() {
            Err(heed::Error::Mdb(MdbError::ReadersFull)) => {
                self.clear_dead_readers()?;
                self.env.read_txn()
            }
            other => other,
        }
        .map_err(|e| self.error("starting to read", e))
    }

    /// Frees the reader slots of processes that were killed.
    pub fn clear_dead_readers(&self) -> Result<()> {
        self.env
            .clear_stale_readers()
            .map(|_| ())
            .map_err(|e| self.error("clearing readers that died", e))
    }

    /// Refuses a file that was cut under us; reading on would be a SIGBUS. (LMDB never shortens
    /// it. A cut while we read still is one.)
    fn check_length(&self, map: &Mmap) -> Result<()> {
        let io = |e| Error::io(self.dir.join(DATA_FILE), e);
        let len = self.file.metadata().map_err(io)?.len();
        if len < map.len() as u64 {
            let cut = format!("a file that was cut from {} to {len} bytes", map.len());
            return Err(self.damaged(cut));
        }
        Ok(())
    }

    /// The mapping, renewed when the commit has pages behind its end.
    fn map_for(&self, map: Arc<Mmap>, meta: &Meta) -> Result<Arc<Mmap>> {
        let need = (meta.last_page + 1).saturating_mul(meta.page_size as u64);
        if map.len() as u64 >= need {
            return Ok(map);
        }
        let data = self.dir.join(DATA_FILE);
        let len = self.file.metadata().map_err(|e| Error::io(&data, e))?.len();
        if len <= map.len() as u64 {
            // LMDB's file may end before its last page when the last pages are free; a file
            // that was cut shows as pages beyond the end.
            return Ok(map);
        }
        let new = Arc::new(map_file(&self.file).map_err(|e| Error::io(&data, e))?);
        *self.map.lock() = new.clone();
        Ok(new)
    }

    /// Damage in the data file as our error.
    pub fn damaged(&self, damage: impl std::fmt::Display) -> Error {
        Error::format(
            self.dir.join(DATA_FILE),
            "an undamaged LMDB file",
            format!("{damage}\n`mosaicbank compact` saves what can be read into a new bank"),
        )
    }

    /// The tables for writing. The first call walks the whole tree.
    ///
    /// # Errors
    /// [`Error::Format`] when the file is damaged, [`Error::Io`] when it is read-only.
    pub fn tables(&self) -> Result<&Tables> {
        if let Some(tables) = self.tables.get() {
            return Ok(tables);
        }
        if !self.writable {
            return Err(Error::Io {
                path: self.dir.join(DATA_FILE),
                source: std::io::Error::from_raw_os_error(libc::EROFS),
            });
        }
        self.check()?;
        let tables = match open_tables(&self.env) {
            // A bank of version 0.1 whose creation was interrupted: finish it.
            Err(heed::Error::Mdb(MdbError::NotFound))
                if self.snapshot(|_, meta| Ok(meta.main.entries == 0))? =>
            {
                create_tables(&self.env)
            }
            other => other,
        }
        .map_err(|e| self.error("opening the tables", e))?;
        Ok(self.tables.get_or_init(|| tables))
    }

    /// An LMDB failure as our error.
    pub fn error(&self, what: &str, e: heed::Error) -> Error {
        lmdb_error(&self.dir, what, e)
    }
}

/// An LMDB failure on the bank in `dir` as our error.
pub(super) fn lmdb_error(dir: &Path, what: &str, e: heed::Error) -> Error {
    let data = dir.join(DATA_FILE);
    match e {
        // A write that the disk took half of is an EIO to LMDB.
        heed::Error::Io(source)
            if source.raw_os_error() == Some(libc::EIO) && disk_is_full(dir) =>
        {
            Error::Io {
                path: data,
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
            }
        }
        heed::Error::Io(source) => Error::io(data, source),
        heed::Error::Mdb(MdbError::MapFull) => Error::Io {
            path: data,
            source: std::io::Error::from_raw_os_error(libc::ENOSPC),
        },
        heed::Error::Mdb(
            e @ (MdbError::Corrupted
            | MdbError::Invalid
            | MdbError::PageNotFound
            | MdbError::VersionMismatch
            | MdbError::Incompatible),
        ) => Error::format(data, "an undamaged LMDB file", format!("{e} while {what}")),
        e => Error::backend(format!("{}: {what}", data.display()), e),
    }
}

/// Whether less is free than a small commit takes.
fn disk_is_full(dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(dir.as_os_str().as_bytes()) else {
        return false;
    };
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a terminated path and room for the answer, which is all zero where it fails.
    let (rc, stat) = unsafe {
        let rc = libc::statvfs(path.as_ptr(), stat.as_mut_ptr());
        (rc, stat.assume_init())
    };
    rc == 0 && stat.f_bavail.saturating_mul(stat.f_frsize) < 1 << 20
}

struct Entry {
    pid: u32,
    /// Tells the banks that were in one directory one after another: the file of a new one may get
    /// the inode of one that was removed and closed.
    generation: u64,
    env: Arc<OpenEnv>,
    users: usize,
}

/// The table of open environments behind a lock that a fork cannot tear.
struct Registry {
    locked: AtomicBool,
    map: UnsafeCell<Option<HashMap<PathBuf, Entry>>>,
}

// SAFETY: `map` is only reached through `with`, which holds `locked`.
unsafe impl Sync for Registry {}

static REGISTRY: Registry = Registry {
    locked: AtomicBool::new(false),
    map: UnsafeCell::new(None),
};
static AT_FORK: Once = Once::new();
static GENERATIONS: AtomicU64 = AtomicU64::new(0);

impl Registry {
    fn acquire(&self) {
        let mut spins = 0u32;
        while self
            .locked
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spins += 1;
            if spins < 64 {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    fn release(&self) {
        self.locked.store(false, Ordering::Release);
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<PathBuf, Entry>) -> T) -> T {
        struct Unlock<'a>(&'a Registry);
        impl Drop for Unlock<'_> {
            fn drop(&mut self) {
                self.0.release();
            }
        }
        AT_FORK.call_once(|| {
            // SAFETY: the handlers only touch an atomic.
            unsafe {
                libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork));
            }
        });
        self.acquire();
        let _unlock = Unlock(self);
        // SAFETY: we hold the lock, and `with` is not re-entered from `f`.
        f(unsafe { &mut *self.map.get() }.get_or_insert_with(HashMap::new))
    }
}

extern "C" fn before_fork() {
    REGISTRY.acquire();
}

extern "C" fn after_fork() {
    REGISTRY.release();
}

/// Closes `entry`'s environment, whatever else still points at it.
///
/// # Safety
/// Nobody may use the environment any more: it was inherited through a fork (the threads that
/// used it do not exist in this process), or its last user is gone.
unsafe fn close(entry: &Entry) {
    // SAFETY: by the contract above nobody reads it again; `OpenEnv` never drops it itself.
    drop(ManuallyDrop::into_inner(unsafe {
        std::ptr::read(&entry.env.env)
    }));
}

/// A registered use of the environment in one directory; the last one to go closes it.
#[derive(Debug)]
pub(super) struct EnvUser {
    dir: PathBuf,
    id: FileId,
    generation: u64,
}

impl EnvUser {
    /// Registers a user of the bank in `dir` and opens its environment.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a data file, [`Error::Format`] when it is damaged,
    /// [`Error::Io`] when it or the lock file cannot be opened, or the disk has no room for the
    /// lock file.
    pub fn new(dir: &Path) -> Result<Self> {
        Self::register(dir, false)
    }

    fn register(dir: &Path, fresh: bool) -> Result<Self> {
        let dir = dir.canonicalize().map_err(|e| Error::io(dir, e))?;
        REGISTRY.with(|map| {
            close_replaced(map, &dir)?;
            let entry = current(map, &dir, fresh)?;
            entry.users += 1;
            let (id, generation) = (entry.env.id, entry.generation);
            Ok(Self {
                dir,
                id,
                generation,
            })
        })
    }

    /// The environment of this process, reopened when the process is a new one.
    ///
    /// # Errors
    /// As [`EnvUser::new`]; [`Error::NotFound`] or [`Error::Format`] when the bank was removed or
    /// replaced since.
    pub fn get(&self) -> Result<Arc<OpenEnv>> {
        let data = self.dir.join(DATA_FILE);
        let replaced = || {
            let found = "another one (the directory was replaced); open the bank again";
            Err(Error::format(&data, "the file that was opened", found))
        };
        match std::fs::metadata(&data) {
            Ok(found) if FileId::of(&found) == self.id => {}
            Ok(_) => return replaced(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotFound {
                    what: "the bank's records".into(),
                    path: data,
                    hint: " (removed since the bank was opened)".into(),
                });
            }
            Err(e) => return Err(Error::io(data, e)),
        }
        REGISTRY.with(|map| {
            if map.get(&self.dir).map(|e| e.generation) != Some(self.generation) {
                return replaced();
            }
            let entry = current(map, &self.dir, false)?;
            if entry.generation != self.generation {
                return replaced();
            }
            Ok(entry.env.clone())
        })
    }
}

impl Drop for EnvUser {
    fn drop(&mut self) {
        REGISTRY.with(|map| {
            let own = |entry: &&mut Entry| entry.generation == self.generation;
            let Some(entry) = map.get_mut(&self.dir).filter(own) else {
                return;
            };
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0
                && let Some(entry) = map.remove(&self.dir)
            {
                // SAFETY: no user is left; operations borrow from a user.
                unsafe { close(&entry) };
            }
        });
    }
}

/// Closes the environment of a bank that was removed: its path is wanted for another.
fn close_replaced(map: &mut HashMap<PathBuf, Entry>, dir: &Path) -> Result<()> {
    let Some(entry) = map.get(dir).filter(|e| e.pid == std::process::id()) else {
        return Ok(());
    };
    if std::fs::metadata(dir.join(DATA_FILE)).is_ok_and(|m| FileId::of(&m) == entry.env.id) {
        return Ok(());
    }
    // Operations hold the environment while they run, and take it under the lock that we hold.
    if Arc::strong_count(&entry.env) > 1 {
        return Err(Error::backend(
            format!("opening the bank {}", dir.display()),
            "another thread still uses the bank that was here before",
        ));
    }
    if let Some(entry) = map.remove(dir) {
        // SAFETY: nobody uses it, and its users find another one here from now on.
        unsafe { close(&entry) };
    }
    Ok(())
}

/// The entry of `dir` for this process.
fn current<'m>(
    map: &'m mut HashMap<PathBuf, Entry>,
    dir: &Path,
    fresh: bool,
) -> Result<&'m mut Entry> {
    let pid = std::process::id();
    let mut before = None;
    if map.get(dir).is_some_and(|e| e.pid != pid)
        && let Some(old) = map.remove(dir)
    {
        before = Some((old.env.id, old.generation, old.users));
        // SAFETY: opened by another process, whose threads are not here.
        unsafe { close(&old) };
    }
    if !map.contains_key(dir) {
        let env = Arc::new(open_env(dir, fresh)?);
        // Users of a bank that was replaced are not users of this one.
        let (generation, users) = match before {
            Some((id, generation, users)) if id == env.id => (generation, users),
            _ => (GENERATIONS.fetch_add(1, Ordering::Relaxed), 0),
        };
        let entry = Entry {
            pid,
            generation,
            env,
            users,
        };
        map.insert(dir.to_path_buf(), entry);
    }
    map.get_mut(dir)
        .ok_or_else(|| Error::backend("bank", "the table of environments lost an entry"))
}

/// Creates the data and lock files of a new bank.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be written.
pub(super) fn create_env(dir: &Path) -> Result<()> {
    drop(EnvUser::register(dir, true)?);
    share(&dir.join(DATA_FILE), dir);
    Ok(())
}

/// Gives the lock file real blocks, so that a full disk never turns a write to its mapping into a
/// SIGBUS. A new one appears whole or not at all: another process may open the bank at the same
/// moment.
fn allocate_lock(dir: &Path) -> Result<()> {
    let path = dir.join(LOCK_FILE);
    let io = |e| Error::io(dir.join(LOCK_FILE), e);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() >= LOCK_BYTES && !may_have_holes(&found, found.len()) => {
            Ok(())
        }
        Ok(found) => {
            // LMDB is not open on it in this process: closing the file releases none of its locks.
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(io)?;
            // Who has mapped a shorter file must not see slots beyond its end.
            let len = if is_locked(&file) {
                found.len()
            } else {
                found.len().max(LOCK_BYTES)
            };
            allocate(&file, 0, len).map_err(io)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let file = tempfile::NamedTempFile::new_in(dir).map_err(io)?;
            allocate(file.as_file(), 0, LOCK_BYTES).map_err(io)?;
            share(file.path(), dir);
            match file.persist_noclobber(&path) {
                Err(e) if e.error.kind() != std::io::ErrorKind::AlreadyExists => {
                    Err(io(e.error))
                }
                _ => Ok(()),
            }
        }
        Err(e) => Err(io(e)),
    }
}

/// Whether another process has this lock file open: LMDB locks its first byte.
fn is_locked(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: only asks; the structure lives as long as the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
    asked != 0 || lock.l_type != libc::F_UNLCK as libc::c_short
}

/// Whether the system does not let us write, now or ever.
fn forbids_writing(e: &std::io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EROFS | libc::EACCES | libc::EPERM)
    )
}

/// Opens the environment: read-write where the file system lets us, else read-only.
fn open_env(dir: &Path, fresh: bool) -> Result<OpenEnv> {
    if !fresh {
        lmdb_pages::check_header(&dir.join(DATA_FILE))?;
    }
    match allocate_lock(dir) {
        // LMDB does without where the file system is read-only, and says below where it does not.
        Err(Error::Io { source, .. }) if forbids_writing(&source) => {}
        other => other?,
    }
    match open_sized(dir, false, fresh) {
        Err(heed::Error::Io(e)) if !fresh && forbids_writing(&e) => open_sized(dir, true, fresh),
        other => other,
    }
    .map_err(|e| match e {
        heed::Error::Io(e) if !fresh && forbids_writing(&e) => Error::Io {
            path: dir.join(LOCK_FILE),
            source: std::io::Error::new(
                e.kind(),
                format!(
                    "{e}: readers of a bank register in this file, so its users must be allowed \
                     to write it\nhint: `chmod a+rw` it, or copy the bank"
                ),
            ),
        },
        e => lmdb_error(dir, "opening the bank", e),
    })
}

fn open_sized(dir: &Path, read_only: bool, fresh: bool) -> Result<OpenEnv, heed::Error> {
    let mut last = None;
    for size in MAP_SIZES {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options
            .map_size(size)
            .max_readers(MAX_READERS)
            .max_dbs(TABLE_NAMES.len() as u32);
        if read_only {
            // SAFETY: READ_ONLY is not one of the flags that weaken LMDB's guarantees.
            unsafe { options.flags(EnvFlags::READ_ONLY) };
        }
        // SAFETY: the registry opens a path once per process, and the header was checked.
        let env = match unsafe { options.open(dir) } {
            Ok(env) => env,
            Err(heed::Error::Io(e)) if e.raw_os_error() == Some(libc::ENOMEM) => {
                last = Some(heed::Error::Io(e));
                continue;
            }
            Err(e) => return Err(e),
        };
        let tables = OnceLock::new();
        if fresh {
            let _ = tables.set(create_tables(&env)?);
        }
        let file = File::open(dir.join(DATA_FILE))?;
        return Ok(OpenEnv {
            env: ManuallyDrop::new(env),
            tables,
            map: Mutex::new(Arc::new(map_file(&file)?)),
            id: FileId::of(&file.metadata()?),
            file,
            writable: !read_only,
            dir: dir.to_path_buf(),
        });
    }
    Err(last.unwrap_or(heed::Error::Mdb(MdbError::MapFull)))
}

fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: pages of a commit that a read transaction holds are never written; meta pages
    // are copied out and checked. LMDB never shrinks its file.
    unsafe { Mmap::map(file) }
}

fn tables_from(mut open: impl FnMut(&str) -> heed::Result<Db>) -> heed::Result<Tables> {
    let [
        mosaics,
        instances,
        by_category,
        places,
        counters,
        free_slots,
        gone,
    ] = TABLE_NAMES;
    Ok(Tables {
        mosaics: open(mosaics)?,
        instances: open(instances)?,
        by_category: open(by_category)?,
        places: open(places)?,
        counters: open(counters)?,
        free_slots: open(free_slots)?,
        gone: open(gone)?,
    })
}

fn open_tables(env: &Env<WithoutTls>) -> heed::Result<Tables> {
    let txn = env.read_txn()?;
    let tables = tables_from(|name| {
        env.open_database::<Bytes, Bytes>(&txn, Some(name))?
            .ok_or(heed::Error::Mdb(MdbError::NotFound))
    })?;
    // Handles of named tables outlive the transaction only when it commits.
    txn.commit()?;
    Ok(tables)
}

fn create_tables(env: &Env<WithoutTls>) -> heed::Result<Tables> {
    let mut txn = env.write_txn()?;
    let tables = tables_from(|name| env.create_database(&mut txn, Some(name)))?;
    txn.commit()?;
    Ok(tables)
}
