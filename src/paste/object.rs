//! Objects on the image: masks inside their boxes, and what pasting takes away from them.

use super::plane::{Window, first_set, tight_box};
use super::polygons::exact_polygons;
use crate::error::Result;
use crate::geometry::{PixelBox, Size};
use crate::mask::{BinaryMask, Rle, contour};

/// A mask inside its box: `u8 [box height, box width]`, row-major, 0 or 1, at least one 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    bbox: PixelBox,
    data: Vec<u8>,
    area: u64,
}

impl Region {
    /// The foreground of a row-major plane (whatever is not 0) of `size`, `None` without any.
    pub fn from_plane(plane: &[u8], size: Size) -> Option<Self> {
        let bbox = tight_box(plane, size.width as usize)?;
        let mut data = crop(plane, size.width as usize, bbox);
        data.iter_mut().for_each(|v| *v = u8::from(*v != 0));
        Some(Self {
            bbox,
            area: area(&data),
            data,
        })
    }

    /// The foreground of an RLE, `None` without any.
    pub fn from_rle(rle: &Rle) -> Option<Self> {
        let bbox = rle.bbox()?;
        let width = bbox.width() as usize;
        let mut data = vec![0u8; bbox.size().area() as usize];
        for run in rle.columns() {
            let start = (run.y0 - bbox.y0) as usize * width + (run.x - bbox.x0) as usize;
            let rows = (run.y1 - run.y0) as usize;
            for v in data.iter_mut().skip(start).step_by(width).take(rows) {
                *v = 1;
            }
        }
        Some(Self {
            bbox,
            area: rle.area(),
            data,
        })
    }

    /// What of a cutout's mask (row-major, `width` columns) is visible through `w`.
    pub(super) fn visible(mask: &[u8], width: usize, w: Window) -> Option<Self> {
        let seen = PixelBox::new(
            w.cutout_x as u32,
            w.cutout_y as u32,
            (w.cutout_x + w.width) as u32,
            (w.cutout_y + w.height) as u32,
        );
        let part = crop(mask, width, seen);
        let size = seen.size();
        let mut region = Self::from_plane(&part, size)?;
        let b = region.bbox;
        let (dx, dy) = (w.image_x as u32, w.image_y as u32);
        region.bbox = PixelBox::new(b.x0 + dx, b.y0 + dy, b.x1 + dx, b.y1 + dy);
        Some(region)
    }

    /// Its tight box on the image.
    pub const fn bbox(&self) -> PixelBox {
        self.bbox
    }

    /// Number of foreground pixels.
    pub const fn area(&self) -> u64 {
        self.area
    }

    /// The rows of its box: (row of the image, first column, foreground bytes).
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize, &[u8])> {
        self.data
            .chunks_exact((self.bbox.width() as usize).max(1))
            .enumerate()
            .map(|(y, row)| (self.bbox.y0 as usize + y, self.bbox.x0 as usize, row))
    }

    /// The whole mask on an image of `size`.
    ///
    /// # Errors
    /// When the size is beyond what an RLE may have.
    pub fn to_rle(&self, size: Size) -> Result<Rle> {
        let own = BinaryMask::from_vec(self.bbox.size(), self.data.clone())?;
        Rle::encode(&own)?.paste(size, i64::from(self.bbox.x0), i64::from(self.bbox.y0))
    }

    /// Polygons that give exactly this mask back (see [`exact_polygons`]), on an image of `size`.
    ///
    /// # Errors
    /// When the size is beyond what an RLE may have.
    pub fn to_polygons(&self, size: Size) -> Result<Vec<Vec<f64>>> {
        let width = self.bbox.width() as usize;
        let inside = |x: i64, y: i64| {
            (0..width as i64).contains(&x)
                && y >= 0
                && self.data.get(y as usize * width + x as usize) == Some(&1)
        };
        // The box is tight, so its first row has foreground.
        if let Some(first) = first_set(&self.data) {
            let corner = (i64::from(self.bbox.x0), i64::from(self.bbox.y0));
            let outline = contour::outline(inside, (first as i64, 0), corner);
            // Nearly always one piece without a hole: then, and only then, the areas agree.
            if contour::area(&outline) == self.area as f64 {
                return Ok(vec![outline]);
            }
        }
        exact_polygons(&self.to_rle(size)?)
    }

    /// Removes what `other` covers; says whether that was anything.
    fn subtract(&mut self, other: &Self) -> bool {
        let common = self.bbox.intersect(other.bbox);
        if common.is_empty() {
            return false;
        }
        let (own_w, other_w) = (self.bbox.width() as usize, other.bbox.width() as usize);
        let n = common.width() as usize;
        let mut removed = 0u64;
        for y in common.y0..common.y1 {
            let own = (y - self.bbox.y0) as usize * own_w + (common.x0 - self.bbox.x0) as usize;
            let cover =
                (y - other.bbox.y0) as usize * other_w + (common.x0 - other.bbox.x0) as usize;
            let (Some(own), Some(cover)) = (
                self.data.get_mut(own..own + n),
                other.data.get(cover..cover + n),
            ) else {
                continue;
            };
            // Counted in bytes, as many as cannot overflow, for the compiler's sake.
            for (own, cover) in own.chunks_mut(128).zip(cover.chunks(128)) {
                let mut both = 0u8;
                for (a, &b) in own.iter_mut().zip(cover) {
                    both += *a & b;
                    *a &= 1 - b;
                }
                removed += u64::from(both);
            }
        }
        self.area -= removed.min(self.area);
        removed > 0
    }

    /// Shrinks the box to the foreground; `None` when there is none.
    fn tightened(&self) -> Option<Self> {
        let size = self.bbox.size();
        let mut region = Self::from_plane(&self.data, size)?;
        let b = region.bbox;
        let (dx, dy) = (self.bbox.x0, self.bbox.y0);
        region.bbox = PixelBox::new(b.x0 + dx, b.y0 + dy, b.x1 + dx, b.y1 + dy);
        Some(region)
    }
}

fn area(data: &[u8]) -> u64 {
    data.chunks(128)
        .map(|c| u64::from(c.iter().map(|&v| u32::from(v)).sum::<u32>()))
        .sum()
}

fn crop(plane: &[u8], width: usize, part: PixelBox) -> Vec<u8> {
    let n = part.width() as usize;
    let mut out = Vec::with_capacity(part.size().area() as usize);
    for y in part.y0 as usize..part.y1 as usize {
        let from = y * width + part.x0 as usize;
        out.extend_from_slice(plane.get(from..from + n).unwrap_or_default());
    }
    out
}

/// An object of the image.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its mask; `None` when nothing is left (or was ever there).
    pub region: Option<Region>,
    /// Class index.
    pub class: i64,
    /// Whether a paste put it there.
    pub is_pasted: bool,
    /// Whether a paste took something from it.
    pub touched: bool,
    /// Whether it stays; decided at the end of a paste.
    pub kept: bool,
    /// Its tight box before.
    original: PixelBox,
}

impl Object {
    /// An object that was on the image before; without a region it will not be kept.
    pub fn real(region: Option<Region>, class: i64) -> Self {
        let original = region
            .as_ref()
            .map_or(PixelBox::new(0, 0, 0, 0), Region::bbox);
        Self {
            kept: region.is_some(),
            region,
            class,
            is_pasted: false,
            touched: false,
            original,
        }
    }

    pub(super) fn pasted(region: Region, category: u32) -> Self {
        let mut object = Self::real(Some(region), i64::from(category));
        object.is_pasted = true;
        object
    }

    /// Takes away what `cover` hides.
    pub(super) fn cover(&mut self, cover: &Region) {
        if let Some(region) = &mut self.region {
            self.touched |= region.subtract(cover);
        }
    }

    /// Whether it stays: its box moved by at most `tolerance` on every side, or it keeps more
    /// than `area` pixels; never when nothing is left.
    pub(super) fn decide(&mut self, tolerance: f64, area: u64) {
        if self.touched {
            self.region = self.region.take().and_then(|r| r.tightened());
        }
        self.kept = self.region.as_ref().is_some_and(|r| {
            let (a, b) = (<[u32; 4]>::from(self.original), <[u32; 4]>::from(r.bbox));
            let moved = a.iter().zip(b).map(|(a, b)| a.abs_diff(b)).max();
            !self.touched || f64::from(moved.unwrap_or(0)) <= tolerance || r.area > area
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(w: usize, h: usize, b: PixelBox) -> Vec<u8> {
        (0..w * h)
            .map(|i| {
                let (x, y) = ((i % w) as u32, (i / w) as u32);
                u8::from(x >= b.x0 && x < b.x1 && y >= b.y0 && y < b.y1)
            })
            .collect()
    }

    #[test]
    fn polygons_give_the_mask_back_with_holes_and_pieces() {
        let size = Size::new(30, 40);
        let whole = plane(40, 30, [5, 4, 25, 20].into());
        let with = |change: fn(usize, usize) -> Option<u8>| {
            let mut p = whole.clone();
            for (i, v) in p.iter_mut().enumerate() {
                *v = change(i % 40, i / 40).unwrap_or(*v);
            }
            Region::from_plane(&p, size).unwrap()
        };
        let round = with(|x, y| (x + y < 14 || (x == 24 && y % 3 == 0)).then_some(0));
        let hole = with(|x, y| (x > 9 && x < 14 && y > 9 && y < 14).then_some(0));
        // Another piece, and one that touches at a corner only.
        let pieces = with(|x, y| ((x > 30 && y > 22) || (x == 25 && y == 3)).then_some(1));
        let island = with(|x, y| {
            ((8..18).contains(&x) && (8..18).contains(&y))
                .then_some(u8::from(x == 12 && y == 12))
        });
        for (region, polygons) in [(round, 1), (hole, 2), (pieces, 3), (island, 0)] {
            let made = region.to_polygons(size).unwrap();
            assert!(polygons == 0 || made.len() == polygons, "{}", made.len());
            let back = Rle::from_polygons(&made, size).unwrap();
            assert_eq!(back, region.to_rle(size).unwrap());
        }
    }

    #[test]
    fn covering_takes_pixels_and_decides() {
        let size = Size::new(60, 60);
        let region = |b: [u32; 4]| Region::from_plane(&plane(60, 60, b.into()), size);
        let cover = region([20, 0, 60, 60]).unwrap();
        // Moves by 20 and keeps 200 px: leaves. Keeps 20 x 20 = 400 px: stays.
        for (b, area, kept) in [([10, 0, 40, 20], 200, false), ([0, 0, 40, 20], 400, true)] {
            let mut o = Object::real(region(b), 1);
            o.cover(&cover);
            o.decide(10.0, 300);
            assert_eq!((o.touched, o.kept), (true, kept));
            let r = o.region.unwrap();
            assert_eq!((r.area(), r.bbox().x1), (area, 20));
            assert_eq!(r.to_rle(size).unwrap().area(), area);
        }
        // Nothing left: leaves, however small it was.
        let mut o = Object::real(region([30, 30, 33, 33]), 1);
        o.cover(&cover);
        o.decide(10.0, 300);
        assert!(!o.kept && o.region.is_none());
        // Small, box moved by little: stays.
        let mut o = Object::real(region([12, 0, 22, 10]), 1);
        o.cover(&cover);
        o.decide(10.0, 300);
        assert!(o.kept);
        assert!(!Object::real(None, 1).kept);
    }
}
