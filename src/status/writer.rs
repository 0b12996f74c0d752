//! The thread that keeps the status file up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::rates::Rates;
use super::{EngineStatus, State};
use crate::error::{Error, Result};

/// How often the file is written.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the thread checks whether the engine is being stopped.
const POLL: Duration = Duration::from_millis(100);

/// Holds an engine's status and writes it about once a second, on its own thread.
pub struct StatusWriter {
    dir: PathBuf,
    status: Mutex<EngineStatus>,
    rates: Mutex<Rates>,
    ended: AtomicBool,
    /// Held while the file is written, so that a slow disk does not block `status`.
    writing: Mutex<()>,
}

impl StatusWriter {
    /// Starts the thread for the bank in `dir`. The first file is written before this returns.
    /// Once `stopped` returns true the state is [`State::Stopping`].
    ///
    /// # Errors
    /// [`Error::Io`] when the bank cannot be written, [`Error::Backend`] when the thread cannot be
    /// started.
    pub fn start(dir: &Path, command: &str, stopped: fn() -> bool) -> Result<Arc<Self>> {
        EngineStatus::clean(dir);
        let mut status = EngineStatus::new(command);
        status.write(dir)?;
        let writer = Arc::new(Self {
            dir: dir.to_path_buf(),
            status: Mutex::new(status),
            rates: Mutex::new(Rates::default()),
            ended: AtomicBool::new(false),
            writing: Mutex::new(()),
        });
        let own = writer.clone();
        std::thread::Builder::new()
            .name("status".into())
            .spawn(move || {
                let mut written = Instant::now();
                while !own.ended.load(Ordering::Acquire) {
                    if stopped() {
                        own.set_state(State::Stopping);
                    }
                    if written.elapsed() >= INTERVAL {
                        written = Instant::now();
                        own.write();
                    }
                    std::thread::sleep(POLL);
                }
            })
            .map_err(|e| Error::backend("starting the status thread", e))?;
        Ok(writer)
    }

    /// Changes or reads the status. The next write includes the change.
    pub fn update<T>(&self, change: impl FnOnce(&mut EngineStatus) -> T) -> T {
        change(&mut self.status.lock())
    }

    /// Sets the state and writes the file if it changed. An engine that is stopping or has ended
    /// keeps its state.
    pub fn set_state(&self, state: State) {
        let changed = self.update(|s| {
            let changes = s.state != state && s.state != State::Stopping && !s.state.is_final();
            if changes {
                s.state = state;
            }
            changes
        });
        if !changed {
            return;
        }
        match state {
            State::Working => self.rates.lock().start(),
            State::Stocked | State::Paused => self.rates.lock().stop(),
            _ => {}
        }
        self.write();
    }

    /// Records an error in the status and in the log.
    pub fn error(&self, error: &Error) {
        tracing::warn!("{error}");
        self.update(|s| s.record_error(error));
    }

    /// Counts what was just committed: mosaics, their instances, and regions without one.
    pub fn committed(&self, mosaics: u64, instances: u64, rejected: u64) {
        self.update(|s| {
            s.mosaics += mosaics;
            s.instances += instances;
            s.rejected += rejected;
        });
        self.rates.lock().add(mosaics, instances);
    }

    fn write(&self) {
        let _writing = self.writing.lock();
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        let (mosaics, instances) = self.rates.lock().per_second();
        let mut now = self.update(|s| {
            s.mosaics_per_second = mosaics;
            s.instances_per_second = instances;
            s.record_moment(super::now());
            s.clone()
        });
        // The work continues without it; readers see the age of the file.
        let _ = now.write(&self.dir);
    }

    /// Records how the engine ended, and writes the file for the last time.
    pub fn end(&self, out: &Result<()>) {
        self.update(|s| {
            s.coming.clear();
            match out {
                Ok(()) | Err(Error::Interrupted) => s.state = State::Stopped,
                Err(e) => {
                    s.record_error(e);
                    s.state = State::Failed;
                }
            }
        });
        self.write();
        self.ended.store(true, Ordering::Release);
    }
}
