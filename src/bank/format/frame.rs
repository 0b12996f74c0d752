//! The frame around a record: header, lengths, checksum.

use serde::Serialize;

use super::super::codec::{self, Codec};
use super::super::index::{Kind, u32_le};
use crate::error::{Error, Result};
use crate::geometry::Size;

/// Most smaller pictures of an instance.
pub(super) const MAX_HALVINGS: usize = 3;
const MAGIC: &[u8; 4] = b"MBR1";
/// The newest frame version: instances with smaller pictures.
pub(super) const VERSION: u8 = 2;
/// The version of frames without smaller pictures: what 1 was.
pub(super) const PLAIN_VERSION: u8 = 1;
const HEADER: usize = 32;
/// Most bytes of JSON in a record.
const MAX_META: usize = 4 << 20;
/// Most bytes of a frame.
pub const MAX_FRAME: usize = 256 << 20;

/// A parsed frame, its checksum verified.
pub(super) struct Frame<'a> {
    pub kind: u8,
    pub codec: Codec,
    pub size: Size,
    meta: &'a [u8],
    pub masks: &'a [u8],
    pub image: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let header = bytes.get(..HEADER).ok_or("shorter than a header")?;
        let field = |at| u32_le(header, at).unwrap_or_default();
        if header.get(..4) != Some(MAGIC) {
            return Err("not a record (no magic MBR1)".into());
        }
        let version = header.get(5).copied().unwrap_or_default();
        if version > VERSION {
            return Err(format!(
                "frame version {version}, this mosaicbank knows {VERSION}"
            ));
        }
        let [meta, masks, image] = [8, 12, 16].map(|at| field(at) as usize);
        let total = HEADER as u64 + meta as u64 + masks as u64 + image as u64;
        if total != bytes.len() as u64 || meta > MAX_META {
            return Err(format!("{} bytes, its header says {total}", bytes.len()));
        }
        if checksum(bytes) != field(28) {
            return Err("wrong checksum".into());
        }
        let size = Size::new(field(24), field(20));
        codec::check_size("image", size).map_err(|e| e.to_string())?;
        let tag = header.get(6).copied().unwrap_or_default();
        let body = bytes.get(HEADER..).unwrap_or_default();
        let (meta, rest) = body.split_at_checked(meta).ok_or("damaged lengths")?;
        let (masks, image) = rest.split_at_checked(masks).ok_or("damaged lengths")?;
        Ok(Self {
            kind: header.get(4).copied().unwrap_or_default(),
            codec: Codec::from_tag(tag).ok_or_else(|| format!("unknown image codec {tag}"))?,
            size,
            meta,
            masks,
            image,
        })
    }

    pub fn expect(&self, kind: Kind) -> Result<(), String> {
        if self.kind != kind as u8 {
            return Err(format!("not a {} (kind {})", kind.name(), self.kind));
        }
        Ok(())
    }

    pub fn meta<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(self.meta).map_err(|e| format!("damaged metadata: {e}"))
    }

    pub fn image(&self) -> Result<Vec<u8>, String> {
        codec::decode(self.codec, self.image, self.size)
    }

    /// The coded pictures of an instance, from large to small.
    pub fn pictures(&self, smaller: &[u32]) -> Result<Vec<&'a [u8]>, String> {
        let behind: u64 = smaller.iter().map(|&n| u64::from(n)).sum();
        let first = (self.image.len() as u64)
            .checked_sub(behind)
            .filter(|_| smaller.len() <= MAX_HALVINGS)
            .ok_or("damaged lengths of the smaller pictures")?;
        let mut rest = self.image;
        let lengths =
            std::iter::once(first as usize).chain(smaller.iter().map(|&n| n as usize));
        lengths
            .map(|n| {
                let (picture, left) = rest.split_at_checked(n)?;
                rest = left;
                Some(picture)
            })
            .collect::<Option<_>>()
            .ok_or_else(|| "damaged lengths of the smaller pictures".into())
    }
}

fn checksum(frame: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(frame.get(..28).unwrap_or_default());
    crc.update(frame.get(HEADER..).unwrap_or_default());
    crc.finalize()
}

/// A new frame.
///
/// # Errors
/// [`Error::Value`] when it is beyond the limits, [`Error::Backend`] when coding fails.
pub(super) fn frame(
    (kind, version): (Kind, u8),
    codec: Codec,
    size: Size,
    meta: &impl Serialize,
    masks: &[u8],
    image: &[u8],
) -> Result<Vec<u8>> {
    let meta = serde_json::to_vec(meta).map_err(|e| Error::backend("encoding a record", e))?;
    let total = HEADER + meta.len() + masks.len() + image.len();
    if meta.len() > MAX_META || total > MAX_FRAME {
        return Err(Error::value(
            "record",
            format!("at most {MAX_META} bytes of metadata and {MAX_FRAME} in all"),
            format!("{} and {total}", meta.len()),
        ));
    }
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[kind as u8, version, codec.tag(), 0]);
    for n in [meta.len(), masks.len(), image.len()] {
        out.extend_from_slice(&(n as u32).to_le_bytes());
    }
    out.extend_from_slice(&size.width.to_le_bytes());
    out.extend_from_slice(&size.height.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&meta);
    out.extend_from_slice(masks);
    out.extend_from_slice(image);
    let crc = checksum(&out);
    if let Some(place) = out.get_mut(28..32) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    Ok(out)
}

/// The frame of a record that is known to be good.
///
/// # Errors
/// [`Error::Value`] saying what is wrong with it.
pub(super) fn parsed(bytes: &[u8]) -> Result<Frame<'_>> {
    Frame::parse(bytes).map_err(|found| Error::value("record", "a valid frame", found))
}

/// Sets a frame's checksum right, for tests and fuzzing of what lies behind it.
#[doc(hidden)]
pub fn reseal(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    if let Some(place) = bytes.get_mut(28..32) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}
