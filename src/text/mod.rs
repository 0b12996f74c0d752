//! Prompt to tokens to embedding, as Stable Diffusion 1.x and 2.x do it (CLIP).

mod encoder;
mod tokenizer;

pub use encoder::TextEncoder;
pub use tokenizer::{TokenizedPrompt, Tokenizer};
