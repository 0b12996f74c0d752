//! Repeat factors (Gupta, Dollar, Girshick: LVIS, arXiv 1908.03195, section 4; the same
//! numbers as Detectron2's `repeat_factors_from_category_frequency`).

use crate::error::{Error, Result};

/// What the annotations say about images and categories.
#[derive(Debug, Clone, PartialEq)]
pub struct RepeatFactors {
    /// Factor of each image, >= 1.
    pub factors: Vec<f32>,
    /// Images that contain each category.
    pub image_counts: Vec<u64>,
}

/// Repeat factors from the categories of each image in one flat array.
///
/// The annotations of image `i` have the classes `classes[offsets[i]..offsets[i + 1]]`, contiguous
/// indices below `categories`; repeats do not matter. With `f(c)` the share of images that
/// contain `c`, `r(c) = max(1, sqrt(threshold / f(c)))`, and an image's factor is the largest
/// among its categories (1 when it has none).
///
/// # Errors
/// [`Error::Value`] when the offsets do not describe the array, a class is out of range, or the
/// threshold is not a number >= 0.
pub fn repeat_factors(
    offsets: &[i64],
    classes: &[i64],
    categories: usize,
    threshold: f64,
) -> Result<RepeatFactors> {
    if !threshold.is_finite() || threshold < 0.0 {
        return Err(Error::value(
            "repeat threshold",
            "a finite number >= 0",
            threshold,
        ));
    }
    let ends = (offsets.first().copied(), offsets.last().copied());
    if ends != (Some(0), Some(classes.len() as i64)) || !offsets.is_sorted_by(|a, b| a <= b) {
        return Err(Error::value(
            "offsets",
            format!(
                "ascending from 0 to the number of classes ({})",
                classes.len()
            ),
            format!(
                "{} numbers from {:?} to {:?}",
                offsets.len(),
                ends.0,
                ends.1
            ),
        ));
    }
    if let Some(bad) = classes.iter().find(|c| **c < 0 || **c >= categories as i64) {
        return Err(Error::value("class", format!("0..{categories}"), bad));
    }
    let images = offsets.len() - 1;
    let of = |i: usize| {
        let (from, to) = (offsets.get(i), offsets.get(i + 1));
        from.zip(to)
            .and_then(|(&from, &to)| classes.get(from as usize..to as usize))
            .unwrap_or_default()
    };
    let mut image_counts = vec![0u64; categories];
    let mut last_image = vec![usize::MAX; categories];
    for i in 0..images {
        for &c in of(i) {
            let c = c as usize;
            if let (Some(last), Some(n)) = (last_image.get_mut(c), image_counts.get_mut(c))
                && *last != i
            {
                *last = i;
                *n += 1;
            }
        }
    }
    let of_category: Vec<f64> = image_counts
        .iter()
        .map(|&n| (threshold / (n as f64 / images as f64)).sqrt().max(1.0))
        .collect();
    let factors = (0..images)
        .map(|i| {
            of(i)
                .iter()
                .filter_map(|&c| of_category.get(c as usize))
                .fold(1.0, |a: f64, &b| a.max(b)) as f32
        })
        .collect();
    Ok(RepeatFactors {
        factors,
        image_counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_follow_the_formula() {
        // 4 images: class 0 in all of them, class 1 in one (twice), class 2 in none.
        let r = repeat_factors(&[0, 1, 2, 5, 6], &[0, 0, 0, 1, 1, 0], 3, 0.5).unwrap();
        assert_eq!(r.image_counts, [4, 1, 0]);
        let rare = (0.5f64 / 0.25).sqrt() as f32;
        assert_eq!(r.factors, [1.0, 1.0, rare, 1.0]);
    }

    #[test]
    fn wrong_arrays_are_named() {
        assert!(repeat_factors(&[], &[], 1, 0.1).is_err());
        assert!(repeat_factors(&[0, 2], &[0], 1, 0.1).is_err());
        assert!(repeat_factors(&[0, 1], &[1], 1, 0.1).is_err());
        assert!(repeat_factors(&[0, 1], &[0], 1, f64::NAN).is_err());
        assert_eq!(repeat_factors(&[0, 0], &[], 1, 0.1).unwrap().factors, [1.0]);
    }
}
