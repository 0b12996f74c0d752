//! The denoising loop: the only place where the scheduler and the denoiser meet.
//!
//! Regions of all canvases that share a latent size go through the denoiser in batches, their
//! unconditional and conditional halves together. Each canvas has a noise and a scheduler of its
//! own, so that a canvas does not depend on the others. The loop is the same for all families.

use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use super::blend_weights::blend_weights;
use super::canvas::{Canvas, Region};
use super::capture::GroupMaps;
use super::model::Model;
use crate::diffusion::{Observer, Scheduler, Watch};
use crate::error::{Error, Result};
use crate::family::{Conditioned, Conditioning, Placement};
use crate::geometry::{LatentBox, Size};
use crate::mask::{Captured, SubjectTokens};
use crate::recipe::Recipe;
use crate::rng;

/// A decoded canvas with the attention of its regions.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// Row-major RGB.
    pub rgb: Vec<u8>,
    /// Pixels.
    pub size: Size,
    /// For each region the recipe's readings; `None` without capture: it is not to be labelled.
    pub captured: Option<Vec<Vec<Captured>>>,
    /// Why the picture cannot be used.
    pub problem: Option<String>,
}

/// What runs beside the loop.
pub(super) struct Controls<'a> {
    /// Called often; an error stops the loop.
    pub check: &'a mut dyn FnMut() -> Result<()>,
    /// Called after every step with the number done and the number of all.
    pub step: &'a mut dyn FnMut(usize, usize),
    /// Whether the maps for masks are captured.
    pub capture: bool,
    /// See the attention of every denoiser call, beside the capture.
    pub observers: Vec<&'a mut dyn Observer>,
    /// Regions per denoiser call at most.
    pub batch: usize,
}

/// A canvas between two steps.
struct Running {
    latents: Tensor,
    noise: Tensor,
    scheduler: Box<dyn Scheduler>,
    boxes: Vec<LatentBox>,
    /// For each region the weights of its predictions.
    weights: Vec<Tensor>,
    /// Their sum on the canvas; 1 where no region lies, whose prediction is 0 anyway.
    total_weight: Tensor,
    /// For regions that start from a picture: its latent, and the first step that may change it.
    held: Vec<Option<(Tensor, usize)>>,
    /// The weighted sum of the current step's predictions.
    predicted: Tensor,
    seed: u64,
}

/// Regions that are denoised in one call.
struct Group<'m> {
    /// Canvas and region, in batch order.
    members: Vec<(usize, usize)>,
    conditioned: Box<dyn Conditioned + 'm>,
    /// `[n, 1, 1, 1]`; absent without classifier-free guidance.
    guidance: Option<Tensor>,
    /// One for each of the recipe's readings; none without capture.
    maps: Vec<GroupMaps>,
}

/// Standard normal noise `[1, channels, h, w]`, float32, from the seed alone.
fn seeded_noise(seed: u64, purpose: &str, index: u64, channels: i64, size: Size) -> Tensor {
    let mut draw = rng::keyed(seed, purpose, index);
    let n = channels as usize * size.area() as usize;
    let values: Vec<f32> = (0..n)
        .map(|_| Distribution::<f32>::sample(&StandardNormal, &mut draw))
        .collect();
    Tensor::from_slice(&values).view([
        1,
        channels,
        i64::from(size.height),
        i64::from(size.width),
    ])
}

/// The part `b` of a canvas-sized tensor, as a view.
fn slice(t: &Tensor, b: LatentBox) -> Tensor {
    t.narrow(2, i64::from(b.y0), i64::from(b.size().height))
        .narrow(3, i64::from(b.x0), i64::from(b.size().width))
}

/// Makes the canvases: from noise to pixels.
///
/// `init_noise` replaces the seeded noise of each canvas; `[1, channels, h, w]`, float32.
///
/// # Errors
/// [`Error::Value`] for what cannot be made; whatever `controls.check` returns.
pub(super) fn run(
    model: &Model,
    recipe: &Recipe,
    canvases: &[Canvas],
    init_noise: Option<&[Tensor]>,
    controls: &mut Controls<'_>,
) -> Result<Vec<Denoised>> {
    let mut running = canvases
        .iter()
        .enumerate()
        .map(|(i, canvas)| start(model, recipe, canvas, init_noise.map(|n| &n[i]), controls))
        .collect::<Result<Vec<_>>>()?;
    let mut groups = group(model, recipe, canvases, &running, controls)?;
    let steps = running.first().map_or(0, |r| r.scheduler.timesteps().len());
    let first = first_step(&running);

    for i in first..steps {
        for canvas in &mut running {
            canvas.hold_pictures(i);
            canvas.predicted = canvas.latents.zeros_like();
        }
        for group in &mut groups {
            let output = predict(group, &running, i, controls)?;
            for (k, &(c, r)) in group.members.iter().enumerate() {
                let canvas = &mut running[c];
                let weighted = output.narrow(0, k as i64, 1) * &canvas.weights[r];
                let _ = slice(&canvas.predicted, canvas.boxes[r]).g_add_(&weighted);
            }
        }
        for canvas in &mut running {
            canvas.advance(i)?;
        }
        (controls.step)(i + 1 - first, steps - first);
    }

    let mut captured: Vec<Vec<Vec<Captured>>> = canvases
        .iter()
        .map(|c| vec![Vec::new(); c.regions.len()])
        .collect();
    for group in groups {
        for maps in group.maps {
            for (&(c, r), one) in group.members.iter().zip(maps.finish()?) {
                captured[c][r].push(one);
            }
        }
    }
    let mut out = Vec::with_capacity(canvases.len());
    for ((canvas, run), captured) in canvases.iter().zip(&running).zip(captured) {
        let (rgb, problem) = decode(model, &run.latents, controls)?;
        out.push(Denoised {
            rgb,
            size: canvas.size,
            captured: controls.capture.then_some(captured),
            problem,
        });
    }
    Ok(out)
}

fn start(
    model: &Model,
    recipe: &Recipe,
    canvas: &Canvas,
    init_noise: Option<&Tensor>,
    controls: &mut Controls<'_>,
) -> Result<Running> {
    let space = model.space();
    canvas.validate(&space)?;
    let (factor, channels) = (space.factor, space.channels);
    let size = canvas.size.to_latent(factor)?;
    let noise = match init_noise {
        Some(noise) => {
            let expected = vec![1, channels, i64::from(size.height), i64::from(size.width)];
            if noise.size() != expected {
                return Err(Error::value(
                    "init_noise (one canvas)",
                    format!("float32 {expected:?}"),
                    format!("{:?}", noise.size()),
                ));
            }
            noise.to_kind(Kind::Float).copy()
        }
        None => seeded_noise(canvas.seed, "noise", 0, channels, size),
    };
    let boxes = canvas
        .regions
        .iter()
        .map(|r| r.bbox.to_latent(factor, canvas.size))
        .collect::<Result<Vec<_>>>()?;
    for (region, &b) in canvas.regions.iter().zip(&boxes) {
        if let Some(seed) = region.noise_seed {
            let own = seeded_noise(seed, "noise", 0, channels, b.size());
            let mut target = slice(&noise, b);
            target.copy_(&own);
        }
    }
    let noise = noise.to_device(model.device);
    let scheduler = model
        .scheduler()
        .trajectory(recipe.scheduler, recipe.steps)?;
    let weights: Vec<Tensor> = boxes
        .iter()
        .map(|b| blend_weights(recipe.window, b.size(), model.device))
        .collect();
    let total = Tensor::zeros(
        [1, 1, i64::from(size.height), i64::from(size.width)],
        (Kind::Float, model.device),
    );
    for (b, w) in boxes.iter().zip(&weights) {
        let _ = slice(&total, *b).g_add_(w);
    }
    let total_weight = total.where_self(&total.gt(0.0), &total.ones_like());
    let steps = scheduler.timesteps().len();
    let mut held = Vec::with_capacity(canvas.regions.len());
    for region in &canvas.regions {
        held.push(match &region.image {
            Some(_) => Some(picture_latent(model, region, steps, controls)?),
            None => None,
        });
    }
    Ok(Running {
        latents: &noise * scheduler.init_noise_sigma(),
        predicted: noise.zeros_like(),
        noise,
        scheduler,
        boxes,
        weights,
        total_weight,
        held,
        seed: canvas.seed,
    })
}

/// The latent of a region's picture, and the first step that may change it.
fn picture_latent(
    model: &Model,
    region: &Region,
    steps: usize,
    controls: &mut Controls<'_>,
) -> Result<(Tensor, usize)> {
    let Some(image) = &region.image else {
        return Err(Error::value("region image", "a picture", "nothing"));
    };
    let size = [
        i64::from(region.bbox.height()),
        i64::from(region.bbox.width()),
        3,
    ];
    let pixels = Tensor::from_slice(&image.rgb)
        .view(size)
        .permute([2, 0, 1])
        .unsqueeze(0);
    let pixels = pixels.to_kind(Kind::Float) / 127.5 - 1.0;
    let latent = model.encode(&pixels, controls.check)?;
    let free = (steps as f64 * image.strength).round() as usize;
    Ok((latent, steps - free.min(steps)))
}

/// The first step at which any region may change: earlier ones would all be overwritten.
fn first_step(running: &[Running]) -> usize {
    let first = running
        .iter()
        .flat_map(|r| {
            r.held
                .iter()
                .map(|h| h.as_ref().map_or(0, |(_, first)| *first))
        })
        .min()
        .unwrap_or(0);
    running.first().map_or(0, |r| r.scheduler.start_at(first))
}

impl Running {
    /// Regions that start from a picture are brought to it at the noise level of step `i`.
    fn hold_pictures(&mut self, i: usize) {
        for (held, &b) in self.held.iter().zip(&self.boxes) {
            if let Some((latent, first)) = held
                && i <= *first
            {
                let noisy = self.scheduler.add_noise(latent, &slice(&self.noise, b), i);
                slice(&self.latents, b).copy_(&noisy);
            }
        }
    }

    /// One scheduler step on the whole canvas, with the merged prediction.
    fn advance(&mut self, i: usize) -> Result<()> {
        let merged = &self.predicted / &self.total_weight;
        let fresh = if self.scheduler.wants_noise(i) {
            let size = self.latents.size();
            let cells = Size::new(size[2] as u32, size[3] as u32);
            let noise = seeded_noise(self.seed, "step noise", i as u64, size[1], cells);
            Some(noise.to_device(self.latents.device()))
        } else {
            None
        };
        self.latents = self
            .scheduler
            .step(i, &merged, &self.latents, fresh.as_ref())?;
        Ok(())
    }
}

/// Collects regions of equal size, in batches of at most `controls.batch`.
fn group<'m>(
    model: &'m Model,
    recipe: &Recipe,
    canvases: &[Canvas],
    running: &[Running],
    controls: &mut Controls<'_>,
) -> Result<Vec<Group<'m>>> {
    let embedded = model.denoiser().embeds_guidance();
    // Size, whether it is guided, and the guidance where that is an input of the model.
    type Key = (u32, u32, bool, Option<u64>);
    let mut sorted: Vec<(Key, Vec<(usize, usize)>)> = Vec::new();
    for (c, canvas) in canvases.iter().enumerate() {
        for (r, region) in canvas.regions.iter().enumerate() {
            let size = running[c].boxes[r].size();
            let key = (
                size.height,
                size.width,
                !embedded && region.guidance > 1.0,
                embedded.then(|| region.guidance.to_bits()),
            );
            match sorted.iter_mut().find(|(k, _)| *k == key) {
                Some((_, members)) => members.push((c, r)),
                None => sorted.push((key, vec![(c, r)])),
            }
        }
    }
    let mut groups = Vec::new();
    for ((height, width, guided, embedded_guidance), members) in sorted {
        for members in members.chunks(controls.batch.max(1)) {
            (controls.check)()?;
            let regions: Vec<&Region> = members
                .iter()
                .map(|&(c, r)| &canvases[c].regions[r])
                .collect();
            let mut prompts: Vec<&str> = Vec::new();
            if guided {
                prompts.extend(regions.iter().map(|_| recipe.negative_prompt.as_str()));
            }
            prompts.extend(regions.iter().map(|r| r.subject.prompt.as_str()));
            let guidance = guided.then(|| {
                let weights: Vec<f32> = regions.iter().map(|r| r.guidance as f32).collect();
                Tensor::from_slice(&weights)
                    .view([-1, 1, 1, 1])
                    .to_device(model.device)
            });
            let readings = if controls.capture {
                recipe.readings()
            } else {
                Vec::new()
            };
            let maps = readings
                .into_iter()
                .map(|reading| {
                    let subjects = regions
                        .iter()
                        .map(|r| subject_shares(model, reading.subject, r))
                        .collect::<Result<Vec<_>>>()?;
                    let size = Size::new(height, width);
                    Ok(GroupMaps::new(reading, size, &subjects, model.device))
                })
                .collect::<Result<_>>()?;
            let n = members.len() as i64;
            let first = prompts.len() as i64 - n;
            let mut placements = Vec::with_capacity(prompts.len());
            for _ in 0..prompts.len() / members.len() {
                placements.extend(members.iter().map(|&(c, r)| Placement {
                    region: canvases[c].regions[r].bbox,
                    canvas: canvases[c].size,
                }));
            }
            groups.push(Group {
                members: members.to_vec(),
                conditioned: model.denoiser().condition(Conditioning {
                    text: model.embed(&prompts, recipe.clip_skip as usize)?,
                    placements,
                    conditional: first..first + n,
                    guidance: embedded_guidance.map_or(1.0, f64::from_bits),
                })?,
                guidance,
                maps,
            });
        }
    }
    Ok(groups)
}

/// For each token of the region's prompt, its share in the map of the subject; they sum to 1.
fn subject_shares(model: &Model, read: SubjectTokens, region: &Region) -> Result<Vec<f32>> {
    let subject = &region.subject;
    let tokens = model.tokens(&subject.prompt)?;
    let mut positions = tokens.positions(&subject.span);
    if read == SubjectTokens::Last {
        positions = positions.split_off(positions.len().saturating_sub(1));
    }
    let n = tokens.ids.len();
    if positions.is_empty() {
        return Err(Error::value(
            "prompt",
            format!("the subject within the first {n} tokens"),
            format!("{:?}, which is cut before it", subject.prompt),
        ));
    }
    let mut shares = vec![0.0; n];
    for &position in &positions {
        shares[position] = 1.0 / positions.len() as f32;
    }
    Ok(shares)
}

/// The guided output for a group, `[n, channels, h, w]`.
fn predict(
    group: &mut Group<'_>,
    running: &[Running],
    i: usize,
    controls: &mut Controls<'_>,
) -> Result<Tensor> {
    let parts: Vec<Tensor> = group
        .members
        .iter()
        .map(|&(c, r)| {
            let canvas = &running[c];
            canvas
                .scheduler
                .scale_model_input(&slice(&canvas.latents, canvas.boxes[r]), i)
        })
        .collect();
    let mut input = Tensor::cat(&parts, 0);
    if group.guidance.is_some() {
        input = Tensor::cat(&[&input, &input], 0);
    }
    let timestep = group
        .members
        .first()
        .and_then(|&(c, _)| running[c].scheduler.timesteps().get(i))
        .copied()
        .unwrap_or_default();
    let mut watch = Watch::new(controls.check);
    for maps in &mut group.maps {
        watch = watch.observed_by(maps);
    }
    for observer in &mut controls.observers {
        watch = watch.observed_by(&mut **observer);
    }
    let output = group.conditioned.predict(&input, timestep, &mut watch)?;
    Ok(match &group.guidance {
        Some(weight) => {
            let halves = output.chunk(2, 0);
            &halves[0] + (&halves[1] - &halves[0]) * weight
        }
        None => output,
    })
}

/// Latents to 8-bit RGB, with a reason when the picture is not one.
fn decode(
    model: &Model,
    latents: &Tensor,
    controls: &mut Controls<'_>,
) -> Result<(Vec<u8>, Option<String>)> {
    let pixels = model.decode(latents, controls.check)?.squeeze_dim(0);
    let finite = pixels.isfinite().all().int64_value(&[]) == 1;
    let spread = pixels.max().double_value(&[]) - pixels.min().double_value(&[]);
    let problem = if !finite {
        Some("the picture holds values that are not finite".to_owned())
    } else if spread < 2.0 / 255.0 {
        Some("the picture is of one colour".to_owned())
    } else {
        None
    };
    let bytes = ((pixels.permute([1, 2, 0]) + 1.0) * 127.5)
        .nan_to_num(0.0, 0.0, 0.0)
        .clamp(0.0, 255.0)
        .round()
        .to_kind(Kind::Uint8)
        .to_device(Device::Cpu)
        .contiguous();
    let mut rgb = vec![0u8; bytes.numel()];
    let n = rgb.len();
    bytes
        .f_copy_data(&mut rgb, n)
        .map_err(|e| Error::backend("reading the picture", e))?;
    Ok((rgb, problem))
}
