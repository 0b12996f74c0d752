//! What is pasted: an instance turned, resized and trimmed, as RGBA.

use super::plane::{BORDER, Cutout, Rgba, tight_box};
use crate::geometry::Size;
use crate::mask::{BinaryMask, components};

/// Alpha above this is foreground.
const FOREGROUND: u8 = crate::bank::format::FOREGROUND;
/// Fixed-point one of the resize weights.
const ONE: u16 = 256;
/// How an instance is turned into a cutout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Transform {
    pub height: usize,
    pub width: usize,
    pub flip_x: bool,
    pub flip_y: bool,
    /// Degrees, counter-clockwise.
    pub rotation: f32,
    /// Exchange red and blue.
    pub swap: bool,
}

/// Interleaves colour and alpha, flipped.
#[inline(always)]
fn interleave(rgb: &[u8], alpha: &[u8], size: Size, t: &Transform) -> Rgba {
    let (h, w) = (size.height as usize, size.width as usize);
    let mut data = vec![0u8; h * w * 4];
    let rows = data.chunks_exact_mut((w * 4).max(1));
    for (y, out) in rows.enumerate() {
        let from = if t.flip_y { h - 1 - y } else { y };
        let (Some(rgb), Some(alpha)) = (
            rgb.get(from * w * 3..(from + 1) * w * 3),
            alpha.get(from * w..(from + 1) * w),
        ) else {
            continue;
        };
        let pixels = rgb.as_chunks::<3>().0.iter().zip(alpha);
        let write = |(to, (c, a)): (&mut [u8; 4], (&[u8; 3], &u8))| {
            *to = if t.swap {
                [c[2], c[1], c[0], *a]
            } else {
                [c[0], c[1], c[2], *a]
            };
        };
        let out = out.as_chunks_mut::<4>().0.iter_mut();
        if t.flip_x {
            out.rev().zip(pixels).for_each(write);
        } else {
            out.zip(pixels).for_each(write);
        }
    }
    Rgba {
        height: h,
        width: w,
        data,
    }
}

/// Where each output position starts in the source, and the `n` weights from there: a triangle
/// filter, widened when the picture shrinks (what Pillow's BILINEAR does), in fixed point with
/// sum [`ONE`]. Products of a byte and a weight, and their sums, fit 16 bits.
struct Taps {
    starts: Vec<u32>,
    weights: Vec<u16>,
    n: usize,
}

fn taps(from: usize, to: usize) -> Taps {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let n = ((2.0 * support).ceil() as usize).min(from);
    let mut out = Taps {
        starts: Vec::with_capacity(to),
        weights: Vec::with_capacity(to * n),
        n,
    };
    let mut exact = vec![0f64; n];
    for i in 0..to {
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - support - 0.5).ceil().max(0.0) as usize;
        let start = start.min(from - n);
        let mut sum = 0.0;
        for (k, e) in exact.iter_mut().enumerate() {
            let x = ((start + k) as f64 + 0.5 - centre) / support;
            *e = (1.0 - x.abs()).max(0.0);
            sum += *e;
        }
        let (mut left, mut left_sum) = (f64::from(ONE), sum);
        for e in &exact {
            // Rounded so that the weights add up exactly.
            let share = if left_sum > 0.0 {
                (left * e / left_sum).round().clamp(0.0, left)
            } else {
                0.0
            };
            out.weights.push(share as u16);
            left -= share;
            left_sum -= e;
        }
        // What rounding of the sums left over goes to the heaviest.
        if left > 0.0 {
            let from = out.weights.len() - n;
            if let Some(w) = out.weights[from..].iter_mut().max() {
                *w += left as u16;
            }
        }
        out.starts.push(start as u32);
    }
    out
}

/// Resizes to `height` x `width`.
#[inline(always)]
fn resize(p: &Rgba, height: usize, width: usize) -> Rgba {
    if (p.height, p.width) == (height, width) {
        return p.clone();
    }
    let vertical = taps(p.height, height);
    let horizontal = taps(p.width, width);
    let stride = p.width * 4;
    let mut data = vec![0u8; height * width * 4];
    let mut sums = vec![0u16; stride];
    let mut row = vec![0u8; stride];
    for (y, out) in data.chunks_exact_mut((width * 4).max(1)).enumerate() {
        let source = &p.data[vertical.starts[y] as usize * stride..][..vertical.n * stride];
        let weights = &vertical.weights[y * vertical.n..][..vertical.n];
        if let [a, b] = *weights {
            let (above, below) = source.split_at(stride);
            for ((r, &v), &w) in row.iter_mut().zip(above).zip(below) {
                *r = ((u16::from(v) * a + u16::from(w) * b + ONE / 2) >> 8) as u8;
            }
        } else {
            sums.fill(ONE / 2);
            for (source, &w) in source.chunks_exact(stride).zip(weights) {
                for (s, &v) in sums.iter_mut().zip(source) {
                    *s += w * u16::from(v);
                }
            }
            for (r, &s) in row.iter_mut().zip(&sums) {
                *r = (s >> 8) as u8;
            }
        }
        let pixels = row.as_chunks::<4>().0;
        let out = out.as_chunks_mut::<4>().0;
        match horizontal.n {
            1 => across::<1>(pixels, out, &horizontal),
            2 => across::<2>(pixels, out, &horizontal),
            3 => across::<3>(pixels, out, &horizontal),
            4 => across::<4>(pixels, out, &horizontal),
            _ => across::<0>(pixels, out, &horizontal),
        }
    }
    Rgba {
        height,
        width,
        data,
    }
}

/// One row, `N` taps (0: as many as `taps` says).
#[inline(always)]
fn across<const N: usize>(pixels: &[[u8; 4]], out: &mut [[u8; 4]], taps: &Taps) {
    let n = if N == 0 { taps.n } else { N };
    for ((out, &start), weights) in out
        .iter_mut()
        .zip(&taps.starts)
        .zip(taps.weights.chunks_exact(n))
    {
        let mut sum = [ONE / 2; 4];
        for (p, &w) in pixels[start as usize..][..n].iter().zip(weights) {
            for (s, &v) in sum.iter_mut().zip(p) {
                *s += w * u16::from(v);
            }
        }
        *out = sum.map(|s| (s >> 8) as u8);
    }
}

/// Turns by `degrees` about the centre; the picture grows to hold all of it.
pub(super) fn rotate(p: &Rgba, degrees: f32) -> Rgba {
    let (sin, cos) = f64::from(degrees).to_radians().sin_cos();
    let (h, w) = (p.height as f64, p.width as f64);
    // A hair less, so that a quarter turn does not grow by its rounding error.
    let width = (w * cos.abs() + h * sin.abs() - 1e-6).ceil().max(1.0) as usize;
    let height = (w * sin.abs() + h * cos.abs() - 1e-6).ceil().max(1.0) as usize;
    let mut data = vec![0u8; height * width * 4];
    let (cx, cy) = (width as f64 / 2.0, height as f64 / 2.0);
    // Colour is held at the edge; alpha ends there.
    let pixel = |x: i64, y: i64| -> [f32; 4] {
        let inside = x >= 0 && y >= 0 && x < p.width as i64 && y < p.height as i64;
        let x = x.clamp(0, p.width as i64 - 1) as usize;
        let y = y.clamp(0, p.height as i64 - 1) as usize;
        let at = (y * p.width + x) * 4;
        let mut v = [0f32; 4];
        for (v, &b) in v.iter_mut().zip(p.data.iter().skip(at).take(4)) {
            *v = f32::from(b);
        }
        if !inside {
            v[3] = 0.0;
        }
        v
    };
    for (i, out) in data.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (dx, dy) = ((i % width) as f64 + 0.5 - cx, (i / width) as f64 + 0.5 - cy);
        let x = cos * dx - sin * dy + w / 2.0 - 0.5;
        let y = sin * dx + cos * dy + h / 2.0 - 0.5;
        if x < -1.0 || y < -1.0 || x > w || y > h {
            continue;
        }
        let (x0, y0) = (x.floor(), y.floor());
        let (fx, fy) = ((x - x0) as f32, (y - y0) as f32);
        let (x0, y0) = (x0 as i64, y0 as i64);
        let (a, b) = (pixel(x0, y0), pixel(x0 + 1, y0));
        let (c, d) = (pixel(x0, y0 + 1), pixel(x0 + 1, y0 + 1));
        for (k, out) in out.iter_mut().enumerate() {
            let top = a[k] + (b[k] - a[k]) * fx;
            let bottom = c[k] + (d[k] - c[k]) * fx;
            *out = (top + (bottom - top) * fy + 0.5) as u8;
        }
    }
    Rgba {
        height,
        width,
        data,
    }
}

/// A picture with a transparent border of `border` pixels (colours held at the edge).
fn padded(p: &Rgba, border: usize) -> Rgba {
    let (h, w) = (p.height + 2 * border, p.width + 2 * border);
    let mut data = vec![0u8; h * w * 4];
    for (y, out) in data.chunks_exact_mut(w * 4).enumerate() {
        let from = y.saturating_sub(border).min(p.height - 1);
        let source = &p.data[from * p.width * 4..][..p.width * 4];
        let inside = y >= border && y < border + p.height;
        out[border * 4..][..p.width * 4].copy_from_slice(source);
        let pixels = out.as_chunks_mut::<4>().0;
        let (first, last) = (pixels[border], pixels[border + p.width - 1]);
        for p in &mut pixels[..border] {
            *p = [first[0], first[1], first[2], 0];
        }
        for p in &mut pixels[border + p.width..] {
            *p = [last[0], last[1], last[2], 0];
        }
        if !inside {
            pixels.iter_mut().for_each(|p| p[3] = 0);
        }
    }
    Rgba {
        height: h,
        width: w,
        data,
    }
}

/// The cutout of an instance, `None` when nothing is left of it.
pub(super) fn cutout(rgb: &[u8], alpha: &[u8], size: Size, t: &Transform) -> Option<Cutout> {
    // The same code, compiled for wider registers where the processor has them.
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { cutout_avx2(rgb, alpha, size, t) };
    }
    cutout_plain(rgb, alpha, size, t)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn cutout_avx2(rgb: &[u8], alpha: &[u8], size: Size, t: &Transform) -> Option<Cutout> {
    cutout_plain(rgb, alpha, size, t)
}

#[inline(always)]
fn cutout_plain(rgb: &[u8], alpha: &[u8], size: Size, t: &Transform) -> Option<Cutout> {
    if size.area() == 0 || t.height == 0 || t.width == 0 {
        return None;
    }
    let mut picture = resize(&interleave(rgb, alpha, size, t), t.height, t.width);
    if t.rotation != 0.0 {
        picture = rotate(&picture, t.rotation);
    }
    let plane = |p: &Rgba| -> Vec<u8> {
        let pixels = p.data.as_chunks::<4>().0.iter();
        pixels.map(|p| u8::from(p[3] > FOREGROUND)).collect()
    };
    let mut mask = plane(&picture);
    let mut tight = tight_box(&mask, picture.width)?;
    // Room for soft blending on every side.
    let room = [
        tight.x0 as usize,
        tight.y0 as usize,
        picture.width - tight.x1 as usize,
        picture.height - tight.y1 as usize,
    ];
    if room.iter().any(|room| *room < BORDER) {
        picture = padded(&picture, BORDER);
        mask = plane(&picture);
        tight = tight_box(&mask, picture.width)?;
    }
    if !is_one_piece(&mask, picture.width) {
        let size = Size::new(picture.height as u32, picture.width as u32);
        let largest = components::largest_component(&BinaryMask::from_vec(size, mask).ok()?)?;
        mask = largest.into_vec();
        for (p, m) in picture.data.as_chunks_mut::<4>().0.iter_mut().zip(&mask) {
            if p[3] > FOREGROUND && *m == 0 {
                p[3] = 0;
            }
        }
        tight = tight_box(&mask, picture.width)?;
    }
    Some(Cutout {
        picture,
        mask,
        tight,
    })
}

/// Whether the foreground is one 4-connected piece, by joining the runs of neighbouring rows; a
/// quick check for what is nearly always so.
fn is_one_piece(mask: &[u8], width: usize) -> bool {
    let mut parents: Vec<u32> = Vec::new();
    let mut pieces = 0usize;
    let mut above: Vec<(usize, usize, u32)> = Vec::new();
    let mut here: Vec<(usize, usize, u32)> = Vec::new();
    fn top(parents: &mut [u32], mut a: u32) -> u32 {
        while let Some(&p) = parents.get(a as usize) {
            if p == a {
                break;
            }
            a = p;
        }
        a
    }
    for row in mask.chunks_exact(width.max(1)) {
        here.clear();
        let mut x = 0;
        while let Some(skip) = row.get(x..).and_then(|r| r.iter().position(|&v| v != 0)) {
            let from = x + skip;
            let len = row[from..]
                .iter()
                .position(|&v| v == 0)
                .unwrap_or(width - from);
            let label = parents.len() as u32;
            parents.push(label);
            pieces += 1;
            for &(f, t, other) in &above {
                if f < from + len && from < t {
                    let (a, b) = (top(&mut parents, label), top(&mut parents, other));
                    if a != b {
                        if let Some(p) = parents.get_mut(a as usize) {
                            *p = b;
                        }
                        pieces -= 1;
                    }
                }
            }
            here.push((from, from + len, label));
            x = from + len;
        }
        std::mem::swap(&mut above, &mut here);
    }
    pieces <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_and_a_flat_picture_stays_flat() {
        for (from, to) in [(1, 7), (7, 1), (100, 33), (33, 100), (5, 5)] {
            let t = taps(from, to);
            for i in 0..to {
                let sum: u16 = t.weights[i * t.n..][..t.n].iter().sum();
                assert_eq!(sum, ONE);
                assert!(t.starts[i] as usize + t.n <= from);
            }
        }
        let flat = Rgba {
            height: 9,
            width: 14,
            data: vec![77; 9 * 14 * 4],
        };
        assert!(resize(&flat, 20, 3).data.iter().all(|&v| v == 77));
    }

    #[test]
    fn a_quarter_turn_moves_pixels_and_pieces_are_counted() {
        let mut p = Rgba {
            height: 3,
            width: 5,
            data: vec![0; 60],
        };
        p.data[4 * 4 + 3] = 255; // top right
        let q = rotate(&p, 90.0);
        assert_eq!((q.height, q.width), (5, 3));
        assert_eq!(
            q.data[3], 255,
            "top right goes to top left, counter-clockwise"
        );
        assert!(is_one_piece(&[1, 1, 0, 1, 0, 1, 1, 1, 1], 3));
        assert!(!is_one_piece(&[1, 0, 1, 0, 0, 0, 0, 0, 0], 3));
        assert!(!is_one_piece(&[1, 0, 0, 1], 2));
        assert!(is_one_piece(&[0, 0, 0, 0], 2));
    }
}
