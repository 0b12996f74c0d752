//! A scheduler for tests that does as little as one can: it takes the output away, in as many
//! parts as there are steps. The whole of it is this file and its line in `METHODS`.

use tch::Tensor;

use super::config::{Prediction, Request};
use super::{Method, Scheduler, timestep};
use crate::error::Result;

pub(super) const METHOD: Method = Method {
    name: "noop",
    class: Some("NoopScheduler"),
    predictions: &[Prediction::Epsilon],
    build: |request: &mut Request| {
        Ok(Box::new(Noop {
            timesteps: (0..request.steps).rev().map(|t| t as f64).collect(),
        }))
    },
};

struct Noop {
    timesteps: Vec<f64>,
}

impl Scheduler for Noop {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, _i: usize) -> Tensor {
        sample + noise
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        timestep(&self.timesteps, i)?;
        let left = self.timesteps.len() - i;
        Ok(sample - output / left as f64)
    }
}
