//! The command line, called by the console script.

#[cfg(feature = "engine")]
use std::path::Path;
use std::path::PathBuf;

use pyo3::prelude::*;

use super::enter;
use crate::cli::{self, Context};

/// Directory of the Python package.
fn package_dir(py: Python<'_>) -> Option<PathBuf> {
    let path = py.import("mosaicbank").ok()?.getattr("__path__").ok()?;
    path.get_item(0).ok()?.extract().ok()
}

/// The directory that a model name stands for.
///
/// # Errors
/// `FileNotFoundError` when the package does not hold the embedded model.
#[cfg(feature = "engine")]
pub fn resolve_model(py: Python<'_>, name: &Path) -> PyResult<PathBuf> {
    Ok(Context {
        package: package_dir(py),
    }
    .model(name)?)
}

/// Run the command line and return its exit status.
///
/// Args:
///     argv: the arguments, without the program's name.
#[pyfunction]
pub fn main(py: Python<'_>, argv: Vec<String>) -> PyResult<u8> {
    let context = Context {
        package: package_dir(py),
    };
    enter(py, || Ok(cli::run(&argv, &context)))
}
