//! Bindings of the mask room; `mosaicbank.masks` gives them their documented Python face.

use numpy::{
    PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use super::convert::{contiguous, size_of, to_array};
use super::enter;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::{self, Bilateral, BinaryMask, Refiner, Rle, Threshold};

/// Counts as COCO files hold them.
#[derive(FromPyObject)]
enum Counts {
    Compressed(String),
    Plain(Vec<u32>),
}

/// `(height, width, counts)`: an RLE on its way in; the way out is always the string.
type RleIn = (u32, u32, Counts);
type RleOut = (u32, u32, String);

fn rle_in((height, width, counts): RleIn) -> Result<Rle> {
    let size = Size::new(height, width);
    match counts {
        Counts::Compressed(text) => Rle::from_coco_string(&text, size),
        Counts::Plain(counts) => Rle::new(size, &counts),
    }
}

fn rle_out(rle: &Rle) -> RleOut {
    (rle.size().height, rle.size().width, rle.to_coco_string())
}

fn to_mask(array: &PyReadonlyArray2<'_, u8>) -> Result<BinaryMask> {
    let size = size_of("mask", array.shape())?;
    BinaryMask::from_vec(size, contiguous("mask", array)?.to_vec())
}

#[pyfunction]
fn mask_rle_encode(py: Python<'_>, mask: PyReadonlyArray2<'_, u8>) -> PyResult<RleOut> {
    let mask = to_mask(&mask)?;
    enter(py, || Ok(rle_out(&Rle::encode(&mask)?)))
}

#[pyfunction]
fn mask_rle_decode(py: Python<'_>, rle: RleIn) -> PyResult<Bound<'_, PyArray2<u8>>> {
    let mask = enter(py, || Ok(rle_in(rle)?.decode()))?;
    to_array(py, mask.size(), mask.into_vec())
}

/// `(x0, y0, x1, y1)`.
type BoxOut = (u32, u32, u32, u32);

fn box_out(b: PixelBox) -> BoxOut {
    (b.x0, b.y0, b.x1, b.y1)
}

/// `(area, box or None, runs)`.
type RleFacts = (u64, Option<BoxOut>, Vec<u32>);

#[pyfunction]
fn mask_rle_facts(py: Python<'_>, rle: RleIn) -> PyResult<RleFacts> {
    enter(py, || {
        let rle = rle_in(rle)?;
        Ok((rle.area(), rle.bbox().map(box_out), rle.counts().to_vec()))
    })
}

#[pyfunction]
fn mask_rle_from_polygons(
    py: Python<'_>,
    polygons: Vec<Vec<f64>>,
    height: u32,
    width: u32,
) -> PyResult<RleOut> {
    enter(py, || {
        let rle = Rle::from_polygons(&polygons, Size::new(height, width))?;
        Ok(rle_out(&rle))
    })
}

#[pyfunction]
fn mask_rle_to_polygons(py: Python<'_>, rle: RleIn) -> PyResult<Vec<Vec<f64>>> {
    enter(py, || Ok(rle_in(rle)?.to_polygons()))
}

#[pyfunction]
fn mask_rle_merge(
    py: Python<'_>,
    first: RleIn,
    rest: Vec<RleIn>,
    intersect: bool,
) -> PyResult<RleOut> {
    enter(py, || {
        let mut all = rle_in(first)?;
        for other in rest {
            let other = rle_in(other)?;
            all = if intersect {
                all.intersect(&other)?
            } else {
                all.union(&other)?
            };
        }
        Ok(rle_out(&all))
    })
}

#[pyfunction]
fn mask_rle_iou(py: Python<'_>, a: RleIn, b: RleIn) -> PyResult<f64> {
    enter(py, || rle_in(a)?.iou(&rle_in(b)?))
}

/// Labels `[height, width]`, and `(area, box)` of each component.
type ComponentsOut<'py> = (Bound<'py, PyArray2<u32>>, Vec<(u64, BoxOut)>);

#[pyfunction]
fn mask_components<'py>(
    py: Python<'py>,
    mask: PyReadonlyArray2<'py, u8>,
) -> PyResult<ComponentsOut<'py>> {
    let mask = to_mask(&mask)?;
    let found = enter(py, || Ok(mask::components(&mask)))?;
    let items = found
        .items
        .iter()
        .map(|c| (c.area, box_out(c.bbox)))
        .collect();
    Ok((to_array(py, found.size, found.labels)?, items))
}

/// One attention map, `[h, w]`.
type MapIn<'py> = PyReadonlyArray2<'py, f32>;

#[pyfunction]
fn mask_aggregate<'py>(
    py: Python<'py>,
    maps: Vec<MapIn<'py>>,
    height: u32,
    width: u32,
    paper: bool,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let region = Size::new(height, width);
    let maps = maps
        .iter()
        .map(|m| {
            Ok((
                size_of("attention map", m.shape())?,
                contiguous("attention map", m)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let map = enter(py, || {
        if paper {
            mask::aggregate_8_bit(&maps, region)
        } else {
            mask::aggregate(&maps, region)
        }
    })?;
    to_array(py, region, map)
}

#[pyfunction]
fn mask_resize_bicubic<'py>(
    py: Python<'py>,
    map: MapIn<'py>,
    height: u32,
    width: u32,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (from, to) = (size_of("map", map.shape())?, Size::new(height, width));
    let map = contiguous("map", &map)?;
    let out = enter(py, || mask::resize_bicubic(map, from, to))?;
    to_array(py, to, out)
}

#[pyfunction]
fn mask_otsu(py: Python<'_>, values: PyReadonlyArray1<'_, u8>) -> PyResult<u8> {
    let values = contiguous("values", &values)?;
    enter(py, || Ok(mask::otsu(values.iter().copied())))
}

#[pyfunction]
fn mask_threshold<'py>(
    py: Python<'py>,
    map: MapIn<'py>,
    fixed: Option<f32>,
) -> PyResult<Bound<'py, PyArray2<u8>>> {
    let size = size_of("attention map", map.shape())?;
    let map = contiguous("attention map", &map)?;
    let out = enter(py, || {
        let threshold = fixed.map_or(Threshold::Otsu, Threshold::Fixed);
        threshold.validate("threshold")?;
        threshold.apply(map, size)
    })?;
    to_array(py, size, out.into_vec())
}

/// Parameters of the solver, from the text of a JSON object (absent keys: the paper's).
fn refine_params(json: &str) -> Result<Bilateral> {
    let params: Bilateral = serde_json::from_str(json)
        .map_err(|e| Error::value("refine", "the keys of a bilateral refiner", e))?;
    params.validate("refine")?;
    Ok(params)
}

/// Solved map `[height, width]`, vertices, iterations, residual.
type SolveOut<'py> = (Bound<'py, PyArray2<f32>>, usize, u32, f64);

#[pyfunction]
fn mask_bilateral_solve<'py>(
    py: Python<'py>,
    rgb: PyReadonlyArray3<'py, u8>,
    target: MapIn<'py>,
    confidence: Option<MapIn<'py>>,
    params: &str,
) -> PyResult<SolveOut<'py>> {
    let size = size_of("target", target.shape())?;
    let guide = guide(&rgb, size)?;
    let target = contiguous("target", &target)?;
    let confidence = match &confidence {
        None => None,
        Some(c) if c.shape() == [size.height as usize, size.width as usize] => {
            Some(contiguous("confidence", c)?)
        }
        Some(c) => {
            let expected = format!("{} x {}, as the target", size.height, size.width);
            return Err(
                Error::value("confidence", expected, format!("{:?}", c.shape())).into(),
            );
        }
    };
    let (map, report) = enter(py, || {
        mask::bilateral_solve(guide, size, target, confidence, &refine_params(params)?)
    })?;
    let map = to_array(py, size, map)?;
    Ok((map, report.vertices, report.iterations, report.residual))
}

/// The bytes of a picture `[height, width, 3]` of a size.
fn guide<'a>(rgb: &'a PyReadonlyArray3<'_, u8>, size: Size) -> Result<&'a [u8]> {
    if rgb.shape() != [size.height as usize, size.width as usize, 3] {
        return Err(Error::value(
            "rgb",
            format!("[{}, {}, 3]", size.height, size.width),
            format!("{:?}", rgb.shape()),
        ));
    }
    contiguous("rgb", rgb)
}

#[pyfunction]
fn mask_refine<'py>(
    py: Python<'py>,
    mask: PyReadonlyArray2<'py, u8>,
    rgb: PyReadonlyArray3<'py, u8>,
    params: &str,
) -> PyResult<Bound<'py, PyArray2<u8>>> {
    let mask = to_mask(&mask)?;
    let guide = guide(&rgb, mask.size())?;
    let out = enter(py, || refine_params(params)?.apply(&mask, guide))?;
    to_array(py, out.size(), out.into_vec())
}

/// Adds the functions of this file to `_core`.
///
/// # Errors
/// What adding to the module raises.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(mask_rle_encode, m)?)?;
    m.add_function(wrap_pyfunction!(mask_rle_decode, m)?)?;
    m.add_function(wrap_pyfunction!(mask_rle_facts, m)?)?;
    m.add_function(wrap_pyfunction!(mask_rle_from_polygons, m)?)?;
    m.add_function(wrap_pyfunction!(mask_rle_to_polygons, m)?)?;
    m.add_function(wrap_pyfunction!(mask_rle_merge, m)?)?;
    m.add_function(wrap_pyfunction!(mask_rle_iou, m)?)?;
    m.add_function(wrap_pyfunction!(mask_components, m)?)?;
    m.add_function(wrap_pyfunction!(mask_aggregate, m)?)?;
    m.add_function(wrap_pyfunction!(mask_resize_bicubic, m)?)?;
    m.add_function(wrap_pyfunction!(mask_otsu, m)?)?;
    m.add_function(wrap_pyfunction!(mask_threshold, m)?)?;
    m.add_function(wrap_pyfunction!(mask_bilateral_solve, m)?)?;
    m.add_function(wrap_pyfunction!(mask_refine, m)?)?;
    Ok(())
}
