//! Pseudo linear multistep (Liu et al., 2022), without Runge-Kutta warm-up.

use std::collections::VecDeque;

use serde_json::json;
use tch::Tensor;

use super::config::{Prediction, Request};
use super::training::{LINEAR, Training, checked, mix, spaced, spacing};
use super::{Method, Scheduler, timestep};
use crate::error::{Error, Result};

pub(super) const METHOD: Method = Method {
    name: "pndm",
    class: Some("PNDMScheduler"),
    predictions: &[Prediction::Epsilon, Prediction::Velocity],
    build,
};

/// Outputs that the linear multistep formula of the highest order uses.
const ORDER: usize = 4;

struct Pndm {
    training: Training,
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// Timesteps between two steps.
    ratio: i64,
    /// The last outputs, the newest at the end.
    outputs: VecDeque<Tensor>,
    /// The sample that the first step began with, for the call that repeats it.
    held: Option<Tensor>,
}

fn build(request: &mut Request) -> Result<Box<dyn Scheduler>> {
    let training = Training::read(request, LINEAR, false)?;
    let spacing = spacing(request, "leading")?;
    let training = training.with_final_signal(request, false)?;
    let k = &mut request.keys;
    k.only("skip_prk_steps", &[json!(true)])?;
    if !k.or("skip_prk_steps", false)? {
        return Err(Error::format(
            k.path(),
            "skip_prk_steps true",
            "false (Runge-Kutta warm-up is not supported)",
        ));
    }
    let mut timesteps = spaced(spacing, request)?;
    // The second step is taken twice: once to get a derivative, once with it.
    if let Some(&second) = timesteps.get(1) {
        timesteps.insert(1, second);
    }
    Ok(Box::new(Pndm {
        training,
        prediction: request.prediction,
        timesteps: checked(request, timesteps)?,
        ratio: request.total / request.steps,
        outputs: VecDeque::new(),
        held: None,
    }))
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The second call only repeats the first step, so it cannot be the first.
    fn start_at(&self, i: usize) -> usize {
        if i == 1 { 2 } else { i }
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
        // The second call repeats the first step with a better derivative.
        let repeats = i == 1 && !self.outputs.is_empty();
        let (from, to) = if repeats {
            (t + self.ratio, t)
        } else {
            (t, t - self.ratio)
        };
        if !repeats {
            while self.outputs.len() >= ORDER {
                self.outputs.pop_front();
            }
            self.outputs.push_back(output.shallow_clone());
        }
        let held = if repeats { self.held.take() } else { None };
        let sample = held.unwrap_or_else(|| sample.shallow_clone());
        if i == 0 {
            self.held = Some(sample.shallow_clone());
        }
        let outputs = &self.outputs;
        let e = |back: usize| &outputs[outputs.len() - back];
        let derivative = match outputs.len() {
            1 if repeats => (output + e(1)) / 2.0,
            1 => output.shallow_clone(),
            // Adams-Bashforth of growing order.
            2 => (e(1) * 3.0 - e(2)) / 2.0,
            3 => (e(1) * 23.0 - e(2) * 16.0 + e(3) * 5.0) / 12.0,
            _ => (e(1) * 55.0 - e(2) * 59.0 + e(3) * 37.0 - e(4) * 9.0) / 24.0,
        };
        let (a, a_next) = (self.training.signal(from), self.training.signal(to));
        let noise = match self.prediction {
            Prediction::Velocity => derivative * a.sqrt() + &sample * (1.0 - a).sqrt(),
            _ => derivative,
        };
        // Liu et al., 2022, equation 9.
        let denominator = a * (1.0 - a_next).sqrt() + (a * (1.0 - a) * a_next).sqrt();
        Ok(&sample * (a_next / a).sqrt() - noise * ((a_next - a) / denominator))
    }
}
