//! From a decoded canvas with its attention to labelled instances.

use sha2::{Digest, Sha256};

use super::canvas::{Canvas, Region};
use super::denoise::Denoised;
use super::model::ModelId;
use super::prompt::Subject;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::instance::{Instance, Provenance};
use crate::mask::{BinaryMask, Rle, Verdict, aggregate, filter_region};
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
    /// Attention map of the region's size, row-major, 0..1; empty without capture.
    pub attention: Vec<f32>,
    /// Attention above this is the first mask, 0..1; 0 without capture.
    pub threshold: f32,
    /// Refined mask of the region's size, before the filter; `None` without capture.
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

/// The pixels of `window`, row-major RGB.
fn cut(rgb: &[u8], size: Size, window: PixelBox) -> Vec<u8> {
    let stride = 3 * size.width as usize;
    let (x0, x1) = (3 * window.x0 as usize, 3 * window.x1 as usize);
    (window.y0 as usize..window.y1 as usize)
        .flat_map(|y| &rgb[y * stride + x0..y * stride + x1])
        .copied()
        .collect()
}

/// Attention maps to masks, masks to instances.
pub(super) fn label(
    model: &ModelId,
    recipe: &Recipe,
    recipe_hash: &str,
    canvas: &Canvas,
    denoised: Denoised,
) -> Result<Mosaic> {
    if denoised.size != canvas.size || denoised.attention.len() != canvas.regions.len() {
        return Err(Error::value(
            "decoded canvas",
            format!("{:?} with {} regions", canvas.size, canvas.regions.len()),
            format!("{:?} with {}", denoised.size, denoised.attention.len()),
        ));
    }
    let id = mosaic_id(model, recipe_hash, canvas);
    let mut mosaic = Mosaic {
        id: id.clone(),
        seed: canvas.seed,
        size: canvas.size,
        rgb: denoised.rgb,
        window: PixelBox::new(0, 0, canvas.size.width, canvas.size.height),
        regions: Vec::with_capacity(canvas.regions.len()),
        instances: Vec::new(),
        problem: denoised.problem,
    };
    let mut found = Vec::with_capacity(canvas.regions.len());
    for (region, levels) in canvas.regions.iter().zip(&denoised.attention) {
        let mut result = RegionResult {
            bbox: region.bbox,
            own: region.own,
            subject: region.subject.clone(),
            guidance: region.guidance,
            category: region.category.clone(),
            attention: Vec::new(),
            threshold: 0.0,
            mask: None,
            verdict: Verdict::NoAttention,
        };
        let usable = mosaic.problem.is_none()
            && !levels.is_empty()
            && levels.iter().all(|l| l.data.iter().all(|v| v.is_finite()));
        found.push(if usable {
            examine(recipe, &mosaic, region, levels, &mut result)?
        } else {
            Vec::new()
        });
        mosaic.regions.push(result);
    }
    let failed = mosaic
        .regions
        .iter()
        .filter(|r| !r.verdict.is_kept())
        .count() as u32;
    if recipe.keep == Keep::Canvas && failed > 0 {
        found.iter_mut().for_each(Vec::clear);
        for region in mosaic.regions.iter_mut().filter(|r| r.verdict.is_kept()) {
            region.verdict = Verdict::CanvasDropped { failed };
        }
    }
    for (index, (masks, region)) in found.into_iter().zip(&mosaic.regions).enumerate() {
        for mask in masks {
            let provenance = Provenance {
                model: model.name.clone(),
                weights: model.weights.clone(),
                prompt: region.subject.prompt.clone(),
                seed: canvas.seed,
                recipe: recipe_hash.to_owned(),
                mosaic: id.clone(),
                region: index as u32,
            };
            mosaic.instances.push(instance(region, &mask, provenance)?);
        }
    }
    if recipe.keep == Keep::Crop {
        crop_to_good(&mut mosaic)?;
    }
    Ok(mosaic)
}

/// Attention, mask and verdict of one region; the kept masks, on the whole canvas.
fn examine(
    recipe: &Recipe,
    mosaic: &Mosaic,
    region: &Region,
    levels: &[super::capture::LevelMap],
    result: &mut RegionResult,
) -> Result<Vec<BinaryMask>> {
    let size = region.bbox.size();
    let maps: Vec<(Size, &[f32])> =
        levels.iter().map(|l| (l.size, l.data.as_slice())).collect();
    result.attention = aggregate(&maps, size)?;
    result.threshold = recipe.threshold.level(&result.attention);
    let mut mask = recipe.threshold.apply(&result.attention, size)?;
    if let Some(refine) = &recipe.refine {
        let guide = cut(&mosaic.rgb, mosaic.size, region.bbox);
        mask = refine.apply(&mask, &guide)?;
    }
    let (verdict, masks) = filter_region(
        &recipe.filter,
        &mask,
        region.bbox,
        region.own,
        mosaic.size,
        recipe.base(),
    )?;
    result.verdict = verdict;
    result.mask = Some(mask);
    Ok(masks)
}

/// A kept mask as an instance; its score is the mean attention inside it.
fn instance(
    region: &RegionResult,
    mask: &BinaryMask,
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
