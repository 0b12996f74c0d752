//! Bindings of the engine status.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::enter;
use crate::error::Error;
use crate::status::{EngineStatus, State};

/// What one engine of a bank says about itself, as read from its status file.
#[pyclass(name = "EngineStatus", frozen, module = "mosaicbank._core")]
pub struct PyEngineStatus {
    status: EngineStatus,
    observed: State,
}

/// The getters that hand out a field as it is, and further methods.
macro_rules! engine_status {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty,)* ; $($methods:tt)*) => {
        #[pymethods]
        impl PyEngineStatus {
            $($(#[doc = $doc])*
            #[getter]
            fn $name(&self) -> $type {
                self.status.$name.clone()
            })*

            $($methods)*
        }
    };
}

engine_status! {
    /// Unique among the engines of the bank.
    id: String,
    /// "engine" or "prewarm".
    command: String,
    /// Process id.
    pid: u32,
    /// Host name.
    host: String,
    /// Version of mosaicbank.
    version: String,
    /// When it started, seconds since 1970.
    started: f64,
    /// When it wrote this, seconds since 1970.
    time: f64,
    /// Name of the model's directory; empty until the model is loaded.
    model: String,
    /// SHA-256 of the model's weights; empty until the model is loaded.
    weights: String,
    /// Device and dtype.
    device: String,
    /// Mosaics per batch.
    batch: usize,
    /// Share of the device's time that it may use, above 0 and at most 1.
    duty: f64,
    /// Share that it used over the last minute of work; None before.
    measured_duty: Option<f64>,
    /// Share of the time in which the device waited although there was work; None before any.
    idle_share: Option<f64>,
    /// Mosaics written.
    mosaics: u64,
    /// Instances written.
    instances: u64,
    /// Regions generated.
    regions: u64,
    /// Regions that gave no instance.
    rejected: u64,
    /// Mosaics with unusable pixels, or that could not be labelled.
    dropped: u64,
    /// Seeds of the latest dropped mosaics.
    dropped_seeds: Vec<u64>,
    /// Mosaics per second over the last minute.
    mosaics_per_second: f64,
    /// Instances per second over the last minute.
    instances_per_second: f64,
    /// Unused mosaics to keep per category.
    target: u64,
    /// Number of categories that it keeps stocked.
    categories: usize,
    /// Number of those that have the target.
    stocked: usize,
    /// Mosaics short of the target, over all categories.
    missing: u64,
    /// Mosaics in progress: (category index, count).
    coming: Vec<(u32, u64)>,
    /// Peak resident memory, bytes; None where the system does not report it.
    peak_memory: Option<u64>,
    /// Times that the batch was halved because the device ran out of memory.
    halved: u32,
    /// Number of errors.
    errors: u64,
    ;
    /// One of ENGINE_STATES, as seen from this machine: "dead" if the engine ended without
    /// saying so.
    #[getter]
    const fn state(&self) -> &'static str {
        self.observed.name()
    }

    /// Whether it was running when the file was read.
    #[getter]
    const fn alive(&self) -> bool {
        !self.observed.is_final()
    }

    /// The latest error's message; None without errors.
    #[getter]
    fn last_error(&self) -> Option<&str> {
        self.status.last_error.as_ref().map(|e| e.message.as_str())
    }

    /// When that error occurred, seconds since 1970; None without errors.
    #[getter]
    fn last_error_time(&self) -> Option<f64> {
        self.status.last_error.as_ref().map(|e| e.time)
    }

    /// Totals over the run, oldest first: (time, mosaics, instances, regions, rejected).
    #[getter]
    fn history(&self) -> Vec<(f64, u64, u64, u64, u64)> {
        self.status.history.iter().map(|&m| m.into()).collect()
    }

    /// Seconds per stage of the loop: plan, denoise, rest, wait, label, write, idle.
    #[getter]
    fn stages<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = &self.status.stages;
        let stages = PyDict::new(py);
        for (name, seconds) in [
            ("plan", s.plan),
            ("denoise", s.denoise),
            ("rest", s.rest),
            ("wait", s.wait),
            ("label", s.label),
            ("write", s.write),
            ("idle", s.idle),
        ] {
            stages.set_item(name, seconds)?;
        }
        Ok(stages)
    }

    fn __repr__(&self) -> String {
        format!(
            "EngineStatus({:?}, state={:?}, mosaics={})",
            self.status.id,
            self.observed.name(),
            self.status.mosaics
        )
    }
}

/// The status of every engine that has worked on the bank in the directory ``bank``, oldest
/// first. Status files that cannot be read are skipped.
///
/// Raises:
///     OSError: the directory cannot be read.
#[pyfunction]
fn engine_status(py: Python<'_>, bank: PathBuf) -> PyResult<Vec<PyEngineStatus>> {
    let of = |status: EngineStatus| PyEngineStatus {
        observed: status.observed(),
        status,
    };
    enter(py, || {
        Ok::<_, Error>(EngineStatus::read_all(&bank)?.into_iter().map(of).collect())
    })
}

/// Adds this room to `_core`.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyEngineStatus>()?;
    m.add_function(wrap_pyfunction!(engine_status, m)?)?;
    let states = State::ALL.map(State::name);
    m.add("ENGINE_STATES", PyTuple::new(m.py(), states)?)?;
    Ok(())
}
