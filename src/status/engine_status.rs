//! What an engine says about itself.

use serde::{Deserialize, Serialize};

use super::{IndexSet, now, process};

/// Version of the file.
const FORMAT: u32 = 1;
/// An engine that has not written for this long, seconds, counts as dead.
const SILENCE: f64 = 15.0;
/// Capacity of the history. When it is full, every other moment is dropped and the interval
/// doubles, so that it always covers the whole run.
const MOMENTS: usize = 64;
/// Shortest interval between two moments, seconds.
const FIRST_EVERY: f64 = 5.0;
/// Number of dropped seeds that are listed: the latest.
const LISTED_SEEDS: usize = 20;

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Loading the model.
    Loading,
    /// Generating mosaics.
    Working,
    /// Every category has its target stock; waiting for demand.
    Stocked,
    /// Paused by the file `pause` in the bank.
    Paused,
    /// The bank cannot be written (a full disk); retrying.
    Blocked,
    /// Was asked to end.
    Stopping,
    /// Ended normally.
    Stopped,
    /// Ended with an error.
    Failed,
    /// Ended without writing so. Never in a file: see [`EngineStatus::observed`].
    #[serde(skip)]
    Dead,
}

impl State {
    /// All states. The position of a state is its number in a trainer's scalars.
    pub const ALL: [Self; 9] = [
        Self::Loading,
        Self::Working,
        Self::Stocked,
        Self::Paused,
        Self::Blocked,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Dead,
    ];

    /// Its name, as in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Working => "working",
            Self::Stocked => "stocked",
            Self::Paused => "paused",
            Self::Blocked => "blocked",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Dead => "dead",
        }
    }

    /// Whether the engine has ended.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Dead)
    }
}

/// The latest error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// Seconds since 1970.
    pub time: f64,
    /// Its message.
    pub message: String,
}

/// Time per stage of the loop, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageTimes {
    /// Reading the stock and planning.
    pub plan: f64,
    /// Denoising and decoding, on the device.
    pub denoise: f64,
    /// Idling to keep to the duty.
    pub rest: f64,
    /// Waiting for labelling and writing to catch up.
    pub wait: f64,
    /// From attention to instances, on the second thread.
    pub label: f64,
    /// Encoding and committing, on the second thread.
    pub write: f64,
    /// Nothing to do, or paused.
    pub idle: f64,
}

/// Totals at one moment; `[time, mosaics, instances, regions, rejected]` in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, u64, u64, u64, u64)", into = "(f64, u64, u64, u64, u64)")]
pub struct Moment {
    /// Seconds since 1970.
    pub time: f64,
    /// Mosaics written so far.
    pub mosaics: u64,
    /// Instances written so far.
    pub instances: u64,
    /// Regions generated so far.
    pub regions: u64,
    /// Regions that gave no instance so far.
    pub rejected: u64,
}

impl From<(f64, u64, u64, u64, u64)> for Moment {
    fn from((time, mosaics, instances, regions, rejected): (f64, u64, u64, u64, u64)) -> Self {
        Self {
            time,
            mosaics,
            instances,
            regions,
            rejected,
        }
    }
}

impl From<Moment> for (f64, u64, u64, u64, u64) {
    fn from(m: Moment) -> Self {
        (m.time, m.mosaics, m.instances, m.regions, m.rejected)
    }
}

/// The status of one engine: the content of its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStatus {
    /// Version of the file.
    pub format: u32,
    /// Unique among the engines of the bank.
    pub id: String,
    /// `engine` or `prewarm`.
    pub command: String,
    /// Process id.
    pub pid: u32,
    /// Host name.
    pub host: String,
    /// Version of mosaicbank.
    pub version: String,
    /// What it is doing.
    pub state: State,
    /// When it started, seconds since 1970.
    pub started: f64,
    /// When the file was written, seconds since 1970.
    pub time: f64,
    /// Name of the model's directory.
    pub model: String,
    /// Hash of its weights.
    pub weights: String,
    /// Device and dtype.
    pub device: String,
    /// Mosaics per batch.
    pub batch: usize,
    /// Share of the device's time that it may use, above 0 and at most 1.
    pub duty: f64,
    /// The share that it used over the last minute of work.
    pub measured_duty: Option<f64>,
    /// Share of the time in which the device waited although there was work.
    pub idle_share: Option<f64>,
    /// Mosaics written.
    pub mosaics: u64,
    /// Instances written.
    pub instances: u64,
    /// Regions generated.
    pub regions: u64,
    /// Regions that gave no instance.
    pub rejected: u64,
    /// Mosaics with unusable pixels, or that could not be labelled.
    pub dropped: u64,
    /// Seeds of the latest of them.
    pub dropped_seeds: Vec<u64>,
    /// Mosaics per second over the last minute.
    pub mosaics_per_second: f64,
    /// Instances per second over the last minute.
    pub instances_per_second: f64,
    /// Unused mosaics to keep per category.
    pub target: u64,
    /// Number of categories that it keeps stocked.
    pub categories: usize,
    /// Those of them that have the target.
    pub stocked: usize,
    /// Mosaics short of the target, over all categories.
    pub missing: u64,
    /// Categories (indices) that it draws when they are asked for.
    pub draws: IndexSet,
    /// Mosaics in progress: (category index, count).
    pub coming: Vec<(u32, u64)>,
    /// Totals over the whole run, oldest first.
    pub history: Vec<Moment>,
    /// Time per stage.
    pub stages: StageTimes,
    /// Peak resident memory, bytes.
    pub peak_memory: Option<u64>,
    /// Times that the batch was halved because the device ran out of memory.
    pub halved: u32,
    /// Number of errors.
    pub errors: u64,
    /// The latest of them.
    pub last_error: Option<LastError>,
}

impl Default for EngineStatus {
    fn default() -> Self {
        Self {
            format: FORMAT,
            id: String::new(),
            command: String::new(),
            pid: 0,
            host: String::new(),
            version: String::new(),
            state: State::Loading,
            started: 0.0,
            time: 0.0,
            model: String::new(),
            weights: String::new(),
            device: String::new(),
            batch: 0,
            duty: 1.0,
            measured_duty: None,
            idle_share: None,
            mosaics: 0,
            instances: 0,
            regions: 0,
            rejected: 0,
            dropped: 0,
            dropped_seeds: Vec::new(),
            mosaics_per_second: 0.0,
            instances_per_second: 0.0,
            target: 0,
            categories: 0,
            stocked: 0,
            missing: 0,
            draws: IndexSet::default(),
            coming: Vec::new(),
            history: Vec::new(),
            stages: StageTimes::default(),
            peak_memory: None,
            halved: 0,
            errors: 0,
            last_error: None,
        }
    }
}

impl EngineStatus {
    /// The status of a new engine in this process.
    pub fn new(command: &str) -> Self {
        let started = now();
        let host = process::host();
        let plain: String = host
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(40)
            .collect();
        let pid = std::process::id();
        Self {
            id: format!("{plain}-{pid}-{:x}", started as u64),
            command: command.into(),
            pid,
            host,
            version: env!("CARGO_PKG_VERSION").into(),
            started,
            time: started,
            ..Self::default()
        }
    }

    /// Records an error.
    pub fn record_error(&mut self, message: impl std::fmt::Display) {
        self.errors += 1;
        self.last_error = Some(LastError {
            time: now(),
            message: message.to_string().chars().take(2000).collect(),
        });
    }

    /// Records a mosaic that could not be used.
    pub fn record_drop(&mut self, seed: u64) {
        self.dropped += 1;
        self.dropped_seeds.push(seed);
        if self.dropped_seeds.len() > LISTED_SEEDS {
            self.dropped_seeds.remove(0);
        }
    }

    /// The current totals.
    pub const fn moment(&self, time: f64) -> Moment {
        Moment {
            time,
            mosaics: self.mosaics,
            instances: self.instances,
            regions: self.regions,
            rejected: self.rejected,
        }
    }

    /// Adds the current totals to the history if its interval has passed. `time`: seconds since
    /// 1970.
    pub fn record_moment(&mut self, time: f64) {
        // The interval follows from the history itself, so nothing else need be stored.
        let every = match self.history.as_slice() {
            [first, second, ..] => (second.time - first.time).max(FIRST_EVERY),
            _ => FIRST_EVERY,
        };
        if self.history.last().is_some_and(|m| time - m.time < every) {
            return;
        }
        if self.history.len() >= MOMENTS {
            let mut i = 0;
            self.history.retain(|_| {
                i += 1;
                i % 2 == 1
            });
            // The last one left may now be too recent.
            return self.record_moment(time);
        }
        self.history.push(self.moment(time));
    }

    /// The state as seen from this machine now. An engine that ended without saying so is
    /// [`State::Dead`], or [`State::Stopped`] when it had been asked to end.
    ///
    /// An engine is alive if its process exists (on the same host) and it has written within the
    /// last 15 seconds. While it loads the model, the process alone counts; on another host, the
    /// time alone.
    pub fn observed(&self) -> State {
        if self.state.is_final() {
            return self.state;
        }
        let recent = now() - self.time < SILENCE;
        let alive = if self.host == process::host() {
            process::is_alive(self.pid) && (recent || self.state == State::Loading)
        } else {
            recent
        };
        match self.state {
            state if alive => state,
            State::Stopping => State::Stopped,
            _ => State::Dead,
        }
    }

    /// Whether the engine is running, as seen from this machine.
    pub fn is_alive(&self) -> bool {
        !self.observed().is_final()
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::FILE_BYTES;
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_new_engine_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let mut status = EngineStatus::new("engine");
        status.state = State::Working;
        status.coming = vec![(3, 2)];
        for seed in 0..50 {
            status.record_drop(seed);
        }
        status.record_error("the disk is full");
        status.write(dir.path()).unwrap();
        let read = EngineStatus::read_all(dir.path()).unwrap();
        assert_eq!(read.len(), 1);
        assert!((read[0].time - status.time).abs() < 1e-3);
        assert_eq!(
            (&read[0].id, read[0].state, &read[0].coming),
            (&status.id, State::Working, &status.coming)
        );
        let message = |b: &EngineStatus| b.last_error.as_ref().map(|e| e.message.clone());
        assert_eq!(message(&read[0]), message(&status));
        assert!(read[0].is_alive());
        assert_eq!((read[0].dropped, read[0].dropped_seeds[0]), (50, 30));
        status.state = State::Failed;
        status.write(dir.path()).unwrap();
        assert!(
            !EngineStatus::read(&status.path(dir.path()))
                .unwrap()
                .is_alive()
        );
    }

    #[test]
    fn the_history_is_short_and_covers_the_whole_time() {
        let mut status = EngineStatus::new("engine");
        let day = 24 * 3600;
        for second in 0..day {
            status.mosaics = second / 10;
            status.record_moment(1e9 + second as f64);
            assert!(status.history.len() <= MOMENTS);
        }
        assert!(
            status.history.len() >= MOMENTS / 4,
            "{}",
            status.history.len()
        );
        assert!((status.history[0].time - 1e9).abs() < 1e-3);
        let last = status.history.last().unwrap();
        assert!(last.time > 1e9 + 0.9 * day as f64, "{last:?}");
        for pair in status.history.windows(2) {
            let rate =
                (pair[1].mosaics - pair[0].mosaics) as f64 / (pair[1].time - pair[0].time);
            assert!((rate - 0.1).abs() < 0.01, "{pair:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        status.write(dir.path()).unwrap();
        let file = status.path(dir.path());
        assert_eq!(std::fs::metadata(&file).unwrap().len(), FILE_BYTES as u64);
        assert_eq!(EngineStatus::read(&file).unwrap().history, status.history);
    }

    #[test]
    fn the_dead_are_told_from_the_living() {
        let mut status = EngineStatus::new("engine");
        status.state = State::Working;
        let mut child = std::process::Command::new("true").spawn().unwrap();
        status.pid = child.id();
        child.wait().unwrap();
        assert_eq!(status.observed(), State::Dead);
        assert!(!status.is_alive());
        status.state = State::Stopping;
        assert_eq!(status.observed(), State::Stopped);
        status.state = State::Working;
        // From another machine only the clock tells.
        status.host = "elsewhere.invalid".into();
        assert!(status.is_alive());
        status.time -= 2.0 * SILENCE;
        assert!(!status.is_alive());
    }

    #[test]
    fn files_that_are_not_ours_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("engine-x.json"), b"\0\0").unwrap();
        std::fs::write(dir.path().join("engine-y.json"), b"[]").unwrap();
        std::fs::write(dir.path().join("bank.toml"), b"").unwrap();
        assert_eq!(EngineStatus::read_all(dir.path()).unwrap(), []);
        EngineStatus::clean(dir.path());
        assert!(dir.path().join("engine-y.json").exists());
    }

    #[test]
    fn old_ends_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut status = EngineStatus::new("engine");
        status.state = State::Stopped;
        status.write(dir.path()).unwrap();
        EngineStatus::clean(dir.path());
        assert!(status.path(dir.path()).exists());
        let text = std::fs::read_to_string(status.path(dir.path())).unwrap();
        let old = text.replace(
            &format!("\"time\": {}", serde_json::to_string(&status.time).unwrap()),
            "\"time\": 1.0",
        );
        assert_ne!(old, text);
        std::fs::write(status.path(dir.path()), old).unwrap();
        EngineStatus::clean(dir.path());
        assert!(!status.path(dir.path()).exists());
    }
}
