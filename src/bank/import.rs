//! Instances from elsewhere: labelled images, and pools of RGBA crops (X-Paste, DiverGen).

use std::path::{Path, PathBuf};

use image::{ImageReader, Limits};

use super::codec;
use super::format::{CROP_MARGIN, FOREGROUND, InstanceRecord, crop};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::{BinaryMask, Rle, components};
use crate::record::{Provenance, Scores, identity};

/// The class of a new instance.
#[derive(Debug, Clone, Copy)]
pub struct Class<'a> {
    /// Index into the bank's category table.
    pub index: u32,
    /// Its name.
    pub name: &'a str,
}

/// `b` with `margin` pixels on every side, inside `size`.
fn grown(b: PixelBox, margin: u32, size: Size) -> PixelBox {
    PixelBox::new(
        b.x0.saturating_sub(margin),
        b.y0.saturating_sub(margin),
        (b.x1 + margin).min(size.width),
        (b.y1 + margin).min(size.height),
    )
}

/// An instance from a picture and its alpha plane (`u8 [h, w, 3]` and `[h, w]`, above 128 is the
/// object): its largest component, cut out with a small margin. `source` goes into the
/// provenance as the model.
///
/// # Errors
/// [`Error::Value`] when sizes do not agree, or there is no foreground.
pub fn instance_of(
    class: Class<'_>,
    size: Size,
    image: &[u8],
    alpha: &[u8],
    score: f32,
    source: String,
) -> Result<InstanceRecord> {
    if alpha.len() as u64 != size.area() || image.len() as u64 != size.area() * 3 {
        return Err(Error::value(
            "image and alpha",
            format!(
                "{h} x {w} x 3 and {h} x {w} bytes",
                h = size.height,
                w = size.width
            ),
            format!("{} and {} bytes", image.len(), alpha.len()),
        ));
    }
    let solid = alpha.iter().map(|&a| u8::from(a > FOREGROUND)).collect();
    let largest = components::largest_component(&BinaryMask::from_vec(size, solid)?);
    let (largest, bbox) = largest
        .and_then(|m| {
            let b = m.tight_box()?;
            Some((m, b))
        })
        .ok_or_else(|| Error::value("alpha", "some foreground (above 128)", "none"))?;
    // What is solid but not of the largest component goes; soft edges stay.
    let alpha: Vec<u8> = alpha
        .iter()
        .zip(largest.data())
        .map(|(&a, &keep)| if a > FOREGROUND && keep == 0 { 0 } else { a })
        .collect();
    let outer = grown(bbox, CROP_MARGIN, size);
    let (image, alpha) = (crop(image, size, outer, 3), crop(&alpha, size, outer, 1));
    let id = identity::pixels(class.name, outer.size(), &image, &alpha);
    Ok(InstanceRecord {
        id,
        category: class.index,
        size: outer.size(),
        image,
        area: largest.area(),
        alpha,
        bbox,
        canvas: size,
        score,
        scores: Scores::new(),
        provenance: Provenance {
            model: source,
            ..Provenance::default()
        },
    })
}

/// An instance from a labelled image (`u8 [H, W, 3]`): what `mask` covers of it.
///
/// # Errors
/// As [`instance_of`].
pub fn instance_of_mask(
    class: Class<'_>,
    size: Size,
    image: &[u8],
    mask: &Rle,
    source: String,
) -> Result<InstanceRecord> {
    let b = mask
        .bbox()
        .ok_or_else(|| Error::value("mask", "some foreground", "none"))?;
    if mask.size() != size {
        return Err(Error::value(
            "mask size",
            format!("{} x {}, as the image", size.height, size.width),
            mask,
        ));
    }
    let outer = grown(b, CROP_MARGIN, size);
    let plane = mask.crop(outer)?.decode();
    let alpha: Vec<u8> = plane.data().iter().map(|&v| v * 255).collect();
    let part = crop(image, size, outer, 3);
    let mut instance = instance_of(class, outer.size(), &part, &alpha, 1.0, source)?;
    let i = instance.bbox;
    instance.bbox = PixelBox::new(
        i.x0 + outer.x0,
        i.y0 + outer.y0,
        i.x1 + outer.x0,
        i.y1 + outer.y0,
    );
    instance.canvas = size;
    Ok(instance)
}

/// Reads a picture file, decoded under limits: `u8 [h, w, 3]` and its alpha plane (`None` when it
/// has none).
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`], or [`Error::Format`] when it cannot be decoded.
pub fn read_picture(path: &Path) -> Result<(Size, Vec<u8>, Option<Vec<u8>>)> {
    let io = |e| Error::io(path, e);
    let mut reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(io)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(codec::MAX_SIDE);
    limits.max_image_height = Some(codec::MAX_SIDE);
    limits.max_alloc = Some(codec::MAX_PIXELS * 8);
    reader.limits(limits);
    let bad = |e| Error::format(path, "a picture", e);
    let picture = reader.decode().map_err(bad)?;
    let size = Size::new(picture.height(), picture.width());
    codec::check_size("picture", size)?;
    if !picture.color().has_alpha() {
        return Ok((size, picture.into_rgb8().into_raw(), None));
    }
    let rgba = picture.into_rgba8().into_raw();
    let (pixels, _) = rgba.as_chunks::<4>();
    Ok((
        size,
        pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect(),
        Some(pixels.iter().map(|&[.., a]| a).collect()),
    ))
}

/// One line of an instance pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolEntry {
    /// Index into the category table.
    pub category: u32,
    /// The picture: RGBA, or with a mask beside it.
    pub picture: PathBuf,
    /// A picture whose brightness is the alpha plane.
    pub mask: Option<PathBuf>,
}

/// Reads an instance-pool JSON as X-Paste and DiverGen write it: an object from class to a list
/// of RGBA picture paths. A class is a 0-based index (LVIS id - 1), or a name. A path may begin
/// with `*` (cleaned), or be `picture|mask`; relative ones are below `root`.
///
/// # Errors
/// [`Error::Format`] naming the key, [`Error::UnknownCategory`] for a name or index that is not
/// in `categories`.
pub fn read_pool(
    path: &Path,
    root: &Path,
    categories: &[super::Category],
) -> Result<Vec<PoolEntry>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let pool: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
        .map_err(|e| {
            Error::format(path, "an object from class to a list of picture paths", e)
        })?;
    let mut entries = Vec::new();
    for (key, list) in &pool {
        let category = key
            .parse::<usize>()
            .ok()
            .filter(|&i| i < categories.len())
            .or_else(|| categories.iter().position(|c| c.name == *key))
            .ok_or_else(|| Error::UnknownCategory {
                name: key.clone(),
                place: path.display().to_string(),
                hint: format!("; expected a name, or an index below {}", categories.len()),
            })?;
        let bad = || {
            Error::format(
                path,
                format!("key {key:?}: a list of picture paths"),
                "something else",
            )
        };
        for item in list.as_array().ok_or_else(bad)? {
            let text = item.as_str().ok_or_else(bad)?;
            let text = text.strip_prefix('*').unwrap_or(text);
            let (picture, mask) = match text.split_once('|') {
                Some((picture, mask)) => (picture, Some(root.join(mask))),
                None => (text, None),
            };
            entries.push(PoolEntry {
                category: category as u32,
                picture: root.join(picture),
                mask,
            });
        }
    }
    Ok(entries)
}

impl PoolEntry {
    /// Reads its pictures.
    ///
    /// # Errors
    /// As [`read_picture`] and [`instance_of`]; [`Error::Format`] when there is no alpha plane.
    pub fn instance(&self, name: &str) -> Result<InstanceRecord> {
        let (size, image, mut alpha) = read_picture(&self.picture)?;
        if let Some(mask) = &self.mask {
            let (mask_size, grey, own) = read_picture(mask)?;
            if mask_size != size {
                return Err(Error::format(
                    mask,
                    format!("{} x {}, as its picture", size.height, size.width),
                    format!("{} x {}", mask_size.height, mask_size.width),
                ));
            }
            alpha =
                own.or_else(|| Some(grey.as_chunks::<3>().0.iter().map(|p| p[0]).collect()));
        }
        let alpha = alpha.ok_or_else(|| {
            Error::format(&self.picture, "a picture with an alpha plane", "none")
        })?;
        let class = Class {
            index: self.category,
            name,
        };
        instance_of(class, size, &image, &alpha, 1.0, "pool".into())
            .map_err(|e| Error::format(&self.picture, "an instance", e))
    }
}
