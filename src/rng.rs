//! Random numbers keyed by (seed, purpose, index): counter-based, so a draw never depends on
//! which worker makes it, or on what was drawn before.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// The generator of stream `index` for one `purpose` under `seed`.
///
/// The key is SHA-256 over seed and purpose, the index is ChaCha's 64-bit stream number: all
/// streams of all purposes are independent, and the n-th number of a stream can be reached
/// by `set_word_pos` without drawing the others.
pub fn keyed(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(purpose.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
    rng.set_stream(index);
    rng
}

/// A number uniform over `0..n` (0 when `n` is 0) from 64 random bits.
///
/// Multiply-shift: for `n` far below 2^64 the bias is below 2^-32.
pub fn below(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

/// A number uniform over `[0, 1)` with 53 bits.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn streams_are_reproducible_and_differ() {
        let first = |seed, purpose, index| keyed(seed, purpose, index).next_u64();
        assert_eq!(first(1, "a", 2), first(1, "a", 2));
        assert_ne!(first(1, "a", 2), first(1, "a", 3));
        assert_ne!(first(1, "a", 2), first(1, "b", 2));
        assert_ne!(first(1, "a", 2), first(2, "a", 2));
    }

    #[test]
    fn below_stays_below() {
        assert_eq!(below(u64::MAX, 10), 9);
        assert_eq!(below(0, 10), 0);
        assert_eq!(below(u64::MAX, 0), 0);
        assert!(unit(u64::MAX) < 1.0);
    }
}
