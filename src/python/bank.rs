//! Bindings of the bank: `Bank`, and the `BankMosaic` and `BankInstance` that come out of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1,
    PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use rand::Rng;

use super::mask::{contiguous, size_of};
use super::{check_interrupt, enter};
use crate::bank::{
    Bank, BankInfo, Category, Choice, InstanceRecord, Kind, LimitChanges, Limits,
    MosaicInstance, MosaicRecord, PutReport, RecordId, Region,
};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::instance::Provenance;
use crate::mask::{BinaryMask, Rle};
use crate::rng::keyed;

/// A seed out of what Python users call a random state: `None` (fresh entropy), an `int`, a
/// `numpy.random.Generator` or `RandomState`, a `random.Random`, a `torch.Generator`.
pub(super) fn seed_from(rng: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
    let Some(rng) = rng else {
        return Err(PyTypeError::new_err("no random state"));
    };
    let py = rng.py();
    if rng.is_none() {
        let bytes: Vec<u8> = py.import("os")?.call_method1("urandom", (8,))?.extract()?;
        return Ok(bytes
            .first_chunk::<8>()
            .map_or(0, |b| u64::from_le_bytes(*b)));
    }
    if let Ok(seed) = rng.extract::<u64>() {
        return Ok(seed);
    }
    if let Ok(seed) = rng.extract::<i64>() {
        return Ok(seed as u64);
    }
    const TOP: i64 = i64::MAX;
    if rng.hasattr("integers")? {
        return rng.call_method1("integers", (TOP,))?.extract();
    }
    if rng.hasattr("getrandbits")? {
        return rng.call_method1("getrandbits", (63,))?.extract();
    }
    if rng.hasattr("randint")? {
        let kwargs = PyDict::new(py);
        kwargs.set_item("dtype", "int64")?;
        return rng
            .call_method("randint", (0, TOP), Some(&kwargs))?
            .extract();
    }
    if rng.hasattr("initial_seed")? {
        let kwargs = PyDict::new(py);
        kwargs.set_item("generator", rng)?;
        return py
            .import("torch")?
            .call_method("randint", (0, TOP, (1,)), Some(&kwargs))?
            .call_method0("item")?
            .extract();
    }
    Err(PyTypeError::new_err(format!(
        "rng: expected None, an int, a numpy Generator or RandomState, a random.Random or a \
         torch.Generator, got {}",
        rng.get_type().name()?
    )))
}

/// 64 random bits at a time from one keyed stream.
pub(super) fn bits(seed: u64, purpose: &str) -> impl FnMut() -> u64 + Send {
    let mut rng = keyed(seed, purpose, 0);
    move || rng.next_u64()
}

fn field<'py>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    dict.get_item(name)?
        .ok_or_else(|| PyKeyError::new_err(format!("{name:?} is missing")))
}

fn optional<'py, T>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    match dict.get_item(name)? {
        Some(v) if !v.is_none() => Ok(Some(v.extract()?)),
        _ => Ok(None),
    }
}

fn category_from(item: &Bound<'_, PyAny>, index: usize) -> PyResult<Category> {
    if let Ok(name) = item.extract::<String>() {
        return Ok(Category {
            id: index as u32 + 1,
            name,
            frequency: None,
            image_count: None,
        });
    }
    let dict = item.cast::<PyDict>().map_err(|_| {
        PyTypeError::new_err("categories: expected names or LVIS/COCO dictionaries")
    })?;
    Ok(Category {
        id: field(dict, "id")?.extract()?,
        name: field(dict, "name")?.extract()?,
        frequency: optional(dict, "frequency")?,
        image_count: optional(dict, "image_count")?,
    })
}

/// `u8 [H, W, 3]` with its size.
pub(super) fn rgb(what: &str, image: &PyReadonlyArray3<'_, u8>) -> Result<(Size, Vec<u8>)> {
    let size = match *image.shape() {
        [h, w, 3] => size_of(what, &[h, w])?,
        _ => {
            return Err(Error::value(
                what,
                "uint8 [height, width, 3]",
                format!("{:?}", image.shape()),
            ));
        }
    };
    Ok((size, contiguous(what, image)?.to_vec()))
}

/// An image whose channels are planes, `uint8 [3, height, width]`, as rows of pixels.
pub(super) fn rgb_of_planes(
    what: &str,
    image: &PyReadonlyArray3<'_, u8>,
) -> Result<(Size, Vec<u8>)> {
    let size = match *image.shape() {
        [3, h, w] => size_of(what, &[h, w])?,
        _ => {
            return Err(Error::value(
                what,
                "uint8 [3, height, width]",
                format!("{:?}", image.shape()),
            ));
        }
    };
    let planes = contiguous(what, image)?;
    let mut out = vec![0u8; planes.len()];
    let (first, rest) = planes.split_at(planes.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let pixels = out.as_chunks_mut::<3>().0.iter_mut();
    for (((to, &a), &b), &c) in pixels.zip(first).zip(second).zip(third) {
        *to = [a, b, c];
    }
    Ok((size, out))
}

/// The inverse of [`rgb_of_planes`].
pub(super) fn planes_array<'py>(
    py: Python<'py>,
    size: Size,
    data: &[u8],
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let mut planes = vec![0u8; data.len()];
    let (first, rest) = planes.split_at_mut(data.len() / 3);
    let (second, third) = rest.split_at_mut(rest.len() / 2);
    let pixels = data.as_chunks::<3>().0.iter();
    for (((from, a), b), c) in pixels.zip(first).zip(second).zip(third) {
        [*a, *b, *c] = *from;
    }
    PyArray1::from_vec(py, planes).reshape([3, size.height as usize, size.width as usize])
}

pub(super) fn rgb_array<'py>(
    py: Python<'py>,
    size: Size,
    data: Vec<u8>,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    PyArray1::from_vec(py, data).reshape([size.height as usize, size.width as usize, 3])
}

fn plane_array<'py>(
    py: Python<'py>,
    size: Size,
    data: Vec<u8>,
) -> PyResult<Bound<'py, PyArray2<u8>>> {
    PyArray1::from_vec(py, data).reshape([size.height as usize, size.width as usize])
}

/// `{"size": [h, w], "counts": str}`.
pub(super) fn rle_dict<'py>(py: Python<'py>, rle: &Rle) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("size", [rle.size().height, rle.size().width])?;
    dict.set_item("counts", rle.to_coco_string())?;
    Ok(dict)
}

/// Reads `{"size": [h, w], "counts": str, bytes or list}`.
pub(super) fn rle_from(item: &Bound<'_, PyAny>) -> PyResult<Rle> {
    let dict = item.cast::<PyDict>().map_err(|_| {
        PyTypeError::new_err("masks: expected RLE dictionaries {'size': ..., 'counts': ...}")
    })?;
    let [h, w]: [u32; 2] = field(dict, "size")?.extract()?;
    let counts = field(dict, "counts")?;
    let size = Size::new(h, w);
    if let Ok(text) = counts.extract::<String>() {
        return Ok(Rle::from_coco_string(&text, size)?);
    }
    if let Ok(bytes) = counts.cast::<pyo3::types::PyBytes>() {
        let text = std::str::from_utf8(bytes.as_bytes())
            .map_err(|_| PyValueError::new_err("RLE counts: expected ASCII"))?;
        return Ok(Rle::from_coco_string(text, size)?);
    }
    Ok(Rle::new(size, &counts.extract::<Vec<u32>>()?)?)
}

fn provenance_dict<'py>(py: Python<'py>, p: &Provenance) -> PyResult<Bound<'py, PyDict>> {
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

fn report_dict(py: Python<'_>, r: PutReport) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("added", r.added)?;
    dict.set_item("known", r.known)?;
    dict.set_item("evicted", r.evicted)?;
    dict.set_item("refused", r.refused)?;
    Ok(dict)
}

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

    /// The regions: dictionaries with ``box``, ``prompt``, ``category`` (index), ``verdict``;
    /// those that an engine made also have ``own`` (the part that the instance may lie in),
    /// ``attention`` (``uint8 [h, w]``, at most 32 x 32 cells), ``threshold`` (0..1) and
    /// ``refined`` (the mask before the filter, as RLE of the region's size).
    #[getter]
    fn regions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for r in &self.record.regions {
            let dict = PyDict::new(py);
            dict.set_item("box", <[u32; 4]>::from(r.bbox))?;
            dict.set_item("prompt", &r.prompt)?;
            dict.set_item("category", r.category)?;
            dict.set_item("verdict", &r.verdict)?;
            if let Some(trace) = &r.trace {
                let levels = trace.attention.levels().to_vec();
                let levels = plane_array(py, trace.attention.size(), levels)?;
                dict.set_item("own", <[u32; 4]>::from(trace.own))?;
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

/// One object, cropped, as it came out of a bank.
#[pyclass(frozen, module = "mosaicbank._core")]
pub struct BankInstance {
    record: InstanceRecord,
    uses: u32,
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

/// The on-disk store of mosaics and instances: one directory, many readers, one writer.
///
/// A bank may be taken into forked workers and pickled into spawned ones; it opens its store
/// lazily in each process.
#[pyclass(name = "Bank", frozen, module = "mosaicbank._core")]
pub struct PyBank {
    pub(super) bank: Arc<Bank>,
}

impl PyBank {
    fn index(&self, category: &Bound<'_, PyAny>) -> PyResult<u32> {
        if let Ok(name) = category.extract::<String>() {
            return Ok(self.bank.category(&name)?);
        }
        let n = self.bank.categories().len();
        let index: i64 = category.extract().map_err(|_| {
            PyTypeError::new_err("category: expected a name or an index into bank.categories")
        })?;
        if index < 0 || index >= n as i64 {
            return Err(Error::value("category index", format!("0..{n}"), index).into());
        }
        Ok(index as u32)
    }

    pub(super) fn indices(&self, categories: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        if categories.extract::<String>().is_ok() || categories.extract::<i64>().is_ok() {
            return Ok(vec![self.index(categories)?]);
        }
        categories.try_iter()?.map(|c| self.index(&c?)).collect()
    }

    fn mosaic_from(&self, dict: &Bound<'_, PyDict>) -> PyResult<MosaicRecord> {
        let (size, image) = rgb("image", &field(dict, "image")?.extract()?)?;
        let mut regions = Vec::new();
        if let Some(list) = dict.get_item("regions")? {
            for r in list.try_iter()? {
                let r = r?;
                let r = r.cast::<PyDict>().map_err(PyErr::from)?;
                let [x0, y0, x1, y1]: [u32; 4] = field(r, "box")?.extract()?;
                regions.push(Region {
                    bbox: PixelBox::new(x0, y0, x1, y1),
                    prompt: optional(r, "prompt")?.unwrap_or_default(),
                    category: self.index(&field(r, "category")?)?,
                    verdict: optional(r, "verdict")?
                        .unwrap_or_else(|| crate::bank::format::KEPT.to_string()),
                    trace: None,
                });
            }
        }
        let masks = field(dict, "masks")?;
        let rles: Vec<Rle> = if let Ok(array) = masks.extract::<PyReadonlyArray3<'_, bool>>() {
            let shape = array.shape().to_vec();
            let plane = size_of("masks", shape.get(1..).unwrap_or_default())?;
            let data = contiguous("masks", &array)?;
            data.chunks_exact((plane.area() as usize).max(1))
                .map(|m| {
                    let bytes = m.iter().map(|&v| u8::from(v)).collect();
                    Rle::encode(&BinaryMask::from_vec(plane, bytes)?)
                })
                .collect::<Result<_>>()?
        } else {
            masks
                .try_iter()?
                .map(|m| rle_from(&m?))
                .collect::<PyResult<_>>()?
        };
        let classes = self.indices(&field(dict, "classes")?)?;
        let scores: Vec<f32> =
            optional(dict, "scores")?.unwrap_or_else(|| vec![1.0; rles.len()]);
        if classes.len() != rles.len() || scores.len() != rles.len() {
            return Err(Error::value(
                "classes and scores",
                format!("as many as masks ({})", rles.len()),
                format!("{} and {}", classes.len(), scores.len()),
            )
            .into());
        }
        let of: Vec<u32> = match optional(dict, "region_of")? {
            Some(of) => of,
            None if regions.is_empty() => {
                // One region per object when the caller has none to tell.
                for (rle, &category) in rles.iter().zip(&classes) {
                    regions.push(Region {
                        bbox: rle.bbox().unwrap_or(PixelBox::new(0, 0, 0, 0)),
                        prompt: String::new(),
                        category,
                        verdict: crate::bank::format::KEPT.into(),
                        trace: None,
                    });
                }
                (0..rles.len() as u32).collect()
            }
            None => (0..rles.len() as u32).collect(),
        };
        let mut instances = Vec::new();
        for (i, mask) in rles.into_iter().enumerate() {
            let bbox = mask
                .bbox()
                .ok_or_else(|| Error::value(format!("mask {i}"), "some foreground", "none"))?;
            instances.push(MosaicInstance {
                category: classes.get(i).copied().unwrap_or_default(),
                area: mask.area(),
                mask,
                bbox,
                score: scores.get(i).copied().unwrap_or_default(),
                region: of.get(i).copied().unwrap_or_default(),
            });
        }
        let recipe: String = optional(dict, "recipe")?.unwrap_or_default();
        let weights: String = optional(dict, "weights")?.unwrap_or_default();
        let seed: u64 = field(dict, "seed")?.extract()?;
        Ok(MosaicRecord {
            id: match optional::<String>(dict, "id")? {
                Some(id) => id.parse()?,
                None => MosaicRecord::id_of(&recipe, &weights, seed),
            },
            size,
            image,
            regions,
            instances,
            model: optional(dict, "model")?.unwrap_or_default(),
            weights,
            recipe,
            seed,
            generation: None,
        })
    }

    fn instance_from(&self, dict: &Bound<'_, PyDict>) -> PyResult<InstanceRecord> {
        let (size, image) = rgb("image", &field(dict, "image")?.extract()?)?;
        let alpha = field(dict, "alpha")?;
        let alpha: Vec<u8> = if let Ok(mask) = alpha.extract::<PyReadonlyArray2<'_, bool>>() {
            let data = contiguous("alpha", &mask)?;
            data.iter().map(|&v| if v { 255 } else { 0 }).collect()
        } else {
            let array: PyReadonlyArray2<'_, u8> = alpha.extract()?;
            contiguous("alpha", &array)?.to_vec()
        };
        let category = self.index(&field(dict, "category")?)?;
        let name = self
            .bank
            .categories()
            .get(category as usize)
            .map_or("", |c| &c.name);
        Ok(crate::bank::import::instance_of(
            crate::bank::import::Class {
                index: category,
                name,
            },
            size,
            &image,
            &alpha,
            optional(dict, "score")?.unwrap_or(1.0),
            optional(dict, "source")?.unwrap_or_default(),
        )?)
    }
}

fn limits_dict(py: Python<'_>, l: Limits) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("max_bytes", l.max_bytes)?;
    dict.set_item("max_per_category", l.max_per_category)?;
    dict.set_item("max_uses", l.max_uses)?;
    Ok(dict)
}

#[pymethods]
impl PyBank {
    /// Makes a new bank in the directory ``path`` and opens it.
    ///
    /// ``categories``: LVIS/COCO category dictionaries (``id``, ``name``, optional
    /// ``frequency`` and ``image_count``), or names. ``max_bytes``, ``max_per_category``:
    /// limits, 0 is none. ``max_uses``: a record used so often is retired, 0 is never.
    #[staticmethod]
    #[pyo3(signature = (path, categories, recipe="", *, max_bytes=None, max_per_category=None, max_uses=None))]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        categories: &Bound<'_, PyAny>,
        recipe: &str,
        max_bytes: Option<u64>,
        max_per_category: Option<u64>,
        max_uses: Option<u32>,
    ) -> PyResult<Self> {
        let categories = categories
            .try_iter()?
            .enumerate()
            .map(|(i, c)| category_from(&c?, i))
            .collect::<PyResult<_>>()?;
        let limits = LimitChanges {
            max_bytes,
            max_per_category,
            max_uses,
        }
        .applied_to(Limits::default());
        let bank = enter(py, || {
            Bank::create(&path, BankInfo::new(categories, recipe, limits)?)
        })?;
        Ok(Self {
            bank: Arc::new(bank),
        })
    }

    /// Opens the bank in the directory ``path``.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let bank = enter(py, || Bank::open(&path))?;
        Ok(Self {
            bank: Arc::new(bank),
        })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (PathBuf,))> {
        let open = slf.get_type().getattr("open")?;
        Ok((open, (slf.get().bank.path().to_path_buf(),)))
    }

    fn __repr__(&self) -> String {
        format!(
            "Bank({:?}, {} categories)",
            self.bank.path().display().to_string(),
            self.bank.categories().len()
        )
    }

    /// The directory.
    #[getter]
    fn path(&self) -> PathBuf {
        self.bank.path().to_path_buf()
    }

    /// The category table: dictionaries sorted by dataset id. The index in this list is the
    /// contiguous class that the trainer uses.
    #[getter]
    fn categories<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for c in self.bank.categories() {
            let dict = PyDict::new(py);
            dict.set_item("id", c.id)?;
            dict.set_item("name", &c.name)?;
            dict.set_item("frequency", c.frequency.as_deref())?;
            dict.set_item("image_count", c.image_count)?;
            list.append(dict)?;
        }
        Ok(list)
    }

    /// The recipe's text.
    #[getter]
    fn recipe(&self) -> &str {
        &self.bank.info().recipe
    }

    /// ``max_bytes``, ``max_per_category``, ``max_uses``.
    #[getter]
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        limits_dict(py, self.bank.limits())
    }

    /// Changes limits of the bank, in ``bank.toml`` too; those that are not given stay. Returns
    /// the limits before and after. ``ValueError`` for a number that the file cannot hold.
    #[pyo3(signature = (*, max_bytes=None, max_per_category=None, max_uses=None))]
    fn set_limits<'py>(
        &self,
        py: Python<'py>,
        max_bytes: Option<u64>,
        max_per_category: Option<u64>,
        max_uses: Option<u32>,
    ) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let changes = LimitChanges {
            max_bytes,
            max_per_category,
            max_uses,
        };
        let (before, after) = enter(py, || self.bank.set_limits(changes))?;
        Ok((limits_dict(py, before)?, limits_dict(py, after)?))
    }

    /// Which categories the bank holds mosaics of, or a running engine draws; bool [C].
    fn supply<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let supply = enter(py, || Supply::of(&self.bank))?;
        Ok(supply.mask().into_pyarray(py))
    }

    /// One line about the categories without a supply, ``None`` where all have one.
    /// ``categories`` (bool [C]): those that matter (default: all).
    #[pyo3(signature = (categories=None))]
    fn shortfall(
        &self,
        py: Python<'_>,
        categories: Option<Vec<bool>>,
    ) -> PyResult<Option<String>> {
        let wanted = categories.unwrap_or_default();
        Ok(enter(py, || {
            Ok(Supply::of(&self.bank)?.shortfall(&self.bank, &wanted))
        })?)
    }

    /// Index of a category name. ``KeyError`` with a suggestion when it is not in the table.
    fn category_index(&self, name: &str) -> PyResult<u32> {
        Ok(self.bank.category(name)?)
    }

    /// Records per category: ``{"mosaics": int64 [C], "instances": int64 [C]}``. No scan.
    fn stock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stock = enter(py, || self.bank.stock())?;
        let dict = PyDict::new(py);
        for (name, list) in [("mosaics", &stock.mosaics), ("instances", &stock.instances)] {
            let list: Vec<i64> = list.iter().map(|&n| n as i64).collect();
            dict.set_item(name, list.into_pyarray(py))?;
        }
        Ok(dict)
    }

    /// Totals: ``mosaics``, ``instances``, ``bytes``, ``added``, ``removed``, ``skipped``
    /// (damaged records that draws of this handle met), ``categories_in_stock``.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stock = enter(py, || self.bank.stock())?;
        let dict = PyDict::new(py);
        dict.set_item("mosaics", stock.total_mosaics)?;
        dict.set_item("instances", stock.total_instances)?;
        dict.set_item("bytes", stock.bytes)?;
        dict.set_item("added", stock.added)?;
        dict.set_item("removed", stock.removed)?;
        dict.set_item("skipped", self.bank.skipped())?;
        let stocked = stock.mosaics.iter().zip(&stock.instances);
        let stocked = stocked.filter(|(m, i)| **m + **i > 0).count();
        dict.set_item("categories_in_stock", stocked)?;
        Ok(dict)
    }

    /// The demand board: ``asked``, ``served_fresh``, ``served_again``, ``missed`` (int64 [C]),
    /// ``weight``, ``size_factor`` (float32 [C]). All neutral where nothing can be counted.
    fn demand<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let n = self.bank.categories().len();
        let all = self.bank.board().map_or_else(
            || vec![crate::bank::Demand::default(); n],
            crate::bank::DemandBoard::snapshot,
        );
        let dict = PyDict::new(py);
        type Get = fn(&crate::bank::Demand) -> u64;
        let counters: [(&str, Get); 4] = [
            ("asked", |d| d.asked),
            ("served_fresh", |d| d.served_fresh),
            ("served_again", |d| d.served_again),
            ("missed", |d| d.missed),
        ];
        for (name, get) in counters {
            dict.set_item(
                name,
                PyArray1::from_iter(py, all.iter().map(|d| get(d) as i64)),
            )?;
        }
        dict.set_item(
            "weight",
            PyArray1::from_iter(py, all.iter().map(|d| d.weight)),
        )?;
        dict.set_item(
            "size_factor",
            PyArray1::from_iter(py, all.iter().map(|d| d.size_factor)),
        )?;
        Ok(dict)
    }

    /// Writes feedback to the demand board: ``weights`` and ``size_factors``, float32 [C],
    /// 1 is neutral.
    #[pyo3(signature = (weights, size_factors=None))]
    fn set_feedback(
        &self,
        weights: PyReadonlyArray1<'_, f32>,
        size_factors: Option<PyReadonlyArray1<'_, f32>>,
    ) -> PyResult<()> {
        let n = self.bank.categories().len();
        let board = self.bank.board().ok_or_else(|| Error::Io {
            path: self.bank.path().join(crate::bank::board::BOARD_FILE),
            source: std::io::Error::from_raw_os_error(libc::EROFS),
        })?;
        let weights = weights.as_array();
        let sizes = size_factors.as_ref().map(|s| s.as_array());
        if weights.len() != n || sizes.as_ref().is_some_and(|s| s.len() != n) {
            return Err(Error::value(
                "feedback",
                format!("one number per category ({n})"),
                weights.len(),
            )
            .into());
        }
        for c in 0..n {
            let weight = weights.get(c).copied().unwrap_or(1.0);
            let size = match &sizes {
                Some(s) => s.get(c).copied().unwrap_or(1.0),
                None => board.get(c as u32).size_factor,
            };
            board.set_feedback(c as u32, weight, size)?;
        }
        Ok(())
    }

    /// Counts a slot of ``category`` that was answered with a real image: ``draw_mosaic`` does
    /// it by itself; for callers that never get that far.
    fn count_miss(&self, category: &Bound<'_, PyAny>) -> PyResult<()> {
        let index = self.index(category)?;
        if let Some(board) = self.bank.board() {
            board.asked(index);
            board.missed(index);
        }
        Ok(())
    }

    /// Writes mosaics in one commit. Each is a dictionary: ``image`` (uint8 [H, W, 3]), ``masks``
    /// (bool [N, H, W] or RLE dictionaries), ``classes`` (indices or names), ``seed``, and
    /// optional ``id`` (32 hexadecimal digits, else made of recipe, weights and seed), ``scores``,
    /// ``regions``, ``region_of``, ``recipe``, ``weights``, ``model``.
    /// Returns ``{"added", "known", "evicted", "refused"}`` (records, crops included).
    fn put_mosaics<'py>(
        &self,
        py: Python<'py>,
        mosaics: Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let records = mosaics
            .iter()
            .map(|m| self.mosaic_from(m))
            .collect::<PyResult<Vec<_>>>()?;
        let report = enter(py, || self.bank.put_mosaics(&records))?;
        report_dict(py, report)
    }

    /// Writes instances in one commit. Each is a dictionary: ``image`` (uint8 [h, w, 3]), ``alpha``
    /// (uint8 or bool [h, w]; above 128 is the object, its largest component is kept),
    /// ``category``, and optional ``score`` and ``source`` (a name for the provenance).
    fn put_instances<'py>(
        &self,
        py: Python<'py>,
        instances: Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let records = instances
            .iter()
            .map(|i| self.instance_from(i))
            .collect::<PyResult<Vec<_>>>()?;
        let report = enter(py, || self.bank.put_instances(&records))?;
        report_dict(py, report)
    }

    /// One mosaic by id; not counted as a use.
    fn mosaic(&self, py: Python<'_>, id: &str) -> PyResult<BankMosaic> {
        let id: RecordId = id.parse()?;
        let (record, uses) = enter(py, || {
            let uses = self.bank.use_count(Kind::Mosaic, id)?.unwrap_or_default();
            Ok((self.bank.mosaic(id)?, uses))
        })?;
        Ok(BankMosaic { record, uses })
    }

    /// One instance by id; not counted as a use.
    fn instance(&self, py: Python<'_>, id: &str) -> PyResult<BankInstance> {
        let id: RecordId = id.parse()?;
        let (record, uses) = enter(py, || {
            let uses = self.bank.use_count(Kind::Instance, id)?.unwrap_or_default();
            Ok((self.bank.instance(id)?, uses))
        })?;
        Ok(BankInstance { record, uses })
    }

    /// Ids of the mosaics (of one category).
    #[pyo3(signature = (category=None))]
    fn mosaic_ids(
        &self,
        py: Python<'_>,
        category: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<String>> {
        self.ids(py, Kind::Mosaic, category)
    }

    /// Ids of the instances (of one category).
    #[pyo3(signature = (category=None))]
    fn instance_ids(
        &self,
        py: Python<'_>,
        category: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<String>> {
        self.ids(py, Kind::Instance, category)
    }

    /// Draws an instance and counts its use; ``None`` when there is nothing to draw.
    ///
    /// ``categories``: ``None`` for all in stock, or names or indices to choose from. ``mode``:
    /// ``"class_balanced"`` (a category uniformly, then an instance of it) or ``"uniform"``.
    #[pyo3(signature = (rng=None, categories=None, mode="class_balanced"))]
    fn draw_instance(
        &self,
        py: Python<'_>,
        rng: Option<&Bound<'_, PyAny>>,
        categories: Option<&Bound<'_, PyAny>>,
        mode: &str,
    ) -> PyResult<Option<BankInstance>> {
        let none = py.None().into_bound(py);
        let seed = seed_from(Some(rng.unwrap_or(&none)))?;
        let wanted = categories.map(|c| self.indices(c)).transpose()?;
        let choice = match (&wanted, mode) {
            (Some(list), _) => Choice::Categories(list),
            (None, "class_balanced") => Choice::ClassBalanced,
            (None, "uniform") => Choice::Uniform,
            (None, other) => {
                return Err(Error::value("mode", "'class_balanced' or 'uniform'", other).into());
            }
        };
        let drawn = enter(py, || {
            self.bank
                .draw_instance(&choice, &mut bits(seed, "draw instance"))
        })?;
        Ok(drawn.map(|d| BankInstance {
            record: d.record,
            uses: d.uses,
        }))
    }

    /// Removes every record that was used ``max_uses`` times; returns how many.
    fn retire(&self, py: Python<'_>) -> PyResult<u64> {
        enter(py, || self.bank.retire())
    }

    /// Takes over what ``other`` has and this bank has not; categories go by name.
    fn merge_from<'py>(
        &self,
        py: Python<'py>,
        other: &Bound<'py, Self>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let other = other.get().bank.clone();
        let report = enter(py, || self.bank.merge_from(&other))?;
        report_dict(py, report)
    }

    /// Reads and decodes everything: ``{"mosaics", "instances", "bad", "problems"}``, where
    /// ``bad`` lists (kind, id, why).
    fn verify<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = enter(py, || self.bank.verify(&mut |_, _| check_interrupt()))?;
        let dict = PyDict::new(py);
        dict.set_item("mosaics", report.mosaics)?;
        dict.set_item("instances", report.instances)?;
        let bad: Vec<_> = report
            .bad
            .iter()
            .map(|b| (b.kind.name(), b.id.to_string(), b.why.clone()))
            .collect();
        dict.set_item("bad", bad)?;
        dict.set_item("problems", report.problems)?;
        Ok(dict)
    }

    /// Writes everything that can be read into a new bank at ``path`` and opens that.
    fn compact(&self, py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let (bank, _) = enter(py, || {
            self.bank.compact_into(&path, &mut |_, _| check_interrupt())
        })?;
        Ok(Self {
            bank: Arc::new(bank),
        })
    }
}

impl PyBank {
    fn ids(
        &self,
        py: Python<'_>,
        kind: Kind,
        category: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<String>> {
        let category = category.map(|c| self.index(c)).transpose()?;
        let ids = enter(py, || match category {
            Some(c) => self.bank.ids_of(kind, c),
            None => self.bank.ids(kind),
        })?;
        Ok(ids.iter().map(ToString::to_string).collect())
    }
}

/// The least used mosaic of ``category`` (a name or an index), drawn at random among equals, its
/// use counted and the demand board kept; ``None`` when the bank has none.
#[pyfunction]
#[pyo3(signature = (bank, category, rng=None))]
fn draw_mosaic(
    py: Python<'_>,
    bank: &Bound<'_, PyBank>,
    category: &Bound<'_, PyAny>,
    rng: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<BankMosaic>> {
    let none = py.None().into_bound(py);
    let seed = seed_from(Some(rng.unwrap_or(&none)))?;
    let bank = bank.get();
    let category = bank.index(category)?;
    let drawn = enter(py, || {
        bank.bank
            .draw_mosaic(category, &mut bits(seed, "draw mosaic"))
    })?;
    Ok(drawn.map(|d| BankMosaic {
        record: d.record,
        uses: d.uses,
    }))
}

/// Adds this room to `_core`.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyBank>()?;
    m.add_class::<BankMosaic>()?;
    m.add_class::<BankInstance>()?;
    m.add_function(wrap_pyfunction!(draw_mosaic, m)?)?;
    Ok(())
}
