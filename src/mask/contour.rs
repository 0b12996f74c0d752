//! Outlines of masks, along pixel edges.

use super::Rle;
use super::components::components;

/// Directions along pixel edges, clockwise on the screen: right, down, left, up.
const STEPS: [(i64, i64); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)];

/// The outer outline of every 4-connected component as a flat list of corner coordinates,
/// clockwise, without points in the middle of a straight side.
pub(super) fn outlines(rle: &Rle) -> Vec<Vec<f64>> {
    let Some(window) = rle.bbox() else {
        return Vec::new();
    };
    // Work on the tight box only; it lies within the mask, so the crop cannot fail.
    rle.crop(window).map_or_else(
        |_| Vec::new(),
        |crop| {
            let found = components(&crop.decode());
            let (h, w) = (i64::from(crop.size().height), i64::from(crop.size().width));
            let corner = (i64::from(window.x0), i64::from(window.y0));
            found
                .items
                .iter()
                .map(|component| {
                    let inside = |x: i64, y: i64| {
                        (0..w).contains(&x)
                            && (0..h).contains(&y)
                            && found.labels[(y * w + x) as usize] == component.label
                    };
                    let (x, y) = component.first;
                    outline(inside, (i64::from(x), i64::from(y)), corner)
                })
                .collect()
        },
    )
}

/// Area inside an outline, in square pixels.
pub(crate) fn area(outline: &[f64]) -> f64 {
    let (points, _) = outline.as_chunks::<2>();
    let next = points.iter().cycle().skip(1);
    let twice: f64 = points
        .iter()
        .zip(next)
        .map(|(a, b)| a[0] * b[1] - a[1] * b[0])
        .sum();
    (twice / 2.0).abs()
}

/// The outer outline of the piece at `first`, its first pixel in row order; everything that
/// touches it at a corner only is left out. `corner` is added to all coordinates.
pub(crate) fn outline(
    inside: impl Fn(i64, i64) -> bool,
    first: (i64, i64),
    corner: (i64, i64),
) -> Vec<f64> {
    // The first pixel has nothing above it: start along its top side, with the foreground on the
    // right hand.
    let (mut x, mut y) = first;
    let mut heading = 0usize;
    let mut outline = Vec::new();
    loop {
        let turned_from = heading;
        let (dx, dy) = STEPS[heading];
        (x, y) = (x + dx, y + dy);
        // The pixels ahead of this corner, on the right and on the left hand.
        let (right, left) = match heading {
            0 => ((x, y), (x, y - 1)),
            1 => ((x - 1, y), (x, y)),
            2 => ((x - 1, y - 1), (x - 1, y)),
            _ => ((x, y - 1), (x - 1, y - 1)),
        };
        // Pixels that touch at a corner only are kept apart: right turns first.
        if !inside(right.0, right.1) {
            heading = (heading + 1) % 4;
        } else if inside(left.0, left.1) {
            heading = (heading + 3) % 4;
        }
        if heading != turned_from {
            outline.push((x + corner.0) as f64);
            outline.push((y + corner.1) as f64);
        }
        if (x, y) == first && heading == 0 {
            return outline;
        }
    }
}
