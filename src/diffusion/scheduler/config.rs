//! `scheduler_config.json`, and what every method takes from it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::diffusion::config::Keys;
use crate::error::{Error, Result};

/// What the denoiser's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// `sqrt(a) noise - sqrt(1 - a) sample` (Salimans and Ho, 2022).
    Velocity,
    /// The clean sample.
    Sample,
}

impl Prediction {
    const ALL: [Self; 3] = [Self::Epsilon, Self::Velocity, Self::Sample];

    /// The value of the key `prediction_type` that stands for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Velocity => "v_prediction",
            Self::Sample => "sample",
        }
    }

    fn from_name(path: &Path, name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(|p| format!("{:?}", p.name()));
            Error::format(
                path,
                format!("prediction_type {}", known.join(" or ")),
                format!("{name:?} (not supported)"),
            )
        })
    }
}

/// `scheduler/scheduler_config.json`, with the defaults of the method that it is used for.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    path: PathBuf,
    value: Value,
    prediction: Prediction,
}

impl SchedulerConfig {
    /// Reads the file. What the model's output means is the file's `prediction_type`, by default
    /// the noise.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], [`Error::Format`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        // Python writes an infinite bound as a bare word, which is not JSON.
        let text = text.replace(": -Infinity", ": \"-Infinity\"");
        let value = serde_json::from_str(&text).map_err(|e| Error::format(path, "JSON", e))?;
        let mut config = Self {
            path: path.to_path_buf(),
            value,
            prediction: Prediction::Epsilon,
        };
        // Whether the class is known is checked on use: a recipe may name another method.
        config.class()?;
        if let Some(name) = config.keys()?.maybe::<String>("prediction_type")? {
            config.prediction = Prediction::from_name(path, &name)?;
        }
        Ok(config)
    }

    /// The same for a family whose files do not say what its output means.
    #[must_use]
    pub fn predicting(self, prediction: Prediction) -> Self {
        Self { prediction, ..self }
    }

    /// What the model's output means.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn class(&self) -> Result<String> {
        self.keys()?.need("_class_name")
    }

    fn keys(&self) -> Result<Keys> {
        Keys::from_value(&self.path, self.value.clone())
    }
}

/// What a method is built from.
pub(super) struct Request {
    /// The file's keys.
    pub keys: Keys,
    /// What the denoiser's output means; the method can step with it.
    pub prediction: Prediction,
    /// Steps to take, `1..=total`.
    pub steps: i64,
    /// Timesteps that the model was trained on.
    pub total: i64,
}

impl Request {
    pub(super) fn new(config: &SchedulerConfig, steps: u32) -> Result<Self> {
        /// More than any published model has; what is larger would only exhaust memory.
        const MAX_TIMESTEPS: i64 = 100_000;
        let mut keys = config.keys()?;
        let total: i64 = keys.or("num_train_timesteps", 1000)?;
        if !(1..=MAX_TIMESTEPS).contains(&total) {
            return Err(Error::format(
                keys.path(),
                format!("num_train_timesteps in 1..={MAX_TIMESTEPS}"),
                total,
            ));
        }
        let steps = i64::from(steps);
        if !(1..=total).contains(&steps) {
            return Err(Error::value(
                "steps",
                format!(
                    "1..={total} (num_train_timesteps of {})",
                    keys.path().display()
                ),
                steps,
            ));
        }
        Ok(Self {
            keys,
            prediction: config.prediction,
            steps,
            total,
        })
    }
}
