//! Planes of pixels: what the stages of a paste hand to each other.

use crate::geometry::PixelBox;

/// Pixels around the foreground that a cutout has at least (a 5 x 5 blur reaches 2 further).
pub(super) const BORDER: usize = 2;

/// A picture with alpha, `u8 [h, w, 4]`, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rgba {
    pub height: usize,
    pub width: usize,
    pub data: Vec<u8>,
}

/// A cutout: its picture, the foreground (1 inside), and the foreground's tight box in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cutout {
    pub picture: Rgba,
    pub mask: Vec<u8>,
    pub tight: PixelBox,
}

/// The part of a cutout that lies on the image: rows and columns of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub image_x: usize,
    pub image_y: usize,
    pub cutout_x: usize,
    pub cutout_y: usize,
    pub width: usize,
    pub height: usize,
}

/// The window of a `height` x `width` cutout whose corner is at (`x`, `y`) on an
/// `image_height` x `image_width` image, `None` when they do not meet.
pub(super) fn window(
    (x, y): (i64, i64),
    (height, width): (usize, usize),
    (image_height, image_width): (usize, usize),
) -> Option<Window> {
    let (left, top) = (x.max(0), y.max(0));
    let right = (x + width as i64).min(image_width as i64);
    let bottom = (y + height as i64).min(image_height as i64);
    (left < right && top < bottom).then(|| Window {
        image_x: left as usize,
        image_y: top as usize,
        cutout_x: (left - x) as usize,
        cutout_y: (top - y) as usize,
        width: (right - left) as usize,
        height: (bottom - top) as usize,
    })
}

/// Tight box of what is not 0, eight bytes at a time.
pub(super) fn tight_box(plane: &[u8], width: usize) -> Option<PixelBox> {
    let any = |row: &[u8]| {
        let (words, rest) = row.as_chunks::<32>();
        words.iter().any(|w| w.iter().fold(0, |a, b| a | b) != 0)
            || rest.iter().any(|v| *v != 0)
    };
    let rows = || plane.chunks_exact(width.max(1));
    let y0 = rows().position(any)?;
    let y1 = rows().len() - rows().rev().position(any)?;
    let (mut x0, mut x1) = (width, 0);
    for row in rows().skip(y0).take(y1 - y0) {
        // Only what could widen the box is looked at.
        if let Some(head) = row.get(..x0) {
            x0 = first_set(head).unwrap_or(x0);
        }
        if let Some(tail) = row.get(x1..) {
            x1 += last_set(tail).map_or(0, |i| i + 1);
        }
    }
    Some(PixelBox::new(x0 as u32, y0 as u32, x1 as u32, y1 as u32))
}

pub(super) fn first_set(row: &[u8]) -> Option<usize> {
    let (words, rest) = row.as_chunks::<16>();
    match words
        .iter()
        .position(|w| w.iter().fold(0, |a, b| a | b) != 0)
    {
        Some(k) => row
            .iter()
            .skip(16 * k)
            .position(|v| *v != 0)
            .map(|i| 16 * k + i),
        None => rest
            .iter()
            .position(|v| *v != 0)
            .map(|i| 16 * words.len() + i),
    }
}

fn last_set(row: &[u8]) -> Option<usize> {
    let (rest, words) = row.as_rchunks::<16>();
    match words
        .iter()
        .rposition(|w| w.iter().fold(0, |a, b| a | b) != 0)
    {
        Some(k) => {
            let end = rest.len() + 16 * (k + 1);
            row.iter().take(end).rposition(|v| *v != 0)
        }
        None => rest.iter().rposition(|v| *v != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(w: usize, h: usize, b: PixelBox) -> Vec<u8> {
        let mut plane = vec![0; w * h];
        for y in b.y0 as usize..b.y1 as usize {
            plane[y * w + b.x0 as usize..y * w + b.x1 as usize].fill(1);
        }
        plane
    }

    #[test]
    fn tight_boxes_are_tight() {
        for b in [
            [0, 0, 1, 1],
            [99, 49, 100, 50],
            [3, 7, 80, 20],
            [31, 0, 33, 50],
        ] {
            let b = PixelBox::from(b);
            assert_eq!(tight_box(&filled(100, 50, b), 100), Some(b));
        }
        assert_eq!(tight_box(&[0; 100], 10), None);
    }

    #[test]
    fn windows_clip_on_every_side() {
        let w = window((-3, 5), (10, 8), (12, 20)).unwrap();
        assert_eq!(
            w,
            Window {
                image_x: 0,
                image_y: 5,
                cutout_x: 3,
                cutout_y: 0,
                width: 5,
                height: 7
            }
        );
        assert_eq!(window((20, 0), (5, 5), (10, 20)), None);
        assert_eq!(window((-5, 0), (5, 5), (10, 20)), None);
    }
}
