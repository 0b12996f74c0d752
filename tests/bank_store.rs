//! The bank as a store: what goes in comes out, once, within the limits, in every process.

mod bank_common;

use bank_common::{info, mosaic, new_bank};
use mosaicbank::bank::{Bank, Choice, Kind, Limits};
use mosaicbank::geometry::Size;
use rand::Rng;

const SIZE: Size = Size::new(48, 64);

fn bits(seed: u64) -> impl FnMut() -> u64 {
    let mut rng = mosaicbank::rng::keyed(seed, "test", 0);
    move || rng.next_u64()
}

#[test]
fn what_goes_in_comes_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let bank = new_bank(dir.path(), 5);
    let mosaics: Vec<_> = (0..20)
        .map(|s| mosaic(s, (s % 5) as u32, 2, SIZE))
        .collect();
    let report = bank.put_mosaics(&mosaics).unwrap();
    assert_eq!((report.added, report.known), (60, 0));
    let again = bank.put_mosaics(&mosaics).unwrap();
    assert_eq!((again.added, again.known), (0, 60));
    for m in &mosaics {
        assert!(&bank.mosaic(m.id).unwrap() == m, "{}", m.id);
        for crop in m.crops() {
            let back = bank.instance(crop.id).unwrap();
            assert!(back == crop, "{}", crop.id);
            assert_eq!(back.provenance.mosaic, m.id.to_string());
        }
    }
    let stock = bank.stock().unwrap();
    assert_eq!((stock.total_mosaics, stock.total_instances), (20, 40));
    assert_eq!(stock.mosaics, [4, 4, 20, 4, 4]);
    assert_eq!(stock.instances, [4, 4, 24, 4, 4]);
    drop(bank);
    let bank = Bank::open(&dir.path().join("bank")).unwrap();
    assert_eq!(*bank.stock().unwrap(), *stock);
    let report = bank.verify(&mut |_, _| Ok(())).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.mosaics, report.instances), (20, 40));
}

#[test]
fn the_least_used_mosaic_comes_first_and_demand_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let bank = new_bank(dir.path(), 3);
    let mosaics: Vec<_> = (0..6).map(|s| mosaic(s, 0, 1, SIZE)).collect();
    bank.put_mosaics(&mosaics).unwrap();
    let mut b = bits(1);
    for round in 0..3 {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..6 {
            let drawn = bank.draw_mosaic(0, &mut b).unwrap().unwrap();
            assert_eq!(drawn.uses, round);
            seen.insert(drawn.record.id);
        }
        assert_eq!(seen.len(), 6);
    }
    assert!(bank.draw_mosaic(2, &mut b).unwrap().is_none());
    let board = bank.board().unwrap();
    let d = board.get(0);
    assert_eq!(
        (d.asked, d.served_fresh, d.served_again, d.missed),
        (18, 6, 12, 0)
    );
    assert_eq!(board.get(2).missed, 1);
    assert_eq!(
        bank.use_count(Kind::Mosaic, mosaics[0].id).unwrap(),
        Some(3)
    );
    assert!(bank.draw_mosaic(3, &mut b).is_err());
}

#[test]
fn limits_evict_the_most_used_and_worst_and_retired_ones_stay_away() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_bytes: 0,
        max_per_category: 4,
        max_uses: 2,
    };
    let bank = Bank::create(&dir.path().join("bank"), info(2, limits)).unwrap();
    let mosaics: Vec<_> = (0..4).map(|s| mosaic(s, 0, 1, SIZE)).collect();
    bank.put_mosaics(&mosaics).unwrap();
    let mut b = bits(1);
    let used = bank.draw_mosaic(0, &mut b).unwrap().unwrap().record.id;
    let report = bank.put_mosaics(&[mosaic(100, 0, 1, SIZE)]).unwrap();
    // The mosaic, and one crop of each category.
    assert_eq!(report.evicted, 3);
    assert!(bank.mosaic(used).is_err());
    // It does not come back.
    let seed = (0..4).find(|&s| mosaics[s as usize].id == used).unwrap();
    let again = bank.put_mosaics(&[mosaic(seed, 0, 1, SIZE)]).unwrap();
    assert_eq!(again.added, 0);
    // Everything used twice is retired: not drawn, and removed by `retire`.
    for _ in 0..8 {
        assert!(bank.draw_mosaic(1, &mut b).unwrap().is_some());
    }
    assert!(bank.draw_mosaic(1, &mut b).unwrap().is_none());
    assert_eq!(bank.retire().unwrap(), 4);
    assert_eq!(bank.stock().unwrap().mosaics, [0, 0]);
    assert!(bank.verify(&mut |_, _| Ok(())).unwrap().is_sound());
}

#[test]
fn bytes_are_bounded_and_rare_categories_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_bytes: 1 << 20,
        max_per_category: 0,
        max_uses: 0,
    };
    let bank = Bank::create(&dir.path().join("bank"), info(3, limits)).unwrap();
    bank.put_mosaics(&[mosaic(0, 2, 2, SIZE)]).unwrap();
    for s in 1..80 {
        bank.put_mosaics(&[mosaic(s, 0, 1, SIZE)]).unwrap();
    }
    let stock = bank.stock().unwrap();
    assert!(stock.bytes <= 1 << 20, "{stock:?}");
    assert!(stock.removed > 0);
    assert_eq!((stock.mosaics[2], stock.instances[2]), (1, 2));
    let report = bank.verify(&mut |_, _| Ok(())).unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[test]
fn merging_twice_is_merging_once_and_categories_go_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let a = new_bank(&dir.path().join("a"), 4);
    let mut other = bank_common::categories(3);
    other[0].name = "thing_3".into();
    other[2].name = "thing_1".into();
    let info = mosaicbank::bank::BankInfo::new(other, "", Limits::default()).unwrap();
    let b = Bank::create(&dir.path().join("b/bank"), info).unwrap();
    let mosaics: Vec<_> = (0..5).map(|s| mosaic(s, 0, 1, SIZE)).collect();
    b.put_mosaics(&mosaics).unwrap();
    let first = a.merge_from(&b).unwrap();
    assert_eq!((first.added, first.refused), (15, 0));
    assert_eq!(a.merge_from(&b).unwrap().known, 15);
    let m = a.mosaic(mosaics[0].id).unwrap();
    assert_eq!((m.instances[0].category, m.instances[1].category), (2, 1));
    // The coded image was taken over, not coded again.
    assert_eq!(m.image, b.mosaic(mosaics[0].id).unwrap().image);
    assert!(a.verify(&mut |_, _| Ok(())).unwrap().is_sound());
    let (c, report) = a
        .compact_into(&dir.path().join("c"), &mut |_, _| Ok(()))
        .unwrap();
    assert_eq!((report.added, report.refused), (15, 0));
    assert_eq!(c.stock().unwrap().instances, a.stock().unwrap().instances);
}

#[test]
fn instances_are_drawn_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let bank = new_bank(dir.path(), 4);
    bank.put_mosaics(&[mosaic(0, 0, 1, SIZE), mosaic(1, 1, 1, SIZE)])
        .unwrap();
    let mut b = bits(3);
    let mut count = [0u32; 4];
    for _ in 0..4000 {
        let d = bank
            .draw_instance(&Choice::ClassBalanced, &mut b)
            .unwrap()
            .unwrap();
        count[d.record.category as usize] += 1;
    }
    assert!(
        count[0].abs_diff(2000) < 200 && count[2] + count[3] == 0,
        "{count:?}"
    );
    let mut count = [0u32; 4];
    for _ in 0..4000 {
        let d = bank
            .draw_instance(&Choice::Uniform, &mut b)
            .unwrap()
            .unwrap();
        count[d.record.category as usize] += 1;
    }
    assert!(count[0].abs_diff(1000) < 150, "{count:?}");
    let given = Choice::Categories(&[1, 3]);
    let d = bank.draw_instance(&given, &mut b).unwrap().unwrap();
    assert_eq!(d.record.category, 1);
    assert!(
        bank.draw_instance(&Choice::Categories(&[3]), &mut b)
            .unwrap()
            .is_none()
    );
    assert!(
        bank.draw_instance(&Choice::Categories(&[9]), &mut b)
            .is_err()
    );
}

#[test]
fn a_forked_child_reads_and_writes_with_its_own_environment() {
    let dir = tempfile::tempdir().unwrap();
    let bank = new_bank(dir.path(), 3);
    bank.put_mosaics(&[mosaic(0, 0, 1, SIZE)]).unwrap();
    let parent_uses = |b: &Bank| b.use_count(Kind::Mosaic, mosaic(0, 0, 1, SIZE).id).unwrap();
    for round in 0..5u64 {
        // SAFETY: the child only uses this library and leaves by `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let drawn = bank.draw_mosaic(0, &mut bits(round)).unwrap();
                drawn.is_some()
                    && bank
                        .put_mosaics(&[mosaic(10 + round, 2, 2, SIZE)])
                        .unwrap()
                        .added
                        == 3
                    && bank.stock().unwrap().mosaics[2] == round + 1
            }));
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(i32::from(!matches!(ok, Ok(true)))) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0, "the child failed in round {round}");
        assert_eq!(bank.stock().unwrap().mosaics[2], round + 1);
        assert_eq!(parent_uses(&bank), Some(round as u32 + 1));
    }
}

#[test]
fn two_handles_on_one_bank_share_an_environment() {
    let dir = tempfile::tempdir().unwrap();
    let a = new_bank(dir.path(), 3);
    let b = Bank::open(&dir.path().join("bank")).unwrap();
    a.put_mosaics(&[mosaic(0, 0, 1, SIZE)]).unwrap();
    drop(a);
    assert_eq!(b.stock().unwrap().total_mosaics, 1);
    drop(b);
    let c = Bank::open(&dir.path().join("bank")).unwrap();
    assert_eq!(c.stock().unwrap().total_mosaics, 1);
    let e = c.category("thing_22").unwrap_err().to_string();
    assert!(e.contains("did you mean \"thing_2\""), "{e}");
}

/// Banks of every released format stay readable. `tests/data/bank-1` was made by the code
/// below (with `MOSAICBANK_NEW_GOLDEN=1`), version 0.1.0.
#[test]
fn a_bank_of_format_1_is_read() {
    let kept = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bank-1");
    let small = Size::new(20, 24);
    // Its records do not say yet how they were made.
    let old = |seed: u64| {
        let mut m = mosaic(seed, seed as u32, 1, small);
        m.generation = None;
        m.regions.iter_mut().for_each(|r| r.trace = None);
        m
    };
    let originals: Vec<_> = (0..2).map(old).collect();
    if std::env::var_os("MOSAICBANK_NEW_GOLDEN").is_some() {
        let bank = Bank::create(&kept, info(3, Limits::default())).unwrap();
        bank.put_mosaics(&originals).unwrap();
        bank.board().unwrap().set_feedback(2, 1.5, 0.5).unwrap();
        drop(bank);
        std::fs::remove_file(kept.join("uses.bin")).unwrap();
        std::fs::remove_file(kept.join("lock.mdb")).unwrap();
        std::fs::remove_dir(kept.join("feedback")).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["bank.toml", "data.mdb", "demand.bin"] {
        std::fs::copy(kept.join(name), dir.path().join(name)).unwrap();
    }
    let bank = Bank::open(dir.path()).unwrap();
    for m in &originals {
        assert!(&bank.mosaic(m.id).unwrap() == m);
        for crop in m.crops() {
            assert!(bank.instance(crop.id).unwrap() == crop);
        }
    }
    assert_eq!(bank.board().unwrap().get(2).weight, 1.5);
    assert!(bank.verify(&mut |_, _| Ok(())).unwrap().is_sound());
    assert_eq!(bank.put_mosaics(&originals).unwrap().known, 6);
}
