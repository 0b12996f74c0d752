//! `cargo +nightly fuzz run lmdb_pages`: reading of LMDB pages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mosaicbank::bank::fuzzing::lmdb_pages(bytes));
