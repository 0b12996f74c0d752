//! Which image codec for the bank: bytes per pixel against decode time.
//!
//! ```text
//! cargo bench --bench codec [-- FOLDER_OF_PHOTOGRAPHS]
//! ```
//!
//! Crops 256 x 256 from each image (synthetic images without a folder), encodes it with every codec,
//! and prints means over the images of the best of 15 decodes each.

use std::time::Instant;

use mosaicbank::bank::Codec;
use mosaicbank::bank::codec::{decode, encode};
use mosaicbank::bank::import::read_picture;
use mosaicbank::geometry::Size;
use rand::Rng;

const SIDE: u32 = 256;

fn synthetic(seed: u64) -> Vec<u8> {
    let mut rng = mosaicbank::rng::keyed(seed, "picture", 0);
    let waves: Vec<[f32; 4]> = (0..12)
        .map(|_| {
            let mut u = || rng.next_u32() as f32 / u32::MAX as f32;
            [u() * 0.2, u() * 0.2, u() * 6.3, 10.0 + 25.0 * u()]
        })
        .collect();
    let mut noise = mosaicbank::rng::keyed(seed, "noise", 0);
    let mut out = Vec::new();
    for y in 0..SIDE {
        for x in 0..SIDE {
            for c in 0..3 {
                let smooth: f32 = waves
                    .iter()
                    .skip(c * 4)
                    .take(4)
                    .map(|w| w[3] * (w[0] * x as f32 + w[1] * y as f32 + w[2]).sin())
                    .sum();
                let n = (noise.next_u32() % 9) as f32 - 4.0;
                out.push((128.0 + smooth + n) as u8);
            }
        }
    }
    out
}

fn photographs(folder: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    files.sort();
    files
        .iter()
        .filter_map(|path| {
            let (size, rgb, _) = read_picture(path).ok()?;
            if size.width < SIDE || size.height < SIDE {
                return None;
            }
            let (top, left) = ((size.height - SIDE) / 2, (size.width - SIDE) / 2);
            let rows = (0..SIDE).flat_map(|y| {
                let from = (((top + y) * size.width + left) * 3) as usize;
                rgb[from..from + SIDE as usize * 3].to_vec()
            });
            Some(rows.collect())
        })
        .collect()
}

fn main() {
    let folder = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let pictures = match &folder {
        Some(folder) => photographs(folder),
        None => (0..40).map(synthetic).collect(),
    };
    let size = Size::new(SIDE, SIDE);
    println!("{} pictures of 256 x 256", pictures.len());
    println!(
        "{:8} {:>12} {:>12} {:>10}",
        "codec", "bytes/pixel", "decode ms", "PSNR dB"
    );
    for codec in [Codec::Jpeg, Codec::Qoi, Codec::Png, Codec::Webp, Codec::Raw] {
        let (mut bytes, mut ms, mut square) = (0usize, 0f64, 0f64);
        for picture in &pictures {
            let coded = encode(codec, picture, size).expect("coded");
            bytes += coded.len();
            let mut best = f64::INFINITY;
            for _ in 0..15 {
                let start = Instant::now();
                let back = decode(codec, &coded, size).expect("decoded");
                best = best.min(start.elapsed().as_secs_f64() * 1e3);
                std::hint::black_box(&back);
            }
            ms += best;
            let back = decode(codec, &coded, size).expect("decoded");
            square += back
                .iter()
                .zip(picture)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                .sum::<f64>();
        }
        let n = pictures.len() as f64 * f64::from(SIDE * SIDE);
        println!(
            "{:8} {:12.3} {:12.3} {:>10}",
            format!("{codec:?}").to_lowercase(),
            bytes as f64 / n,
            ms / pictures.len() as f64,
            if square == 0.0 {
                "lossless".into()
            } else {
                format!("{:.1}", 10.0 * (255f64.powi(2) * 3.0 * n / square).log10())
            }
        );
    }
}
