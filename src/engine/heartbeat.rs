//! What an engine says of itself: `engine-<id>.json` in the bank, about once a second, written
//! beside and renamed.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::control::is_alive;
use crate::dataset::write_beside;
use crate::error::{Error, Result};

/// Version of the file.
pub const FORMAT: u32 = 1;
/// How often the file is written.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// An engine that has not been heard of for this long, seconds, is taken for dead.
const SILENCE: f64 = 15.0;
/// Files of engines that ended this long ago, seconds, are removed by the next engine.
const KEPT_FOR: f64 = 24.0 * 3600.0;
/// Bytes of the file: it is filled up with spaces, so that it can be written over in place when
/// the disk is full.
const FILE_BYTES: usize = 16_384;
/// Moments that the history holds at most. When it is full every other one goes, and the next
/// ones come half as often: it always covers the whole time.
const MOMENTS: usize = 64;
/// Seconds between the moments of a young engine.
const FIRST_EVERY: f64 = 5.0;
/// Seeds of dropped mosaics that are listed: the last ones.
const LISTED_SEEDS: usize = 20;
/// Rates are over this much of the past.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Loading the model.
    Loading,
    /// Generation mosaics.
    Working,
    /// Everything is in stock; waiting for demand.
    Stocked,
    /// Waiting for the file `pause` to go.
    Paused,
    /// The bank cannot be written (a full disk); trying again.
    Blocked,
    /// Was asked to end, and does.
    Stopping,
    /// Ended as it should.
    Stopped,
    /// Ended with an error.
    Failed,
}

impl State {
    /// The word in the file.
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
        }
    }

    /// Whether the engine has ended by its own account.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// Seconds since 1970.
    pub time: f64,
    /// What it was.
    pub message: String,
}

/// Where the time of the loop went, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stages {
    /// Looking at the bank and planning.
    pub plan: f64,
    /// Denoising and decoding: the device.
    pub denoise: f64,
    /// Resting, to keep to the duty.
    pub rest: f64,
    /// Waiting for labelling and writing to catch up.
    pub wait: f64,
    /// From attention to instances, on a thread of its own.
    pub label: f64,
    /// Encoding and committing, on that thread.
    pub write: f64,
    /// Nothing to do, or paused.
    pub idle: f64,
}

/// How far an engine was at some moment; `[time, mosaics, instances, regions, rejected]` in the
/// file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, u64, u64, u64, u64)", into = "(f64, u64, u64, u64, u64)")]
pub struct Moment {
    /// Seconds since 1970.
    pub time: f64,
    /// Mosaics written so far.
    pub mosaics: u64,
    /// Instances written so far.
    pub instances: u64,
    /// Regions made so far.
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

/// All that is in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// Version of the file.
    pub format: u32,
    /// Unlike that of any other engine of the bank.
    pub id: String,
    /// `engine` or `prewarm`.
    pub command: String,
    /// Its process.
    pub pid: u32,
    /// Its machine.
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
    /// Mosaics made at once.
    pub batch: usize,
    /// Share of the device's time that it may take.
    pub duty: f64,
    /// The share that it took over the last minute of work.
    pub measured_duty: Option<f64>,
    /// Share of the time that the device waited while there was something to make.
    pub idle_share: Option<f64>,
    /// Mosaics written.
    pub mosaics: u64,
    /// Instances written.
    pub instances: u64,
    /// Regions made.
    pub regions: u64,
    /// Regions that gave no instance.
    pub rejected: u64,
    /// Mosaics with unusable pixels, or that could not be labelled.
    pub dropped: u64,
    /// Seeds of the last of them.
    pub dropped_seeds: Vec<u64>,
    /// Mosaics per second over the last minute.
    pub mosaics_per_second: f64,
    /// Instances per second over the last minute.
    pub instances_per_second: f64,
    /// Unused mosaics that every category should have.
    pub target: u64,
    /// Categories that it looks after.
    pub categories: usize,
    /// Those of them that have the target.
    pub stocked: usize,
    /// Mosaics that are missing over all categories.
    pub missing: u64,
    /// Categories of the mosaics on their way, with how many of each.
    pub coming: Vec<(u32, u64)>,
    /// How it got here, oldest first: a few moments over the whole time.
    pub history: Vec<Moment>,
    /// Where the time went.
    pub stages: Stages,
    /// Most memory that the process has had, bytes.
    pub peak_memory: Option<u64>,
    /// Out of memory so often that the batch was halved this many times.
    pub halved: u32,
    /// Things that went wrong.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<LastError>,
}

impl Default for Heartbeat {
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
            coming: Vec::new(),
            history: Vec::new(),
            stages: Stages::default(),
            peak_memory: None,
            halved: 0,
            errors: 0,
            last_error: None,
        }
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

/// Name of this machine.
pub fn host() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the length given is one less than the buffer's, which stays zero-terminated.
    let done = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    let name = buffer.split(|b| *b == 0).next().unwrap_or_default();
    if done == 0 && !name.is_empty() {
        String::from_utf8_lossy(name).into_owned()
    } else {
        "localhost".into()
    }
}

impl Heartbeat {
    /// Most memory that this process has had, bytes; where the system says.
    pub fn peak_memory() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }

    /// That of a new engine in this process.
    pub fn new(command: &str) -> Self {
        let started = now();
        let host = host();
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

    /// Notes something that went wrong.
    pub fn error(&mut self, message: impl std::fmt::Display) {
        self.errors += 1;
        self.last_error = Some(LastError {
            time: now(),
            message: message.to_string().chars().take(2000).collect(),
        });
    }

    /// Notes a mosaic that could not be used.
    pub fn drop_seed(&mut self, seed: u64) {
        self.dropped += 1;
        self.dropped_seeds.push(seed);
        if self.dropped_seeds.len() > LISTED_SEEDS {
            self.dropped_seeds.remove(0);
        }
    }

    /// How far it is now.
    pub const fn moment(&self, time: f64) -> Moment {
        Moment {
            time,
            mosaics: self.mosaics,
            instances: self.instances,
            regions: self.regions,
            rejected: self.rejected,
        }
    }

    /// Adds how far it is at `time` (seconds since 1970) to the history, where that is due.
    pub fn note(&mut self, time: f64) {
        // From its own times, so that nothing else need be kept.
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
            // The last that is left may now be too near.
            return self.note(time);
        }
        self.history.push(self.moment(time));
    }

    /// Its file in the bank.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("engine-{}.json", self.id))
    }

    /// Writes the file, in place when the disk is full.
    ///
    /// # Errors
    /// [`Error::Io`] when that cannot be done either.
    pub fn write(&mut self, dir: &Path) -> Result<()> {
        self.time = now();
        self.peak_memory = Self::peak_memory();
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::backend("writing the engine's state", e))?;
        text.push('\n');
        while text.len() < FILE_BYTES {
            text.push(' ');
        }
        let path = self.path(dir);
        write_beside(&path, |out| out.write_all(text.as_bytes())).or_else(|error| {
            if !path.is_file() {
                return Err(error);
            }
            // Its blocks are there already.
            let over = || -> std::io::Result<()> {
                let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
                file.write_all(text.as_bytes())?;
                file.set_len(text.len() as u64)
            };
            over().map_err(|e| Error::io(&path, e))
        })
    }

    /// Reads one file.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not what an engine writes.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let wrong =
            |got: &dyn std::fmt::Display| Error::format(path, "the state of an engine", got);
        let beat: Self = serde_json::from_slice(&bytes).map_err(|e| wrong(&e))?;
        if beat.id.is_empty() {
            return Err(wrong(&"one without an id"));
        }
        Ok(beat)
    }

    /// Reads those of all engines of the bank in `dir`, oldest first; files that cannot be read
    /// (one is being replaced, or from another version) are left out.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be read.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("engine-") && name.ends_with(".json") {
                found.extend(Self::read(&path).ok());
            }
        }
        found.sort_by(|a, b| a.started.total_cmp(&b.started).then(a.id.cmp(&b.id)));
        Ok(found)
    }

    /// Whether the engine is still at work, as far as can be seen from this machine.
    pub fn is_alive(&self) -> bool {
        if self.state.is_final() {
            return false;
        }
        let heard = now() - self.time < SILENCE;
        if self.host == host() {
            is_alive(self.pid) && (heard || self.state == State::Loading)
        } else {
            heard
        }
    }

    /// Removes the files of engines that ended long ago.
    pub fn clean(dir: &Path) {
        for old in Self::read_all(dir).unwrap_or_default() {
            if !old.is_alive() && now() - old.time > KEPT_FOR {
                let _ = std::fs::remove_file(old.path(dir));
            }
        }
    }
}

/// Counts over the last minute.
#[derive(Debug, Default)]
pub struct Rates {
    events: VecDeque<(Instant, u64, u64)>,
    since: Option<Instant>,
}

impl Rates {
    /// Work begins (or goes on after a wait): the time before does not count.
    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// There is nothing to do.
    pub fn stop(&mut self) {
        self.since = None;
        self.events.clear();
    }

    /// Mosaics and instances were written.
    pub fn add(&mut self, mosaics: u64, instances: u64) {
        self.events.push_back((Instant::now(), mosaics, instances));
    }

    /// Mosaics and instances per second.
    pub fn per_second(&mut self) -> (f64, f64) {
        let now = Instant::now();
        while self
            .events
            .front()
            .is_some_and(|(at, _, _)| now - *at > RATE_WINDOW)
        {
            self.events.pop_front();
        }
        let Some(since) = self.since else {
            return (0.0, 0.0);
        };
        let time = (now - since).min(RATE_WINDOW).as_secs_f64().max(1e-3);
        let sum = |f: fn(&(Instant, u64, u64)) -> u64| {
            self.events.iter().map(f).sum::<u64>() as f64 / time
        };
        (sum(|e| e.1), sum(|e| e.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_new_engine_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let mut beat = Heartbeat::new("engine");
        beat.state = State::Working;
        beat.coming = vec![(3, 2)];
        for seed in 0..50 {
            beat.drop_seed(seed);
        }
        beat.error("the disk is full");
        beat.write(dir.path()).unwrap();
        let read = Heartbeat::read_all(dir.path()).unwrap();
        assert_eq!(read.len(), 1);
        assert!((read[0].time - beat.time).abs() < 1e-3);
        assert_eq!(
            (&read[0].id, read[0].state, &read[0].coming),
            (&beat.id, State::Working, &beat.coming)
        );
        let message = |b: &Heartbeat| b.last_error.as_ref().map(|e| e.message.clone());
        assert_eq!(message(&read[0]), message(&beat));
        assert!(read[0].is_alive());
        assert_eq!((read[0].dropped, read[0].dropped_seeds[0]), (50, 30));
        beat.state = State::Failed;
        beat.write(dir.path()).unwrap();
        assert!(!Heartbeat::read(&beat.path(dir.path())).unwrap().is_alive());
    }

    #[test]
    fn the_history_is_short_and_covers_the_whole_time() {
        let mut beat = Heartbeat::new("engine");
        let day = 24 * 3600;
        for second in 0..day {
            beat.mosaics = second / 10;
            beat.note(1e9 + second as f64);
            assert!(beat.history.len() <= MOMENTS);
        }
        assert!(beat.history.len() >= MOMENTS / 4, "{}", beat.history.len());
        assert!((beat.history[0].time - 1e9).abs() < 1e-3);
        let last = beat.history.last().unwrap();
        assert!(last.time > 1e9 + 0.9 * day as f64, "{last:?}");
        for pair in beat.history.windows(2) {
            let rate =
                (pair[1].mosaics - pair[0].mosaics) as f64 / (pair[1].time - pair[0].time);
            assert!((rate - 0.1).abs() < 0.01, "{pair:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        beat.write(dir.path()).unwrap();
        let file = beat.path(dir.path());
        assert_eq!(std::fs::metadata(&file).unwrap().len(), FILE_BYTES as u64);
        assert_eq!(Heartbeat::read(&file).unwrap().history, beat.history);
    }

    #[test]
    fn the_dead_are_told_from_the_living() {
        let mut beat = Heartbeat::new("engine");
        beat.state = State::Working;
        let mut child = std::process::Command::new("true").spawn().unwrap();
        beat.pid = child.id();
        child.wait().unwrap();
        assert!(!beat.is_alive());
        // From another machine only the clock tells.
        beat.host = "elsewhere.invalid".into();
        assert!(beat.is_alive());
        beat.time -= 2.0 * SILENCE;
        assert!(!beat.is_alive());
    }

    #[test]
    fn files_that_are_not_ours_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("engine-x.json"), b"\0\0").unwrap();
        std::fs::write(dir.path().join("engine-y.json"), b"[]").unwrap();
        std::fs::write(dir.path().join("bank.toml"), b"").unwrap();
        assert_eq!(Heartbeat::read_all(dir.path()).unwrap(), []);
        Heartbeat::clean(dir.path());
        assert!(dir.path().join("engine-y.json").exists());
    }

    #[test]
    fn old_ends_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut beat = Heartbeat::new("engine");
        beat.state = State::Stopped;
        beat.write(dir.path()).unwrap();
        Heartbeat::clean(dir.path());
        assert!(beat.path(dir.path()).exists());
        let text = std::fs::read_to_string(beat.path(dir.path())).unwrap();
        let old = text.replace(
            &format!("\"time\": {}", serde_json::to_string(&beat.time).unwrap()),
            "\"time\": 1.0",
        );
        assert_ne!(old, text);
        std::fs::write(beat.path(dir.path()), old).unwrap();
        Heartbeat::clean(dir.path());
        assert!(!beat.path(dir.path()).exists());
    }
}
