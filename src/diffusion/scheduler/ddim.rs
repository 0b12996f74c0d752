//! Deterministic DDIM (Song et al., 2021).

use tch::Tensor;

use super::config::{Prediction, Request};
use super::training::{LINEAR, Training, checked, clip_range, clipped, mix, spaced, spacing};
use super::{Method, Scheduler, timestep};
use crate::error::Result;

pub(super) const METHOD: Method = Method {
    name: "ddim",
    class: Some("DDIMScheduler"),
    predictions: &[
        Prediction::Epsilon,
        Prediction::Velocity,
        Prediction::Sample,
    ],
    build,
};

struct Ddim {
    training: Training,
    timesteps: Vec<f64>,
    /// Timesteps between two steps.
    ratio: i64,
    clip: Option<f64>,
}

fn build(request: &mut Request) -> Result<Box<dyn Scheduler>> {
    let training = Training::read(request, LINEAR, false)?;
    let spacing = spacing(request, "leading")?;
    let timesteps = spaced(spacing, request)?;
    Ok(Box::new(Ddim {
        training: training.with_final_signal(request, true)?,
        timesteps: checked(request, timesteps)?,
        ratio: request.total / request.steps,
        clip: clip_range(request, true)?,
    }))
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, i: usize) -> Tensor {
        mix(
            sample,
            noise,
            self.training.signal(self.timesteps[i] as i64),
        )
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let t = timestep(&self.timesteps, i)? as i64;
        let (clean, noise) =
            self.training
                .clean_and_noise(output, sample, self.training.signal(t));
        let clean = clipped(clean, self.clip);
        Ok(mix(&clean, &noise, self.training.signal(t - self.ratio)))
    }
}
