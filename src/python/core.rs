//! `mosaicbank._core`: the bank, the sampler, the paste and the masks, without libtorch.

use pyo3::prelude::*;

/// The trainer's side of mosaicbank. Private: import `mosaicbank` instead.
#[pymodule]
pub fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    super::dataset::register(m)?;
    super::mask::register(m)?;
    super::bank::register(m)?;
    super::sampler::register(m)?;
    super::paste::register(m)?;
    super::status::register(m)?;
    m.add_function(wrap_pyfunction!(super::cli::main, m)?)?;
    Ok(())
}
