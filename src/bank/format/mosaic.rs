//! Mosaics in frames.

use super::super::codec::{self, Codec, put_varint, take_varint};
use super::super::index::Kind;
use super::frame::{Frame, PLAIN_VERSION, frame, parsed};
use super::{CROP_MARGIN, InstanceRecord, crop};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::Rle;
use crate::record::stored::MosaicMeta;
use crate::record::{Mosaic, Region, identity};

/// A mosaic as a bank keeps it: categories are indices into the bank's table.
pub type MosaicRecord = Mosaic<u32>;

impl MosaicRecord {
    /// Checks what [`Mosaic::validate`] checks, and that the picture is there and within the
    /// limits, and every category in a table of `categories`.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate_in(&self, categories: usize) -> Result<()> {
        codec::check_size("mosaic", self.size)?;
        if let Some(generation) = &self.generation {
            codec::check_size("mosaic canvas", generation.canvas)?;
        }
        self.validate()?;
        self.validate_picture()?;
        let of_regions = self.regions.iter().map(|r| r.category);
        let of_instances = self.instances.iter().map(|i| i.category);
        match of_regions.chain(of_instances).max() {
            Some(largest) if largest as usize >= categories => Err(Error::value(
                format!("mosaic {}: category", self.id),
                format!("an index below {categories}"),
                largest,
            )),
            _ => Ok(()),
        }
    }

    /// Its instances as crops for pasting, with [`CROP_MARGIN`] pixels around the box.
    pub fn crops(&self) -> Vec<InstanceRecord> {
        self.instances
            .iter()
            .enumerate()
            .map(|(i, instance)| {
                let b = instance.bbox;
                let outer = PixelBox::new(
                    b.x0.saturating_sub(CROP_MARGIN),
                    b.y0.saturating_sub(CROP_MARGIN),
                    (b.x1 + CROP_MARGIN).min(self.size.width),
                    (b.y1 + CROP_MARGIN).min(self.size.height),
                );
                InstanceRecord {
                    id: identity::instance(self.id, i as u32),
                    category: instance.category,
                    size: outer.size(),
                    image: crop(&self.image, self.size, outer, 3),
                    alpha: crop_mask(&instance.mask, outer),
                    bbox: b,
                    canvas: self.size,
                    area: instance.area,
                    score: instance.score,
                    scores: instance.scores.clone(),
                    provenance: self.provenance(instance),
                }
            })
            .collect()
    }

    /// The frame.
    ///
    /// # Errors
    /// [`Error::Value`] when it is beyond the limits, [`Error::Backend`] when coding fails.
    pub fn encode(&self, codec: Codec) -> Result<Vec<u8>> {
        let mut masks = Vec::new();
        for instance in &self.instances {
            put_varint(&mut masks, instance.mask.counts().len() as u64);
            for &n in instance.mask.counts() {
                put_varint(&mut masks, u64::from(n));
            }
        }
        let image = codec::encode(codec, &self.image, self.size)?;
        frame(
            (Kind::Mosaic, PLAIN_VERSION),
            codec,
            self.size,
            &MosaicMeta::of(self),
            &masks,
            &image,
        )
    }

    /// The regions of a frame; its picture and masks are not decoded.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn decode_regions(bytes: &[u8]) -> Result<Vec<Region<u32>>, String> {
        let f = Frame::parse(bytes)?;
        f.expect(Kind::Mosaic)?;
        Ok(f.meta::<MosaicMeta>()?.regions())
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let f = Frame::parse(bytes)?;
        f.expect(Kind::Mosaic)?;
        let mut masks = f.masks;
        let meta: MosaicMeta = f.meta()?;
        let mut mosaic = meta.mosaic(f.size, || take_rle(&mut masks, f.size))?;
        if !masks.is_empty() {
            return Err("more masks than instances".into());
        }
        mosaic.image = f.image()?;
        Ok(mosaic)
    }
}

fn take_rle(bytes: &mut &[u8], size: Size) -> Option<Rle> {
    let n = take_varint(bytes)?;
    // Each run takes a byte at least, so this bounds the allocation by the input.
    if n > bytes.len() as u64 {
        return None;
    }
    let mut counts = Vec::with_capacity(n as usize);
    for _ in 0..n {
        counts.push(u32::try_from(take_varint(bytes)?).ok()?);
    }
    Rle::new(size, &counts).ok()
}

/// The part of a mask inside `part` as a row-major plane of 0 and 255.
fn crop_mask(rle: &Rle, part: PixelBox) -> Vec<u8> {
    let w = part.width() as usize;
    let mut out = vec![0u8; part.size().area() as usize];
    for run in rle.columns() {
        if run.x < part.x0 || run.x >= part.x1 {
            continue;
        }
        let column = (run.x - part.x0) as usize;
        for y in run.y0.max(part.y0)..run.y1.min(part.y1) {
            if let Some(v) = out.get_mut((y - part.y0) as usize * w + column) {
                *v = 255;
            }
        }
    }
    out
}

/// The frame with the metadata of `mosaic`, its coded image untouched.
pub(in crate::bank) fn with_meta_of_mosaic(
    old: &[u8],
    mosaic: &MosaicRecord,
) -> Result<Vec<u8>> {
    let f = parsed(old)?;
    frame(
        (Kind::Mosaic, PLAIN_VERSION),
        f.codec,
        f.size,
        &MosaicMeta::of(mosaic),
        f.masks,
        f.image,
    )
}
