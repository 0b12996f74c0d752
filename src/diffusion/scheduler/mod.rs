//! Schedulers: the step from one noise level to the next, one file per method.
//!
//! A new method is a file with a [`Method`] and one line in [`METHODS`]; recipes can name it once
//! its name is in [`crate::recipe::SchedulerKind`], too. Every method is compared with the
//! scheduler of the same name in `diffusers` (`tests/python/parity/test_schedulers.py`). Tables
//! are held in float64, samples stay in float32.

mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod lcm;
#[cfg(test)]
mod noop;
mod pndm;
mod training;

use tch::Tensor;

pub use config::{Prediction, SchedulerConfig};

use self::config::Request;
use crate::error::{Error, Result};
use crate::recipe::SchedulerKind;

/// All methods, in the order in which messages list them.
const METHODS: &[Method] = &[
    pndm::METHOD,
    ddim::METHOD,
    euler::METHOD,
    dpm_solver::METHOD,
    dpm_solver::KARRAS,
    lcm::METHOD,
    #[cfg(test)]
    noop::METHOD,
];

/// One trajectory of one canvas: made for a number of steps, then stepped through once.
///
/// Steps are counted in denoiser calls, `0..timesteps().len()`; an index outside of that range is
/// an error in [`Scheduler::step`] and not allowed elsewhere.
pub trait Scheduler: Send {
    /// The noise level of every denoiser call, in order, on the scale of the model's training
    /// timesteps (fractional where the method interpolates). PNDM makes one call more than it
    /// takes steps.
    fn timesteps(&self) -> &[f64];

    /// The factor that brings standard normal noise to the level of the first call.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The call to begin with when those before `i` are left out.
    fn start_at(&self, i: usize) -> usize {
        i
    }

    /// Whether [`Scheduler::step`] takes fresh noise in step `i`.
    fn wants_noise(&self, _i: usize) -> bool {
        false
    }

    /// The sample as the denoiser expects it in call `i`.
    fn scale_model_input(&self, sample: &Tensor, _i: usize) -> Tensor {
        sample.shallow_clone()
    }

    /// A clean latent brought to the noise level of call `i`; `sample` and `noise` have one shape.
    fn add_noise(&self, sample: &Tensor, noise: &Tensor, i: usize) -> Tensor;

    /// The sample after step `i`, given the denoiser's `output` for `sample` (both float32, of one
    /// shape: a whole canvas). `noise`, standard normal and of the same shape, is needed where
    /// [`Scheduler::wants_noise`] says so.
    ///
    /// # Errors
    /// [`Error::Value`] for a step outside the trajectory, or when noise is wanted and missing.
    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor>;
}

/// How a method is registered.
struct Method {
    /// Its name in recipes.
    name: &'static str,
    /// The `_class_name` of the configurations that ask for it.
    class: Option<&'static str>,
    /// The model outputs that it can step with.
    predictions: &'static [Prediction],
    /// Makes a trajectory.
    build: fn(&mut Request) -> Result<Box<dyn Scheduler>>,
}

impl SchedulerConfig {
    /// A trajectory of `steps` steps. `kind` overrides the class that the file names; keys that the
    /// file does not hold take the defaults of the method in use.
    ///
    /// # Errors
    /// [`Error::Format`] for values that are malformed or not supported; [`Error::Value`] for a
    /// number of steps that the schedule does not allow.
    pub fn trajectory(
        &self,
        kind: Option<SchedulerKind>,
        steps: u32,
    ) -> Result<Box<dyn Scheduler>> {
        let prediction = self.prediction();
        let class = self.class()?;
        let method = METHODS.iter().find(|m| match kind {
            Some(kind) => m.name == kind.name(),
            None => m.class == Some(class.as_str()),
        });
        let Some(method) = method else {
            let known: Vec<&str> = METHODS.iter().filter_map(|m| m.class).collect();
            return Err(Error::format(
                self.path(),
                format!(
                    "_class_name {} (or a recipe that names a scheduler)",
                    known.join(", ")
                ),
                format!("{class:?} (not supported)"),
            ));
        };
        if !method.predictions.contains(&prediction) {
            let names: Vec<String> = method
                .predictions
                .iter()
                .map(|p| format!("{:?}", p.name()))
                .collect();
            return Err(Error::format(
                self.path(),
                format!("prediction_type {}", names.join(" or ")),
                format!("{:?} (not supported by {})", prediction.name(), method.name),
            ));
        }
        let mut request = Request::new(self, steps)?;
        (method.build)(&mut request)
    }
}

/// The timestep of step `i`.
fn timestep(timesteps: &[f64], i: usize) -> Result<f64> {
    timesteps
        .get(i)
        .copied()
        .ok_or_else(|| Error::value("scheduler step", format!("0..{}", timesteps.len()), i))
}

/// The noise of a step that needs it.
fn needed(noise: Option<&Tensor>) -> Result<&Tensor> {
    noise.ok_or_else(|| Error::value("scheduler noise", "a tensor like the sample", "nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<SchedulerConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scheduler_config.json");
        std::fs::write(&path, json).unwrap();
        SchedulerConfig::read(&path)
    }

    fn make(json: &str, steps: u32) -> Result<Box<dyn Scheduler>> {
        config(json)?.trajectory(None, steps)
    }

    #[test]
    fn pndm_calls_the_denoiser_once_more_than_it_steps() {
        let s = make(
            r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "steps_offset": 1,
                "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#,
            50,
        )
        .unwrap();
        assert_eq!(s.timesteps().len(), 51);
        assert_eq!(s.timesteps()[..3], [981.0, 961.0, 961.0]);
        assert_eq!(s.timesteps()[50], 1.0);
    }

    #[test]
    fn refusals_name_the_file_and_the_key() {
        for (json, word) in [
            (
                r#"{"_class_name": "HeunDiscreteScheduler"}"#,
                "HeunDiscreteScheduler",
            ),
            (r#"{"_class_name": "PNDMScheduler"}"#, "skip_prk_steps"),
            (
                r#"{"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}"#,
                "beta_schedule",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#,
                "thresholding",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#,
                "solver_order",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": "x"}"#,
                "num_train_timesteps",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "steps_offset": 500}"#,
                "steps_offset",
            ),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "prediction_type": "sample"}"#,
                "prediction_type",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}"#,
                "flow_prediction",
            ),
        ] {
            let text = make(json, 20).err().unwrap().to_string();
            assert!(
                text.contains(word) && text.contains("scheduler_config.json"),
                "{text}"
            );
        }
    }

    #[test]
    fn zero_or_too_many_steps_are_refused() {
        for steps in [0, 51, 2000] {
            assert!(
                make(r#"{"_class_name": "LCMScheduler"}"#, steps).is_err(),
                "{steps}"
            );
        }
    }

    #[test]
    fn every_name_that_a_recipe_accepts_has_one_method() {
        for kind in SchedulerKind::ALL {
            let found = METHODS.iter().filter(|m| m.name == kind.name()).count();
            assert_eq!(found, 1, "{}", kind.name());
            assert_eq!(SchedulerKind::from_name(kind.name()).unwrap(), *kind);
        }
        assert!(SchedulerKind::from_name("ddpm").is_err());
        let mut classes: Vec<_> = METHODS.iter().filter_map(|m| m.class).collect();
        let n = classes.len();
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), n);
    }

    #[test]
    fn a_step_outside_the_trajectory_is_refused() {
        let sample = Tensor::zeros([1, 1, 2, 2], (tch::Kind::Float, tch::Device::Cpu));
        for method in METHODS.iter().filter_map(|m| m.class) {
            let json = format!(r#"{{"_class_name": {method:?}, "skip_prk_steps": true}}"#);
            let mut s = make(&json, 4).unwrap();
            let end = s.timesteps().len();
            assert!(
                s.step(end, &sample, &sample, Some(&sample)).is_err(),
                "{method}"
            );
        }
    }
}
