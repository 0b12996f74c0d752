//! The bank: synthesized mosaics and instances on disk, beside the training run.
//!
//! One directory:
//!
//! | file | holds |
//! | --- | --- |
//! | `bank.toml` | format version, category table, limits, recipe: for people too |
//! | `data.mdb`, `lock.mdb` | an LMDB environment with the records |
//! | `uses.bin` | how often each record was used ([`uses`]) |
//! | `demand.bin` | the demand board ([`board`]) |
//! | `recipes/` | the recipes of its mosaics as JSON, named by their hashes |
//! | `feedback/`, `engine-*.json` | written by feedback and engines, not read here |
//!
//! Many processes read without locks, one writes at a time, each commit is atomic and durable.
//! Readers never let LMDB interpret a tree page ([`lmdb_pages`]) and verify each record's checksum
//! ([`format`]): what is damaged is skipped and counted. Nothing here crosses a fork
//! ([`env`]), owns a thread, or takes a lock that a forked child could inherit.

pub mod board;
pub mod codec;
mod create;
mod disk;
mod env;
pub mod export;
pub mod format;
#[doc(hidden)]
pub mod fuzzing;
pub mod import;
mod index;
mod limits;
mod lmdb_pages;
mod reader;
mod table;
pub mod uses;
mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use board::{Demand, DemandBoard};
pub use codec::Codec;
pub use format::{InstanceRecord, MosaicRecord};
pub use index::Kind;
pub use limits::{LimitChanges, Limits};
pub use reader::{Choice, Drawn, Stock};
pub use uses::UseCounts;
pub use verify::{BadRecord, VerifyReport};
pub use writer::PutReport;

pub use crate::record::RecordId;

use crate::error::{Error, Result};

/// A region of a bank's mosaic.
pub type Region = crate::record::Region<u32>;
/// An instance of a bank's mosaic.
pub type MosaicInstance = crate::record::Instance<u32>;

/// Name of the human-readable file of a bank.
pub const INFO_FILE: &str = "bank.toml";
/// Folder of a bank's recipes.
const RECIPES: &str = "recipes";
/// Version of the directory's layout that this code writes.
pub const FORMAT: u32 = 1;

/// One line of a bank's category table; the index in the table is the contiguous class id that
/// Detectron2 uses (categories sorted by dataset id).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Category {
    /// The dataset's id.
    pub id: u32,
    /// The dataset's name.
    pub name: String,
    /// `r`, `c` or `f` as LVIS counts; absent when the dataset does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency: Option<String>,
    /// Training images that contain it, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_count: Option<u64>,
}

/// What `bank.toml` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BankInfo {
    /// Version of the layout.
    pub format: u32,
    /// Who made it.
    pub created_by: String,
    /// Codec of new mosaics.
    #[serde(default = "default_mosaic_codec")]
    pub mosaic_codec: Codec,
    /// Codec of new instances.
    #[serde(default = "default_instance_codec")]
    pub instance_codec: Codec,
    /// The recipe, as text, for people; empty when there is none.
    #[serde(default)]
    pub recipe: String,
    /// The limits that it had when it was read; see [`Bank::limits`].
    #[serde(default)]
    pub limits: Limits,
    /// The category table, sorted by id.
    pub categories: Vec<Category>,
}

const fn default_mosaic_codec() -> Codec {
    Codec::Jpeg
}

const fn default_instance_codec() -> Codec {
    Codec::Jpeg
}

impl BankInfo {
    /// The description of a new bank.
    ///
    /// # Errors
    /// [`Error::Value`] when a category id or name occurs twice, or there is none.
    pub fn new(mut categories: Vec<Category>, recipe: &str, limits: Limits) -> Result<Self> {
        categories.sort_by_key(|c| c.id);
        let info = Self {
            format: FORMAT,
            created_by: format!("mosaicbank {}", env!("CARGO_PKG_VERSION")),
            mosaic_codec: default_mosaic_codec(),
            instance_codec: default_instance_codec(),
            recipe: recipe.to_string(),
            limits,
            categories,
        };
        info.validate()?;
        Ok(info)
    }

    fn validate(&self) -> Result<()> {
        let mut names = std::collections::HashSet::new();
        let mut last = None;
        for c in &self.categories {
            if last.is_some_and(|last| last >= c.id) || !names.insert(c.name.as_str()) {
                return Err(Error::value(
                    "categories",
                    "ids and names that occur once, sorted by id",
                    format!("id {} ({:?}) again or out of order", c.id, c.name),
                ));
            }
            last = Some(c.id);
            if let Some(images) = c.image_count {
                limits::fits(&format!("category {:?}: image_count", c.name), images)?;
            }
        }
        self.limits.validate()?;
        if self.categories.is_empty() {
            return Err(Error::value("categories", "at least one", "none"));
        }
        Ok(())
    }

    fn table_hash(&self) -> u64 {
        let mut hash = Sha256::new();
        for c in &self.categories {
            hash.update(c.id.to_le_bytes());
            hash.update((c.name.len() as u64).to_le_bytes());
            hash.update(&c.name);
        }
        let digest: [u8; 32] = hash.finalize().into();
        digest
            .first_chunk::<8>()
            .map_or(0, |b| u64::from_le_bytes(*b))
    }

    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(INFO_FILE);
        let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                what: "bank".into(),
                path: path.clone(),
                hint: "\n`mosaicbank.Bank.create` or `mosaicbank generate` makes a bank".into(),
            },
            std::io::ErrorKind::InvalidData => {
                Error::format(&path, "UTF-8 text", "other bytes")
            }
            _ => Error::io(&path, e),
        })?;
        let table: toml::Table = text.parse().map_err(|e| Error::format(&path, "TOML", e))?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(n) if n == i64::from(FORMAT) => {}
            Some(n) if n > i64::from(FORMAT) => {
                return Err(Error::format(
                    &path,
                    format!("a bank of format {FORMAT} or older"),
                    format!("format {n}: it was written by a newer mosaicbank"),
                ));
            }
            other => {
                return Err(Error::format(
                    &path,
                    format!("format = {FORMAT}"),
                    other.map_or("no format".into(), |n| n.to_string()),
                ));
            }
        }
        let info: Self = table
            .try_into()
            .map_err(|e| Error::format(&path, "a bank description", e))?;
        info.validate()
            .map_err(|e| Error::format(&path, "a valid category table", e))?;
        Ok(info)
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::backend("writing bank.toml", e))?;
        disk::write_beside(&dir.join(INFO_FILE), text.as_bytes())
    }
}

/// An open bank. Cheap to open, safe to share between threads, and to take into a forked child.
#[derive(Debug)]
pub struct Bank {
    dir: PathBuf,
    info: BankInfo,
    limits: limits::LiveLimits,
    env: env::EnvUser,
    board: Option<DemandBoard>,
    uses: Option<UseCounts>,
    /// Stock of the newest commit seen; only ever try-locked.
    stock: Mutex<Option<(u64, std::sync::Arc<Stock>)>>,
    skipped: AtomicU64,
}

impl Bank {
    /// Makes a bank in `dir`, which may be new, empty, or hold what an interrupted creation left,
    /// and opens it. An interruption at any moment leaves no bank or a whole one.
    ///
    /// # Errors
    /// [`Error::Value`] when there is a bank already or the directory holds something else (nothing
    /// is changed then), [`Error::Io`] when it cannot be written.
    pub fn create(dir: &Path, info: BankInfo) -> Result<Self> {
        info.validate()?;
        if !create::create(dir, &info)? {
            return Err(Error::value(
                "bank directory",
                "a directory without a bank",
                format!("{} (it has {INFO_FILE}; open it instead)", dir.display()),
            ));
        }
        Self::open(dir)
    }

    /// Opens the bank in `dir`; makes it, with what `info` returns, where there is none. Of several
    /// processes at once one makes it and the others open it.
    ///
    /// # Errors
    /// As [`Bank::create`] and [`Bank::open`], and what `info` returns.
    pub fn open_or_create(dir: &Path, info: impl FnOnce() -> Result<BankInfo>) -> Result<Self> {
        if !dir.join(INFO_FILE).exists() {
            let info = info()?;
            info.validate()?;
            create::create(dir, &info)?;
        }
        Self::open(dir)
    }

    /// Keeps the text of a recipe, so that its mosaics can be made again.
    ///
    /// # Errors
    /// [`Error::Value`] when `hash` is not hexadecimal, [`Error::Io`] when it cannot be written.
    pub fn keep_recipe(&self, hash: &str, json: &str) -> Result<()> {
        let path = self.recipe_path(hash)?;
        if path.exists() {
            return Ok(());
        }
        let folder = self.dir.join(RECIPES);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        disk::write_beside(&path, json.as_bytes())
    }

    /// The text of the recipe with this hash.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the bank does not have it, [`Error::Value`] when `hash` is not
    /// hexadecimal.
    pub fn recipe(&self, hash: &str) -> Result<String> {
        let path = self.recipe_path(hash)?;
        std::fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                what: format!("recipe {hash}"),
                path,
                hint: String::new(),
            },
            _ => Error::io(&path, e),
        })
    }

    fn recipe_path(&self, hash: &str) -> Result<PathBuf> {
        if hash.is_empty() || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::value(
                "recipe hash",
                "hexadecimal digits",
                format!("{hash:?}"),
            ));
        }
        Ok(self.dir.join(RECIPES).join(format!("{hash}.json")))
    }

    /// Takes over the recipes of another bank.
    fn take_recipes(&self, other: &Self) -> Result<()> {
        let folder = other.dir.join(RECIPES);
        let Ok(entries) = std::fs::read_dir(&folder) else {
            return Ok(());
        };
        for entry in entries {
            let path = entry.map_err(|e| Error::io(&folder, e))?.path();
            let hash = path
                .file_stem()
                .and_then(|s| s.to_str())
                .unwrap_or_default();
            if let (true, Ok(text)) = (
                path.extension().is_some_and(|e| e == "json"),
                other.recipe(hash),
            ) {
                self.keep_recipe(hash, &text)?;
            }
        }
        Ok(())
    }

    /// Opens the bank in `dir`. Where the directory cannot be written (a read-only file
    /// system) the bank can be read, but nothing is counted.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Format`] when it is damaged or newer,
    /// [`Error::Io`] when it cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let info = BankInfo::read(dir)?;
        let data = dir.join(env::DATA_FILE);
        if !data.exists() {
            return Err(Error::NotFound {
                what: "the bank's records".into(),
                path: data,
                hint: String::new(),
            });
        }
        let user = env::EnvUser::new(dir)?;
        let optional = |e: Error| match &e {
            Error::Io { source, .. }
                if matches!(
                    source.raw_os_error(),
                    Some(libc::EROFS | libc::EACCES | libc::EPERM | libc::ENOSPC)
                ) =>
            {
                tracing::warn!("uses and demand are not counted: {e}");
                Ok(None)
            }
            _ => Err(e),
        };
        let board = DemandBoard::open(dir, info.categories.len(), info.table_hash())
            .map(Some)
            .or_else(optional)?;
        let uses = UseCounts::open(dir)
            .map(Some)
            .or_else(|e| match optional(e) {
                Ok(_) => Ok(None),
                Err(e) => Err(e),
            })?;
        Ok(Self {
            dir: dir.canonicalize().map_err(|e| Error::io(dir, e))?,
            limits: limits::LiveLimits::new(info.limits),
            info,
            env: user,
            board,
            uses,
            stock: Mutex::new(None),
            skipped: AtomicU64::new(0),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What `bank.toml` says.
    pub const fn info(&self) -> &BankInfo {
        &self.info
    }

    /// The category table, sorted by dataset id.
    pub fn categories(&self) -> &[Category] {
        &self.info.categories
    }

    /// Index of a category by name.
    ///
    /// # Errors
    /// [`Error::UnknownCategory`], with the nearest name as a hint.
    pub fn category(&self, name: &str) -> Result<u32> {
        if let Some(i) = self.info.categories.iter().position(|c| c.name == name) {
            return Ok(i as u32);
        }
        let near = self
            .info
            .categories
            .iter()
            .map(|c| (strsim::levenshtein(name, &c.name), &c.name))
            .min()
            .filter(|(d, _)| *d <= name.len() / 3 + 1);
        Err(Error::UnknownCategory {
            name: name.into(),
            place: self.dir.join(INFO_FILE).display().to_string(),
            hint: near.map_or(String::new(), |(_, n)| format!("; did you mean {n:?}?")),
        })
    }

    /// The demand board; `None` where the bank cannot be written.
    pub const fn board(&self) -> Option<&DemandBoard> {
        self.board.as_ref()
    }

    /// How often a record was used.
    pub(crate) fn uses_of(&self, slot: u32) -> u32 {
        self.uses.as_ref().map_or(0, |u| u.get(slot))
    }

    /// Damaged records that draws have skipped since the bank was opened.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    fn skip(&self, kind: Kind, id: RecordId, why: &str) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("skipping {} {id}: {why}", kind.name());
    }

    fn skip_page(&self, why: &str) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("skipping a damaged page: {why}");
    }
}
