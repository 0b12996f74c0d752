//! `mosaicbank._engine`: the generator, which needs libtorch.

use pyo3::prelude::*;

mod arrays;
mod call;
mod generator;
mod mosaic;
mod region;

pub use generator::PyGenerator;
pub use mosaic::{PyInstance, PyMosaic, PyRegionResult};

/// The diffusion engine of mosaicbank. Private: import `mosaicbank` instead, which loads torch
/// first.
#[pymodule]
pub fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<PyGenerator>()?;
    m.add_class::<PyMosaic>()?;
    m.add_class::<PyRegionResult>()?;
    m.add_class::<PyInstance>()?;
    m.add_function(wrap_pyfunction!(super::cli::main, m)?)?;
    Ok(())
}
