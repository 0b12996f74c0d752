//! What can be seen of a forward pass: its attention, as events to observers, and a place at
//! which it can be stopped. Nothing here can change what the pass computes.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::geometry::Size;

/// The part of the denoiser that a layer is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Down blocks of a UNet.
    Down,
    /// The middle block of a UNet.
    Mid,
    /// Up blocks of a UNet.
    Up,
}

/// An attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// Its part of the denoiser.
    pub stage: Stage,
    /// Its number among the attention layers of that part, in the order in which they run.
    pub index: usize,
}

/// The scores of an attention layer.
pub enum Scores<'a> {
    /// What they are computed from: enough for any part of them, at the cost of that part.
    QueryKey {
        /// `[batch, heads, height * width, d]`: the image positions only.
        query: &'a Tensor,
        /// `[batch, heads, keys, d]`: all keys.
        key: &'a Tensor,
        /// Factor of the scores before the softmax.
        scale: f64,
    },
    /// The probabilities themselves, `[batch, heads, height * width, keys]`, of families that
    /// cannot give queries and keys.
    Probabilities(&'a Tensor),
}

/// One attention layer of one denoiser call, from image positions to text tokens.
pub struct AttentionEvent<'a> {
    /// Which layer.
    pub layer: Layer,
    /// Rows and columns of image positions.
    pub grid: Size,
    /// Number of heads.
    pub heads: i64,
    /// Queries and keys, or probabilities.
    pub scores: Scores<'a>,
    /// The keys that are text tokens, in the order of the text stack's tokens.
    pub text: Range<i64>,
    /// The rows of the batch that are conditional (the others hold the unconditional prompt).
    pub conditional: Range<i64>,
}

impl AttentionEvent<'_> {
    /// How much each image position attends to each text token:
    /// `[conditional rows, heads, height * width, text tokens]`, float32.
    pub fn text_probabilities(&self) -> Tensor {
        let (first, n) = (
            self.conditional.start,
            self.conditional.end - self.conditional.start,
        );
        let rows = |t: &Tensor| t.narrow(0, first, n).to_kind(Kind::Float);
        let probabilities = match self.scores {
            Scores::QueryKey { query, key, scale } => rows(query)
                .matmul(&(rows(key) * scale).transpose(-2, -1))
                .softmax(-1, Kind::Float),
            Scores::Probabilities(all) => rows(all),
        };
        let tokens = self.text.end - self.text.start;
        probabilities.narrow(-1, self.text.start, tokens)
    }
}

/// Sees the attention of denoiser calls.
pub trait Observer {
    /// Whether it wants the event of a layer; those that nobody wants need not be computed.
    fn wants(&self, _layer: Layer, _grid: Size) -> bool {
        true
    }

    /// Takes an event that it wants.
    ///
    /// # Errors
    /// Whatever should end the pass.
    fn attention(&mut self, event: &AttentionEvent<'_>) -> Result<()>;
}

/// What accompanies a forward pass: a check that can stop it, and any number of observers.
pub struct Watch<'a> {
    check: &'a mut dyn FnMut() -> Result<()>,
    observers: Vec<&'a mut dyn Observer>,
}

impl<'a> Watch<'a> {
    /// Calls `check` often; its error stops the pass. Nobody observes.
    pub fn new(check: &'a mut dyn FnMut() -> Result<()>) -> Self {
        Self {
            check,
            observers: Vec::new(),
        }
    }

    /// With an observer more.
    #[must_use]
    pub fn observed_by(mut self, observer: &'a mut dyn Observer) -> Self {
        self.observers.push(observer);
        self
    }

    /// Called by a network before every block.
    ///
    /// # Errors
    /// What should end the pass.
    pub fn check(&mut self) -> Result<()> {
        (self.check)()
    }

    /// Whether any observer wants the event of this layer.
    pub fn wants(&self, layer: Layer, grid: Size) -> bool {
        self.observers.iter().any(|o| o.wants(layer, grid))
    }

    /// Shows an event to the observers that want it.
    ///
    /// # Errors
    /// Those of [`Observer::attention`].
    pub fn attention(&mut self, event: &AttentionEvent<'_>) -> Result<()> {
        for observer in &mut self.observers {
            if observer.wants(event.layer, event.grid) {
                observer.attention(event)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    struct Count(Stage, u32);

    impl Observer for Count {
        fn wants(&self, layer: Layer, _grid: Size) -> bool {
            layer.stage == self.0
        }

        fn attention(&mut self, _event: &AttentionEvent<'_>) -> Result<()> {
            self.1 += 1;
            Ok(())
        }
    }

    #[test]
    fn probabilities_are_of_the_conditional_rows_and_the_text() {
        let options = (Kind::Float, Device::Cpu);
        // Two rows, one head, four positions; two image keys, then three of text.
        let query = Tensor::randn([2, 1, 4, 8], options);
        let key = Tensor::randn([2, 1, 5, 8], options);
        let all = (query.matmul(&key.transpose(-2, -1)) * 0.5).softmax(-1, Kind::Float);
        let event = |scores| AttentionEvent {
            layer: Layer {
                stage: Stage::Mid,
                index: 0,
            },
            grid: Size::new(2, 2),
            heads: 1,
            scores,
            text: 2..5,
            conditional: 1..2,
        };
        let expected = all.narrow(0, 1, 1).narrow(-1, 2, 3);
        let from_scores = event(Scores::QueryKey {
            query: &query,
            key: &key,
            scale: 0.5,
        });
        let ready = event(Scores::Probabilities(&all));
        assert_eq!(from_scores.text_probabilities().size(), [1, 1, 4, 3]);
        assert!(
            from_scores
                .text_probabilities()
                .allclose(&expected, 1e-5, 1e-6, false)
        );
        assert!(ready.text_probabilities().equal(&expected));
    }

    #[test]
    fn every_observer_sees_the_layers_that_it_wants() {
        let (mut up, mut down) = (Count(Stage::Up, 0), Count(Stage::Down, 0));
        let mut check = || Ok(());
        let probabilities = Tensor::zeros([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let mut watch = Watch::new(&mut check)
            .observed_by(&mut up)
            .observed_by(&mut down);
        for stage in [Stage::Up, Stage::Up, Stage::Down, Stage::Mid] {
            let layer = Layer { stage, index: 0 };
            assert_eq!(watch.wants(layer, Size::new(1, 1)), stage != Stage::Mid);
            watch
                .attention(&AttentionEvent {
                    layer,
                    grid: Size::new(1, 1),
                    heads: 1,
                    scores: Scores::Probabilities(&probabilities),
                    text: 0..1,
                    conditional: 0..1,
                })
                .unwrap();
        }
        assert_eq!((up.1, down.1), (2, 1));
    }
}
