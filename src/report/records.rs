//! Records as the page's script reads them: pictures, outlines and text.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figures::reason;
use super::pictures;
use crate::bank::format::FOREGROUND;
use crate::bank::{InstanceRecord, MosaicRecord};
use crate::error::Result;
use crate::geometry::{PixelBox, Size};
use crate::mask::{BinaryMask, Rle};
use crate::record::{Region, RegionTrace};

/// Longest side of an instance's picture, pixels.
const INSTANCE_PIXELS: u32 = 96;

/// A mosaic as the page's script reads it. Outlines and boxes are in the mosaic's own pixels.
#[derive(Serialize)]
pub(super) struct PageMosaic {
    id: String,
    size: Size,
    /// JPEG, base64.
    picture: String,
    uses: u32,
    seed: String,
    model: String,
    weights: String,
    recipe: String,
    /// Device, type and threads, where its record says all that `mosaicbank reproduce` needs.
    made_on: Option<String>,
    regions: Vec<PageRegion>,
    objects: Vec<PageObject>,
}

#[derive(Serialize)]
pub(super) struct PageRegion {
    #[serde(rename = "box")]
    bbox: PixelBox,
    prompt: String,
    category: u32,
    verdict: String,
    /// The verdict without its numbers; none for a region with an instance.
    reason: Option<String>,
    trace: Option<PageTrace>,
}

/// How a region came to its verdict.
#[derive(Serialize)]
pub(super) struct PageTrace {
    /// The part of the picture that its instance may lie in.
    own: PixelBox,
    /// Cells of the attention map.
    cells: Size,
    /// Row-major, a byte per cell, base64.
    levels: String,
    threshold: f32,
    /// Outline of the cells above the threshold, in cells.
    above: String,
    /// Outline of the refined mask, in pixels of the region.
    refined: String,
    /// Where in the prompt the words stand that the attention is of: characters from and to.
    subject: Option<[u32; 2]>,
    guidance: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct PageObject {
    category: u32,
    #[serde(rename = "box")]
    bbox: PixelBox,
    area: u64,
    score: f32,
    region: u32,
    outline: String,
}

/// An instance as the page's script reads it. Its outline is in the crop's own pixels.
#[derive(Serialize)]
pub(super) struct PageInstance {
    id: String,
    category: u32,
    size: Size,
    picture: String,
    outline: String,
    area: u64,
    score: f32,
    scores: BTreeMap<String, f32>,
    uses: u32,
    /// The mosaic that it is from; empty for labelled data.
    mosaic: String,
    region: u32,
    source: String,
    prompt: String,
}

pub(super) fn page_mosaic(m: MosaicRecord, uses: u32, pixels: u32) -> Result<PageMosaic> {
    let scale = pictures::scale(m.size, pixels);
    let objects = m
        .instances
        .iter()
        .map(|i| {
            Ok(PageObject {
                category: i.category,
                bbox: i.bbox,
                area: i.area,
                score: i.score,
                region: i.region,
                outline: pictures::outline(&i.mask, scale)?,
            })
        })
        .collect::<Result<_>>()?;
    let regions = m
        .regions
        .into_iter()
        .map(|r| {
            let trace = r.trace.as_ref().map(|w| page_trace(&r, w, scale));
            Ok(PageRegion {
                trace: trace.transpose()?,
                bbox: r.bbox,
                prompt: r.prompt,
                category: r.category,
                reason: (!r.verdict.is_kept()).then(|| reason(&r.verdict)),
                verdict: r.verdict.to_string(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(PageMosaic {
        id: m.id.to_string(),
        size: m.size,
        picture: pictures::thumbnail(m.image, m.size, pixels)?,
        uses,
        seed: m.seed.to_string(),
        made_on: m.generation.map(|made| {
            format!(
                "{} in {}, {} thread(s)",
                made.device, made.dtype, made.threads
            )
        }),
        model: m.model,
        weights: m.weights,
        recipe: m.recipe,
        regions,
        objects,
    })
}

fn page_trace(region: &Region<u32>, trace: &RegionTrace, scale: f64) -> Result<PageTrace> {
    let map = &trace.attention;
    let above = map
        .levels()
        .iter()
        .map(|&level| u8::from(f32::from(level) > 255.0 * trace.threshold))
        .collect();
    let above = Rle::encode(&BinaryMask::from_vec(map.size(), above)?)?;
    let planned = region.subject != [0, 0];
    Ok(PageTrace {
        own: region.own,
        cells: map.size(),
        levels: pictures::base64(map.levels()),
        threshold: trace.threshold,
        // Cells are large on the page: none is rounded off.
        above: pictures::outline(&above, 0.0)?,
        refined: pictures::outline(&trace.refined, scale)?,
        subject: planned.then_some(region.subject),
        guidance: planned.then_some(region.guidance),
    })
}

pub(super) fn page_instance(i: InstanceRecord, uses: u32) -> Result<PageInstance> {
    let solid = i.alpha.iter().map(|&a| u8::from(a > FOREGROUND)).collect();
    let mask = Rle::encode(&BinaryMask::from_vec(i.size, solid)?)?;
    Ok(PageInstance {
        id: i.id.to_string(),
        category: i.category,
        size: i.size,
        picture: pictures::thumbnail(i.image, i.size, INSTANCE_PIXELS)?,
        outline: pictures::outline(&mask, pictures::scale(i.size, INSTANCE_PIXELS))?,
        area: i.area,
        score: i.score,
        scores: i.scores,
        uses,
        mosaic: i.provenance.mosaic,
        region: i.provenance.region,
        source: i.provenance.model,
        prompt: i.provenance.prompt,
    })
}
