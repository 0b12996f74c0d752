//! Which index comes next: real images as LVIS repeat-factor sampling draws them, and *slots*, each
//! asking for one mosaic of a category.
//!
//! Everything is a function of (seed, rank, position): the stream of a rank can be stopped anywhere
//! and continues the same, and workers have no state.

mod factors;
mod stream;
mod weights;

pub use factors::{RepeatFactors, repeat_factors};
pub use stream::{Code, Indexing, SamplerConfig, State, Stream};
pub use weights::slot_weights;
