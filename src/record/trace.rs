//! How each region of a mosaic came to its verdict, and how to make the mosaic again. Records of
//! pictures from elsewhere have neither.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize, de};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::Rle;
use crate::recipe::hex;

/// Longest side of a kept attention map.
const MOST_CELLS: u32 = 32;
/// Pixels per cell of a kept attention map, at least: as coarse as the finest maps of the model.
const PIXELS_PER_CELL: u32 = 4;

/// How a region came to its verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionTrace {
    /// Index into [`Generation::regions`]: where the picture was cut, not all of those are in the
    /// record.
    pub planned: u32,
    /// Its attention map, made small.
    pub attention: AttentionMap,
    /// Attention above this is the first mask, 0..1.
    pub threshold: f32,
    /// The refined mask before the filter, of the region's size.
    pub refined: Rle,
}

/// A small attention map.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    size: Size,
    levels: Vec<u8>,
}

impl AttentionMap {
    /// Means of `map` (row-major `[height, width]` in 0..1) over at most 32 x 32 cells, each at
    /// least 4 pixels wide, on 256 levels.
    ///
    /// # Errors
    /// [`Error::Value`] when the length is not the size's.
    pub fn shrink(map: &[f32], size: Size) -> Result<Self> {
        if map.len() as u64 != size.area() || map.is_empty() {
            return Err(Error::value(
                "attention map",
                format!("{} x {} values, at least 1", size.height, size.width),
                format!("{} values", map.len()),
            ));
        }
        let longest = size.height.max(size.width);
        let cells = longest.div_ceil(PIXELS_PER_CELL).min(MOST_CELLS);
        let part = |side: u32| (side * cells / longest).max(1);
        let small = Size::new(part(size.height), part(size.width));
        let range = |i: u32, n: u32, side: u32| (i * side / n)..((i + 1) * side / n);
        let mut levels = Vec::with_capacity(small.area() as usize);
        for row in 0..small.height {
            let rows = range(row, small.height, size.height);
            for column in 0..small.width {
                let columns = range(column, small.width, size.width);
                let count = (rows.len() * columns.len()).max(1);
                let sum: f32 = rows
                    .clone()
                    .filter_map(|y| {
                        let start = (y * size.width) as usize;
                        map.get(start + columns.start as usize..start + columns.end as usize)
                    })
                    .flatten()
                    .sum();
                levels.push((255.0 * sum / count as f32).round() as u8);
            }
        }
        Ok(Self {
            size: small,
            levels,
        })
    }

    /// Cells, at most 32 each way.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Row-major; 255 is an attention of 1.
    pub fn levels(&self) -> &[u8] {
        &self.levels
    }
}

#[derive(Serialize, Deserialize)]
struct AttentionText {
    size: Size,
    levels: String,
}

impl Serialize for AttentionMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        AttentionText {
            size: self.size,
            levels: BASE64.encode(&self.levels),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AttentionMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = AttentionText::deserialize(deserializer)?;
        let levels = BASE64.decode(text.levels).map_err(de::Error::custom)?;
        let fits = text.size.height.max(text.size.width) <= MOST_CELLS
            && levels.len() as u64 == text.size.area();
        if !fits {
            return Err(de::Error::custom(format!(
                "attention map: expected at most {MOST_CELLS} x {MOST_CELLS} levels, found {} for {:?}",
                levels.len(),
                text.size
            )));
        }
        Ok(Self {
            size: text.size,
            levels,
        })
    }
}

/// All that making a mosaic again needs, besides the weights, the seed and the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Size of the whole canvas.
    pub canvas: Size,
    /// The part of the canvas that the picture shows (all of it, unless the recipe crops).
    pub window: PixelBox,
    /// The canvas's regions, those that were cut away too.
    pub regions: Vec<Planned>,
    /// `cpu` or `cuda`: another kind of device computes other last digits.
    pub device: String,
    /// Type of the model's weights: `float32`, ...
    pub dtype: String,
    /// Threads that the CPU computed with: another number adds up in another order.
    pub threads: u32,
    /// [`fingerprint`] of the picture before it was coded.
    pub pixels: String,
}

/// A region as it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// What is denoised for it, on the canvas.
    #[serde(rename = "box")]
    pub bbox: PixelBox,
    /// The part of the canvas that its instance may lie in.
    pub own: PixelBox,
    /// Name of the category.
    pub category: String,
    /// The prompt.
    pub prompt: String,
    /// Where in the prompt the words stand whose attention becomes the mask: the first character,
    /// and one past the last.
    pub subject: [u32; 2],
    /// Weight of classifier-free guidance.
    pub guidance: f64,
    /// Another seed than the mosaic's for the region's part of the initial noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_seed: Option<u64>,
    /// The picture that it started from instead of pure noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartPicture>,
}

/// A picture that a region started from. The record does not keep its pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartPicture {
    /// Share of the steps that could change it, 0..1.
    pub strength: f64,
    /// [`fingerprint`] of it.
    pub pixels: String,
}

/// SHA-256 of a picture's size and its pixels (`u8 [H, W, 3]`, RGB), hex.
pub fn fingerprint(image: &[u8], size: Size) -> String {
    let mut hash = Sha256::new();
    hash.update(size.height.to_le_bytes());
    hash.update(size.width.to_le_bytes());
    hash.update(image);
    hex(&hash.finalize())
}

impl Generation {
    /// The part of a box on the canvas that the picture shows, in pixels of the picture; `None`
    /// when it shows nothing of it.
    pub fn on_picture(&self, b: PixelBox) -> Option<PixelBox> {
        let w = self.window;
        let b = b.intersect(w);
        (!b.is_empty())
            .then(|| PixelBox::new(b.x0 - w.x0, b.y0 - w.y0, b.x1 - w.x0, b.y1 - w.y0))
    }

    /// Checks that the boxes lie on the canvas, and that the window is the picture's size.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self, picture: Size) -> Result<()> {
        let all = PixelBox::new(0, 0, self.canvas.width, self.canvas.height);
        if self.window.intersect(all) != self.window || self.window.size() != picture {
            return Err(Error::value(
                "mosaic window",
                format!(
                    "a part of the canvas of {} x {} px, as large as the picture",
                    picture.height, picture.width
                ),
                format!("{:?}", <[u32; 4]>::from(self.window)),
            ));
        }
        for (i, region) in self.regions.iter().enumerate() {
            if region.bbox.intersect(all) != region.bbox
                || region.own.intersect(region.bbox) != region.own
                || !region.guidance.is_finite()
            {
                return Err(Error::value(
                    format!("planned region {i}"),
                    "a box on the canvas with its own part inside, and a finite guidance",
                    format!("{region:?}"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_shrunk_to_means() {
        // Left half 0, right half 1.
        let size = Size::new(8, 16);
        let map: Vec<f32> = (0..128).map(|i| f32::from(u8::from(i % 16 >= 8))).collect();
        let small = AttentionMap::shrink(&map, size).unwrap();
        assert_eq!(small.size(), Size::new(2, 4));
        assert_eq!(small.levels(), [0, 0, 255, 255, 0, 0, 255, 255]);
        let large = AttentionMap::shrink(&vec![0.5; 300 * 500], Size::new(300, 500)).unwrap();
        assert_eq!(large.size(), Size::new(19, 32));
        assert!(large.levels().iter().all(|&l| l == 128));
        assert!(AttentionMap::shrink(&map, Size::new(8, 15)).is_err());
        let text = serde_json::to_string(&small).unwrap();
        assert_eq!(serde_json::from_str::<AttentionMap>(&text).unwrap(), small);
        let cut = text.replace("\"width\":4", "\"width\":5");
        assert!(serde_json::from_str::<AttentionMap>(&cut).is_err());
    }
}
