//! Bindings of the dataset room; `mosaicbank.datasets` gives them their documented Python face.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::prelude::*;

use super::enter;
use crate::dataset::{
    Category, CategoryTable, Entry, ExportFormat, ExportOptions, Exporter, MaskFormat,
    merge_files,
};
use crate::error::{Error, Result};

/// `(id, name, synset, definition, synonyms, frequency, image count, instance count)`.
type CategoryOut = (
    u64,
    String,
    String,
    String,
    Vec<String>,
    &'static str,
    u64,
    u64,
);

fn category_out(c: &Category) -> CategoryOut {
    (
        c.id,
        c.name.clone(),
        c.synset.clone(),
        c.definition.clone(),
        c.synonyms.clone(),
        c.frequency.letter(),
        c.image_count,
        c.instance_count,
    )
}

#[pyfunction]
fn dataset_categories(py: Python<'_>, path: PathBuf) -> PyResult<Vec<CategoryOut>> {
    enter(py, || {
        let table = CategoryTable::read(path)?;
        Ok(table.categories().iter().map(category_out).collect())
    })
}

#[pyfunction]
fn dataset_find_category(py: Python<'_>, path: PathBuf, name: &str) -> PyResult<CategoryOut> {
    enter(py, || {
        Ok(category_out(CategoryTable::read(path)?.get(name)?))
    })
}

fn choice<T: Copy>(what: &str, got: &str, choices: &[(&str, T)]) -> Result<T> {
    choices
        .iter()
        .find_map(|(name, v)| (*name == got).then_some(*v))
        .ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            Error::value(what, names.join(" or "), format!("{got:?}"))
        })
}

/// `(images, annotations, categories, mosaics left out)`.
type ExportOut = (usize, usize, usize, usize);

#[pyfunction]
fn dataset_export(
    py: Python<'_>,
    folder: PathBuf,
    out: PathBuf,
    categories: Option<PathBuf>,
    format: &str,
    masks: &str,
    image_folder: String,
) -> PyResult<ExportOut> {
    enter(py, || {
        let options = ExportOptions {
            format: choice(
                "format",
                format,
                &[("lvis", ExportFormat::Lvis), ("coco", ExportFormat::Coco)],
            )?,
            masks: choice(
                "masks",
                masks,
                &[("rle", MaskFormat::Rle), ("polygons", MaskFormat::Polygons)],
            )?,
            image_folder,
            ..ExportOptions::default()
        };
        let entries = Entry::read_folder(&folder)?;
        let table = match categories {
            Some(path) => CategoryTable::read(path)?,
            None => Exporter::table_of(&entries)?,
        };
        let mut exporter = Exporter::new(table, options)?;
        for entry in &entries {
            exporter.add(entry)?;
        }
        let r = exporter.write(&out)?;
        Ok((r.images, r.annotations, r.categories, r.empty))
    })
}

/// `(images added, annotations added, images already there, by category)`.
type MergeOut = (usize, usize, usize, BTreeMap<String, (u64, u64)>);

#[pyfunction]
fn dataset_merge(
    py: Python<'_>,
    train: PathBuf,
    synthetic: Vec<PathBuf>,
    out: PathBuf,
) -> PyResult<MergeOut> {
    enter(py, || {
        let r = merge_files(&train, &synthetic, &out)?;
        Ok((r.images, r.annotations, r.already, r.categories))
    })
}

/// Adds the functions of this file to `_core`.
///
/// # Errors
/// What adding to the module raises.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(dataset_categories, m)?)?;
    m.add_function(wrap_pyfunction!(dataset_find_category, m)?)?;
    m.add_function(wrap_pyfunction!(dataset_export, m)?)?;
    m.add_function(wrap_pyfunction!(dataset_merge, m)?)?;
    Ok(())
}
