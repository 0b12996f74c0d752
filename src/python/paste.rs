//! Bindings of the paste.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1,
    PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::bank::PyBank;
use super::convert::{
    contiguous, planes_array, rgb, rgb_array, rgb_of_planes, rle_dict, rle_from,
};
use super::enter;
use super::random::seed_from;
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::Rle;
use crate::paste::{Blend, Mode, Object, PasteOptions, Region, SizeRule, paste as paste_on};

/// How masks come and go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Bool,
    Rle,
    Polygons,
    /// Polygons as arrays: nothing is made of single numbers.
    Arrays,
}

/// What came in, to be handed out again where nothing changed.
enum Given<'py> {
    Array,
    List(Vec<Bound<'py, PyAny>>),
}

/// What pasting made of an image and its annotations. Kept originals come first, in their
/// order, then the pasted objects.
#[pyclass(frozen, module = "mosaicbank._core")]
pub struct PasteResult {
    /// The new image, ``uint8 [H, W, 3]``.
    #[pyo3(get)]
    image: Py<PyArray3<u8>>,
    /// The masks of the M objects, in the format that they came in (or ``mask_format``).
    #[pyo3(get)]
    masks: Py<PyAny>,
    /// ``float32 [M, 4]``, (x0, y0, x1, y1). As given where nothing changed, else tight.
    #[pyo3(get)]
    boxes: Py<PyArray2<f32>>,
    /// ``int64 [M]``.
    #[pyo3(get)]
    classes: Py<PyArray1<i64>>,
    /// ``uint8 [M]``: 0 was there, 1 was pasted.
    #[pyo3(get)]
    source: Py<PyArray1<u8>>,
    /// ``int64``: indices of the original objects that stay.
    #[pyo3(get)]
    kept: Py<PyArray1<i64>>,
    /// One dictionary per pasted object: ``id``, ``mosaic``, ``category``, ``box``, ``blend``,
    /// ``scale`` (area over its area in the bank), ``uses`` (before this one).
    #[pyo3(get)]
    pasted: Py<PyList>,
}

#[pymethods]
impl PasteResult {
    fn __repr__(&self, py: Python<'_>) -> String {
        format!(
            "PasteResult({} kept, {} pasted)",
            self.kept.bind(py).len(),
            self.pasted.bind(py).len()
        )
    }
}

fn format_from(name: &str) -> Result<Format> {
    match name {
        "bool" => Ok(Format::Bool),
        "rle" => Ok(Format::Rle),
        "polygons" => Ok(Format::Polygons),
        "arrays" => Ok(Format::Arrays),
        other => Err(Error::value(
            "mask_format",
            "'bool', 'rle', 'polygons' or 'arrays'",
            other,
        )),
    }
}

/// Polygons as lists of numbers or as float64 arrays.
fn polygons_of(item: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<f64>>> {
    item.try_iter()?
        .map(|polygon| {
            let polygon = polygon?;
            match polygon.extract::<PyReadonlyArray1<'_, f64>>() {
                Ok(array) => Ok(array.as_array().to_vec()),
                Err(_) => polygon.extract(),
            }
        })
        .collect()
}

fn regions_of<'py>(
    py: Python<'py>,
    masks: Option<&Bound<'py, PyAny>>,
    size: Size,
) -> PyResult<(Vec<Option<Region>>, Given<'py>, Format)> {
    let Some(masks) = masks.filter(|m| !m.is_none()) else {
        return Ok((Vec::new(), Given::Array, Format::Bool));
    };
    if masks.hasattr("dtype")? {
        let mut bytes = masks.clone();
        if masks
            .getattr("dtype")?
            .getattr("kind")?
            .extract::<String>()?
            == "b"
        {
            bytes = masks.call_method1("view", ("uint8",))?;
        }
        let array: PyReadonlyArray3<'_, u8> = bytes.extract().map_err(|_| {
            PyTypeError::new_err("masks: expected bool or uint8 [N, H, W], RLE or polygons")
        })?;
        let shape = array.shape().to_vec();
        if shape.get(1..) != Some(&[size.height as usize, size.width as usize]) {
            return Err(Error::value(
                "masks",
                format!("[N, {}, {}], as the image", size.height, size.width),
                format!("{shape:?}"),
            )
            .into());
        }
        let data = contiguous("masks", &array)?;
        let regions = enter(py, || {
            Ok(data
                .chunks_exact((size.area() as usize).max(1))
                .map(|plane| Region::from_plane(plane, size))
                .collect())
        })?;
        return Ok((regions, Given::Array, Format::Bool));
    }
    let items: Vec<Bound<'py, PyAny>> = masks.try_iter()?.collect::<PyResult<_>>()?;
    let mut format = Format::Rle;
    let mut regions = Vec::with_capacity(items.len());
    for item in &items {
        let rle = if item.is_instance_of::<PyDict>() {
            rle_from(item)?
        } else {
            format = Format::Polygons;
            let polygons = polygons_of(item).map_err(|_| {
                PyTypeError::new_err(
                    "masks: expected a list of polygons ([x0, y0, x1, y1, ...]) per object",
                )
            })?;
            Rle::from_polygons(&polygons, size)?
        };
        if rle.size() != size {
            return Err(Error::value(
                "RLE size",
                format!("{} x {}, as the image", size.height, size.width),
                format!("{} x {}", rle.size().height, rle.size().width),
            )
            .into());
        }
        regions.push(Region::from_rle(&rle));
    }
    Ok((regions, Given::List(items), format))
}

/// Fills `out` (`u8 [M, H, W]`, zeroed) with the masks.
fn fill(out: &mut [u8], size: Size, objects: &[&Object]) {
    let width = size.width as usize;
    for (plane, object) in out
        .chunks_exact_mut((size.area() as usize).max(1))
        .zip(objects)
    {
        for (y, x, row) in object.region.iter().flat_map(Region::rows) {
            if let Some(to) = plane.get_mut(y * width + x..y * width + x + row.len()) {
                to.copy_from_slice(row);
            }
        }
    }
}

fn size_rule(
    size: Option<&Bound<'_, PyAny>>,
    stats: Option<&PyReadonlyArray2<'_, f32>>,
) -> PyResult<SizeRule> {
    let by_category = || match stats {
        Some(stats) if stats.shape().get(1) == Some(&2) => Ok(SizeRule::Category(
            stats
                .as_array()
                .rows()
                .into_iter()
                .map(|r| [r.get(0).copied(), r.get(1).copied()].map(|v| v.unwrap_or(f32::NAN)))
                .collect(),
        )),
        Some(stats) => Err(Error::value(
            "size_stats",
            "float32 [C, 2]",
            format!("{:?}", stats.shape()),
        )),
        None => Err(Error::value(
            "size_stats",
            "float32 [C, 2] for size='category'",
            "None",
        )),
    };
    match size.filter(|s| !s.is_none()) {
        None if stats.is_some() => Ok(by_category()?),
        None => Ok(SizeRule::Natural),
        Some(size) => {
            if let Ok((low, high)) = size.extract::<(f64, f64)>() {
                return Ok(SizeRule::Range(low, high));
            }
            match size.extract::<String>().as_deref() {
                Ok("natural") => Ok(SizeRule::Natural),
                Ok("category") => Ok(by_category()?),
                _ => Err(Error::value(
                    "size",
                    "'natural', 'category' or (low, high) as fractions of the image's side",
                    size.repr()?,
                )
                .into()),
            }
        }
    }
}

/// Pastes bank instances on an image and updates its annotations.
///
/// ``image``: uint8 [H, W, 3], not changed. ``masks``: bool [N, H, W], a list of RLE dictionaries, or a
/// list of lists of polygons; they come back in that format, or in ``mask_format`` ("bool", "rle",
/// "polygons", or "arrays": polygons as float64 arrays, those that nothing covers as they came). ``boxes``: float [N, 4] (x0, y0, x1, y1), or ``None`` for the tight ones.
/// ``classes``: int64 [N], the indices of ``bank.categories``. ``rng``: None, an int, or a random
/// generator; with the same bank and seed the result is the same.
///
/// ``min_instances``, ``max_instances``: how many are drawn, uniformly, the latter exclusive.
/// ``mode``: "class_balanced" or "uniform"; ``categories``: draw from these only.
/// ``size``: "natural", "category" (needs ``size_stats``, float32 [C, 2]: mean and standard deviation of
/// sqrt(area / image area)), or (low, high). ``aspect_jitter``, ``flip``, ``vertical_flip``
/// (probabilities), ``rotation`` (degrees). ``blend``: one of "hard", "alpha", "gaussian", "poisson", or a
/// list to choose from. ``outside``: share of an object's box that may leave the image.
/// ``box_tolerance``, ``keep_area``: a covered object stays when its box moved by at most
/// that many pixels or it keeps more than that many. ``channels``: "rgb" or "bgr".
/// ``layout``: "hwc", or "chw" for an image (and the new one) of uint8 [3, H, W].
#[pyfunction]
#[pyo3(signature = (image, masks, boxes, classes, bank, rng=None, *, min_instances=0, max_instances=20, mode="class_balanced", categories=None, size=None, size_stats=None, aspect_jitter=0.2, flip=0.5, vertical_flip=0.0, rotation=0.0, blend=None, outside=0.25, box_tolerance=10.0, keep_area=300, channels="rgb", layout="hwc", mask_format=None))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments")]
fn paste<'py>(
    py: Python<'py>,
    image: PyReadonlyArray3<'py, u8>,
    masks: Option<&Bound<'py, PyAny>>,
    boxes: Option<&Bound<'py, PyAny>>,
    classes: Option<&Bound<'py, PyAny>>,
    bank: &Bound<'py, PyBank>,
    rng: Option<&Bound<'py, PyAny>>,
    min_instances: u32,
    max_instances: u32,
    mode: &str,
    categories: Option<&Bound<'py, PyAny>>,
    size: Option<&Bound<'py, PyAny>>,
    size_stats: Option<PyReadonlyArray2<'py, f32>>,
    aspect_jitter: f64,
    flip: f64,
    vertical_flip: f64,
    rotation: f64,
    blend: Option<&Bound<'py, PyAny>>,
    outside: f64,
    box_tolerance: f64,
    keep_area: u64,
    channels: &str,
    layout: &str,
    mask_format: Option<&str>,
) -> PyResult<PasteResult> {
    let none = py.None().into_bound(py);
    let seed = seed_from(Some(rng.unwrap_or(&none)))?;
    let bank = bank.get();
    let mode = match (categories.filter(|c| !c.is_none()), mode) {
        (Some(list), _) => Mode::Categories(bank.indices(list)?),
        (None, "class_balanced") => Mode::ClassBalanced,
        (None, "uniform") => Mode::Uniform,
        (None, other) => {
            return Err(Error::value("mode", "'class_balanced' or 'uniform'", other).into());
        }
    };
    let blend = match blend.filter(|b| !b.is_none()) {
        None => vec![Blend::Hard],
        Some(b) => match b.extract::<String>() {
            Ok(name) => vec![Blend::from_name(&name)?],
            Err(_) => b
                .extract::<Vec<String>>()?
                .iter()
                .map(|n| Blend::from_name(n))
                .collect::<Result<_>>()?,
        },
    };
    let bgr = match channels {
        "rgb" => false,
        "bgr" => true,
        other => return Err(Error::value("channels", "'rgb' or 'bgr'", other).into()),
    };
    let options = PasteOptions {
        min_instances,
        max_instances,
        mode,
        size: size_rule(size, size_stats.as_ref())?,
        aspect_jitter,
        flip,
        vertical_flip,
        rotation,
        blend,
        outside,
        box_tolerance,
        keep_area,
        bgr,
    };
    let (size, mut pixels) = match layout {
        "hwc" => rgb("image", &image)?,
        "chw" => rgb_of_planes("image", &image)?,
        other => return Err(Error::value("layout", "'hwc' or 'chw'", other).into()),
    };
    let (regions, given, own_format) = regions_of(py, masks, size)?;
    let format = mask_format.map_or(Ok(own_format), format_from)?;
    let n = regions.len();
    let classes: Vec<i64> = match classes.filter(|c| !c.is_none()) {
        Some(c) => c
            .call_method0("tolist")
            .or_else(|_| Ok::<_, PyErr>(c.clone()))?
            .extract()?,
        None => Vec::new(),
    };
    let boxes: Option<Vec<Vec<f32>>> = match boxes.filter(|b| !b.is_none()) {
        Some(b) => Some(
            b.call_method0("tolist")
                .or_else(|_| Ok::<_, PyErr>(b.clone()))?
                .extract()?,
        ),
        None => None,
    };
    let fits = |b: &Vec<Vec<f32>>| b.len() == n && b.iter().all(|b| b.len() == 4);
    if classes.len() != n || boxes.as_ref().is_some_and(|b| !fits(b)) {
        return Err(Error::value(
            "boxes and classes",
            format!("[{n}, 4] and [{n}], as many as masks"),
            format!(
                "{:?} boxes and {} classes",
                boxes.as_ref().map(Vec::len),
                classes.len()
            ),
        )
        .into());
    }
    let mut objects: Vec<Object> = regions
        .into_iter()
        .zip(&classes)
        .map(|(region, &class)| Object::real(region, class))
        .collect();
    let pasted = enter(py, || {
        paste_on(&mut pixels, size, &mut objects, &bank.bank, &options, seed)
    })?;

    let kept: Vec<i64> = (0..n as i64)
        .filter(|&i| objects.get(i as usize).is_some_and(|o| o.kept))
        .collect();
    let staying: Vec<&Object> = objects.iter().filter(|o| o.kept).collect();
    let mut flat_boxes: Vec<f32> = Vec::with_capacity(staying.len() * 4);
    for (i, object) in objects.iter().enumerate().filter(|(_, o)| o.kept) {
        let given = boxes
            .as_ref()
            .and_then(|b| b.get(i))
            .filter(|_| !object.touched);
        match (given, &object.region) {
            (Some(b), _) => flat_boxes.extend(b),
            (None, Some(r)) => flat_boxes.extend(<[u32; 4]>::from(r.bbox()).map(|v| v as f32)),
            (None, None) => flat_boxes.extend([0.0; 4]),
        }
    }
    let masks: Py<PyAny> = match format {
        Format::Bool => {
            let (h, w) = (size.height as usize, size.width as usize);
            let array = PyArray3::<bool>::zeros(py, [staying.len(), h, w], false);
            // SAFETY: freshly made, contiguous, of that many bytes, and nobody else has it; 0
            // and 1 are the only bytes written.
            let out = unsafe {
                std::slice::from_raw_parts_mut(array.data().cast::<u8>(), staying.len() * h * w)
            };
            enter(py, || {
                fill(out, size, &staying);
                Ok(())
            })?;
            array.into_any().unbind()
        }
        Format::Rle | Format::Polygons | Format::Arrays => {
            // Polygons that nothing touched are handed back as they came.
            let as_given = format == own_format
                || (format == Format::Arrays && own_format == Format::Polygons);
            let list = PyList::empty(py);
            for (i, object) in objects.iter().enumerate().filter(|(_, o)| o.kept) {
                if let (Given::List(items), false) = (&given, object.touched)
                    && let Some(item) = items.get(i).filter(|_| as_given)
                {
                    list.append(item)?;
                    continue;
                }
                let Some(region) = &object.region else {
                    continue;
                };
                if format == Format::Rle {
                    list.append(rle_dict(py, &region.to_rle(size)?)?)?;
                    continue;
                }
                let polygons = PyList::empty(py);
                for p in region.to_polygons(size)? {
                    if format == Format::Arrays {
                        polygons.append(p.into_pyarray(py))?;
                    } else {
                        polygons.append(p)?;
                    }
                }
                list.append(polygons)?;
            }
            list.into_any().unbind()
        }
    };
    let info = PyList::empty(py);
    for p in pasted.iter().filter(|p| p.kept) {
        let dict = PyDict::new(py);
        dict.set_item("id", p.id.to_string())?;
        dict.set_item("mosaic", &p.mosaic)?;
        dict.set_item("category", p.category)?;
        dict.set_item("box", <[u32; 4]>::from(p.bbox))?;
        dict.set_item("blend", p.blend.name())?;
        dict.set_item("scale", p.scale)?;
        dict.set_item("uses", p.uses)?;
        info.append(dict)?;
    }
    let m = staying.len();
    Ok(PasteResult {
        image: if layout == "chw" {
            planes_array(py, size, &pixels)?.unbind()
        } else {
            rgb_array(py, size, pixels)?.unbind()
        },
        masks,
        boxes: PyArray1::from_vec(py, flat_boxes).reshape([m, 4])?.unbind(),
        classes: PyArray1::from_iter(py, staying.iter().map(|o| o.class)).unbind(),
        source: PyArray1::from_iter(py, staying.iter().map(|o| u8::from(o.is_pasted))).unbind(),
        kept: kept.into_pyarray(py).unbind(),
        pasted: info.unbind(),
    })
}

/// Adds this room to `_core`.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PasteResult>()?;
    m.add_function(wrap_pyfunction!(paste, m)?)?;
    Ok(())
}
