//! What `generate` and `generate_canvas` have in common.

use std::cell::RefCell;
use std::time::Instant;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};

use super::super::{SIGNAL_INTERVAL, check_interrupt};
use super::PyMosaic;
use super::arrays::to_tensor;
use crate::error::{Error, Result};
use crate::mosaic::{Canvas, Generator, Options, Progress};

/// Lets Ctrl-C in now and then.
pub(super) struct Signals {
    last: Instant,
}

impl Signals {
    pub(super) fn new() -> Self {
        Self {
            last: Instant::now(),
        }
    }

    pub(super) fn check(&mut self) -> Result<()> {
        if self.last.elapsed() < SIGNAL_INTERVAL {
            return Ok(());
        }
        self.last = Instant::now();
        check_interrupt()
    }
}

/// A recipe as Python gives it: nothing, a dict, or an object with `to_json()`.
pub(super) fn recipe_values(recipe: Option<&Bound<'_, PyAny>>) -> PyResult<Map<String, Value>> {
    let Some(recipe) = recipe else {
        return Ok(Map::new());
    };
    let text: String = if recipe.is_instance_of::<PyDict>() {
        let json = recipe.py().import("json")?;
        json.call_method1("dumps", (recipe,))?.extract()?
    } else if recipe.hasattr("to_json")? {
        recipe.call_method0("to_json")?.extract()?
    } else {
        return Err(PyTypeError::new_err(format!(
            "recipe: expected a Recipe, a dict or None, got {}",
            recipe.get_type().name()?
        )));
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Error::value("recipe", "an object of recipe keys", text).into()),
    }
}

/// What generate and generate_canvas have in common.
pub(super) struct Call {
    pub(super) masks: bool,
    pub(super) batch: Option<usize>,
    pub(super) return_attention: bool,
    pub(super) progress: Option<Py<PyAny>>,
}

impl Call {
    pub(super) fn run(
        &self,
        generator: &Generator,
        recipe: &crate::recipe::Recipe,
        canvases: &[Canvas],
        noise: Option<&(Vec<i64>, Vec<f32>)>,
    ) -> Result<Vec<PyMosaic>> {
        let noise = match noise {
            Some(array) => {
                let n = canvases.len() as i64;
                if array.0.len() != 4 || array.0.first() != Some(&n) {
                    return Err(Error::value(
                        "init_noise",
                        format!("float32 [{n}, C, H / factor, W / factor]"),
                        format!("{:?}", array.0),
                    ));
                }
                let all = to_tensor(array);
                Some((0..n).map(|i| all.narrow(0, i, 1)).collect::<Vec<_>>())
            }
            None => None,
        };
        let mut options = Options {
            capture: self.masks,
            ..Options::default()
        };
        if let Some(batch) = self.batch {
            if batch == 0 {
                return Err(Error::value("batch", "a positive number", batch));
            }
            options.batch = Some(batch);
        }
        let mut signals = Signals::new();
        let failure: RefCell<Option<PyErr>> = RefCell::new(None);
        let mut step = |done: usize, all: usize| {
            if let Some(progress) = &self.progress {
                Python::attach(|py| {
                    if let Err(e) = progress.call1(py, (done, all)) {
                        failure.replace(Some(e));
                    }
                });
            }
        };
        let mut check = || {
            if failure.borrow().is_some() {
                return Err(Error::Interrupted);
            }
            signals.check()
        };
        let made = generator.generate(
            recipe,
            canvases,
            noise.as_deref(),
            options,
            &mut Progress {
                check: &mut check,
                step: &mut step,
            },
        );
        if let Some(error) = failure.into_inner() {
            return Err(Error::backend("progress callback", error));
        }
        Ok(made?
            .into_iter()
            .map(|m| PyMosaic::new(m, self.return_attention))
            .collect())
    }
}
