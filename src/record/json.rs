//! A mosaic as JSON, in a folder of mosaics: the form of [`crate::dataset::folder`]. Categories are
//! names, with the dataset's ids where a table was at hand.

use serde::{Deserialize, Serialize};

use super::identity;
use super::{
    Class, Generation, Instance, Mosaic, Planned, Provenance, RecordId, Region, RegionTrace,
    Scores,
};
use crate::geometry::{PixelBox, Size};
use crate::mask::{Rle, Verdict};

/// The version that [`MosaicJson::format`] holds.
pub const RECORD_FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionJson {
    #[serde(rename = "box")]
    bbox: PixelBox,
    own: PixelBox,
    prompt: String,
    subject: [u32; 2],
    guidance: f64,
    category: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    category_id: Option<u64>,
    verdict: Verdict,
    #[serde(default, skip_serializing_if = "Scores::is_empty")]
    scores: Scores,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<RegionTrace>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceJson {
    category: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    category_id: Option<u64>,
    bbox: PixelBox,
    area: u64,
    score: f32,
    #[serde(default, skip_serializing_if = "Scores::is_empty")]
    scores: Scores,
    rle: Rle,
    provenance: Provenance,
}

/// The JSON form of a mosaic; its picture is a file beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MosaicJson {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The mosaic's id; files are named after it.
    pub id: String,
    /// The picture's file name, below `images/`.
    pub file_name: String,
    /// Rows.
    height: u32,
    /// Columns.
    width: u32,
    seed: u64,
    recipe: String,
    model: String,
    weights: String,
    regions: Vec<RegionJson>,
    instances: Vec<InstanceJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<Generation>,
}

impl MosaicJson {
    /// The written form of a mosaic with this picture.
    pub fn of(m: &Mosaic<Class>, file_name: String) -> Self {
        let regions = m.regions.iter().map(|r| RegionJson {
            bbox: r.bbox,
            own: r.own,
            prompt: r.prompt.clone(),
            subject: r.subject,
            guidance: r.guidance,
            category: r.category.name.clone(),
            category_id: r.category.id,
            verdict: r.verdict.clone(),
            scores: r.scores.clone(),
            trace: r.trace.clone(),
        });
        let instances = m.instances.iter().map(|i| InstanceJson {
            category: i.category.name.clone(),
            category_id: i.category.id,
            bbox: i.bbox,
            area: i.area,
            score: i.score,
            scores: i.scores.clone(),
            rle: i.mask.clone(),
            provenance: m.provenance(i),
        });
        Self {
            format: RECORD_FORMAT,
            id: m.id.to_string(),
            file_name,
            height: m.size.height,
            width: m.size.width,
            seed: m.seed,
            recipe: m.recipe.clone(),
            model: m.model.clone(),
            weights: m.weights.clone(),
            regions: regions.collect(),
            instances: instances.collect(),
            generation: m.generation.clone(),
        }
    }

    /// The mosaic, without its picture.
    ///
    /// An id that is none of ours (a record that was written by hand) is replaced by the
    /// [identity](identity::mosaic) of what the record says.
    pub fn mosaic(self) -> Mosaic<Class> {
        let id = self.id.parse().unwrap_or_else(|_| self.identity());
        let mut regions: Vec<Region<Class>> = Vec::with_capacity(self.regions.len());
        for r in self.regions {
            regions.push(Region {
                bbox: r.bbox,
                own: r.own,
                prompt: r.prompt,
                subject: r.subject,
                guidance: r.guidance,
                category: Class {
                    name: r.category,
                    id: r.category_id,
                },
                verdict: r.verdict,
                scores: r.scores,
                trace: r.trace,
            });
        }
        let instances = self.instances.into_iter().map(|i| {
            let region = match i.provenance.region as usize {
                // Version 0.1 kept the canvas's numbers when it cut the picture.
                at if at < MOST_REGIONS
                    && regions.get(at).is_none_or(|r| !holds(r, i.bbox)) =>
                {
                    regions
                        .iter()
                        .position(|r| r.category.name == i.category && holds(r, i.bbox))
                        .map_or(i.provenance.region, |at| at as u32)
                }
                _ => i.provenance.region,
            };
            Instance {
                category: Class {
                    name: i.category,
                    id: i.category_id,
                },
                mask: i.rle,
                bbox: i.bbox,
                area: i.area,
                score: i.score,
                scores: i.scores,
                region,
            }
        });
        let instances = instances.collect();
        Mosaic {
            id,
            size: Size::new(self.height, self.width),
            image: Vec::new(),
            regions,
            instances,
            model: self.model,
            weights: self.weights,
            recipe: self.recipe,
            seed: self.seed,
            generation: self.generation,
        }
    }

    fn identity(&self) -> RecordId {
        let planned: Vec<Planned> = match &self.generation {
            Some(generation) => generation.regions.clone(),
            None => self.regions.iter().map(RegionJson::planned).collect(),
        };
        let canvas = self
            .generation
            .as_ref()
            .map_or(Size::new(self.height, self.width), |g| g.canvas);
        identity::mosaic(&self.weights, &self.recipe, self.seed, canvas, &planned)
    }
}

impl RegionJson {
    fn planned(&self) -> Planned {
        Planned {
            bbox: self.bbox,
            own: self.own,
            category: self.category.clone(),
            prompt: self.prompt.clone(),
            subject: self.subject,
            guidance: self.guidance,
            noise_seed: None,
            start: None,
        }
    }
}

/// Regions of the largest mosaic that version 0.1 could cut.
const MOST_REGIONS: usize = 4;

/// Whether an object of a region can have this box.
fn holds<C>(region: &Region<C>, bbox: PixelBox) -> bool {
    bbox.intersect(region.own) == bbox
}
