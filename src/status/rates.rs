//! Generation rates.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rates are averages over this much of the past.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Mosaics and instances written in the last minute.
#[derive(Debug, Default)]
pub(super) struct Rates {
    events: VecDeque<(Instant, u64, u64)>,
    since: Option<Instant>,
}

impl Rates {
    /// Starts the clock, unless it is running: time before this does not count.
    pub(super) fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Stops the clock while there is nothing to do.
    pub(super) fn stop(&mut self) {
        self.since = None;
        self.events.clear();
    }

    /// Counts what was just written.
    pub(super) fn add(&mut self, mosaics: u64, instances: u64) {
        self.events.push_back((Instant::now(), mosaics, instances));
    }

    /// Mosaics and instances per second.
    pub(super) fn per_second(&mut self) -> (f64, f64) {
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
