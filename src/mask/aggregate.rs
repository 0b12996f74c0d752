//! Attention maps of several resolutions to one map of the region's size.

use crate::error::{Error, Result};
use crate::geometry::Size;

/// The cubic convolution kernel's parameter in torch's and OpenCV's bicubic.
const A: f64 = -0.75;

/// The kernel's weights for the four neighbours of a point `t` (0..1) past the second one
/// (Keys 1981, cubic convolution with a = -0.75).
fn weights(t: f64) -> [f64; 4] {
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// For each of `out` positions, its four source positions and weights, pixel centres aligned at
/// half (torch's `align_corners=False`), edges repeated.
fn taps(from: u32, out: u32) -> Vec<([usize; 4], [f32; 4])> {
    let scale = f64::from(from) / f64::from(out);
    let last = i64::from(from) - 1;
    (0..out)
        .map(|i| {
            let x = (f64::from(i) + 0.5) * scale - 0.5;
            let base = x.floor();
            let at = |k: i64| (base as i64 + k).clamp(0, last) as usize;
            (
                [at(-1), at(0), at(1), at(2)],
                weights(x - base).map(|w| w as f32),
            )
        })
        .collect()
}

/// Checks a map: its length, that it is not empty, and that every value is finite.
fn check(what: &str, map: &[f32], size: Size) -> Result<()> {
    if size.area() == 0 || size.area() > super::rle::MAX_PIXELS {
        return Err(Error::value(
            what,
            "a size of at least 1 x 1 and at most 2^28 positions",
            format!("{} x {}", size.height, size.width),
        ));
    }
    if map.len() as u64 != size.area() {
        return Err(Error::value(
            what,
            format!("{} x {} values", size.height, size.width),
            format!("{} values", map.len()),
        ));
    }
    match map.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::value(
            what,
            "finite values",
            format!(
                "{} at row {}, column {}",
                map[at],
                at / size.width as usize,
                at % size.width as usize
            ),
        )),
        None => Ok(()),
    }
}

/// Checks the size of a result.
pub(super) fn check_target(to: Size) -> Result<()> {
    if to.area() == 0 || to.area() > super::rle::MAX_PIXELS {
        return Err(Error::value(
            "size to resize to",
            "at least 1 x 1 and at most 2^28 positions",
            format!("{} x {}", to.height, to.width),
        ));
    }
    Ok(())
}

/// Checks the maps of several resolutions.
pub(super) fn check_maps(maps: &[(Size, &[f32])]) -> Result<()> {
    if maps.is_empty() {
        return Err(Error::value(
            "attention maps",
            "at least one resolution",
            "none",
        ));
    }
    for (i, &(size, map)) in maps.iter().enumerate() {
        let what = format!("attention map {i}");
        check(&what, map, size)?;
        if let Some(v) = map.iter().find(|v| **v < 0.0) {
            return Err(Error::value(what, "probabilities (0 or more)", v));
        }
    }
    Ok(())
}

/// Resizes a row-major map as torch's `interpolate(mode="bicubic", align_corners=False)` does:
/// cubic convolution with a = -0.75, no antialiasing. Values may leave the input's range.
///
/// # Errors
/// [`Error::Value`] when the map's length is not `from`'s, a size is empty or over 2^28 positions,
/// or a value is not finite.
pub fn resize_bicubic(map: &[f32], from: Size, to: Size) -> Result<Vec<f32>> {
    check("map to resize", map, from)?;
    check_target(to)?;
    let (w, width) = (from.width as usize, to.width as usize);
    let (columns, rows) = (taps(from.width, to.width), taps(from.height, to.height));
    // Along the rows first: the maps are small, so this part is the cheap one.
    let mut wide = vec![0f32; from.height as usize * width];
    for (line, out) in map.chunks_exact(w).zip(wide.chunks_exact_mut(width)) {
        for (v, (at, k)) in out.iter_mut().zip(&columns) {
            *v = line[at[0]] * k[0]
                + line[at[1]] * k[1]
                + line[at[2]] * k[2]
                + line[at[3]] * k[3];
        }
    }
    let mut out = vec![0f32; to.area() as usize];
    for (line, (at, k)) in out.chunks_exact_mut(width).zip(&rows) {
        let [a, b, c, d] = at.map(|y| &wide[y * width..(y + 1) * width]);
        for ((((v, a), b), c), d) in line.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *v = a * k[0] + b * k[1] + c * k[2] + d * k[3];
        }
    }
    Ok(out)
}

/// Divides a map by its maximum; leaves a map without a positive value at 0.
fn divide_by_max(map: &mut [f32]) {
    let max = map.iter().copied().fold(0f32, f32::max);
    if max > 0.0 {
        // A subnormal maximum must not overflow the quotients.
        map.iter_mut().for_each(|v| *v /= max);
    } else {
        map.fill(0.0);
    }
}

/// One map of the region's size, 0..1 with its maximum at 1, from the mean attention maps of
/// each resolution (MosaicFusion, arXiv 2309.13042, section 3.2).
///
/// Each map (row-major, any size) is divided by its maximum and resized with
/// [`resize_bicubic`]; the mean over the maps is divided by its maximum. Bicubic undershoot below 0
/// is cut to 0. Maps that are 0 everywhere give a map that is 0 everywhere, of which no
/// threshold makes a mask.
///
/// # Errors
/// [`Error::Value`] when there is no map, a length is not its size's, or a value is negative or
/// not finite (16-bit overflow).
pub fn aggregate(maps: &[(Size, &[f32])], region: Size) -> Result<Vec<f32>> {
    check_maps(maps)?;
    let mut sum = vec![0f32; 0];
    for (i, &(size, map)) in maps.iter().enumerate() {
        let mut map = map.to_vec();
        divide_by_max(&mut map);
        let large = resize_bicubic(&map, size, region)?;
        if i == 0 {
            sum = large;
        } else {
            sum.iter_mut().zip(&large).for_each(|(s, v)| *s += v);
        }
    }
    let n = maps.len() as f32;
    sum.iter_mut().for_each(|v| *v /= n);
    divide_by_max(&mut sum);
    sum.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
    Ok(sum)
}
