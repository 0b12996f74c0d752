//! Bindings of the sampler.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::bank::PyBank;
use super::convert::contiguous;
use super::enter;
use crate::bank::Bank;
use crate::error::{Error, Result};
use crate::priority::{self, supply::Supply};
use crate::sampler::{
    Code, Indexing, SamplerConfig, State, Stream, repeat_factors as factors_of, slot_weights,
};

/// Indices of a rank after which slot weights are read anew (they are when an epoch begins, too):
/// often, so that a category is asked for soon after it comes into supply.
const REFRESH: u64 = 128;
/// Version of what `state_dict` returns.
const STATE_VERSION: u32 = 1;

/// Where slot weights come from.
#[derive(Clone)]
struct Weighing {
    /// Given once and for all.
    fixed: Option<Vec<f64>>,
    /// Training images of each category, where they were given.
    image_counts: Option<Vec<u64>>,
    /// See [`crate::priority::rarity`].
    rarity: Vec<f64>,
    /// Categories that slots may ask for.
    wanted: Vec<bool>,
    threshold: f64,
    bank: Option<Arc<Bank>>,
}

impl Weighing {
    fn now(&self) -> Vec<f64> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let Some(bank) = &self.bank else {
            return slot_weights(&self.rarity, &self.wanted, None);
        };
        let demand = bank.board().map(crate::bank::DemandBoard::snapshot);
        let mut allowed = self.wanted.clone();
        match Supply::of(bank) {
            Ok(supply) => {
                for (c, allowed) in allowed.iter_mut().enumerate() {
                    *allowed &= supply.has(c);
                }
            }
            // Training goes on; the dataset answers what it can.
            Err(e) => tracing::warn!("slots go to all categories: {e}"),
        }
        slot_weights(&self.rarity, &allowed, demand.as_deref())
    }
}

/// The stretch of the stream that slot weights were read for: an epoch, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReadAt {
    epoch: u64,
    position: u64,
}

impl ReadAt {
    const fn new(state: State) -> Self {
        Self {
            epoch: state.epoch,
            position: state.position,
        }
    }

    const fn holds_at(self, state: State) -> bool {
        self.epoch == state.epoch && self.position / REFRESH == state.position / REFRESH
    }
}

/// One pass over a sampler: an endless iterator of ints.
#[pyclass(module = "mosaicbank._core")]
pub struct SamplerIterator {
    stream: Stream,
    weighing: Weighing,
    weights: Vec<f64>,
    /// Where `weights` were read.
    read_at: ReadAt,
    /// The state at the start of the block, its indices, and the next one.
    block_state: State,
    block: Vec<i64>,
    at: usize,
}

impl SamplerIterator {
    fn new(
        config: Arc<SamplerConfig>,
        weighing: Weighing,
        state: State,
        weights: Option<(ReadAt, Vec<f64>)>,
    ) -> Result<Self> {
        let (read_at, weights) = weights
            .filter(|(at, _)| at.holds_at(state))
            .unwrap_or_else(|| (ReadAt::new(state), weighing.now()));
        Ok(Self {
            stream: Stream::new(config, state, &weights)?,
            weighing,
            weights,
            read_at,
            block_state: state,
            block: Vec::new(),
            at: 0,
        })
    }

    fn refill(&mut self) -> Result<()> {
        self.block_state = self.stream.state();
        if !self.read_at.holds_at(self.block_state) {
            self.read_at = ReadAt::new(self.block_state);
            self.weights = self.weighing.now();
            self.stream.set_weights(&self.weights)?;
        }
        self.block.clear();
        self.at = 0;
        // A block ends where weights are read.
        while self.read_at.holds_at(self.stream.state()) {
            self.block.push(self.stream.next());
        }
        Ok(())
    }

    fn next_index(&mut self) -> Result<i64> {
        if self.at >= self.block.len() {
            self.refill()?;
        }
        let index = self.block.get(self.at).copied();
        self.at += 1;
        index.ok_or_else(|| Error::backend("sampler", "an empty block"))
    }

    /// The exact state in the middle of a block.
    fn state(&self) -> Result<State> {
        let config = self.stream.config().clone();
        let mut stream = Stream::new(config, self.block_state, &self.weights)?;
        stream.skip(self.at.min(self.block.len()) as u64);
        Ok(stream.state())
    }
}

#[pymethods]
impl SamplerIterator {
    const fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self) -> PyResult<i64> {
        Ok(self.next_index()?)
    }

    /// Indices yielded so far, counted from the sampler's very start.
    #[getter]
    const fn position(&self) -> u64 {
        self.block_state.position + self.at as u64
    }

    /// The next ``n`` indices, int64.
    fn take<'py>(&mut self, py: Python<'py>, n: usize) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let mut out = Vec::with_capacity(n);
        for _ in 0..n {
            out.push(self.next_index()?);
        }
        Ok(out.into_pyarray(py))
    }
}

/// An endless, seeded, rank-sharded, resumable sampler of real images and slots.
///
/// Real images come exactly as Detectron2's ``RepeatFactorTrainingSampler`` distributes them;
/// with probability ``mix_ratio`` a *slot* comes instead: an index that asks for one mosaic of a
/// category, drawn by rarity x demand x feedback. Indices are plain ints; ``decode`` says
/// what one stands for.
#[pyclass(subclass, module = "mosaicbank._core")]
pub struct MosaicSampler {
    config: Arc<SamplerConfig>,
    weighing: Weighing,
    start: State,
    start_weights: Option<(ReadAt, Vec<f64>)>,
    bank: Option<Py<PyBank>>,
    current: Option<Py<SamplerIterator>>,
}

fn numbers<T: numpy::Element + Copy>(what: &str, any: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    let array: PyReadonlyArray1<'_, T> = any.extract().map_err(|_| {
        PyTypeError::new_err(format!(
            "{what}: expected a one-dimensional numpy array of its dtype"
        ))
    })?;
    Ok(array.as_array().iter().copied().collect())
}

impl MosaicSampler {
    fn iterator(&self) -> Result<SamplerIterator> {
        SamplerIterator::new(
            self.config.clone(),
            self.weighing.clone(),
            self.start,
            self.start_weights.clone(),
        )
    }

    fn current_state(&self, py: Python<'_>) -> Result<(State, (ReadAt, Vec<f64>))> {
        match &self.current {
            Some(it) => {
                let it = it.borrow(py);
                Ok((it.state()?, (it.read_at, it.weights.clone())))
            }
            None => Ok((
                self.start,
                self.start_weights
                    .clone()
                    .unwrap_or_else(|| (ReadAt::new(self.start), self.weighing.now())),
            )),
        }
    }
}

#[pymethods]
impl MosaicSampler {
    /// ``factors``: float32 [N], the repeat factor of each image (see ``repeat_factors``), or
    /// the number of images, all with factor 1. ``mix_ratio``: probability of a slot.
    /// Slot categories are weighed by ``slot_weights`` (float64 [C]) when given, else by
    /// ``image_counts`` (int64 [C]), ``threshold`` and the demand board of ``bank``; slots then go
    /// only to categories with a supply: those that the bank holds or a running engine draws.
    /// Board and supply are read when an epoch begins and every 128 indices. While nothing is
    /// supplied, slots give real images, drawn by ``factors``. ``categories`` (bool [C]): those
    /// that slots may ask for (default: all). ``keyed``: whether real images carry their place in
    /// the stream, too (default: when there are slots).
    #[new]
    #[pyo3(signature = (factors, *, mix_ratio=0.0, image_counts=None, slot_weights=None, categories=None, bank=None, threshold=0.001, seed=0, rank=0, world_size=1, shuffle=true, keyed=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        factors: &Bound<'_, PyAny>,
        mix_ratio: f64,
        image_counts: Option<&Bound<'_, PyAny>>,
        slot_weights: Option<&Bound<'_, PyAny>>,
        categories: Option<Vec<bool>>,
        bank: Option<Py<PyBank>>,
        threshold: f64,
        seed: u64,
        rank: u32,
        world_size: u32,
        shuffle: bool,
        keyed: Option<bool>,
    ) -> PyResult<Self> {
        let factors: Vec<f32> = match factors.extract::<usize>() {
            Ok(n) => vec![1.0; n],
            Err(_) => numbers("factors", factors)?,
        };
        let inner = bank.as_ref().map(|b| b.get().bank.clone());
        let counts: Option<Vec<u64>> = image_counts
            .map(|a| numbers::<i64>("image_counts", a))
            .transpose()?
            .map(|v| v.into_iter().map(|n| n.max(0) as u64).collect());
        let fixed: Option<Vec<f64>> = slot_weights
            .map(|a| numbers::<f64>("slot_weights", a))
            .transpose()?;
        let known = inner.as_ref().map(|b| b.categories().len());
        let number = fixed
            .as_ref()
            .map(Vec::len)
            .or_else(|| counts.as_ref().map(Vec::len))
            .or(known)
            .unwrap_or(0);
        if known.is_some_and(|n| n != number) {
            return Err(PyValueError::new_err(format!(
                "slot_weights or image_counts: expected one number per category of the bank ({}), \
                 got {number}",
                known.unwrap_or_default()
            )));
        }
        let wanted = categories.unwrap_or_else(|| vec![true; number]);
        if wanted.len() != number {
            return Err(PyValueError::new_err(format!(
                "categories: expected one flag per category ({number}), got {}",
                wanted.len()
            )));
        }
        if mix_ratio > 0.0 && number == 0 {
            return Err(PyValueError::new_err(
                "mix_ratio: slots need slot_weights, image_counts or a bank",
            ));
        }
        let reference = threshold * factors.len().max(1) as f64;
        let rarity = match (&counts, &inner) {
            (Some(counts), _) => counts
                .iter()
                .map(|&n| priority::rarity(priority::images(Some(n), None), reference))
                .collect(),
            // What the bank's table says of the dataset, else all alike.
            (None, Some(bank)) => bank
                .categories()
                .iter()
                .map(|c| priority::rarity(priority::images_of(c), reference))
                .collect(),
            (None, None) => vec![1.0; number],
        };
        let config = SamplerConfig {
            categories: number as u32,
            mix_ratio,
            seed,
            rank,
            world_size,
            shuffle,
            keyed: keyed.unwrap_or(mix_ratio > 0.0),
            factors: factors.into(),
        };
        config.validate()?;
        let weighing = Weighing {
            fixed,
            image_counts: counts,
            rarity,
            wanted,
            threshold,
            bank: inner,
        };
        let sampler = Self {
            config: Arc::new(config),
            weighing,
            start: State::default(),
            start_weights: None,
            bank,
            current: None,
        };
        sampler.iterator()?;
        Ok(sampler)
    }

    fn __iter__(slf: &Bound<'_, Self>) -> PyResult<Py<SamplerIterator>> {
        let py = slf.py();
        let iterator = Py::new(py, slf.borrow().iterator()?)?;
        slf.borrow_mut().current = Some(iterator.clone_ref(py));
        Ok(iterator)
    }

    /// Everything to go on from here: after the last index that the newest iterator gave, or,
    /// with ``position`` (indices of this rank that were really used; prefetching workers run
    /// ahead), from there. Numbers and lists of them, which ``torch.load`` takes from a checkpoint.
    #[pyo3(signature = (position=None))]
    fn state_dict<'py>(
        &self,
        py: Python<'py>,
        position: Option<u64>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (state, (read_at, weights)) = self.current_state(py)?;
        let state = match position {
            Some(p) if p != state.position => {
                let config = self.config.clone();
                let weights = weights.clone();
                enter(py, move || {
                    let mut stream = Stream::new(config, State::default(), &weights)?;
                    stream.skip(p);
                    Ok(stream.state())
                })?
            }
            _ => state,
        };
        let dict = PyDict::new(py);
        dict.set_item("version", STATE_VERSION)?;
        dict.set_item("seed", self.config.seed)?;
        dict.set_item("rank", self.config.rank)?;
        dict.set_item("world_size", self.config.world_size)?;
        dict.set_item("num_images", self.config.factors.len())?;
        dict.set_item("num_categories", self.config.categories)?;
        dict.set_item("mix_ratio", self.config.mix_ratio)?;
        dict.set_item("position", state.position)?;
        dict.set_item("reals", state.reals)?;
        dict.set_item("epoch", state.epoch)?;
        dict.set_item("epoch_start", state.epoch_start)?;
        dict.set_item("weights_epoch", read_at.epoch)?;
        dict.set_item("weights_position", read_at.position)?;
        dict.set_item("weights", weights)?;
        Ok(dict)
    }

    /// Goes on where ``state_dict`` was taken. ``ValueError`` when it is of another stream.
    fn load_state_dict(&mut self, state: &Bound<'_, PyDict>) -> PyResult<()> {
        let get = |name: &str| -> PyResult<Bound<'_, PyAny>> {
            state.get_item(name)?.ok_or_else(|| {
                PyValueError::new_err(format!("sampler state: {name:?} is missing"))
            })
        };
        let version: u32 = get("version")?.extract()?;
        if version > STATE_VERSION {
            return Err(Error::value("sampler state version", STATE_VERSION, version).into());
        }
        let own = [
            ("seed", self.config.seed),
            ("rank", u64::from(self.config.rank)),
            ("world_size", u64::from(self.config.world_size)),
            ("num_images", self.config.factors.len() as u64),
            ("num_categories", u64::from(self.config.categories)),
        ];
        for (name, expected) in own {
            let got: u64 = get(name)?.extract()?;
            if got != expected {
                return Err(
                    Error::value(format!("sampler state: {name}"), expected, got).into(),
                );
            }
        }
        let mix: f64 = get("mix_ratio")?.extract()?;
        if mix != self.config.mix_ratio {
            let own = self.config.mix_ratio;
            return Err(Error::value("sampler state: mix_ratio", own, mix).into());
        }
        let weights = get("weights")?;
        let position: u64 = get("position")?.extract()?;
        let read_at = ReadAt {
            epoch: get("weights_epoch")?.extract()?,
            // States of earlier versions do not say.
            position: match state.get_item("weights_position")? {
                Some(at) => at.extract()?,
                None => position,
            },
        };
        let weights = (
            read_at,
            // States of earlier versions hold an array.
            weights
                .extract()
                .or_else(|_| numbers::<f64>("weights", &weights))?,
        );
        let start = State {
            position,
            reals: get("reals")?.extract()?,
            epoch: get("epoch")?.extract()?,
            epoch_start: get("epoch_start")?.extract()?,
        };
        if start.reals > start.position {
            return Err(PyValueError::new_err(
                "sampler state: more real images than indices",
            ));
        }
        SamplerIterator::new(
            self.config.clone(),
            self.weighing.clone(),
            start,
            Some(weights.clone()),
        )?;
        self.start = start;
        self.start_weights = Some(weights);
        self.current = None;
        Ok(())
    }

    /// What an index stands for: ``(image, category, key)``, one of the first two ``None``;
    /// ``key`` is its place in the stream over all ranks (0 for real images that are not keyed).
    fn decode(&self, index: i64) -> PyResult<(Option<u64>, Option<u32>, u64)> {
        decoded(self.config.indexing(), index)
    }

    /// Indices that the newest iterator has given (or the start, before there is one).
    #[getter]
    fn position(&self, py: Python<'_>) -> u64 {
        self.current
            .as_ref()
            .map_or(self.start.position, |it| it.borrow(py).position())
    }

    /// Rarity of each category, 0 for those that slots may not ask for; float64 [C].
    #[getter]
    fn rarity<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        let of = self.weighing.rarity.iter().zip(&self.weighing.wanted);
        let rarity: Vec<f64> = of.map(|(r, w)| if *w { *r } else { 0.0 }).collect();
        rarity.into_pyarray(py)
    }

    /// Number of real images.
    #[getter]
    fn num_images(&self) -> usize {
        self.config.factors.len()
    }

    /// Number of categories.
    #[getter]
    fn num_categories(&self) -> u32 {
        self.config.categories
    }

    /// Repeat factors, float32 [N].
    #[getter]
    fn factors<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, &self.config.factors)
    }

    /// Slot weights of the newest iterator, float64 [C].
    #[getter]
    fn weights<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(self.current_state(py)?.1.1.into_pyarray(py))
    }

    #[getter]
    fn mix_ratio(&self) -> f64 {
        self.config.mix_ratio
    }

    #[getter]
    fn seed(&self) -> u64 {
        self.config.seed
    }

    #[getter]
    fn rank(&self) -> u32 {
        self.config.rank
    }

    #[getter]
    fn world_size(&self) -> u32 {
        self.config.world_size
    }

    #[expect(clippy::type_complexity, reason = "what pickle asks for")]
    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<((Bound<'py, PyArray1<f32>>,), Bound<'py, PyDict>)> {
        let kwargs = PyDict::new(py);
        kwargs.set_item("mix_ratio", self.config.mix_ratio)?;
        if let Some(counts) = &self.weighing.image_counts {
            let counts: Vec<i64> = counts.iter().map(|&n| n as i64).collect();
            kwargs.set_item("image_counts", counts.into_pyarray(py))?;
        }
        kwargs.set_item("categories", self.weighing.wanted.clone())?;
        if let Some(fixed) = &self.weighing.fixed {
            kwargs.set_item("slot_weights", fixed.clone().into_pyarray(py))?;
        }
        if let Some(bank) = &self.bank {
            kwargs.set_item("bank", bank)?;
        }
        kwargs.set_item("threshold", self.weighing.threshold)?;
        kwargs.set_item("seed", self.config.seed)?;
        kwargs.set_item("rank", self.config.rank)?;
        kwargs.set_item("world_size", self.config.world_size)?;
        kwargs.set_item("shuffle", self.config.shuffle)?;
        kwargs.set_item("keyed", self.config.keyed)?;
        Ok(((self.factors(py),), kwargs))
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.state_dict(py, None)
    }

    fn __setstate__(&mut self, state: &Bound<'_, PyDict>) -> PyResult<()> {
        self.load_state_dict(state)
    }

    fn __repr__(&self) -> String {
        format!(
            "MosaicSampler({} images, {} categories, mix_ratio={}, seed={}, rank={}/{})",
            self.config.factors.len(),
            self.config.categories,
            self.config.mix_ratio,
            self.config.seed,
            self.config.rank,
            self.config.world_size
        )
    }
}

fn decoded(indexing: Indexing, index: i64) -> PyResult<(Option<u64>, Option<u32>, u64)> {
    let (code, key) = indexing.decode(index)?;
    Ok(match code {
        Code::Real(i) => (Some(i), None, key),
        Code::Slot(c) => (None, Some(c), key),
    })
}

/// What an index of a sampler over ``num_images`` and ``num_categories`` stands for:
/// ``(image, category, key)``, one of the first two ``None``.
#[pyfunction]
fn decode_index(
    index: i64,
    num_images: u64,
    num_categories: u64,
) -> PyResult<(Option<u64>, Option<u32>, u64)> {
    let indexing = Indexing {
        images: num_images,
        categories: num_categories,
    };
    decoded(indexing, index)
}

/// LVIS repeat factors from classes in arrays: the annotations of image ``i`` have the classes
/// ``classes[offsets[i]:offsets[i + 1]]`` (both int64). Returns ``(factors, image_counts)``: float32
/// [N] and int64 [C], the same numbers as Detectron2's.
#[pyfunction]
#[pyo3(signature = (offsets, classes, num_categories, threshold=0.001))]
#[expect(clippy::type_complexity, reason = "a pair of arrays")]
fn repeat_factors<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    classes: PyReadonlyArray1<'py, i64>,
    num_categories: usize,
    threshold: f64,
) -> PyResult<(Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<i64>>)> {
    let (offsets, classes) = (
        contiguous("offsets", &offsets)?,
        contiguous("classes", &classes)?,
    );
    let r = enter(py, || {
        factors_of(offsets, classes, num_categories, threshold)
    })?;
    let counts: Vec<i64> = r.image_counts.iter().map(|&n| n as i64).collect();
    Ok((r.factors.into_pyarray(py), counts.into_pyarray(py)))
}

/// ``(offsets, classes)`` (int64) for ``repeat_factors`` from Detectron2 dataset dictionaries: the
/// ``category_id`` of every annotation of every image.
#[pyfunction]
#[expect(clippy::type_complexity, reason = "a pair of arrays")]
fn class_arrays<'py>(
    py: Python<'py>,
    dataset_dicts: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>)> {
    let mut offsets = vec![0i64];
    let mut classes = Vec::new();
    let (annotations, category_id) = (
        pyo3::intern!(py, "annotations"),
        pyo3::intern!(py, "category_id"),
    );
    for item in dataset_dicts.try_iter()? {
        let item = item?;
        let list = match item.cast::<PyDict>() {
            Ok(dict) => dict.get_item(annotations)?,
            Err(_) => Some(item.get_item(annotations)?),
        };
        if let Some(list) = list {
            match list.cast::<PyList>() {
                Ok(list) => {
                    for a in list.iter() {
                        classes.push(a.get_item(category_id)?.extract()?);
                    }
                }
                Err(_) => {
                    for a in list.try_iter()? {
                        classes.push(a?.get_item(category_id)?.extract()?);
                    }
                }
            }
        }
        offsets.push(classes.len() as i64);
    }
    Ok((offsets.into_pyarray(py), classes.into_pyarray(py)))
}

/// Adds this room to `_core`.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<MosaicSampler>()?;
    m.add_class::<SamplerIterator>()?;
    m.add_function(wrap_pyfunction!(repeat_factors, m)?)?;
    m.add_function(wrap_pyfunction!(class_arrays, m)?)?;
    m.add_function(wrap_pyfunction!(decode_index, m)?)?;
    Ok(())
}
