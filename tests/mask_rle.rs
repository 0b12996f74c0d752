//! RLE, outlines and components: round trips, set operations and rejected input.

use mosaicbank::geometry::{PixelBox, Size};
use mosaicbank::mask::{BinaryMask, Rle, components, largest_component};
use proptest::prelude::*;

/// Masks from noise to blobs: cells of a coarse grid, so that long runs occur too.
fn masks() -> impl Strategy<Value = BinaryMask> {
    (1u32..40, 1u32..40, 1u32..7, 0u32..=4).prop_flat_map(|(h, w, cell, density)| {
        let (gh, gw) = (h.div_ceil(cell), w.div_ceil(cell));
        prop::collection::vec(0u32..4, (gh * gw) as usize).prop_map(move |cells| {
            let data = (0..h * w)
                .map(|i| {
                    let (y, x) = (i / w, i % w);
                    u8::from(cells[((y / cell) * gw + x / cell) as usize] < density)
                })
                .collect();
            BinaryMask::from_vec(Size::new(h, w), data).expect("sizes agree")
        })
    })
}

fn pairs() -> impl Strategy<Value = (BinaryMask, BinaryMask)> {
    (masks(), any::<u64>()).prop_map(|(a, seed)| {
        let mut state = seed | 1;
        let data = a
            .data()
            .iter()
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 62) as u8 & 1
            })
            .collect();
        let b = BinaryMask::from_vec(a.size(), data).expect("sizes agree");
        (a, b)
    })
}

fn mask(rows: &[&str]) -> BinaryMask {
    let data = rows
        .iter()
        .flat_map(|r| r.bytes().map(|b| u8::from(b == b'#')))
        .collect();
    BinaryMask::from_vec(Size::new(rows.len() as u32, rows[0].len() as u32), data)
        .expect("rows of one length")
}

/// Components by flood fill: `(area, first position)` in row order.
fn flood(m: &BinaryMask) -> Vec<(u64, (u32, u32))> {
    let (h, w) = (m.size().height as i64, m.size().width as i64);
    let mut seen = vec![false; m.data().len()];
    let mut found = Vec::new();
    for start in 0..m.data().len() {
        if m.data()[start] == 0 || seen[start] {
            continue;
        }
        seen[start] = true;
        let mut stack = vec![start as i64];
        let mut area = 0;
        while let Some(p) = stack.pop() {
            area += 1;
            let (x, y) = (p % w, p / w);
            for (nx, ny) in [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)] {
                if (0..w).contains(&nx) && (0..h).contains(&ny) {
                    let q = (ny * w + nx) as usize;
                    if m.data()[q] != 0 && !seen[q] {
                        seen[q] = true;
                        stack.push(q as i64);
                    }
                }
            }
        }
        found.push((area, ((start as i64 % w) as u32, (start as i64 / w) as u32)));
    }
    found
}

/// Fills what is not connected (8-connected) with the outside.
fn fill_holes(m: &BinaryMask) -> BinaryMask {
    let (h, w) = (m.size().height as i64 + 2, m.size().width as i64 + 2);
    let at = |x: i64, y: i64| {
        x > 0
            && y > 0
            && x < w - 1
            && y < h - 1
            && m.data()[((y - 1) * (w - 2) + x - 1) as usize] != 0
    };
    let mut outside = vec![false; (h * w) as usize];
    outside[0] = true;
    let mut stack = vec![(0i64, 0i64)];
    while let Some((x, y)) = stack.pop() {
        for dy in -1..=1 {
            for dx in -1..=1 {
                let (nx, ny) = (x + dx, y + dy);
                if (0..w).contains(&nx) && (0..h).contains(&ny) && !at(nx, ny) {
                    let q = (ny * w + nx) as usize;
                    if !outside[q] {
                        outside[q] = true;
                        stack.push((nx, ny));
                    }
                }
            }
        }
    }
    let data = (1..h - 1)
        .flat_map(|y| (1..w - 1).map(move |x| (y * w + x) as usize))
        .map(|q| u8::from(!outside[q]))
        .collect();
    BinaryMask::from_vec(m.size(), data).expect("sizes agree")
}

proptest! {
    #[test]
    fn encoding_round_trips(m in masks()) {
        let rle = Rle::encode(&m).unwrap();
        prop_assert_eq!(&rle.decode(), &m);
        prop_assert_eq!(rle.area(), m.area());
        prop_assert_eq!(rle.bbox(), m.tight_box());
        prop_assert_eq!(rle.is_empty(), m.area() == 0);
        let text = rle.to_coco_string();
        prop_assert_eq!(&Rle::from_coco_string(&text, m.size()).unwrap(), &rle);
        let json = serde_json::to_string(&rle).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Rle>(&json).unwrap(), &rle);
        // A plain list with runs of 0 in it is the same mask.
        let mut counts = rle.counts().to_vec();
        counts.extend([0, 0]);
        prop_assert_eq!(&Rle::new(m.size(), &counts).unwrap(), &rle);
    }

    #[test]
    fn set_operations_are_per_position((a, b) in pairs()) {
        let (ra, rb) = (Rle::encode(&a).unwrap(), Rle::encode(&b).unwrap());
        let expect = |f: fn(u8, u8) -> u8| {
            let data = a.data().iter().zip(b.data()).map(|(&x, &y)| f(x, y)).collect();
            Rle::encode(&BinaryMask::from_vec(a.size(), data).unwrap()).unwrap()
        };
        let both = expect(|x, y| x & y);
        prop_assert_eq!(&ra.intersect(&rb).unwrap(), &both);
        prop_assert_eq!(ra.union(&rb).unwrap(), expect(|x, y| x | y));
        prop_assert_eq!(ra.subtract(&rb).unwrap(), expect(|x, y| x & (1 - y)));
        prop_assert_eq!(ra.intersection_area(&rb).unwrap(), both.area());
    }

    #[test]
    fn crop_and_paste_shift(m in masks(), x in -45i64..45, y in -45i64..45) {
        let rle = Rle::encode(&m).unwrap();
        let canvas = Size::new(33, 29);
        let mut expect = BinaryMask::zeros(canvas);
        for (i, &v) in m.data().iter().enumerate() {
            let (px, py) = (i as i64 % i64::from(m.size().width) + x,
                            i as i64 / i64::from(m.size().width) + y);
            if (0..29).contains(&px) && (0..33).contains(&py) {
                expect.data_mut()[(py * 29 + px) as usize] = v;
            }
        }
        let pasted = rle.paste(canvas, x, y).unwrap();
        prop_assert_eq!(&pasted.decode(), &expect);
        // Cropping an unclipped paste gives the mask back.
        let size = m.size();
        let big = rle.paste(Size::new(100, 100), 50, 51).unwrap();
        let window = PixelBox::new(50, 51, 50 + size.width, 51 + size.height);
        prop_assert_eq!(big.crop(window).unwrap(), rle);
    }

    #[test]
    fn components_agree_with_flood_fill(m in masks()) {
        let found = components(&m);
        let expect = flood(&m);
        prop_assert_eq!(
            found.items.iter().map(|c| (c.area, c.first)).collect::<Vec<_>>(), &expect[..]);
        for c in &found.items {
            let one = found.mask(c.label);
            prop_assert_eq!(one.area(), c.area);
            prop_assert_eq!(one.tight_box(), Some(c.bbox));
            prop_assert_eq!(flood(&one).len(), 1);
        }
        let largest = largest_component(&m).map(|l| l.area());
        prop_assert_eq!(largest, expect.iter().map(|e| e.0).max());
    }

    #[test]
    fn polygons_give_the_mask_back_with_holes_filled(m in masks()) {
        let rle = Rle::encode(&m).unwrap();
        let polygons = rle.to_polygons();
        prop_assert_eq!(polygons.len(), components(&m).items.len());
        // Per component: holes of one may hold another.
        let found = components(&m);
        let mut expect = Rle::empty(m.size()).unwrap();
        for c in &found.items {
            let filled = Rle::encode(&fill_holes(&found.mask(c.label))).unwrap();
            expect = expect.union(&filled).unwrap();
        }
        prop_assert_eq!(Rle::from_polygons(&polygons, m.size()).unwrap(), expect);
    }

    #[test]
    fn any_string_is_read_or_refused(text in "[0-q]{0,24}", h in 0u32..50, w in 0u32..50) {
        if let Ok(rle) = Rle::from_coco_string(&text, Size::new(h, w)) {
            let total: u64 = rle.counts().iter().map(|&c| u64::from(c)).sum();
            prop_assert_eq!(total, u64::from(h) * u64::from(w));
            prop_assert_eq!(rle.decode().area(), rle.area());
        }
    }

    #[test]
    fn any_polygon_is_drawn_or_refused(
        p in prop::collection::vec(prop_oneof![
            -50.0f64..90.0, -1e9f64..1e9, Just(f64::NAN), Just(f64::INFINITY)], 0..16),
        h in 0u32..40, w in 0u32..40,
    ) {
        let ok = p.len() >= 6 && p.len() % 2 == 0 && p.iter().all(|v| v.abs() <= 1e8);
        let drawn = Rle::from_polygons(&[p], Size::new(h, w));
        prop_assert_eq!(drawn.is_ok(), ok);
        if let Ok(rle) = drawn {
            prop_assert_eq!(rle.decode().area(), rle.area());
        }
    }
}

#[test]
fn outlines_are_corners_only() {
    let m = mask(&["....", ".##.", ".##.", "...."]);
    assert_eq!(
        Rle::encode(&m).unwrap().to_polygons(),
        vec![vec![3.0, 1.0, 3.0, 3.0, 1.0, 3.0, 1.0, 1.0]]
    );
}

#[test]
fn touching_corners_are_two_components() {
    let m = mask(&["#.", ".#"]);
    let found = components(&m);
    assert_eq!(found.items.len(), 2);
    assert_eq!(Rle::encode(&m).unwrap().to_polygons().len(), 2);
    assert!(largest_component(&BinaryMask::zeros(Size::new(3, 3))).is_none());
}

#[test]
fn bad_rle_says_what_is_wrong() {
    let size = Size::new(4, 5);
    for (text, says) in [
        ("", "add up to 0"),
        ("4", "add up to 4"),
        ("e0", "0 to 20"),
        ("o", "the end of the string"),
        ("oooooooooooooooooooo", "seven characters"),
        ("4\u{e9}", "byte 195"),
        ("4 ", "byte 32"),
        ("N", "0 to 20 (a mask of 4 x 5), got -2"),
    ] {
        let e = Rle::from_coco_string(text, size).unwrap_err().to_string();
        assert!(e.contains(says), "{text:?}: {e}");
    }
    let e = Rle::new(size, &[u32::MAX, u32::MAX]).unwrap_err();
    assert!(e.to_string().contains("add up to 8589934590"), "{e}");
    let huge = Size::new(u32::MAX, u32::MAX);
    for e in [
        Rle::from_coco_string("0", huge).unwrap_err(),
        Rle::new(huge, &[]).unwrap_err(),
        Rle::empty(huge).unwrap_err(),
        Rle::from_polygons(&[], huge).unwrap_err(),
    ] {
        assert!(e.to_string().contains("at most 268435456 positions"), "{e}");
    }
    let a = Rle::empty(Size::new(4, 5)).unwrap();
    let b = Rle::empty(Size::new(5, 4)).unwrap();
    assert!(a.union(&b).unwrap_err().to_string().contains("5 x 4"));
    assert!(a.iou(&b).is_err());
    assert_eq!(a.iou(&a).unwrap(), 0.0);
    let e = a.crop(PixelBox::new(0, 0, 6, 4)).unwrap_err().to_string();
    assert!(e.contains("[0, 0, 6, 4]"), "{e}");
    let e = serde_json::from_str::<Rle>(r#"{"size":[4,5],"counts":[3,4]}"#).unwrap_err();
    assert!(e.to_string().contains("add up to 7"), "{e}");
}
