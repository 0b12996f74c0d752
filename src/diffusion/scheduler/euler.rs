//! Euler steps of the probability-flow equation (Karras et al., 2022).

use serde_json::json;
use tch::Tensor;

use super::config::{Prediction, Request};
use super::training::{
    LINEAR, Spacing, Training, checked, interpolate, karras, linspace, sigma_to_t, spaced,
    spacing,
};
use super::{Method, Scheduler, timestep};
use crate::error::Result;

pub(super) const METHOD: Method = Method {
    name: "euler",
    class: Some("EulerDiscreteScheduler"),
    predictions: &[Prediction::Epsilon, Prediction::Velocity],
    build,
};

struct Euler {
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// `sqrt((1 - a) / a)` of each call, then 0.
    sigmas: Vec<f64>,
    init_noise_sigma: f64,
}

fn build(request: &mut Request) -> Result<Box<dyn Scheduler>> {
    let training = Training::read(request, LINEAR, true)?;
    let spacing = spacing(request, "linspace")?;
    let k = &mut request.keys;
    k.only("interpolation_type", &[json!("linear")])?;
    k.only("timestep_type", &[json!("discrete")])?;
    k.only("final_sigmas_type", &[json!("zero")])?;
    k.only("sigma_min", &[])?;
    k.only("sigma_max", &[])?;
    let mut timesteps: Vec<f64> = match spacing {
        // Not rounded: the table of sigmas is interpolated.
        Spacing::Linspace => linspace(0.0, (request.total - 1) as f64, request.steps)
            .rev()
            .collect(),
        _ => spaced(spacing, request)?,
    };
    let table = training.sigmas();
    let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| interpolate(&table, t)).collect();
    if request.keys.or("use_karras_sigmas", false)? {
        let first = sigmas.first().copied().unwrap_or(1.0);
        let last = sigmas.last().copied().unwrap_or(1.0);
        sigmas = karras(first, last, request.steps);
        timesteps = sigmas.iter().map(|&s| sigma_to_t(&table, s)).collect();
    }
    let largest = sigmas.iter().copied().fold(0.0, f64::max);
    sigmas.push(0.0);
    Ok(Box::new(Euler {
        prediction: request.prediction,
        timesteps: checked(request, timesteps)?,
        sigmas,
        init_noise_sigma: if spacing == Spacing::Leading {
            (largest * largest + 1.0).sqrt()
        } else {
            largest
        },
    }))
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: &Tensor, i: usize) -> Tensor {
        let sigma = self.sigmas[i];
        sample / (sigma * sigma + 1.0).sqrt()
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, i: usize) -> Tensor {
        sample + noise * self.sigmas[i]
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        timestep(&self.timesteps, i)?;
        let (sigma, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let slope = match self.prediction {
            Prediction::Velocity => {
                let root = (sigma * sigma + 1.0).sqrt();
                let clean = output * (-sigma / root) + sample / (sigma * sigma + 1.0);
                (sample - clean) / sigma
            }
            _ => output.shallow_clone(),
        };
        Ok(sample + slope * (next - sigma))
    }
}
