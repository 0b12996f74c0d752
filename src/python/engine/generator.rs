//! Bindings of the generator.

use std::ops::Range;
use std::path::PathBuf;

use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::super::{Exclusive, cli, enter};
use super::PyMosaic;
use super::arrays::{FloatArray, from_tensor, read_array, to_array, to_tensor};
use super::call::{Call, Signals, recipe_values};
use super::region::read_region;
use crate::dataset::CategoryTable;
use crate::diffusion::SchedulerConfig;
use crate::error::{Error, Result};
use crate::family::TextEmbedding;
use crate::geometry::Size;
use crate::mosaic::{Canvas, Generator, parse_device, parse_dtype};
use crate::recipe::SchedulerKind;

/// A diffusion model that makes labelled mosaics.
///
/// Made by `Generator.from_pretrained`. Its methods may be called from any thread, and from a
/// progress callback. Calls that use the model wait for each other; the properties do not.
#[pyclass(name = "Generator", module = "mosaicbank", frozen)]
pub struct PyGenerator {
    generator: Exclusive<Generator>,
    // Copies of what never changes: they are read without waiting.
    device: String,
    dtype: String,
    path: PathBuf,
    weights: String,
    factor: u32,
    categories: Option<Vec<String>>,
    scheduler: SchedulerConfig,
}

#[pymethods]
impl PyGenerator {
    /// Load a model.
    ///
    /// Args:
    ///     model: a diffusers-layout directory of the Stable Diffusion 1.x or 2.x family, or
    ///         "embedded" for the model that is part of mosaicbank.
    ///     device: "cpu", "cuda" or "cuda:<index>".
    ///     dtype: "float32", "float16" or "bfloat16"; of text encoder and UNet.
    ///     annotations: an LVIS or COCO JSON file whose categories give ids and definitions and
    ///         are the only ones accepted; the model's own table when not given.
    ///     threads: number of threads that libtorch computes with; as it is when not given.
    ///     aliases: names, definitions or prompts under which the model draws categories:
    ///         "category=name", or JSON or TOML files. Without one, a category is drawn under the
    ///         name that the model was trained on.
    ///
    /// Raises:
    ///     FileNotFoundError: a directory or file is missing; pickles do not count.
    ///     ValueError: a file is malformed, holds a value that is not supported, or weights that
    ///         do not fit; names the file and the key or tensor.
    #[staticmethod]
    #[pyo3(signature = (model="embedded".into(), device="cpu", dtype="float32", *, annotations=None, threads=None, aliases=None))]
    fn from_pretrained(
        py: Python<'_>,
        model: PathBuf,
        device: &str,
        dtype: &str,
        annotations: Option<PathBuf>,
        threads: Option<i32>,
        aliases: Option<Vec<String>>,
    ) -> PyResult<Self> {
        let path = cli::resolve_model(py, &model)?;
        let (target, kind) = (parse_device(device)?, parse_dtype(dtype)?);
        let generator = enter(py, || {
            set_threads(threads)?;
            Generator::open(&path, target, kind)?
                .for_dataset(annotations.as_deref(), &aliases.unwrap_or_default())
        })?;
        let model = generator.model();
        let names = |table: &CategoryTable| {
            let list = table.categories();
            list.iter().map(|c| c.name.clone()).collect()
        };
        Ok(Self {
            device: device.to_owned(),
            dtype: dtype.to_owned(),
            path: model.path.clone(),
            weights: model.id.weights.clone(),
            factor: model.space().factor,
            categories: generator.categories().map(names),
            scheduler: model.scheduler().clone(),
            generator: Exclusive::new(generator),
        })
    }

    /// Where it runs.
    #[getter]
    fn device(&self) -> &str {
        &self.device
    }

    /// Working dtype of text encoder and UNet.
    #[getter]
    fn dtype(&self) -> &str {
        &self.dtype
    }

    /// The model's directory.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// SHA-256 over the model's weights, hexadecimal.
    #[getter]
    fn weights(&self) -> &str {
        &self.weights
    }

    /// Pixels per latent cell, along each axis.
    #[getter]
    fn factor(&self) -> u32 {
        self.factor
    }

    /// Names of the categories that may be asked for; None where any may.
    #[getter]
    fn categories(&self) -> Option<Vec<String>> {
        self.categories.clone()
    }

    /// The whole recipe that these values stand for on this model, as a dict: the paper's
    /// defaults, the model's recommendations, then the given values.
    ///
    /// Raises:
    ///     ValueError: an unknown key, or a value that is not possible.
    #[pyo3(signature = (recipe=None))]
    fn resolve_recipe<'py>(
        &self,
        py: Python<'py>,
        recipe: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let own = recipe_values(recipe)?;
        let text = self.generator.enter(py, |generator| {
            let recipe = generator.recipe(&own)?;
            serde_json::to_string(&recipe).map_err(|e| Error::backend("recipe", e))
        })?;
        py.import("json")?.call_method1("loads", (text,))
    }

    /// Make labelled mosaics.
    ///
    /// Args:
    ///     categories: for each mosaic the names of its regions' categories, row by row.
    ///     recipe: a Recipe, a dict of recipe keys, or None.
    ///     seeds: one per mosaic; 0, 1, ... when not given. A mosaic depends on weights, recipe,
    ///         categories and its seed alone.
    ///     init_noise: float32 [B, C, H / factor, W / factor], used instead of seeded noise.
    ///     return_attention: keep each region's attention map.
    ///     masks: False leaves attention alone; the mosaics then have no masks and no instances.
    ///     batch: regions per UNet call at most; does not change the result.
    ///     progress: called as progress(steps_done, steps) after every step.
    ///
    /// Raises:
    ///     KeyError: a category is not in the table.
    ///     ValueError: a size, a recipe value or an array shape that is not possible.
    ///     MemoryError: the device has not enough memory for the batch.
    #[pyo3(signature = (categories, recipe=None, seeds=None, init_noise=None, return_attention=false, *, masks=true, batch=None, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn generate(
        &self,
        py: Python<'_>,
        categories: Vec<Vec<String>>,
        recipe: Option<&Bound<'_, PyAny>>,
        seeds: Option<Vec<u64>>,
        init_noise: Option<PyReadonlyArrayDyn<'_, f32>>,
        return_attention: bool,
        masks: bool,
        batch: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<PyMosaic>> {
        let own = recipe_values(recipe)?;
        let seeds = seeds.unwrap_or_else(|| (0..categories.len() as u64).collect());
        if seeds.len() != categories.len() {
            return Err(Error::value(
                "seeds",
                format!("one per mosaic ({})", categories.len()),
                seeds.len(),
            )
            .into());
        }
        let noise = init_noise.as_ref().map(read_array);
        let call = Call {
            masks,
            batch,
            return_attention,
            progress,
        };
        self.generator.enter(py, |generator| {
            let recipe = generator.recipe(&own)?;
            let canvases = categories
                .iter()
                .zip(&seeds)
                .map(|(names, &seed)| generator.canvas(&recipe, names, seed))
                .collect::<Result<Vec<_>>>()?;
            call.run(generator, &recipe, &canvases, noise.as_ref())
        })
    }

    /// Make one mosaic with a layout of one's own.
    ///
    /// Args:
    ///     height: of the canvas, pixels.
    ///     width: of the canvas, pixels.
    ///     regions: what to draw where (mosaicbank.Region).
    ///     steps: denoising steps; the recipe's when not given.
    ///     seed: decides the noise.
    ///     init_noise: float32 [1, C, H / factor, W / factor], used instead of seeded noise.
    ///     return_attention: keep each region's attention map.
    ///     recipe: a Recipe, a dict of recipe keys, or None.
    ///     masks: False leaves attention alone.
    ///     batch: regions per UNet call at most.
    ///     progress: called as progress(steps_done, steps) after every step.
    ///
    /// Raises:
    ///     ValueError, MemoryError: as generate.
    #[pyo3(signature = (height, width, regions, steps=None, seed=0, init_noise=None, return_attention=false, *, recipe=None, masks=true, batch=None, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn generate_canvas(
        &self,
        py: Python<'_>,
        height: u32,
        width: u32,
        regions: Vec<Bound<'_, PyAny>>,
        steps: Option<u32>,
        seed: u64,
        init_noise: Option<PyReadonlyArrayDyn<'_, f32>>,
        return_attention: bool,
        recipe: Option<&Bound<'_, PyAny>>,
        masks: bool,
        batch: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PyMosaic> {
        let mut own = recipe_values(recipe)?;
        if let Some(steps) = steps {
            own.insert("steps".into(), steps.into());
        }
        let regions = regions
            .iter()
            .enumerate()
            .map(|(i, r)| read_region(i, r))
            .collect::<PyResult<Vec<_>>>()?;
        let noise = init_noise.as_ref().map(read_array);
        let call = Call {
            masks,
            batch,
            return_attention,
            progress,
        };
        let made = self.generator.enter(py, |generator| {
            let recipe = generator.recipe(&own)?;
            let regions = regions
                .into_iter()
                .map(|(mut region, guided)| {
                    if !guided {
                        region.guidance = recipe.guidance;
                    }
                    region
                })
                .collect();
            let canvas = Canvas {
                size: Size::new(height, width),
                regions,
                seed,
            };
            call.run(generator, &recipe, &[canvas], noise.as_ref())
        })?;
        made.into_iter()
            .next()
            .ok_or_else(|| PyValueError::new_err("the generator returned no mosaic"))
    }

    /// Token ids and the characters that each covers.
    ///
    /// Returns:
    ///     ids (77 for Stable Diffusion), and for each token (start, end) in the prompt; (0, 0)
    ///     for special tokens.
    fn tokenize(
        &self,
        py: Python<'_>,
        prompt: &str,
    ) -> PyResult<(Vec<i64>, Vec<(usize, usize)>)> {
        let tokens = self
            .generator
            .enter(py, |generator| generator.model().tokens(prompt))?;
        let ends = |r: Range<usize>| (r.start, r.end);
        Ok((tokens.ids, tokens.offsets.into_iter().map(ends).collect()))
    }

    /// Prompt embeddings, float32 [n, tokens, width].
    #[pyo3(signature = (prompts, clip_skip=0))]
    fn encode_prompts<'py>(
        &self,
        py: Python<'py>,
        prompts: Vec<String>,
        clip_skip: usize,
    ) -> PyResult<FloatArray<'py>> {
        let (shape, data) = self.with_model(py, "encoding prompts", |model| {
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            from_tensor(&model.embed(&prompts, clip_skip)?.sequence)
        })?;
        to_array(py, shape, data)
    }

    /// The UNet's prediction, float32 [B, C, h, w].
    ///
    /// Args:
    ///     latents: float32 [B, C, h, w].
    ///     timestep: of the training schedule.
    ///     embeddings: float32 [B, tokens, width].
    ///     guidance: for distilled models that take it as an input.
    #[pyo3(signature = (latents, timestep, embeddings, guidance=1.0))]
    fn unet<'py>(
        &self,
        py: Python<'py>,
        latents: PyReadonlyArrayDyn<'py, f32>,
        timestep: f64,
        embeddings: PyReadonlyArrayDyn<'py, f32>,
        guidance: f64,
    ) -> PyResult<FloatArray<'py>> {
        let (latents, embeddings) = (read_array(&latents), read_array(&embeddings));
        let (shape, data) = self.with_model(py, "running the UNet", |model| {
            let mut signals = Signals::new();
            let text = TextEmbedding {
                sequence: to_tensor(&embeddings),
                pooled: None,
            };
            let latents = to_tensor(&latents);
            let check = &mut || signals.check();
            from_tensor(&model.predict(&latents, timestep, text, guidance, check)?)
        })?;
        to_array(py, shape, data)
    }

    /// Latents float32 [B, C, h, w] to pixels float32 [B, 3, H, W], about -1..1.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        latents: PyReadonlyArrayDyn<'py, f32>,
    ) -> PyResult<FloatArray<'py>> {
        let latents = read_array(&latents);
        let (shape, data) = self.with_model(py, "decoding", |model| {
            let mut signals = Signals::new();
            from_tensor(&model.decode(&to_tensor(&latents), &mut || signals.check())?)
        })?;
        to_array(py, shape, data)
    }

    /// Pixels float32 [B, 3, H, W], -1..1, to mean latents float32 [B, C, h, w].
    fn encode<'py>(
        &self,
        py: Python<'py>,
        pixels: PyReadonlyArrayDyn<'py, f32>,
    ) -> PyResult<FloatArray<'py>> {
        let pixels = read_array(&pixels);
        let (shape, data) = self.with_model(py, "encoding", |model| {
            let mut signals = Signals::new();
            from_tensor(&model.encode(&to_tensor(&pixels), &mut || signals.check())?)
        })?;
        to_array(py, shape, data)
    }

    /// The training timesteps of the UNet calls, in order.
    ///
    /// Args:
    ///     scheduler: a name that recipes accept; None for the checkpoint's own.
    ///     steps: number of steps.
    fn scheduler_timesteps(
        &self,
        py: Python<'_>,
        scheduler: Option<&str>,
        steps: u32,
    ) -> PyResult<Vec<f64>> {
        let kind = scheduler.map(SchedulerKind::from_name).transpose()?;
        enter(py, || {
            let scheduler = self.scheduler.trajectory(kind, steps)?;
            Ok(scheduler.timesteps().to_vec())
        })
    }

    /// A whole trajectory with a model of one's own.
    ///
    /// Args:
    ///     scheduler: a name that recipes accept; None for the checkpoint's own.
    ///     steps: number of steps.
    ///     noise: float32, any shape: standard normal noise.
    ///     model: called as model(sample, timestep) with the scaled sample; returns float32 of
    ///         the same shape.
    ///     noises: for schedulers that add noise: float32 [calls, *noise.shape].
    ///
    /// Returns:
    ///     the sample after every call, a list of float32 arrays.
    #[pyo3(signature = (scheduler, steps, noise, model, noises=None))]
    fn run_scheduler<'py>(
        &self,
        py: Python<'py>,
        scheduler: Option<&str>,
        steps: u32,
        noise: PyReadonlyArrayDyn<'py, f32>,
        model: &Bound<'py, PyAny>,
        noises: Option<PyReadonlyArrayDyn<'py, f32>>,
    ) -> PyResult<Vec<FloatArray<'py>>> {
        let kind = scheduler.map(SchedulerKind::from_name).transpose()?;
        let mut scheduler = self.scheduler.trajectory(kind, steps)?;
        let noises = noises.as_ref().map(|n| to_tensor(&read_array(n)));
        let mut sample = to_tensor(&read_array(&noise)) * scheduler.init_noise_sigma();
        let mut out = Vec::new();
        for (i, t) in scheduler.timesteps().to_vec().into_iter().enumerate() {
            let (shape, data) = from_tensor(&scheduler.scale_model_input(&sample, i))?;
            let output = model.call1((to_array(py, shape, data)?, t))?;
            let output = output.cast::<PyArrayDyn<f32>>()?.readonly();
            let output = to_tensor(&read_array(&output));
            let fresh = match &noises {
                Some(n) if scheduler.wants_noise(i) => Some(n.get(i as i64)),
                _ => None,
            };
            sample = scheduler.step(i, &output, &sample, fresh.as_ref())?;
            let (shape, data) = from_tensor(&sample)?;
            out.push(to_array(py, shape, data)?);
        }
        Ok(out)
    }

    fn __repr__(&self) -> String {
        format!(
            "Generator({:?}, device={:?}, dtype={:?})",
            self.path, self.device, self.dtype
        )
    }
}

impl PyGenerator {
    fn with_model<T: Send>(
        &self,
        py: Python<'_>,
        what: &str,
        work: impl FnOnce(&crate::mosaic::Model) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.generator
            .enter(py, |generator| generator.with_model(what, work))
    }
}

fn set_threads(threads: Option<i32>) -> Result<()> {
    match threads {
        None => Ok(()),
        Some(n) if n > 0 => {
            tch::set_num_threads(n);
            Ok(())
        }
        Some(n) => Err(Error::value("threads", "a positive number", n)),
    }
}
