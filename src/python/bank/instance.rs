//! Bindings of a bank's instances.

use std::collections::BTreeMap;

use numpy::{PyArray2, PyArray3};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::super::convert::{plane_array, rgb_array};
use crate::bank::InstanceRecord;
use crate::record::Provenance;

pub(super) fn provenance_dict<'py>(
    py: Python<'py>,
    p: &Provenance,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("model", &p.model)?;
    dict.set_item("weights", &p.weights)?;
    dict.set_item("prompt", &p.prompt)?;
    dict.set_item("seed", p.seed)?;
    dict.set_item("recipe", &p.recipe)?;
    dict.set_item("mosaic", &p.mosaic)?;
    dict.set_item("region", p.region)?;
    Ok(dict)
}

/// One object, cropped, as it came out of a bank.
#[pyclass(frozen, module = "mosaicbank._core")]
pub struct BankInstance {
    pub(super) record: InstanceRecord,
    pub(super) uses: u32,
}

#[pymethods]
impl BankInstance {
    /// Id, 32 hexadecimal digits.
    #[getter]
    fn id(&self) -> String {
        self.record.id.to_string()
    }

    /// The crop, ``uint8 [h, w, 3]``, RGB. A new array at each access.
    #[getter]
    fn image<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray3<u8>>> {
        rgb_array(py, self.record.size, self.record.image.clone())
    }

    /// The alpha plane, ``uint8 [h, w]``; above 128 is the object.
    #[getter]
    fn alpha<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u8>>> {
        plane_array(py, self.record.size, self.record.alpha.clone())
    }

    /// Class index into the bank's category table.
    #[getter]
    const fn category(&self) -> u32 {
        self.record.category
    }

    /// Number of foreground pixels.
    #[getter]
    const fn area(&self) -> u64 {
        self.record.area
    }

    /// The object's box on the image that it was cut from, (x0, y0, x1, y1).
    #[getter]
    #[pyo3(name = "box")]
    fn box_(&self) -> (u32, u32, u32, u32) {
        let b = self.record.bbox;
        (b.x0, b.y0, b.x1, b.y1)
    }

    /// Mean attention inside the mask (1 for labelled data).
    #[getter]
    const fn score(&self) -> f32 {
        self.record.score
    }

    /// Other scores by name.
    #[getter]
    fn scores(&self) -> BTreeMap<String, f32> {
        self.record.scores.clone()
    }

    /// Where it came from.
    #[getter]
    fn provenance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        provenance_dict(py, &self.record.provenance)
    }

    /// How often it had been used before this draw.
    #[getter]
    const fn uses(&self) -> u32 {
        self.uses
    }

    fn __repr__(&self) -> String {
        format!(
            "BankInstance({}, category {}, {} x {})",
            self.record.id,
            self.record.category,
            self.record.size.height,
            self.record.size.width
        )
    }
}
