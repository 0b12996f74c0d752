//! A mosaic goes from the labeller's record into a bank, out into a folder, and into another bank:
//! ids, regions, verdicts, scores, instances and how it was made stay the same, whatever the
//! recipe keeps of a canvas.

mod bank_common;

use bank_common::{new_bank, rectangle};
use mosaicbank::bank::Kind;
use mosaicbank::bank::import::read_picture;
use mosaicbank::dataset::{Entry, Folder};
use mosaicbank::geometry::{PixelBox, Size};
use mosaicbank::mask::Verdict;
use mosaicbank::record::{
    AttentionMap, Generation, Instance, Mosaic, Planned, Region, RegionTrace, fingerprint,
    identity,
};

const CANVAS: Size = Size::new(32, 48);

/// Two regions side by side, of which the picture shows `shown`, with these verdicts.
fn mosaic(window: PixelBox, shown: &[usize], verdicts: &[Verdict]) -> Mosaic {
    let part = |i: u32| PixelBox::new(24 * i, 0, 24 * (i + 1), 32);
    let planned: Vec<Planned> = (0..2)
        .map(|i| Planned {
            bbox: part(i),
            own: part(i),
            category: format!("thing_{}", i + 1),
            prompt: format!("a photo of a thing {}", i + 1),
            subject: [13, 18],
            guidance: 7.5,
            noise_seed: None,
            start: None,
        })
        .collect();
    let size = window.size();
    let image = vec![100; 3 * size.area() as usize];
    let mut regions = Vec::new();
    let mut instances = Vec::new();
    for (&at, verdict) in shown.iter().zip(verdicts) {
        let p = &planned[at];
        let b = PixelBox::new(p.own.x0 - window.x0, 0, p.own.x1 - window.x0, 32);
        let mut region = Region::bare(b, p.category.clone(), verdict.clone());
        region.prompt.clone_from(&p.prompt);
        region.subject = p.subject;
        region.guidance = p.guidance;
        region.scores.insert("clip".into(), 0.25);
        region.trace = Some(RegionTrace {
            planned: at as u32,
            attention: AttentionMap::shrink(&vec![0.5; 24 * 32], b.size()).unwrap(),
            threshold: 0.4,
            refined: rectangle(b.size(), PixelBox::new(2, 2, 9, 9)),
        });
        if verdict.is_kept() {
            let mask = rectangle(size, PixelBox::new(b.x0 + 2, 4, b.x0 + 12, 20));
            let name = p.category.clone();
            let mut object = Instance::of_mask(name, mask, 0.75, regions.len() as u32).unwrap();
            object.scores.insert("clip".into(), 0.3);
            object.scores.insert("flip".into(), 0.9);
            instances.push(object);
        }
        regions.push(region);
    }
    Mosaic {
        id: identity::mosaic("aa", "bb", 7, CANVAS, &planned),
        size,
        regions,
        instances,
        model: "tiny".into(),
        weights: "aa".into(),
        recipe: "bb".into(),
        seed: 7,
        generation: Some(Generation {
            canvas: CANVAS,
            window,
            regions: planned,
            device: "cpu".into(),
            dtype: "float32".into(),
            threads: 1,
            pixels: fingerprint(&image, size),
        }),
        image,
    }
}

#[test]
fn a_mosaic_survives_bank_export_import_and_bank() {
    let whole = PixelBox::new(0, 0, 48, 32);
    let right = PixelBox::new(24, 0, 48, 32);
    let score = Verdict::Score {
        check: "clip".into(),
        score: 0.1,
        threshold: 0.28,
    };
    for (keep, mosaic) in [
        (
            "canvas",
            mosaic(whole, &[0, 1], &[Verdict::Kept, Verdict::Kept]),
        ),
        ("region", mosaic(whole, &[0, 1], &[score, Verdict::Kept])),
        ("crop", mosaic(right, &[1], &[Verdict::Kept])),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir_all(&a).unwrap();
        std::fs::create_dir_all(&b).unwrap();
        let (first, second) = (new_bank(&a, 3), new_bank(&b, 3));
        let record = first.indexed(mosaic.clone()).unwrap();
        first.put_mosaics(std::slice::from_ref(&record)).unwrap();
        assert!(first.mosaic(mosaic.id).unwrap() == record, "{keep}: bank");

        let folder = dir.path().join("out");
        let out = Folder::open(&folder, "export", false).unwrap();
        for entry in first.entries(&mut |_, _| Ok(())).unwrap() {
            out.write(&first.whole(&entry).unwrap()).unwrap();
        }
        for entry in Entry::read_folder(&folder).unwrap() {
            let (_, image, _) = read_picture(&entry.picture_in(&folder)).unwrap();
            let mosaic = Mosaic {
                image,
                ..entry.mosaic
            };
            let record = second.indexed(mosaic).unwrap();
            second.put_mosaics(&[record]).unwrap();
        }
        // The banks of these tests code losslessly: all of it is the same.
        assert!(second.mosaic(mosaic.id).unwrap() == record, "{keep}: again");
        let ids = |bank: &mosaicbank::bank::Bank| bank.ids(Kind::Instance).unwrap();
        assert_eq!(ids(&first), ids(&second), "{keep}");
        for id in ids(&first) {
            assert!(first.instance(id).unwrap() == second.instance(id).unwrap());
            assert_eq!(first.instance(id).unwrap().scores["flip"], 0.9);
        }
    }
}

#[test]
fn mosaics_of_one_seed_without_an_id_are_told_apart_by_what_they_show() {
    let whole = PixelBox::new(0, 0, 48, 32);
    let one = mosaic(whole, &[0, 1], &[Verdict::Kept, Verdict::Kept]);
    let id = |m: &Mosaic| identity::content(m, |name| name.as_str());
    let mut pixels = one.clone();
    pixels.image[0] ^= 1;
    let mut masks = one.clone();
    masks.instances[0].mask = rectangle(CANVAS, PixelBox::new(2, 4, 12, 21));
    let mut category = one.clone();
    category.instances[0].category = "thing_3".into();
    let ids = [&one, &pixels, &masks, &category].map(id);
    let different: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(different.len(), 4);
    assert_eq!(id(&one), id(&one.clone()));
}
