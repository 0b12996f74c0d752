//! Limits the engine's share of the device's time, so that a trainer on the same device gets the
//! rest.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Shortest rest: shorter sleeps are mostly overshoot.
const LEAST_REST: Duration = Duration::from_millis(2);
/// The measured share covers this much of the past.
const WINDOW: Duration = Duration::from_secs(60);

/// Keeps a given ratio of work and rest, and measures it.
#[derive(Debug)]
pub struct Throttle {
    duty: f64,
    /// Rest due, seconds; oversleeping is subtracted.
    owed: f64,
    meter: Meter,
}

impl Throttle {
    /// For a share of the time, above 0 and at most 1.
    ///
    /// # Errors
    /// [`Error::Value`] for any other share.
    pub fn new(duty: f64) -> Result<Self> {
        if duty > 0.0 && duty <= 1.0 {
            Ok(Self {
                duty,
                owed: 0.0,
                meter: Meter::default(),
            })
        } else {
            Err(Error::value("duty", "above 0 and at most 1", duty))
        }
    }

    /// The requested share.
    pub fn duty(&self) -> f64 {
        self.duty
    }

    /// The device worked for `time`; returns the rest that is due now.
    pub fn worked(&mut self, time: Duration) -> Duration {
        self.meter.add(time, Duration::ZERO);
        self.owed += time.as_secs_f64() * (1.0 / self.duty - 1.0);
        if self.owed >= LEAST_REST.as_secs_f64() {
            Duration::try_from_secs_f64(self.owed).unwrap_or_default()
        } else {
            Duration::ZERO
        }
    }

    /// The device was idle for `time`: resting, or waiting although there was work.
    pub fn rested(&mut self, time: Duration) {
        self.meter.add(Duration::ZERO, time);
        // Oversleeping is compensated; a long wait does not allow a long burst.
        self.owed = (self.owed - time.as_secs_f64()).max(-0.05);
    }

    /// The share over the last minute of work and rest; `None` before there was any.
    pub fn measured(&self) -> Option<f64> {
        self.meter.share()
    }
}

/// Busy and idle time of the last [`WINDOW`].
#[derive(Debug, Default)]
struct Meter {
    slices: VecDeque<(Instant, f64, f64)>,
    busy: f64,
    idle: f64,
}

impl Meter {
    fn add(&mut self, busy: Duration, idle: Duration) {
        let now = Instant::now();
        let (busy, idle) = (busy.as_secs_f64(), idle.as_secs_f64());
        self.busy += busy;
        self.idle += idle;
        // Slices of a tenth of a second: a step can be shorter than a millisecond.
        match self.slices.back_mut() {
            Some((at, b, i)) if now.duration_since(*at) < Duration::from_millis(100) => {
                *b += busy;
                *i += idle;
            }
            _ => self.slices.push_back((now, busy, idle)),
        }
        while self.busy + self.idle > WINDOW.as_secs_f64() && self.slices.len() > 1 {
            if let Some((_, b, i)) = self.slices.pop_front() {
                self.busy -= b;
                self.idle -= i;
            }
        }
    }

    fn share(&self) -> Option<f64> {
        let all = self.busy + self.idle;
        (all > 0.0).then(|| self.busy / all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_held_with_irregular_work_and_oversleeping() {
        for duty in [0.1, 0.3, 0.5, 0.9] {
            let mut throttle = Throttle::new(duty).unwrap();
            for i in 0..500u64 {
                let rest = throttle.worked(Duration::from_micros(100 + 997 * (i % 40)));
                if !rest.is_zero() {
                    throttle.rested(rest + Duration::from_micros(300 * (i % 5)));
                }
            }
            let got = throttle.measured().unwrap();
            assert!((got / duty - 1.0).abs() < 0.1, "{duty}: {got}");
        }
    }

    #[test]
    fn full_duty_never_rests_and_waiting_counts_as_rest() {
        let mut full = Throttle::new(1.0).unwrap();
        assert_eq!(full.worked(Duration::from_secs(5)), Duration::ZERO);
        assert_eq!(full.measured(), Some(1.0));
        let mut half = Throttle::new(0.5).unwrap();
        half.worked(Duration::from_millis(10));
        half.rested(Duration::from_millis(10));
        assert_eq!(half.worked(Duration::from_millis(1)), Duration::ZERO);
    }

    #[test]
    fn a_long_wait_is_no_licence_for_a_burst() {
        let mut half = Throttle::new(0.5).unwrap();
        half.rested(Duration::from_secs(3600));
        assert!(half.worked(Duration::from_millis(200)) >= Duration::from_millis(100));
    }

    #[test]
    fn impossible_shares_are_refused() {
        for duty in [0.0, -1.0, 1.01, f64::NAN] {
            assert!(Throttle::new(duty).is_err());
        }
    }
}
