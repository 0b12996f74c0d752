//! Keys and small values of the bank's tables. Integers in keys are big endian (they sort),
//! in values little endian.

use crate::record::RecordId;

/// The two kinds of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A whole canvas with its instances' masks.
    Mosaic = 1,
    /// One object, cropped, to be pasted.
    Instance = 2,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mosaic, Self::Instance];

    /// `mosaic` or `instance`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mosaic => "mosaic",
            Self::Instance => "instance",
        }
    }
}

/// One line of a category's list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    pub id: RecordId,
    pub slot: u32,
    pub score: f32,
    pub bytes: u32,
}

impl Entry {
    pub fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        out[..16].copy_from_slice(&self.id.0);
        out[16..20].copy_from_slice(&self.slot.to_le_bytes());
        out[20..24].copy_from_slice(&self.score.to_le_bytes());
        out[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 28 {
            return None;
        }
        Some(Self {
            id: RecordId(bytes.get(..16)?.try_into().ok()?),
            slot: u32_le(bytes, 16)?,
            score: f32::from_bits(u32_le(bytes, 20)?),
            bytes: u32_le(bytes, 24)?,
        })
    }
}

/// Where a record stands in the lists.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub slot: u32,
    pub bytes: u32,
    pub score: f32,
    /// (category, position), by category.
    pub positions: Vec<(u32, u32)>,
}

impl Place {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + 8 * self.positions.len());
        out.extend_from_slice(&self.slot.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.score.to_le_bytes());
        for (category, position) in &self.positions {
            out.extend_from_slice(&category.to_le_bytes());
            out.extend_from_slice(&position.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(12..)?;
        if rest.len() % 8 != 0 {
            return None;
        }
        Some(Self {
            slot: u32_le(bytes, 0)?,
            bytes: u32_le(bytes, 4)?,
            score: f32::from_bits(u32_le(bytes, 8)?),
            positions: rest
                .chunks_exact(8)
                .filter_map(|c| Some((u32_le(c, 0)?, u32_le(c, 4)?)))
                .collect(),
        })
    }
}

/// Totals of one category or of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Records there now.
    pub stock: u64,
    /// Bytes of their frames, as pages.
    pub bytes: u64,
    /// Records ever added.
    pub added: u64,
    /// Records evicted or retired.
    pub removed: u64,
}

impl Totals {
    pub fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        for (to, from) in
            out.chunks_exact_mut(8)
                .zip([self.stock, self.bytes, self.added, self.removed])
        {
            to.copy_from_slice(&from.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 32 {
            return None;
        }
        Some(Self {
            stock: u64_le(bytes, 0)?,
            bytes: u64_le(bytes, 8)?,
            added: u64_le(bytes, 16)?,
            removed: u64_le(bytes, 24)?,
        })
    }
}

/// Key of the totals of a kind in the counters.
pub(super) fn totals_key(kind: Kind) -> [u8; 2] {
    [b't', kind as u8]
}

/// Key of the totals of a category in the counters.
pub(super) fn category_key(kind: Kind, category: u32) -> [u8; 6] {
    let mut key = [b'c', kind as u8, 0, 0, 0, 0];
    key[2..].copy_from_slice(&category.to_be_bytes());
    key
}

/// Key of the next slot never handed out, in the counters.
pub(super) const NEXT_SLOT_KEY: &[u8] = b"s";

/// Key of a line of a category's list.
pub(super) fn list_key(kind: Kind, category: u32, position: u32) -> [u8; 9] {
    let mut key = [kind as u8; 9];
    key[1..5].copy_from_slice(&category.to_be_bytes());
    key[5..].copy_from_slice(&position.to_be_bytes());
    key
}

/// Key of a record's place (and of its tombstone).
pub(super) fn place_key(kind: Kind, id: RecordId) -> [u8; 17] {
    let mut key = [kind as u8; 17];
    key[1..].copy_from_slice(&id.0);
    key
}

pub(super) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_le(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
