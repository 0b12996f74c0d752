//! Engine status: what an engine says about itself in its bank, and whether it is alive.
//!
//! Each engine writes `engine-<id>.json` into the bank's directory about once a second
//! ([`StatusWriter`]). Commands, reports and trainers read it ([`EngineStatus::read_all`]). This
//! room is the only one that knows the file's name, its fields and the rule for liveness
//! ([`EngineStatus::observed`]). It links no libtorch.

// The fields, and the rule for liveness.
mod engine_status;
// The file in the bank.
mod file;
// A set of categories in few characters.
mod indices;
// Facts about processes and machines.
pub mod process;
// Mosaics and instances per second.
mod rates;
// The thread that keeps the file up to date.
mod writer;

pub use engine_status::{EngineStatus, LastError, Moment, StageTimes, State};
pub use indices::IndexSet;
pub use writer::StatusWriter;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}
