//! `cargo +nightly fuzz run board`: checking of the demand board.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mosaicbank::bank::fuzzing::board(bytes));
