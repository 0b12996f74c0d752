//! Cropped instances in frames.

use std::borrow::Cow;

use super::super::codec::{self, Codec};
use super::super::index::Kind;
use super::FOREGROUND;
use super::frame::{Frame, MAX_HALVINGS, PLAIN_VERSION, VERSION, frame, parsed};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::record::stored::InstanceMeta;
use crate::record::{Provenance, RecordId, Scores};

/// A picture may be enlarged by 5 / 4 before the next larger one is decoded.
const ENOUGH: (u32, u32) = (4, 5);
/// A picture of fewer pixels is not halved: it is decoded in no time.
const LEAST_HALVED: u64 = 32 * 32;

/// One object, cropped, as the bank keeps it for pasting.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRecord {
    /// See [`identity`].
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
    pub scores: Scores,
    /// Where it came from.
    pub provenance: Provenance,
}

impl InstanceRecord {
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
            id: meta.id()?,
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

/// The frame with the metadata of `instance`, its coded image untouched.
pub(in crate::bank) fn with_meta_of_instance(
    old: &[u8],
    instance: &InstanceRecord,
) -> Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::identity;

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
        let id = identity::pixels("thing", size, &alpha, &alpha);
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
            scores: Scores::new(),
            provenance: Provenance {
                model: "m".into(),
                ..Provenance::default()
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
