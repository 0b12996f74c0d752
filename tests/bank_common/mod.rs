//! Synthetic mosaics and banks for the tests of the store.
#![allow(dead_code)]

use std::path::Path;

use mosaicbank::bank::{
    Bank, BankInfo, Category, Codec, Limits, MosaicInstance, MosaicRecord, RecordId, Region,
};
use mosaicbank::geometry::{PixelBox, Size};
use mosaicbank::mask::{Rle, Verdict};
use mosaicbank::record::{AttentionMap, Generation, RegionTrace, fingerprint};
use sha2::{Digest, Sha256};

/// `n` categories with ids 1, 2, ...
pub fn categories(n: u32) -> Vec<Category> {
    (1..=n)
        .map(|id| Category {
            id,
            name: format!("thing_{id}"),
            frequency: Some("r".into()),
            image_count: Some(u64::from(id)),
        })
        .collect()
}

pub fn info(n: u32, limits: Limits) -> BankInfo {
    let mut info = BankInfo::new(categories(n), "", limits).unwrap();
    info.mosaic_codec = Codec::Qoi;
    info.instance_codec = Codec::Qoi;
    info
}

pub fn new_bank(dir: &Path, n: u32) -> Bank {
    Bank::create(&dir.join("bank"), info(n, Limits::default())).unwrap()
}

/// A filled rectangle as column-major runs.
pub fn rectangle(size: Size, b: PixelBox) -> Rle {
    let mut counts = vec![0u32];
    for x in 0..size.width {
        for y in 0..size.height {
            let inside = x >= b.x0 && x < b.x1 && y >= b.y0 && y < b.y1;
            let run_is_foreground = counts.len() % 2 == 0;
            match counts.last_mut() {
                Some(run) if inside == run_is_foreground => *run += 1,
                _ => counts.push(1),
            }
        }
    }
    Rle::new(size, &counts).unwrap()
}

/// The id that version 0.1 gave to the mosaic of a seed; the banks in `tests/data` have such ids.
pub fn old_id(recipe: &str, weights: &str, seed: u64) -> RecordId {
    let mut hash = Sha256::new();
    for part in ["mosaic", recipe, weights] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(seed.to_le_bytes());
    RecordId(hash.finalize()[..16].try_into().unwrap())
}

/// A mosaic of two regions side by side, one object each, of the given categories.
pub fn mosaic(seed: u64, left: u32, right: u32, size: Size) -> MosaicRecord {
    let (h, w) = (size.height, size.width);
    let half = w / 2;
    let image: Vec<u8> = (0..h * w)
        .flat_map(|i| {
            let v = (u64::from(i) * 7 + seed * 31) as u32;
            [v as u8, (v >> 3) as u8, (v >> 6) as u8]
        })
        .collect();
    let d = (seed % 3) as u32;
    let boxes = [
        PixelBox::new(2 + d, 3, half - 2, h - 3),
        PixelBox::new(half + 2, 2 + d, w - 4, h - 2),
    ];
    let regions = [left, right]
        .iter()
        .enumerate()
        .map(|(i, &category)| Region {
            prompt: format!("a photo of a single thing_{}", category + 1),
            trace: seed.is_multiple_of(2).then(|| RegionTrace {
                planned: i as u32,
                attention: AttentionMap::shrink(&vec![0.5; size.area() as usize], size)
                    .unwrap(),
                threshold: 0.4,
                refined: Rle::empty(size).unwrap(),
            }),
            ..Region::bare(
                PixelBox::new(i as u32 * half, 0, (i as u32 + 1) * half, h),
                category,
                Verdict::Kept,
            )
        })
        .collect();
    let instances = [left, right]
        .iter()
        .zip(boxes)
        .enumerate()
        .map(|(i, (&category, bbox))| {
            let score = 0.5 + (seed % 50) as f32 / 100.0;
            MosaicInstance::of_mask(category, rectangle(size, bbox), score, i as u32).unwrap()
        })
        .collect();
    let generation = Generation {
        canvas: size,
        window: PixelBox::new(0, 0, size.width, size.height),
        regions: Vec::new(),
        device: "cpu".into(),
        dtype: "float32".into(),
        threads: 1,
        pixels: fingerprint(&image, size),
    };
    MosaicRecord {
        id: old_id("recipe", "weights", seed),
        size,
        image,
        regions,
        instances,
        model: "model".into(),
        weights: "weights".into(),
        recipe: "recipe".into(),
        seed,
        generation: seed.is_multiple_of(2).then_some(generation),
    }
}

/// Runs `mount`; false where the machine does not let us.
pub fn mount(args: &[&str]) -> bool {
    std::process::Command::new("mount")
        .args(args)
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A mounted file system, unmounted when dropped.
pub struct Mounted(pub std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}
