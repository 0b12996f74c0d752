//! Making a bank: interrupted, on a full disk, by several at once, and where something else lies.

mod bank_common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bank_common::{Mounted, info, mosaic, mount};
use mosaicbank::bank::{Bank, Limits};
use mosaicbank::geometry::Size;
use mosaicbank::{Error, rng};
use rand::Rng;

const SIZE: Size = Size::new(40, 48);

fn create(dir: &Path) -> Result<Bank, Error> {
    Bank::create(dir, info(3, Limits::default()))
}

/// Runs `work` in a forked child and returns how it ended: 0, or 1 after a panic.
fn in_child(work: impl FnOnce() + std::panic::UnwindSafe) -> i32 {
    let pid = fork(work);
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    status
}

fn fork(work: impl FnOnce() + std::panic::UnwindSafe) -> i32 {
    // SAFETY: the child only uses this library and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let ok = std::panic::catch_unwind(work);
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(i32::from(ok.is_err())) };
    }
    pid
}

/// A bank that can be used in every way.
fn assert_whole(bank: &Bank) {
    let report = bank.verify(&mut |_, _| Ok(())).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let seed = u64::from(rng::keyed(1, "whole", 0).next_u32());
    assert!(bank.put_mosaics(&[mosaic(seed, 0, 1, SIZE)]).is_ok());
    assert!(bank.mosaic(mosaic(seed, 0, 1, SIZE).id).is_ok());
    let board = bank.board().expect("a demand board");
    board.asked(0);
    assert!(board.get(0).asked > 0);
}

/// There is no bank, or a whole one; and then a creation succeeds.
fn assert_repaired(dir: &Path, context: &str) {
    match Bank::open(dir) {
        Ok(bank) => assert_whole(&bank),
        Err(e) => {
            assert!(matches!(e, Error::NotFound { .. }), "{context}: {e}");
            let bank = create(dir).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_whole(&bank);
        }
    }
    assert!(!dir.join(".unfinished").exists(), "{context}");
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            let bytes = std::fs::read(e.path()).unwrap_or_default();
            (name, bytes)
        })
        .collect()
}

#[test]
fn killed_creations_leave_no_bank_or_a_whole_one() {
    let kills = std::env::var("MOSAICBANK_KILLS").map_or(60, |v| v.parse().unwrap());
    let tmp = tempfile::tempdir().unwrap();
    let mut r = rng::keyed(3, "kills", 0);
    let (mut none, mut whole, mut half) = (0, 0, 0);
    // The kills aim at the creation itself: twice its time here, and longer when it gets slower.
    let begin = std::time::Instant::now();
    drop(create(&tmp.path().join("timed")).unwrap());
    let span = 2 * begin.elapsed().as_micros() as u64;
    for round in 0..kills {
        let dir = tmp.path().join(format!("bank-{round}"));
        let at = dir.clone();
        let pid = fork(move || drop(create(&at)));
        std::thread::sleep(Duration::from_micros(rng::below(r.next_u64(), span)));
        let mut status = 0;
        // SAFETY: a signal to our own child, and a wait for it.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, &mut status, 0);
        }
        if dir.join("bank.toml").exists() {
            whole += 1;
        } else if dir.exists() && !contents(&dir).is_empty() {
            half += 1;
        } else {
            none += 1;
        }
        assert_repaired(&dir, &format!("round {round}"));
    }
    println!("{kills} kills: {none} before anything was made, {half} within, {whole} after");
}

/// What LMDB leaves when it is stopped after its first write: two meta pages, no table.
fn without_tables(data: &[u8]) -> Vec<u8> {
    let mut second = data[..4096].to_vec();
    second[0] = 1;
    [&data[..4096], &second].concat()
}

#[test]
fn what_older_versions_left_half_made_is_finished() {
    let tmp = tempfile::tempdir().unwrap();
    let whole = tmp.path().join("whole");
    drop(create(&whole).unwrap());
    let parts = contents(&whole);
    let empty = without_tables(&parts["data.mdb"]);
    for (i, data) in [
        &empty[..0],
        &empty[..4096],
        &empty[..],
        &parts["data.mdb"][..],
    ]
    .into_iter()
    .enumerate()
    {
        // With more and more of the other files.
        for k in 0..=3 {
            let dir = tmp.path().join(format!("half-{i}-{k}"));
            std::fs::create_dir_all(dir.join("feedback")).unwrap();
            std::fs::write(dir.join("data.mdb"), data).unwrap();
            for name in ["lock.mdb", "demand.bin", "uses.bin"].into_iter().take(k) {
                std::fs::copy(whole.join(name), dir.join(name)).unwrap();
            }
            assert!(matches!(Bank::open(&dir), Err(Error::NotFound { .. })));
            assert_whole(&create(&dir).unwrap());
        }
    }
    // With a description, but without tables: not sound, and the first writer finishes it.
    let dir = tmp.path().join("described");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(whole.join("bank.toml"), dir.join("bank.toml")).unwrap();
    std::fs::write(dir.join("data.mdb"), &empty).unwrap();
    let bank = Bank::open(&dir).unwrap();
    let report = bank.verify(&mut |_, _| Ok(())).unwrap();
    assert!(!report.is_sound());
    assert!(
        report
            .problems
            .iter()
            .any(|p| p.contains("\"mosaics\" is missing")),
        "{report:?}"
    );
    bank.put_mosaics(&[mosaic(5, 0, 1, SIZE)]).unwrap();
    assert_whole(&bank);
}

#[test]
fn foreign_content_is_refused_and_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let filled = tmp.path().join("filled");
    create(&filled)
        .unwrap()
        .put_mosaics(&[mosaic(1, 0, 1, SIZE)])
        .unwrap();
    let cases: [(&str, Vec<u8>); 6] = [
        ("thesis.tex", b"years of work".to_vec()),
        // A bank that lost its description, or any other LMDB environment.
        ("data.mdb", std::fs::read(filled.join("data.mdb")).unwrap()),
        ("data.mdb", b"not LMDB".to_vec()),
        ("uses.bin", vec![7; 100]),
        ("demand.bin", vec![7; 100]),
        ("lock.mdb", vec![7; 100]),
    ];
    for (i, (name, bytes)) in cases.into_iter().enumerate() {
        let dir = tmp.path().join(format!("foreign-{i}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(name), &bytes).unwrap();
        let before = contents(&dir);
        let e = create(&dir).unwrap_err().to_string();
        assert!(
            e.contains("new or an empty directory") && e.contains(name),
            "{e}"
        );
        assert_eq!(contents(&dir), before, "{name}");
    }
    // Not in an unfinished bank either.
    let dir = tmp.path().join("unfinished");
    std::fs::create_dir_all(dir.join("feedback")).unwrap();
    for name in [".unfinished", "data.mdb", "uses.bin", ".tmpAb12Cd"] {
        std::fs::write(dir.join(name), b"").unwrap();
    }
    std::fs::write(dir.join("feedback/mine"), b"x").unwrap();
    let before = contents(&dir);
    assert!(create(&dir).unwrap_err().to_string().contains("feedback"));
    assert_eq!(contents(&dir), before);
    std::fs::remove_file(dir.join("feedback/mine")).unwrap();
    // An engine that was started first has its log there.
    std::fs::write(dir.join("engine-12.log"), b"log").unwrap();
    assert_whole(&create(&dir).unwrap());
    assert_eq!(std::fs::read(dir.join("engine-12.log")).unwrap(), b"log");
    assert!(!dir.join(".tmpAb12Cd").exists());
    // And a bank is no place for another one.
    let e = create(&dir).unwrap_err().to_string();
    assert!(e.contains("open it instead"), "{e}");
    let e = create(&dir.join("data.mdb")).unwrap_err();
    assert!(matches!(e, Error::Io { .. }), "{e:?}");
}

#[test]
fn of_many_creators_one_wins_and_the_others_open() {
    let tmp = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let dir = tmp.path().join(format!("bank-{round}"));
        let log = tmp.path().join(format!("won-{round}"));
        File::create(&log).unwrap();
        let start = std::time::SystemTime::now() + Duration::from_millis(30);
        let children: Vec<i32> = (0..6)
            .map(|i| {
                let (dir, log) = (dir.clone(), log.clone());
                fork(move || {
                    let wait = start.duration_since(std::time::SystemTime::now());
                    std::thread::sleep(wait.unwrap_or_default());
                    if i % 2 == 0 {
                        match create(&dir) {
                            Ok(_) => {
                                let mut log = File::options().append(true).open(&log).unwrap();
                                log.write_all(b"x").unwrap();
                            }
                            Err(e) => assert!(e.to_string().contains("open it"), "{e}"),
                        }
                    }
                    let make = || Ok(info(3, Limits::default()));
                    let bank = Bank::open_or_create(&dir, make).unwrap();
                    bank.put_mosaics(&[mosaic(i, 0, 1, SIZE)]).unwrap();
                })
            })
            .collect();
        for pid in children {
            let mut status = 0;
            // SAFETY: waits for a child made above.
            unsafe { libc::waitpid(pid, &mut status, 0) };
            assert_eq!(status, 0);
        }
        assert!(std::fs::read(&log).unwrap().len() <= 1, "several made it");
        let bank = Bank::open(&dir).unwrap();
        for i in 0..6 {
            assert!(bank.mosaic(mosaic(i, 0, 1, SIZE).id).is_ok(), "{i} is lost");
        }
        assert_whole(&bank);
    }
    // Threads, too.
    let dir = tmp.path().join("threads");
    let won: usize = std::thread::scope(|s| {
        let threads: Vec<_> = (0..6).map(|_| s.spawn(|| create(&dir).is_ok())).collect();
        threads
            .into_iter()
            .map(|t| usize::from(t.join().unwrap()))
            .sum()
    });
    assert_eq!(won, 1);
    assert_whole(&Bank::open(&dir).unwrap());
}

/// A small file system, or `None` where this machine does not let us mount one.
fn small_disk(point: &Path, size: &str) -> Option<Mounted> {
    std::fs::create_dir(point).unwrap();
    let options = format!("size={size}");
    let target = point.display().to_string();
    if mount(&["-t", "tmpfs", "-o", &options, "tmpfs", &target]) {
        return Some(Mounted(point.to_path_buf()));
    }
    println!("skipped: this machine does not let us mount a file system");
    None
}

/// Fills a disk up to `free` KiB.
fn fill(point: &Path, free: usize) {
    let mut file = File::create(point.join("filler")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let len = file.metadata().unwrap().len();
    file.set_len(len - 1024 * free as u64).unwrap();
}

/// Gives back what `fill` took. (Removing the file would not: a child that another test forked
/// meanwhile may have it open.)
fn make_room(point: &Path) {
    let file = File::options().write(true).open(point.join("filler"));
    file.unwrap().set_len(0).unwrap();
}

fn is_full(e: &Error) -> bool {
    matches!(e, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC))
}

#[test]
fn a_disk_that_fills_during_a_creation_leaves_no_bank() {
    let tmp = tempfile::tempdir().unwrap();
    let point = tmp.path().join("mnt");
    let Some(_mounted) = small_disk(&point, "2m") else {
        return;
    };
    let mut failed = 0;
    let dir = point.join("bank");
    for free in (0..=280).step_by(4) {
        fill(&point, free);
        let status = in_child(|| match create(&dir) {
            Ok(bank) => assert!(bank.board().is_some()),
            Err(e) => {
                assert!(is_full(&e), "{e:?}");
                let e = Bank::open(&dir).unwrap_err();
                assert!(matches!(e, Error::NotFound { .. }), "{e:?}");
            }
        });
        assert_eq!(status, 0, "{free} KiB free");
        failed += usize::from(!dir.join("bank.toml").exists());
        make_room(&point);
        assert_repaired(&dir, &format!("{free} KiB free"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
    assert!((10..65).contains(&failed), "{failed} failed");
}

#[test]
fn a_full_disk_without_a_lock_file_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let point = tmp.path().join("mnt");
    let Some(_mounted) = small_disk(&point, "2m") else {
        return;
    };
    let dir = point.join("bank");
    let bank = create(&dir).unwrap();
    bank.put_mosaics(&[mosaic(1, 0, 1, SIZE)]).unwrap();
    drop(bank);
    let whole = contents(&dir);
    for lock in [None, Some(0), Some(100), Some(73_728)] {
        // No lock file, an empty one, a part of one, and one of holes.
        std::fs::remove_file(dir.join("lock.mdb")).unwrap();
        if let Some(len) = lock {
            let file = File::create(dir.join("lock.mdb")).unwrap();
            file.set_len(len).unwrap();
        }
        for free in (0..=76).step_by(4) {
            fill(&point, free);
            let status = in_child(|| match Bank::open(&dir) {
                Ok(bank) => {
                    assert!(bank.verify(&mut |_, _| Ok(())).unwrap().is_sound());
                    assert!(bank.stock().is_ok());
                }
                Err(e) => assert!(is_full(&e) && e.to_string().contains("lock.mdb"), "{e:?}"),
            });
            assert_eq!(status, 0, "lock {lock:?}, {free} KiB free");
            make_room(&point);
        }
        // It opens when there is room.
        drop(Bank::open(&dir).unwrap());
    }
    // The mapped counters of a copy whose zeros became holes.
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    for (name, bytes) in &whole {
        if name == "uses.bin" {
            let mut file = File::create(dir.join(name)).unwrap();
            file.write_all(&bytes[..64]).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
        } else if name != "feedback" {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
    fill(&point, 0);
    let status = in_child(|| {
        let bank = Bank::open(&dir).unwrap();
        for s in 0..200 {
            assert!(bank.draw_mosaic(0, &mut || s).unwrap().is_some());
        }
    });
    assert_eq!(status, 0);
}

#[test]
fn a_bank_that_was_removed_or_replaced_is_noticed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("bank");
    let old = create(&dir).unwrap();
    old.put_mosaics(&[mosaic(1, 0, 1, SIZE)]).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let e = old.put_mosaics(&[mosaic(2, 0, 1, SIZE)]).unwrap_err();
    assert!(
        matches!(e, Error::NotFound { .. }) && e.to_string().contains("removed since"),
        "{e}"
    );
    // The path is free for a new bank, while the old handle lives.
    let new = create(&dir).unwrap();
    assert_whole(&new);
    for e in [
        old.put_mosaics(&[mosaic(2, 0, 1, SIZE)]).unwrap_err(),
        old.draw_mosaic(0, &mut || 0).unwrap_err(),
    ] {
        assert!(
            matches!(e, Error::Format { .. }) && e.to_string().contains("replaced"),
            "{e}"
        );
    }
    drop(old);
    new.put_mosaics(&[mosaic(3, 0, 1, SIZE)]).unwrap();
    assert!(new.mosaic(mosaic(3, 0, 1, SIZE).id).is_ok());
    // So does a forked worker see it.
    let other = tmp.path().join("other");
    drop(create(&other).unwrap());
    std::fs::rename(&dir, tmp.path().join("moved")).unwrap();
    std::fs::rename(&other, &dir).unwrap();
    let status = in_child(std::panic::AssertUnwindSafe(|| {
        let e = new.draw_mosaic(0, &mut || 0).unwrap_err();
        assert!(matches!(e, Error::Format { .. }), "{e}");
    }));
    assert_eq!(status, 0);
}

#[test]
fn a_file_that_is_cut_under_a_reader_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("bank");
    let bank = create(&dir).unwrap();
    for s in 0..20 {
        bank.put_mosaics(&[mosaic(s, 0, 1, SIZE)]).unwrap();
    }
    assert!(bank.draw_mosaic(0, &mut || 0).unwrap().is_some());
    drop(bank);
    let status = in_child(|| {
        let bank = Bank::open(&dir).unwrap();
        assert!(bank.draw_mosaic(0, &mut || 0).unwrap().is_some());
        let data = File::options()
            .write(true)
            .open(dir.join("data.mdb"))
            .unwrap();
        data.set_len(16_384).unwrap();
        for s in 0..50 {
            let e = bank.draw_mosaic(0, &mut || s).unwrap_err().to_string();
            assert!(e.contains("cut from"), "{e}");
        }
    });
    assert_eq!(status, 0);
}

#[test]
fn the_bank_of_another_user_says_which_file_is_in_the_way() {
    use std::os::unix::fs::PermissionsExt;
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can become another user");
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("bank");
    drop(create(&dir).unwrap());
    for (path, mode) in [(tmp.path(), 0o755), (dir.as_path(), 0o755)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let status = in_child(|| {
        // SAFETY: the child gives up its rights.
        assert_eq!(unsafe { libc::setuid(65_534) }, 0);
        let e = Bank::open(&dir).unwrap_err().to_string();
        assert!(e.contains("lock.mdb") && e.contains("chmod"), "{e}");
    });
    assert_eq!(status, 0);
    std::fs::set_permissions(dir.join("lock.mdb"), PermissionsExt::from_mode(0o666)).unwrap();
    let status = in_child(|| {
        // SAFETY: the child gives up its rights.
        assert_eq!(unsafe { libc::setuid(65_534) }, 0);
        let bank = Bank::open(&dir).unwrap();
        assert!(bank.verify(&mut |_, _| Ok(())).unwrap().is_sound());
        assert!(bank.put_mosaics(&[mosaic(1, 0, 1, SIZE)]).is_err());
    });
    assert_eq!(status, 0);
}
