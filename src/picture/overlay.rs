//! Pictures with their masks, boxes and names drawn on them.

use font8x8::UnicodeFonts;
use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};

use crate::geometry::PixelBox;
use crate::mask::Rle;

/// Opacity of a mask's colour.
const OPACITY: f32 = 0.4;

/// Small pictures are enlarged to at least this many pixels on the longer side.
const LONG_SIDE: u32 = 512;

/// Side of a letter, pixels.
const LETTER: u32 = 8;

/// Colours that most people can distinguish (Okabe and Ito, 2008).
const COLOURS: [[u8; 3]; 7] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
];

/// A picture that instances are drawn on.
pub struct Overlay {
    picture: RgbImage,
    scale: u32,
    drawn: usize,
}

impl Overlay {
    /// On a copy of `picture`, enlarged by a whole factor where it is small.
    pub fn new(picture: &RgbImage) -> Self {
        let (width, height) = picture.dimensions();
        let scale = LONG_SIDE.div_ceil(width.max(height).max(1));
        let picture = resize(picture, width * scale, height * scale, FilterType::Nearest);
        Self {
            picture,
            scale,
            drawn: 0,
        }
    }

    /// Draws one instance: its mask in the next colour, its box, its name.
    pub fn draw(&mut self, mask: &Rle, bbox: PixelBox, name: &str) {
        let colour = COLOURS[self.drawn % COLOURS.len()];
        self.drawn += 1;
        let scale = self.scale;
        for run in mask.columns() {
            for y in run.y0 * scale..run.y1 * scale {
                for x in run.x * scale..(run.x + 1) * scale {
                    self.blend(x, y, colour);
                }
            }
        }
        if bbox.is_empty() {
            return;
        }
        let [x0, y0, x1, y1] = <[u32; 4]>::from(bbox).map(|side| side * scale);
        for x in x0..x1 {
            self.put(x, y0, colour);
            self.put(x, y1 - 1, colour);
        }
        for y in y0..y1 {
            self.put(x0, y, colour);
            self.put(x1 - 1, y, colour);
        }
        // The name stands in the box's corner, moved in where it would leave the picture.
        let length = name.chars().count() as u32 * LETTER;
        let left = x0.min(self.picture.width().saturating_sub(length));
        for (letter, x) in name.chars().zip((left..).step_by(LETTER as usize)) {
            self.letter(letter, x, y0, colour);
        }
    }

    fn letter(&mut self, letter: char, x: u32, y: u32, colour: [u8; 3]) {
        let Some(rows) = font8x8::BASIC_FONTS.get(letter) else {
            return;
        };
        for (dy, row) in (0..LETTER).zip(rows) {
            for dx in 0..LETTER {
                let ink = if row >> dx & 1 == 1 { colour } else { [0; 3] };
                self.put(x + dx, y + dy, ink);
            }
        }
    }

    fn put(&mut self, x: u32, y: u32, colour: [u8; 3]) {
        if let Some(pixel) = self.picture.get_pixel_mut_checked(x, y) {
            *pixel = Rgb(colour);
        }
    }

    fn blend(&mut self, x: u32, y: u32, colour: [u8; 3]) {
        if let Some(pixel) = self.picture.get_pixel_mut_checked(x, y) {
            for (p, c) in pixel.0.iter_mut().zip(colour) {
                *p = (f32::from(*p) * (1.0 - OPACITY) + f32::from(c) * OPACITY) as u8;
            }
        }
    }

    /// The finished picture.
    pub fn into_picture(self) -> RgbImage {
        self.picture
    }
}
