//! Dictionaries, images and masks between Python and Rust.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray3,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::{self, Rle};

pub(super) fn field<'py>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    dict.get_item(name)?
        .ok_or_else(|| PyKeyError::new_err(format!("{name:?} is missing")))
}

pub(super) fn optional<'py, T>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    match dict.get_item(name)? {
        Some(v) if !v.is_none() => Ok(Some(v.extract()?)),
        _ => Ok(None),
    }
}

/// Height and width of a 2-D array, as far as masks go.
pub(super) fn size_of(what: &str, shape: &[usize]) -> Result<Size> {
    match *shape {
        [h, w, ..] if h as u64 * w as u64 <= mask::rle::MAX_PIXELS => {
            Ok(Size::new(h as u32, w as u32))
        }
        _ => Err(Error::value(
            what,
            format!(
                "[height, width] with at most {} positions",
                mask::rle::MAX_PIXELS
            ),
            format!("{shape:?}"),
        )),
    }
}

/// The elements of a C-contiguous array.
pub(super) fn contiguous<'a, T: numpy::Element, D: numpy::ndarray::Dimension>(
    what: &str,
    array: &'a numpy::PyReadonlyArray<'_, T, D>,
) -> Result<&'a [T]> {
    array
        .as_slice()
        .map_err(|_| Error::value(what, "a C-contiguous array", "strides"))
}

pub(super) fn to_array<T: numpy::Element>(
    py: Python<'_>,
    size: Size,
    data: Vec<T>,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let shape = (size.height as usize, size.width as usize);
    numpy::ndarray::Array2::from_shape_vec(shape, data)
        .map(|a| a.into_pyarray(py))
        .map_err(|e| Error::backend("array shape", e).into())
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

pub(super) fn plane_array<'py>(
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
