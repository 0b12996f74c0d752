//! `cargo +nightly fuzz run tree`: reading of LMDB pages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mosaicbank::bank::fuzzing::tree(bytes));
