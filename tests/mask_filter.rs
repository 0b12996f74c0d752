//! The filter: bounds, placement, verdicts; and the parameters of the mask room.

use mosaicbank::geometry::{PixelBox, Size};
use mosaicbank::mask::{
    Bilateral, BinaryMask, Check, ComponentRule, Measure, Refiner, SizeCheck, Threshold,
    Verdict, aggregate, bilateral_solve, filter_region,
};
use proptest::prelude::*;

const BASE: Size = Size::new(40, 50);

fn with_boxes(size: Size, boxes: &[[u32; 4]]) -> BinaryMask {
    let mut mask = BinaryMask::zeros(size);
    for b in boxes {
        for y in b[1]..b[3] {
            for x in b[0]..b[2] {
                mask.data_mut()[(y * size.width + x) as usize] = 1;
            }
        }
    }
    mask
}

fn whole(params: &SizeCheck, mask: &BinaryMask) -> (Verdict, Vec<BinaryMask>) {
    let size = mask.size();
    let region = PixelBox::new(0, 0, size.width, size.height);
    filter_region(params, mask, region, region, size, BASE).expect("a possible placement")
}

#[test]
fn the_papers_bounds_for_384_by_512() {
    let bounds = SizeCheck::default().area_bounds(Size::new(384, 512));
    assert_eq!(bounds, (9830, 186778));
    let p = SizeCheck::default();
    assert_eq!(
        (p.min_width, p.max_width, p.min_height, p.max_height),
        (1, 768, 1, 1024)
    );
}

#[test]
fn area_bounds_are_inclusive() {
    // 5 % and 95 % of 40 x 50: 100 and 1900.
    let p = SizeCheck::default();
    for (boxes, verdict) in [
        (vec![[0, 0, 10, 10]], Verdict::Kept),
        (
            vec![[0, 0, 9, 11]],
            Verdict::TooSmall {
                what: Measure::Area,
                got: 99,
                least: 100,
            },
        ),
        (vec![[0, 0, 50, 38]], Verdict::Kept),
        (
            vec![[0, 0, 50, 38], [0, 38, 1, 39]],
            Verdict::TooLarge {
                what: Measure::Area,
                got: 1901,
                most: 1900,
            },
        ),
        (vec![], Verdict::NoComponent),
        // Small pieces beside a good one do not count.
        (vec![[0, 0, 20, 20], [30, 30, 35, 35]], Verdict::Kept),
        (
            vec![[0, 0, 20, 20], [30, 20, 41, 31]],
            Verdict::TooManyComponents { found: 2 },
        ),
        // Touching at a corner only.
        (
            vec![[0, 0, 20, 20], [20, 20, 31, 31]],
            Verdict::TooManyComponents { found: 2 },
        ),
    ] {
        let (got, masks) = whole(&p, &with_boxes(BASE, &boxes));
        assert_eq!(got, verdict, "{boxes:?}");
        assert_eq!(masks.is_empty(), !verdict.is_kept());
    }
}

#[test]
fn sides_are_measured_too() {
    let p = SizeCheck {
        max_width: 20,
        min_height: 10,
        ..SizeCheck::default()
    };
    let verdict = |b| whole(&p, &with_boxes(BASE, &[b])).0;
    assert_eq!(verdict([0, 0, 20, 10]), Verdict::Kept);
    let wide = verdict([0, 0, 21, 10]);
    assert_eq!(wide.to_string(), "width of 21 px is above 20 px");
    let low = verdict([0, 0, 20, 9]);
    assert_eq!(low.to_string(), "height of 9 px is below 10 px");
}

#[test]
fn several_components_where_the_option_says_so() {
    let p = SizeCheck {
        components: ComponentRule::Each,
        ..SizeCheck::default()
    };
    let mask = with_boxes(BASE, &[[0, 0, 20, 20], [30, 20, 41, 31], [45, 0, 47, 2]]);
    let (verdict, masks) = whole(&p, &mask);
    assert_eq!(verdict, Verdict::Kept);
    let areas: Vec<_> = masks.iter().map(BinaryMask::area).collect();
    assert_eq!(areas, [400, 121]);
}

#[test]
fn only_the_regions_own_part_reaches_the_canvas() {
    let canvas = Size::new(80, 100);
    // A region whose right and lower overlap belongs to its neighbours.
    let (region, own) = (PixelBox::new(10, 20, 60, 60), PixelBox::new(10, 20, 50, 52));
    let mask = with_boxes(region.size(), &[[20, 10, 50, 40]]);
    let (verdict, masks) =
        filter_region(&SizeCheck::default(), &mask, region, own, canvas, BASE)
            .expect("a possible placement");
    assert_eq!(verdict, Verdict::Kept);
    assert_eq!(masks, [with_boxes(canvas, &[[30, 30, 50, 52]])]);
}

#[test]
fn impossible_placements_are_errors() {
    let p = SizeCheck::default();
    let mask = BinaryMask::zeros(BASE);
    let at = |region: [u32; 4], own: [u32; 4]| {
        filter_region(&p, &mask, region.into(), own.into(), BASE, BASE)
            .expect_err("an impossible placement")
            .to_string()
    };
    for (region, own) in [
        ([0, 0, 50, 41], [0, 0, 50, 40]),
        ([0, 0, 51, 40], [0, 0, 50, 40]),
        ([8, 0, 50, 40], [0, 0, 50, 40]),
        ([0, 0, 50, 40], [9, 9, 9, 20]),
    ] {
        assert!(at(region, own).contains("inside"), "{region:?} {own:?}");
    }
    let e = at([0, 0, 49, 40], [0, 0, 49, 40]);
    assert!(e.contains("expected 40 x 49"), "{e}");
}

#[test]
fn verdicts_read_well_in_text_and_json() {
    let v = Verdict::TooManyComponents { found: 3 };
    assert_eq!(v.to_string(), "3 components, expected one");
    let json = serde_json::to_string(&v).expect("plain data");
    assert_eq!(json, r#"{"too_many_components":{"found":3}}"#);
    assert_eq!(serde_json::from_str::<Verdict>(&json).expect("its own"), v);
    let kept = serde_json::to_string(&Verdict::Kept).expect("plain data");
    assert_eq!(kept, r#""kept""#);
}

#[test]
fn parameters_name_the_key() {
    let filter = |json: &str| {
        serde_json::from_str::<SizeCheck>(json)
            .map_err(|e| e.to_string())
            .and_then(|p| p.validate("checks.size").map_err(|e| e.to_string()))
    };
    assert_eq!(filter("{}"), Ok(()));
    for (json, says) in [
        (r#"{"min_area": -0.1}"#, "checks.size.min_area"),
        (r#"{"max_area": 1.1}"#, "checks.size.max_area"),
        (
            r#"{"min_area": 0.6, "max_area": 0.5}"#,
            "checks.size.min_area",
        ),
        (r#"{"min_width": 900}"#, "checks.size.min_width"),
        (r#"{"min_height": 1025}"#, "checks.size.min_height"),
        (r#"{"min_size": 1}"#, "unknown field `min_size`"),
    ] {
        let e = filter(json).expect_err(json);
        assert!(e.contains(says), "{json}: {e}");
    }
    type Change = fn(&mut Bilateral);
    let refine = |change: Change| {
        let mut p = Bilateral::default();
        change(&mut p);
        p.validate("refine.bilateral").map_err(|e| e.to_string())
    };
    assert_eq!(refine(|_| ()), Ok(()));
    let cases: [(Change, &str); 9] = [
        (|p| p.passes = 0, "refine.bilateral.passes"),
        (|p| p.sigma_spatial = 0.5, "refine.bilateral.sigma_spatial"),
        (|p| p.sigma_luma = f64::NAN, "refine.bilateral.sigma_luma"),
        (
            |p| p.sigma_chroma = f64::INFINITY,
            "refine.bilateral.sigma_chroma",
        ),
        (|p| p.lambda = -1.0, "refine.bilateral.lambda"),
        (|p| p.confidence = 0.0, "refine.bilateral.confidence"),
        (
            |p| p.diagonal_floor = 0.0,
            "refine.bilateral.diagonal_floor",
        ),
        (|p| p.max_iterations = 0, "refine.bilateral.max_iterations"),
        (|p| p.threshold = 1.0, "refine.bilateral.threshold"),
    ];
    for (change, key) in cases {
        let e = refine(change).expect_err(key);
        assert!(e.contains(key), "{e}");
    }
    assert_eq!(
        serde_json::from_str::<Threshold>(r#"{"fixed": 0.3}"#).ok(),
        Some(Threshold::Fixed(0.3))
    );
    assert_eq!(
        serde_json::from_str::<Threshold>(r#""otsu""#).ok(),
        Some(Threshold::Otsu)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the picture, target and parameters: finite values within the target's range,
    /// give or take what conjugate gradients overshoot, and never a panic.
    #[test]
    fn the_solver_stays_finite(
        h in 1u32..24, w in 1u32..24, seed in any::<u64>(),
        spatial in 1.0f64..40.0, luma in 1.0f64..300.0, chroma in 1.0f64..300.0,
        lambda in 0.0f64..1e4, trust in prop::bool::ANY,
    ) {
        let mut state = seed | 1;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as u8
        };
        let n = (h * w) as usize;
        let rgb: Vec<u8> = (0..3 * n).map(|_| random()).collect();
        let target: Vec<f32> = (0..n).map(|_| f32::from(random() & 1)).collect();
        // Confidences of 0 leave vertices to their neighbours.
        let confidence: Vec<f32> = (0..n).map(|_| f32::from(random() % 3) / 2.0).collect();
        let params = Bilateral {
            sigma_spatial: spatial,
            sigma_luma: luma,
            sigma_chroma: chroma,
            lambda,
            ..Bilateral::default()
        };
        let (map, report) = bilateral_solve(
            &rgb, Size::new(h, w), &target, trust.then_some(&confidence[..]), &params,
        ).expect("valid input");
        prop_assert!(report.vertices <= n);
        prop_assert!(map.iter().all(|v| v.is_finite() && (-1.0..=2.0).contains(v)), "{map:?}");
    }

    #[test]
    fn aggregation_stays_within_0_and_1(
        maps in prop::collection::vec((1u32..9, 1u32..9, any::<u64>()), 1..4),
        h in 1u32..40, w in 1u32..40,
    ) {
        let maps: Vec<(Size, Vec<f32>)> = maps.into_iter().map(|(h, w, seed)| {
            let data = (0..h * w)
                .map(|i| ((seed >> (i % 60)) & 7) as f32 * f32::MIN_POSITIVE)
                .collect();
            (Size::new(h, w), data)
        }).collect();
        let maps: Vec<_> = maps.iter().map(|(s, d)| (*s, d.as_slice())).collect();
        let out = aggregate(&maps, Size::new(h, w)).expect("valid input");
        prop_assert!(out.iter().all(|v| (0.0..=1.0).contains(v)));
        prop_assert!(Threshold::Otsu.apply(&out, Size::new(h, w)).is_ok());
    }
}

#[test]
fn a_verdict_is_the_same_in_json_with_and_without_a_number() {
    let score = Verdict::Score {
        check: "clip".into(),
        score: 0.25,
        threshold: 0.5,
    };
    for (verdict, json) in [
        (Verdict::Kept, r#""kept""#),
        (Verdict::NoProposal, r#""no_proposal""#),
        (
            Verdict::TooManyComponents { found: 2 },
            r#"{"too_many_components":{"found":2}}"#,
        ),
        (
            score.clone(),
            r#"{"score":{"check":"clip","score":0.25,"threshold":0.5}}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&verdict).expect("JSON"), json);
        assert_eq!(
            serde_json::from_str::<Verdict>(json).expect("a verdict"),
            verdict
        );
    }
    assert_eq!(score.to_string(), "clip score of 0.25 is below 0.5");
    assert!(!score.is_kept() && Verdict::Kept.is_kept());
}
