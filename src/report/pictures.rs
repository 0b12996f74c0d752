//! Pictures small enough for a page, and the outlines of masks.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{RgbImage, imageops};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::Rle;

/// JPEG quality on the page, with chroma at half the resolution: three quarters of the bytes of the
/// bank's coding.
const QUALITY: u8 = 70;
/// Default longest sides.
const SIDES: std::ops::RangeInclusive<f64> = 128.0..=640.0;
/// Longest side of the samples that estimate how many bytes images take.
const TRIED: u32 = 256;
/// How far an outline may be from the mask, in pixels of the page's picture.
const TOLERANCE: f64 = 0.75;

/// `bytes` as base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Pixels of a picture per pixel on the page, whose longest side is `longest` at most.
pub(super) fn scale(size: Size, longest: u32) -> f64 {
    (f64::from(size.height.max(size.width)) / f64::from(longest.max(1))).max(1.0)
}

/// The longest side with which `count` images take about `bytes` of a page, estimated from a few
/// `samples`.
///
/// # Errors
/// As [`thumbnail`].
pub(super) fn side_for(samples: Vec<(Vec<u8>, Size)>, count: usize, bytes: u64) -> Result<u32> {
    let (mut taken, tried) = (0, samples.len());
    for (rgb, size) in samples {
        taken += thumbnail(rgb, size, TRIED)?.len();
    }
    if taken == 0 {
        return Ok(TRIED);
    }
    // Bytes grow with the area.
    let by = bytes as f64 / count.max(1) as f64 * tried as f64 / taken as f64;
    let side = f64::from(TRIED) * by.sqrt();
    Ok(side.clamp(*SIDES.start(), *SIDES.end()) as u32)
}

/// A picture (`u8 [H, W, 3]`) as a JPEG whose longest side is `longest` pixels at most, base64.
///
/// # Errors
/// [`Error::Value`] when the length does not fit the size, [`Error::Backend`] when the encoder
/// fails.
pub(super) fn thumbnail(rgb: Vec<u8>, size: Size, longest: u32) -> Result<String> {
    let got = rgb.len();
    let mut picture = RgbImage::from_raw(size.width, size.height, rgb).ok_or_else(|| {
        let expected = format!("{} x {} x 3 bytes", size.height, size.width);
        Error::value("picture", expected, format!("{got} bytes"))
    })?;
    let by = scale(size, longest);
    if by > 1.0 {
        let side = |n: u32| ((f64::from(n) / by).round() as u32).max(1);
        picture = imageops::thumbnail(&picture, side(size.width), side(size.height));
    }
    let mut jpeg = Vec::new();
    let mut encoder = Encoder::new(&mut jpeg, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_optimized_huffman_tables(true);
    // Sides of records fit a u16.
    let (width, height) = (picture.width() as u16, picture.height() as u16);
    encoder
        .encode(picture.as_raw(), width, height, ColorType::Rgb)
        .map_err(|e| Error::backend("encoding a picture of the report", e))?;
    Ok(base64(&jpeg))
}

/// The outline of a mask as an SVG path, to be filled by the even-odd rule: holes are in it as
/// well. One unit is a pixel of the mask; `scale` pixels are one on the page, and what cannot
/// be seen there is left out.
///
/// # Errors
/// Those of the mask's own parts; none for a mask that is valid.
pub(super) fn outline(mask: &Rle, scale: f64) -> Result<String> {
    let mut path = String::new();
    let Some(tight) = mask.bbox() else {
        return Ok(path);
    };
    let tolerance = TOLERANCE * scale;
    for polygon in mask.to_polygons() {
        add(&mut path, &polygon, (0, 0), tolerance);
    }
    // A hole is a part of the background that does not reach the tight box's sides.
    let (x1, y1) = (f64::from(tight.width()), f64::from(tight.height()));
    let (points, mut holes) = (background(&mask.crop(tight)?)?.to_polygons(), Vec::new());
    for polygon in points {
        let (corners, _) = polygon.as_chunks::<2>();
        let outside = |[x, y]: &[f64; 2]| *x <= 0.0 || *y <= 0.0 || *x >= x1 || *y >= y1;
        if !corners.iter().any(outside) {
            holes.push(polygon);
        }
    }
    for polygon in holes {
        let at = (i64::from(tight.x0), i64::from(tight.y0));
        add(&mut path, &polygon, at, tolerance);
    }
    Ok(path)
}

/// Where a mask is not.
fn background(mask: &Rle) -> Result<Rle> {
    let counts = match mask.counts() {
        [0, rest @ ..] => rest.to_vec(),
        all => std::iter::once(0).chain(all.iter().copied()).collect(),
    };
    Rle::new(mask.size(), &counts)
}

/// Appends a closed polygon (x and y in turn, whole numbers), moved by `at`.
fn add(path: &mut String, polygon: &[f64], at: (i64, i64), tolerance: f64) {
    let (points, _) = polygon.as_chunks::<2>();
    let mut last = None;
    for [x, y] in simplified(points, tolerance) {
        let (x, y) = (x as i64 + at.0, y as i64 + at.1);
        let _ = match last {
            None => write!(path, "M{x} {y}l"),
            Some((px, py)) => write!(path, "{} {} ", x - px, y - py),
        };
        last = Some((x, y));
    }
    if last.is_some() {
        path.truncate(path.trim_end().len());
        path.push('z');
    }
}

/// A closed polygon with fewer corners, none of the old ones farther than `tolerance` from it
/// (Ramer, 1972; Douglas and Peucker, 1973); empty when nothing is left of it.
fn simplified(points: &[[f64; 2]], tolerance: f64) -> Vec<[f64; 2]> {
    let Some(&first) = points.first() else {
        return Vec::new();
    };
    let apart = |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
    // A closed line has no ends: it is cut at its first corner and at the one farthest from it.
    let far = (0..points.len())
        .max_by(|&a, &b| {
            let of = |i: usize| points.get(i).map_or(0.0, |&p| apart(first, p));
            of(a).total_cmp(&of(b))
        })
        .unwrap_or_default();
    let mut closed = points.to_vec();
    closed.push(first);
    let mut keep = vec![false; closed.len()];
    for i in [0, far] {
        if let Some(keep) = keep.get_mut(i) {
            *keep = true;
        }
    }
    let mut open = vec![(0, far), (far, points.len())];
    while let Some((from, to)) = open.pop() {
        let (Some(&a), Some(&b)) = (closed.get(from), closed.get(to)) else {
            continue;
        };
        let length = apart(a, b);
        let mut worst = (tolerance, None);
        for i in from + 1..to {
            let Some(&p) = closed.get(i) else { continue };
            let cross = (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]);
            let off = if length > 0.0 {
                cross.abs() / length
            } else {
                apart(a, p)
            };
            if off > worst.0 {
                worst = (off, Some(i));
            }
        }
        if let (_, Some(i)) = worst {
            if let Some(keep) = keep.get_mut(i) {
                *keep = true;
            }
            open.extend([(from, i), (i, to)]);
        }
    }
    let kept: Vec<_> = points
        .iter()
        .zip(keep)
        .filter_map(|(&p, keep)| keep.then_some(p))
        .collect();
    // Two corners have no inside.
    if kept.len() < 3 { Vec::new() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::BinaryMask;

    fn mask(size: Size, inside: impl Fn(i64, i64) -> bool) -> Rle {
        let data = (0..size.area() as i64)
            .map(|i| u8::from(inside(i % i64::from(size.width), i / i64::from(size.width))))
            .collect();
        Rle::encode(&BinaryMask::from_vec(size, data).unwrap()).unwrap()
    }

    /// The polygons of a path, filled by the even-odd rule.
    fn filled(path: &str, size: Size) -> Rle {
        let mut whole = Rle::empty(size).unwrap();
        for part in path.split('M').filter(|p| !p.is_empty()) {
            let (start, steps) = part.trim_end_matches('z').split_once('l').unwrap();
            let numbers = |text: &str| -> Vec<f64> {
                text.split_whitespace()
                    .map(|n| n.parse().unwrap())
                    .collect()
            };
            let mut polygon = numbers(start);
            for step in numbers(steps).chunks_exact(2) {
                let n = polygon.len();
                polygon.extend([polygon[n - 2] + step[0], polygon[n - 1] + step[1]]);
            }
            let one = Rle::from_polygons(&[polygon], size).unwrap();
            let both = whole.intersect(&one).unwrap();
            whole = whole.union(&one).unwrap().subtract(&both).unwrap();
        }
        whole
    }

    #[test]
    fn an_outline_has_the_masks_parts_and_holes() {
        let size = Size::new(80, 120);
        let ring = mask(size, |x, y| {
            let d = (x - 40) * (x - 40) + (y - 40) * (y - 40);
            (100..1000).contains(&d) || (x - 100).abs() + (y - 40).abs() < 15
        });
        for scale in [1.0, 2.0] {
            let path = outline(&ring, scale).unwrap();
            assert_eq!(path.matches('M').count(), 3, "{path}");
            let iou = filled(&path, size).iou(&ring).unwrap();
            assert!(
                iou > 0.97 - 0.04 * (scale - 1.0),
                "{iou} at {scale}: {path}"
            );
        }
        assert!(
            outline(&ring, 2.0).unwrap().len() < outline(&ring, 1.0).unwrap().len(),
            "fewer corners where they cannot be seen"
        );
        let all = mask(size, |_, _| true);
        assert_eq!(outline(&all, 1.0).unwrap(), "M120 0l0 80 -120 0 0 -80z");
        assert_eq!(outline(&mask(size, |_, _| false), 1.0).unwrap(), "");
    }

    #[test]
    fn thumbnails_are_as_small_as_asked_for_and_never_enlarged() {
        let size = Size::new(300, 200);
        let rgb: Vec<u8> = (0..size.area() * 3).map(|i| (i % 251) as u8).collect();
        for (longest, expected) in [(100, (67, 100)), (1000, (200, 300))] {
            let text = thumbnail(rgb.clone(), size, longest).unwrap();
            let jpeg = STANDARD.decode(text).unwrap();
            let picture = image::load_from_memory(&jpeg).unwrap();
            assert_eq!((picture.width(), picture.height()), expected);
        }
        let side = |n| side_for(vec![(rgb.clone(), size)], n, 5 << 20).unwrap();
        assert_eq!((side(1), side(1_000_000)), (640, 128));
        let taken = 400 * thumbnail(rgb.clone(), size, side(400)).unwrap().len();
        assert!((4 << 20..6 << 20).contains(&taken), "{taken}");
        assert_eq!(side_for(Vec::new(), 0, 5 << 20).unwrap(), TRIED);
        let e = thumbnail(vec![0; 5], size, 100).unwrap_err();
        assert!(e.to_string().contains("5 bytes"), "{e}");
    }
}
