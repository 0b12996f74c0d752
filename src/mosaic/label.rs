//! From a decoded canvas with its attention to the record of a mosaic.

use super::canvas::{Canvas, Region};
use super::denoise::Denoised;
use super::model::ModelId;
use super::planned::planned;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::{BinaryMask, Rle, Verdict, aggregate, filter_region};
use crate::recipe::{Keep, Recipe};
use crate::record::{
    self, AttentionMap, Generation, Instance, Mosaic, Planned, RegionTrace, Scores,
    fingerprint, identity,
};

/// A mosaic as the labeller leaves it: its record, and what is too large to keep.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// The record.
    pub record: Mosaic,
    /// One for each region of the record.
    pub maps: Vec<RegionMaps>,
    /// Why the picture cannot be used; then there are no instances.
    pub problem: Option<String>,
}

/// What a region's verdict came from, pixel by pixel.
#[derive(Debug, Clone, Default)]
pub struct RegionMaps {
    /// Attention map of the region's size, row-major, 0..1; empty without capture.
    pub attention: Vec<f32>,
    /// Refined mask of the region's size, before the filter; `None` without capture.
    pub mask: Option<BinaryMask>,
}

/// What makes the mosaics of a labeller.
#[derive(Debug, Clone)]
pub(super) struct MadeBy {
    pub model: ModelId,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Type of the weights in memory: `float32`, ...
    pub dtype: &'static str,
    /// Threads that the CPU computes with.
    pub threads: u32,
}

/// The id of the mosaic that a canvas becomes.
pub(super) fn mosaic_id(
    model: &ModelId,
    recipe_hash: &str,
    canvas: &Canvas,
) -> record::RecordId {
    id_of(model, recipe_hash, canvas, &planned(canvas))
}

fn id_of(
    model: &ModelId,
    recipe_hash: &str,
    canvas: &Canvas,
    planned: &[Planned],
) -> record::RecordId {
    identity::mosaic(
        &model.weights,
        recipe_hash,
        canvas.seed,
        canvas.size,
        planned,
    )
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

/// What was found on a region.
struct Found {
    /// Index of the region on the canvas.
    planned: u32,
    bbox: PixelBox,
    own: PixelBox,
    maps: RegionMaps,
    /// Attention above this is the first mask, 0..1.
    threshold: f32,
    verdict: Verdict,
    /// The kept masks, each as large as the picture.
    masks: Vec<BinaryMask>,
}

/// Attention maps to masks, masks to instances.
pub(super) fn label(
    made_by: &MadeBy,
    recipe: &Recipe,
    recipe_hash: &str,
    canvas: &Canvas,
    denoised: Denoised,
) -> Result<Labelled> {
    if denoised.size != canvas.size || denoised.attention.len() != canvas.regions.len() {
        return Err(Error::value(
            "decoded canvas",
            format!("{:?} with {} regions", canvas.size, canvas.regions.len()),
            format!("{:?} with {}", denoised.size, denoised.attention.len()),
        ));
    }
    let mut rgb = denoised.rgb;
    let mut found = Vec::with_capacity(canvas.regions.len());
    for (i, (region, levels)) in canvas.regions.iter().zip(&denoised.attention).enumerate() {
        let mut here = Found {
            planned: i as u32,
            bbox: region.bbox,
            own: region.own,
            maps: RegionMaps::default(),
            threshold: 0.0,
            verdict: Verdict::NoAttention,
            masks: Vec::new(),
        };
        let usable = denoised.problem.is_none()
            && !levels.is_empty()
            && levels.iter().all(|l| l.data.iter().all(|v| v.is_finite()));
        if usable {
            examine(recipe, &rgb, canvas.size, region, levels, &mut here)?;
        }
        found.push(here);
    }
    let mut window = PixelBox::new(0, 0, canvas.size.width, canvas.size.height);
    match recipe.keep {
        Keep::Canvas => drop_unless_all_are_good(&mut found),
        Keep::Crop => {
            let whole = window;
            window = good_part(&found).unwrap_or(whole);
            if window != whole {
                rgb = cut(&rgb, canvas.size, window);
                found = crop(found, window)?;
            }
        }
        Keep::Region => {}
    }
    let planned = planned(canvas);
    let size = window.size();
    let mut record = Mosaic {
        id: id_of(&made_by.model, recipe_hash, canvas, &planned),
        size,
        regions: Vec::with_capacity(found.len()),
        instances: Vec::new(),
        model: made_by.model.name.clone(),
        weights: made_by.model.weights.clone(),
        recipe: recipe_hash.to_owned(),
        seed: canvas.seed,
        generation: Some(Generation {
            canvas: canvas.size,
            window,
            regions: planned,
            device: made_by.device.to_owned(),
            dtype: made_by.dtype.to_owned(),
            threads: made_by.threads,
            pixels: fingerprint(&rgb, size),
        }),
        image: rgb,
    };
    let mut maps = Vec::with_capacity(found.len());
    for here in found {
        let region = &canvas.regions[here.planned as usize];
        for mask in &here.masks {
            let at = record.regions.len() as u32;
            let category = region.category.clone();
            record.instances.push(instance(&here, category, mask, at)?);
        }
        let subject = &region.subject;
        record.regions.push(record::Region {
            bbox: here.bbox,
            own: here.own,
            prompt: subject.prompt.clone(),
            subject: [subject.span.start as u32, subject.span.end as u32],
            guidance: region.guidance,
            category: region.category.clone(),
            scores: Scores::new(),
            trace: trace(&here)?,
            verdict: here.verdict,
        });
        maps.push(here.maps);
    }
    Ok(Labelled {
        record,
        maps,
        problem: denoised.problem,
    })
}

/// How a region came to its verdict; nothing where its attention was not read.
fn trace(found: &Found) -> Result<Option<RegionTrace>> {
    let Some(mask) = &found.maps.mask else {
        return Ok(None);
    };
    Ok(Some(RegionTrace {
        planned: found.planned,
        attention: AttentionMap::shrink(&found.maps.attention, mask.size())?,
        threshold: found.threshold,
        refined: Rle::encode(mask)?,
    }))
}

/// Attention, mask and verdict of one region, and the kept masks on the whole canvas.
fn examine(
    recipe: &Recipe,
    rgb: &[u8],
    canvas: Size,
    region: &Region,
    levels: &[super::capture::LevelMap],
    found: &mut Found,
) -> Result<()> {
    let size = region.bbox.size();
    let maps: Vec<(Size, &[f32])> =
        levels.iter().map(|l| (l.size, l.data.as_slice())).collect();
    let attention = aggregate(&maps, size)?;
    found.threshold = recipe.threshold.level(&attention);
    let mut mask = recipe.threshold.apply(&attention, size)?;
    if let Some(refine) = &recipe.refine {
        let guide = cut(rgb, canvas, region.bbox);
        mask = refine.apply(&mask, &guide)?;
    }
    (found.verdict, found.masks) = filter_region(
        &recipe.filter,
        &mask,
        region.bbox,
        region.own,
        canvas,
        recipe.base(),
    )?;
    found.maps = RegionMaps {
        attention,
        mask: Some(mask),
    };
    Ok(())
}

/// A kept mask as an instance; its score is the mean attention inside it.
fn instance(
    found: &Found,
    category: String,
    mask: &BinaryMask,
    region: u32,
) -> Result<Instance> {
    let rle = Rle::encode(mask)?;
    let width = found.bbox.width() as usize;
    let mut sum = 0f64;
    for run in rle.columns() {
        let x = run.x - found.bbox.x0;
        for y in run.y0 - found.bbox.y0..run.y1 - found.bbox.y0 {
            sum += f64::from(found.maps.attention[y as usize * width + x as usize]);
        }
    }
    let score = (sum / rle.area().max(1) as f64) as f32;
    Instance::of_mask(category, rle, score, region)
        .ok_or_else(|| Error::value("instance mask", "at least one pixel", "none"))
}

/// Where a region failed, no region of the canvas keeps its masks.
fn drop_unless_all_are_good(found: &mut [Found]) {
    let failed = found.iter().filter(|f| !f.verdict.is_kept()).count() as u32;
    if failed == 0 {
        return;
    }
    for here in found.iter_mut().filter(|f| f.verdict.is_kept()) {
        here.verdict = Verdict::CanvasDropped { failed };
        here.masks.clear();
    }
}

/// The largest rectangle of whole region parts that are all good.
fn good_part(found: &[Found]) -> Option<PixelBox> {
    let good: Vec<PixelBox> = found
        .iter()
        .filter(|f| f.verdict.is_kept())
        .map(|f| f.own)
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
    best
}

/// The regions whose own part lies in `window`, in the window's coordinates; what the window cuts
/// away of them goes from their maps, too.
fn crop(found: Vec<Found>, window: PixelBox) -> Result<Vec<Found>> {
    let inside = |b: PixelBox, outer: PixelBox| {
        PixelBox::new(
            b.x0 - outer.x0,
            b.y0 - outer.y0,
            b.x1 - outer.x0,
            b.y1 - outer.y0,
        )
    };
    let shown = found
        .into_iter()
        .filter(|f| f.own.intersect(window) == f.own);
    shown
        .map(|mut here| {
            let seen = here.bbox.intersect(window);
            let part = inside(seen, here.bbox);
            if let Some(mask) = &here.maps.mask {
                let width = here.bbox.width() as usize;
                let columns = part.x0 as usize..part.x1 as usize;
                here.maps.attention = here
                    .maps
                    .attention
                    .chunks_exact(width)
                    .skip(part.y0 as usize)
                    .take(part.height() as usize)
                    .flat_map(|row| &row[columns.clone()])
                    .copied()
                    .collect();
                here.maps.mask = Some(mask.crop(part)?);
            }
            here.masks = here
                .masks
                .iter()
                .map(|m| m.crop(window))
                .collect::<Result<_>>()?;
            here.bbox = inside(seen, window);
            here.own = inside(here.own, window);
            Ok(here)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::capture::LevelMap;
    use super::super::layout::Part;
    use super::super::prompt::Subject;
    use super::*;

    /// A canvas of 2 x 2 regions of 32 px; the region with index `bad` has no attention.
    fn labelled(keep: Keep, bad: usize) -> Labelled {
        let size = Size::new(64, 64);
        let names = ["cup", "dog", "cup", "bus"];
        let regions = names.iter().zip(0u32..).map(|(name, i)| {
            let (x, y) = (32 * (i % 2), 32 * (i / 2));
            let part = Part {
                region: PixelBox::new(x, y, x + 32, y + 32),
                own: PixelBox::new(x, y, x + 32, y + 32),
            };
            let subject = Subject::find(&format!("a {name}"), Some(name)).unwrap();
            Region::new(part, name, subject, 1.0)
        });
        let canvas = Canvas {
            size,
            regions: regions.collect(),
            seed: 5,
        };
        let data = (0..32 * 32)
            .map(|i| f32::from(u8::from((8..24).contains(&(i % 32)))))
            .collect();
        let level = LevelMap {
            size: Size::new(32, 32),
            data,
        };
        let attention = (0..4)
            .map(|i| {
                if i == bad {
                    Vec::new()
                } else {
                    vec![level.clone()]
                }
            })
            .collect();
        let recipe = Recipe {
            height: 64,
            width: 64,
            regions: 4,
            keep,
            refine: None,
            ..Recipe::default()
        };
        let made_by = MadeBy {
            model: ModelId {
                name: "tiny".into(),
                weights: "00".into(),
            },
            device: "cpu",
            dtype: "float32",
            threads: 1,
        };
        let denoised = Denoised {
            rgb: vec![128; 3 * 64 * 64],
            size,
            attention,
            problem: None,
        };
        label(&made_by, &recipe, "ab", &canvas, denoised).unwrap()
    }

    #[test]
    fn regions_are_numbered_as_the_record_has_them_whatever_is_kept() {
        let mut ids = Vec::new();
        for (keep, shown, instances) in [
            (Keep::Canvas, vec![0, 1, 2, 3], 0),
            (Keep::Region, vec![0, 1, 2, 3], 3),
            // The left column is cut away: both its cups, one of them good.
            (Keep::Crop, vec![1, 3], 2),
        ] {
            let Labelled { record, maps, .. } = labelled(keep, 0);
            record.validate().unwrap();
            ids.push(record.id);
            assert_eq!(record.instances.len(), instances, "{keep:?}");
            assert_eq!(maps.len(), record.regions.len());
            let planned = &record.generation.as_ref().unwrap().regions;
            assert_eq!(record.regions.len(), shown.len());
            for (region, at) in record.regions.iter().zip(shown) {
                assert_eq!(region.prompt, planned[at].prompt);
                if let Some(trace) = &region.trace {
                    assert_eq!(trace.planned as usize, at);
                }
            }
            for i in &record.instances {
                let region = &record.regions[i.region as usize];
                assert_eq!(region.category, i.category);
                assert_eq!(region.own.intersect(i.bbox), i.bbox);
                assert_eq!(record.provenance(i).prompt, region.prompt);
                assert_eq!(i.score, 1.0);
            }
        }
        assert!(ids.iter().all(|id| *id == ids[0]));
        let dropped = labelled(Keep::Canvas, 2).record;
        let verdict = Verdict::CanvasDropped { failed: 1 };
        assert_eq!(dropped.regions[0].verdict, verdict);
        assert_eq!(dropped.regions[2].verdict, Verdict::NoAttention);
    }
}
