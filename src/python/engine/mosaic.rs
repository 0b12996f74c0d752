//! Bindings of a generated mosaic, its regions and its instances.

use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{FloatArray, to_array, to_bool_array};
use crate::error::Error;
use crate::mosaic::{Labelled, RegionMaps};
use crate::record;

/// A generated picture with its regions and instances.
#[pyclass(name = "Mosaic", module = "mosaicbank", frozen)]
pub struct PyMosaic {
    mosaic: Labelled,
    attention: bool,
}

impl PyMosaic {
    pub(super) fn new(mosaic: Labelled, attention: bool) -> Self {
        Self { mosaic, attention }
    }
}

#[pymethods]
impl PyMosaic {
    /// Hash of weights, recipe, seed and regions: the same mosaic has the same id.
    #[getter]
    fn id(&self) -> String {
        self.mosaic.record.id.to_string()
    }

    /// Its seed.
    #[getter]
    fn seed(&self) -> u64 {
        self.mosaic.record.seed
    }

    /// uint8 [H, W, 3], RGB.
    #[getter]
    fn image<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let size = self.mosaic.record.size;
        let shape = vec![size.height as usize, size.width as usize, 3];
        to_array(py, shape, self.mosaic.record.image.clone())
    }

    /// All regions, with the whole way to their verdicts.
    #[getter]
    fn regions(&self) -> Vec<PyRegionResult> {
        let regions = self.mosaic.record.regions.iter();
        regions
            .zip(&self.mosaic.maps)
            .map(|(region, maps)| PyRegionResult {
                region: region.clone(),
                maps: maps.clone(),
                attention: self.attention,
            })
            .collect()
    }

    /// The instances that are kept.
    #[getter]
    fn instances(&self) -> Vec<PyInstance> {
        let record = &self.mosaic.record;
        let instances = record.instances.iter();
        instances
            .map(|i| PyInstance {
                instance: i.clone(),
                provenance: record.provenance(i),
            })
            .collect()
    }

    /// Categories of regions without a kept mask (LVIS: not exhaustively annotated).
    #[getter]
    fn not_exhaustive(&self) -> Vec<String> {
        let names = self.mosaic.record.not_exhaustive();
        names.into_iter().cloned().collect()
    }

    /// Why the picture cannot be used, or None.
    #[getter]
    fn problem(&self) -> Option<&str> {
        self.mosaic.problem.as_deref()
    }

    fn __repr__(&self) -> String {
        format!(
            "Mosaic({}, {} x {}, {} of {} regions kept)",
            self.mosaic.record.id,
            self.mosaic.record.size.height,
            self.mosaic.record.size.width,
            self.mosaic.record.instances.len(),
            self.mosaic.record.regions.len()
        )
    }
}

/// One region of a mosaic.
#[pyclass(name = "RegionResult", module = "mosaicbank", frozen)]
pub struct PyRegionResult {
    region: record::Region,
    maps: RegionMaps,
    attention: bool,
}

#[pymethods]
impl PyRegionResult {
    /// (x0, y0, x1, y1), canvas pixels: what was denoised for it.
    #[getter]
    fn r#box(&self) -> (u32, u32, u32, u32) {
        self.region.bbox.to_tuple()
    }

    /// (x0, y0, x1, y1), canvas pixels: the part that its instance may lie in.
    #[getter]
    fn own(&self) -> (u32, u32, u32, u32) {
        self.region.own.to_tuple()
    }

    /// Its prompt.
    #[getter]
    fn prompt(&self) -> &str {
        &self.region.prompt
    }

    /// Category of its subject.
    #[getter]
    fn category(&self) -> &str {
        &self.region.category
    }

    /// float32 [h, w], 0..1, of the region's size; None unless it was asked for.
    #[getter]
    fn attention<'py>(&self, py: Python<'py>) -> PyResult<Option<FloatArray<'py>>> {
        if !self.attention || self.maps.attention.is_empty() {
            return Ok(None);
        }
        let size = self.region.bbox.size();
        let shape = vec![size.height as usize, size.width as usize];
        to_array(py, shape, self.maps.attention.clone()).map(Some)
    }

    /// bool [h, w], of the region's size: refined, before the filter; None without masks.
    #[getter]
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArrayDyn<bool>>>> {
        let Some(mask) = &self.maps.mask else {
            return Ok(None);
        };
        to_bool_array(py, mask.size(), mask.data()).map(Some)
    }

    /// "kept", or why it was not.
    #[getter]
    fn verdict(&self) -> String {
        self.region.verdict.to_string()
    }

    /// Whether its instance was kept.
    #[getter]
    fn kept(&self) -> bool {
        self.region.verdict.is_kept()
    }

    fn __repr__(&self) -> String {
        format!(
            "RegionResult({:?}, {})",
            self.region.category, self.region.verdict
        )
    }
}

/// One object on a mosaic.
#[pyclass(name = "Instance", module = "mosaicbank", frozen)]
pub struct PyInstance {
    instance: record::Instance,
    provenance: record::Provenance,
}

#[pymethods]
impl PyInstance {
    /// Category name.
    #[getter]
    fn category(&self) -> &str {
        &self.instance.category
    }

    /// bool [H, W], on the canvas.
    #[getter]
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<bool>>> {
        let mask = self.instance.mask.decode();
        to_bool_array(py, mask.size(), mask.data())
    }

    /// COCO's compressed encoding: {"size": [H, W], "counts": str}.
    #[getter]
    fn rle<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let size = self.instance.mask.size();
        let rle = PyDict::new(py);
        rle.set_item("size", [size.height, size.width])?;
        rle.set_item("counts", self.instance.mask.to_coco_string())?;
        Ok(rle)
    }

    /// (x0, y0, x1, y1), pixels, tight around the mask.
    #[getter]
    fn r#box(&self) -> (u32, u32, u32, u32) {
        self.instance.bbox.to_tuple()
    }

    /// Number of mask pixels.
    #[getter]
    fn area(&self) -> u64 {
        self.instance.area
    }

    /// Mean attention inside the mask, 0..1.
    #[getter]
    fn score(&self) -> f32 {
        self.instance.score
    }

    /// Where it came from: model, weights, prompt, seed, recipe, mosaic, region.
    #[getter]
    fn provenance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let text = serde_json::to_string(&self.provenance)
            .map_err(|e| Error::backend("provenance", e))?;
        py.import("json")?.call_method1("loads", (text,))
    }

    fn __repr__(&self) -> String {
        format!(
            "Instance({:?}, box={:?}, area={}, score={:.3})",
            self.instance.category,
            self.instance.bbox.to_tuple(),
            self.instance.area,
            self.instance.score
        )
    }
}
