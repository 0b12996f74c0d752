//! Records: mosaics and instances, and how they are framed in the store.
//!
//! A frame, integers little endian:
//!
//! | byte | holds |
//! | --- | --- |
//! | 0..4 | magic `MBR1` |
//! | 4 | kind: 1 mosaic, 2 instance |
//! | 5 | frame version |
//! | 6 | image codec |
//! | 7 | 0 |
//! | 8..12 | bytes of metadata (JSON) |
//! | 12..16 | bytes of masks (mosaic: RLE counts as base-128 numbers; instance: alpha runs) |
//! | 16..20 | bytes of the image |
//! | 20..24 | width in pixels |
//! | 24..28 | height in pixels |
//! | 28..32 | CRC-32 of everything else |
//! | 32.. | metadata, masks, image |
//!
//! Instances, from frame version 2 on, may have smaller pictures behind the image, each half as
//! high and wide as the one before (rounded up), coded alike; their lengths are in the metadata and
//! count as bytes of the image. Most objects are pasted far smaller than they were made, and
//! decoding is most of what a paste costs.
//!
//! Nothing here trusts its input: every length is checked before it is used.

mod frame;
mod instance;
mod mosaic;

pub use frame::{MAX_FRAME, reseal};
pub use instance::InstanceRecord;
pub use mosaic::MosaicRecord;

pub(super) use instance::with_meta_of_instance;
pub(super) use mosaic::with_meta_of_mosaic;

use super::index::Kind;
use crate::geometry::{PixelBox, Size};
use frame::Frame;

/// Pixels of context kept around an object's box in its crop, for soft blending.
pub const CROP_MARGIN: u32 = 4;
/// Alpha above this is foreground (X-Paste).
pub const FOREGROUND: u8 = 128;

/// The part of a row-major image (`channels` bytes per pixel) inside `part`.
pub(super) fn crop(data: &[u8], size: Size, part: PixelBox, channels: usize) -> Vec<u8> {
    let stride = size.width as usize * channels;
    let (from, to) = (part.x0 as usize * channels, part.x1 as usize * channels);
    let mut out = Vec::with_capacity(part.size().area() as usize * channels);
    for row in data
        .chunks_exact(stride.max(1))
        .skip(part.y0 as usize)
        .take(part.height() as usize)
    {
        out.extend_from_slice(row.get(from..to).unwrap_or_default());
    }
    out
}

/// Checks and decodes any frame; the body of the fuzz target.
///
/// # Errors
/// A message saying what is wrong with it.
pub fn decode_any(bytes: &[u8]) -> Result<Kind, String> {
    match Frame::parse(bytes)?.kind {
        1 => MosaicRecord::decode(bytes).map(|_| Kind::Mosaic),
        2 => InstanceRecord::decode(bytes).map(|_| Kind::Instance),
        kind => Err(format!("unknown kind {kind}")),
    }
}
