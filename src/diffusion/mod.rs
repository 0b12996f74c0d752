//! The diffusion networks: UNet, autoencoder, schedulers, and what can be watched of a forward
//! pass. Knows neither prompts nor masks; the scheduler and the denoiser do not meet here.

mod attention;
mod blocks;
mod config;
mod latent;
mod scheduler;
mod unet;
mod vae;
mod watch;

pub use latent::LatentSpace;
pub use scheduler::{Prediction, Scheduler, SchedulerConfig};
pub use unet::{Context, Unet};
pub use vae::Vae;
pub use watch::{AttentionEvent, Layer, Observer, Scores, Stage, Watch};
