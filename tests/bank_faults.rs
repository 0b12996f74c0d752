//! Bad disks: full, read-only, cut, flipped, zeroed, and from the future.

mod bank_common;

use std::path::Path;

use bank_common::{Mounted, info, mosaic, mount, new_bank};
use mosaicbank::bank::{Bank, Choice, Kind, Limits, MosaicRecord};
use mosaicbank::geometry::Size;
use mosaicbank::{Error, rng};
use rand::Rng;

const SIZE: Size = Size::new(64, 80);

fn quiet(_: u64, _: u64) -> mosaicbank::Result<()> {
    Ok(())
}

fn filled(dir: &Path, n: u64) -> Vec<MosaicRecord> {
    let bank = new_bank(dir, 3);
    let mosaics: Vec<_> = (0..n)
        .map(|s| mosaic(s, (s % 3) as u32, ((s + 1) % 3) as u32, SIZE))
        .collect();
    for batch in mosaics.chunks(8) {
        bank.put_mosaics(batch).unwrap();
    }
    mosaics
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["bank.toml", "data.mdb", "demand.bin"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    std::fs::write(to.join("lock.mdb"), vec![0; 80_000]).unwrap();
}

/// Uses a bank in every way; whatever it gives must be right. Returns the good mosaics.
fn exercise(dir: &Path, originals: &[MosaicRecord]) -> Result<usize, Error> {
    let bank = Bank::open(dir)?;
    let mut r = rng::keyed(1, "exercise", 0);
    let mut good = 0;
    for m in originals {
        if let Ok(found) = bank.mosaic(m.id) {
            assert_eq!(&found, m, "a damaged mosaic passed its checks");
            good += 1;
        }
    }
    let _ = bank.stock();
    let _ = bank.ids(Kind::Instance);
    for c in 0..3 {
        let _ = bank.ids_of(Kind::Mosaic, c);
        for _ in 0..4 {
            if let Ok(Some(d)) = bank.draw_mosaic(c, &mut || r.next_u64()) {
                assert!(originals.contains(&d.record), "a damaged mosaic was drawn");
            }
            if let Ok(Some(d)) =
                bank.draw_instance(&Choice::Categories(&[c]), &mut || r.next_u64())
            {
                let from: Vec<_> = originals.iter().flat_map(MosaicRecord::crops).collect();
                let same = from
                    .iter()
                    .find(|o| o.id == d.record.id)
                    .expect("a known id");
                assert_eq!(d.record.alpha, same.alpha);
            }
        }
    }
    let _ = bank.draw_instance(&Choice::Uniform, &mut || r.next_u64());
    let report = bank.verify(&mut quiet)?;
    assert!(report.mosaics as usize >= good || !report.problems.is_empty());
    // Writing either works or says why; it never brings the process down.
    if let Err(e) = bank.put_mosaics(&[mosaic(10_000, 0, 1, SIZE)]) {
        assert!(
            matches!(e, Error::Format { .. } | Error::Backend { .. }),
            "{e:?}"
        );
    }
    Ok(good)
}

#[test]
fn flipped_bits_cost_what_they_hit_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let originals = filled(tmp.path(), 24);
    let bank = tmp.path().join("bank");
    let clean = std::fs::read(bank.join("data.mdb")).unwrap();
    let flips = std::env::var("MOSAICBANK_FLIPS").map_or(150, |v| v.parse().unwrap());
    let mut r = rng::keyed(7, "flips", 0);
    let (mut refused, mut lost) = (0, 0);
    let mut one_flip_costs = 0;
    for round in 0..flips {
        let dir = tmp.path().join(format!("flipped-{round}"));
        copy(&bank, &dir);
        let mut bytes = clean.clone();
        // One flip in half of the rounds, a few in the others; every fourth round in the first
        // pages, where the meta pages and roots are.
        let n = if round % 2 == 0 {
            1
        } else {
            1 + r.next_u32() % 8
        };
        for _ in 0..n {
            let span = if round % 4 == 3 {
                16_384
            } else {
                bytes.len() as u64
            };
            let at = rng::below(r.next_u64(), span) as usize;
            bytes[at] ^= 1 << (r.next_u32() % 8);
        }
        std::fs::write(dir.join("data.mdb"), bytes).unwrap();
        match exercise(&dir, &originals) {
            Ok(good) => {
                lost += originals.len() - good;
                if n == 1 {
                    one_flip_costs = one_flip_costs.max(originals.len() - good);
                }
            }
            Err(e) => {
                assert!(!e.to_string().is_empty());
                refused += 1;
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    println!(
        "{flips} rounds: {refused} refused, {lost} mosaics lost, at most {one_flip_costs} by one flip"
    );
    assert!(
        refused < flips / 4,
        "{refused} of {flips} banks could not be opened"
    );
}

#[test]
fn damaged_pages_of_every_kind_are_survived_and_what_can_be_read_is_saved() {
    let tmp = tempfile::tempdir().unwrap();
    let originals = filled(tmp.path(), 24);
    let bank = tmp.path().join("bank");
    let clean = std::fs::read(bank.join("data.mdb")).unwrap();
    let pages = clean.len() / 4096;
    for page in 2..pages {
        // Only tree pages: what lies in records is covered by the flips.
        let flags = u16::from_le_bytes([clean[page * 4096 + 10], clean[page * 4096 + 11]]);
        if flags & 3 == 0 || flags > 0x10 {
            continue;
        }
        for (k, fill) in [(0u64, Some(0u8)), (1, Some(0xFF)), (2, None)] {
            let dir = tmp.path().join(format!("page-{page}-{k}"));
            copy(&bank, &dir);
            let mut bytes = clean.clone();
            let mut r = rng::keyed(page as u64, "garbage", k);
            for b in &mut bytes[page * 4096 + 12..(page + 1) * 4096] {
                *b = fill.unwrap_or_else(|| r.next_u32() as u8);
            }
            std::fs::write(dir.join("data.mdb"), bytes).unwrap();
            let good = exercise(&dir, &originals);
            if let (Ok(good), Ok(damaged)) = (good, Bank::open(&dir)) {
                let to = tmp.path().join("saved");
                let (saved, _) = damaged.compact_into(&to, &mut quiet).unwrap();
                assert!(saved.verify(&mut quiet).unwrap().is_sound());
                let kept = originals
                    .iter()
                    .filter(|m| saved.mosaic(m.id).is_ok())
                    .count();
                assert!(kept >= good, "page {page}: {kept} saved of {good}");
                drop(saved);
                std::fs::remove_dir_all(to).unwrap();
            }
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}

#[test]
fn cut_and_zeroed_files_are_refused_or_read_as_far_as_they_go() {
    let tmp = tempfile::tempdir().unwrap();
    let originals = filled(tmp.path(), 16);
    let bank = tmp.path().join("bank");
    let clean = std::fs::read(bank.join("data.mdb")).unwrap();
    let n = clean.len();
    for cut in [
        0,
        1,
        100,
        4096,
        8192,
        8193,
        12_288,
        n / 3,
        n / 2,
        n - 4096,
        n - 1,
    ] {
        let dir = tmp.path().join(format!("cut-{cut}"));
        copy(&bank, &dir);
        std::fs::write(dir.join("data.mdb"), &clean[..cut]).unwrap();
        match exercise(&dir, &originals) {
            Ok(_) => assert!(cut >= 8192, "{cut}"),
            Err(e) => assert!(
                matches!(
                    e,
                    Error::Format { .. } | Error::Io { .. } | Error::NotFound { .. }
                ),
                "{e:?}"
            ),
        }
    }
    let dir = tmp.path().join("zeros");
    copy(&bank, &dir);
    std::fs::write(dir.join("data.mdb"), vec![0; n]).unwrap();
    let e = exercise(&dir, &originals).unwrap_err();
    assert!(e.to_string().contains("no LMDB meta page"), "{e}");
}

#[test]
fn the_small_files_are_rebuilt_or_refused() {
    let tmp = tempfile::tempdir().unwrap();
    filled(tmp.path(), 3);
    let dir = tmp.path().join("bank");
    let board = std::fs::read(dir.join("demand.bin")).unwrap();
    for damaged in [
        &board[..0],
        &board[..70],
        &vec![0; board.len()],
        &[board.clone(), vec![1]].concat(),
    ] {
        std::fs::write(dir.join("demand.bin"), damaged).unwrap();
        let bank = Bank::open(&dir).unwrap();
        assert!(
            bank.board()
                .unwrap()
                .snapshot()
                .iter()
                .all(|d| d.weight == 1.0 && d.asked == 0)
        );
    }
    // Numbers that make no sense are neutral.
    let mut odd = board.clone();
    odd[64 + 32..64 + 40].copy_from_slice(&[0xFF; 8]);
    std::fs::write(dir.join("demand.bin"), &odd).unwrap();
    assert_eq!(
        Bank::open(&dir).unwrap().board().unwrap().get(0).weight,
        1.0
    );
    // A newer board is not thrown away.
    let mut newer = board.clone();
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..24]);
    newer[24..28].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(dir.join("demand.bin"), &newer).unwrap();
    let e = Bank::open(&dir).unwrap_err().to_string();
    assert!(e.contains("newer mosaicbank"), "{e}");
    std::fs::write(dir.join("demand.bin"), &board).unwrap();
    for damaged in [vec![], vec![0; 1000]] {
        std::fs::write(dir.join("uses.bin"), damaged).unwrap();
        let bank = Bank::open(&dir).unwrap();
        let mut r = rng::keyed(0, "x", 0);
        for uses in 0..3 {
            let d = bank.draw_mosaic(0, &mut || r.next_u64()).unwrap().unwrap();
            assert!(d.uses <= uses);
        }
    }
    std::fs::remove_file(dir.join("data.mdb")).unwrap();
    assert!(matches!(Bank::open(&dir), Err(Error::NotFound { .. })));
    std::fs::write(dir.join("bank.toml"), "format = ").unwrap();
    assert!(matches!(Bank::open(&dir), Err(Error::Format { .. })));
    std::fs::write(dir.join("bank.toml"), "format = 9\nx = 1").unwrap();
    let e = Bank::open(&dir).unwrap_err().to_string();
    assert!(e.contains("newer mosaicbank"), "{e}");
}

/// A full disk, as a file size limit on this (forked) process: `write` fails the same way.
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let originals = filled(tmp.path(), 8);
    let dir = tmp.path().join("bank");
    // SAFETY: the child only uses this library and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let ok = std::panic::catch_unwind(|| {
            let len = std::fs::metadata(dir.join("data.mdb")).unwrap().len();
            let limit = libc::rlimit {
                rlim_cur: len + 300_000,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: plain system calls on this process.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
            }
            let bank = Bank::open(&dir).unwrap();
            let mut failed = None;
            for s in 100..400 {
                if let Err(e) = bank.put_mosaics(&[mosaic(s, 0, 1, SIZE)]) {
                    failed = Some((s, e));
                    break;
                }
            }
            let (s, e) = failed.expect("no error on a full disk");
            assert!(matches!(e, Error::Io { .. }), "{e:?}");
            // Reading goes on in the same process, and nothing committed is lost.
            for committed in 100..s {
                bank.mosaic(mosaic(committed, 0, 1, SIZE).id).unwrap();
            }
            assert!(bank.mosaic(mosaic(s, 0, 1, SIZE).id).is_err());
        });
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(i32::from(ok.is_err())) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0);
    let bank = Bank::open(&tmp.path().join("bank")).unwrap();
    assert!(bank.verify(&mut quiet).unwrap().is_sound());
    for m in &originals {
        assert_eq!(&bank.mosaic(m.id).unwrap(), m);
    }
    assert_eq!(
        bank.put_mosaics(&[mosaic(999, 0, 1, SIZE)]).unwrap().added,
        3
    );
}

#[test]
fn a_small_file_system_fills_and_a_read_only_one_reads() {
    let tmp = tempfile::tempdir().unwrap();
    let point = tmp.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    let target = point.display().to_string();
    if !mount(&["-t", "tmpfs", "-o", "size=2m", "tmpfs", &target]) {
        println!("skipped: this machine does not let us mount a file system");
        return;
    }
    let _mounted = Mounted(point.clone());
    let limits = Limits {
        max_bytes: 0,
        max_per_category: 0,
        max_uses: 0,
    };
    let bank = Bank::create(&point.join("bank"), info(3, limits)).unwrap();
    let mut s = 0;
    let e = loop {
        match bank.put_mosaics(&[mosaic(s, 0, 1, SIZE)]) {
            Ok(_) => s += 1,
            Err(e) => break e,
        }
        assert!(s < 1000);
    };
    assert!(
        matches!(&e, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC)),
        "{e:?}"
    );
    // Uses and demand are still counted on the full disk.
    let mut r = rng::keyed(0, "x", 0);
    for _ in 0..50 {
        assert!(bank.draw_mosaic(0, &mut || r.next_u64()).unwrap().is_some());
    }
    assert_eq!(bank.board().unwrap().get(0).asked, 50);
    assert!(bank.verify(&mut quiet).unwrap().is_sound());
    drop(bank);
    assert!(mount(&["-o", "remount,ro", &target]));
    let bank = Bank::open(&point.join("bank")).unwrap();
    assert!(bank.board().is_none());
    assert!(bank.draw_mosaic(0, &mut || r.next_u64()).unwrap().is_some());
    let e = bank.put_mosaics(&[mosaic(5000, 0, 1, SIZE)]).unwrap_err();
    assert!(
        matches!(&e, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EROFS)),
        "{e:?}"
    );
    let e = Bank::create(&point.join("other"), info(3, limits)).unwrap_err();
    assert!(matches!(e, Error::Io { .. }), "{e:?}");
}
