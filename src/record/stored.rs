//! The metadata (JSON) that a bank keeps beside masks and picture. Categories are indices into the
//! bank's table. Read as leniently as old records need, written in one form.

use serde::{Deserialize, Serialize};

use super::{Generation, Instance, Mosaic, Provenance, RecordId, Region, Scores, complete};
use crate::error::Error;
use crate::geometry::{PixelBox, Size};
use crate::mask::Rle;

/// Metadata of a mosaic.
#[derive(Serialize, Deserialize)]
pub struct MosaicMeta {
    id: String,
    regions: Vec<Region<u32>>,
    instances: Vec<InstanceOf>,
    model: String,
    weights: String,
    recipe: String,
    seed: u64,
    /// `making` in records of version 0.1.
    #[serde(default, alias = "making", skip_serializing_if = "Option::is_none")]
    generation: Option<Generation>,
}

/// An instance of a mosaic, its mask apart.
#[derive(Serialize, Deserialize)]
struct InstanceOf {
    category: u32,
    #[serde(rename = "box")]
    bbox: PixelBox,
    area: u64,
    score: f32,
    #[serde(default, skip_serializing_if = "Scores::is_empty")]
    scores: Scores,
    region: u32,
}

impl MosaicMeta {
    /// Of a mosaic.
    pub fn of(m: &Mosaic<u32>) -> Self {
        let instances = m.instances.iter().map(|i| InstanceOf {
            category: i.category,
            bbox: i.bbox,
            area: i.area,
            score: i.score,
            scores: i.scores.clone(),
            region: i.region,
        });
        Self {
            id: m.id.to_string(),
            regions: m.regions.clone(),
            instances: instances.collect(),
            model: m.model.clone(),
            weights: m.weights.clone(),
            recipe: m.recipe.clone(),
            seed: m.seed,
            generation: m.generation.clone(),
        }
    }

    /// The mosaic with its masks (from `mask`, one after the other), without its picture.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn mosaic(
        self,
        size: Size,
        mut mask: impl FnMut() -> Option<Rle>,
    ) -> Result<Mosaic<u32>, String> {
        let mut instances = Vec::with_capacity(self.instances.len());
        for i in self.instances {
            let mask = mask().ok_or("damaged mask")?;
            if (mask.bbox(), mask.area()) != (Some(i.bbox), i.area) {
                return Err("a mask does not agree with its box and area".into());
            }
            let finite = i.score.is_finite() && i.scores.values().all(|s| s.is_finite());
            if i.region as usize >= self.regions.len() || !finite {
                return Err("an instance without a region or a score".into());
            }
            instances.push(Instance {
                category: i.category,
                mask,
                bbox: i.bbox,
                area: i.area,
                score: i.score,
                scores: i.scores,
                region: i.region,
            });
        }
        let mut regions = self.regions;
        complete(&mut regions, self.generation.as_ref());
        Ok(Mosaic {
            id: self.id.parse().map_err(|e: Error| e.to_string())?,
            size,
            image: Vec::new(),
            regions,
            instances,
            model: self.model,
            weights: self.weights,
            recipe: self.recipe,
            seed: self.seed,
            generation: self.generation,
        })
    }

    /// The regions alone.
    pub fn regions(mut self) -> Vec<Region<u32>> {
        complete(&mut self.regions, self.generation.as_ref());
        self.regions
    }
}

/// Metadata of a cropped instance.
#[derive(Serialize, Deserialize)]
pub struct InstanceMeta {
    /// Its id, as text.
    pub id: String,
    /// Index into the bank's category table.
    pub category: u32,
    /// The object's tight box on the image that it was cut from, in pixels.
    #[serde(rename = "box")]
    pub bbox: PixelBox,
    /// Size of that image.
    pub canvas: Size,
    /// Number of foreground pixels.
    pub area: u64,
    /// Mean attention inside the mask, 0..1 (1 for labelled data).
    pub score: f32,
    /// What checks have measured.
    #[serde(default, skip_serializing_if = "Scores::is_empty")]
    pub scores: Scores,
    /// Where it came from.
    pub provenance: Provenance,
    /// Bytes of the smaller pictures behind the image, from large to small.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub smaller: Vec<u32>,
}

impl InstanceMeta {
    /// The id.
    ///
    /// # Errors
    /// A message when it is not one.
    pub fn id(&self) -> Result<RecordId, String> {
        self.id.parse().map_err(|e: Error| e.to_string())
    }
}
