//! Masks as polygons.

use crate::error::Result;
use crate::geometry::PixelBox;
use crate::mask::Rle;

/// Polygons that give exactly this mask back; a mask with holes is cut through them.
///
/// COCO's polygons of one object are a union, so they cannot express a hole; cut at a hole's
/// first column, the hole lies at the edge of the right part and is open.
///
/// # Errors
/// When the mask is beyond what an RLE may have.
pub fn exact_polygons(rle: &Rle) -> Result<Vec<Vec<f64>>> {
    let polygons = rle.to_polygons();
    let filled = Rle::from_polygons(&polygons, rle.size())?;
    let Some(hole) = filled.subtract(rle)?.bbox() else {
        return Ok(polygons);
    };
    let size = rle.size();
    let mut all = Vec::new();
    for part in [
        PixelBox::new(0, 0, hole.x0, size.height),
        PixelBox::new(hole.x0, 0, size.width, size.height),
    ] {
        let half = rle.crop(part)?.paste(size, i64::from(part.x0), 0)?;
        // A cut at column 0 would leave everything in one part: then the outline stands.
        if half == *rle {
            return Ok(polygons);
        }
        if !half.is_empty() {
            all.extend(exact_polygons(&half)?);
        }
    }
    Ok(all)
}
