//! The engine's loop: plans and denoises on one thread; labels, encodes and writes on another, so
//! that the device does not wait for the CPU.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rand::RngExt;

use super::backend::{Backend, Finisher, Order};
use super::control::Control;
use super::plan::Batch;
use super::planner::{Next, Planner, Report};
use super::seeds::Seeds;
use super::throttle::Throttle;
use crate::bank::{Bank, INFO_FILE, MosaicRecord};
use crate::error::{Error, Result, panic_message};
use crate::mosaic::{Canvas, Denoised, Labelled, Progress};
use crate::rng;
use crate::status::{EngineStatus, State, StatusWriter};

/// How often the bank is checked while there is nothing to do. New demand must wake the engine
/// within a second.
const POLL: Duration = Duration::from_millis(200);
/// How often a wait for the labelling thread checks whether the engine is being stopped.
const LISTEN: Duration = Duration::from_millis(50);
/// How long the loop waits for mosaics in progress before it plans again.
const SHORT_WAIT: Duration = Duration::from_millis(10);
/// First pause before retrying on a full disk. It doubles up to [`MOST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MOST_RETRY: Duration = Duration::from_secs(10);
/// How often used-up records are removed from the bank.
const RETIRE: Duration = Duration::from_secs(60);
/// Number of consecutive batches that fail in labelling before the engine gives up.
const MOST_FAILURES: u32 = 5;

/// How the loop works.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Mosaics made at once, at most.
    pub batch: usize,
    /// Regions in one call of the model, at most.
    pub regions_at_once: usize,
    /// Share of the device's time, above 0 and at most 1.
    pub duty: f64,
    /// Ends after having had nothing to do for this long.
    pub idle_exit: Option<Duration>,
}

/// A batch on its way from the device to the bank.
struct Job {
    /// Category of each region of each mosaic.
    categories: Vec<Vec<u32>>,
    canvases: Vec<Canvas>,
    denoised: Vec<Denoised>,
}

/// State shared by the two threads.
struct Shared<'a> {
    bank: &'a Bank,
    control: &'a Control<'a>,
    status: &'a StatusWriter,
    /// How many mosaics of each category are on their way.
    coming: Mutex<Vec<u64>>,
    reports: Mutex<Vec<Report>>,
    fatal: Mutex<Option<Error>>,
    blocked: AtomicBool,
    /// Time that labelling took since the loop last asked, nanoseconds.
    labelled: AtomicU64,
}

impl Shared<'_> {
    fn count(&self, categories: &[u32], up: bool) {
        let mut coming = self.coming.lock();
        for &c in categories {
            if let Some(n) = coming.get_mut(c as usize) {
                *n = if up { *n + 1 } else { n.saturating_sub(1) };
            }
        }
        let listed = (0..)
            .zip(coming.iter())
            .filter(|(_, n)| **n > 0)
            .map(|(c, n)| (c, *n))
            .collect();
        drop(coming);
        self.status.update(|b| b.coming = listed);
    }
}

/// Each category of a mosaic once.
fn once(categories: &[u32]) -> Vec<u32> {
    let mut once = categories.to_vec();
    once.sort_unstable();
    once.dedup();
    once
}

/// Generates what `planner` asks for until it is done, the engine is stopped, or an error occurs
/// that a retry would not fix.
///
/// # Errors
/// [`Error::Interrupted`] when stopped; [`Error::OutOfMemory`] when not even one region fits;
/// what the bank or the model fails with.
pub fn run(
    backend: &dyn Backend,
    bank: &Bank,
    planner: &mut dyn Planner,
    seeds: &mut Seeds,
    control: &Control<'_>,
    settings: Settings,
    status: &StatusWriter,
) -> Result<()> {
    let throttle = Throttle::new(settings.duty)?;
    status.update(|b| {
        b.batch = settings.batch;
        b.duty = settings.duty;
    });
    let shared = Shared {
        bank,
        control,
        status,
        coming: Mutex::new(vec![0; bank.categories().len()]),
        reports: Mutex::new(Vec::new()),
        fatal: Mutex::new(None),
        blocked: AtomicBool::new(false),
        labelled: AtomicU64::new(0),
    };
    let finisher = backend.finisher();
    let out = std::thread::scope(|scope| {
        // One batch waits while another is labelled and a third is denoised.
        let (send, receive) = bounded(1);
        let finishing = std::thread::Builder::new()
            .name("finisher".into())
            .spawn_scoped(scope, || {
                let work = AssertUnwindSafe(|| finish(&*finisher, receive, &shared));
                if let Err(panic) = catch_unwind(work) {
                    // The device loop finds it and ends; a supervisor then starts a new engine.
                    let error = Error::backend("labelling", panic_message(&*panic));
                    *shared.fatal.lock() = Some(error);
                }
            })
            .map_err(|e| Error::backend("starting the labelling thread", e))?;
        let mut device = DeviceLoop {
            backend,
            shared: &shared,
            planner: RefCell::new(planner),
            throttle: RefCell::new(throttle),
            settings,
            waiting: VecDeque::new(),
            began: Instant::now(),
        };
        let out = device.run(seeds, &send);
        drop(send);
        if finishing.join().is_err() {
            return Err(Error::backend("labelling", "the thread panicked"));
        }
        device.take_reports();
        out
    });
    match shared.fatal.into_inner() {
        Some(e) => Err(e),
        None => out,
    }
}

/// Category of each region of each mosaic, and the canvases.
type Planned = (Vec<Vec<u32>>, Vec<Canvas>);

/// What runs on the thread of the device.
struct DeviceLoop<'a> {
    backend: &'a dyn Backend,
    shared: &'a Shared<'a>,
    planner: RefCell<&'a mut dyn Planner>,
    throttle: RefCell<Throttle>,
    settings: Settings,
    /// Planned, but not made yet (the rest of a batch that did not fit).
    waiting: VecDeque<Planned>,
    began: Instant,
}

impl DeviceLoop<'_> {
    fn run(&mut self, seeds: &mut Seeds, send: &Sender<Job>) -> Result<()> {
        let mut idle_since: Option<Instant> = None;
        loop {
            self.shared.control.check()?;
            if self.shared.fatal.lock().is_some() {
                return Ok(());
            }
            self.check_bank()?;
            self.wait_while_paused()?;
            self.take_reports();
            let planning = Instant::now();
            let (categories, canvases) = match self.waiting.pop_front() {
                Some(rest) => self.as_many_as_fit(rest),
                None => {
                    // Before the stock is looked at: what is written in between then counts
                    // twice, and not never.
                    let coming = self.shared.coming.lock().clone();
                    // What was decided while something was on its way is decided again.
                    let settled = coming.iter().all(|n| *n == 0);
                    let next = self.planner.get_mut().next(
                        self.shared.bank,
                        &coming,
                        self.settings.batch,
                    )?;
                    let outlook = self.planner.get_mut().outlook();
                    self.shared.status.update(|b| {
                        b.target = outlook.target;
                        b.categories = outlook.categories;
                        b.stocked = outlook.stocked;
                        b.missing = outlook.missing;
                    });
                    match next {
                        Next::Make(batch) => self.order(batch, seeds)?,
                        Next::Done if settled => return Ok(()),
                        Next::Done | Next::Wait if !settled => {
                            self.wait(planning, SHORT_WAIT)?;
                            continue;
                        }
                        Next::Done | Next::Wait => {
                            self.shared.status.set_state(State::Stocked);
                            let since = *idle_since.get_or_insert_with(Instant::now);
                            if self
                                .settings
                                .idle_exit
                                .is_some_and(|most| since.elapsed() >= most)
                            {
                                return Ok(());
                            }
                            self.shared.control.sleep(POLL)?;
                            let idle = planning.elapsed().as_secs_f64();
                            self.shared.status.update(|b| b.stages.idle += idle);
                            continue;
                        }
                    }
                }
            };
            idle_since = None;
            self.rest_of_planning(planning);
            if !self.shared.blocked.load(Ordering::Relaxed) {
                self.shared.status.set_state(State::Working);
            }
            let Some(denoised) = self.denoise(&categories, &canvases)? else {
                continue;
            };
            self.hand_over(
                send,
                Job {
                    categories,
                    canvases,
                    denoised,
                },
            )?;
        }
    }

    /// An open bank can be written after its directory was removed: nobody would ever read it.
    fn check_bank(&self) -> Result<()> {
        let path = self.shared.bank.path().join(INFO_FILE);
        if path.exists() {
            return Ok(());
        }
        Err(Error::NotFound {
            what: "the bank".into(),
            path,
            hint: "\nhint: it was removed or moved while the engine was running".into(),
        })
    }

    /// Splits off as many mosaics as fit into a batch; the rest stays queued.
    fn as_many_as_fit(&mut self, (mut categories, mut canvases): Planned) -> Planned {
        let most = self.settings.batch.max(1);
        if canvases.len() > most {
            let rest = (categories.split_off(most), canvases.split_off(most));
            self.waiting.push_front(rest);
        }
        (categories, canvases)
    }

    /// Draws seeds and layouts of a batch and counts its mosaics as coming.
    fn order(&self, batch: Batch, seeds: &mut Seeds) -> Result<(Vec<Vec<u32>>, Vec<Canvas>)> {
        let bank = self.shared.bank;
        let mut layout = None;
        let mut canvases = Vec::with_capacity(batch.mosaics.len());
        for categories in &batch.mosaics {
            let seed = self.take_seed(seeds)?;
            let mut flips = rng::keyed(seed, "mirrored layout", 0);
            let names = categories
                .iter()
                .filter_map(|&c| Some(bank.categories().get(c as usize)?.name.clone()))
                .collect();
            canvases.push(self.backend.canvas(&Order {
                categories: names,
                seed,
                // One for the batch, so that its regions share the calls of the model.
                layout: *layout.get_or_insert(seed),
                mirrored: [flips.random(), flips.random()],
            })?);
        }
        for categories in &batch.mosaics {
            self.shared.count(&once(categories), true);
        }
        Ok((batch.mosaics, canvases))
    }

    /// Takes a seed. Retries while the disk is full.
    fn take_seed(&self, seeds: &mut Seeds) -> Result<u64> {
        let mut pause = FIRST_RETRY;
        loop {
            match seeds.take() {
                Err(e @ Error::Io { .. }) => {
                    self.shared.status.error(&e);
                    self.shared.status.set_state(State::Blocked);
                    self.shared.control.sleep(pause)?;
                    pause = (2 * pause).min(MOST_RETRY);
                }
                other => return other,
            }
        }
    }

    /// Denoises a batch on the device. `None` if it did not fit into memory: smaller batches are
    /// then queued in its place.
    fn denoise(
        &mut self,
        categories: &[Vec<u32>],
        canvases: &[Canvas],
    ) -> Result<Option<Vec<Denoised>>> {
        let begin = Instant::now();
        let away = Cell::new(Duration::ZERO);
        let mark = Cell::new(Instant::now());
        let regions: usize = canvases.iter().map(|c| c.regions.len()).sum();
        let at_once = self.settings.regions_at_once.min(regions).max(1);
        let out = self.backend.denoise(
            canvases,
            at_once,
            &mut Progress {
                check: &mut || {
                    self.shared.control.check()?;
                    if self.shared.control.paused() {
                        self.throttle.borrow_mut().worked(mark.get().elapsed());
                        let waited = self.wait_while_paused()?;
                        self.shared.status.set_state(State::Working);
                        away.set(away.get() + waited);
                        mark.set(Instant::now());
                    }
                    Ok(())
                },
                step: &mut |done, all| {
                    if self.settings.duty < 1.0 {
                        // Else the time of what was only queued would not be seen.
                        if let Err(e) = self.backend.synchronize() {
                            self.shared.status.error(&e);
                        }
                    }
                    away.set(away.get() + self.worked(&mark));
                    self.take_reports();
                    self.planner.borrow_mut().step(done, all);
                },
            },
        );
        away.set(away.get() + self.worked(&mark));
        let busy = begin.elapsed().saturating_sub(away.get()).as_secs_f64();
        self.shared.status.update(|b| b.stages.denoise += busy);
        match out {
            Ok(denoised) => {
                self.shared.status.update(|b| b.regions += regions as u64);
                Ok(Some(denoised))
            }
            Err(e @ Error::OutOfMemory { .. }) => {
                self.shrink(categories, canvases, at_once, e)?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Rests as the duty requires after the work since `mark`; returns the time that it rested.
    fn worked(&self, mark: &Cell<Instant>) -> Duration {
        let mut time = mark.get().elapsed();
        if self.backend.on_cpu() {
            time += Duration::from_nanos(self.shared.labelled.swap(0, Ordering::Relaxed));
        }
        let rest = self.throttle.borrow_mut().worked(time);
        let mut rested = Duration::ZERO;
        if !rest.is_zero() {
            let begin = Instant::now();
            // Whoever stops is heard at the next check.
            let _ = self.shared.control.sleep(rest);
            rested = begin.elapsed();
            self.throttle.borrow_mut().rested(rested);
        }
        let measured = self.throttle.borrow().measured();
        self.shared.status.update(|b| {
            b.measured_duty = measured;
            b.stages.rest += rested.as_secs_f64();
        });
        mark.set(Instant::now());
        rested
    }

    /// Halves the batch size and queues the batch again.
    fn shrink(
        &mut self,
        categories: &[Vec<u32>],
        canvases: &[Canvas],
        at_once: usize,
        error: Error,
    ) -> Result<()> {
        self.shared.status.error(&error);
        let half = canvases.len().div_ceil(2);
        if canvases.len() > 1 {
            self.settings.batch = half;
        } else if at_once > 1 {
            self.settings.regions_at_once = at_once.div_ceil(2);
        } else {
            return Err(match error {
                Error::OutOfMemory {
                    device,
                    what,
                    message,
                } => Error::OutOfMemory {
                    device,
                    what: format!(
                        "{what} a single mosaic, one region at a time (nothing smaller can be \
                         made: free memory, or choose another dtype or a smaller recipe)"
                    ),
                    message,
                },
                other => other,
            });
        }
        self.shared.status.update(|b| {
            b.halved += 1;
            b.batch = self.settings.batch;
        });
        self.waiting
            .push_front((categories.to_vec(), canvases.to_vec()));
        Ok(())
    }

    /// Passes a batch to the labelling thread; waits while that is busy.
    fn hand_over(&self, send: &Sender<Job>, job: Job) -> Result<()> {
        let begin = Instant::now();
        let mut job = job;
        loop {
            match send.send_timeout(job, LISTEN) {
                Ok(()) => break,
                Err(SendTimeoutError::Timeout(back)) => {
                    job = back;
                    self.shared.control.check()?;
                    self.take_reports();
                }
                // It ended because of an error, which the loop finds.
                Err(SendTimeoutError::Disconnected(_)) => return Ok(()),
            }
        }
        self.waited(begin.elapsed());
        Ok(())
    }

    /// Waits for mosaics in progress.
    fn wait(&self, since: Instant, time: Duration) -> Result<()> {
        self.shared.control.sleep(time)?;
        self.waited(since.elapsed());
        Ok(())
    }

    /// Records time in which the device waited although there was work.
    fn waited(&self, time: Duration) {
        self.throttle.borrow_mut().rested(time);
        self.shared.status.update(|b| {
            b.stages.wait += time.as_secs_f64();
            update_idle_share(b);
        });
    }

    fn rest_of_planning(&self, since: Instant) {
        let time = since.elapsed();
        self.throttle.borrow_mut().rested(time);
        self.shared.status.update(|b| {
            b.stages.plan += time.as_secs_f64();
            update_idle_share(b);
        });
    }

    fn wait_while_paused(&self) -> Result<Duration> {
        let begin = Instant::now();
        while self.shared.control.paused() {
            self.shared.status.set_state(State::Paused);
            self.shared.control.sleep(POLL)?;
        }
        let waited = begin.elapsed();
        self.shared
            .status
            .update(|b| b.stages.idle += waited.as_secs_f64());
        Ok(waited)
    }

    fn take_reports(&self) {
        let reports = std::mem::take(&mut *self.shared.reports.lock());
        for report in &reports {
            self.planner.borrow_mut().written(report);
        }
        if self.began.elapsed() > Duration::ZERO && !reports.is_empty() {
            self.shared.status.update(update_idle_share);
        }
    }
}

/// Share of the time with work in which the device neither worked nor rested.
fn update_idle_share(b: &mut EngineStatus) {
    let s = b.stages;
    let all = s.denoise + s.rest + s.plan + s.wait;
    b.idle_share = (all > 0.0).then(|| (s.plan + s.wait) / all);
}

/// The second thread: labels, encodes and writes.
fn finish(finisher: &dyn Finisher, jobs: Receiver<Job>, shared: &Shared<'_>) {
    let mut failures = 0;
    let mut retired = Instant::now();
    for job in jobs {
        let begin = Instant::now();
        let labelled = finisher.label(&job.canvases, job.denoised);
        let time = begin.elapsed();
        shared
            .labelled
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        shared
            .status
            .update(|b| b.stages.label += time.as_secs_f64());
        let mosaics = match labelled {
            Ok(mosaics) => {
                failures = 0;
                mosaics
            }
            Err(e) => {
                shared.status.error(&e);
                for (canvas, categories) in job.canvases.iter().zip(&job.categories) {
                    shared.status.update(|b| b.record_drop(canvas.seed));
                    report(shared, categories, None, 0);
                }
                failures += 1;
                if failures >= MOST_FAILURES {
                    *shared.fatal.lock() = Some(e);
                    return;
                }
                continue;
            }
        };
        let rejected = rejected(&mosaics);
        let mut records = Vec::with_capacity(mosaics.len());
        for Labelled {
            record, problem, ..
        } in mosaics
        {
            let seed = record.seed;
            if let Some(problem) = &problem {
                tracing::warn!("mosaic of seed {seed} dropped: {problem}");
                shared.status.update(|b| b.record_drop(seed));
            }
            if problem.is_some() || record.instances.is_empty() {
                continue;
            }
            match shared.bank.indexed(record).and_then(|r| {
                r.validate_in(shared.bank.categories().len())?;
                Ok(r)
            }) {
                Ok(record) => records.push(record),
                Err(e) => {
                    shared.status.error(&e);
                    shared.status.update(|b| b.record_drop(seed));
                }
            }
        }
        let begin = Instant::now();
        let evicted = match write(shared, &records) {
            Ok(evicted) => evicted,
            Err(e) => {
                *shared.fatal.lock() = Some(e);
                return;
            }
        };
        shared
            .status
            .update(|b| b.stages.write += begin.elapsed().as_secs_f64());
        tally(shared, rejected, &records);
        if retired.elapsed() >= RETIRE {
            retired = Instant::now();
            if let Err(e) = shared.bank.retire() {
                shared.status.error(&e);
            }
        }
        let mut evicted = Some(evicted);
        for (canvas, categories) in job.canvases.iter().zip(&job.categories) {
            let record = records.iter().find(|r| r.seed == canvas.seed);
            report(
                shared,
                categories,
                record,
                evicted.take().unwrap_or_default(),
            );
        }
    }
}

/// Writes records in one commit; retries while the disk is full. Returns how many records were
/// evicted.
fn write(shared: &Shared<'_>, records: &[MosaicRecord]) -> Result<u64> {
    let mut pause = FIRST_RETRY;
    loop {
        match shared.bank.put_mosaics(records) {
            Ok(report) => {
                if shared.blocked.swap(false, Ordering::Relaxed) {
                    tracing::info!("the bank can be written again");
                    shared.status.set_state(State::Working);
                }
                return Ok(report.evicted);
            }
            Err(e @ Error::Io { .. }) => {
                shared.status.error(&e);
                shared.blocked.store(true, Ordering::Relaxed);
                shared.status.set_state(State::Blocked);
                shared.control.sleep(pause)?;
                pause = (2 * pause).min(MOST_RETRY);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Regions that gave no instance.
fn rejected(mosaics: &[Labelled]) -> u64 {
    let regions = mosaics.iter().flat_map(|m| &m.record.regions);
    regions.filter(|r| !r.verdict.is_kept()).count() as u64
}

fn tally(shared: &Shared<'_>, rejected: u64, records: &[MosaicRecord]) {
    let instances: u64 = records.iter().map(|r| r.instances.len() as u64).sum();
    shared
        .status
        .committed(records.len() as u64, instances, rejected);
}

/// Reports a finished mosaic: `record` if it was written, `None` if it was dropped.
fn report(
    shared: &Shared<'_>,
    categories: &[u32],
    record: Option<&MosaicRecord>,
    evicted: u64,
) {
    let tried = once(categories);
    let kept: Vec<u32> = record.map_or_else(Vec::new, |r| {
        once(&r.instances.iter().map(|i| i.category).collect::<Vec<_>>())
    });
    shared.reports.lock().push(Report {
        tried: tried.clone(),
        kept,
        instances: record.map_or(0, |r| r.instances.len() as u64),
        evicted,
    });
    // After the commit, so that nobody sees it neither coming nor there.
    shared.count(&tried, false);
}
