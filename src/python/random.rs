//! Seeds from Python's random states.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rand::Rng;

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
