//! Sizes and boxes, in pixels and in latent cells.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A size in pixels (or in latent cells, where the name says so).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Size {
    /// A size of `height` rows and `width` columns.
    pub const fn new(height: u32, width: u32) -> Self {
        Self { height, width }
    }

    /// Number of positions.
    pub const fn area(self) -> u64 {
        self.height as u64 * self.width as u64
    }

    /// The size in latent cells of `factor` pixels.
    ///
    /// # Errors
    /// [`Error::Value`] when a side is zero or not a multiple of `factor`.
    pub fn to_latent(self, factor: u32) -> Result<Self> {
        if self.height == 0
            || self.width == 0
            || !self.height.is_multiple_of(factor)
            || !self.width.is_multiple_of(factor)
        {
            return Err(Error::value(
                "size",
                format!("positive multiples of {factor} pixels"),
                format!("{} x {} (height x width)", self.height, self.width),
            ));
        }
        Ok(Self::new(self.height / factor, self.width / factor))
    }
}

/// An axis-aligned rectangle `(x0, y0, x1, y1)` in pixels; `x1` and `y1` are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "[u32; 4]", into = "[u32; 4]")]
pub struct PixelBox {
    /// Left column.
    pub x0: u32,
    /// Top row.
    pub y0: u32,
    /// One past the right column.
    pub x1: u32,
    /// One past the bottom row.
    pub y1: u32,
}

impl From<[u32; 4]> for PixelBox {
    fn from([x0, y0, x1, y1]: [u32; 4]) -> Self {
        Self { x0, y0, x1, y1 }
    }
}

impl From<PixelBox> for [u32; 4] {
    fn from(b: PixelBox) -> Self {
        [b.x0, b.y0, b.x1, b.y1]
    }
}

impl PixelBox {
    /// The box `(x0, y0, x1, y1)`.
    pub const fn new(x0: u32, y0: u32, x1: u32, y1: u32) -> Self {
        Self { x0, y0, x1, y1 }
    }

    /// Columns.
    pub const fn width(self) -> u32 {
        self.x1.saturating_sub(self.x0)
    }

    /// Rows.
    pub const fn height(self) -> u32 {
        self.y1.saturating_sub(self.y0)
    }

    /// Height and width.
    pub const fn size(self) -> Size {
        Size::new(self.height(), self.width())
    }

    /// Whether it has no positions.
    pub const fn is_empty(self) -> bool {
        self.x1 <= self.x0 || self.y1 <= self.y0
    }

    /// The overlap with `other` (empty when there is none).
    pub fn intersect(self, other: Self) -> Self {
        let x0 = self.x0.max(other.x0);
        let y0 = self.y0.max(other.y0);
        Self::new(
            x0,
            y0,
            self.x1.min(other.x1).max(x0),
            self.y1.min(other.y1).max(y0),
        )
    }

    /// `(x0, y0, x1, y1)`.
    pub const fn to_tuple(self) -> (u32, u32, u32, u32) {
        (self.x0, self.y0, self.x1, self.y1)
    }

    /// COCO's `[x, y, width, height]`.
    pub fn to_xywh(self) -> [u32; 4] {
        [self.x0, self.y0, self.width(), self.height()]
    }

    /// The box in latent cells of `factor` pixels.
    ///
    /// # Errors
    /// [`Error::Value`] when it is empty, leaves the canvas, or a side is not a multiple of
    /// `factor`.
    pub fn to_latent(self, factor: u32, canvas: Size) -> Result<LatentBox> {
        let sides = [self.x0, self.y0, self.x1, self.y1];
        if self.is_empty() || self.x1 > canvas.width || self.y1 > canvas.height {
            return Err(Error::value(
                "region box",
                format!(
                    "(x0, y0, x1, y1) with x0 < x1 <= {} and y0 < y1 <= {}",
                    canvas.width, canvas.height
                ),
                format!("{sides:?}"),
            ));
        }
        if sides.iter().any(|s| !s.is_multiple_of(factor)) {
            return Err(Error::value(
                "region box",
                format!("multiples of {factor} pixels"),
                format!("{sides:?}"),
            ));
        }
        Ok(LatentBox {
            x0: self.x0 / factor,
            y0: self.y0 / factor,
            x1: self.x1 / factor,
            y1: self.y1 / factor,
        })
    }
}

/// A rectangle in latent cells; `x1` and `y1` are exclusive. Made by [`PixelBox::to_latent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatentBox {
    /// Left column.
    pub x0: u32,
    /// Top row.
    pub y0: u32,
    /// One past the right column.
    pub x1: u32,
    /// One past the bottom row.
    pub y1: u32,
}

impl LatentBox {
    /// Height and width in latent cells.
    pub const fn size(self) -> Size {
        Size::new(self.y1 - self.y0, self.x1 - self.x0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latent_box_needs_multiples_and_the_canvas() {
        let canvas = Size::new(64, 96);
        let ok = PixelBox::new(8, 16, 96, 64).to_latent(8, canvas);
        assert_eq!(ok.map(LatentBox::size).ok(), Some(Size::new(6, 11)));
        for bad in [[8, 16, 104, 64], [4, 16, 96, 64], [8, 16, 8, 64]] {
            let e = PixelBox::from(bad).to_latent(8, canvas).unwrap_err();
            assert!(e.to_string().contains("region box"), "{e}");
        }
    }

    #[test]
    fn intersection_is_never_negative() {
        let a = PixelBox::new(0, 0, 4, 4);
        assert!(a.intersect(PixelBox::new(6, 6, 8, 8)).is_empty());
        assert_eq!(
            a.intersect(PixelBox::new(2, 1, 8, 3)).to_xywh(),
            [2, 1, 2, 2]
        );
    }
}
