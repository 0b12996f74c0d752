//! COCO run-length encoding: column-major runs, background first.
//!
//! The format, as COCO's annotation files use it: positions are numbered down the columns
//! (`x * height + y`), run lengths alternate background and foreground and start with
//! background (so a mask whose first position is set starts with a run of 0), and they add up
//! to `height * width`. The *compressed* form writes each run, from the fourth on as the
//! difference to the run two before, as little-endian groups of five bits: bit 5 of a
//! character says that another group follows, bit 4 of the last group is the sign, and 48 is
//! added to make it printable.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};

use super::BinaryMask;
use super::contour;
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};

/// The most positions that a mask may have; a file that claims more is refused before
/// anything of that size is allocated.
pub const MAX_PIXELS: u64 = 1 << 28;

/// The largest polygon coordinate (in pixels, either sign) that is accepted.
const MAX_COORDINATE: f64 = 1e8;

/// Positions per pixel side in COCO's polygon rasteriser.
const SUBPIXELS: i64 = 5;

/// A run-length encoded mask in COCO's column-major order.
///
/// Always valid and canonical: the runs add up to `height * width`, only the first may be 0,
/// and two equal masks compare equal. It is written and read by serde as COCO writes it,
/// `{"size": [height, width], "counts": "..."}`; a list of runs is read as well.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rle {
    size: Size,
    counts: Vec<u32>,
}

/// One vertical piece of foreground: column `x`, rows `y0..y1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnRun {
    /// Column.
    pub x: u32,
    /// First row.
    pub y0: u32,
    /// One past the last row.
    pub y1: u32,
}

/// Collects foreground pieces in increasing order into canonical runs.
struct Runs {
    counts: Vec<u32>,
    /// Position up to which `counts` reach.
    end: u64,
}

impl Runs {
    fn new() -> Self {
        Self {
            counts: Vec::new(),
            end: 0,
        }
    }

    /// Adds foreground `start..stop`; pieces must come in order and may touch.
    fn push(&mut self, start: u64, stop: u64) {
        if stop <= start {
            return;
        }
        match self.counts.last_mut() {
            Some(last) if start == self.end => *last += (stop - start) as u32,
            _ => {
                self.counts.push((start - self.end) as u32);
                self.counts.push((stop - start) as u32);
            }
        }
        self.end = stop;
    }

    /// Closes the runs at `total` positions.
    fn finish(mut self, size: Size) -> Rle {
        let total = size.area();
        if total > self.end || self.counts.is_empty() {
            self.counts.push((total - self.end) as u32);
        }
        Rle {
            size,
            counts: self.counts,
        }
    }
}

fn check_size(size: Size) -> Result<()> {
    if size.area() > MAX_PIXELS {
        return Err(Error::value(
            "RLE size",
            format!("at most {MAX_PIXELS} positions"),
            format!("{} x {} (height x width)", size.height, size.width),
        ));
    }
    Ok(())
}

impl Rle {
    /// A mask from its run lengths; runs of 0 inside are joined away.
    ///
    /// # Errors
    /// [`Error::Value`] when the runs do not add up to `height * width`, or the size is over
    /// [`MAX_PIXELS`].
    pub fn new(size: Size, counts: &[u32]) -> Result<Self> {
        check_size(size)?;
        let total: u64 = counts.iter().map(|&c| u64::from(c)).sum();
        if total != size.area() {
            return Err(Error::value(
                "RLE counts",
                format!(
                    "runs that add up to {} x {} = {}",
                    size.height,
                    size.width,
                    size.area()
                ),
                format!("{} runs that add up to {total}", counts.len()),
            ));
        }
        let mut runs = Runs::new();
        let mut position = 0u64;
        for (i, &c) in counts.iter().enumerate() {
            let stop = position + u64::from(c);
            if i % 2 == 1 {
                runs.push(position, stop);
            }
            position = stop;
        }
        Ok(runs.finish(size))
    }

    /// A mask without foreground.
    ///
    /// # Errors
    /// [`Error::Value`] when the size is over [`MAX_PIXELS`].
    pub fn empty(size: Size) -> Result<Self> {
        check_size(size)?;
        Ok(Runs::new().finish(size))
    }

    /// Encodes a mask.
    ///
    /// # Errors
    /// [`Error::Value`] when the size is over [`MAX_PIXELS`].
    pub fn encode(mask: &BinaryMask) -> Result<Self> {
        // Columns are read through a transposed strip, so that memory is walked along rows.
        const STRIP: usize = 32;
        let size = mask.size();
        check_size(size)?;
        let mut runs = Runs::new();
        let Some(tight) = mask.tight_box() else {
            return Ok(runs.finish(size));
        };
        let (h, w) = (size.height as usize, size.width as usize);
        let (y0, y1) = (tight.y0 as usize, tight.y1 as usize);
        let rows = y1 - y0;
        let mut strip = vec![0u8; STRIP * rows];
        let mut left = tight.x0 as usize;
        while left < tight.x1 as usize {
            let n = STRIP.min(tight.x1 as usize - left);
            for (y, row) in mask.data().chunks_exact(w).skip(y0).take(rows).enumerate() {
                for (c, &v) in row[left..left + n].iter().enumerate() {
                    strip[c * rows + y] = v;
                }
            }
            for c in 0..n {
                let column = &strip[c * rows..(c + 1) * rows];
                let base = ((left + c) * h + y0) as u64;
                let mut at = 0;
                while let Some(skip) = column[at..].iter().position(|&v| v != 0) {
                    let start = at + skip;
                    let len = column[start..]
                        .iter()
                        .position(|&v| v == 0)
                        .unwrap_or(rows - start);
                    at = start + len;
                    runs.push(base + start as u64, base + at as u64);
                }
            }
            left += n;
        }
        Ok(runs.finish(size))
    }

    /// Decodes into a row-major mask.
    pub fn decode(&self) -> BinaryMask {
        let mut mask = BinaryMask::zeros(self.size);
        let w = self.size.width as usize;
        let data = mask.data_mut();
        for run in self.columns() {
            let start = run.y0 as usize * w + run.x as usize;
            let rows = (run.y1 - run.y0) as usize;
            for v in data[start..].iter_mut().step_by(w).take(rows) {
                *v = 1;
            }
        }
        mask
    }

    /// Height and width of the mask.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Run lengths, background first, adding up to `height * width`.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Number of foreground positions.
    pub fn area(&self) -> u64 {
        self.counts
            .iter()
            .skip(1)
            .step_by(2)
            .map(|&c| u64::from(c))
            .sum()
    }

    /// Whether there is no foreground.
    pub fn is_empty(&self) -> bool {
        self.counts.len() < 2
    }

    /// Foreground runs `start..stop` in column-major positions, in order.
    fn spans(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut position = 0u64;
        self.counts.chunks(2).filter_map(move |pair| {
            let start = position + u64::from(pair[0]);
            let length = u64::from(*pair.get(1)?);
            position = start + length;
            Some((start, position))
        })
    }

    /// The foreground as vertical pieces, column by column from the left, each from the top.
    pub fn columns(&self) -> impl Iterator<Item = ColumnRun> + '_ {
        let h = u64::from(self.size.height).max(1);
        self.spans().flat_map(move |(start, stop)| {
            let (first, last) = (start / h, (stop - 1) / h);
            (first..=last).map(move |x| ColumnRun {
                x: x as u32,
                y0: start.saturating_sub(x * h) as u32,
                y1: (stop - x * h).min(h) as u32,
            })
        })
    }

    /// The tight box around the foreground, `None` when there is none.
    pub fn bbox(&self) -> Option<PixelBox> {
        self.columns().fold(None, |b: Option<PixelBox>, r| {
            Some(match b {
                None => PixelBox::new(r.x, r.y0, r.x + 1, r.y1),
                Some(b) => PixelBox::new(b.x0, b.y0.min(r.y0), r.x + 1, b.y1.max(r.y1)),
            })
        })
    }

    /// COCO's compressed counts string.
    pub fn to_coco_string(&self) -> String {
        let mut out = String::with_capacity(self.counts.len() * 2);
        for (i, &count) in self.counts.iter().enumerate() {
            let base = if i > 2 { self.counts[i - 2] } else { 0 };
            let mut rest = i64::from(count) - i64::from(base);
            loop {
                let group = (rest & 0x1f) as u8;
                rest >>= 5;
                // Done when the remaining bits are all copies of this group's sign bit.
                let done = rest == if group & 0x10 != 0 { -1 } else { 0 };
                let more = if done { 0 } else { 0x20 };
                out.push(char::from((group | more) + 48));
                if done {
                    break;
                }
            }
        }
        out
    }

    /// Reads COCO's compressed counts string for a mask of `size`.
    ///
    /// # Errors
    /// [`Error::Value`], naming the character's index, for a character outside `0`..=`o`, a
    /// number that does not end or does not fit, a run below 0; and when the runs do not add
    /// up to `height * width`.
    pub fn from_coco_string(text: &str, size: Size) -> Result<Self> {
        check_size(size)?;
        let bad = |at: usize, expected: &str, got: String| {
            Err(Error::value(
                format!("compressed RLE counts, character {at}"),
                expected,
                got,
            ))
        };
        let area = size.area() as i64;
        let mut counts: Vec<u32> = Vec::new();
        let mut left = area;
        let (mut value, mut shift) = (0i64, 0u32);
        for (at, byte) in text.bytes().enumerate() {
            if !(48..48 + 64).contains(&byte) {
                return bad(at, "a character from '0' to 'o'", format!("byte {byte}"));
            }
            let group = i64::from(byte - 48);
            // 2^28 positions and a sign need six groups of five bits.
            if shift > 30 {
                return bad(
                    at,
                    "a run of at most seven characters",
                    "a longer one".into(),
                );
            }
            value |= (group & 0x1f) << shift;
            shift += 5;
            if group & 0x20 != 0 {
                continue;
            }
            if group & 0x10 != 0 {
                value -= 1i64 << shift;
            }
            if counts.len() > 2 {
                value += i64::from(counts[counts.len() - 2]);
            }
            if value < 0 || value > left {
                return bad(
                    at,
                    &format!(
                        "a run of 0 to {left} (a mask of {} x {})",
                        size.height, size.width
                    ),
                    value.to_string(),
                );
            }
            left -= value;
            counts.push(value as u32);
            (value, shift) = (0, 0);
        }
        if shift != 0 {
            return bad(
                text.len(),
                "another character of the last run",
                "the end of the string".into(),
            );
        }
        Self::new(size, &counts)
    }

    /// The union of polygons, rasterised as COCO does.
    ///
    /// Each polygon is a flat `[x0, y0, x1, y1, ...]` in pixels, where `(0, 0)` is the corner
    /// of the first pixel. Vertices are rounded to fifths of a pixel; the outline is a digital
    /// line on that lattice, and a pixel column takes its transitions where the outline
    /// crosses the column's middle; even-odd rule within a polygon, union between polygons.
    /// Parts outside the image are cut off. No polygon gives an empty mask.
    ///
    /// # Errors
    /// [`Error::Value`] for a polygon with fewer than six numbers or an odd number of them, or a
    /// coordinate that is not finite or beyond 1e8 pixels, or a size over [`MAX_PIXELS`].
    pub fn from_polygons(polygons: &[Vec<f64>], size: Size) -> Result<Self> {
        let mut all = Self::empty(size)?;
        for (i, polygon) in polygons.iter().enumerate() {
            if polygon.len() < 6 || polygon.len() % 2 != 0 {
                return Err(Error::value(
                    format!("polygon {i}"),
                    "an even number of coordinates, at least six",
                    format!("{} numbers", polygon.len()),
                ));
            }
            if let Some((at, v)) = polygon
                .iter()
                .enumerate()
                .find(|(_, v)| !v.is_finite() || v.abs() > MAX_COORDINATE)
            {
                return Err(Error::value(
                    format!("polygon {i}, number {at}"),
                    "a finite coordinate of at most 1e8 pixels",
                    v,
                ));
            }
            let one = rasterise(polygon, size);
            all = if i == 0 { one } else { all.union(&one)? };
        }
        Ok(all)
    }

    /// Outlines of the foreground as COCO polygons, one flat `[x0, y0, x1, y1, ...]` (at least
    /// eight numbers, corner coordinates) for each 4-connected component.
    ///
    /// [`Rle::from_polygons`] gives exactly the same mask back when it has no holes; holes are
    /// filled, since COCO's polygons cannot express them.
    pub fn to_polygons(&self) -> Vec<Vec<f64>> {
        contour::outlines(self)
    }

    fn same_size(&self, other: &Self) -> Result<()> {
        if self.size != other.size {
            return Err(Error::value(
                "second mask's size",
                format!("{} x {}", self.size.height, self.size.width),
                format!("{} x {}", other.size.height, other.size.width),
            ));
        }
        Ok(())
    }

    /// Position by position, `keep(in self, in other)`; `keep(false, false)` must be false.
    fn combine(&self, other: &Self, keep: impl Fn(bool, bool) -> bool) -> Result<Self> {
        self.same_size(other)?;
        let total = self.size.area();
        let (mut i, mut j) = (0usize, 0usize);
        // Ends of the current run of each mask; runs at odd indices are foreground.
        let run = |r: &Self, k: usize, end: u64| r.counts.get(k).map(|&c| end + u64::from(c));
        let mut end_a = run(self, 0, 0).unwrap_or(total);
        let mut end_b = run(other, 0, 0).unwrap_or(total);
        let mut position = 0u64;
        let mut runs = Runs::new();
        while position < total {
            let stop = end_a.min(end_b);
            if keep(i % 2 == 1, j % 2 == 1) {
                runs.push(position, stop);
            }
            position = stop;
            if end_a == stop {
                i += 1;
                end_a = run(self, i, end_a).unwrap_or(total);
            }
            if end_b == stop {
                j += 1;
                end_b = run(other, j, end_b).unwrap_or(total);
            }
        }
        Ok(runs.finish(self.size))
    }

    /// Foreground of either mask.
    ///
    /// # Errors
    /// [`Error::Value`] when the sizes differ; so for the other set operations.
    pub fn union(&self, other: &Self) -> Result<Self> {
        self.combine(other, |a, b| a || b)
    }

    /// Foreground of both masks.
    ///
    /// # Errors
    /// As [`Rle::union`].
    pub fn intersect(&self, other: &Self) -> Result<Self> {
        self.combine(other, |a, b| a && b)
    }

    /// Foreground of this mask that is not in `other`.
    ///
    /// # Errors
    /// As [`Rle::union`].
    pub fn subtract(&self, other: &Self) -> Result<Self> {
        self.combine(other, |a, b| a && !b)
    }

    /// Number of positions in both masks.
    ///
    /// # Errors
    /// As [`Rle::union`].
    pub fn intersection_area(&self, other: &Self) -> Result<u64> {
        self.same_size(other)?;
        let mut area = 0;
        let (mut a, mut b) = (self.spans(), other.spans());
        let (mut x, mut y) = (a.next(), b.next());
        while let (Some((a0, a1)), Some((b0, b1))) = (x, y) {
            area += a1.min(b1).saturating_sub(a0.max(b0));
            if a1 <= b1 {
                x = a.next();
            } else {
                y = b.next();
            }
        }
        Ok(area)
    }

    /// Intersection over union, 0 for two empty masks.
    ///
    /// # Errors
    /// As [`Rle::union`].
    pub fn iou(&self, other: &Self) -> Result<f64> {
        let both = self.intersection_area(other)?;
        let either = self.area() + other.area() - both;
        Ok(if either == 0 {
            0.0
        } else {
            both as f64 / either as f64
        })
    }

    /// The part inside `window`, as a mask of the window's size.
    ///
    /// # Errors
    /// [`Error::Value`] when the window is empty or leaves the mask.
    pub fn crop(&self, window: PixelBox) -> Result<Self> {
        if window.is_empty() || window.x1 > self.size.width || window.y1 > self.size.height {
            return Err(Error::value(
                "crop box",
                format!(
                    "(x0, y0, x1, y1) with x0 < x1 <= {} and y0 < y1 <= {}",
                    self.size.width, self.size.height
                ),
                format!("{:?}", <[u32; 4]>::from(window)),
            ));
        }
        Ok(self.place(-i64::from(window.x0), -i64::from(window.y0), window.size()))
    }

    /// The mask with its top left corner at `(x, y)` of an empty canvas; what falls outside is
    /// cut off.
    ///
    /// # Errors
    /// [`Error::Value`] when the canvas is over [`MAX_PIXELS`].
    pub fn paste(&self, canvas: Size, x: i64, y: i64) -> Result<Self> {
        check_size(canvas)?;
        Ok(self.place(x, y, canvas))
    }

    /// Shifts by `(dx, dy)` into a mask of `size`.
    fn place(&self, dx: i64, dy: i64, size: Size) -> Self {
        let (h, w) = (i64::from(size.height), i64::from(size.width));
        let mut runs = Runs::new();
        for r in self.columns() {
            let x = i64::from(r.x).saturating_add(dx);
            let y0 = i64::from(r.y0).saturating_add(dy).clamp(0, h);
            let y1 = i64::from(r.y1).saturating_add(dy).clamp(0, h);
            if (0..w).contains(&x) && y0 < y1 {
                runs.push((x * h + y0) as u64, (x * h + y1) as u64);
            }
        }
        runs.finish(size)
    }
}

/// One polygon's mask by COCO's rule (see [`Rle::from_polygons`]); the input is checked.
///
/// Works edge by edge: for each pixel column whose middle the edge crosses, the row of the
/// crossing is found directly, so that the cost grows with the columns of the image and not
/// with the length of the outline.
fn rasterise(polygon: &[f64], size: Size) -> Rle {
    let (h, w) = (i64::from(size.height), i64::from(size.width));
    let scale = SUBPIXELS as f64;
    let vertices: Vec<(i64, i64)> = polygon
        .chunks_exact(2)
        .map(|p| {
            let lattice = |v: f64| (scale * v + 0.5) as i64;
            (lattice(p[0]), lattice(p[1]))
        })
        .collect();
    // Positions at which foreground and background change places.
    let mut toggles: Vec<u64> = Vec::new();
    let next = vertices.iter().cycle().skip(1);
    for (&a, &b) in vertices.iter().zip(next) {
        let (dx, dy) = ((b.0 - a.0).abs(), (b.1 - a.1).abs());
        if dx == 0 {
            continue;
        }
        // The digital line is drawn from the smaller end along its longer side.
        let wide = dx >= dy;
        let flip = if wide { a.0 > b.0 } else { a.1 > b.1 };
        let ((xs, ys), (xe, ye)) = if flip { (b, a) } else { (a, b) };
        let slope = if wide {
            (ye - ys) as f64 / dx as f64
        } else {
            (xe - xs) as f64 / dy as f64
        };
        // Lattice coordinate of the short side, `t` steps along the long one.
        let short = |t: i64| {
            let start = if wide { ys } else { xs };
            (start as f64 + slope * t as f64 + 0.5) as i64
        };
        // The middle of pixel column k lies between the lattice columns 5k + 2 and 5k + 3.
        let (low, high) = (xs.min(xe), xs.max(xe));
        let first = (low - 2 + SUBPIXELS - 1).div_euclid(SUBPIXELS).max(0);
        let last = (high - 3).div_euclid(SUBPIXELS).min(w - 1);
        for k in first..=last {
            let left = SUBPIXELS * k + 2;
            let y = if wide {
                let t = left - xs;
                short(t).min(short(t + 1))
            } else {
                // `short` is monotone along the edge: find the first step on the far side.
                let beyond = |t: i64| {
                    if xe > xs {
                        short(t) > left
                    } else {
                        short(t) <= left
                    }
                };
                let (mut near, mut far) = (0, dy);
                while far - near > 1 {
                    let middle = near + (far - near) / 2;
                    if beyond(middle) {
                        far = middle;
                    } else {
                        near = middle;
                    }
                }
                ys + near
            };
            // First pixel row whose middle is at or below the crossing.
            let row = (y + 2).div_euclid(SUBPIXELS).clamp(0, h);
            toggles.push((k * h + row) as u64);
        }
    }
    toggles.sort_unstable();
    let mut runs = Runs::new();
    // An outline is closed: every column has an even number of crossings.
    for pair in toggles.chunks_exact(2) {
        runs.push(pair[0], pair[1]);
    }
    runs.finish(size)
}

impl Serialize for Rle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Rle", 2)?;
        s.serialize_field("size", &[self.size.height, self.size.width])?;
        s.serialize_field("counts", &self.to_coco_string())?;
        s.end()
    }
}

/// `counts` of an RLE in a file: COCO's string, or the plain list of runs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Counts {
    Compressed(String),
    Plain(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RleFields {
    size: [u32; 2],
    counts: Counts,
}

impl<'de> Deserialize<'de> for Rle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = RleFields::deserialize(deserializer)?;
        let size = Size::new(fields.size[0], fields.size[1]);
        match fields.counts {
            Counts::Compressed(text) => Self::from_coco_string(&text, size),
            Counts::Plain(counts) => Self::new(size, &counts),
        }
        .map_err(de::Error::custom)
    }
}

impl fmt::Display for Rle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mask of {} x {}, {} positions set",
            self.size.height,
            self.size.width,
            self.area()
        )
    }
}
