//! From decoded canvases with what was captured of them to records of mosaics.

use rayon::prelude::*;

use super::canvas::Canvas;
use super::denoise::Denoised;
use super::examine::{Examined, examine};
use super::model::ModelId;
use super::planned::planned;
use crate::error::{Error, Result};
use crate::geometry::PixelBox;
use crate::mask::region::cut;
use crate::mask::{BinaryMask, Captured, RegionView, Rle, Tools, Verdict};
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
    /// Kind of the mask source that the mask comes from; `None` without a mask.
    pub source: Option<&'static str>,
    /// The source's soft map (for `attention` the attention map) of the region's size, row-major,
    /// 0..1; empty without a mask.
    pub attention: Vec<f32>,
    /// Refined mask of the region's size, before the checks.
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

/// What was found on a region.
struct Found {
    /// Index of the region on the canvas.
    planned: u32,
    bbox: PixelBox,
    own: PixelBox,
    maps: RegionMaps,
    /// The soft map above this is the first mask, 0..1.
    threshold: f32,
    verdict: Verdict,
    /// The kept objects, each mask as large as the picture, with their scores.
    objects: Vec<(BinaryMask, Scores)>,
    /// For each check the best score of an object, kept or not.
    scores: Scores,
}

/// Labels decoded canvases, all of them through each stage of the recipe together.
pub(super) fn label(
    made_by: &MadeBy,
    recipe: &Recipe,
    recipe_hash: &str,
    canvases: &[Canvas],
    denoised: Vec<Denoised>,
    tools: &Tools,
) -> Result<Vec<Labelled>> {
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
            finish(made_by, recipe, recipe_hash, canvas, picture, found)
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
    made_by: &MadeBy,
    recipe: &Recipe,
    recipe_hash: &str,
    canvas: &Canvas,
    denoised: Denoised,
    examined: Vec<Examined>,
) -> Result<Labelled> {
    let mut rgb = denoised.rgb;
    let mut found = Vec::with_capacity(canvas.regions.len());
    let mut examined = examined.into_iter();
    for (i, region) in canvas.regions.iter().enumerate() {
        let mut here = Found {
            planned: i as u32,
            bbox: region.bbox,
            own: region.own,
            maps: RegionMaps::default(),
            threshold: 0.0,
            verdict: Verdict::NoAttention,
            objects: Vec::new(),
            scores: Scores::new(),
        };
        if let Some(examined) = examined.next() {
            if let Some((source, proposal)) = examined.proposal {
                here.maps.source = Some(source);
                here.maps.attention = proposal.soft;
                here.threshold = proposal.threshold;
            }
            here.maps.mask = examined.mask;
            here.verdict = examined.verdict;
            here.objects = examined.objects;
            here.scores = examined.scores;
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
        for (mask, scores) in &here.objects {
            let at = record.regions.len() as u32;
            let category = region.category.clone();
            record.instances.push(Instance {
                scores: scores.clone(),
                ..instance(&here, category, mask, at)?
            });
        }
        let subject = &region.subject;
        record.regions.push(record::Region {
            bbox: here.bbox,
            own: here.own,
            prompt: subject.prompt.clone(),
            subject: [subject.span.start as u32, subject.span.end as u32],
            guidance: region.guidance,
            category: region.category.clone(),
            trace: trace(&here)?,
            scores: here.scores,
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

/// A kept mask as an instance; its score is the mean of the soft map inside it.
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
        here.objects.clear();
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
            here.objects = here
                .objects
                .into_iter()
                .map(|(m, scores)| Ok((m.crop(window)?, scores)))
                .collect::<Result<_>>()?;
            here.bbox = inside(seen, window);
            here.own = inside(here.own, window);
            Ok(here)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::canvas::Region;
    use super::super::layout::Part;
    use super::super::prompt::Subject;
    use super::*;
    use crate::geometry::Size;
    use crate::mask::LevelMap;

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
        let recipe = Recipe {
            height: 64,
            width: 64,
            regions: 4,
            keep,
            refine: Vec::new(),
            ..Recipe::default()
        };
        let captured = (0..4)
            .map(|i| {
                let levels = if i == bad {
                    Vec::new()
                } else {
                    vec![level.clone()]
                };
                let reading = recipe.readings().remove(0);
                vec![Captured { reading, levels }]
            })
            .collect();
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
            captured: Some(captured),
            problem: None,
        };
        let canvases = [canvas];
        label(
            &made_by,
            &recipe,
            "ab",
            &canvases,
            vec![denoised],
            &Tools::default(),
        )
        .unwrap()
        .remove(0)
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
