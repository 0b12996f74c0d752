//! From mosaics to the folder of pictures and text files that YOLO's segmentation trainers read.
//!
//! ```text
//! <out>/data.yaml             where the pictures lie, and the names of the classes
//! <out>/images/<id>.png       the pictures
//! <out>/labels/<id>.txt       one line per instance: class x1 y1 x2 y2 ..., shares of the sides
//! ```
//!
//! The format, as Ultralytics documents it: <https://docs.ultralytics.com/datasets/segment/>.

use std::fmt::Write as _;
use std::path::Path;

use super::category::CategoryTable;
use super::entry::{Entry, IMAGES};
use super::file::write_beside;
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::Rle;

/// Folder of the text files.
const LABELS: &str = "labels";

/// One closed line around all parts of a mask, as a flat list of corner coordinates in pixels: a
/// line of YOLO's text cannot hold several. From one part the line goes to the next one's nearest
/// corner, around it, and back the same way, so that the area stays. Holes are filled.
pub fn single_outline(mask: &Rle) -> Vec<f64> {
    let mut parts: Vec<Vec<[f64; 2]>> = mask
        .to_polygons()
        .into_iter()
        .map(|p| p.chunks_exact(2).map(|c| [c[0], c[1]]).collect())
        .collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let mut line = parts.remove(0);
    while !parts.is_empty() {
        let mut best = (f64::INFINITY, 0, 0, 0);
        for (at, a) in line.iter().enumerate() {
            for (p, part) in parts.iter().enumerate() {
                for (from, b) in part.iter().enumerate() {
                    let distance = (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
                    if distance < best.0 {
                        best = (distance, at, p, from);
                    }
                }
            }
        }
        let (_, at, p, from) = best;
        let mut part = parts.swap_remove(p);
        part.rotate_left(from);
        // Around the part and back to where it was entered, then back to where it was left.
        let there = part.first().copied();
        let back = line.get(at).copied();
        part.extend(there);
        part.extend(back);
        line.splice(at + 1..at + 1, part);
    }
    line.into_iter().flatten().collect()
}

/// The text of one picture: a line for each instance; classes are positions in `table`.
///
/// # Errors
/// [`Error::UnknownCategory`].
pub fn label_text(entry: &Entry, table: &CategoryTable) -> Result<String> {
    let Size { height, width } = entry.mosaic.size;
    let mut text = String::new();
    for instance in &entry.mosaic.instances {
        let class = table.index(&instance.category.name)?;
        let _ = write!(text, "{class}");
        for corner in single_outline(&instance.mask).chunks_exact(2) {
            let (x, y) = (corner[0] / f64::from(width), corner[1] / f64::from(height));
            let _ = write!(text, " {x:.6} {y:.6}");
        }
        text.push('\n');
    }
    Ok(text)
}

/// Writes the folder; `picture` gives a record's picture as a PNG file. Returns the numbers of
/// pictures and instances. Mosaics without instances are left out.
///
/// # Errors
/// [`Error::UnknownCategory`], [`Error::Io`], and what `picture` returns.
pub fn write_yolo(
    out: &Path,
    entries: &[Entry],
    table: &CategoryTable,
    picture: &mut dyn FnMut(&Entry) -> Result<Vec<u8>>,
) -> Result<(usize, usize)> {
    for folder in [IMAGES, LABELS] {
        let dir = out.join(folder);
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    }
    let (mut images, mut instances) = (0, 0);
    for entry in entries.iter().filter(|e| !e.mosaic.instances.is_empty()) {
        let text = label_text(entry, table)?;
        let png = picture(entry)?;
        write_beside(
            &out.join(IMAGES).join(format!("{}.png", entry.mosaic.id)),
            |f| f.write_all(&png),
        )?;
        write_beside(
            &out.join(LABELS).join(format!("{}.txt", entry.mosaic.id)),
            |f| f.write_all(text.as_bytes()),
        )?;
        images += 1;
        instances += entry.mosaic.instances.len();
    }
    // JSON's strings are YAML's, too.
    let mut yaml = format!("train: {IMAGES}\nval: {IMAGES}\nnames:\n");
    for (i, c) in table.categories().iter().enumerate() {
        let name =
            serde_json::to_string(&c.name).map_err(|e| Error::backend("data.yaml", e))?;
        let _ = writeln!(yaml, "  {i}: {name}");
    }
    write_beside(&out.join("data.yaml"), |f| f.write_all(yaml.as_bytes()))?;
    Ok((images, instances))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::BinaryMask;

    fn area(line: &[f64]) -> f64 {
        let points: Vec<_> = line.chunks_exact(2).collect();
        let mut sum = 0.0;
        for i in 0..points.len() {
            let (a, b) = (points[i], points[(i + 1) % points.len()]);
            sum += a[0] * b[1] - b[0] * a[1];
        }
        (sum / 2.0).abs()
    }

    #[test]
    fn one_line_goes_around_all_parts_and_keeps_the_area() {
        let size = Size::new(12, 20);
        let mut mask = BinaryMask::zeros(size);
        for (x0, y0, x1, y1) in [(1, 1, 5, 4), (10, 2, 12, 9), (15, 8, 19, 11)] {
            for y in y0..y1 {
                for x in x0..x1 {
                    mask.data_mut()[y * 20 + x] = 1;
                }
            }
        }
        let rle = Rle::encode(&mask).unwrap();
        let line = single_outline(&rle);
        assert_eq!(area(&line), rle.area() as f64);
        // 3 rectangles, and two ways there and back.
        assert_eq!(line.len() / 2, 3 * 4 + 2 * 2);
        assert!(single_outline(&Rle::empty(size).unwrap()).is_empty());
    }
}
