//! Pictures for people and other tools: PNG, and masks drawn on a picture.

mod overlay;

use image::{ExtendedColorType, ImageEncoder, RgbImage};

pub use overlay::Overlay;

use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::Rle;

fn encode(data: &[u8], size: Size, colour: ExtendedColorType) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(data, size.width, size.height, colour)
        .map_err(|e| Error::backend("writing a PNG", e))?;
    Ok(bytes)
}

/// `u8 [H, W, 3]`, RGB, as a PNG file.
///
/// # Errors
/// [`Error::Value`] when the length is not the size's, [`Error::Backend`] when coding fails.
pub fn png(rgb: &[u8], size: Size) -> Result<Vec<u8>> {
    if rgb.len() as u64 != 3 * size.area() {
        return Err(wrong_length(rgb, size));
    }
    encode(rgb, size, ExtendedColorType::Rgb8)
}

/// A mask as a PNG file: 255 inside, 0 outside.
///
/// # Errors
/// [`Error::Backend`] when coding fails.
pub fn mask_png(mask: &Rle) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = mask.decode().data().iter().map(|&v| 255 * v).collect();
    encode(&bytes, mask.size(), ExtendedColorType::L8)
}

/// A picture with masks, boxes and names drawn on it.
///
/// # Errors
/// [`Error::Value`] when the length of `rgb` is not the size's.
pub fn overlay<'a>(
    rgb: &[u8],
    size: Size,
    objects: impl Iterator<Item = (&'a Rle, PixelBox, &'a str)>,
) -> Result<RgbImage> {
    let picture = RgbImage::from_raw(size.width, size.height, rgb.to_vec())
        .ok_or_else(|| wrong_length(rgb, size))?;
    let mut overlay = Overlay::new(&picture);
    for (mask, bbox, name) in objects {
        overlay.draw(mask, bbox, name);
    }
    Ok(overlay.into_picture())
}

/// A picture as a PNG file.
///
/// # Errors
/// [`Error::Backend`] when coding fails.
pub fn image_png(picture: &RgbImage) -> Result<Vec<u8>> {
    let (width, height) = picture.dimensions();
    encode(picture, Size::new(height, width), ExtendedColorType::Rgb8)
}

fn wrong_length(rgb: &[u8], size: Size) -> Error {
    Error::value(
        "picture",
        format!("{} x {} x 3 bytes", size.height, size.width),
        format!("{} bytes", rgb.len()),
    )
}
