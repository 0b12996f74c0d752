//! The endless stream of one rank.

use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::rng::{keyed, unit};

/// How an index says what it is: one integer for real images, slots and (when keyed) the position
/// in the stream, so that it travels through any sampler, batch sampler and pickle.
///
/// With `n = images + categories`, the index is `n * key + code`; a code below `images` is a real
/// image, `images + c` a slot for category `c`. Real images without a key are plain dataset
/// indices. The key is unique over all ranks (`position * world_size + rank`) and seeds
/// whatever is drawn to resolve the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexing {
    /// Real images.
    pub images: u64,
    /// Categories.
    pub categories: u64,
}

/// What an index stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A real image.
    Real(u64),
    /// One mosaic with this category, please.
    Slot(u32),
}

impl Indexing {
    /// The index of `code` at `key`.
    pub const fn encode(self, code: Code, key: u64) -> i64 {
        let code = match code {
            Code::Real(i) => i,
            Code::Slot(c) => self.images + c as u64,
        };
        ((self.images + self.categories) * key + code) as i64
    }

    /// What an index stands for, and its key.
    ///
    /// # Errors
    /// [`Error::Value`] when it is negative.
    pub fn decode(self, index: i64) -> Result<(Code, u64)> {
        let n = self.images + self.categories;
        let index = u64::try_from(index)
            .ok()
            .filter(|_| n > 0)
            .ok_or_else(|| Error::value("sampler index", ">= 0", index))?;
        let code = index % n;
        let code = if code < self.images {
            Code::Real(code)
        } else {
            Code::Slot((code - self.images) as u32)
        };
        Ok((code, index / n))
    }
}

/// What a stream is made of.
#[derive(Debug, Clone)]
pub struct SamplerConfig {
    /// Repeat factor of each image, >= 0.
    pub factors: Arc<[f32]>,
    /// Number of categories.
    pub categories: u32,
    /// Probability of a slot, 0..=1.
    pub mix_ratio: f64,
    /// Shared by all ranks.
    pub seed: u64,
    /// This rank.
    pub rank: u32,
    /// Number of ranks.
    pub world_size: u32,
    /// Shuffle each epoch (else images come in order).
    pub shuffle: bool,
    /// Whether real images carry their key as well.
    pub keyed: bool,
}

impl SamplerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.factors.len() >= u32::MAX as usize
            || self
                .factors
                .iter()
                .any(|f| !f.is_finite() || *f < 0.0 || *f > 1e6)
        {
            return Err(Error::value(
                "repeat factors",
                "at most 2^32 finite numbers in 0..=1e6",
                format!("{} numbers", self.factors.len()),
            ));
        }
        if self.factors.iter().all(|f| *f < 1.0) && self.mix_ratio < 1.0 {
            return Err(Error::value(
                "repeat factors",
                "at least one image with a factor >= 1",
                format!("{} images without", self.factors.len()),
            ));
        }
        if !(0.0..=1.0).contains(&self.mix_ratio) {
            return Err(Error::value("mix_ratio", "0..=1", self.mix_ratio));
        }
        if self.rank >= self.world_size {
            return Err(Error::value(
                "rank",
                format!("below world_size = {}", self.world_size),
                self.rank,
            ));
        }
        Ok(())
    }

    /// How the stream's indices are coded.
    pub fn indexing(&self) -> Indexing {
        Indexing {
            images: self.factors.len() as u64,
            categories: u64::from(self.categories),
        }
    }
}

/// Where a stream stands; enough to go on from there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Indices that this rank has yielded.
    pub position: u64,
    /// Real images among them.
    pub reals: u64,
    /// The epoch that the next real image is looked for in.
    pub epoch: u64,
    /// Real images, over all ranks, before that epoch.
    pub epoch_start: u64,
}

/// The stream of one rank.
#[derive(Debug, Clone)]
pub struct Stream {
    config: Arc<SamplerConfig>,
    state: State,
    /// The epoch's images, repeated and shuffled; empty until it is needed.
    images: Vec<u32>,
    images_epoch: Option<u64>,
    /// Running sums of the slot weights; empty when no category has any.
    sums: Vec<f64>,
    /// Running sums of the repeat factors; made when a slot first has no category.
    factor_sums: Vec<f64>,
    slots: ChaCha8Rng,
}

impl Stream {
    /// A stream at `state` (`State::default()` for its start) with `weights` for slots.
    ///
    /// # Errors
    /// [`Error::Value`] when the configuration or the weights are not acceptable.
    pub fn new(config: Arc<SamplerConfig>, state: State, weights: &[f64]) -> Result<Self> {
        config.validate()?;
        let mut slots = keyed(config.seed, "slots", u64::from(config.rank));
        // One u64 (two words) per position.
        slots.set_word_pos(u128::from(state.position) * 2);
        let mut stream = Self {
            config,
            state,
            images: Vec::new(),
            images_epoch: None,
            sums: Vec::new(),
            factor_sums: Vec::new(),
            slots,
        };
        stream.set_weights(weights)?;
        Ok(stream)
    }

    /// The configuration.
    pub fn config(&self) -> &Arc<SamplerConfig> {
        &self.config
    }

    /// Where it stands.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Changes the slot weights (one per category, any scale) from the next position on.
    ///
    /// # Errors
    /// [`Error::Value`] when a weight is negative or not finite, or the number is wrong.
    pub fn set_weights(&mut self, weights: &[f64]) -> Result<()> {
        if weights.len() != self.config.categories as usize
            || weights.iter().any(|w| !w.is_finite() || *w < 0.0)
        {
            return Err(Error::value(
                "slot weights",
                format!("{} finite numbers >= 0", self.config.categories),
                format!("{} numbers", weights.len()),
            ));
        }
        self.sums = running_sums(weights.iter().copied());
        Ok(())
    }

    /// Makes the images of `epoch`: each as often as its factor says, the fraction rounded up
    /// with that probability, then shuffled.
    fn make_epoch(&mut self, epoch: u64) {
        let mut rng = keyed(self.config.seed, "epoch", epoch);
        self.images.clear();
        for (image, &factor) in self.config.factors.iter().enumerate() {
            let whole = factor.trunc();
            let mut times = whole as u32;
            let fraction = factor - whole;
            if fraction > 0.0 {
                let r = (rng.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32);
                times += u32::from(r < fraction);
            }
            for _ in 0..times {
                self.images.push(image as u32);
            }
        }
        if self.config.shuffle {
            for i in (1..self.images.len()).rev() {
                let j = (u64::from(rng.next_u32()) * (i as u64 + 1)) >> 32;
                self.images.swap(i, j as usize);
            }
        }
        self.images_epoch = Some(epoch);
    }

    /// The next real image of this rank: every `world_size`-th of the concatenated epochs.
    fn next_real(&mut self) -> u64 {
        let world = u64::from(self.config.world_size);
        let at = self.state.reals * world + u64::from(self.config.rank);
        loop {
            if self.images_epoch != Some(self.state.epoch) {
                self.make_epoch(self.state.epoch);
            }
            let offset = at - self.state.epoch_start;
            if let Some(&image) = self.images.get(offset as usize) {
                self.state.reals += 1;
                return u64::from(image);
            }
            self.state.epoch_start += self.images.len() as u64;
            self.state.epoch += 1;
        }
    }

    /// The next index.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> i64 {
        let c = &self.config;
        let key = self.state.position * u64::from(c.world_size) + u64::from(c.rank);
        let (indexing, keyed) = (c.indexing(), c.keyed);
        let u = unit(self.slots.next_u64());
        // Whether a place is a slot, and so which real images come where, must not depend on the
        // weights: workers that share a stream may read them a moment apart.
        let code = if u < c.mix_ratio {
            self.slot(u / c.mix_ratio)
        } else {
            Code::Real(self.next_real())
        };
        let key = match code {
            Code::Real(_) if !keyed => 0,
            _ => key,
        };
        self.state.position += 1;
        indexing.encode(code, key)
    }

    /// The category at `u` (0..1) of the cumulated weights; where none has any, a real image
    /// drawn by the repeat factors.
    fn slot(&mut self, u: f64) -> Code {
        if let Some(category) = at(&self.sums, u) {
            return Code::Slot(category as u32);
        }
        if self.factor_sums.is_empty() {
            self.factor_sums = running_sums(self.config.factors.iter().map(|f| f64::from(*f)));
        }
        at(&self.factor_sums, u).map_or(Code::Slot(0), |image| Code::Real(image as u64))
    }

    /// Goes on by `n` indices.
    pub fn skip(&mut self, n: u64) {
        for _ in 0..n {
            self.next();
        }
    }
}

/// Running sums; none where everything is 0.
fn running_sums(weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, w| {
            *sum += w;
            Some(*sum)
        })
        .collect();
    match sums.last() {
        Some(total) if *total > 0.0 => sums,
        _ => Vec::new(),
    }
}

/// The place at `u` (0..1) of running sums.
fn at(sums: &[f64], u: f64) -> Option<usize> {
    let total = *sums.last()?;
    let at = sums.partition_point(|s| *s <= u * total);
    Some(at.min(sums.len() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rank: u32, world_size: u32, mix_ratio: f64) -> Arc<SamplerConfig> {
        Arc::new(SamplerConfig {
            factors: vec![1.0, 2.5, 1.25, 1.0, 3.0, 1.0].into(),
            categories: 4,
            mix_ratio,
            seed: 7,
            rank,
            world_size,
            shuffle: true,
            keyed: false,
        })
    }

    const WEIGHTS: [f64; 4] = [0.0, 1.0, 3.0, 0.0];

    fn take(config: Arc<SamplerConfig>, state: State, n: usize) -> Vec<i64> {
        let mut s = Stream::new(config, state, &WEIGHTS).unwrap();
        (0..n).map(|_| s.next()).collect()
    }

    #[test]
    fn ranks_together_are_the_single_rank_without_slots() {
        let all = take(config(0, 1, 0.0), State::default(), 300);
        for rank in 0..3 {
            let own = take(config(rank, 3, 0.0), State::default(), 100);
            let share: Vec<i64> = all.iter().copied().skip(rank as usize).step_by(3).collect();
            assert_eq!(own, share);
        }
    }

    #[test]
    fn it_goes_on_from_any_state() {
        let c = config(1, 2, 0.4);
        let all = take(c.clone(), State::default(), 500);
        let mut s = Stream::new(c.clone(), State::default(), &WEIGHTS).unwrap();
        for at in 0..400 {
            if at % 37 == 0 {
                assert_eq!(take(c.clone(), s.state(), 100), all[at..at + 100]);
            }
            s.next();
        }
    }

    #[test]
    fn without_a_category_slots_give_real_images_and_nothing_else_moves() {
        let c = config(0, 1, 0.4);
        let with = take(c.clone(), State::default(), 2000);
        let mut s = Stream::new(c.clone(), State::default(), &[0.0; 4]).unwrap();
        let indexing = c.indexing();
        let (mut stand_ins, mut slots) = ([0.0; 6], 0);
        for index in with {
            let got = s.next();
            match indexing.decode(index).unwrap().0 {
                Code::Real(_) => assert_eq!(got, index),
                Code::Slot(_) => {
                    let Code::Real(image) = indexing.decode(got).unwrap().0 else {
                        panic!("a slot without a category")
                    };
                    stand_ins[image as usize] += 1.0;
                    slots += 1;
                }
            }
        }
        // By the repeat factors: chi-squared, 5 degrees of freedom, 20.5 at p = 0.001.
        let total: f32 = c.factors.iter().sum();
        let chi: f64 = c
            .factors
            .iter()
            .zip(stand_ins)
            .map(|(f, n)| {
                let expected = f64::from(slots) * f64::from(f / total);
                (n - expected).powi(2) / expected
            })
            .sum();
        assert!(slots > 700 && chi < 20.5, "{slots} {chi} {stand_ins:?}");
    }

    #[test]
    fn slots_come_with_their_probability_and_keys_are_unique() {
        let n = 40_000;
        let indexing = config(0, 2, 0.25).indexing();
        let mut keys = std::collections::HashSet::new();
        let mut count = [0f64; 4];
        for rank in 0..2 {
            for index in take(config(rank, 2, 0.25), State::default(), n / 2) {
                if let (Code::Slot(c), key) = indexing.decode(index).unwrap() {
                    count[c as usize] += 1.0;
                    assert!(keys.insert(key));
                }
            }
        }
        assert_eq!(count[0] + count[3], 0.0);
        // Chi-squared over (real, 1, 2), 2 degrees of freedom: 13.8 at p = 0.001.
        let expected = [0.75, 0.0625, 0.1875].map(|p| p * n as f64);
        let seen = [n as f64 - count[1] - count[2], count[1], count[2]];
        let chi: f64 = seen
            .iter()
            .zip(expected)
            .map(|(s, e)| (s - e).powi(2) / e)
            .sum();
        assert!(chi < 13.8, "{chi} {seen:?}");
    }

    #[test]
    fn indices_round_trip() {
        let indexing = Indexing {
            images: 10,
            categories: 3,
        };
        for code in [Code::Real(0), Code::Real(9), Code::Slot(0), Code::Slot(2)] {
            for key in [0, 1, 1 << 40] {
                assert_eq!(
                    indexing.decode(indexing.encode(code, key)).unwrap(),
                    (code, key)
                );
            }
        }
        assert!(indexing.decode(-1).is_err());
        assert_eq!(indexing.encode(Code::Real(7), 0), 7);
    }
}
