//! Schedulers: the step from one noise level to the next.
//!
//! All of them integrate the same diffusion with cumulative signal `a(t)` (`alphas_cumprod`); the
//! tables are held in float64, samples stay in float32. Reference of every trajectory: the
//! scheduler of the same name in `diffusers`.

use std::collections::VecDeque;

use serde_json::json;
use tch::Tensor;

use super::config::{Keys, Prediction, SchedulerConfig, Spacing};
use crate::error::{Error, Result};
use crate::recipe::SchedulerKind;

/// What a step needs beside the sample.
enum Method {
    Pndm {
        outputs: VecDeque<Tensor>,
        held: Option<Tensor>,
        ratio: i64,
    },
    Ddim {
        ratio: i64,
        clip: Option<f64>,
    },
    Euler,
    /// `last` is the clean sample predicted in the step before.
    Dpm {
        last: Option<Tensor>,
        second_order: bool,
        heun: bool,
    },
    Lcm {
        clip: Option<f64>,
        scaling: f64,
    },
}

/// One trajectory: made for a number of steps, then stepped through once.
pub struct Scheduler {
    method: Method,
    prediction: Prediction,
    /// `a(t)` of the training schedule.
    signal: Vec<f64>,
    final_signal: f64,
    timesteps: Vec<f64>,
    /// `sqrt((1 - a) / a)` at each step and at the end; empty where the method has no use for it.
    sigmas: Vec<f64>,
    init_noise_sigma: f64,
}

impl Scheduler {
    /// A trajectory of `steps` steps. `kind` overrides the class that the file names; keys that
    /// the file does not hold take the defaults of the class in use.
    ///
    /// # Errors
    /// [`Error::Format`] for values that are malformed or not supported; [`Error::Value`] for a
    /// number of steps that the schedule does not allow.
    pub fn new(
        config: &SchedulerConfig,
        kind: Option<SchedulerKind>,
        steps: u32,
    ) -> Result<Self> {
        let mut keys = config.keys()?;
        let k = &mut keys;
        let kind = match kind {
            Some(kind) => kind,
            None => native_kind(k)?,
        };
        let total: i64 = k.or("num_train_timesteps", 1000)?;
        if !(1..=100_000).contains(&total) {
            return Err(Error::format(
                k.path(),
                "num_train_timesteps in 1..=100000",
                total,
            ));
        }
        if steps == 0 || i64::from(steps) > total {
            return Err(Error::value(
                "steps",
                format!(
                    "1..={total} (num_train_timesteps of {})",
                    k.path().display()
                ),
                steps,
            ));
        }
        let lcm = kind == SchedulerKind::Lcm;
        let mut signal = signal_table(k, total, lcm)?;
        let prediction = match k.or("prediction_type", "epsilon".to_owned())?.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::Velocity,
            "sample" if kind != SchedulerKind::Pndm && kind != SchedulerKind::Euler => {
                Prediction::Sample
            }
            other => {
                return Err(Error::format(
                    k.path(),
                    "prediction_type \"epsilon\" or \"v_prediction\"",
                    format!("{other:?} (not supported by {})", kind.name()),
                ));
            }
        };
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
        let sigma_based = matches!(
            kind,
            SchedulerKind::Euler | SchedulerKind::DpmSolver | SchedulerKind::DpmSolverKarras
        );
        let default_spacing = if sigma_based { "linspace" } else { "leading" };
        let spacing = match k
            .or("timestep_spacing", default_spacing.to_owned())?
            .as_str()
        {
            "linspace" => Spacing::Linspace,
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            other => {
                return Err(Error::format(
                    k.path(),
                    "timestep_spacing \"linspace\", \"leading\" or \"trailing\"",
                    format!("{other:?}"),
                ));
            }
        };
        let offset: i64 = k.or("steps_offset", 0)?;
        let zero_snr = k.or("rescale_betas_zero_snr", false)?;
        if zero_snr {
            rescale_to_zero_snr(&mut signal);
            if sigma_based {
                // A signal of exactly zero has no finite sigma; 2^-24 is the reference's floor.
                if let Some(last) = signal.last_mut() {
                    *last = 2f64.powi(-24);
                }
            }
        }
        let alpha_one_default = kind != SchedulerKind::Pndm;
        let final_signal = if k.or("set_alpha_to_one", alpha_one_default)? {
            1.0
        } else {
            signal.first().copied().unwrap_or(1.0)
        };
        let clip = clip_range(k, kind == SchedulerKind::Ddim)?;
        let n = i64::from(steps);
        let ratio = total / n;
        let mut this = Self {
            method: Method::Euler,
            prediction,
            signal,
            final_signal,
            timesteps: Vec::new(),
            sigmas: Vec::new(),
            init_noise_sigma: 1.0,
        };
        match kind {
            SchedulerKind::Pndm => {
                k.only("skip_prk_steps", &[json!(true)])?;
                if !k.or("skip_prk_steps", false)? {
                    return Err(Error::format(
                        k.path(),
                        "skip_prk_steps true",
                        "false (Runge-Kutta warm-up is not supported)",
                    ));
                }
                let mut ts = spaced(spacing, total, n, offset);
                // The second step is taken twice: once to get a derivative, once with it.
                if let Some(&second) = ts.get(1) {
                    ts.insert(1, second);
                }
                this.timesteps = ts;
                this.method = Method::Pndm {
                    outputs: VecDeque::new(),
                    held: None,
                    ratio,
                };
            }
            SchedulerKind::Ddim => {
                this.timesteps = spaced(spacing, total, n, offset);
                this.method = Method::Ddim { ratio, clip };
            }
            SchedulerKind::Euler => this.prepare_euler(k, spacing, total, n, offset)?,
            SchedulerKind::DpmSolver | SchedulerKind::DpmSolverKarras => {
                this.prepare_dpm(k, kind, spacing, total, n, offset)?;
            }
            SchedulerKind::Lcm => {
                let original: i64 = k.or("original_inference_steps", 50)?;
                let scaling = k.or("timestep_scaling", 10.0)?;
                this.timesteps = lcm_timesteps(k, total, original, n)?;
                this.method = Method::Lcm { clip, scaling };
            }
        }
        if this
            .timesteps
            .iter()
            .any(|&t| t < 0.0 || t > (total - 1) as f64)
        {
            return Err(Error::format(
                k.path(),
                format!("timesteps within 0..{total} for {steps} steps"),
                format!("{:?} (steps_offset {offset})", this.timesteps),
            ));
        }
        Ok(this)
    }

    fn training_sigmas(&self) -> Vec<f64> {
        self.signal.iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
    }

    fn prepare_euler(
        &mut self,
        k: &mut Keys,
        spacing: Spacing,
        total: i64,
        n: i64,
        offset: i64,
    ) -> Result<()> {
        k.only("interpolation_type", &[json!("linear")])?;
        k.only("timestep_type", &[json!("discrete")])?;
        k.only("final_sigmas_type", &[json!("zero")])?;
        k.only("sigma_min", &[])?;
        k.only("sigma_max", &[])?;
        self.timesteps = match spacing {
            // Not rounded: the table of sigmas is interpolated.
            Spacing::Linspace => linspace(0.0, (total - 1) as f64, n).rev().collect(),
            _ => spaced(spacing, total, n, offset),
        };
        let table = self.training_sigmas();
        self.sigmas = self
            .timesteps
            .iter()
            .map(|&t| interpolate(&table, t))
            .collect();
        if k.or("use_karras_sigmas", false)? {
            let first = self.sigmas.first().copied().unwrap_or(1.0);
            let last = self.sigmas.last().copied().unwrap_or(1.0);
            self.sigmas = karras(first, last, n);
            self.timesteps = self.sigmas.iter().map(|&s| sigma_to_t(&table, s)).collect();
        }
        let largest = self.sigmas.iter().copied().fold(0.0, f64::max);
        self.init_noise_sigma = if spacing == Spacing::Leading {
            (largest * largest + 1.0).sqrt()
        } else {
            largest
        };
        self.sigmas.push(0.0);
        self.method = Method::Euler;
        Ok(())
    }

    fn prepare_dpm(
        &mut self,
        k: &mut Keys,
        kind: SchedulerKind,
        spacing: Spacing,
        total: i64,
        n: i64,
        offset: i64,
    ) -> Result<()> {
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
        let table = self.training_sigmas();
        let use_karras =
            k.or("use_karras_sigmas", false)? || kind == SchedulerKind::DpmSolverKarras;
        if use_karras {
            let first = table.last().copied().unwrap_or(1.0);
            let last = table.first().copied().unwrap_or(1.0);
            self.sigmas = karras(first, last, n);
            self.timesteps = self
                .sigmas
                .iter()
                .map(|&s| sigma_to_t(&table, s).round_ties_even())
                .collect();
        } else {
            self.timesteps = match spacing {
                Spacing::Linspace => linspace(0.0, (total - 1) as f64, n + 1)
                    .map(f64::round_ties_even)
                    .rev()
                    .take(n as usize)
                    .collect(),
                Spacing::Leading => {
                    let ratio = total / (n + 1);
                    (1..=n).rev().map(|i| (i * ratio + offset) as f64).collect()
                }
                Spacing::Trailing => spaced(spacing, total, n, offset),
            };
            self.sigmas = self
                .timesteps
                .iter()
                .map(|&t| interpolate(&table, t))
                .collect();
        }
        self.sigmas.push(0.0);
        self.method = Method::Dpm {
            last: None,
            second_order: order == 2,
            heun,
        };
        Ok(())
    }

    /// The training timesteps at which the UNet is called, in order. PNDM has one more than the
    /// number of steps.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The step to begin with when those before `i` are left out. (PNDM's second call only
    /// repeats its first step, so it cannot be the first.)
    pub fn start_at(&self, i: usize) -> usize {
        match self.method {
            Method::Pndm { .. } if i == 1 => 2,
            _ => i,
        }
    }

    /// What the initial standard normal noise is multiplied with.
    pub fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    /// Whether [`Scheduler::step`] takes fresh noise after step `i`.
    pub fn wants_noise(&self, i: usize) -> bool {
        matches!(self.method, Method::Lcm { .. }) && i + 1 < self.timesteps.len()
    }

    /// The sample as the UNet expects it at step `i`.
    pub fn scale_model_input(&self, sample: &Tensor, i: usize) -> Tensor {
        match self.method {
            Method::Euler => {
                let sigma = self.sigmas[i];
                sample / (sigma * sigma + 1.0).sqrt()
            }
            _ => sample.shallow_clone(),
        }
    }

    /// A clean latent `sample` brought to the noise level of step `i` with `noise`.
    pub fn add_noise(&self, sample: &Tensor, noise: &Tensor, i: usize) -> Tensor {
        match self.method {
            Method::Euler => sample + noise * self.sigmas[i],
            Method::Dpm { .. } => {
                let (alpha, sigma) = self.alpha_sigma(i);
                sample * alpha + noise * sigma
            }
            _ => {
                let a = self.signal_at(self.timesteps[i] as i64);
                sample * a.sqrt() + noise * (1.0 - a).sqrt()
            }
        }
    }

    fn signal_at(&self, t: i64) -> f64 {
        usize::try_from(t)
            .ok()
            .and_then(|t| self.signal.get(t))
            .copied()
            .unwrap_or(self.final_signal)
    }

    /// `(sqrt(a), sqrt(1 - a))` at noise level `i` of the sigma table.
    fn alpha_sigma(&self, i: usize) -> (f64, f64) {
        let alpha = 1.0 / (self.sigmas[i] * self.sigmas[i] + 1.0).sqrt();
        (alpha, self.sigmas[i] * alpha)
    }

    /// The clean sample and the noise that `output` stands for, where the sample's signal is `a`.
    fn clean_and_noise(&self, output: &Tensor, sample: &Tensor, a: f64) -> (Tensor, Tensor) {
        let (s, n) = (a.sqrt(), (1.0 - a).sqrt());
        match self.prediction {
            Prediction::Epsilon => ((sample - output * n) / s, output.shallow_clone()),
            Prediction::Velocity => (sample * s - output * n, output * s + sample * n),
            Prediction::Sample => (output.shallow_clone(), (sample - output * s) / n),
        }
    }

    /// The sample after step `i`, from the UNet's `output` for `sample` (float32, any shape).
    /// `noise` is used where [`Scheduler::wants_noise`] says so.
    ///
    /// # Errors
    /// [`Error::Value`] for a step outside the trajectory, or when noise is wanted and missing.
    pub fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Some(&t) = self.timesteps.get(i) else {
            return Err(Error::value(
                "scheduler step",
                format!("0..{}", self.timesteps.len()),
                i,
            ));
        };
        let t = t as i64;
        // The state leaves `self` for the step, so that the tables can be read beside it.
        let mut method = std::mem::replace(&mut self.method, Method::Euler);
        let next = match &mut method {
            Method::Pndm {
                outputs,
                held,
                ratio,
            } => Ok(self.step_pndm(i, t, output, sample, outputs, held, *ratio)),
            Method::Ddim { ratio, clip } => {
                let (clean, eps) = self.clean_and_noise(output, sample, self.signal_at(t));
                let clean = clipped(clean, *clip);
                let a = self.signal_at(t - *ratio);
                Ok(clean * a.sqrt() + eps * (1.0 - a).sqrt())
            }
            Method::Euler => {
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
            Method::Dpm {
                last,
                second_order,
                heun,
            } => {
                let (alpha, sigma) = self.alpha_sigma(i);
                let clean = match self.prediction {
                    Prediction::Epsilon => (sample - output * sigma) / alpha,
                    Prediction::Velocity => sample * alpha - output * sigma,
                    Prediction::Sample => output.shallow_clone(),
                };
                let steps = self.timesteps.len();
                // The last noise level is zero, where only the first-order step is defined.
                let first_order_now = !*second_order || last.is_none() || i + 1 == steps;
                let previous = last.replace(clean.shallow_clone());
                Ok(match previous {
                    Some(previous) if !first_order_now => {
                        self.step_dpm2(i, sample, &clean, &previous, *heun)
                    }
                    _ => self.step_dpm1(i, sample, &clean),
                })
            }
            Method::Lcm { clip, scaling } => {
                self.step_lcm(i, t, output, sample, noise, *clip, *scaling)
            }
        };
        self.method = method;
        next
    }

    #[allow(clippy::too_many_arguments)]
    fn step_pndm(
        &self,
        i: usize,
        t: i64,
        output: &Tensor,
        sample: &Tensor,
        outputs: &mut VecDeque<Tensor>,
        held: &mut Option<Tensor>,
        ratio: i64,
    ) -> Tensor {
        // The second call repeats the first step with a better derivative.
        let repeats = i == 1 && !outputs.is_empty();
        let (from, to) = if repeats {
            (t + ratio, t)
        } else {
            (t, t - ratio)
        };
        if !repeats {
            while outputs.len() > 3 {
                outputs.pop_front();
            }
            outputs.push_back(output.shallow_clone());
        }
        let e = |back: usize| &outputs[outputs.len() - back];
        let held_sample = if repeats { held.take() } else { None };
        let (derivative, sample) = match (outputs.len(), i) {
            (1, 0) => {
                *held = Some(sample.shallow_clone());
                (output.shallow_clone(), sample.shallow_clone())
            }
            (1, _) => (
                (output + e(1)) / 2.0,
                held_sample.unwrap_or_else(|| sample.shallow_clone()),
            ),
            // Adams-Bashforth of growing order.
            (2, _) => ((e(1) * 3.0 - e(2)) / 2.0, sample.shallow_clone()),
            (3, _) => (
                (e(1) * 23.0 - e(2) * 16.0 + e(3) * 5.0) / 12.0,
                sample.shallow_clone(),
            ),
            _ => (
                (e(1) * 55.0 - e(2) * 59.0 + e(3) * 37.0 - e(4) * 9.0) / 24.0,
                sample.shallow_clone(),
            ),
        };
        let (a, a_next) = (self.signal_at(from), self.signal_at(to));
        let noise = match self.prediction {
            Prediction::Velocity => derivative * a.sqrt() + &sample * (1.0 - a).sqrt(),
            _ => derivative,
        };
        // Liu et al., 2022, equation 9.
        let denominator = a * (1.0 - a_next).sqrt() + (a * (1.0 - a) * a_next).sqrt();
        &sample * (a_next / a).sqrt() - noise * ((a_next - a) / denominator)
    }

    fn step_dpm1(&self, i: usize, sample: &Tensor, clean: &Tensor) -> Tensor {
        let (alpha, sigma) = self.alpha_sigma(i);
        let (alpha_next, sigma_next) = self.alpha_sigma(i + 1);
        // exp(-h), h the step in log signal-to-noise; 0 at the end, where sigma is 0.
        let shrink = (sigma_next / alpha_next) * (alpha / sigma);
        sample * (sigma_next / sigma) - clean * (alpha_next * (shrink - 1.0))
    }

    fn step_dpm2(
        &self,
        i: usize,
        sample: &Tensor,
        clean: &Tensor,
        previous: &Tensor,
        heun: bool,
    ) -> Tensor {
        let log_snr = |j: usize| -self.sigmas[j].ln();
        let (_, sigma) = self.alpha_sigma(i);
        let (alpha_next, sigma_next) = self.alpha_sigma(i + 1);
        let h = log_snr(i + 1) - log_snr(i);
        let r = (log_snr(i) - log_snr(i - 1)) / h;
        let slope = (clean - previous) / r;
        let shrink = (-h).exp() - 1.0;
        let second = if heun {
            slope * (alpha_next * (shrink / h + 1.0))
        } else {
            slope * (-0.5 * alpha_next * shrink)
        };
        sample * (sigma_next / sigma) - clean * (alpha_next * shrink) + second
    }

    #[allow(clippy::too_many_arguments)]
    fn step_lcm(
        &self,
        i: usize,
        t: i64,
        output: &Tensor,
        sample: &Tensor,
        noise: Option<&Tensor>,
        clip: Option<f64>,
        scaling: f64,
    ) -> Result<Tensor> {
        /// Standard deviation of the data in the consistency parametrisation (Luo et al., 2023).
        const SIGMA_DATA: f64 = 0.5;
        let (clean, _) = self.clean_and_noise(output, sample, self.signal_at(t));
        let clean = clipped(clean, clip);
        let scaled = t as f64 * scaling;
        let total = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let denoised =
            clean * (scaled / total.sqrt()) + sample * (SIGMA_DATA * SIGMA_DATA / total);
        let Some(&next) = self.timesteps.get(i + 1) else {
            return Ok(denoised);
        };
        let noise = noise.ok_or_else(|| {
            Error::value("scheduler noise", "a tensor like the sample", "nothing")
        })?;
        let a = self.signal_at(next as i64);
        Ok(denoised * a.sqrt() + noise * (1.0 - a).sqrt())
    }
}

fn native_kind(k: &mut Keys) -> Result<SchedulerKind> {
    let class: String = k.need("_class_name")?;
    match class.as_str() {
        "PNDMScheduler" => Ok(SchedulerKind::Pndm),
        "DDIMScheduler" => Ok(SchedulerKind::Ddim),
        "EulerDiscreteScheduler" => Ok(SchedulerKind::Euler),
        "DPMSolverMultistepScheduler" => Ok(SchedulerKind::DpmSolver),
        "LCMScheduler" => Ok(SchedulerKind::Lcm),
        other => Err(Error::format(
            k.path(),
            "_class_name PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, \
             DPMSolverMultistepScheduler or LCMScheduler (or a recipe that names a scheduler)",
            format!("{other:?} (not supported)"),
        )),
    }
}

/// `a(t) = prod (1 - beta)` of the training schedule.
fn signal_table(k: &mut Keys, total: i64, lcm: bool) -> Result<Vec<f64>> {
    let (low, high, shape) = if lcm {
        (0.00085, 0.012, "scaled_linear")
    } else {
        (0.0001, 0.02, "linear")
    };
    let start: f64 = k.or("beta_start", low)?;
    let end: f64 = k.or("beta_end", high)?;
    let shape = k.or("beta_schedule", shape.to_owned())?;
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
    Ok(betas
        .iter()
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect())
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

fn clip_range(k: &mut Keys, default: bool) -> Result<Option<f64>> {
    let range = k.or("clip_sample_range", 1.0)?;
    Ok(k.or("clip_sample", default)?.then_some(range))
}

fn clipped(sample: Tensor, clip: Option<f64>) -> Tensor {
    match clip {
        Some(range) => sample.clamp(-range, range),
        None => sample,
    }
}

fn linspace(start: f64, end: f64, n: i64) -> impl DoubleEndedIterator<Item = f64> {
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

/// Descending integer timesteps.
fn spaced(spacing: Spacing, total: i64, n: i64, offset: i64) -> Vec<f64> {
    match spacing {
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
    }
}

fn lcm_timesteps(k: &mut Keys, total: i64, original: i64, n: i64) -> Result<Vec<f64>> {
    if original < 1 || original > total {
        return Err(Error::format(
            k.path(),
            format!("original_inference_steps in 1..={total}"),
            original,
        ));
    }
    if n > original {
        return Err(Error::value(
            "steps",
            format!(
                "1..={original} (original_inference_steps of {})",
                k.path().display()
            ),
            n,
        ));
    }
    let stride = total / original;
    // The distilled steps, from the noisiest; `n` of them, evenly spaced.
    Ok((0..n)
        .map(|i| {
            let index = (i as f64 * original as f64 / n as f64).floor() as i64;
            ((original - index) * stride - 1) as f64
        })
        .collect())
}

fn interpolate(table: &[f64], t: f64) -> f64 {
    let last = table.len().saturating_sub(1);
    let low = (t.floor().max(0.0) as usize).min(last);
    let high = (low + 1).min(last);
    let share = (t - low as f64).clamp(0.0, 1.0);
    table[low] * (1.0 - share) + table[high] * share
}

/// Karras et al., 2022, equation 5, rho = 7.
fn karras(first: f64, last: f64, n: i64) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (max, min) = (first.powf(1.0 / RHO), last.powf(1.0 / RHO));
    linspace(0.0, 1.0, n)
        .map(|ramp| (max + ramp * (min - max)).powf(RHO))
        .collect()
}

/// The (fractional) training timestep of a noise level, by interpolation in log sigma.
fn sigma_to_t(table: &[f64], sigma: f64) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> SchedulerConfig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scheduler_config.json");
        std::fs::write(&path, json).unwrap();
        SchedulerConfig::read(&path).unwrap()
    }

    #[test]
    fn pndm_calls_the_unet_once_more_than_it_steps() {
        let c = config(
            r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "steps_offset": 1,
                "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#,
        );
        let s = Scheduler::new(&c, None, 50).unwrap();
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
        ] {
            let text = Scheduler::new(&config(json), None, 20)
                .err()
                .unwrap()
                .to_string();
            assert!(
                text.contains(word) && text.contains("scheduler_config.json"),
                "{text}"
            );
        }
    }

    #[test]
    fn zero_or_too_many_steps_are_refused() {
        let c = config(r#"{"_class_name": "LCMScheduler"}"#);
        for steps in [0, 51, 2000] {
            assert!(Scheduler::new(&c, None, steps).is_err(), "{steps}");
        }
        for kind in SchedulerKind::ALL {
            assert_eq!(SchedulerKind::from_name(kind.name()).unwrap(), kind);
        }
        assert!(SchedulerKind::from_name("ddpm").is_err());
    }
}
