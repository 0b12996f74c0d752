//! The record of a mosaic: one type, from the labeller to the bank, the report, exports, and back
//! through `import`.
//!
//! ```text
//! labeller -> Mosaic (category names)  --json--> folder of mosaics --json--> Mosaic
//!                     | Bank::indexed                                          |
//!                     v                                                        v
//!             Mosaic (category indices) --stored--> bank --stored--> Mosaic -> Bank::named
//! ```
//!
//! A record's categories are whatever its place calls them ([`Mosaic`]'s type parameter): names,
//! names with the dataset's ids ([`Class`]), or indices into a bank's table (`u32`).
//! [`Mosaic::with_categories`] goes from one to the other. [`json`] and [`stored`] hold the two
//! written forms, [`identity`] the ids.
//!
//! A new field of a region or an instance goes into its type here, into [`json`], for instances
//! into [`stored`], and to whoever fills it.

pub mod identity;
pub mod json;
pub mod stored;
pub mod trace;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use identity::RecordId;
pub use trace::{AttentionMap, Generation, Planned, RegionTrace, StartPicture, fingerprint};

use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::{Rle, Verdict};

/// What checks have measured, by the check's name.
pub type Scores = BTreeMap<String, f32>;

/// Where a generated instance came from; enough to make it again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Name of the model directory (or hub id) that made it.
    pub model: String,
    /// SHA-256 over the weights files, hex.
    pub weights: String,
    /// The region's prompt.
    pub prompt: String,
    /// The mosaic's seed.
    pub seed: u64,
    /// Hash of the resolved recipe, hex.
    pub recipe: String,
    /// Id of the mosaic.
    pub mosaic: String,
    /// Index into the regions of the mosaic's record.
    pub region: u32,
}

/// A category by its name, with the dataset's id where a table was at hand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// The dataset's category name.
    pub name: String,
    /// The dataset's category id.
    pub id: Option<u64>,
}

impl AsRef<str> for Class {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

/// One rectangle of a mosaic's canvas, with one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Region<C = String> {
    /// What was denoised for it, in pixels of the picture.
    #[serde(rename = "box")]
    pub bbox: PixelBox,
    /// The part of the picture that its instance may lie in, inside `bbox`.
    #[serde(default = "nowhere")]
    pub own: PixelBox,
    /// The prompt.
    pub prompt: String,
    /// Where in the prompt the words stand whose attention becomes the mask: the first character,
    /// and one past the last. `[0, 0]` where it is not known.
    #[serde(default)]
    pub subject: [u32; 2],
    /// Weight of classifier-free guidance; 0 where it is not known.
    #[serde(default)]
    pub guidance: f64,
    /// Category of its subject.
    pub category: C,
    /// Kept, or why not.
    pub verdict: Verdict,
    /// What checks have measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: Scores,
    /// How it came to its verdict, where that is known. (`way` in records of version 0.1.)
    #[serde(default, alias = "way", skip_serializing_if = "Option::is_none")]
    pub trace: Option<RegionTrace>,
}

const fn nowhere() -> PixelBox {
    PixelBox::new(0, 0, 0, 0)
}

impl<C> Region<C> {
    /// A region of which only the place, the category and the verdict are known.
    pub fn bare(bbox: PixelBox, category: C, verdict: Verdict) -> Self {
        Self {
            bbox,
            own: bbox,
            prompt: String::new(),
            subject: [0, 0],
            guidance: 0.0,
            category,
            verdict,
            scores: Scores::new(),
            trace: None,
        }
    }

    /// The same with another category.
    pub fn with_category<D>(self, category: D) -> Region<D> {
        Region {
            bbox: self.bbox,
            own: self.own,
            prompt: self.prompt,
            subject: self.subject,
            guidance: self.guidance,
            category,
            verdict: self.verdict,
            scores: self.scores,
            trace: self.trace,
        }
    }
}

/// One object on a mosaic.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance<C = String> {
    /// Its category.
    pub category: C,
    /// The mask, on the whole picture.
    pub mask: Rle,
    /// The tight box around the mask, in pixels.
    pub bbox: PixelBox,
    /// Number of mask pixels.
    pub area: u64,
    /// Mean attention inside the mask, 0..1.
    pub score: f32,
    /// What checks have measured.
    pub scores: Scores,
    /// Index into the record's regions.
    pub region: u32,
}

impl<C> Instance<C> {
    /// What `mask` covers; `None` when it covers nothing.
    pub fn of_mask(category: C, mask: Rle, score: f32, region: u32) -> Option<Self> {
        Some(Self {
            category,
            bbox: mask.bbox()?,
            area: mask.area(),
            mask,
            score,
            scores: Scores::new(),
            region,
        })
    }

    /// The same with another category.
    pub fn with_category<D>(self, category: D) -> Instance<D> {
        Instance {
            category,
            mask: self.mask,
            bbox: self.bbox,
            area: self.area,
            score: self.score,
            scores: self.scores,
            region: self.region,
        }
    }
}

/// A mosaic: the picture, its regions and its instances.
#[derive(Debug, Clone, PartialEq)]
pub struct Mosaic<C = String> {
    /// See [`identity`].
    pub id: RecordId,
    /// Height and width of the picture.
    pub size: Size,
    /// `u8 [H, W, 3]`, RGB; empty where the picture was not read.
    pub image: Vec<u8>,
    /// The regions that the picture shows.
    pub regions: Vec<Region<C>>,
    /// The objects that passed the filter.
    pub instances: Vec<Instance<C>>,
    /// Name of the model directory (or hub id).
    pub model: String,
    /// SHA-256 over the weights files, hex.
    pub weights: String,
    /// Hash of the resolved recipe, hex.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// How to make it again, where that is known.
    pub generation: Option<Generation>,
}

impl<C> Mosaic<C> {
    /// The provenance of one of its instances.
    pub fn provenance(&self, instance: &Instance<C>) -> Provenance {
        let region = self.regions.get(instance.region as usize);
        Provenance {
            model: self.model.clone(),
            weights: self.weights.clone(),
            prompt: region.map(|r| r.prompt.clone()).unwrap_or_default(),
            seed: self.seed,
            recipe: self.recipe.clone(),
            mosaic: self.id.to_string(),
            region: instance.region,
        }
    }

    /// The same mosaic with its categories as `convert` says them.
    ///
    /// # Errors
    /// What `convert` returns.
    pub fn with_categories<D>(
        self,
        mut convert: impl FnMut(&C) -> Result<D>,
    ) -> Result<Mosaic<D>> {
        let regions = self.regions.into_iter().map(|r| {
            let category = convert(&r.category)?;
            Ok(r.with_category(category))
        });
        let regions = regions.collect::<Result<_>>()?;
        let instances = self.instances.into_iter().map(|i| {
            let category = convert(&i.category)?;
            Ok(i.with_category(category))
        });
        Ok(Mosaic {
            id: self.id,
            size: self.size,
            image: self.image,
            regions,
            instances: instances.collect::<Result<_>>()?,
            model: self.model,
            weights: self.weights,
            recipe: self.recipe,
            seed: self.seed,
            generation: self.generation,
        })
    }

    /// Checks that boxes, masks, scores and regions agree. The picture is checked where it is
    /// written.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, what: String, expected: &str, got: String| {
            if ok {
                Ok(())
            } else {
                let what = format!("mosaic {}: {what}", self.id);
                Err(Error::value(what, expected, got))
            }
        };
        let corners = |b: PixelBox| format!("{:?}", <[u32; 4]>::from(b));
        check(
            self.size.area() > 0,
            "height and width".into(),
            "more than 0",
            format!("{} x {}", self.size.height, self.size.width),
        )?;
        if let Some(generation) = &self.generation {
            generation.validate(self.size)?;
        }
        let finite = |scores: &Scores| scores.values().all(|s| s.is_finite());
        for (i, r) in self.regions.iter().enumerate() {
            let at = |key: &str| format!("regions[{i}].{key}");
            check(
                !r.bbox.is_empty()
                    && r.bbox.x1 <= self.size.width
                    && r.bbox.y1 <= self.size.height,
                at("box"),
                "a box on the canvas",
                corners(r.bbox),
            )?;
            check(
                !r.own.is_empty() && r.own.intersect(r.bbox) == r.own,
                at("own"),
                "a box inside the region's",
                corners(r.own),
            )?;
            check(
                r.guidance.is_finite(),
                at("guidance"),
                "a finite number",
                r.guidance.to_string(),
            )?;
            check(
                finite(&r.scores),
                at("scores"),
                "finite numbers",
                format!("{:?}", r.scores),
            )?;
        }
        for (i, instance) in self.instances.iter().enumerate() {
            let at = |key: &str| format!("instances[{i}].{key}");
            let mask = &instance.mask;
            check(
                (instance.region as usize) < self.regions.len(),
                at("region"),
                &format!("an index below {}", self.regions.len()),
                instance.region.to_string(),
            )?;
            check(
                mask.size() == self.size,
                at("rle"),
                "a mask of the canvas' size",
                mask.to_string(),
            )?;
            check(
                !mask.is_empty(),
                at("rle"),
                "a mask that is not empty",
                mask.to_string(),
            )?;
            check(
                mask.area() == instance.area,
                at("area"),
                &format!("the mask's area {}", mask.area()),
                instance.area.to_string(),
            )?;
            check(
                mask.bbox() == Some(instance.bbox),
                at("bbox"),
                &format!("the box around the mask {:?}", mask.bbox()),
                corners(instance.bbox),
            )?;
            check(
                instance.score.is_finite() && finite(&instance.scores),
                at("score"),
                "a finite number",
                format!("{} {:?}", instance.score, instance.scores),
            )?;
        }
        Ok(())
    }

    /// Checks that the picture is as large as the record says.
    ///
    /// # Errors
    /// [`Error::Value`].
    pub fn validate_picture(&self) -> Result<()> {
        if self.image.len() as u64 == self.size.area() * 3 {
            return Ok(());
        }
        Err(Error::value(
            format!("mosaic {}: image", self.id),
            format!("{} x {} x 3 bytes", self.size.height, self.size.width),
            format!("{} bytes", self.image.len()),
        ))
    }
}

/// Fills in what records of version 0.1 say elsewhere: a region's own part, its subject and its
/// guidance, as they were planned.
fn complete<C>(regions: &mut [Region<C>], generation: Option<&Generation>) {
    for region in regions.iter_mut().filter(|r| r.own.is_empty()) {
        region.own = region.bbox;
        let found = generation
            .zip(region.trace.as_ref())
            .and_then(|(g, trace)| Some((g, g.regions.get(trace.planned as usize)?)));
        if let Some((generation, planned)) = found {
            region.subject = planned.subject;
            region.guidance = planned.guidance;
            if let Some(own) = generation.on_picture(planned.own) {
                region.own = own;
            }
        }
    }
}

impl<C: Ord> Mosaic<C> {
    /// Categories of regions that hold an object for which there is no mask: what LVIS calls
    /// not exhaustively annotated.
    pub fn not_exhaustive(&self) -> Vec<&C> {
        let mut categories: Vec<&C> = self
            .regions
            .iter()
            .filter(|r| !r.verdict.is_kept())
            .map(|r| &r.category)
            .collect();
        categories.sort_unstable();
        categories.dedup();
        categories
    }
}
