//! DPM-Solver++ 2M (Lu et al., 2022), on the training schedule's noise levels or on those of
//! Karras et al., 2022.

use serde_json::json;
use tch::Tensor;

use super::config::{Prediction, Request};
use super::training::{
    LINEAR, Spacing, Training, checked, interpolate, karras, linspace, offset, sigma_to_t,
    spaced, spacing,
};
use super::{Method, Scheduler, timestep};
use crate::error::{Error, Result};

pub(super) const METHOD: Method = Method {
    name: "dpm_solver",
    class: Some("DPMSolverMultistepScheduler"),
    predictions: &[
        Prediction::Epsilon,
        Prediction::Velocity,
        Prediction::Sample,
    ],
    build: |request| {
        let karras = request.keys.or("use_karras_sigmas", false)?;
        build(request, karras)
    },
};

/// The same class with `use_karras_sigmas`, for recipes to name.
pub(super) const KARRAS: Method = Method {
    name: "dpm_solver_karras",
    class: None,
    build: |request| build(request, true),
    ..METHOD
};

struct DpmSolver {
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// `sqrt((1 - a) / a)` of each call, then 0.
    sigmas: Vec<f64>,
    second_order: bool,
    heun: bool,
    /// The clean sample predicted in the step before.
    last: Option<Tensor>,
}

fn build(request: &mut Request, karras_sigmas: bool) -> Result<Box<dyn Scheduler>> {
    let training = Training::read(request, LINEAR, true)?;
    let spacing = spacing(request, "linspace")?;
    let k = &mut request.keys;
    k.only("algorithm_type", &[json!("dpmsolver++")])?;
    k.only("final_sigmas_type", &[json!("zero")])?;
    k.only("variance_type", &[])?;
    k.only("lambda_min_clipped", &[json!("-Infinity")])?;
    let order: u32 = k.or("solver_order", 2)?;
    if !(1..=2).contains(&order) {
        return Err(Error::format(
            k.path(),
            "solver_order 1 or 2",
            format!("{order} (not supported)"),
        ));
    }
    let solver = k.or("solver_type", "midpoint".to_owned())?;
    let heun = match solver.as_str() {
        "midpoint" | "logrho" | "bh1" | "bh2" => false,
        "heun" => true,
        other => {
            return Err(Error::format(
                k.path(),
                "solver_type \"midpoint\" or \"heun\"",
                format!("{other:?}"),
            ));
        }
    };
    let table = training.sigmas();
    let (total, n) = (request.total, request.steps);
    let (timesteps, mut sigmas): (Vec<f64>, Vec<f64>) = if karras_sigmas {
        let first = table.last().copied().unwrap_or(1.0);
        let last = table.first().copied().unwrap_or(1.0);
        karras(first, last, n)
            .into_iter()
            .map(|s| (sigma_to_t(&table, s).round_ties_even(), s))
            .unzip()
    } else {
        let timesteps: Vec<f64> = match spacing {
            Spacing::Linspace => linspace(0.0, (total - 1) as f64, n + 1)
                .map(f64::round_ties_even)
                .rev()
                .take(n as usize)
                .collect(),
            Spacing::Leading => {
                let ratio = total / (n + 1);
                let offset = offset(request)?;
                (1..=n).rev().map(|i| (i * ratio + offset) as f64).collect()
            }
            Spacing::Trailing => spaced(spacing, request)?,
        };
        timesteps
            .into_iter()
            .map(|t| (t, interpolate(&table, t)))
            .unzip()
    };
    sigmas.push(0.0);
    Ok(Box::new(DpmSolver {
        prediction: request.prediction,
        timesteps: checked(request, timesteps)?,
        sigmas,
        second_order: order == 2,
        heun,
        last: None,
    }))
}

impl DpmSolver {
    /// `(sqrt(a), sqrt(1 - a))` at noise level `i`.
    fn alpha_sigma(&self, i: usize) -> (f64, f64) {
        let alpha = 1.0 / (self.sigmas[i] * self.sigmas[i] + 1.0).sqrt();
        (alpha, self.sigmas[i] * alpha)
    }

    fn first_order(&self, i: usize, sample: &Tensor, clean: &Tensor) -> Tensor {
        let (alpha, sigma) = self.alpha_sigma(i);
        let (alpha_next, sigma_next) = self.alpha_sigma(i + 1);
        // exp(-h), h the step in log signal-to-noise; 0 at the end, where sigma is 0.
        let shrink = (sigma_next / alpha_next) * (alpha / sigma);
        sample * (sigma_next / sigma) - clean * (alpha_next * (shrink - 1.0))
    }

    fn second_order(
        &self,
        i: usize,
        sample: &Tensor,
        clean: &Tensor,
        previous: &Tensor,
    ) -> Tensor {
        let log_snr = |j: usize| -self.sigmas[j].ln();
        let (_, sigma) = self.alpha_sigma(i);
        let (alpha_next, sigma_next) = self.alpha_sigma(i + 1);
        let h = log_snr(i + 1) - log_snr(i);
        let r = (log_snr(i) - log_snr(i - 1)) / h;
        let slope = (clean - previous) / r;
        let shrink = (-h).exp() - 1.0;
        let second = if self.heun {
            slope * (alpha_next * (shrink / h + 1.0))
        } else {
            slope * (-0.5 * alpha_next * shrink)
        };
        sample * (sigma_next / sigma) - clean * (alpha_next * shrink) + second
    }
}

impl Scheduler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, i: usize) -> Tensor {
        let (alpha, sigma) = self.alpha_sigma(i);
        sample * alpha + noise * sigma
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        timestep(&self.timesteps, i)?;
        let (alpha, sigma) = self.alpha_sigma(i);
        let clean = match self.prediction {
            Prediction::Epsilon => (sample - output * sigma) / alpha,
            Prediction::Velocity => sample * alpha - output * sigma,
            Prediction::Sample => output.shallow_clone(),
        };
        // The last noise level is zero, where only the first-order step is defined.
        let at_end = i + 1 == self.timesteps.len();
        let previous = self.last.replace(clean.shallow_clone());
        Ok(match previous {
            Some(previous) if self.second_order && !at_end => {
                self.second_order(i, sample, &clean, &previous)
            }
            _ => self.first_order(i, sample, &clean),
        })
    }
}
