//! Latent consistency sampling (Luo et al., 2023).

use tch::Tensor;

use super::config::{Prediction, Request};
use super::training::{Betas, Training, checked, clip_range, clipped, mix};
use super::{Method, Scheduler, needed, timestep};
use crate::error::{Error, Result};

pub(super) const METHOD: Method = Method {
    name: "lcm",
    class: Some("LCMScheduler"),
    predictions: &[
        Prediction::Epsilon,
        Prediction::Velocity,
        Prediction::Sample,
    ],
    build,
};

/// The defaults of the class.
const BETAS: Betas = (0.00085, 0.012, "scaled_linear");

struct Lcm {
    training: Training,
    timesteps: Vec<f64>,
    clip: Option<f64>,
    /// Factor of the timestep in the consistency parametrisation.
    scaling: f64,
}

fn build(request: &mut Request) -> Result<Box<dyn Scheduler>> {
    let training = Training::read(request, BETAS, false)?;
    let original: i64 = request.keys.or("original_inference_steps", 50)?;
    let scaling = request.keys.or("timestep_scaling", 10.0)?;
    let timesteps = timesteps(request, original)?;
    Ok(Box::new(Lcm {
        training: training.with_final_signal(request, true)?,
        timesteps: checked(request, timesteps)?,
        clip: clip_range(request, false)?,
        scaling,
    }))
}

/// The distilled steps, from the noisiest; as many of them as are asked for, evenly spaced.
fn timesteps(request: &Request, original: i64) -> Result<Vec<f64>> {
    let (path, total, n) = (request.keys.path(), request.total, request.steps);
    if original < 1 || original > total {
        return Err(Error::format(
            path,
            format!("original_inference_steps in 1..={total}"),
            original,
        ));
    }
    if n > original {
        return Err(Error::value(
            "steps",
            format!(
                "1..={original} (original_inference_steps of {})",
                path.display()
            ),
            n,
        ));
    }
    let stride = total / original;
    Ok((0..n)
        .map(|i| {
            let index = (i as f64 * original as f64 / n as f64).floor() as i64;
            ((original - index) * stride - 1) as f64
        })
        .collect())
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn wants_noise(&self, i: usize) -> bool {
        i + 1 < self.timesteps.len()
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
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        /// Standard deviation of the data in the consistency parametrisation (Luo et al., 2023).
        const SIGMA_DATA: f64 = 0.5;
        let t = timestep(&self.timesteps, i)?;
        let (clean, _) =
            self.training
                .clean_and_noise(output, sample, self.training.signal(t as i64));
        let clean = clipped(clean, self.clip);
        let scaled = t * self.scaling;
        let total = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let denoised =
            clean * (scaled / total.sqrt()) + sample * (SIGMA_DATA * SIGMA_DATA / total);
        match self.timesteps.get(i + 1) {
            Some(&next) => Ok(mix(
                &denoised,
                needed(noise)?,
                self.training.signal(next as i64),
            )),
            None => Ok(denoised),
        }
    }
}
