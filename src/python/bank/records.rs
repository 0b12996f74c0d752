//! Python's values to a bank's records and categories.

use numpy::{PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::super::convert::{contiguous, field, optional, rgb, rle_from, size_of};
use super::PyBank;
use crate::bank::{Category, InstanceRecord, MosaicInstance, MosaicRecord, RecordId, Region};
use crate::error::{Error, Result};
use crate::geometry::PixelBox;
use crate::mask::{BinaryMask, Rle, Verdict};
use crate::record::{Scores, identity};

pub(super) fn category_from(item: &Bound<'_, PyAny>, index: usize) -> PyResult<Category> {
    if let Ok(name) = item.extract::<String>() {
        return Ok(Category {
            id: index as u32 + 1,
            name,
            frequency: None,
            image_count: None,
        });
    }
    let dict = item.cast::<PyDict>().map_err(|_| {
        PyTypeError::new_err("categories: expected names or LVIS/COCO dictionaries")
    })?;
    Ok(Category {
        id: field(dict, "id")?.extract()?,
        name: field(dict, "name")?.extract()?,
        frequency: optional(dict, "frequency")?,
        image_count: optional(dict, "image_count")?,
    })
}

impl PyBank {
    pub(super) fn index(&self, category: &Bound<'_, PyAny>) -> PyResult<u32> {
        if let Ok(name) = category.extract::<String>() {
            return Ok(self.bank.category(&name)?);
        }
        let n = self.bank.categories().len();
        let index: i64 = category.extract().map_err(|_| {
            PyTypeError::new_err("category: expected a name or an index into bank.categories")
        })?;
        if index < 0 || index >= n as i64 {
            return Err(Error::value("category index", format!("0..{n}"), index).into());
        }
        Ok(index as u32)
    }

    pub(in crate::python) fn indices(
        &self,
        categories: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<u32>> {
        if categories.extract::<String>().is_ok() || categories.extract::<i64>().is_ok() {
            return Ok(vec![self.index(categories)?]);
        }
        categories.try_iter()?.map(|c| self.index(&c?)).collect()
    }

    pub(super) fn mosaic_from(&self, dict: &Bound<'_, PyDict>) -> PyResult<MosaicRecord> {
        let (size, image) = rgb("image", &field(dict, "image")?.extract()?)?;
        let mut regions = Vec::new();
        if let Some(list) = dict.get_item("regions")? {
            for r in list.try_iter()? {
                let r = r?;
                let r = r.cast::<PyDict>().map_err(PyErr::from)?;
                let corners: [u32; 4] = field(r, "box")?.extract()?;
                let verdict: Option<String> = optional(r, "verdict")?;
                let verdict = verdict.map_or(Verdict::Kept, |text| Verdict::from_text(&text));
                let category = self.index(&field(r, "category")?)?;
                let mut region = Region::bare(corners.into(), category, verdict);
                region.prompt = optional(r, "prompt")?.unwrap_or_default();
                if let Some(own) = optional::<[u32; 4]>(r, "own")? {
                    region.own = own.into();
                }
                region.subject = optional(r, "subject")?.unwrap_or_default();
                region.guidance = optional(r, "guidance")?.unwrap_or_default();
                region.scores = optional(r, "scores")?.unwrap_or_default();
                regions.push(region);
            }
        }
        let masks = field(dict, "masks")?;
        let rles: Vec<Rle> = if let Ok(array) = masks.extract::<PyReadonlyArray3<'_, bool>>() {
            let shape = array.shape().to_vec();
            let plane = size_of("masks", shape.get(1..).unwrap_or_default())?;
            let data = contiguous("masks", &array)?;
            data.chunks_exact((plane.area() as usize).max(1))
                .map(|m| {
                    let bytes = m.iter().map(|&v| u8::from(v)).collect();
                    Rle::encode(&BinaryMask::from_vec(plane, bytes)?)
                })
                .collect::<Result<_>>()?
        } else {
            masks
                .try_iter()?
                .map(|m| rle_from(&m?))
                .collect::<PyResult<_>>()?
        };
        let classes = self.indices(&field(dict, "classes")?)?;
        let scores: Vec<f32> =
            optional(dict, "scores")?.unwrap_or_else(|| vec![1.0; rles.len()]);
        if classes.len() != rles.len() || scores.len() != rles.len() {
            return Err(Error::value(
                "classes and scores",
                format!("as many as masks ({})", rles.len()),
                format!("{} and {}", classes.len(), scores.len()),
            )
            .into());
        }
        let of: Vec<u32> = match optional(dict, "region_of")? {
            Some(of) => of,
            None if regions.is_empty() => {
                // One region per object when the caller has none to tell.
                for (rle, &category) in rles.iter().zip(&classes) {
                    let bbox = rle.bbox().unwrap_or(PixelBox::new(0, 0, 0, 0));
                    regions.push(Region::bare(bbox, category, Verdict::Kept));
                }
                (0..rles.len() as u32).collect()
            }
            None => (0..rles.len() as u32).collect(),
        };
        let named: Option<Vec<Scores>> = optional(dict, "named_scores")?;
        if let Some(named) = named.as_ref().filter(|n| n.len() != rles.len()) {
            return Err(Error::value(
                "named_scores",
                format!("as many as masks ({})", rles.len()),
                named.len(),
            )
            .into());
        }
        let named = named.unwrap_or_default();
        let mut instances = Vec::new();
        for (i, mask) in rles.into_iter().enumerate() {
            let category = classes.get(i).copied().unwrap_or_default();
            let score = scores.get(i).copied().unwrap_or_default();
            let region = of.get(i).copied().unwrap_or_default();
            let mut instance = MosaicInstance::of_mask(category, mask, score, region)
                .ok_or_else(|| Error::value(format!("mask {i}"), "some foreground", "none"))?;
            instance.scores = named.get(i).cloned().unwrap_or_default();
            instances.push(instance);
        }
        let mut mosaic = MosaicRecord {
            id: RecordId([0; 16]),
            size,
            image,
            regions,
            instances,
            model: optional(dict, "model")?.unwrap_or_default(),
            weights: optional(dict, "weights")?.unwrap_or_default(),
            recipe: optional(dict, "recipe")?.unwrap_or_default(),
            seed: field(dict, "seed")?.extract()?,
            generation: None,
        };
        mosaic.id = match optional::<String>(dict, "id")? {
            Some(id) => id.parse()?,
            None => {
                let table = self.bank.categories();
                identity::content(&mosaic, |&c| table.get(c as usize).map_or("", |c| &c.name))
            }
        };
        Ok(mosaic)
    }

    pub(super) fn instance_from(&self, dict: &Bound<'_, PyDict>) -> PyResult<InstanceRecord> {
        let (size, image) = rgb("image", &field(dict, "image")?.extract()?)?;
        let alpha = field(dict, "alpha")?;
        let alpha: Vec<u8> = if let Ok(mask) = alpha.extract::<PyReadonlyArray2<'_, bool>>() {
            let data = contiguous("alpha", &mask)?;
            data.iter().map(|&v| if v { 255 } else { 0 }).collect()
        } else {
            let array: PyReadonlyArray2<'_, u8> = alpha.extract()?;
            contiguous("alpha", &array)?.to_vec()
        };
        let category = self.index(&field(dict, "category")?)?;
        let name = self
            .bank
            .categories()
            .get(category as usize)
            .map_or("", |c| &c.name);
        Ok(crate::bank::import::instance_of(
            crate::bank::import::Class {
                index: category,
                name,
            },
            size,
            &image,
            &alpha,
            optional(dict, "score")?.unwrap_or(1.0),
            optional(dict, "source")?.unwrap_or_default(),
        )?)
    }
}
