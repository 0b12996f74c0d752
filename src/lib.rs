//! mosaicbank: an online, training-time augmenter for instance segmentation.
//!
//! The way of the data, and so the order of the modules:
//!
//! ```text
//! prompt -> tokens -> text embedding -> region denoising with attention capture
//!        -> decode -> attention map -> mask -> instance -> bank
//!        -> sampler / paste -> the trainer's batch
//! ```
//!
//! | room | does | may use | must not |
//! | --- | --- | --- | --- |
//! | [`recipe`] | shared by every room: the settings of a mosaic | `mask` | know any stage |
//! | [`error`], [`geometry`], [`rng`] | shared by every room: plain types | | know any stage |
//! | [`dataset`] | LVIS/COCO JSON in, export and merge out | `mask`, `picture`, `record` | touch pixels |
//! | `weights` | strict safetensors loading | | know an architecture |
//! | `nn` | layers that the models share | `weights` | know an architecture |
//! | `text` | prompt to embedding | `nn`, `weights` | know the UNet |
//! | `diffusion` | UNet, VAE, schedulers, attention events | `nn`, `weights` | know prompts or masks |
//! | `family` | one file per generator family: text stack, denoiser, latent space | `diffusion`, `text` | step a scheduler |
//! | `mosaic` | layout, the denoising loop, capture, decode, labels | `dataset`, `diffusion`, `family`, `mask`, `record`, `text` | know a family, write files |
//! | [`mask`] | mask sources, refiners and checks, on plain arrays | | know any other stage |
//! | [`record`] | a mosaic's record: one type, its ids, its written forms | `mask` | touch a file |
//! | [`picture`] | PNG, masks drawn on pictures | `mask` | know any stage |
//! | [`bank`] | the on-disk store and the demand board | `dataset`, `mask`, `picture`, `record` | link libtorch, keep a lock across a fork |
//! | [`priority`] | how much a category is wanted, and whether it can be had | `bank`, `status` | draw, write |
//! | [`sampler`], [`paste`] | the trainer's side | `bank`, `mask`, `priority` | own a thread pool |
//! | [`status`] | what each engine says about itself, and whether it is alive | `dataset` | link libtorch |
//! | [`engine`] | planner, worker, throttle | every room | be needed by the trainer |
//! | [`report`] | a bank's figures, and the page that shows it | `bank`, `mask`, `priority`, `record`, `status` | count a use, need a network |
//! | [`cli`] | one file per subcommand | every room | hold logic |
//! | `python` | the bindings: conversions and the GIL | every room | hold logic |
//!
//! Where new parts go, and how they are tested: `DESIGN.md`, beside `README.md`.
//!
//! `weights`, `text`, `diffusion`, `family` and `mosaic` exist with the cargo feature `engine` only,
//! as does the part of [`engine`] that runs a model; nothing else links libtorch.

pub mod error;
// What every room shares.
pub mod geometry;
pub mod recipe;
pub mod rng;
// Weights and the layers that the models share.
#[cfg(feature = "engine")]
mod nn;
#[cfg(feature = "engine")]
pub mod weights;
// Prompt to embedding.
#[cfg(feature = "engine")]
pub mod text;
// Embedding and noise to latents, latents to pixels.
#[cfg(feature = "engine")]
pub mod diffusion;
// The networks of a model behind one seam.
#[cfg(feature = "engine")]
pub mod family;
// Regions to a canvas, with the attention of each.
#[cfg(feature = "engine")]
pub mod mosaic;
// Pictures and attention to masks and verdicts.
pub mod mask;
// What a mask becomes.
pub mod record;
// Pictures of it, for people.
pub mod picture;
// Categories in, annotations out.
pub mod dataset;
// Instances on disk, beside the training run.
pub mod bank;
// How much each category is wanted, and which can be had.
pub mod priority;
// What the trainer sees next.
pub mod sampler;
// Bank instances on real images.
pub mod paste;
// What engines say about themselves.
pub mod status;
// New mosaics on demand, beside the training.
pub mod engine;
// A bank on one page, for people.
pub mod report;
// The command line.
pub mod cli;
// Thin Python bindings over all of it.
#[cfg(feature = "python")]
pub mod python;

pub use error::{Error, Result};
