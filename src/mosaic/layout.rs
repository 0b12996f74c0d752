//! Where the regions of a mosaic lie.

use rand::RngExt;

use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::recipe::Recipe;
use crate::rng;

/// One region's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What is denoised for the region: it reaches past the centre lines by half the overlap.
    pub region: PixelBox,
    /// The region's own part of the canvas, up to the centre lines; these tile the canvas.
    pub own: PixelBox,
}

/// A canvas and its regions, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The whole canvas, pixels.
    pub canvas: Size,
    /// Its regions.
    pub parts: Vec<Part>,
}

impl Layout {
    /// Draws the layout that `seed` stands for: `recipe.regions` regions around a centre that is
    /// uniform over `recipe.center` shares of the base region, rounded down to multiples of
    /// `multiple` pixels (the latent space's). Two regions stand side by side or one above the
    /// other at random.
    ///
    /// # Errors
    /// [`Error::Value`] when the base region or the overlap is not a multiple of `multiple`, or the
    /// overlap is too large for the smallest region.
    pub fn draw(recipe: &Recipe, multiple: u32, seed: u64) -> Result<Self> {
        let base = recipe.base();
        base.to_latent(multiple).map_err(|_| {
            Error::value(
                "recipe, keys \"height\" and \"width\"",
                format!("multiples of {multiple} (the model's latent grid)"),
                format!("{} and {}", base.height, base.width),
            )
        })?;
        let [overlap_y, overlap_x] = match recipe.overlap {
            Some(overlap) => overlap,
            // An eighth of the side, in whole multiples on both sides of the centre line.
            None => [base.height, base.width].map(|s| s / 8 / (2 * multiple) * (2 * multiple)),
        };
        let mut draw = rng::keyed(seed, "layout", 0);
        let [low, high] = recipe.center;
        let mut center = |side: u32| {
            let at = draw.random_range(low..=high) * f64::from(side);
            ((at / f64::from(multiple)).floor() as u32 * multiple)
                .clamp(multiple, 2 * side - multiple)
        };
        let (cy, cx) = (center(base.height), center(base.width));
        let beside = draw.random_bool(0.5);
        let (rows, columns) = match (recipe.regions, beside) {
            (1, _) => (1, 1),
            (2, true) => (1, 2),
            (2, false) => (2, 1),
            _ => (2, 2),
        };
        let cuts = |n: u32, side: u32, at: u32| {
            if n == 1 {
                vec![0, side]
            } else {
                vec![0, at, 2 * side]
            }
        };
        let (ys, xs) = (cuts(rows, base.height, cy), cuts(columns, base.width, cx));
        let canvas = Size::new(rows * base.height, columns * base.width);
        let reach = |from: u32, to: u32, end: u32, overlap: u32, what: &str| {
            let half = overlap / 2;
            if !half.is_multiple_of(multiple) || !overlap.is_multiple_of(2) {
                return Err(Error::value(
                    format!("recipe, key \"overlap\" ({what})"),
                    format!(
                        "a multiple of {} (twice the model's latent grid)",
                        2 * multiple
                    ),
                    overlap,
                ));
            }
            let low = if from == 0 {
                0
            } else {
                from.saturating_sub(half)
            };
            let high = if to == end { end } else { (to + half).min(end) };
            Ok((low, high))
        };
        let mut parts = Vec::with_capacity(recipe.regions as usize);
        for y in ys.windows(2) {
            for x in xs.windows(2) {
                let (y0, y1) = reach(y[0], y[1], canvas.height, overlap_y, "height")?;
                let (x0, x1) = reach(x[0], x[1], canvas.width, overlap_x, "width")?;
                parts.push(Part {
                    region: PixelBox::new(x0, y0, x1, y1),
                    own: PixelBox::new(x[0], y[0], x[1], y[1]),
                });
            }
        }
        Ok(Self { canvas, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(regions: u32) -> Recipe {
        Recipe {
            regions,
            ..Recipe::default()
        }
    }

    #[test]
    fn parts_tile_the_canvas_and_regions_reach_over_by_half_the_overlap() {
        for seed in 0..200 {
            for regions in [1, 2, 4] {
                let layout = Layout::draw(&recipe(regions), 8, seed).unwrap();
                let area: u64 = layout.parts.iter().map(|p| p.own.size().area()).sum();
                assert_eq!(area, layout.canvas.area());
                for part in &layout.parts {
                    assert_eq!(part.region.intersect(part.own), part.own);
                    part.region.to_latent(8, layout.canvas).unwrap();
                    if regions == 4 {
                        assert_eq!(part.region.width(), part.own.width() + 32);
                        assert_eq!(part.region.height(), part.own.height() + 24);
                        let share = f64::from(part.own.width()) / 512.0;
                        assert!((0.74..=1.26).contains(&share), "{share}");
                    }
                }
            }
        }
    }

    #[test]
    fn two_regions_stand_both_ways_and_one_fills_the_base() {
        let sizes: std::collections::BTreeSet<_> = (0..50)
            .map(|s| Layout::draw(&recipe(2), 8, s).unwrap().canvas)
            .map(|s| (s.height, s.width))
            .collect();
        assert_eq!(
            sizes.into_iter().collect::<Vec<_>>(),
            [(384, 1024), (768, 512)]
        );
        let one = Layout::draw(&recipe(1), 8, 0).unwrap();
        assert_eq!(one.parts[0].region, PixelBox::new(0, 0, 512, 384));
    }

    #[test]
    fn sizes_that_do_not_divide_are_refused() {
        let odd = Recipe {
            height: 100,
            ..recipe(4)
        };
        assert!(
            Layout::draw(&odd, 8, 0)
                .unwrap_err()
                .to_string()
                .contains("height")
        );
        let odd = Recipe {
            overlap: Some([24, 64]),
            ..recipe(4)
        };
        assert!(
            Layout::draw(&odd, 8, 0)
                .unwrap_err()
                .to_string()
                .contains("overlap")
        );
    }
}
