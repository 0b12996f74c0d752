//! The aggregation of MosaicFusion's authors, on 8-bit maps.

use super::aggregate::{check_maps, check_target};
use crate::error::Result;
use crate::geometry::Size;

/// Bits behind the point in Pillow's 8-bit weights: 32, less 8 for the value and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Reach of the cubic kernel.
const SUPPORT: f64 = 2.0;
/// Parameter of Pillow's bicubic (Keys 1981).
const A: f64 = -0.5;

fn kernel(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// For each of `to` positions the first source position and the fixed-point weights. The kernel
/// widens where the side shrinks.
fn taps(from: u32, to: u32) -> Vec<(usize, Vec<i64>)> {
    let scale = f64::from(from) / f64::from(to);
    let widened = scale.max(1.0);
    let support = SUPPORT * widened;
    (0..to)
        .map(|i| {
            let center = (f64::from(i) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as u32;
            let end = ((center + support + 0.5) as u32).min(from);
            let weights: Vec<f64> = (first..end)
                .map(|at| kernel((f64::from(at) - center + 0.5) / widened))
                .collect();
            let sum: f64 = weights.iter().sum();
            let fixed = weights
                .iter()
                // Halves away from 0.
                .map(|w| (w / sum * f64::from(1u32 << PRECISION_BITS)).round() as i64)
                .collect();
            (first as usize, fixed)
        })
        .collect()
}

/// A weighted sum of 8-bit values, rounded and clipped to 8 bits.
fn sum(values: impl Iterator<Item = u8>, weights: &[i64]) -> u8 {
    let half = 1i64 << (PRECISION_BITS - 1);
    let sum: i64 = values.zip(weights).map(|(v, w)| i64::from(v) * w).sum();
    ((sum + half) >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes a row-major 8-bit map as Pillow's `resize(..., BICUBIC)` does an image of mode `L`, bit
/// for bit: cubic convolution with a = -0.5, antialiased where it shrinks, along the rows first,
/// each pass rounded to 8 bits. Where one side shrinks and the other grows, which attention maps
/// never do, Pillow's result is another.
fn resize(map: &[u8], from: Size, to: Size) -> Vec<u8> {
    let (w, width) = (from.width as usize, to.width as usize);
    let wide: Vec<u8> = if from.width == to.width {
        map.to_vec()
    } else {
        let columns = taps(from.width, to.width);
        map.chunks_exact(w)
            .flat_map(|line| {
                columns
                    .iter()
                    .map(|(first, k)| sum(line[*first..].iter().copied(), k))
            })
            .collect()
    };
    if from.height == to.height {
        return wide;
    }
    let mut out = Vec::with_capacity(to.area() as usize);
    for (first, k) in taps(from.height, to.height) {
        for x in 0..width {
            let column = wide[first * width + x..].iter().step_by(width).copied();
            out.push(sum(column, &k));
        }
    }
    out
}

/// Values divided by the greatest, 0 to 255, rounded down; all 0 without a positive value.
fn to_8_bit(map: &[f64]) -> Vec<u8> {
    let max = map.iter().copied().fold(0f64, f64::max);
    if max <= 0.0 {
        return vec![0; map.len()];
    }
    map.iter().map(|v| (v / max * 255.0) as u8).collect()
}

/// As [`super::aggregate`], the way MosaicFusion's authors do it: each map divided by its maximum
/// and cut to 8 bits, resized on 8 bits with Pillow's bicubic; the mean divided by its maximum and
/// cut to 8 bits. The result, 0..1, consists of 255ths.
///
/// # Errors
/// As [`super::aggregate`].
pub fn aggregate_8_bit(maps: &[(Size, &[f32])], region: Size) -> Result<Vec<f32>> {
    check_maps(maps)?;
    check_target(region)?;
    let mut mean = vec![0f64; region.area() as usize];
    for &(size, map) in maps {
        let map: Vec<f64> = map.iter().map(|v| f64::from(*v)).collect();
        let large = resize(&to_8_bit(&map), size, region);
        mean.iter_mut()
            .zip(large)
            .for_each(|(m, v)| *m += f64::from(v) / 255.0);
    }
    let n = maps.len() as f64;
    mean.iter_mut().for_each(|m| *m /= n);
    Ok(to_8_bit(&mean)
        .into_iter()
        .map(|v| f32::from(v) / 255.0)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_255th_is_the_same_8_bits_again() {
        // What Otsu's threshold does with the map.
        for v in 0..=255u8 {
            assert_eq!((f32::from(v) / 255.0 * 255.0) as u8, v);
        }
    }

    #[test]
    fn the_maximum_is_one_and_nothing_stays_nothing() {
        let size = Size::new(2, 3);
        let map = [0.0, 0.1, 0.2, 0.0, 0.3, 0.1];
        let out = aggregate_8_bit(&[(size, &map)], Size::new(9, 8)).unwrap();
        assert_eq!(out.iter().copied().fold(0.0, f32::max), 1.0);
        let zero = aggregate_8_bit(&[(size, &[0.0; 6])], Size::new(9, 8)).unwrap();
        assert!(zero.iter().all(|v| *v == 0.0));
        assert!(aggregate_8_bit(&[], size).is_err());
        assert!(aggregate_8_bit(&[(size, &[-1.0; 6])], size).is_err());
    }
}
