//! Progress of long commands: bars on a terminal, otherwise a log line every few seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Seconds between log lines without a terminal.
#[cfg_attr(
    not(feature = "engine"),
    allow(dead_code, reason = "for the engine's commands")
)]
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Two counters: the items of the whole command, and the steps of the item at work.
#[cfg_attr(
    not(feature = "engine"),
    allow(dead_code, reason = "for the engine's commands")
)]
pub(super) struct Bars {
    items: ProgressBar,
    steps: ProgressBar,
    terminal: bool,
    last_line: Instant,
    what: &'static str,
}

#[cfg_attr(
    not(feature = "engine"),
    allow(dead_code, reason = "for the engine's commands")
)]
impl Bars {
    /// For `total` items called `what`, of which `done` are there already.
    pub(super) fn new(what: &'static str, total: u64, done: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let (items, steps) = if terminal {
            let bars = MultiProgress::new();
            (
                bars.add(ProgressBar::new(total)),
                bars.add(ProgressBar::new(0)),
            )
        } else {
            (ProgressBar::hidden(), ProgressBar::hidden())
        };
        let style = |text: &str| {
            ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        items.set_length(total);
        items.set_style(style(&format!(
            "{{bar:30}} {{pos}}/{{len}} {what}  {{elapsed}} elapsed, {{eta}} left  {{msg}}"
        )));
        steps.set_style(style("{bar:30} {pos}/{len} steps"));
        items.set_position(done);
        items.reset_eta();
        Self {
            items,
            steps,
            terminal,
            last_line: Instant::now(),
            what,
        }
    }

    /// `done` of `all` steps of the item at work.
    pub(super) fn step(&mut self, done: usize, all: usize) {
        self.steps.set_length(all as u64);
        self.steps.set_position(done as u64);
        if !self.terminal && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            tracing::info!(
                "{} of {} {}, step {done} of {all}",
                self.items.position(),
                self.items.length().unwrap_or_default(),
                self.what
            );
        }
    }

    /// `n` more items are done; `message` stands beside the bar.
    pub(super) fn add(&mut self, n: u64, message: String) {
        self.items.inc(n);
        if !self.terminal {
            self.last_line = Instant::now();
            tracing::info!(
                "{} of {} {}, {message}",
                self.items.position(),
                self.items.length().unwrap_or_default(),
                self.what
            );
        }
        self.items.set_message(message);
    }

    /// Takes the bars away.
    pub(super) fn finish(&self) {
        self.steps.finish_and_clear();
        self.items.finish_and_clear();
    }
}

/// One counter whose total is known when it first counts.
pub(super) struct Counter {
    bar: ProgressBar,
}

impl Counter {
    /// For items called `what`; shown on a terminal only.
    pub(super) fn new(what: &'static str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let text =
            format!("{{bar:30}} {{pos}}/{{len}} {what}  {{elapsed}} elapsed, {{eta}} left");
        bar.set_style(
            ProgressStyle::with_template(&text)
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar }
    }

    /// `done` of `total`.
    pub(super) fn set(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
