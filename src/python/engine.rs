//! `mosaicbank._engine`: the generator, which needs libtorch.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numpy::ndarray::{ArrayD, IxDyn};
use numpy::{
    IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods,
};
use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{check_interrupt, enter};
use crate::dataset::CategoryTable;
use crate::error::{Error, Result};
use crate::family::TextEmbedding;
use crate::geometry::{PixelBox, Size};
use crate::instance::Instance;
use crate::mosaic::{
    Canvas, Generator, Mosaic, Options, Part, Progress, Region, RegionImage, RegionResult,
    Subject, parse_device, parse_dtype,
};
use crate::recipe::SchedulerKind;

/// How often a long call lets Ctrl-C in.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

type FloatArray<'py> = Bound<'py, PyArrayDyn<f32>>;

/// The diffusion engine of mosaicbank. Private: import `mosaicbank` instead, which loads torch
/// first.
#[pymodule]
pub fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<PyGenerator>()?;
    m.add_class::<PyMosaic>()?;
    m.add_class::<PyRegionResult>()?;
    m.add_class::<PyInstance>()?;
    m.add_function(wrap_pyfunction!(super::cli::main, m)?)?;
    Ok(())
}

/// Lets Ctrl-C in now and then.
struct Signals {
    last: Instant,
}

impl Signals {
    fn new() -> Self {
        Self {
            last: Instant::now(),
        }
    }

    fn check(&mut self) -> Result<()> {
        if self.last.elapsed() < SIGNAL_INTERVAL {
            return Ok(());
        }
        self.last = Instant::now();
        check_interrupt()
    }
}

/// The shape and the values of an array, copied.
fn read_array(array: &PyReadonlyArrayDyn<'_, f32>) -> (Vec<i64>, Vec<f32>) {
    let shape = array.shape().iter().map(|&n| n as i64).collect();
    (shape, array.as_array().iter().copied().collect())
}

fn to_tensor((shape, data): &(Vec<i64>, Vec<f32>)) -> Tensor {
    Tensor::from_slice(data).view(shape.as_slice())
}

fn from_tensor(t: &Tensor) -> Result<(Vec<usize>, Vec<f32>)> {
    let t = t.to_kind(Kind::Float).to_device(Device::Cpu).contiguous();
    let mut data = vec![0f32; t.numel()];
    let n = data.len();
    t.f_copy_data(&mut data, n)
        .map_err(|e| Error::backend("reading a tensor", e))?;
    Ok((t.size().iter().map(|&d| d as usize).collect(), data))
}

fn to_array<T: numpy::Element>(
    py: Python<'_>,
    shape: Vec<usize>,
    data: Vec<T>,
) -> PyResult<Bound<'_, PyArrayDyn<T>>> {
    let array = ArrayD::from_shape_vec(IxDyn(&shape), data)
        .map_err(|e| PyValueError::new_err(e.to_string()))?;
    Ok(array.into_pyarray(py))
}

/// `True` or `False` per byte.
fn to_bool_array<'py>(
    py: Python<'py>,
    size: Size,
    data: &[u8],
) -> PyResult<Bound<'py, PyArrayDyn<bool>>> {
    let data: Vec<bool> = data.iter().map(|&v| v != 0).collect();
    to_array(py, vec![size.height as usize, size.width as usize], data)
}

/// A recipe as Python gives it: nothing, a dict, or an object with `to_json()`.
fn recipe_values(recipe: Option<&Bound<'_, PyAny>>) -> PyResult<Map<String, Value>> {
    let Some(recipe) = recipe else {
        return Ok(Map::new());
    };
    let text: String = if recipe.is_instance_of::<PyDict>() {
        let json = recipe.py().import("json")?;
        json.call_method1("dumps", (recipe,))?.extract()?
    } else if recipe.hasattr("to_json")? {
        recipe.call_method0("to_json")?.extract()?
    } else {
        return Err(PyTypeError::new_err(format!(
            "recipe: expected a Recipe, a dict or None, got {}",
            recipe.get_type().name()?
        )));
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Error::value("recipe", "an object of recipe keys", text).into()),
    }
}

/// A diffusion model that makes labelled mosaics.
///
/// Made by `Generator.from_pretrained`. Its methods may be called from any thread; calls wait for
/// each other.
#[pyclass(name = "Generator", module = "mosaicbank", frozen)]
pub struct PyGenerator {
    inner: Arc<Mutex<Generator>>,
    device: String,
    dtype: String,
    path: PathBuf,
    weights: String,
    factor: u32,
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
    ///
    /// Raises:
    ///     FileNotFoundError: a directory or file is missing; pickles do not count.
    ///     ValueError: a file is malformed, holds a value that is not supported, or weights that
    ///         do not fit; names the file and the key or tensor.
    #[staticmethod]
    #[pyo3(signature = (model="embedded".into(), device="cpu", dtype="float32", *, annotations=None, threads=None))]
    fn from_pretrained(
        py: Python<'_>,
        model: PathBuf,
        device: &str,
        dtype: &str,
        annotations: Option<PathBuf>,
        threads: Option<i32>,
    ) -> PyResult<Self> {
        let path = super::cli::resolve_model(py, &model)?;
        let (target, kind) = (parse_device(device)?, parse_dtype(dtype)?);
        let inner = enter(py, || {
            set_threads(threads)?;
            let generator = Generator::open(&path, target, kind)?;
            Ok(match annotations {
                Some(path) => generator.with_categories(CategoryTable::read(&path)?),
                None => generator,
            })
        })?;
        let model = inner.model();
        Ok(Self {
            device: device.to_owned(),
            dtype: dtype.to_owned(),
            path: model.path.clone(),
            weights: model.id.weights.clone(),
            factor: model.space().factor,
            inner: Arc::new(Mutex::new(inner)),
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
        let inner = self.inner.lock();
        let table = inner.categories()?;
        Some(table.categories().iter().map(|c| c.name.clone()).collect())
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
        let text = enter(py, || {
            let recipe = self.inner.lock().recipe(&own)?;
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
        enter(py, || {
            let generator = self.inner.lock();
            let recipe = generator.recipe(&own)?;
            let canvases = categories
                .iter()
                .zip(&seeds)
                .map(|(names, &seed)| generator.canvas(&recipe, names, seed))
                .collect::<Result<Vec<_>>>()?;
            call.run(&generator, &recipe, &canvases, noise.as_ref())
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
        let made = enter(py, || {
            let generator = self.inner.lock();
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
            call.run(&generator, &recipe, &[canvas], noise.as_ref())
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
        let tokens = enter(py, || self.inner.lock().model().tokens(prompt))?;
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
            let inner = self.inner.lock();
            let scheduler = inner.model().scheduler(kind, steps)?;
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
        let mut scheduler = {
            let inner = self.inner.lock();
            inner.model().scheduler(kind, steps)?
        };
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
        enter(py, || self.inner.lock().with_model(what, work))
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

/// What generate and generate_canvas have in common.
struct Call {
    masks: bool,
    batch: Option<usize>,
    return_attention: bool,
    progress: Option<Py<PyAny>>,
}

impl Call {
    fn run(
        &self,
        generator: &Generator,
        recipe: &crate::recipe::Recipe,
        canvases: &[Canvas],
        noise: Option<&(Vec<i64>, Vec<f32>)>,
    ) -> Result<Vec<PyMosaic>> {
        let noise = match noise {
            Some(array) => {
                let n = canvases.len() as i64;
                if array.0.len() != 4 || array.0.first() != Some(&n) {
                    return Err(Error::value(
                        "init_noise",
                        format!("float32 [{n}, C, H / factor, W / factor]"),
                        format!("{:?}", array.0),
                    ));
                }
                let all = to_tensor(array);
                Some((0..n).map(|i| all.narrow(0, i, 1)).collect::<Vec<_>>())
            }
            None => None,
        };
        let mut options = Options {
            capture: self.masks,
            ..Options::default()
        };
        if let Some(batch) = self.batch {
            if batch == 0 {
                return Err(Error::value("batch", "a positive number", batch));
            }
            options.batch = Some(batch);
        }
        let mut signals = Signals::new();
        let failure: Mutex<Option<PyErr>> = Mutex::new(None);
        let mut step = |done: usize, all: usize| {
            if let Some(progress) = &self.progress {
                Python::attach(|py| {
                    if let Err(e) = progress.call1(py, (done, all)) {
                        *failure.lock() = Some(e);
                    }
                });
            }
        };
        let mut check = || {
            if failure.lock().is_some() {
                return Err(Error::Interrupted);
            }
            signals.check()
        };
        let made = generator.generate(
            recipe,
            canvases,
            noise.as_deref(),
            options,
            &mut Progress {
                check: &mut check,
                step: &mut step,
            },
        );
        if let Some(error) = failure.into_inner() {
            return Err(Error::backend("progress callback", error));
        }
        Ok(made?
            .into_iter()
            .map(|m| PyMosaic::new(m, self.return_attention))
            .collect())
    }
}

fn read_box(value: &Bound<'_, PyAny>) -> PyResult<PixelBox> {
    let [x0, y0, x1, y1]: [u32; 4] = value.extract().map_err(|_| {
        PyErr::from(Error::value(
            "region box",
            "(x0, y0, x1, y1) in whole pixels, none negative",
            value
                .repr()
                .map_or_else(|_| "another value".into(), |r| r.to_string()),
        ))
    })?;
    Ok(PixelBox::new(x0, y0, x1, y1))
}

/// A `mosaicbank.Region`, and whether it names its guidance.
fn read_region(index: usize, region: &Bound<'_, PyAny>) -> PyResult<(Region, bool)> {
    let bbox = read_box(&region.getattr("box")?)?;
    let own = region.getattr("own")?;
    let own = if own.is_none() { bbox } else { read_box(&own)? };
    let prompt: String = region.getattr("prompt")?.extract()?;
    let subject: Option<String> = region.getattr("subject")?.extract()?;
    let category: Option<String> = region.getattr("category")?.extract()?;
    let guidance: Option<f64> = region.getattr("guidance")?.extract()?;
    let found = Subject::find(&prompt, subject.as_deref()).map_err(|e| match e {
        Error::Value {
            what,
            expected,
            got,
        } => Error::Value {
            what: format!("region {index}: {what}"),
            expected,
            got,
        },
        other => other,
    })?;
    let category = category.or(subject).unwrap_or_else(|| prompt.clone());
    let part = Part { region: bbox, own };
    let mut out = Region::new(part, &category, found, guidance.unwrap_or(1.0));
    out.noise_seed = region.getattr("noise_seed")?.extract()?;
    let image = region.getattr("image")?;
    if !image.is_none() {
        let array: PyReadonlyArrayDyn<'_, u8> = image.extract().map_err(|_| {
            PyErr::from(Error::value(
                format!("region {index}: image"),
                "a uint8 numpy array [h, w, 3]",
                image
                    .get_type()
                    .name()
                    .map_or_else(|_| "another type".into(), |n| n.to_string()),
            ))
        })?;
        let expected = [bbox.height() as usize, bbox.width() as usize, 3];
        if array.shape() != expected {
            return Err(Error::value(
                format!("region {index}: image"),
                format!("uint8 {expected:?}"),
                format!("{:?}", array.shape()),
            )
            .into());
        }
        out.image = Some(RegionImage {
            rgb: array.as_array().iter().copied().collect(),
            strength: region.getattr("strength")?.extract()?,
        });
    }
    Ok((out, guidance.is_some()))
}

/// A generated picture with its regions and instances.
#[pyclass(name = "Mosaic", module = "mosaicbank", frozen)]
pub struct PyMosaic {
    mosaic: Mosaic,
    attention: bool,
}

impl PyMosaic {
    fn new(mosaic: Mosaic, attention: bool) -> Self {
        Self { mosaic, attention }
    }
}

#[pymethods]
impl PyMosaic {
    /// Hash of weights, recipe, seed and regions: the same mosaic has the same id.
    #[getter]
    fn id(&self) -> &str {
        &self.mosaic.id
    }

    /// Its seed.
    #[getter]
    fn seed(&self) -> u64 {
        self.mosaic.seed
    }

    /// uint8 [H, W, 3], RGB.
    #[getter]
    fn image<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let size = self.mosaic.size;
        let shape = vec![size.height as usize, size.width as usize, 3];
        to_array(py, shape, self.mosaic.rgb.clone())
    }

    /// All regions, with the whole way to their verdicts.
    #[getter]
    fn regions(&self) -> Vec<PyRegionResult> {
        let results = self.mosaic.regions.iter();
        results
            .map(|r| PyRegionResult {
                region: r.clone(),
                attention: self.attention,
            })
            .collect()
    }

    /// The instances that are kept.
    #[getter]
    fn instances(&self) -> Vec<PyInstance> {
        self.mosaic
            .instances
            .iter()
            .cloned()
            .map(|instance| PyInstance { instance })
            .collect()
    }

    /// Categories of regions without a kept mask (LVIS: not exhaustively annotated).
    #[getter]
    fn not_exhaustive(&self) -> Vec<String> {
        self.mosaic
            .not_exhaustive()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// Why the picture cannot be used, or None.
    #[getter]
    fn problem(&self) -> Option<&str> {
        self.mosaic.problem.as_deref()
    }

    fn __repr__(&self) -> String {
        format!(
            "Mosaic({}, {} x {}, {} of {} regions kept)",
            self.mosaic.id,
            self.mosaic.size.height,
            self.mosaic.size.width,
            self.mosaic.instances.len(),
            self.mosaic.regions.len()
        )
    }
}

/// One region of a mosaic.
#[pyclass(name = "RegionResult", module = "mosaicbank", frozen)]
pub struct PyRegionResult {
    region: RegionResult,
    attention: bool,
}

#[pymethods]
impl PyRegionResult {
    /// (x0, y0, x1, y1), canvas pixels: what was denoised for it.
    #[getter]
    fn r#box(&self) -> (u32, u32, u32, u32) {
        self.region.bbox.to_tuple()
    }

    /// (x0, y0, x1, y1), canvas pixels: the part that its instance may lie in.
    #[getter]
    fn own(&self) -> (u32, u32, u32, u32) {
        self.region.own.to_tuple()
    }

    /// Its prompt.
    #[getter]
    fn prompt(&self) -> &str {
        &self.region.subject.prompt
    }

    /// Category of its subject.
    #[getter]
    fn category(&self) -> &str {
        &self.region.category
    }

    /// float32 [h, w], 0..1, of the region's size; None unless it was asked for.
    #[getter]
    fn attention<'py>(&self, py: Python<'py>) -> PyResult<Option<FloatArray<'py>>> {
        if !self.attention || self.region.attention.is_empty() {
            return Ok(None);
        }
        let size = self.region.bbox.size();
        let shape = vec![size.height as usize, size.width as usize];
        to_array(py, shape, self.region.attention.clone()).map(Some)
    }

    /// bool [h, w], of the region's size: refined, before the filter; None without masks.
    #[getter]
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArrayDyn<bool>>>> {
        let Some(mask) = &self.region.mask else {
            return Ok(None);
        };
        to_bool_array(py, mask.size(), mask.data()).map(Some)
    }

    /// "kept", or why it was not.
    #[getter]
    fn verdict(&self) -> String {
        self.region.verdict.to_string()
    }

    /// Whether its instance was kept.
    #[getter]
    fn kept(&self) -> bool {
        self.region.verdict.is_kept()
    }

    fn __repr__(&self) -> String {
        format!(
            "RegionResult({:?}, {})",
            self.region.category, self.region.verdict
        )
    }
}

/// One object on a mosaic.
#[pyclass(name = "Instance", module = "mosaicbank", frozen)]
pub struct PyInstance {
    instance: Instance,
}

#[pymethods]
impl PyInstance {
    /// Category name.
    #[getter]
    fn category(&self) -> &str {
        &self.instance.category
    }

    /// bool [H, W], on the canvas.
    #[getter]
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<bool>>> {
        let mask = self.instance.mask.decode();
        to_bool_array(py, mask.size(), mask.data())
    }

    /// COCO's compressed encoding: {"size": [H, W], "counts": str}.
    #[getter]
    fn rle<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let size = self.instance.mask.size();
        let rle = PyDict::new(py);
        rle.set_item("size", [size.height, size.width])?;
        rle.set_item("counts", self.instance.mask.to_coco_string())?;
        Ok(rle)
    }

    /// (x0, y0, x1, y1), pixels, tight around the mask.
    #[getter]
    fn r#box(&self) -> (u32, u32, u32, u32) {
        self.instance.bbox.to_tuple()
    }

    /// Number of mask pixels.
    #[getter]
    fn area(&self) -> u64 {
        self.instance.area
    }

    /// Mean attention inside the mask, 0..1.
    #[getter]
    fn score(&self) -> f32 {
        self.instance.score
    }

    /// Where it came from: model, weights, prompt, seed, recipe, mosaic, region.
    #[getter]
    fn provenance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let text = serde_json::to_string(&self.instance.provenance)
            .map_err(|e| Error::backend("provenance", e))?;
        py.import("json")?.call_method1("loads", (text,))
    }

    fn __repr__(&self) -> String {
        format!(
            "Instance({:?}, box={:?}, area={}, score={:.3})",
            self.instance.category,
            self.instance.bbox.to_tuple(),
            self.instance.area,
            self.instance.score
        )
    }
}
