//! Ids: what a record is made of, hashed. There is no other hash for an id.
//!
//! A generated mosaic is a function of the weights, the recipe, the seed and the planned regions
//! ([`mosaic`]): whoever makes it gives it the same id. A mosaic from elsewhere has the id of its
//! content ([`content`]). The ids that older versions wrote stay as they are.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::trace::Planned;
use super::{Instance, Mosaic};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::recipe::hex;

/// Id of a mosaic or an instance: 16 bytes of SHA-256, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub [u8; 16]);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for RecordId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| text.len() == 32 && !text.starts_with('+'))
            .map(|id| Self(id.to_be_bytes()))
            .ok_or_else(|| {
                Error::value("record id", "32 hexadecimal digits", format!("{text:?}"))
            })
    }
}

/// A hash over parts, each with its length before it, so that no two lists of parts are alike.
struct Parts(Sha256);

impl Parts {
    fn new(what: &str) -> Self {
        let mut parts = Self(Sha256::new());
        parts.add(what.as_bytes());
        parts
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn size(&mut self, size: Size) {
        self.add(&size.height.to_le_bytes());
        self.add(&size.width.to_le_bytes());
    }

    fn corners(&mut self, b: PixelBox) {
        for side in <[u32; 4]>::from(b) {
            self.add(&side.to_le_bytes());
        }
    }

    fn id(self) -> RecordId {
        first_half(self.0)
    }
}

fn first_half(hash: Sha256) -> RecordId {
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    RecordId(id)
}

/// The id of the mosaic that `weights` and `recipe` (hashes, hex) make of a seed and the planned
/// regions of a canvas: everything that its pixels and masks are a function of.
pub fn mosaic(
    weights: &str,
    recipe: &str,
    seed: u64,
    canvas: Size,
    regions: &[Planned],
) -> RecordId {
    let mut parts = Parts::new("mosaic");
    parts.add(weights.as_bytes());
    parts.add(recipe.as_bytes());
    parts.add(&seed.to_le_bytes());
    parts.size(canvas);
    for region in regions {
        parts.corners(region.bbox);
        parts.corners(region.own);
        parts.add(region.category.as_bytes());
        parts.add(region.prompt.as_bytes());
        for at in region.subject {
            parts.add(&at.to_le_bytes());
        }
        parts.add(&region.guidance.to_le_bytes());
        match region.noise_seed {
            Some(seed) => parts.add(&seed.to_le_bytes()),
            None => parts.add(&[]),
        }
        match &region.start {
            Some(start) => {
                parts.add(&start.strength.to_le_bytes());
                parts.add(start.pixels.as_bytes());
            }
            None => parts.add(&[]),
        }
    }
    parts.id()
}

/// The id of a mosaic that comes with a picture and masks but does not say how it was made: the
/// hash of what it shows and of where it says it comes from. Categories count by name.
pub fn content<'a, C>(mosaic: &'a Mosaic<C>, name: impl Fn(&'a C) -> &'a str) -> RecordId {
    let mut parts = Parts::new("content of mosaic");
    for text in [&mosaic.weights, &mosaic.recipe, &mosaic.model] {
        parts.add(text.as_bytes());
    }
    parts.add(&mosaic.seed.to_le_bytes());
    parts.size(mosaic.size);
    parts.add(&mosaic.image);
    for region in &mosaic.regions {
        parts.corners(region.bbox);
        parts.add(name(&region.category).as_bytes());
        parts.add(region.prompt.as_bytes());
    }
    for Instance { category, mask, .. } in &mosaic.instances {
        parts.add(name(category).as_bytes());
        for run in mask.counts() {
            parts.add(&run.to_le_bytes());
        }
    }
    parts.id()
}

/// The id of instance number `index` of a mosaic.
pub fn instance(mosaic: RecordId, index: u32) -> RecordId {
    let mut hash = Sha256::new();
    hash.update(b"instance of mosaic");
    hash.update(mosaic.0);
    hash.update(index.to_le_bytes());
    first_half(hash)
}

/// The id of an imported instance: a hash of its category's name and its pixels.
pub fn pixels(category: &str, size: Size, image: &[u8], alpha: &[u8]) -> RecordId {
    let mut hash = Sha256::new();
    hash.update(b"instance of pixels");
    hash.update((category.len() as u64).to_le_bytes());
    hash.update(category);
    hash.update(size.height.to_le_bytes());
    hash.update(size.width.to_le_bytes());
    hash.update(image);
    hash.update(alpha);
    first_half(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::StartPicture;

    #[test]
    fn ids_are_32_digits() {
        let id = RecordId([0xab; 16]);
        assert_eq!(id.to_string(), "ab".repeat(16));
        assert_eq!(id.to_string().parse::<RecordId>().unwrap(), id);
        let long = "0".repeat(33);
        let signed = format!("+{}", "1".repeat(31));
        for bad in ["", "ab", "zz", "m0000", &long, &signed] {
            assert!(bad.parse::<RecordId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn everything_that_a_mosaic_is_made_of_is_in_its_id() {
        let region = Planned {
            bbox: PixelBox::new(0, 0, 8, 8),
            own: PixelBox::new(0, 0, 8, 8),
            category: "cup".into(),
            prompt: "a cup".into(),
            subject: [2, 5],
            guidance: 7.5,
            noise_seed: None,
            start: None,
        };
        let size = Size::new(8, 8);
        let of = |region: &Planned| mosaic("w", "r", 1, size, std::slice::from_ref(region));
        let mut ids = vec![
            of(&region),
            mosaic("x", "r", 1, size, std::slice::from_ref(&region)),
            mosaic("w", "s", 1, size, std::slice::from_ref(&region)),
            mosaic("w", "r", 2, size, std::slice::from_ref(&region)),
            mosaic("w", "r", 1, Size::new(8, 9), std::slice::from_ref(&region)),
            mosaic("w", "r", 1, size, &[]),
        ];
        let changes: [fn(&mut Planned); 9] = [
            |r| r.bbox.x1 = 9,
            |r| r.own.x1 = 7,
            |r| r.category = "mug".into(),
            |r| r.prompt = "a cup.".into(),
            |r| r.subject = [0, 5],
            |r| r.guidance = 7.0,
            |r| r.noise_seed = Some(0),
            |r| {
                r.start = Some(StartPicture {
                    strength: 0.5,
                    pixels: "aa".into(),
                });
            },
            |r| {
                r.start = Some(StartPicture {
                    strength: 0.5,
                    pixels: "ab".into(),
                });
            },
        ];
        for change in changes {
            let mut other = region.clone();
            change(&mut other);
            ids.push(of(&other));
        }
        let different: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
        assert_eq!(of(&region), ids[0]);
    }
}
