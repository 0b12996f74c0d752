//! The diffusion model: UNet, autoencoder, schedulers, and the seam at which cross-attention can
//! be watched. Knows neither prompts nor masks; the scheduler and the UNet do not meet here.

mod attention;
mod blocks;
mod config;
mod scheduler;
mod unet;
mod vae;

pub use attention::{CrossAttention, Hook, NoHook, Stage};
pub use config::{Prediction, SchedulerConfig};
pub use scheduler::Scheduler;
pub use unet::{Context, Unet};
pub use vae::Vae;
