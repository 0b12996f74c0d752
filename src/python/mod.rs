//! The Python bindings: thin, one file per room, and one door into Rust.
//!
//! `mosaicbank._core` ([`core`]) is the trainer's side and links no libtorch;
//! `mosaicbank._engine` exists with the cargo feature `engine` only.
//!
//! Every method that does work goes through [`enter`]: it gives up the GIL, turns a panic
//! into an exception and every [`Error`] variant into its natural Python exception, and lets
//! Ctrl-C through. Nothing else in these files may release the GIL or unwind. No lock is taken
//! while the GIL is held: [`Exclusive`] is the only lock here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use parking_lot::ReentrantMutex;
use pyo3::exceptions::{
    PyFileNotFoundError, PyKeyError, PyKeyboardInterrupt, PyMemoryError, PyOSError,
    PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;

use crate::error::{Error, Result, panic_message};

pub mod bank;
mod cli;
mod convert;
pub mod core;
pub mod dataset;
#[cfg(feature = "engine")]
pub mod engine;
pub mod mask;
pub mod paste;
mod random;
pub mod sampler;
pub mod status;

impl From<Error> for PyErr {
    fn from(e: Error) -> Self {
        let message = e.to_string();
        match e {
            Error::Value { .. } | Error::Format { .. } | Error::Tensor { .. } => {
                PyValueError::new_err(message)
            }
            Error::UnknownCategory { .. } => PyKeyError::new_err(message),
            Error::NotFound { .. } => PyFileNotFoundError::new_err(message),
            // With the errno, so that callers can tell "disk full" from "read only".
            Error::Io { path, source } => match source.raw_os_error() {
                Some(errno) => {
                    let text = source.to_string();
                    let text = text
                        .split(" (os error")
                        .next()
                        .unwrap_or_default()
                        .to_string();
                    PyOSError::new_err((errno, text, path.display().to_string()))
                }
                None => PyOSError::new_err(message),
            },
            Error::OutOfMemory { .. } => PyMemoryError::new_err(message),
            Error::Backend { .. } => PyRuntimeError::new_err(message),
            Error::Interrupted => PyKeyboardInterrupt::new_err(message),
        }
    }
}

/// Runs `work` and turns both its errors and its panics into our error.
///
/// # Errors
/// What `work` returns, or [`Error::Backend`] when it panicked.
pub fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        Err(Error::backend(
            "internal error (please report it)",
            panic_message(&*payload),
        ))
    })
}

/// The one door into Rust: without the GIL, guarded, errors mapped, signals checked after.
///
/// # Errors
/// The exception that belongs to the error (see the `From<Error>` above), or the one that a
/// signal handler raised.
pub fn enter<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let out = py.detach(|| guard(work))?;
    py.check_signals()?;
    Ok(out)
}

/// How often a long call or a wait lets Ctrl-C in.
pub const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// A value that one thread uses at a time.
///
/// The only way to it gives up the GIL before it waits: a thread that held the GIL while waiting
/// would block the one that it waits for. The thread that uses the value may use it again, from a
/// callback into Python.
pub struct Exclusive<T>(ReentrantMutex<T>);

impl<T: Send> Exclusive<T> {
    /// Takes the value.
    pub const fn new(value: T) -> Self {
        Self(ReentrantMutex::new(value))
    }

    /// As [`enter`], with the value. Ctrl-C ends the wait for other threads.
    ///
    /// # Errors
    /// As [`enter`].
    pub fn enter<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&T) -> Result<R> + Send,
    ) -> PyResult<R> {
        enter(py, || {
            let value = loop {
                match self.0.try_lock_for(SIGNAL_INTERVAL) {
                    Some(value) => break value,
                    None => check_interrupt()?,
                }
            };
            work(&value)
        })
    }
}

/// For long work inside [`enter`], now and then: takes the GIL for a moment to let Ctrl-C in.
///
/// # Errors
/// [`Error::Interrupted`] when a signal handler raised.
pub fn check_interrupt() -> Result<()> {
    Python::attach(|py| py.check_signals()).map_err(|_| Error::Interrupted)
}
