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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Verdict;

    /// Metadata as version 0.1 wrote it (commit 13b58bc): verdicts as text, `way` and `making`, and
    /// what was planned of a region in `making` alone.
    const VERSION_0_1: &str = r#"{
        "id": "000102030405060708090a0b0c0d0e0f",
        "regions": [
            {"box": [0, 0, 8, 8], "prompt": "a photo of a single cup", "category": 0,
             "verdict": "kept",
             "way": {"planned": 1, "own": [0, 0, 8, 8], "threshold": 0.5,
                     "attention": {"size": {"height": 1, "width": 1}, "levels": "/w=="},
                     "refined": {"size": [8, 8], "counts": [0, 64]}}},
            {"box": [0, 0, 8, 8], "prompt": "an owl", "category": 1,
             "verdict": "a reason that nobody knows any more"}
        ],
        "instances": [{"category": 0, "box": [0, 0, 8, 8], "area": 64, "score": 0.5, "region": 0}],
        "model": "m", "weights": "w", "recipe": "r", "seed": 7,
        "making": {"canvas": {"height": 8, "width": 16}, "window": [8, 0, 16, 8],
                   "device": "cpu", "dtype": "float32", "threads": 2, "pixels": "00",
                   "regions": [
                       {"box": [0, 0, 8, 8], "own": [0, 0, 8, 8], "category": "owl",
                        "prompt": "an owl", "subject": [3, 6], "guidance": 2.0},
                       {"box": [8, 0, 16, 8], "own": [8, 0, 16, 8], "category": "cup",
                        "prompt": "a photo of a single cup", "subject": [20, 23], "guidance": 7.5}
                   ]}
    }"#;

    #[test]
    fn a_record_of_version_0_1_is_read_and_completed() {
        let meta: MosaicMeta = serde_json::from_str(VERSION_0_1).unwrap();
        let size = Size::new(8, 8);
        let whole = Rle::new(size, &[0, 64]).unwrap();
        let mosaic = meta.mosaic(size, || Some(whole.clone())).unwrap();
        let [kept, other] = &mosaic.regions[..] else {
            panic!("expected two regions, got {:?}", mosaic.regions);
        };
        assert_eq!(kept.verdict, Verdict::Kept);
        assert_eq!((kept.subject, kept.guidance), ([20, 23], 7.5));
        assert_eq!(kept.own, PixelBox::new(0, 0, 8, 8));
        assert_eq!(kept.trace.as_ref().map(|t| t.planned), Some(1));
        assert!(!other.verdict.is_kept());
        assert_eq!(
            other.verdict.to_string(),
            "a reason that nobody knows any more"
        );
        assert_eq!(mosaic.generation.as_ref().map(|g| g.threads), Some(2));

        // Written again, in today's form, it says the same.
        let text = serde_json::to_string(&MosaicMeta::of(&mosaic)).unwrap();
        assert!(!text.contains("\"way\"") && !text.contains("\"making\""));
        let again: MosaicMeta = serde_json::from_str(&text).unwrap();
        assert_eq!(again.mosaic(size, || Some(whole.clone())).unwrap(), mosaic);
    }
}
