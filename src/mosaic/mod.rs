//! Mosaics (MosaicFusion, arXiv 2309.13042): layout, the denoising loop, attention capture,
//! decoding, and labelling the decoded canvas. What is asked for is a [`Canvas`] with a [`Region`]
//! per prompt; what comes out is a [`Labelled`] record of it.

mod blend_weights;
mod canvas;
mod capture;
mod denoise;
mod examine;
mod generator;
mod guard;
mod label;
mod layout;
mod model;
mod planned;
mod prompt;

pub use canvas::{Canvas, Region, RegionImage};
pub use denoise::Denoised;
pub use generator::{
    Generator, Labeller, Options, Progress, choose_categories, regions_per_call,
};
pub use label::{Labelled, RegionMaps};
pub use layout::{Layout, Part};
pub use model::{Model, ModelId, device_kind, dtype_name, parse_device, parse_dtype};
pub use prompt::Subject;
