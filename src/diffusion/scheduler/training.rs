//! The discrete training schedule that most methods step along, and which of its timesteps they
//! visit.
//!
//! It is the diffusion with cumulative signal `a(t)` (`alphas_cumprod` in `diffusers`): a sample
//! at timestep `t` is `sqrt(a) clean + sqrt(1 - a) noise`.

use serde_json::json;
use tch::Tensor;

use super::config::{Prediction, Request};
use crate::error::{Error, Result};

/// Which timesteps of the training schedule are visited (Lin et al., 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// `beta_start`, `beta_end` and `beta_schedule` of a configuration that does not name them.
pub(super) type Betas = (f64, f64, &'static str);

/// The defaults of most classes in `diffusers`.
pub(super) const LINEAR: Betas = (0.0001, 0.02, "linear");

/// The training schedule.
pub(super) struct Training {
    /// `a(t)`.
    signal: Vec<f64>,
    /// The signal outside of the schedule.
    final_signal: f64,
    prediction: Prediction,
}

impl Training {
    /// Reads the schedule, `betas` being the method's defaults. With `finite`, a schedule that is
    /// rescaled to end without any signal keeps so much that its noise levels are finite.
    pub(super) fn read(request: &mut Request, betas: Betas, finite: bool) -> Result<Self> {
        let total = request.total;
        let k = &mut request.keys;
        for key in [
            "thresholding",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
            "use_dynamic_shifting",
        ] {
            k.only(key, &[json!(false)])?;
        }
        let start: f64 = k.or("beta_start", betas.0)?;
        let end: f64 = k.or("beta_end", betas.1)?;
        let shape = k.or("beta_schedule", betas.2.to_owned())?;
        let betas: Vec<f64> = if let Some(betas) = k.maybe::<Vec<f64>>("trained_betas")? {
            betas
        } else {
            match shape.as_str() {
                "linear" => linspace(start, end, total).collect(),
                "scaled_linear" => linspace(start.sqrt(), end.sqrt(), total)
                    .map(|b| b * b)
                    .collect(),
                "squaredcos_cap_v2" => {
                    // Nichol and Dhariwal, 2021, with the largest beta capped.
                    let bar = |t: f64| {
                        ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                            .cos()
                            .powi(2)
                    };
                    let n = total as f64;
                    (0..total)
                        .map(|i| (1.0 - bar((i + 1) as f64 / n) / bar(i as f64 / n)).min(0.999))
                        .collect()
                }
                other => {
                    return Err(Error::format(
                        k.path(),
                        "beta_schedule \"linear\", \"scaled_linear\" or \"squaredcos_cap_v2\"",
                        format!("{other:?} (not supported)"),
                    ));
                }
            }
        };
        if betas.len() as i64 != total || betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(Error::format(
                k.path(),
                format!("{total} betas, each in 0..1"),
                format!("{} from {start} to {end}", betas.len()),
            ));
        }
        let mut signal: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        if k.or("rescale_betas_zero_snr", false)? {
            rescale_to_zero_snr(&mut signal);
            if finite && let Some(last) = signal.last_mut() {
                // The reference's floor.
                *last = 2f64.powi(-24);
            }
        }
        Ok(Self {
            signal,
            final_signal: 1.0,
            prediction: request.prediction,
        })
    }

    /// Reads the signal after the last step: 1, or with `set_alpha_to_one` false (the default is
    /// `one`) that of timestep 0.
    pub(super) fn with_final_signal(
        mut self,
        request: &mut Request,
        one: bool,
    ) -> Result<Self> {
        if !request.keys.or("set_alpha_to_one", one)? {
            self.final_signal = self.signal.first().copied().unwrap_or(1.0);
        }
        Ok(self)
    }

    /// `a(t)`; after the last step the final signal.
    pub(super) fn signal(&self, t: i64) -> f64 {
        usize::try_from(t)
            .ok()
            .and_then(|t| self.signal.get(t))
            .copied()
            .unwrap_or(self.final_signal)
    }

    /// `sqrt((1 - a) / a)` of every timestep.
    pub(super) fn sigmas(&self) -> Vec<f64> {
        self.signal.iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
    }

    /// The clean sample and the noise that `output` stands for, where the sample's signal is `a`.
    pub(super) fn clean_and_noise(
        &self,
        output: &Tensor,
        sample: &Tensor,
        a: f64,
    ) -> (Tensor, Tensor) {
        let (s, n) = (a.sqrt(), (1.0 - a).sqrt());
        match self.prediction {
            Prediction::Epsilon => ((sample - output * n) / s, output.shallow_clone()),
            Prediction::Velocity => (sample * s - output * n, output * s + sample * n),
            Prediction::Sample => (output.shallow_clone(), (sample - output * s) / n),
        }
    }
}

/// `sample` and `noise` mixed to the signal `a`.
pub(super) fn mix(sample: &Tensor, noise: &Tensor, a: f64) -> Tensor {
    sample * a.sqrt() + noise * (1.0 - a).sqrt()
}

/// Lin et al., 2023, algorithm 1: the last training step holds no signal at all.
fn rescale_to_zero_snr(signal: &mut [f64]) {
    let roots: Vec<f64> = signal.iter().map(|a| a.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return;
    };
    for (a, root) in signal.iter_mut().zip(roots) {
        *a = ((root - last) * first / (first - last)).powi(2);
    }
}

/// `timestep_spacing`.
pub(super) fn spacing(request: &mut Request, default: &str) -> Result<Spacing> {
    let k = &mut request.keys;
    match k.or("timestep_spacing", default.to_owned())?.as_str() {
        "linspace" => Ok(Spacing::Linspace),
        "leading" => Ok(Spacing::Leading),
        "trailing" => Ok(Spacing::Trailing),
        other => Err(Error::format(
            k.path(),
            "timestep_spacing \"linspace\", \"leading\" or \"trailing\"",
            format!("{other:?}"),
        )),
    }
}

/// `steps_offset`, by which leading timesteps are moved.
pub(super) fn offset(request: &mut Request) -> Result<i64> {
    request.keys.or("steps_offset", 0)
}

/// Descending integer timesteps.
pub(super) fn spaced(spacing: Spacing, request: &mut Request) -> Result<Vec<f64>> {
    let offset = offset(request)?;
    let (total, n) = (request.total, request.steps);
    Ok(match spacing {
        Spacing::Linspace => linspace(0.0, (total - 1) as f64, n)
            .map(f64::round_ties_even)
            .rev()
            .collect(),
        Spacing::Leading => (0..n)
            .rev()
            .map(|i| (i * (total / n) + offset) as f64)
            .collect(),
        Spacing::Trailing => {
            let ratio = total as f64 / n as f64;
            (0..n)
                .map(|i| (total as f64 - i as f64 * ratio).round_ties_even() - 1.0)
                .collect()
        }
    })
}

/// Refuses timesteps outside of the training schedule.
pub(super) fn checked(request: &mut Request, timesteps: Vec<f64>) -> Result<Vec<f64>> {
    let total = request.total;
    if timesteps
        .iter()
        .all(|t| (0.0..=(total - 1) as f64).contains(t))
    {
        return Ok(timesteps);
    }
    let offset = offset(request)?;
    Err(Error::format(
        request.keys.path(),
        format!("timesteps within 0..{total} for {} steps", request.steps),
        format!("{timesteps:?} (steps_offset {offset})"),
    ))
}

/// The range that clean samples are clipped to, where they are.
pub(super) fn clip_range(request: &mut Request, default: bool) -> Result<Option<f64>> {
    let k = &mut request.keys;
    let range = k.or("clip_sample_range", 1.0)?;
    Ok(k.or("clip_sample", default)?.then_some(range))
}

pub(super) fn clipped(sample: Tensor, clip: Option<f64>) -> Tensor {
    match clip {
        Some(range) => sample.clamp(-range, range),
        None => sample,
    }
}

pub(super) fn linspace(start: f64, end: f64, n: i64) -> impl DoubleEndedIterator<Item = f64> {
    let step = if n > 1 {
        (end - start) / (n - 1) as f64
    } else {
        0.0
    };
    (0..n).map(move |i| {
        if i > 0 && i + 1 == n {
            end
        } else {
            start + step * i as f64
        }
    })
}

/// The value of a table at a fractional timestep.
pub(super) fn interpolate(table: &[f64], t: f64) -> f64 {
    let last = table.len().saturating_sub(1);
    let low = (t.floor().max(0.0) as usize).min(last);
    let high = (low + 1).min(last);
    let share = (t - low as f64).clamp(0.0, 1.0);
    table[low] * (1.0 - share) + table[high] * share
}

/// Karras et al., 2022, equation 5, rho = 7.
pub(super) fn karras(first: f64, last: f64, n: i64) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (max, min) = (first.powf(1.0 / RHO), last.powf(1.0 / RHO));
    linspace(0.0, 1.0, n)
        .map(|ramp| (max + ramp * (min - max)).powf(RHO))
        .collect()
}

/// The (fractional) training timestep of a noise level, by interpolation in log sigma.
pub(super) fn sigma_to_t(table: &[f64], sigma: f64) -> f64 {
    let target = sigma.max(1e-10).ln();
    let last = table.len().saturating_sub(2);
    let low = table
        .partition_point(|s| s.ln() <= target)
        .saturating_sub(1)
        .min(last);
    let (a, b) = (table[low].ln(), table[(low + 1).min(table.len() - 1)].ln());
    let share = if b > a {
        ((target - a) / (b - a)).clamp(0.0, 1.0)
    } else {
        0.0
    };
    low as f64 + share
}
