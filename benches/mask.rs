//! The mask room on a region of 384 x 512: `cargo bench --bench mask`.
//!
//! `benches/bilateral.py` compares the solver with SciPy's sparse matrices.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mosaicbank::geometry::{PixelBox, Size};
use mosaicbank::mask::{
    Bilateral, BilateralGrid, BinaryMask, Rle, SizeCheck, Threshold, aggregate, components,
    filter_region,
};

const SIZE: Size = Size::new(384, 512);

/// A smooth picture with discs and noise of `amount` grey levels, and an ellipse as a mask.
fn scene(amount: f64) -> (Vec<u8>, BinaryMask) {
    let (h, w) = (SIZE.height as usize, SIZE.width as usize);
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
    };
    let mut rgb = Vec::with_capacity(h * w * 3);
    for y in 0..h {
        for x in 0..w {
            let (fx, fy) = (x as f64, y as f64);
            let disc = (fx - 200.0).hypot(fy - 150.0) < 90.0;
            for k in 0..3 {
                let smooth = 128.0
                    + 90.0
                        * (fx / (20.0 + 7.0 * k as f64)).sin()
                        * (fy / (31.0 - 3.0 * k as f64)).cos();
                let v = if disc { 60.0 + 70.0 * k as f64 } else { smooth };
                rgb.push((v + amount * (random() + random() + random())) as u8);
            }
        }
    }
    let data = (0..h * w)
        .map(|i| {
            let (y, x) = ((i / w) as f64, (i % w) as f64);
            let edge = ((x - 220.0) / 120.0).powi(2) + ((y - 160.0) / 100.0).powi(2);
            u8::from(edge + 0.3 * random() < 1.0)
        })
        .collect();
    let mask = BinaryMask::from_vec(SIZE, data).unwrap_or_else(|_| BinaryMask::zeros(SIZE));
    (rgb, mask)
}

fn bilateral(c: &mut Criterion) {
    let params = Bilateral::default();
    for (name, amount) in [("smooth", 4.0), ("textured", 12.0), ("noisy", 40.0)] {
        let (rgb, mask) = scene(amount);
        let Ok(grid) = BilateralGrid::new(&rgb, SIZE, &params) else {
            continue;
        };
        let target: Vec<f32> = mask.data().iter().map(|&v| f32::from(v) * 255.0).collect();
        let mut group = c.benchmark_group(format!("bilateral/{name}/{}", grid.vertices()));
        group.sample_size(20);
        group.bench_function("grid", |b| {
            b.iter(|| BilateralGrid::new(black_box(&rgb), SIZE, &params));
        });
        group.bench_function("solve", |b| b.iter(|| grid.solve(black_box(&target), None)));
        group.bench_function("refine", |b| {
            b.iter(|| params.apply(black_box(&mask), &rgb));
        });
        group.finish();
    }
}

fn pipeline(c: &mut Criterion) {
    let (_, mask) = scene(4.0);
    let levels = [Size::new(48, 64), Size::new(24, 32), Size::new(12, 16)];
    let maps: Vec<Vec<f32>> = levels
        .iter()
        .map(|s| {
            (0..s.area())
                .map(|i| ((i * 37) % 101) as f32 / 101.0)
                .collect()
        })
        .collect();
    let maps: Vec<(Size, &[f32])> = levels
        .into_iter()
        .zip(maps.iter().map(Vec::as_slice))
        .collect();
    let Ok(map) = aggregate(&maps, SIZE) else {
        return;
    };
    let Ok(rle) = Rle::encode(&mask) else {
        return;
    };
    let whole = PixelBox::new(0, 0, SIZE.width, SIZE.height);
    c.bench_function("aggregate", |b| {
        b.iter(|| aggregate(black_box(&maps), SIZE));
    });
    c.bench_function("otsu", |b| {
        b.iter(|| Threshold::Otsu.apply(black_box(&map), SIZE));
    });
    c.bench_function("components", |b| b.iter(|| components(black_box(&mask))));
    c.bench_function("filter", |b| {
        b.iter(|| {
            filter_region(
                &SizeCheck::default(),
                black_box(&mask),
                whole,
                whole,
                Size::new(768, 1024),
                SIZE,
            )
        });
    });
    c.bench_function("rle/encode", |b| b.iter(|| Rle::encode(black_box(&mask))));
    c.bench_function("rle/decode", |b| b.iter(|| black_box(&rle).decode()));
    c.bench_function("rle/polygons", |b| b.iter(|| black_box(&rle).to_polygons()));
}

criterion_group!(benches, bilateral, pipeline);
criterion_main!(benches);
