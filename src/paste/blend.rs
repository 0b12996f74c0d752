//! Putting a cutout's colours on the image, inside the cutout's rectangle only.

use serde::{Deserialize, Serialize};

use super::plane::{BORDER, Cutout, Window};
use super::poisson;
use crate::error::{Error, Result};

/// How colours are mixed at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blend {
    /// The mask decides: inside the object, outside the image.
    Hard,
    /// By the instance's alpha.
    Alpha,
    /// By the mask, blurred 5 x 5.
    Gaussian,
    /// Seamless: gradients of the object, colours of the image (Perez et al. 2003).
    Poisson,
}

impl Blend {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::Hard, Self::Alpha, Self::Gaussian, Self::Poisson];

    /// `hard`, `alpha`, `gaussian` or `poisson`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Alpha => "alpha",
            Self::Gaussian => "gaussian",
            Self::Poisson => "poisson",
        }
    }

    /// The mode of a name.
    ///
    /// # Errors
    /// [`Error::Value`] listing the modes.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|b| b.name() == name)
            .ok_or_else(|| {
                Error::value(
                    "blend mode",
                    "hard, alpha, gaussian or poisson",
                    format!("{name:?}"),
                )
            })
    }
}

/// Mixes `over` onto `under` by `weight` (0..=255), rounded.
fn mix(under: u8, over: u8, weight: u8) -> u8 {
    let v = u32::from(over) * u32::from(weight) + u32::from(under) * (255 - u32::from(weight));
    // Exact division by 255 for this range.
    ((v + 128 + ((v + 128) >> 8)) >> 8) as u8
}

/// Blends `cutout` into `image` (`u8 [H, W, 3]`, `image_width` columns) inside `w`.
pub(super) fn blend(
    image: &mut [u8],
    image_width: usize,
    cutout: &Cutout,
    w: Window,
    mode: Blend,
) {
    match mode {
        Blend::Hard => rows(image, image_width, cutout, w, |cutout, y, line| {
            line.copy_from_slice(&cutout.mask[y * cutout.picture.width..][..line.len()]);
            line.iter_mut()
                .for_each(|m| *m = if *m == 0 { 0 } else { 255 });
        }),
        Blend::Alpha => rows(image, image_width, cutout, w, |cutout, y, line| {
            let row = &cutout.picture.data[y * cutout.picture.width * 4..][..line.len() * 4];
            for (m, p) in line.iter_mut().zip(row.as_chunks::<4>().0) {
                *m = p[3];
            }
        }),
        Blend::Gaussian => {
            let soft = blurred(&cutout.mask, cutout.picture.height, cutout.picture.width);
            rows(image, image_width, cutout, w, |cutout, y, line| {
                line.copy_from_slice(&soft[y * cutout.picture.width..][..line.len()]);
            });
        }
        Blend::Poisson => poisson::blend(image, image_width, cutout, w),
    }
}

fn rows(
    image: &mut [u8],
    image_width: usize,
    cutout: &Cutout,
    w: Window,
    mut weights: impl FnMut(&Cutout, usize, &mut [u8]),
) {
    let mut line = vec![0u8; cutout.picture.width];
    // Nothing to do outside the foreground and the reach of the blur.
    let t = cutout.tight;
    let top = (t.y0 as usize).saturating_sub(BORDER).max(w.cutout_y);
    let bottom = (t.y1 as usize + BORDER).min(w.cutout_y + w.height);
    for y in top..bottom {
        weights(cutout, y, &mut line);
        let picture = &cutout.picture.data[(y * cutout.picture.width + w.cutout_x) * 4..];
        let row = w.image_y + y - w.cutout_y;
        let image = &mut image[(row * image_width + w.image_x) * 3..][..w.width * 3];
        let weights = &line[w.cutout_x..][..w.width];
        for ((to, p), &m) in image
            .as_chunks_mut::<3>()
            .0
            .iter_mut()
            .zip(picture.as_chunks::<4>().0)
            .zip(weights)
        {
            if m == 255 {
                *to = [p[0], p[1], p[2]];
            } else if m > 0 {
                *to = [
                    mix(to[0], p[0], m),
                    mix(to[1], p[1], m),
                    mix(to[2], p[2], m),
                ];
            }
        }
    }
}

/// A 0/1 mask, times 255, blurred with the 5 x 5 binomial kernel (OpenCV's for this size).
fn blurred(mask: &[u8], height: usize, width: usize) -> Vec<u8> {
    const K: [u32; 5] = [1, 4, 6, 4, 1];
    let mut across = vec![0u8; mask.len()];
    // Horizontal sums are at most 16.
    for (out, row) in across.chunks_exact_mut(width).zip(mask.chunks_exact(width)) {
        for (x, o) in out.iter_mut().enumerate() {
            *o = if x >= 2 && x + 2 < width {
                row[x - 2] + 4 * row[x - 1] + 6 * row[x] + 4 * row[x + 1] + row[x + 2]
            } else {
                let at = |d: usize| {
                    (x + d)
                        .checked_sub(2)
                        .and_then(|i| row.get(i))
                        .copied()
                        .unwrap_or(0)
                };
                K.iter().enumerate().map(|(d, &k)| k as u8 * at(d)).sum()
            };
        }
    }
    let mut out = vec![0u8; mask.len()];
    for (y, out) in out.chunks_exact_mut(width).enumerate() {
        let mut sums = vec![0u32; width];
        for (d, &k) in K.iter().enumerate() {
            let Some(row) = (y + d).checked_sub(2).filter(|r| *r < height) else {
                continue;
            };
            for (s, &v) in sums.iter_mut().zip(&across[row * width..][..width]) {
                *s += k * u32::from(v);
            }
        }
        for (o, s) in out.iter_mut().zip(sums) {
            *o = ((s * 255 + 128) >> 8) as u8;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_is_exact_at_the_ends_and_rounds_between() {
        for v in 0..=255u8 {
            assert_eq!(mix(v, 9, 0), v);
            assert_eq!(mix(9, v, 255), v);
            for w in [1u8, 77, 128, 254] {
                let exact = (f64::from(v) * f64::from(w) + 10.0 * f64::from(255 - w)) / 255.0;
                assert!((f64::from(mix(10, v, w)) - exact).abs() <= 0.5 + 1e-9);
            }
        }
    }

    #[test]
    fn the_blur_is_binomial() {
        let mut mask = vec![0u8; 49];
        mask[24] = 1;
        let b = blurred(&mask, 7, 7);
        assert_eq!(b[24], ((36 * 255 + 128) >> 8) as u8);
        assert_eq!(b[22], ((6 * 255 + 128) >> 8) as u8);
        assert_eq!(b[21], 0);
        assert!(blurred(&[1; 81], 9, 9)[40] == 255);
    }
}
