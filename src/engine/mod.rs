//! The engine: one process per device that keeps the model loaded, reads the demand board, plans,
//! generates, and writes the bank.
//!
//! ```text
//! bank's stock and demand -> needs -> plan -> [canvases] -> denoise (device)
//!                              ^                              | throttle, pause, out of memory
//!                              |                              v
//!                           ledger <- bank commit <- label and encode (a thread of its own)
//! ```
//!
//! The `backend` and the `worker` exist with the cargo feature `engine` only; all else links no
//! libtorch. What an engine says about itself is in the room [`status`](crate::status).
//!
//! Seams: [`planner::Planner`] and [`feedback::FeedbackPolicy`].
//!
//! The trainer never needs anything of this room: it reads what lies in the bank.

// What is short, and by how much.
pub mod demand;
// Which categories the next mosaics hold.
pub mod plan;
// What to make next: the planners.
pub mod planner;
// From what a trainer observes to the demand board.
pub mod feedback;
// Which seed each gets: never the same twice.
pub mod seeds;
// How much of the device's time the work may take.
pub mod throttle;
// When it stops or pauses.
pub mod control;
// Which part of a stock one of several processes makes.
pub mod shard;
// From plan to canvases, from canvases to records.
#[cfg(feature = "engine")]
pub mod backend;
// The loop.
#[cfg(feature = "engine")]
pub mod worker;
// Whether what is made again is the same.
#[cfg(feature = "engine")]
pub mod reproduce;
