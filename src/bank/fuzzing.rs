//! Bodies of the fuzz targets (`fuzz/`), run as property tests too (`tests/bank_fuzz.rs`): any bytes
//! give an answer, never a panic and never more memory than they are worth.

use std::path::Path;

use super::{board as demand, format, lmdb_pages};

/// A record: as it is, and with its checksum set right, so that what lies behind it is reached.
pub fn record(bytes: &[u8]) {
    let _ = format::decode_any(bytes);
    let mut sealed = bytes.to_vec();
    format::reseal(&mut sealed);
    let _ = format::decode_any(&sealed);
}

/// A demand board, against tables of several sizes.
pub fn board(bytes: &[u8]) {
    for categories in [0, 1, 80, 1203] {
        let _ = demand::check(Path::new("demand.bin"), bytes, categories, 7);
    }
}

/// An LMDB file: every lookup and walk that a reader makes.
pub fn lmdb_pages(bytes: &[u8]) {
    let Ok(meta) = lmdb_pages::newest_meta(bytes) else {
        return;
    };
    let _ = lmdb_pages::check_file(bytes, &meta);
    let trees = lmdb_pages::Trees::new(bytes, &meta);
    for name in ["mosaics", "instances", "by_category", "places", "counters"] {
        let Ok(Some(root)) = trees.table(name) else {
            continue;
        };
        let mut entries = trees.iter_from(root, &[]);
        // A damaged tree may lead in circles; a reader stops at its limits as well.
        for _ in 0..10_000 {
            let Some(entry) = entries.next_entry() else {
                break;
            };
            if let Ok((key, Ok(value))) = entry {
                let _ = trees.get(root, key);
                let _ = format::decode_any(value);
            }
        }
        let _ = trees.get(root, b"\x01key that is not there");
    }
}
