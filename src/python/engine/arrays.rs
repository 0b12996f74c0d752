//! numpy arrays to tensors and back.

use numpy::ndarray::{ArrayD, IxDyn};
use numpy::{IntoPyArray, PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::geometry::Size;

pub(super) type FloatArray<'py> = Bound<'py, PyArrayDyn<f32>>;

/// The shape and the values of an array, copied.
pub(super) fn read_array(array: &PyReadonlyArrayDyn<'_, f32>) -> (Vec<i64>, Vec<f32>) {
    let shape = array.shape().iter().map(|&n| n as i64).collect();
    (shape, array.as_array().iter().copied().collect())
}

pub(super) fn to_tensor((shape, data): &(Vec<i64>, Vec<f32>)) -> Tensor {
    Tensor::from_slice(data).view(shape.as_slice())
}

pub(super) fn from_tensor(t: &Tensor) -> Result<(Vec<usize>, Vec<f32>)> {
    let t = t.to_kind(Kind::Float).to_device(Device::Cpu).contiguous();
    let mut data = vec![0f32; t.numel()];
    let n = data.len();
    t.f_copy_data(&mut data, n)
        .map_err(|e| Error::backend("reading a tensor", e))?;
    Ok((t.size().iter().map(|&d| d as usize).collect(), data))
}

pub(super) fn to_array<T: numpy::Element>(
    py: Python<'_>,
    shape: Vec<usize>,
    data: Vec<T>,
) -> PyResult<Bound<'_, PyArrayDyn<T>>> {
    let array = ArrayD::from_shape_vec(IxDyn(&shape), data)
        .map_err(|e| PyValueError::new_err(e.to_string()))?;
    Ok(array.into_pyarray(py))
}

/// `True` or `False` per byte.
pub(super) fn to_bool_array<'py>(
    py: Python<'py>,
    size: Size,
    data: &[u8],
) -> PyResult<Bound<'py, PyArrayDyn<bool>>> {
    let data: Vec<bool> = data.iter().map(|&v| v != 0).collect();
    to_array(py, vec![size.height as usize, size.width as usize], data)
}
