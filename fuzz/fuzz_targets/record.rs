//! `cargo +nightly fuzz run record`: decoding of bank records.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mosaicbank::bank::fuzzing::record(bytes));
