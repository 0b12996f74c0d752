//! Seeds: each is used once per bank, even if engines are killed or run in parallel.
//!
//! A seed is a *stream* (31 bits, drawn when the bank gets its first engine) and a number that
//! counts up within it. The counter is in the bank (`seeds.json`). Engines take blocks of numbers
//! under a file lock; the rest of a block is lost when an engine ends. Banks have different streams,
//! so that banks of several machines can be merged.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::dataset::write_beside;
use crate::error::{Error, Result};
use crate::rng;

/// The counter's file in the bank.
pub const SEEDS_FILE: &str = "seeds.json";
const LOCK_FILE: &str = "seeds.lock";

/// Seeds per block.
const BLOCK: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    /// High half of every seed; below 2^31, so that a seed fits a signed 64-bit integer.
    stream: u32,
    /// The next free number.
    next: u32,
}

/// Hands out seeds of one bank.
#[derive(Debug)]
pub struct Seeds {
    dir: PathBuf,
    /// Stream for a bank without one; random if `None`.
    base: Option<u64>,
    block: Counter,
    left: u32,
}

impl Seeds {
    /// For the bank in `dir`. `base` sets the stream of a bank without one.
    pub fn new(dir: &Path, base: Option<u64>) -> Self {
        Self {
            dir: dir.to_path_buf(),
            base,
            block: Counter { stream: 0, next: 0 },
            left: 0,
        }
    }

    /// A seed that is used nowhere else in the bank.
    ///
    /// # Errors
    /// [`Error::Io`] when the bank cannot be written, [`Error::Format`] when the counter's file
    /// is damaged.
    pub fn take(&mut self) -> Result<u64> {
        if self.left == 0 {
            self.block = self.reserve()?;
            self.left = BLOCK;
        }
        let seed = (u64::from(self.block.stream) << 32) | u64::from(self.block.next);
        self.block.next += 1;
        self.left -= 1;
        Ok(seed)
    }

    /// Takes the next block out of the file.
    fn reserve(&self) -> Result<Counter> {
        let lock_path = self.dir.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| Error::io(&lock_path, e))?;
        lock.lock().map_err(|e| Error::io(&lock_path, e))?;
        let path = self.dir.join(SEEDS_FILE);
        let mut counter = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Error::format(
                    &path,
                    "{\"stream\": number, \"next\": number}",
                    format!("{e}\nhint: without the file, a new stream is begun"),
                )
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Counter {
                stream: self.stream(0),
                next: 0,
            },
            Err(e) => return Err(Error::io(&path, e)),
        };
        if counter.next > u32::MAX - 2 * BLOCK {
            counter = Counter {
                stream: self.stream(u64::from(counter.stream) + 1),
                next: 0,
            };
        }
        let after = Counter {
            next: counter.next + BLOCK,
            ..counter
        };
        let text = serde_json::to_vec(&after).map_err(|e| Error::backend("seeds", e))?;
        write_beside(&path, |out| out.write_all(&text))?;
        sync_directory(&self.dir);
        Ok(counter)
    }

    fn stream(&self, index: u64) -> u32 {
        let bits = match self.base {
            Some(base) => rng::keyed(base, "seed stream", index).random::<u32>(),
            None => rand::rng().random::<u32>(),
        };
        bits >> 1
    }
}

/// Syncs the directory, so that a rename survives a power cut. Where this is not supported, only
/// that guarantee is lost.
fn sync_directory(dir: &Path) {
    if let Ok(file) = File::open(dir) {
        let _ = file.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn seeds_never_repeat_across_engines_and_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let mut seen = BTreeSet::new();
        std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut all = Vec::new();
                        for _ in 0..5 {
                            // Dropped before its block is used up, as a killed engine is.
                            let mut seeds = Seeds::new(path, None);
                            all.extend((0..80).map(|_| seeds.take().unwrap()));
                        }
                        all
                    })
                })
                .collect();
            for taker in takers {
                for seed in taker.join().unwrap() {
                    assert!(seed < 1 << 63);
                    assert!(seen.insert(seed), "{seed} twice");
                }
            }
        });
        assert_eq!(seen.len(), 4 * 5 * 80);
        let streams: BTreeSet<u64> = seen.iter().map(|s| s >> 32).collect();
        assert_eq!(streams.len(), 1);
    }

    #[test]
    fn banks_have_streams_of_their_own_unless_a_base_is_given() {
        let first = |base| {
            let dir = tempfile::tempdir().unwrap();
            Seeds::new(dir.path(), base).take().unwrap()
        };
        assert_ne!(first(None), first(None));
        assert_eq!(first(Some(7)), first(Some(7)));
        assert_ne!(first(Some(7)), first(Some(8)));
    }

    #[test]
    fn a_damaged_counter_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SEEDS_FILE), b"{\"stream\": 1").unwrap();
        let text = Seeds::new(dir.path(), None).take().unwrap_err().to_string();
        assert!(text.contains(SEEDS_FILE) && text.contains("hint"), "{text}");
    }

    #[test]
    fn a_used_up_stream_is_followed_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let end = format!("{{\"stream\": 5, \"next\": {}}}", u32::MAX - 10);
        std::fs::write(dir.path().join(SEEDS_FILE), end).unwrap();
        let seed = Seeds::new(dir.path(), Some(1)).take().unwrap();
        assert_eq!(seed as u32, 0);
        assert_ne!(seed >> 32, 5);
    }
}
