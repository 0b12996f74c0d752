//! Records: mosaics and instances, and how they are framed in the store.
//!
//! A frame, integers little endian:
//!
//! | byte | holds |
//! | --- | --- |
//! | 0..4 | magic `MBR1` |
//! | 4 | kind: 1 mosaic, 2 instance |
//! | 5 | frame version |
//! | 6 | image codec |
//! | 7 | 0 |
//! | 8..12 | bytes of metadata (JSON) |
//! | 12..16 | bytes of masks (mosaic: RLE counts as base-128 numbers; instance: alpha runs) |
//! | 16..20 | bytes of the image |
//! | 20..24 | width in pixels |
//! | 24..28 | height in pixels |
//! | 28..32 | CRC-32 of everything else |
//! | 32.. | metadata, masks, image |
//!
//! Instances, from frame version 2 on, may have smaller pictures behind the image, each half as
//! high and wide as the one before (rounded up), coded alike; their lengths are in the metadata and
//! count as bytes of the image. Most objects are pasted far smaller than they were made, and
//! decoding is most of what a paste costs.
//!
//! Nothing here trusts its input: every length is checked before it is used.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::codec::{self, Codec, put_varint, take_varint};
use super::index::{Kind, RecordId, u32_le};
use super::trace::{Generation, RegionTrace};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::instance::Provenance;
use crate::mask::Rle;

const MAGIC: &[u8; 4] = b"MBR1";
const VERSION: u8 = 2;
/// The version of frames without smaller pictures: what 1 was.
const PLAIN_VERSION: u8 = 1;
/// Most smaller pictures of an instance.
const MAX_HALVINGS: usize = 3;
/// A picture may be enlarged by 5 / 4 before the next larger one is decoded.
const ENOUGH: (u32, u32) = (4, 5);
/// A picture of fewer pixels is not halved: it is decoded in no time.
const LEAST_HALVED: u64 = 32 * 32;
const HEADER: usize = 32;
/// Most bytes of JSON in a record.
const MAX_META: usize = 4 << 20;
/// Most bytes of a frame.
pub const MAX_FRAME: usize = 256 << 20;
/// Pixels of context kept around an object's box in its crop, for soft blending.
pub const CROP_MARGIN: u32 = 4;
/// Alpha above this is foreground (X-Paste).
pub const FOREGROUND: u8 = 128;
/// The verdict of a region whose instance was kept.
pub const KEPT: &str = "kept";

/// One region of a mosaic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Its rectangle on the canvas, in pixels.
    #[serde(rename = "box")]
    pub bbox: PixelBox,
    /// The prompt.
    pub prompt: String,
    /// Index into the bank's category table.
    pub category: u32,
    /// [`KEPT`], or why the region has no instance.
    pub verdict: String,
    /// How it came to that, where it is known.
    #[serde(default, alias = "way", skip_serializing_if = "Option::is_none")]
    pub trace: Option<RegionTrace>,
}

/// One object on a mosaic.
#[derive(Debug, Clone, PartialEq)]
pub struct MosaicInstance {
    /// Index into the bank's category table.
    pub category: u32,
    /// The mask, on the whole canvas.
    pub mask: Rle,
    /// The tight box around the mask, in pixels.
    pub bbox: PixelBox,
    /// Number of mask pixels.
    pub area: u64,
    /// Mean attention inside the mask, 0..1.
    pub score: f32,
    /// Index of its region.
    pub region: u32,
}

/// A whole canvas as the bank keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct MosaicRecord {
    /// See [`MosaicRecord::id_of`].
    pub id: RecordId,
    /// Height and width of the canvas.
    pub size: Size,
    /// `u8 [H, W, 3]`, RGB.
    pub image: Vec<u8>,
    /// The regions.
    pub regions: Vec<Region>,
    /// The objects that passed the filter.
    pub instances: Vec<MosaicInstance>,
    /// Name of the model directory (or hub id).
    pub model: String,
    /// SHA-256 over the weights files, hex.
    pub weights: String,
    /// Hash of the resolved recipe, hex.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// How to make it again, where it is known.
    pub generation: Option<Generation>,
}

/// One object, cropped, as the bank keeps it for pasting.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRecord {
    /// See [`InstanceRecord::id_of_mosaic`] and [`InstanceRecord::id_of_pixels`].
    pub id: RecordId,
    /// Index into the bank's category table.
    pub category: u32,
    /// Height and width of the crop.
    pub size: Size,
    /// `u8 [h, w, 3]`, RGB.
    pub image: Vec<u8>,
    /// `u8 [h, w]`; above [`FOREGROUND`] is the object.
    pub alpha: Vec<u8>,
    /// The object's tight box on the image that it was cut from, in pixels.
    pub bbox: PixelBox,
    /// Size of that image.
    pub canvas: Size,
    /// Number of foreground pixels.
    pub area: u64,
    /// Mean attention inside the mask, 0..1 (1 for labelled data).
    pub score: f32,
    /// Other scores by name (`clip`, `similarity`, ...).
    pub scores: BTreeMap<String, f32>,
    /// Where it came from.
    pub provenance: Provenance,
}

#[derive(Serialize, Deserialize)]
struct MosaicMeta {
    id: String,
    regions: Vec<Region>,
    instances: Vec<MosaicInstanceMeta>,
    model: String,
    weights: String,
    recipe: String,
    seed: u64,
    #[serde(default, alias = "making", skip_serializing_if = "Option::is_none")]
    generation: Option<Generation>,
}

#[derive(Serialize, Deserialize)]
struct MosaicInstanceMeta {
    category: u32,
    #[serde(rename = "box")]
    bbox: PixelBox,
    area: u64,
    score: f32,
    region: u32,
}

#[derive(Serialize, Deserialize)]
struct InstanceMeta {
    id: String,
    category: u32,
    #[serde(rename = "box")]
    bbox: PixelBox,
    canvas: Size,
    area: u64,
    score: f32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    scores: BTreeMap<String, f32>,
    provenance: Provenance,
    /// Bytes of the smaller pictures behind the image, from large to small.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    smaller: Vec<u32>,
}

fn truncate(hash: Sha256) -> RecordId {
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    RecordId(id)
}

impl MosaicRecord {
    /// The id of the mosaic that `recipe` and `weights` (hashes, hex) make of `seed`: the same
    /// mosaic has the same id whoever made it, so writing it twice changes nothing.
    pub fn id_of(recipe: &str, weights: &str, seed: u64) -> RecordId {
        let mut hash = Sha256::new();
        for part in ["mosaic", recipe, weights] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(seed.to_le_bytes());
        truncate(hash)
    }

    /// The provenance of one of its instances.
    pub fn provenance(&self, instance: &MosaicInstance) -> Provenance {
        Provenance {
            model: self.model.clone(),
            weights: self.weights.clone(),
            prompt: self
                .regions
                .get(instance.region as usize)
                .map(|r| r.prompt.clone())
                .unwrap_or_default(),
            seed: self.seed,
            recipe: self.recipe.clone(),
            mosaic: self.id.to_string(),
            region: instance.region,
        }
    }

    /// Checks that sizes, boxes, masks and regions agree.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self, categories: usize) -> Result<()> {
        codec::check_size("mosaic", self.size)?;
        if self.image.len() as u64 != self.size.area() * 3 {
            return Err(Error::value(
                "mosaic image",
                format!("{} x {} x 3 bytes", self.size.height, self.size.width),
                format!("{} bytes", self.image.len()),
            ));
        }
        let known = |what: &str, category: u32| {
            if category as usize >= categories {
                return Err(Error::value(
                    format!("mosaic {}: {what} category", self.id),
                    format!("an index below {categories}"),
                    category,
                ));
            }
            Ok(())
        };
        if let Some(generation) = &self.generation {
            generation.validate(self.size)?;
        }
        for region in &self.regions {
            known("region", region.category)?;
        }
        for instance in &self.instances {
            known("instance", instance.category)?;
            let what = format!("mosaic {}: instance", self.id);
            if instance.region as usize >= self.regions.len() {
                return Err(Error::value(
                    format!("{what} region"),
                    format!("an index below {}", self.regions.len()),
                    instance.region,
                ));
            }
            if instance.mask.size() != self.size {
                return Err(Error::value(
                    format!("{what} mask size"),
                    format!("{:?}", self.size),
                    format!("{:?}", instance.mask.size()),
                ));
            }
            let Some((bbox, area)) = measure(&instance.mask) else {
                return Err(Error::value(
                    format!("{what} mask"),
                    "runs that cover the canvas, with foreground",
                    format!("{} runs", instance.mask.counts().len()),
                ));
            };
            if (bbox, area) != (instance.bbox, instance.area) {
                return Err(Error::value(
                    format!("{what} box and area"),
                    format!("{:?} and {area}, as its mask has", <[u32; 4]>::from(bbox)),
                    format!(
                        "{:?} and {}",
                        <[u32; 4]>::from(instance.bbox),
                        instance.area
                    ),
                ));
            }
            if !instance.score.is_finite() {
                return Err(Error::value(
                    format!("{what} score"),
                    "a finite number",
                    instance.score,
                ));
            }
        }
        Ok(())
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
                    id: InstanceRecord::id_of_mosaic(self.id, i as u32),
                    category: instance.category,
                    size: outer.size(),
                    image: crop(&self.image, self.size, outer, 3),
                    alpha: crop_mask(&instance.mask, outer),
                    bbox: b,
                    canvas: self.size,
                    area: instance.area,
                    score: instance.score,
                    scores: BTreeMap::new(),
                    provenance: self.provenance(instance),
                }
            })
            .collect()
    }

    fn meta(&self) -> MosaicMeta {
        MosaicMeta {
            id: self.id.to_string(),
            regions: self.regions.clone(),
            instances: self
                .instances
                .iter()
                .map(|i| MosaicInstanceMeta {
                    category: i.category,
                    bbox: i.bbox,
                    area: i.area,
                    score: i.score,
                    region: i.region,
                })
                .collect(),
            model: self.model.clone(),
            weights: self.weights.clone(),
            recipe: self.recipe.clone(),
            seed: self.seed,
            generation: self.generation.clone(),
        }
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
            &self.meta(),
            &masks,
            &image,
        )
    }

    /// The regions of a frame; its picture and masks are not decoded.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn decode_regions(bytes: &[u8]) -> Result<Vec<Region>, String> {
        let f = Frame::parse(bytes)?;
        f.expect(Kind::Mosaic)?;
        Ok(f.meta::<MosaicMeta>()?.regions)
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let f = Frame::parse(bytes)?;
        f.expect(Kind::Mosaic)?;
        let meta: MosaicMeta = f.meta()?;
        let mut masks = f.masks;
        let mut instances = Vec::new();
        for i in meta.instances {
            let mask = take_rle(&mut masks, f.size).ok_or("damaged mask")?;
            if measure(&mask) != Some((i.bbox, i.area)) {
                return Err("a mask does not agree with its box and area".into());
            }
            if i.region as usize >= meta.regions.len() || !i.score.is_finite() {
                return Err("an instance without a region or a score".into());
            }
            instances.push(MosaicInstance {
                category: i.category,
                mask,
                bbox: i.bbox,
                area: i.area,
                score: i.score,
                region: i.region,
            });
        }
        if !masks.is_empty() {
            return Err("more masks than instances".into());
        }
        Ok(Self {
            id: meta.id.parse().map_err(|e: Error| e.to_string())?,
            size: f.size,
            image: f.image()?,
            regions: meta.regions,
            instances,
            model: meta.model,
            weights: meta.weights,
            recipe: meta.recipe,
            seed: meta.seed,
            generation: meta.generation,
        })
    }
}

impl InstanceRecord {
    /// The id of instance number `index` of a mosaic.
    pub fn id_of_mosaic(mosaic: RecordId, index: u32) -> RecordId {
        let mut hash = Sha256::new();
        hash.update(b"instance of mosaic");
        hash.update(mosaic.0);
        hash.update(index.to_le_bytes());
        truncate(hash)
    }

    /// The id of an imported instance: a hash of its category's name and its pixels.
    pub fn id_of_pixels(category: &str, size: Size, image: &[u8], alpha: &[u8]) -> RecordId {
        let mut hash = Sha256::new();
        hash.update(b"instance of pixels");
        hash.update((category.len() as u64).to_le_bytes());
        hash.update(category);
        hash.update(size.height.to_le_bytes());
        hash.update(size.width.to_le_bytes());
        hash.update(image);
        hash.update(alpha);
        truncate(hash)
    }

    /// Checks that sizes agree, and that there is a foreground.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self, categories: usize) -> Result<()> {
        let what = |field: &str| format!("instance {}: {field}", self.id);
        codec::check_size("instance crop", self.size)?;
        if self.image.len() as u64 != self.size.area() * 3
            || self.alpha.len() as u64 != self.size.area()
        {
            return Err(Error::value(
                what("image and alpha"),
                format!(
                    "{h} x {w} x 3 and {h} x {w} bytes",
                    h = self.size.height,
                    w = self.size.width
                ),
                format!("{} and {} bytes", self.image.len(), self.alpha.len()),
            ));
        }
        if self.category as usize >= categories {
            return Err(Error::value(
                what("category"),
                format!("an index below {categories}"),
                self.category,
            ));
        }
        if !self.score.is_finite() || self.scores.values().any(|s| !s.is_finite()) {
            return Err(Error::value(what("score"), "a finite number", self.score));
        }
        let area = foreground(&self.alpha);
        if area == 0 || area != self.area {
            return Err(Error::value(
                what("area"),
                format!("its {area} foreground pixels, at least 1"),
                self.area,
            ));
        }
        Ok(())
    }

    fn meta(&self, smaller: Vec<u32>) -> InstanceMeta {
        InstanceMeta {
            id: self.id.to_string(),
            category: self.category,
            bbox: self.bbox,
            canvas: self.canvas,
            area: self.area,
            score: self.score,
            scores: self.scores.clone(),
            provenance: self.provenance.clone(),
            smaller,
        }
    }

    /// The frame.
    ///
    /// # Errors
    /// [`Error::Value`] when it is beyond the limits, [`Error::Backend`] when coding fails.
    pub fn encode(&self, codec: Codec) -> Result<Vec<u8>> {
        let mut alpha = Vec::new();
        codec::encode_runs(&mut alpha, &self.alpha);
        let mut image = codec::encode(codec, &self.image, self.size)?;
        let mut smaller = Vec::new();
        let (mut picture, mut size) = (Cow::Borrowed(&self.image), self.size);
        while smaller.len() < MAX_HALVINGS && size.area() >= LEAST_HALVED {
            picture = Cow::Owned(halved::<3>(&picture, size));
            size = half(size);
            let coded = codec::encode(codec, &picture, size)?;
            smaller.push(coded.len() as u32);
            image.extend_from_slice(&coded);
        }
        frame(
            (Kind::Instance, version_with(&smaller)),
            codec,
            self.size,
            &self.meta(smaller),
            &alpha,
            &image,
        )
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::decode_near(bytes, &mut |record| Some(record.size))
    }

    /// Decodes a frame, with the smallest of its pictures that is about as large as `want` says.
    ///
    /// `want` is given the record without its picture. What comes back has the chosen picture's
    /// `size`, `image` and `alpha`, and everything else as it was stored; when `want` gives `None`,
    /// `image` and `alpha` stay empty.
    ///
    /// # Errors
    /// A message saying what is wrong with it.
    pub fn decode_near(
        bytes: &[u8],
        want: &mut dyn FnMut(&Self) -> Option<Size>,
    ) -> Result<Self, String> {
        let f = Frame::parse(bytes)?;
        f.expect(Kind::Instance)?;
        let meta: InstanceMeta = f.meta()?;
        let alpha =
            codec::decode_runs(f.masks, f.size.area() as usize).ok_or("damaged alpha plane")?;
        if meta.area == 0 || foreground(&alpha) != meta.area {
            return Err("the alpha plane does not agree with the area".into());
        }
        let pictures = f.pictures(&meta.smaller)?;
        let mut record = Self {
            id: meta.id.parse().map_err(|e: Error| e.to_string())?,
            category: meta.category,
            size: f.size,
            image: Vec::new(),
            alpha: Vec::new(),
            bbox: meta.bbox,
            canvas: meta.canvas,
            area: meta.area,
            score: meta.score,
            scores: meta.scores,
            provenance: meta.provenance,
        };
        let Some(wanted) = want(&record) else {
            return Ok(record);
        };
        record.alpha = alpha;
        let mut chosen = 0;
        while chosen + 1 < pictures.len() {
            let next = half(record.size);
            let enough = |have: u32, want: u32| have * ENOUGH.1 >= want * ENOUGH.0;
            if !enough(next.height, wanted.height) || !enough(next.width, wanted.width) {
                break;
            }
            record.alpha = halved::<1>(&record.alpha, record.size);
            record.size = next;
            chosen += 1;
        }
        let coded = pictures.get(chosen).copied().unwrap_or_default();
        record.image = codec::decode(f.codec, coded, record.size)?;
        Ok(record)
    }
}

/// The frame version of an instance.
const fn version_with(smaller: &[u32]) -> u8 {
    if smaller.is_empty() {
        PLAIN_VERSION
    } else {
        VERSION
    }
}

/// Half as high and wide, rounded up.
const fn half(size: Size) -> Size {
    Size::new(size.height.div_ceil(2), size.width.div_ceil(2))
}

/// A row-major plane (`C` bytes per pixel) at half its size: means of 2 x 2 pixels, the last row
/// and column held where the size is odd.
fn halved<const C: usize>(data: &[u8], size: Size) -> Vec<u8> {
    let stride = size.width as usize * C;
    let mut out = vec![0u8; half(size).area() as usize * C];
    let rows = out.chunks_exact_mut((half(size).width as usize * C).max(1));
    for (to, pair) in rows.zip(data.chunks((2 * stride).max(1))) {
        let (above, below) = pair.split_at(stride.min(pair.len()));
        let below = if below.is_empty() { above } else { below };
        let mut to = to.chunks_exact_mut(C);
        let (mut a, mut b) = (above.chunks_exact(2 * C), below.chunks_exact(2 * C));
        // `to` comes last: a zip takes from what comes first before it finds the end of the others.
        for ((a, b), to) in (&mut a).zip(&mut b).zip(&mut to) {
            for c in 0..C {
                let sum = u16::from(a[c]) + u16::from(a[c + C]);
                let under = u16::from(b[c]) + u16::from(b[c + C]);
                to[c] = ((sum + under + 2) / 4) as u8;
            }
        }
        // The odd column.
        if let Some(to) = to.next() {
            for ((to, &a), &b) in to.iter_mut().zip(a.remainder()).zip(b.remainder()) {
                *to = u16::midpoint(u16::from(a), u16::from(b) + 1) as u8;
            }
        }
    }
    out
}

/// Number of foreground pixels of an alpha plane.
fn foreground(alpha: &[u8]) -> u64 {
    alpha
        .chunks(4096)
        .map(|c| c.iter().map(|&a| u32::from(a > FOREGROUND)).sum::<u32>() as u64)
        .sum()
}

/// A parsed frame, its checksum verified.
pub(super) struct Frame<'a> {
    kind: u8,
    codec: Codec,
    size: Size,
    meta: &'a [u8],
    masks: &'a [u8],
    image: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let header = bytes.get(..HEADER).ok_or("shorter than a header")?;
        let field = |at| u32_le(header, at).unwrap_or_default();
        if header.get(..4) != Some(MAGIC) {
            return Err("not a record (no magic MBR1)".into());
        }
        let version = header.get(5).copied().unwrap_or_default();
        if version > VERSION {
            return Err(format!(
                "frame version {version}, this mosaicbank knows {VERSION}"
            ));
        }
        let [meta, masks, image] = [8, 12, 16].map(|at| field(at) as usize);
        let total = HEADER as u64 + meta as u64 + masks as u64 + image as u64;
        if total != bytes.len() as u64 || meta > MAX_META {
            return Err(format!("{} bytes, its header says {total}", bytes.len()));
        }
        if checksum(bytes) != field(28) {
            return Err("wrong checksum".into());
        }
        let size = Size::new(field(24), field(20));
        codec::check_size("image", size).map_err(|e| e.to_string())?;
        let tag = header.get(6).copied().unwrap_or_default();
        let body = bytes.get(HEADER..).unwrap_or_default();
        let (meta, rest) = body.split_at_checked(meta).ok_or("damaged lengths")?;
        let (masks, image) = rest.split_at_checked(masks).ok_or("damaged lengths")?;
        Ok(Self {
            kind: header.get(4).copied().unwrap_or_default(),
            codec: Codec::from_tag(tag).ok_or_else(|| format!("unknown image codec {tag}"))?,
            size,
            meta,
            masks,
            image,
        })
    }

    fn expect(&self, kind: Kind) -> Result<(), String> {
        if self.kind != kind as u8 {
            return Err(format!("not a {} (kind {})", kind.name(), self.kind));
        }
        Ok(())
    }

    fn meta<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(self.meta).map_err(|e| format!("damaged metadata: {e}"))
    }

    fn image(&self) -> Result<Vec<u8>, String> {
        codec::decode(self.codec, self.image, self.size)
    }

    /// The coded pictures of an instance, from large to small.
    fn pictures(&self, smaller: &[u32]) -> Result<Vec<&'a [u8]>, String> {
        let behind: u64 = smaller.iter().map(|&n| u64::from(n)).sum();
        let first = (self.image.len() as u64)
            .checked_sub(behind)
            .filter(|_| smaller.len() <= MAX_HALVINGS)
            .ok_or("damaged lengths of the smaller pictures")?;
        let mut rest = self.image;
        let lengths =
            std::iter::once(first as usize).chain(smaller.iter().map(|&n| n as usize));
        lengths
            .map(|n| {
                let (picture, left) = rest.split_at_checked(n)?;
                rest = left;
                Some(picture)
            })
            .collect::<Option<_>>()
            .ok_or_else(|| "damaged lengths of the smaller pictures".into())
    }
}

fn checksum(frame: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(frame.get(..28).unwrap_or_default());
    crc.update(frame.get(HEADER..).unwrap_or_default());
    crc.finalize()
}

fn frame(
    (kind, version): (Kind, u8),
    codec: Codec,
    size: Size,
    meta: &impl Serialize,
    masks: &[u8],
    image: &[u8],
) -> Result<Vec<u8>> {
    let meta = serde_json::to_vec(meta).map_err(|e| Error::backend("encoding a record", e))?;
    let total = HEADER + meta.len() + masks.len() + image.len();
    if meta.len() > MAX_META || total > MAX_FRAME {
        return Err(Error::value(
            "record",
            format!("at most {MAX_META} bytes of metadata and {MAX_FRAME} in all"),
            format!("{} and {total}", meta.len()),
        ));
    }
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[kind as u8, version, codec.tag(), 0]);
    for n in [meta.len(), masks.len(), image.len()] {
        out.extend_from_slice(&(n as u32).to_le_bytes());
    }
    out.extend_from_slice(&size.width.to_le_bytes());
    out.extend_from_slice(&size.height.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&meta);
    out.extend_from_slice(masks);
    out.extend_from_slice(image);
    let crc = checksum(&out);
    if let Some(place) = out.get_mut(28..32) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    Ok(out)
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

/// Tight box and area of a mask; `None` when there is no foreground.
fn measure(rle: &Rle) -> Option<(PixelBox, u64)> {
    Some((rle.bbox()?, rle.area()))
}

/// The part of a row-major image (`channels` bytes per pixel) inside `part`.
pub(super) fn crop(data: &[u8], size: Size, part: PixelBox, channels: usize) -> Vec<u8> {
    let stride = size.width as usize * channels;
    let (from, to) = (part.x0 as usize * channels, part.x1 as usize * channels);
    let mut out = Vec::with_capacity(part.size().area() as usize * channels);
    for row in data
        .chunks_exact(stride.max(1))
        .skip(part.y0 as usize)
        .take(part.height() as usize)
    {
        out.extend_from_slice(row.get(from..to).unwrap_or_default());
    }
    out
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

/// Checks and decodes any frame; the body of the fuzz target.
///
/// # Errors
/// A message saying what is wrong with it.
pub fn decode_any(bytes: &[u8]) -> Result<Kind, String> {
    match Frame::parse(bytes)?.kind {
        1 => MosaicRecord::decode(bytes).map(|_| Kind::Mosaic),
        2 => InstanceRecord::decode(bytes).map(|_| Kind::Instance),
        kind => Err(format!("unknown kind {kind}")),
    }
}

/// The frame with the metadata of `mosaic`, its coded image untouched.
pub(super) fn with_meta_of_mosaic(old: &[u8], mosaic: &MosaicRecord) -> Result<Vec<u8>> {
    let f = parsed(old)?;
    frame(
        (Kind::Mosaic, PLAIN_VERSION),
        f.codec,
        f.size,
        &mosaic.meta(),
        f.masks,
        f.image,
    )
}

/// The frame with the metadata of `instance`, its coded image untouched.
pub(super) fn with_meta_of_instance(old: &[u8], instance: &InstanceRecord) -> Result<Vec<u8>> {
    let f = parsed(old)?;
    let damaged = |found| Error::value("record", "valid metadata", found);
    let smaller = f.meta::<InstanceMeta>().map_err(damaged)?.smaller;
    frame(
        (Kind::Instance, version_with(&smaller)),
        f.codec,
        f.size,
        &instance.meta(smaller),
        f.masks,
        f.image,
    )
}

fn parsed(bytes: &[u8]) -> Result<Frame<'_>> {
    Frame::parse(bytes).map_err(|found| Error::value("record", "a valid frame", found))
}

/// Sets a frame's checksum right, for tests and fuzzing of what lies behind it.
#[doc(hidden)]
pub fn reseal(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    if let Some(place) = bytes.get_mut(28..32) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soft picture with a disk in it.
    fn instance(size: Size) -> InstanceRecord {
        let (h, w) = (f64::from(size.height), f64::from(size.width));
        let pixels = || {
            (0..size.height).flat_map(move |y| {
                (0..size.width).map(move |x| (f64::from(y) / h, f64::from(x) / w))
            })
        };
        let alpha: Vec<u8> = pixels()
            .map(|(y, x)| 255 * u8::from((y - 0.5).hypot(x - 0.5) < 0.4))
            .collect();
        let image = pixels()
            .flat_map(|(y, x)| [(200.0 * y) as u8, (200.0 * x) as u8, 90])
            .collect();
        let area = foreground(&alpha);
        let id = InstanceRecord::id_of_pixels("thing", size, &alpha, &alpha);
        InstanceRecord {
            id,
            category: 3,
            size,
            image,
            alpha,
            bbox: PixelBox::new(0, 0, size.width, size.height),
            canvas: size,
            area,
            score: 0.5,
            scores: BTreeMap::new(),
            provenance: Provenance {
                model: "m".into(),
                weights: String::new(),
                prompt: String::new(),
                seed: 0,
                recipe: String::new(),
                mosaic: String::new(),
                region: 0,
            },
        }
    }

    #[test]
    fn a_smaller_picture_is_decoded_when_it_is_enough() {
        let size = Size::new(201, 150);
        let whole = instance(size);
        for codec in [Codec::Jpeg, Codec::Qoi, Codec::Raw] {
            let bytes = whole.encode(codec).unwrap();
            let full = InstanceRecord::decode(&bytes).unwrap();
            assert_eq!((full.size, &full.alpha), (size, &whole.alpha));
            for (wanted, expected) in [
                ((201, 150), (201, 150)),
                ((127, 20), (201, 150)),
                ((126, 20), (101, 75)),
                ((60, 46), (51, 38)),
                ((5, 5), (26, 19)),
            ] {
                let wanted = Size::new(wanted.0, wanted.1);
                let near = InstanceRecord::decode_near(&bytes, &mut |r| {
                    assert_eq!((r.size, r.area), (size, whole.area));
                    Some(wanted)
                })
                .unwrap();
                assert_eq!(near.size, Size::new(expected.0, expected.1), "{wanted:?}");
                assert_eq!(near.area, whole.area);
                // The same picture, only smaller.
                let share = foreground(&near.alpha) as f64 / near.size.area() as f64;
                let before = whole.area as f64 / size.area() as f64;
                assert!((share - before).abs() < 0.03, "{share} {before}");
                let reference = instance(near.size);
                let off = near.image.iter().zip(&reference.image);
                let most = off.map(|(a, b)| a.abs_diff(*b)).max();
                assert!(most < Some(16), "{codec:?} {wanted:?} {most:?}");
            }
            let none = InstanceRecord::decode_near(&bytes, &mut |_| None).unwrap();
            assert!(none.image.is_empty() && none.alpha.is_empty());
        }
    }

    #[test]
    fn smaller_pictures_survive_new_metadata_and_lies_are_refused() {
        let whole = instance(Size::new(90, 70));
        let bytes = whole.encode(Codec::Qoi).unwrap();
        assert_eq!(bytes.get(5), Some(&VERSION));
        let mut other = whole.clone();
        other.category = 1;
        let moved = with_meta_of_instance(&bytes, &other).unwrap();
        let near = |b: &[u8]| InstanceRecord::decode_near(b, &mut |_| Some(Size::new(20, 20)));
        let (a, b) = (near(&bytes).unwrap(), near(&moved).unwrap());
        assert_eq!((&a.image, a.size), (&b.image, b.size));
        assert_eq!((b.category, a.size), (1, Size::new(23, 18)));
        // Lengths that are longer than the image.
        let f = Frame::parse(&bytes).unwrap();
        let lie = whole.meta(vec![u32::MAX, 1]);
        let lie = frame((Kind::Instance, 2), f.codec, f.size, &lie, f.masks, f.image).unwrap();
        assert!(near(&lie).unwrap_err().contains("lengths"));
        // A small one has none, and is a frame as version 1 had it.
        let small = instance(Size::new(20, 20)).encode(Codec::Qoi).unwrap();
        assert_eq!(small.get(5), Some(&PLAIN_VERSION));
    }
}
