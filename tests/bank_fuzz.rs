//! The fuzz targets' bodies as property tests: random bytes, and valid ones with damage.

mod bank_common;

use std::sync::OnceLock;

use bank_common::{mosaic, new_bank};
use mosaicbank::bank::format::{decode_any, reseal};
use mosaicbank::bank::{Codec, fuzzing};
use mosaicbank::geometry::Size;
use proptest::prelude::*;

fn frames() -> &'static [Vec<u8>] {
    static FRAMES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FRAMES.get_or_init(|| {
        let m = mosaic(1, 0, 1, Size::new(24, 32));
        [Codec::Jpeg, Codec::Qoi, Codec::Png, Codec::Webp, Codec::Raw]
            .into_iter()
            .flat_map(|codec| {
                [
                    m.encode(codec).unwrap(),
                    m.crops()[0].encode(codec).unwrap(),
                ]
            })
            .collect()
    })
}

/// A whole data file of a small bank.
fn data_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let tmp = tempfile::tempdir().unwrap();
        let bank = new_bank(tmp.path(), 3);
        for s in 0..6 {
            bank.put_mosaics(&[mosaic(s, 0, 1, Size::new(24, 32))])
                .unwrap();
        }
        drop(bank);
        std::fs::read(tmp.path().join("bank/data.mdb")).unwrap()
    })
}

/// Positions and values to write over valid bytes.
fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>()), 1..12)
}

fn damaged(bytes: &[u8], damage: &[(usize, u8)], cut: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let n = bytes.len();
    for &(at, value) in damage {
        bytes[at % n] = value;
    }
    bytes.truncate(n - cut.min(n));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        fuzzing::record(&bytes);
        fuzzing::board(&bytes);
        fuzzing::lmdb_pages(&bytes);
    }

    #[test]
    fn damaged_records_are_answered(which in any::<usize>(), d in damage(), cut in 0usize..40) {
        let frames = frames();
        fuzzing::record(&damaged(&frames[which % frames.len()], &d, if cut > 20 { cut } else { 0 }));
    }

    #[test]
    fn damaged_lengths_are_answered(
        which in any::<usize>(),
        at in 0usize..32,
        value in prop_oneof![Just(0u32), Just(1), Just(u32::MAX), Just(1 << 31), any::<u32>()],
    ) {
        let frames = frames();
        let mut bytes = frames[which % frames.len()].clone();
        let at = at.min(bytes.len() - 4);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fuzzing::record(&bytes);
    }

    #[test]
    fn damaged_files_are_answered(d in damage(), cut in 0usize..100_000, head in any::<bool>()) {
        let file = data_file();
        // Half of the damage goes to the first pages, where roots are.
        let d: Vec<_> = d.iter().map(|&(at, v)| (if head { at % 24_576 } else { at }, v)).collect();
        fuzzing::lmdb_pages(&damaged(file, &d, if cut < 50_000 { 0 } else { cut }));
    }

    #[test]
    fn damaged_boards_are_answered(d in damage(), cut in 0usize..200) {
        let tmp = tempfile::tempdir().unwrap();
        mosaicbank::bank::board::rebuild(tmp.path(), 80, 7).unwrap();
        let bytes = std::fs::read(tmp.path().join("demand.bin")).unwrap();
        fuzzing::board(&bytes);
        fuzzing::board(&damaged(&bytes, &d, cut));
    }

    #[test]
    fn instances_round_trip(
        h in 1u32..40, w in 1u32..40, seed in any::<u64>(), score in 0f32..1.0,
    ) {
        use rand::Rng;
        let mut rng = mosaicbank::rng::keyed(seed, "instance", 0);
        let n = (h * w) as usize;
        let mut record = mosaic(1, 0, 1, Size::new(24, 32)).crops().remove(0);
        record.size = Size::new(h, w);
        record.image = (0..n * 3).map(|_| rng.next_u32() as u8).collect();
        record.alpha = (0..n).map(|_| [0, 100, 255][rng.next_u32() as usize % 3]).collect();
        record.alpha[0] = 200;
        record.area = record.alpha.iter().filter(|a| **a > 128).count() as u64;
        record.score = score;
        record.validate(3).unwrap();
        let bytes = record.encode(Codec::Qoi).unwrap();
        prop_assert!(mosaicbank::bank::InstanceRecord::decode(&bytes).unwrap() == record);
    }
}

#[test]
fn a_wrong_checksum_is_found_and_a_newer_frame_named() {
    let mut bytes = frames()[0].clone();
    assert!(decode_any(&bytes).is_ok());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(decode_any(&bytes).unwrap_err(), "wrong checksum");
    bytes[last] ^= 1;
    bytes[5] = 9;
    reseal(&mut bytes);
    assert!(decode_any(&bytes).unwrap_err().contains("frame version 9"));
}

/// Not a test: what `cargo fuzz` starts from. Without valid files it would take it forever to guess
/// a magic number.
#[test]
#[ignore = "writes fuzz/corpus"]
fn seeds_for_cargo_fuzz() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let dir = corpus.join(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), bytes).unwrap();
    };
    for (i, frame) in frames().iter().enumerate() {
        write("record", &format!("frame-{i}"), frame);
    }
    write("lmdb_pages", "data.mdb", data_file());
    let tmp = tempfile::tempdir().unwrap();
    mosaicbank::bank::board::rebuild(tmp.path(), 80, 7).unwrap();
    let board = std::fs::read(tmp.path().join("demand.bin")).unwrap();
    write("board", "demand.bin", &board);
}
