//! The crate's one error type: every message says what was expected, what was found, and where.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each variant with its natural Python exception.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a configuration value is not acceptable (`ValueError`).
    #[error("{what}: expected {expected}, got {got}")]
    Value {
        /// The argument or key, with the file when it came from one.
        what: String,
        /// The accepted values.
        expected: String,
        /// The value found.
        got: String,
    },

    /// A category is not in the table (`KeyError`).
    #[error("unknown category {name:?} in {place}{hint}")]
    UnknownCategory {
        /// The name as given.
        name: String,
        /// The table that was searched.
        place: String,
        /// `"; did you mean ...?"` or an empty string.
        hint: String,
    },

    /// A file or directory that should exist does not (`FileNotFoundError`).
    #[error("{what} not found: {}{hint}", path.display())]
    NotFound {
        /// What the file is for.
        what: String,
        /// Where it was expected.
        path: PathBuf,
        /// What to do about it, starting on its own line, or an empty string.
        hint: String,
    },

    /// A file exists but its content is not what it should be (`ValueError`).
    #[error("{}: expected {expected}, got {got}", path.display())]
    Format {
        /// The file (and record, where there is one).
        path: PathBuf,
        /// What a valid file holds there.
        expected: String,
        /// What this one holds.
        got: String,
    },

    /// A tensor of a weights file is missing, superfluous, or has another shape or dtype
    /// (`ValueError`).
    #[error("{}: tensor {tensor:?}: expected {expected}, got {got}", file.display())]
    Tensor {
        /// The safetensors file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Shape and dtype that the configuration asks for.
        expected: String,
        /// Shape and dtype in the file, or `"nothing"`.
        got: String,
    },

    /// The operating system refused (`OSError`).
    #[error("{}: {source}", path.display())]
    Io {
        /// The file that was read or written.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// The device has no memory left for this (`MemoryError`).
    #[error("out of memory on {device} while {what}: {message}")]
    OutOfMemory {
        /// `cpu`, `cuda:0`, ...
        device: String,
        /// What was running.
        what: String,
        /// The library's own words.
        message: String,
    },

    /// A library under us failed (`RuntimeError`).
    #[error("{what}: {message}")]
    Backend {
        /// What was running.
        what: String,
        /// The library's own words.
        message: String,
    },

    /// The user asked to stop (`KeyboardInterrupt`).
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An unacceptable argument or configuration value.
    pub fn value(what: impl Display, expected: impl Display, got: impl Display) -> Self {
        Self::Value {
            what: what.to_string(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    /// A file with the wrong content.
    pub fn format(path: impl AsRef<Path>, expected: impl Display, got: impl Display) -> Self {
        Self::Format {
            path: path.as_ref().to_path_buf(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    /// A system error on a path; "not found" becomes [`Error::NotFound`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        if source.kind() == std::io::ErrorKind::NotFound {
            Self::NotFound {
                what: "file".into(),
                path,
                hint: String::new(),
            }
        } else {
            // `tempfile` wraps the system's error and so hides its number.
            let errno = match (source.raw_os_error(), source.kind()) {
                (None, std::io::ErrorKind::StorageFull) => Some(libc::ENOSPC),
                (None, std::io::ErrorKind::ReadOnlyFilesystem) => Some(libc::EROFS),
                (None, std::io::ErrorKind::PermissionDenied) => Some(libc::EACCES),
                _ => None,
            };
            let source = errno.map_or(source, std::io::Error::from_raw_os_error);
            Self::Io { path, source }
        }
    }

    /// A failure of a library under us.
    pub fn backend(what: impl Display, message: impl Display) -> Self {
        Self::Backend {
            what: what.to_string(),
            message: message.to_string(),
        }
    }
}

/// The message of a panic, from the payload of `catch_unwind`.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}
