//! From decoded canvases with what was captured of them to labelled instances.

use std::collections::BTreeMap;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::canvas::Canvas;
use super::denoise::Denoised;
use super::examine::{Examined, examine};
use super::model::ModelId;
use super::prompt::Subject;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::instance::{Instance, Provenance};
use crate::mask::region::cut;
use crate::mask::{BinaryMask, Captured, RegionView, Rle, Tools, Verdict};
use crate::recipe::{Keep, Recipe, hex};

/// One region of a finished mosaic, with the whole way to its verdict.
#[derive(Debug, Clone)]
pub struct RegionResult {
    /// What was denoised for it, in canvas pixels.
    pub bbox: PixelBox,
    /// Its own part of the canvas.
    pub own: PixelBox,
    /// Prompt and subject.
    pub subject: Subject,
    /// Weight of classifier-free guidance.
    pub guidance: f64,
    /// Category of its subject.
    pub category: String,
    /// Kind of the mask source that its mask comes from; `None` without a mask.
    pub source: Option<&'static str>,
    /// The source's soft map (for `attention` the attention map) of the region's size, row-major,
    /// 0..1; empty without a mask.
    pub attention: Vec<f32>,
    /// The soft map above this is the first mask, 0..1; 0 without a mask.
    pub threshold: f32,
    /// Refined mask of the region's size, before the checks.
    pub mask: Option<BinaryMask>,
    /// Kept, or why not.
    pub verdict: Verdict,
}

/// A finished mosaic.
#[derive(Debug, Clone)]
pub struct Mosaic {
    /// Hash of weights, recipe, seed and regions: the same mosaic has the same id.
    pub id: String,
    /// Its seed.
    pub seed: u64,
    /// Pixels.
    pub size: Size,
    /// Row-major RGB.
    pub rgb: Vec<u8>,
    /// The part of the canvas that it shows: all of it, unless the recipe crops.
    pub window: PixelBox,
    /// All regions.
    pub regions: Vec<RegionResult>,
    /// What is kept.
    pub instances: Vec<Instance>,
    /// Why the picture cannot be used; then there are no instances.
    pub problem: Option<String>,
}

impl Mosaic {
    /// Categories of regions that hold an object for which there is no mask: what LVIS calls
    /// not exhaustively annotated.
    pub fn not_exhaustive(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .regions
            .iter()
            .filter(|r| r.verdict != Verdict::Kept)
            .map(|r| r.category.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Hash of everything that the mosaic is a function of, 32 hexadecimal digits.
pub(super) fn mosaic_id(model: &ModelId, recipe_hash: &str, canvas: &Canvas) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(model.weights.as_bytes());
    add(recipe_hash.as_bytes());
    add(&canvas.seed.to_le_bytes());
    for region in &canvas.regions {
        for side in <[u32; 4]>::from(region.bbox)
            .into_iter()
            .chain(<[u32; 4]>::from(region.own))
        {
            add(&side.to_le_bytes());
        }
        add(region.category.as_bytes());
        add(region.subject.prompt.as_bytes());
        add(&region.guidance.to_le_bytes());
        add(&region.noise_seed.map_or([0; 9], |seed| {
            let mut bytes = [1; 9];
            bytes[1..].copy_from_slice(&seed.to_le_bytes());
            bytes
        }));
        if let Some(image) = &region.image {
            add(&image.strength.to_le_bytes());
            add(&image.rgb);
        }
    }
    hex(&hash.finalize()[..16])
}

/// Labels decoded canvases, all of them through each stage of the recipe together.
pub(super) fn label(
    model: &ModelId,
    recipe: &Recipe,
    recipe_hash: &str,
    canvases: &[Canvas],
    denoised: Vec<Denoised>,
    tools: &Tools,
) -> Result<Vec<Mosaic>> {
    if denoised.len() != canvases.len() {
        return Err(Error::value(
            "decoded canvases",
            format!("{}, as many as were laid out", canvases.len()),
            denoised.len(),
        ));
    }
    let mut views = Vec::new();
    for (canvas, picture) in canvases.iter().zip(&denoised) {
        let captured = picture.captured.as_deref();
        let regions = captured.map_or(canvas.regions.len(), <[_]>::len);
        if picture.size != canvas.size || regions != canvas.regions.len() {
            return Err(Error::value(
                "decoded canvas",
                format!("{:?} with {} regions", canvas.size, canvas.regions.len()),
                format!("{:?} with {regions}", picture.size),
            ));
        }
        for (region, captured) in canvas.regions.iter().zip(usable(picture)) {
            views.push(RegionView {
                rgb: &picture.rgb,
                canvas: canvas.size,
                bbox: region.bbox,
                own: region.own,
                base: recipe.base(),
                category: &region.category,
                prompt: &region.subject.prompt,
                subject: region.subject.span.clone(),
                seed: canvas.seed,
                captured,
            });
        }
    }
    let mut examined = examine(recipe, &views, tools)?.into_iter();
    let parts: Vec<_> = canvases
        .iter()
        .zip(denoised)
        .map(|(canvas, picture)| {
            let found: Vec<Examined> = examined.by_ref().take(usable(&picture).len()).collect();
            (canvas, picture, found)
        })
        .collect();
    parts
        .into_par_iter()
        .map(|(canvas, picture, found)| {
            finish(model, recipe, recipe_hash, canvas, picture, found)
        })
        .collect()
}

/// What was captured of each region; nothing when there is nothing to label.
fn usable(picture: &Denoised) -> &[Vec<Captured>] {
    match &picture.captured {
        Some(captured) if picture.problem.is_none() => captured,
        _ => &[],
    }
}

/// One canvas with what was found in its regions (nothing, where it is not to be labelled).
fn finish(
    model: &ModelId,
    recipe: &Recipe,
    recipe_hash: &str,
    canvas: &Canvas,
    picture: Denoised,
    found: Vec<Examined>,
) -> Result<Mosaic> {
    let id = mosaic_id(model, recipe_hash, canvas);
    let mut mosaic = Mosaic {
        id: id.clone(),
        seed: canvas.seed,
        size: canvas.size,
        rgb: picture.rgb,
        window: PixelBox::new(0, 0, canvas.size.width, canvas.size.height),
        regions: Vec::with_capacity(canvas.regions.len()),
        instances: Vec::new(),
        problem: picture.problem,
    };
    let mut kept = Vec::with_capacity(canvas.regions.len());
    let mut found = found.into_iter();
    for region in &canvas.regions {
        let mut result = RegionResult {
            bbox: region.bbox,
            own: region.own,
            subject: region.subject.clone(),
            guidance: region.guidance,
            category: region.category.clone(),
            source: None,
            attention: Vec::new(),
            threshold: 0.0,
            mask: None,
            verdict: Verdict::NoAttention,
        };
        let mut objects = Vec::new();
        if let Some(examined) = found.next() {
            if let Some((source, proposal)) = examined.proposal {
                result.source = Some(source);
                result.attention = proposal.soft;
                result.threshold = proposal.threshold;
            }
            result.mask = examined.mask;
            result.verdict = examined.verdict;
            objects = examined.objects;
        }
        kept.push(objects);
        mosaic.regions.push(result);
    }
    let failed = mosaic
        .regions
        .iter()
        .filter(|r| !r.verdict.is_kept())
        .count() as u32;
    if recipe.keep == Keep::Canvas && failed > 0 {
        kept.iter_mut().for_each(Vec::clear);
        for region in mosaic.regions.iter_mut().filter(|r| r.verdict.is_kept()) {
            region.verdict = Verdict::CanvasDropped { failed };
        }
    }
    for (index, (objects, region)) in kept.into_iter().zip(&mosaic.regions).enumerate() {
        for (mask, scores) in objects {
            let provenance = Provenance {
                model: model.name.clone(),
                weights: model.weights.clone(),
                prompt: region.subject.prompt.clone(),
                seed: canvas.seed,
                recipe: recipe_hash.to_owned(),
                mosaic: id.clone(),
                region: index as u32,
            };
            mosaic
                .instances
                .push(instance(region, &mask, scores, provenance)?);
        }
    }
    if recipe.keep == Keep::Crop {
        crop_to_good(&mut mosaic)?;
    }
    Ok(mosaic)
}

/// A kept mask as an instance; its score is the mean of the soft map inside it.
fn instance(
    region: &RegionResult,
    mask: &BinaryMask,
    scores: BTreeMap<String, f32>,
    provenance: Provenance,
) -> Result<Instance> {
    let rle = Rle::encode(mask)?;
    let Some(bbox) = rle.bbox() else {
        return Err(Error::value("instance mask", "at least one pixel", "none"));
    };
    let width = region.bbox.width() as usize;
    let mut sum = 0f64;
    for run in rle.columns() {
        let x = run.x - region.bbox.x0;
        for y in run.y0 - region.bbox.y0..run.y1 - region.bbox.y0 {
            sum += f64::from(region.attention[y as usize * width + x as usize]);
        }
    }
    let area = rle.area();
    Ok(Instance {
        category: region.category.clone(),
        bbox,
        area,
        score: (sum / area as f64) as f32,
        scores,
        mask: rle,
        provenance,
    })
}

/// Cuts the mosaic to the largest rectangle of whole region parts that are all good.
fn crop_to_good(mosaic: &mut Mosaic) -> Result<()> {
    let good: Vec<PixelBox> = mosaic
        .regions
        .iter()
        .filter(|r| r.verdict == Verdict::Kept)
        .map(|r| r.own)
        .collect();
    // Every rectangle that good parts span, and whether they fill it.
    let mut best: Option<PixelBox> = None;
    for a in &good {
        for b in &good {
            let hull = PixelBox::new(
                a.x0.min(b.x0),
                a.y0.min(b.y0),
                a.x1.max(b.x1),
                a.y1.max(b.y1),
            );
            let filled: u64 = good.iter().map(|g| g.intersect(hull).size().area()).sum();
            let larger = best.is_none_or(|b| hull.size().area() > b.size().area());
            if filled == hull.size().area() && larger {
                best = Some(hull);
            }
        }
    }
    let Some(window) = best else {
        mosaic.instances.clear();
        return Ok(());
    };
    if window.size() == mosaic.size {
        return Ok(());
    }
    mosaic.rgb = cut(&mosaic.rgb, mosaic.size, window);
    mosaic.size = window.size();
    mosaic.window = window;
    mosaic.regions.retain(|r| r.own.intersect(window) == r.own);
    mosaic
        .instances
        .retain(|i| i.bbox.intersect(window) == i.bbox);
    let shift = |b: PixelBox| {
        let b = b.intersect(window);
        PixelBox::new(
            b.x0 - window.x0,
            b.y0 - window.y0,
            b.x1 - window.x0,
            b.y1 - window.y0,
        )
    };
    for region in &mut mosaic.regions {
        // The part of the region that was cut away goes from its maps, too.
        let seen = region.bbox.intersect(window);
        let inner = PixelBox::new(
            seen.x0 - region.bbox.x0,
            seen.y0 - region.bbox.y0,
            seen.x1 - region.bbox.x0,
            seen.y1 - region.bbox.y0,
        );
        let width = region.bbox.width() as usize;
        let rows = inner.y0 as usize..inner.y1 as usize;
        let columns = inner.x0 as usize..inner.x1 as usize;
        region.attention = rows
            .clone()
            .flat_map(|y| &region.attention[y * width + columns.start..y * width + columns.end])
            .copied()
            .collect();
        if let Some(mask) = &region.mask {
            let data = rows
                .flat_map(|y| &mask.data()[y * width + columns.start..y * width + columns.end])
                .copied()
                .collect();
            region.mask = Some(BinaryMask::from_vec(inner.size(), data)?);
        }
        region.bbox = shift(region.bbox);
        region.own = shift(region.own);
    }
    for instance in &mut mosaic.instances {
        instance.mask = instance.mask.crop(window)?;
        instance.bbox = shift(instance.bbox);
    }
    Ok(())
}
