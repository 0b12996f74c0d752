//! Image and alpha coding of bank records, decoded under limits.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::Size;

/// Longest side of an image in a bank, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of an image in a bank.
pub const MAX_PIXELS: u64 = 1 << 26;

/// How pixels are stored. Readers know all of them; a bank says what its writer uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Baseline JPEG at [`JPEG_QUALITY`], 4:4:4.
    Jpeg,
    /// QOI: lossless, quick to decode, about five times as large.
    Qoi,
    /// PNG: lossless.
    Png,
    /// WebP, lossless.
    Webp,
    /// No coding at all.
    Raw,
}

/// JPEG quality of stored images: 42 dB, 0.43 bytes and 4 ns per pixel on photographs. QOI
/// decodes as fast and takes five times the room, quality 95 takes 1.4 times the time (see
/// `benches/codec.rs`).
pub const JPEG_QUALITY: u8 = 90;

impl Codec {
    pub(super) const fn tag(self) -> u8 {
        match self {
            Self::Jpeg => 1,
            Self::Qoi => 2,
            Self::Png => 3,
            Self::Webp => 4,
            Self::Raw => 5,
        }
    }

    pub(super) const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            1 => Self::Jpeg,
            2 => Self::Qoi,
            3 => Self::Png,
            4 => Self::Webp,
            5 => Self::Raw,
            _ => return None,
        })
    }

    const fn format(self) -> Option<ImageFormat> {
        Some(match self {
            Self::Jpeg => ImageFormat::Jpeg,
            Self::Qoi => ImageFormat::Qoi,
            Self::Png => ImageFormat::Png,
            Self::Webp => ImageFormat::WebP,
            Self::Raw => return None,
        })
    }
}

/// Checks an image size against the limits.
///
/// # Errors
/// [`Error::Value`] when a side is zero or too long, or the image has too many pixels.
pub fn check_size(what: &str, size: Size) -> Result<()> {
    if size.height == 0
        || size.width == 0
        || size.height > MAX_SIDE
        || size.width > MAX_SIDE
        || size.area() > MAX_PIXELS
    {
        return Err(Error::value(
            what,
            format!("sides of 1..={MAX_SIDE} px and at most {MAX_PIXELS} pixels"),
            format!("{} x {} (height x width)", size.height, size.width),
        ));
    }
    Ok(())
}

/// Encodes `rgb` (`u8 [H, W, 3]`).
///
/// # Errors
/// [`Error::Value`] when the length does not fit the size or the size is beyond the limits,
/// [`Error::Backend`] when the encoder fails.
pub fn encode(codec: Codec, rgb: &[u8], size: Size) -> Result<Vec<u8>> {
    check_size("image", size)?;
    if rgb.len() as u64 != size.area() * 3 {
        return Err(Error::value(
            "image data",
            format!("{} x {} x 3 bytes", size.height, size.width),
            format!("{} bytes", rgb.len()),
        ));
    }
    let mut out = Vec::new();
    let done = match (codec, codec.format()) {
        (Codec::Raw, _) | (_, None) => {
            out.extend_from_slice(rgb);
            Ok(())
        }
        (Codec::Jpeg, _) => JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY).encode(
            rgb,
            size.width,
            size.height,
            ExtendedColorType::Rgb8,
        ),
        (_, Some(format)) => image::write_buffer_with_format(
            &mut Cursor::new(&mut out),
            rgb,
            size.width,
            size.height,
            ExtendedColorType::Rgb8,
            format,
        ),
    };
    done.map_err(|e| Error::backend(format!("encoding an image as {codec:?}"), e))?;
    Ok(out)
}

/// Decodes to `u8 [H, W, 3]`; anything but exactly `size` is refused before it is decoded.
///
/// # Errors
/// A message saying what is wrong with the bytes.
pub fn decode(codec: Codec, bytes: &[u8], size: Size) -> Result<Vec<u8>, String> {
    check_size("image", size).map_err(|e| e.to_string())?;
    let expected = size.area() as usize * 3;
    let Some(format) = codec.format() else {
        if bytes.len() != expected {
            return Err(format!("raw image: {} bytes, not {expected}", bytes.len()));
        }
        return Ok(bytes.to_vec());
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(size.width);
    limits.max_image_height = Some(size.height);
    limits.max_alloc = Some(expected as u64 * 4 + (1 << 20));
    reader.limits(limits);
    let image = reader.decode().map_err(|e| format!("{codec:?}: {e}"))?;
    if (image.width(), image.height()) != (size.width, size.height) {
        return Err(format!(
            "{codec:?}: {} x {} pixels, the record says {} x {}",
            image.height(),
            image.width(),
            size.height,
            size.width
        ));
    }
    Ok(image.into_rgb8().into_raw())
}

/// Appends `n` as a little-endian base-128 number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Takes a little-endian base-128 number off the front of `bytes`.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// Encodes an alpha plane as (value, run length) pairs, row by row.
pub(super) fn encode_runs(out: &mut Vec<u8>, plane: &[u8]) {
    for run in plane.chunk_by(|a, b| a == b) {
        if let Some(value) = run.first() {
            out.push(*value);
            put_varint(out, run.len() as u64);
        }
    }
}

/// Decodes an alpha plane of exactly `len` bytes.
pub(super) fn decode_runs(mut bytes: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(len);
    while let Some((&value, rest)) = bytes.split_first() {
        bytes = rest;
        let run = usize::try_from(take_varint(&mut bytes)?).ok()?;
        if run > len - out.len() {
            return None;
        }
        out.resize(out.len() + run, value);
    }
    (out.len() == len).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(size: Size) -> Vec<u8> {
        (0..size.height)
            .flat_map(|y| {
                (0..size.width).flat_map(move |x| [(x * 3) as u8, (y * 2) as u8, (x + y) as u8])
            })
            .collect()
    }

    #[test]
    fn every_codec_round_trips() {
        let size = Size::new(37, 53);
        let rgb = picture(size);
        for codec in [Codec::Jpeg, Codec::Qoi, Codec::Png, Codec::Webp, Codec::Raw] {
            let bytes = encode(codec, &rgb, size).unwrap();
            let back = decode(codec, &bytes, size).unwrap();
            assert_eq!(back.len(), rgb.len());
            if codec != Codec::Jpeg {
                assert_eq!(back, rgb, "{codec:?}");
            }
            assert!(
                decode(codec, &bytes, Size::new(36, 53)).is_err(),
                "{codec:?}"
            );
            assert!(
                decode(codec, &bytes[..bytes.len() / 2], size).is_err() || codec == Codec::Jpeg
            );
        }
    }

    #[test]
    fn runs_round_trip_and_refuse_lies() {
        let plane = [0u8, 0, 255, 255, 255, 128, 0];
        let mut out = Vec::new();
        encode_runs(&mut out, &plane);
        assert_eq!(decode_runs(&out, 7).as_deref(), Some(&plane[..]));
        assert_eq!(decode_runs(&out, 6), None);
        assert_eq!(decode_runs(&out, 8), None);
    }
}
