//! Processes that die: 200 kills of a writer, and readers beside a writer.
//!
//! The children are this same binary, started on one ignored test each.
//! `MOSAICBANK_SOAK=60` (seconds) runs the long form of the second test (`make test-long`).

mod bank_common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bank_common::{info, mosaic};
use mosaicbank::bank::{Bank, Choice, Limits, MosaicRecord};
use mosaicbank::geometry::Size;
use rand::Rng;

const SIZE: Size = Size::new(40, 48);
const DIR: &str = "MOSAICBANK_TEST_DIR";
const SEED: &str = "MOSAICBANK_TEST_SEED";

fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect(name))
}

/// Starts one of the ignored tests below in a process of its own.
fn child(test: &str, dir: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            test,
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join(format!("{test}-{seed}.log"))).unwrap())
        .spawn()
        .unwrap()
}

fn dir_of_child() -> Option<(PathBuf, u64)> {
    Some((std::env::var_os(DIR)?.into(), env_number(SEED, 0)))
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a signal to our own child.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// The mosaics are told by their seed; the child's are `seed * 1e6 + n`.
fn nth(seed: u64) -> MosaicRecord {
    mosaic(seed, (seed % 3) as u32, ((seed / 3) % 3) as u32, SIZE)
}

#[test]
#[ignore = "a child of the tests below"]
fn child_writer() {
    let Some((dir, seed)) = dir_of_child() else {
        return;
    };
    let bank = Bank::open(&dir.join("bank")).unwrap();
    let mut log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("committed"))
        .unwrap();
    let mut n = seed * 1_000_000;
    let mut rng = mosaicbank::rng::keyed(seed, "writer", 0);
    loop {
        let batch: Vec<u64> = (0..1 + rng.next_u32() % 3)
            .map(|k| n + u64::from(k))
            .collect();
        let mosaics: Vec<_> = batch.iter().map(|&s| nth(s)).collect();
        bank.put_mosaics(&mosaics).unwrap();
        // One write call: a kill leaves whole lines, for batches that were committed.
        let lines: String = batch.iter().map(|s| format!("{s}\n")).collect();
        log.write_all(lines.as_bytes()).unwrap();
        n += batch.len() as u64;
    }
}

#[test]
#[ignore = "a child of the tests below"]
fn child_reader() {
    let Some((dir, seed)) = dir_of_child() else {
        return;
    };
    let bank = Bank::open(&dir.join("bank")).unwrap();
    let mut rng = mosaicbank::rng::keyed(seed, "reader", 0);
    let mut drawn = 0u64;
    loop {
        let d = bank
            .draw_instance(&Choice::Uniform, &mut || rng.next_u64())
            .unwrap();
        drawn += u64::from(d.is_some());
        let m = bank
            .draw_mosaic(rng.next_u32() % 3, &mut || rng.next_u64())
            .unwrap();
        drawn += u64::from(m.is_some());
        assert_eq!(bank.skipped(), 0, "a torn record");
        if drawn.is_multiple_of(16) {
            // Renamed into place: a kill never leaves half of it.
            let name = dir.join(format!("reader-{seed}"));
            std::fs::write(name.with_extension("new"), drawn.to_string()).unwrap();
            std::fs::rename(name.with_extension("new"), name).unwrap();
        }
    }
}

fn committed(dir: &Path) -> Vec<u64> {
    std::fs::read_to_string(dir.join("committed"))
        .unwrap_or_default()
        .lines()
        .map(|l| l.parse().unwrap())
        .collect()
}

fn unlimited() -> Limits {
    Limits {
        max_bytes: 0,
        max_per_category: 0,
        max_uses: 0,
    }
}

#[test]
fn killed_writers_lose_nothing_that_was_committed() {
    let kills = env_number("MOSAICBANK_KILLS", 200);
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    // This handle stays open through all kills: a reader that goes on.
    let bank = Bank::create(&dir.join("bank"), info(3, unlimited())).unwrap();
    let mut rng = mosaicbank::rng::keyed(1, "kills", 0);
    let mut checked = 0;
    for round in 0..kills {
        let before = committed(dir).len();
        let mut writer = child("child_writer", dir, round);
        let start = Instant::now();
        while committed(dir).len() == before {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the writer does not start"
            );
            if writer.try_wait().unwrap().is_some() {
                let log = dir.join(format!("child_writer-{round}.log"));
                panic!(
                    "the writer failed: {}",
                    std::fs::read_to_string(log).unwrap()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(u64::from(rng.next_u32() % 40_000)));
        signal(&writer, libc::SIGKILL);
        writer.wait().unwrap();

        let seeds = committed(dir);
        // The open reader sees every committed record, whole.
        for &s in &seeds[checked..] {
            let expected = nth(s);
            assert_eq!(bank.mosaic(expected.id).unwrap(), expected);
            for crop in expected.crops() {
                let found = bank.instance(crop.id).unwrap();
                assert_eq!((found.bbox, &found.alpha), (crop.bbox, &crop.alpha));
            }
        }
        checked = seeds.len();
        assert!(bank.draw_mosaic(0, &mut || rng.next_u64()).is_ok());
        assert_eq!(bank.skipped(), 0);
        // So does a process that opens it now, and every checksum is right.
        if round % 10 == 9 || round + 1 == kills {
            let report = bank.verify(&mut |_, _| Ok(())).unwrap();
            assert!(report.is_sound(), "after kill {round}: {report:?}");
            assert!(report.mosaics >= seeds.len() as u64);
            // And it can be written by someone else.
            bank.put_mosaics(&[mosaic(1_000_000_000_000 + round, 0, 1, SIZE)])
                .unwrap();
        }
    }
    let report = bank.verify(&mut |_, _| Ok(())).unwrap();
    println!(
        "{kills} kills, {} mosaics, {} instances",
        report.mosaics, report.instances
    );
}

#[test]
fn eight_readers_and_a_writer_do_not_mind_each_other() {
    let seconds = env_number("MOSAICBANK_SOAK", 5);
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    // Tight limits: pages are freed and reused all the time.
    let limits = Limits {
        max_per_category: 30,
        ..unlimited()
    };
    let bank = Bank::create(&dir.join("bank"), info(3, limits)).unwrap();
    bank.put_mosaics(&(0..9).map(nth).collect::<Vec<_>>())
        .unwrap();
    let mut readers: Vec<Child> = (0..8).map(|i| child("child_reader", dir, i)).collect();
    let mut writer = child("child_writer", dir, 7);
    let start = Instant::now();
    while committed(dir).len() < 30 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the writer does not start"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(seconds));
    let file_size = || std::fs::metadata(dir.join("bank/data.mdb")).unwrap().len();
    let (steady, commits) = (file_size(), committed(dir).len());
    // A reader that is stopped, wherever it is, does not hold up the writer.
    signal(&readers[0], libc::SIGSTOP);
    let before = committed(dir).len();
    std::thread::sleep(Duration::from_millis(700));
    let during = committed(dir).len() - before;
    signal(&readers[0], libc::SIGCONT);
    assert!(during > 0, "the writer waited for a stopped reader");
    for (i, reader) in readers.iter_mut().enumerate() {
        if reader.try_wait().unwrap().is_some() {
            let log = dir.join(format!("child_reader-{i}.log"));
            panic!(
                "reader {i} failed: {}",
                std::fs::read_to_string(log).unwrap()
            );
        }
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
    assert!(writer.try_wait().unwrap().is_none(), "the writer failed");
    writer.kill().unwrap();
    writer.wait().unwrap();
    let drawn: Vec<u64> = (0..8)
        .map(|i| {
            let text =
                std::fs::read_to_string(dir.join(format!("reader-{i}"))).unwrap_or_default();
            text.parse().unwrap_or(0)
        })
        .collect();
    assert!(drawn.iter().all(|n| *n > 0), "{drawn:?}");
    let report = bank.verify(&mut |_, _| Ok(())).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let stock = bank.stock().unwrap();
    println!(
        "{} commits' mosaics, {} draws, stock {:?}, file {} KiB, {} KiB before the stop",
        committed(dir).len(),
        drawn.iter().sum::<u64>(),
        stock.mosaics,
        file_size() / 1024,
        steady / 1024,
    );
    // The file does not grow for ever: freed pages are used again, whatever readers do. (While
    // one of them stands still in the middle of a read, what it may be reading is not.)
    assert!(
        steady < 64 << 20,
        "{steady} bytes for {} records after {commits} commits",
        stock.total_mosaics
    );
}
