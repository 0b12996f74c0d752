//! Bindings of the bank itself.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::super::random::{bits, seed_from};
use super::super::{check_interrupt, enter};
use super::records::category_from;
use super::{BankInstance, BankMosaic};
use crate::bank::{Bank, BankInfo, Choice, Kind, LimitChanges, Limits, PutReport, RecordId};
use crate::error::Error;
use crate::priority::supply::Supply;

fn limits_dict(py: Python<'_>, l: Limits) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("max_bytes", l.max_bytes)?;
    dict.set_item("max_per_category", l.max_per_category)?;
    dict.set_item("max_uses", l.max_uses)?;
    Ok(dict)
}

fn report_dict(py: Python<'_>, r: PutReport) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("added", r.added)?;
    dict.set_item("known", r.known)?;
    dict.set_item("evicted", r.evicted)?;
    dict.set_item("refused", r.refused)?;
    Ok(dict)
}

/// The on-disk store of mosaics and instances: one directory, many readers, one writer.
///
/// A bank may be taken into forked workers and pickled into spawned ones; it opens its store
/// lazily in each process.
#[pyclass(name = "Bank", frozen, module = "mosaicbank._core")]
pub struct PyBank {
    pub(in crate::python) bank: Arc<Bank>,
}

#[pymethods]
impl PyBank {
    /// Makes a new bank in the directory ``path`` and opens it.
    ///
    /// ``categories``: LVIS/COCO category dictionaries (``id``, ``name``, optional
    /// ``frequency`` and ``image_count``), or names. ``max_bytes``, ``max_per_category``:
    /// limits, 0 is none. ``max_uses``: a record used so often is retired, 0 is never.
    #[staticmethod]
    #[pyo3(signature = (path, categories, recipe="", *, max_bytes=None, max_per_category=None, max_uses=None))]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        categories: &Bound<'_, PyAny>,
        recipe: &str,
        max_bytes: Option<u64>,
        max_per_category: Option<u64>,
        max_uses: Option<u32>,
    ) -> PyResult<Self> {
        let categories = categories
            .try_iter()?
            .enumerate()
            .map(|(i, c)| category_from(&c?, i))
            .collect::<PyResult<_>>()?;
        let limits = LimitChanges {
            max_bytes,
            max_per_category,
            max_uses,
        }
        .applied_to(Limits::default());
        let bank = enter(py, || {
            Bank::create(&path, BankInfo::new(categories, recipe, limits)?)
        })?;
        Ok(Self {
            bank: Arc::new(bank),
        })
    }

    /// Opens the bank in the directory ``path``.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let bank = enter(py, || Bank::open(&path))?;
        Ok(Self {
            bank: Arc::new(bank),
        })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (PathBuf,))> {
        let open = slf.get_type().getattr("open")?;
        Ok((open, (slf.get().bank.path().to_path_buf(),)))
    }

    fn __repr__(&self) -> String {
        format!(
            "Bank({:?}, {} categories)",
            self.bank.path().display().to_string(),
            self.bank.categories().len()
        )
    }

    /// The directory.
    #[getter]
    fn path(&self) -> PathBuf {
        self.bank.path().to_path_buf()
    }

    /// The category table: dictionaries sorted by dataset id. The index in this list is the
    /// contiguous class that the trainer uses.
    #[getter]
    fn categories<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for c in self.bank.categories() {
            let dict = PyDict::new(py);
            dict.set_item("id", c.id)?;
            dict.set_item("name", &c.name)?;
            dict.set_item("frequency", c.frequency.as_deref())?;
            dict.set_item("image_count", c.image_count)?;
            list.append(dict)?;
        }
        Ok(list)
    }

    /// The recipe's text.
    #[getter]
    fn recipe(&self) -> &str {
        &self.bank.info().recipe
    }

    /// ``max_bytes``, ``max_per_category``, ``max_uses``.
    #[getter]
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        limits_dict(py, self.bank.limits())
    }

    /// Changes limits of the bank, in ``bank.toml`` too; those that are not given stay. Returns
    /// the limits before and after. ``ValueError`` for a number that the file cannot hold.
    #[pyo3(signature = (*, max_bytes=None, max_per_category=None, max_uses=None))]
    fn set_limits<'py>(
        &self,
        py: Python<'py>,
        max_bytes: Option<u64>,
        max_per_category: Option<u64>,
        max_uses: Option<u32>,
    ) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let changes = LimitChanges {
            max_bytes,
            max_per_category,
            max_uses,
        };
        let (before, after) = enter(py, || self.bank.set_limits(changes))?;
        Ok((limits_dict(py, before)?, limits_dict(py, after)?))
    }

    /// Which categories the bank holds mosaics of, or a running engine draws; bool [C].
    fn supply<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let supply = enter(py, || Supply::of(&self.bank))?;
        Ok(supply.mask().into_pyarray(py))
    }

    /// One line about the categories without a supply, ``None`` where all have one.
    /// ``categories`` (bool [C]): those that matter (default: all).
    #[pyo3(signature = (categories=None))]
    fn shortfall(
        &self,
        py: Python<'_>,
        categories: Option<Vec<bool>>,
    ) -> PyResult<Option<String>> {
        let wanted = categories.unwrap_or_default();
        enter(py, || {
            Ok(Supply::of(&self.bank)?.shortfall(&self.bank, &wanted))
        })
    }

    /// Index of a category name. ``KeyError`` with a suggestion when it is not in the table.
    fn category_index(&self, name: &str) -> PyResult<u32> {
        Ok(self.bank.category(name)?)
    }

    /// Records per category: ``{"mosaics": int64 [C], "instances": int64 [C]}``. No scan.
    fn stock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stock = enter(py, || self.bank.stock())?;
        let dict = PyDict::new(py);
        for (name, list) in [("mosaics", &stock.mosaics), ("instances", &stock.instances)] {
            let list: Vec<i64> = list.iter().map(|&n| n as i64).collect();
            dict.set_item(name, list.into_pyarray(py))?;
        }
        Ok(dict)
    }

    /// Totals: ``mosaics``, ``instances``, ``bytes``, ``added``, ``removed``, ``skipped``
    /// (damaged records that draws of this handle met), ``categories_in_stock``.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stock = enter(py, || self.bank.stock())?;
        let dict = PyDict::new(py);
        dict.set_item("mosaics", stock.total_mosaics)?;
        dict.set_item("instances", stock.total_instances)?;
        dict.set_item("bytes", stock.bytes)?;
        dict.set_item("added", stock.added)?;
        dict.set_item("removed", stock.removed)?;
        dict.set_item("skipped", self.bank.skipped())?;
        let stocked = stock.mosaics.iter().zip(&stock.instances);
        let stocked = stocked.filter(|(m, i)| **m + **i > 0).count();
        dict.set_item("categories_in_stock", stocked)?;
        Ok(dict)
    }

    /// The demand board: ``asked``, ``served_fresh``, ``served_again``, ``missed`` (int64 [C]),
    /// ``weight``, ``size_factor`` (float32 [C]). All neutral where nothing can be counted.
    fn demand<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let n = self.bank.categories().len();
        let all = self.bank.board().map_or_else(
            || vec![crate::bank::Demand::default(); n],
            crate::bank::DemandBoard::snapshot,
        );
        let dict = PyDict::new(py);
        type Get = fn(&crate::bank::Demand) -> u64;
        let counters: [(&str, Get); 4] = [
            ("asked", |d| d.asked),
            ("served_fresh", |d| d.served_fresh),
            ("served_again", |d| d.served_again),
            ("missed", |d| d.missed),
        ];
        for (name, get) in counters {
            dict.set_item(
                name,
                PyArray1::from_iter(py, all.iter().map(|d| get(d) as i64)),
            )?;
        }
        dict.set_item(
            "weight",
            PyArray1::from_iter(py, all.iter().map(|d| d.weight)),
        )?;
        dict.set_item(
            "size_factor",
            PyArray1::from_iter(py, all.iter().map(|d| d.size_factor)),
        )?;
        Ok(dict)
    }

    /// Writes feedback to the demand board: ``weights`` and ``size_factors``, float32 [C],
    /// 1 is neutral.
    #[pyo3(signature = (weights, size_factors=None))]
    fn set_feedback(
        &self,
        weights: PyReadonlyArray1<'_, f32>,
        size_factors: Option<PyReadonlyArray1<'_, f32>>,
    ) -> PyResult<()> {
        let n = self.bank.categories().len();
        let board = self.bank.board().ok_or_else(|| Error::Io {
            path: self.bank.path().join(crate::bank::board::BOARD_FILE),
            source: std::io::Error::from_raw_os_error(libc::EROFS),
        })?;
        let weights = weights.as_array();
        let sizes = size_factors.as_ref().map(|s| s.as_array());
        if weights.len() != n || sizes.as_ref().is_some_and(|s| s.len() != n) {
            return Err(Error::value(
                "feedback",
                format!("one number per category ({n})"),
                weights.len(),
            )
            .into());
        }
        for c in 0..n {
            let weight = weights.get(c).copied().unwrap_or(1.0);
            let size = match &sizes {
                Some(s) => s.get(c).copied().unwrap_or(1.0),
                None => board.get(c as u32).size_factor,
            };
            board.set_feedback(c as u32, weight, size)?;
        }
        Ok(())
    }

    /// Counts a slot of ``category`` that was answered with a real image: ``draw_mosaic`` does
    /// it by itself; for callers that never get that far.
    fn count_miss(&self, category: &Bound<'_, PyAny>) -> PyResult<()> {
        let index = self.index(category)?;
        if let Some(board) = self.bank.board() {
            board.asked(index);
            board.missed(index);
        }
        Ok(())
    }

    /// Writes mosaics in one commit. Each is a dictionary: ``image`` (uint8 [H, W, 3]), ``masks``
    /// (bool [N, H, W] or RLE dictionaries), ``classes`` (indices or names), ``seed``, and
    /// optional ``id`` (32 hexadecimal digits, else a hash of the content), ``scores``,
    /// ``named_scores`` (one dictionary per mask), ``regions``, ``region_of``, ``recipe``,
    /// ``weights``, ``model``.
    /// Returns ``{"added", "known", "evicted", "refused"}`` (records, crops included).
    fn put_mosaics<'py>(
        &self,
        py: Python<'py>,
        mosaics: Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let records = mosaics
            .iter()
            .map(|m| self.mosaic_from(m))
            .collect::<PyResult<Vec<_>>>()?;
        let report = enter(py, || self.bank.put_mosaics(&records))?;
        report_dict(py, report)
    }

    /// Writes instances in one commit. Each is a dictionary: ``image`` (uint8 [h, w, 3]), ``alpha``
    /// (uint8 or bool [h, w]; above 128 is the object, its largest component is kept),
    /// ``category``, and optional ``score`` and ``source`` (a name for the provenance).
    fn put_instances<'py>(
        &self,
        py: Python<'py>,
        instances: Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let records = instances
            .iter()
            .map(|i| self.instance_from(i))
            .collect::<PyResult<Vec<_>>>()?;
        let report = enter(py, || self.bank.put_instances(&records))?;
        report_dict(py, report)
    }

    /// One mosaic by id; not counted as a use.
    fn mosaic(&self, py: Python<'_>, id: &str) -> PyResult<BankMosaic> {
        let id: RecordId = id.parse()?;
        let (record, uses) = enter(py, || {
            let uses = self.bank.use_count(Kind::Mosaic, id)?.unwrap_or_default();
            Ok((self.bank.mosaic(id)?, uses))
        })?;
        Ok(BankMosaic { record, uses })
    }

    /// One instance by id; not counted as a use.
    fn instance(&self, py: Python<'_>, id: &str) -> PyResult<BankInstance> {
        let id: RecordId = id.parse()?;
        let (record, uses) = enter(py, || {
            let uses = self.bank.use_count(Kind::Instance, id)?.unwrap_or_default();
            Ok((self.bank.instance(id)?, uses))
        })?;
        Ok(BankInstance { record, uses })
    }

    /// Ids of the mosaics (of one category).
    #[pyo3(signature = (category=None))]
    fn mosaic_ids(
        &self,
        py: Python<'_>,
        category: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<String>> {
        self.ids(py, Kind::Mosaic, category)
    }

    /// Ids of the instances (of one category).
    #[pyo3(signature = (category=None))]
    fn instance_ids(
        &self,
        py: Python<'_>,
        category: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<String>> {
        self.ids(py, Kind::Instance, category)
    }

    /// Draws an instance and counts its use; ``None`` when there is nothing to draw.
    ///
    /// ``categories``: ``None`` for all in stock, or names or indices to choose from. ``mode``:
    /// ``"class_balanced"`` (a category uniformly, then an instance of it) or ``"uniform"``.
    #[pyo3(signature = (rng=None, categories=None, mode="class_balanced"))]
    fn draw_instance(
        &self,
        py: Python<'_>,
        rng: Option<&Bound<'_, PyAny>>,
        categories: Option<&Bound<'_, PyAny>>,
        mode: &str,
    ) -> PyResult<Option<BankInstance>> {
        let none = py.None().into_bound(py);
        let seed = seed_from(Some(rng.unwrap_or(&none)))?;
        let wanted = categories.map(|c| self.indices(c)).transpose()?;
        let choice = match (&wanted, mode) {
            (Some(list), _) => Choice::Categories(list),
            (None, "class_balanced") => Choice::ClassBalanced,
            (None, "uniform") => Choice::Uniform,
            (None, other) => {
                return Err(Error::value("mode", "'class_balanced' or 'uniform'", other).into());
            }
        };
        let drawn = enter(py, || {
            self.bank
                .draw_instance(&choice, &mut bits(seed, "draw instance"))
        })?;
        Ok(drawn.map(|d| BankInstance {
            record: d.record,
            uses: d.uses,
        }))
    }

    /// Removes every record that was used ``max_uses`` times; returns how many.
    fn retire(&self, py: Python<'_>) -> PyResult<u64> {
        enter(py, || self.bank.retire())
    }

    /// Takes over what ``other`` has and this bank has not; categories go by name.
    fn merge_from<'py>(
        &self,
        py: Python<'py>,
        other: &Bound<'py, Self>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let other = other.get().bank.clone();
        let report = enter(py, || self.bank.merge_from(&other))?;
        report_dict(py, report)
    }

    /// Reads and decodes everything: ``{"mosaics", "instances", "bad", "problems"}``, where
    /// ``bad`` lists (kind, id, why).
    fn verify<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = enter(py, || self.bank.verify(&mut |_, _| check_interrupt()))?;
        let dict = PyDict::new(py);
        dict.set_item("mosaics", report.mosaics)?;
        dict.set_item("instances", report.instances)?;
        let bad: Vec<_> = report
            .bad
            .iter()
            .map(|b| (b.kind.name(), b.id.to_string(), b.why.clone()))
            .collect();
        dict.set_item("bad", bad)?;
        dict.set_item("problems", report.problems)?;
        Ok(dict)
    }

    /// Writes everything that can be read into a new bank at ``path`` and opens that.
    fn compact(&self, py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let (bank, _) = enter(py, || {
            self.bank.compact_into(&path, &mut |_, _| check_interrupt())
        })?;
        Ok(Self {
            bank: Arc::new(bank),
        })
    }
}

impl PyBank {
    fn ids(
        &self,
        py: Python<'_>,
        kind: Kind,
        category: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<String>> {
        let category = category.map(|c| self.index(c)).transpose()?;
        let ids = enter(py, || match category {
            Some(c) => self.bank.ids_of(kind, c),
            None => self.bank.ids(kind),
        })?;
        Ok(ids.iter().map(ToString::to_string).collect())
    }
}

/// The least used mosaic of ``category`` (a name or an index), drawn at random among equals, its
/// use counted and the demand board kept; ``None`` when the bank has none.
#[pyfunction]
#[pyo3(signature = (bank, category, rng=None))]
pub(super) fn draw_mosaic(
    py: Python<'_>,
    bank: &Bound<'_, PyBank>,
    category: &Bound<'_, PyAny>,
    rng: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<BankMosaic>> {
    let none = py.None().into_bound(py);
    let seed = seed_from(Some(rng.unwrap_or(&none)))?;
    let bank = bank.get();
    let category = bank.index(category)?;
    let drawn = enter(py, || {
        bank.bank
            .draw_mosaic(category, &mut bits(seed, "draw mosaic"))
    })?;
    Ok(drawn.map(|d| BankMosaic {
        record: d.record,
        uses: d.uses,
    }))
}
