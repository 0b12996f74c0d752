//! Bindings of the bank: `Bank`, and the `BankMosaic` and `BankInstance` that come out of it.

use pyo3::prelude::*;

mod instance;
mod mosaic;
mod records;
mod store;

pub use instance::BankInstance;
pub use mosaic::BankMosaic;
pub use store::PyBank;

/// Adds this room to `_core`.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyBank>()?;
    m.add_class::<BankMosaic>()?;
    m.add_class::<BankInstance>()?;
    m.add_function(wrap_pyfunction!(store::draw_mosaic, m)?)?;
    Ok(())
}
