//! Bindings of a bank's mosaics.

use numpy::{PyArray1, PyArray2, PyArray3, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::types::PyList;

use super::super::convert::{plane_array, rgb_array, rle_dict};
use super::instance::provenance_dict;
use crate::bank::MosaicRecord;
use crate::record::Scores;

/// A whole generated canvas with its objects, as it came out of a bank.
#[pyclass(frozen, module = "mosaicbank._core")]
pub struct BankMosaic {
    pub(super) record: MosaicRecord,
    pub(super) uses: u32,
}

#[pymethods]
impl BankMosaic {
    /// Id, 32 hexadecimal digits.
    #[getter]
    fn id(&self) -> String {
        self.record.id.to_string()
    }

    /// The canvas, ``uint8 [H, W, 3]``, RGB. A new array at each access.
    #[getter]
    fn image<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray3<u8>>> {
        rgb_array(py, self.record.size, self.record.image.clone())
    }

    /// Height in pixels.
    #[getter]
    const fn height(&self) -> u32 {
        self.record.size.height
    }

    /// Width in pixels.
    #[getter]
    const fn width(&self) -> u32 {
        self.record.size.width
    }

    /// The masks, ``bool [N, H, W]``. A new array at each access.
    #[getter]
    fn masks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray3<bool>>> {
        let (h, w) = (
            self.record.size.height as usize,
            self.record.size.width as usize,
        );
        let n = self.record.instances.len();
        let array = PyArray3::<bool>::zeros(py, [n, h, w], false);
        {
            let mut array = array.readwrite();
            let data = array.as_slice_mut()?;
            for (plane, i) in data
                .chunks_exact_mut((h * w).max(1))
                .zip(&self.record.instances)
            {
                for run in i.mask.columns() {
                    let from = run.y0 as usize * w + run.x as usize;
                    let rows = (run.y1 - run.y0) as usize;
                    for v in plane.iter_mut().skip(from).step_by(w).take(rows) {
                        *v = true;
                    }
                }
            }
        }
        Ok(array)
    }

    /// The masks as COCO RLE dictionaries with compressed ``str`` counts.
    #[getter]
    fn rles<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for i in &self.record.instances {
            list.append(rle_dict(py, &i.mask)?)?;
        }
        Ok(list)
    }

    /// Tight boxes, ``float32 [N, 4]``, (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
    #[getter]
    fn boxes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let flat: Vec<f32> = self
            .record
            .instances
            .iter()
            .flat_map(|i| <[u32; 4]>::from(i.bbox))
            .map(|v| v as f32)
            .collect();
        PyArray1::from_vec(py, flat).reshape([self.record.instances.len(), 4])
    }

    /// Class indices into the bank's category table, ``int64 [N]``.
    #[getter]
    fn classes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let list = self.record.instances.iter().map(|i| i64::from(i.category));
        PyArray1::from_iter(py, list)
    }

    /// Mean attention inside each mask, ``float32 [N]``.
    #[getter]
    fn scores<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_iter(py, self.record.instances.iter().map(|i| i.score))
    }

    /// Mask areas in pixels, ``int64 [N]``.
    #[getter]
    fn areas<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.record.instances.iter().map(|i| i.area as i64))
    }

    /// What checks have measured of each object: one dictionary from name to number per object.
    #[getter]
    fn named_scores(&self) -> Vec<Scores> {
        let instances = self.record.instances.iter();
        instances.map(|i| i.scores.clone()).collect()
    }

    /// The regions: dictionaries with ``box``, ``own`` (the part that the instance may lie in),
    /// ``prompt``, ``subject`` (first character of the subject in the prompt, and one past the
    /// last; (0, 0) where it is not known), ``guidance`` (0 where it is not known), ``category``
    /// (index), ``verdict`` (``"kept"``, or why not) and ``scores`` (what checks have measured);
    /// those that an engine made also have ``attention`` (``uint8 [h, w]``, at most 32 x 32 cells), ``threshold`` (0..1) and
    /// ``refined`` (the mask before the filter, as RLE of the region's size).
    #[getter]
    fn regions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for r in &self.record.regions {
            let dict = PyDict::new(py);
            dict.set_item("box", <[u32; 4]>::from(r.bbox))?;
            dict.set_item("prompt", &r.prompt)?;
            dict.set_item("category", r.category)?;
            dict.set_item("own", <[u32; 4]>::from(r.own))?;
            dict.set_item("subject", r.subject)?;
            dict.set_item("guidance", r.guidance)?;
            dict.set_item("verdict", r.verdict.to_string())?;
            dict.set_item("scores", &r.scores)?;
            if let Some(trace) = &r.trace {
                let levels = trace.attention.levels().to_vec();
                let levels = plane_array(py, trace.attention.size(), levels)?;
                dict.set_item("attention", levels)?;
                dict.set_item("threshold", trace.threshold)?;
                dict.set_item("refined", rle_dict(py, &trace.refined)?)?;
            }
            list.append(dict)?;
        }
        Ok(list)
    }

    /// Where each object came from: one dictionary per object.
    #[getter]
    fn provenance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for i in &self.record.instances {
            list.append(provenance_dict(py, &self.record.provenance(i))?)?;
        }
        Ok(list)
    }

    /// The seed.
    #[getter]
    const fn seed(&self) -> u64 {
        self.record.seed
    }

    /// How often it had been used before this draw.
    #[getter]
    const fn uses(&self) -> u32 {
        self.uses
    }

    fn __len__(&self) -> usize {
        self.record.instances.len()
    }

    fn __repr__(&self) -> String {
        format!(
            "BankMosaic({}, {} x {}, {} objects)",
            self.record.id,
            self.record.size.height,
            self.record.size.width,
            self.record.instances.len()
        )
    }
}
