//! From a map in 0..1 to the first mask.

use serde::{Deserialize, Serialize};

use super::BinaryMask;
use crate::error::{Error, Result};
use crate::geometry::Size;

/// How the first mask is cut from the map.
///
/// In a recipe: `"otsu"`, or `{"fixed": 0.3}`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Threshold {
    /// Otsu's method on the 8-bit map.
    #[default]
    Otsu,
    /// Foreground is above this value (MosaicFusion's alternative: 0.3).
    Fixed(f32),
}

/// The value that splits 8-bit values into two classes with the largest variance between them
/// (Otsu 1979); foreground is *above* it.
///
/// Decides as OpenCV's `THRESH_OTSU` does: the first of equal maxima, 0 for values that are all
/// equal or when there are none. Between two classes with no value in between, every threshold
/// is as good as the next, and rounding decides: so the class means are carried along as running
/// means, in OpenCV's order.
pub fn otsu(values: impl IntoIterator<Item = u8>) -> u8 {
    let mut histogram = [0u64; 256];
    for v in values {
        histogram[usize::from(v)] += 1;
    }
    let total: u64 = histogram.iter().sum();
    if total == 0 {
        return 0;
    }
    let scale = 1.0 / total as f64;
    let mean: f64 = histogram
        .iter()
        .enumerate()
        .map(|(v, &n)| v as f64 * n as f64)
        .sum::<f64>()
        * scale;
    let (mut below, mut mean_below) = (0.0f64, 0.0f64);
    let (mut best, mut best_variance) = (0u8, 0.0f64);
    for (v, &n) in histogram.iter().enumerate() {
        let p = n as f64 * scale;
        mean_below *= below;
        below += p;
        let above = 1.0 - below;
        if below.min(above) < f64::from(f32::EPSILON)
            || below.max(above) > 1.0 - f64::from(f32::EPSILON)
        {
            continue;
        }
        mean_below = (mean_below + v as f64 * p) / below;
        let mean_above = (mean - below * mean_below) / above;
        let variance = below * above * (mean_below - mean_above).powi(2);
        if variance > best_variance {
            best_variance = variance;
            best = v as u8;
        }
    }
    best
}

fn eight_bit(value: &f32) -> u8 {
    (value * 255.0) as u8
}

impl Threshold {
    /// Checks the value; `place` is the recipe's key.
    ///
    /// # Errors
    /// [`Error::Value`] when a fixed threshold is not between 0 and 1.
    pub fn validate(&self, place: &str) -> Result<()> {
        match self {
            Self::Fixed(v) if !(0.0..1.0).contains(v) => Err(Error::value(
                format!("{place}.fixed"),
                "a value from 0 to below 1",
                v,
            )),
            _ => Ok(()),
        }
    }

    /// The value above which `map` (0..1) is foreground: Otsu's on the 8-bit map, or the fixed one.
    pub fn level(&self, map: &[f32]) -> f32 {
        match self {
            Self::Otsu => f32::from(otsu(map.iter().map(eight_bit))) / 255.0,
            Self::Fixed(level) => *level,
        }
    }

    /// The mask of a map, row-major `[height, width]` in 0..1: the 8-bit map (`255 x value`,
    /// rounded down) above Otsu's threshold, or the map above the fixed value. A map that is the
    /// same everywhere gives, by Otsu, all foreground unless it is 0.
    ///
    /// # Errors
    /// [`Error::Value`] when the length is not the size's or a value is not within 0..1.
    pub fn apply(&self, map: &[f32], size: Size) -> Result<BinaryMask> {
        if map.len() as u64 != size.area() {
            return Err(Error::value(
                "attention map",
                format!("{} x {} values", size.height, size.width),
                format!("{} values", map.len()),
            ));
        }
        if let Some(v) = map.iter().find(|v| !(0.0..=1.0).contains(*v)) {
            return Err(Error::value("attention map", "values within 0..1", v));
        }
        let data = match self {
            Self::Otsu => {
                let t = otsu(map.iter().map(eight_bit));
                map.iter().map(|v| u8::from(eight_bit(v) > t)).collect()
            }
            Self::Fixed(t) => map.iter().map(|v| u8::from(v > t)).collect(),
        };
        BinaryMask::from_vec(size, data)
    }
}
