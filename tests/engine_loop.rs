//! The engine's loop with what no device does on demand: running out of memory, unusable pictures,
//! categories that never come out, a labelling that is slow.
//!
//! Only the device is made up: planning, seeds, threads, records and the bank are the real ones.
#![cfg(feature = "engine")]

mod bank_common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bank_common::{new_bank, rectangle};
use mosaicbank::bank::{Bank, Kind, MosaicRecord};
use mosaicbank::diffusion::LatentSpace;
use mosaicbank::engine::backend::{Backend, Finisher, Order, mirror};
use mosaicbank::engine::control::{Control, set_paused};
use mosaicbank::engine::plan::Odds;
use mosaicbank::engine::planner::Planner;
use mosaicbank::engine::planner::{OnDemand, Prewarm};
use mosaicbank::engine::seeds::Seeds;
use mosaicbank::engine::worker::{Settings, run};
use mosaicbank::geometry::{PixelBox, Size};
use mosaicbank::mask::Verdict;
use mosaicbank::mosaic::{Canvas, Denoised, Labelled, Layout, Progress, Region, Subject};
use mosaicbank::recipe::Recipe;
use mosaicbank::record::{self, Instance, Mosaic, RecordId};
use mosaicbank::status::{EngineStatus, State, StatusWriter};
use mosaicbank::{Error, Result};

const STEPS: usize = 3;

type Hook = dyn Fn(&[Canvas]) + Send + Sync;

/// A device that paints rectangles.
#[derive(Clone)]
struct Fake {
    /// Canvases, and regions per call, that fit into its memory.
    memory: [usize; 2],
    /// Seeds whose picture is unusable.
    broken: fn(u64) -> bool,
    /// Categories and seeds whose region gives an instance.
    comes_out: fn(&str, u64) -> bool,
    /// Batches that it was asked for: canvases and regions per call.
    calls: Arc<Mutex<Vec<[usize; 2]>>>,
    seeds: Arc<Mutex<Vec<u64>>>,
    before_denoise: Arc<Hook>,
    before_label: Arc<Hook>,
    labels_fail: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            memory: [usize::MAX; 2],
            broken: |_| false,
            comes_out: |_, _| true,
            calls: Arc::default(),
            seeds: Arc::default(),
            before_denoise: Arc::new(|_| {}),
            before_label: Arc::new(|_| {}),
            labels_fail: false,
        }
    }
}

fn recipe(regions: usize) -> Recipe {
    Recipe {
        height: 64,
        width: 64,
        regions: regions as u32,
        ..Recipe::default()
    }
}

impl Backend for Fake {
    fn canvas(&self, order: &Order) -> Result<Canvas> {
        let recipe = recipe(order.categories.len());
        let layout = Layout::draw(&recipe, 4, order.layout)?;
        let regions = layout
            .parts
            .iter()
            .zip(&order.categories)
            .map(|(&part, name)| {
                let subject = Subject::from_recipe(&recipe, name, None)?;
                Ok(Region::new(part, name, subject, 1.0))
            })
            .collect::<Result<_>>()?;
        let mut canvas = Canvas {
            size: layout.canvas,
            regions,
            seed: order.seed,
        };
        mirror(&mut canvas, order.mirrored);
        canvas.validate(&LatentSpace {
            channels: 4,
            factor: 4,
            patch: 1,
            scale: 1.0,
            shift: 0.0,
        })?;
        self.seeds.lock().unwrap().push(order.seed);
        Ok(canvas)
    }

    fn denoise(
        &self,
        canvases: &[Canvas],
        regions_at_once: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Denoised>> {
        self.calls
            .lock()
            .unwrap()
            .push([canvases.len(), regions_at_once]);
        (self.before_denoise)(canvases);
        if canvases.len() > self.memory[0] || regions_at_once > self.memory[1] {
            return Err(Error::OutOfMemory {
                device: "fake".into(),
                what: "denoising".into(),
                message: "no more".into(),
            });
        }
        for step in 0..STEPS {
            (progress.check)()?;
            (progress.step)(step + 1, STEPS);
        }
        Ok(canvases
            .iter()
            .map(|c| Denoised {
                rgb: vec![128; 3 * c.size.area() as usize],
                size: c.size,
                captured: None,
                problem: (self.broken)(c.seed).then(|| "not a number".into()),
            })
            .collect())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn finisher(&self) -> Box<dyn Finisher> {
        Box::new(self.clone())
    }

    fn on_cpu(&self) -> bool {
        false
    }
}

impl Finisher for Fake {
    fn label(&self, canvases: &[Canvas], denoised: Vec<Denoised>) -> Result<Vec<Labelled>> {
        (self.before_label)(canvases);
        if self.labels_fail {
            return Err(Error::backend("labelling", "it never works"));
        }
        let mosaic = |(canvas, denoised): (&Canvas, Denoised)| {
            let mut instances = Vec::new();
            let mut regions = Vec::new();
            for (i, r) in canvas.regions.iter().enumerate() {
                let kept =
                    denoised.problem.is_none() && (self.comes_out)(&r.category, canvas.seed);
                if kept {
                    let b = PixelBox::new(r.own.x0, r.own.y0, r.own.x0 + 8, r.own.y0 + 4);
                    let mask = rectangle(canvas.size, b);
                    let object = Instance::of_mask(r.category.clone(), mask, 0.5, i as u32);
                    instances.push(object.unwrap());
                }
                let verdict = if kept {
                    Verdict::Kept
                } else {
                    Verdict::NoComponent
                };
                regions.push(record::Region {
                    own: r.own,
                    prompt: r.subject.prompt.clone(),
                    ..record::Region::bare(r.bbox, r.category.clone(), verdict)
                });
            }
            Labelled {
                record: Mosaic {
                    id: id(canvas.seed),
                    size: canvas.size,
                    image: denoised.rgb,
                    regions,
                    instances,
                    model: "fake".into(),
                    weights: "weights".into(),
                    recipe: "recipe".into(),
                    seed: canvas.seed,
                    generation: None,
                },
                maps: Vec::new(),
                problem: denoised.problem,
            }
        };
        Ok(canvases.iter().zip(denoised).map(mosaic).collect())
    }
}

fn id(seed: u64) -> RecordId {
    RecordId(u128::from(seed).to_be_bytes())
}

fn settings(batch: usize) -> Settings {
    Settings {
        batch,
        regions_at_once: 16,
        duty: 1.0,
        idle_exit: Some(Duration::ZERO),
    }
}

fn odds(odds: [f64; 3]) -> Odds {
    Odds::new(odds).unwrap()
}

/// Runs the loop to its end; what it returned, and its last status.
fn make(
    bank: &Bank,
    fake: &Fake,
    source: &mut dyn Planner,
    settings: Settings,
) -> (Result<()>, EngineStatus) {
    let status = StatusWriter::start(bank.path(), "test", || false).unwrap();
    let never = || false;
    let control = Control::new(bank.path(), &never);
    let mut seeds = Seeds::new(bank.path(), None);
    let out = run(fake, bank, source, &mut seeds, &control, settings, &status);
    status.end(&out);
    let beat = status.update(|b| b.clone());
    assert_eq!(
        EngineStatus::read(&beat.path(bank.path())).unwrap().state,
        beat.state
    );
    (out, beat)
}

fn prewarm(bank: &Bank, goals: &[u64]) -> Prewarm {
    Prewarm::new(bank, goals.to_vec(), odds([1.0, 1.0, 2.0]), 50).unwrap()
}

/// Every mosaic of the bank, each of which must read back whole.
fn all(bank: &Bank) -> Vec<MosaicRecord> {
    bank.ids(Kind::Mosaic)
        .unwrap()
        .into_iter()
        .map(|id| bank.mosaic(id).unwrap())
        .collect()
}

fn temporary(categories: u32) -> (tempfile::TempDir, Bank) {
    let dir = tempfile::tempdir().unwrap();
    let bank = new_bank(dir.path(), categories);
    (dir, bank)
}

#[test]
fn prewarm_makes_exactly_what_was_asked_for_though_half_is_rejected() {
    let (_dir, bank) = temporary(7);
    let goals = [5, 0, 3, 1, 8, 2, 4];
    let fake = Fake {
        comes_out: |name, seed| {
            !(seed + name.len() as u64 + u64::from(name.as_bytes()[6])).is_multiple_of(2)
        },
        broken: |seed| seed % 5 == 0,
        ..Fake::default()
    };
    let mut source = prewarm(&bank, &goals);
    let (out, beat) = make(&bank, &fake, &mut source, settings(3));
    out.unwrap();
    assert_eq!(bank.stock().unwrap().mosaics, goals);
    assert_eq!(bank.stock().unwrap().instances, goals);
    assert!(source.given_up().is_empty());
    assert_eq!((beat.state, beat.missing), (State::Stopped, 0));
    assert!(beat.rejected > 0 && beat.dropped > 0);
    assert!(beat.dropped_seeds.iter().all(|s| s % 5 == 0));
    let seeds = fake.seeds.lock().unwrap();
    assert_eq!(seeds.iter().collect::<BTreeSet<_>>().len(), seeds.len());
    // Again: everything is there.
    let again = Fake::default();
    make(&bank, &again, &mut prewarm(&bank, &goals), settings(3))
        .0
        .unwrap();
    assert!(again.calls.lock().unwrap().is_empty());
}

#[test]
fn records_hold_what_is_needed_to_make_them_again() {
    let (_dir, bank) = temporary(4);
    let fake = Fake::default();
    // The seventh of the last cannot be among four.
    make(
        &bank,
        &fake,
        &mut prewarm(&bank, &[6, 6, 6, 7]),
        settings(4),
    )
    .0
    .unwrap();
    let mut counts = BTreeSet::new();
    for m in all(&bank) {
        assert_eq!(m.id, id(m.seed));
        counts.insert(m.regions.len());
        for r in &m.regions {
            let name = bank.categories()[r.category as usize]
                .name
                .replace('_', " ");
            assert!(r.prompt.contains(&name), "{}", r.prompt);
            assert_eq!(r.verdict, Verdict::Kept);
            assert!(r.bbox.x1 <= m.size.width && r.bbox.y1 <= m.size.height);
        }
    }
    assert!(counts.iter().any(|n| *n < 4), "{counts:?}");
}

#[test]
fn out_of_memory_halves_the_batch_and_loses_nothing() {
    let (_dir, bank) = temporary(3);
    let fake = Fake {
        memory: [2, usize::MAX],
        ..Fake::default()
    };
    let mut source = Prewarm::new(&bank, vec![8; 3], odds([1.0, 0.0, 0.0]), 50).unwrap();
    let (out, beat) = make(&bank, &fake, &mut source, settings(8));
    out.unwrap();
    assert_eq!(bank.stock().unwrap().mosaics, [8, 8, 8]);
    assert_eq!((beat.halved, beat.batch, beat.errors), (2, 2, 2));
    let calls: Vec<usize> = fake.calls.lock().unwrap().iter().map(|c| c[0]).collect();
    assert_eq!(calls[..3], [8, 4, 2]);
    assert!(calls[3..].iter().all(|n| *n <= 2), "{calls:?}");
    assert_eq!(beat.dropped, 0);
}

#[test]
fn a_single_mosaic_is_made_region_by_region_before_the_engine_gives_up() {
    let (_dir, bank) = temporary(8);
    let four = |bank: &Bank| Prewarm::new(bank, vec![2; 8], odds([0.0, 0.0, 1.0]), 50).unwrap();
    let fake = Fake {
        memory: [1, 1],
        ..Fake::default()
    };
    let (out, beat) = make(&bank, &fake, &mut four(&bank), settings(2));
    out.unwrap();
    // Mosaics 2 -> 1, then regions 4 -> 2 -> 1.
    assert_eq!(beat.halved, 3);
    assert_eq!(bank.stock().unwrap().mosaics, [2; 8]);
    let (_dir, bank) = temporary(8);
    let fake = Fake {
        memory: [0, 0],
        ..Fake::default()
    };
    let (out, beat) = make(&bank, &fake, &mut four(&bank), settings(2));
    let text = out.unwrap_err().to_string();
    assert!(
        text.contains("single mosaic") && text.contains("free memory"),
        "{text}"
    );
    assert_eq!(beat.state, State::Failed);
    assert!(
        beat.last_error
            .is_some_and(|e| e.message.contains("single mosaic"))
    );
    assert_eq!(bank.stock().unwrap().total_mosaics, 0);
}

#[test]
fn a_category_that_never_comes_out_is_given_up_and_named() {
    let (_dir, bank) = temporary(3);
    let fake = Fake {
        comes_out: |name, _| name != "thing_2",
        ..Fake::default()
    };
    let mut source = prewarm(&bank, &[4, 4, 4]);
    make(&bank, &fake, &mut source, settings(2)).0.unwrap();
    assert_eq!(bank.stock().unwrap().mosaics, [4, 0, 4]);
    assert_eq!(source.given_up(), [1]);
}

#[test]
fn labelling_of_one_batch_runs_beside_the_denoising_of_the_next() {
    let (_dir, bank) = temporary(2);
    let (denoising, begun) = mpsc::channel();
    let begun = Mutex::new(begun);
    let count = AtomicUsize::new(0);
    let overlapped = Arc::new(AtomicBool::new(false));
    let seen = overlapped.clone();
    let fake = Fake {
        before_denoise: Arc::new(move |_| {
            let _ = denoising.send(());
        }),
        // The first is not labelled until the second is being denoised.
        before_label: Arc::new(move |_| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                let begun = begun.lock().unwrap();
                let wait = || begun.recv_timeout(Duration::from_secs(60)).is_ok();
                seen.store(wait() && wait(), Ordering::SeqCst);
            }
        }),
        ..Fake::default()
    };
    make(&bank, &fake, &mut prewarm(&bank, &[4, 4]), settings(1))
        .0
        .unwrap();
    assert!(overlapped.load(Ordering::SeqCst));
}

#[test]
fn a_labelling_that_always_fails_ends_the_engine_with_its_error() {
    let (_dir, bank) = temporary(2);
    let fake = Fake {
        labels_fail: true,
        ..Fake::default()
    };
    let (out, beat) = make(&bank, &fake, &mut prewarm(&bank, &[40, 40]), settings(1));
    assert!(out.unwrap_err().to_string().contains("it never works"));
    assert_eq!(beat.state, State::Failed);
    assert!(beat.dropped >= 5);
}

#[test]
fn on_demand_stocks_what_is_wanted_and_then_what_is_used_up() {
    let (_dir, bank) = temporary(5);
    let fake = Fake::default();
    let engine = |wanted: Vec<u32>| OnDemand::new(&bank, wanted, 3, Odds::default(), "test");
    let (out, beat) = make(&bank, &fake, &mut engine(vec![0, 3]), settings(2));
    out.unwrap();
    let stock = bank.stock().unwrap();
    assert!(stock.mosaics[0] >= 3 && stock.mosaics[3] >= 3, "{stock:?}");
    assert_eq!((beat.categories, beat.stocked, beat.missing), (2, 2, 0));
    // A trainer uses everything of one category.
    let before = bank.ids_of(Kind::Mosaic, 3).unwrap().len();
    for i in 0..before as u64 {
        bank.draw_mosaic(3, &mut || i).unwrap().unwrap();
    }
    make(&bank, &fake, &mut engine(vec![3]), settings(1))
        .0
        .unwrap();
    assert_eq!(bank.ids_of(Kind::Mosaic, 3).unwrap().len(), before + 3);
}

#[test]
fn what_is_asked_for_is_made_first() {
    let (_dir, bank) = temporary(20);
    bank.draw_mosaic(7, &mut || 0).unwrap();
    let fake = Fake::default();
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::SeqCst);
    let control = Control::new(bank.path(), &stopped);
    let made = AtomicUsize::new(0);
    let with = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let status = StatusWriter::start(bank.path(), "test", || false).unwrap();
        let (fake, bank, control) = (&fake, &bank, &control);
        let engine = scope.spawn(move || {
            let wanted = (0..20).collect();
            let mut source = OnDemand::new(bank, wanted, 50, Odds::default(), "test");
            let mut seeds = Seeds::new(bank.path(), None);
            run(
                fake,
                bank,
                &mut source,
                &mut seeds,
                control,
                settings(1),
                &status,
            )
        });
        while bank.stock().unwrap().total_mosaics < 40 {
            assert!(!engine.is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::SeqCst);
        assert!(matches!(engine.join().unwrap(), Err(Error::Interrupted)));
    });
    for m in all(&bank) {
        made.fetch_add(1, Ordering::SeqCst);
        if m.regions.iter().any(|r| r.category == 7) {
            with.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (made, with) = (made.into_inner(), with.into_inner());
    // After 50 of them the others may come.
    let expected = made.min(50);
    assert!(with * 10 >= expected * 8, "{with} of {made}");
}

#[test]
fn several_engines_on_one_bank_never_use_a_seed_twice() {
    let (_dir, bank) = temporary(6);
    let fake = Fake::default();
    std::thread::scope(|scope| {
        for id in ["a", "b", "c"] {
            let (bank, fake) = (&bank, &fake);
            scope.spawn(move || {
                let wanted = (0..6).collect();
                let mut source = OnDemand::new(bank, wanted, 20, Odds::default(), id);
                let status = StatusWriter::start(bank.path(), "test", || false).unwrap();
                let never = || false;
                let control = Control::new(bank.path(), &never);
                let mut seeds = Seeds::new(bank.path(), None);
                run(
                    fake,
                    bank,
                    &mut source,
                    &mut seeds,
                    &control,
                    settings(2),
                    &status,
                )
                .unwrap();
            });
        }
    });
    let seeds = fake.seeds.lock().unwrap();
    assert_eq!(seeds.iter().collect::<BTreeSet<_>>().len(), seeds.len());
    assert_eq!(bank.stock().unwrap().total_mosaics, seeds.len() as u64);
    assert!(bank.stock().unwrap().mosaics.iter().all(|n| *n >= 20));
}

#[test]
fn nothing_is_made_while_the_bank_says_pause() {
    let (_dir, bank) = temporary(2);
    set_paused(bank.path(), true).unwrap();
    let fake = Fake::default();
    std::thread::scope(|scope| {
        let (bank, fake) = (&bank, &fake);
        let engine =
            scope.spawn(move || make(bank, fake, &mut prewarm(bank, &[3, 3]), settings(1)).0);
        let state = |dir: &Path| EngineStatus::read_all(dir).unwrap().pop().map(|b| b.state);
        while state(bank.path()) != Some(State::Paused) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(fake.calls.lock().unwrap().is_empty());
        set_paused(bank.path(), false).unwrap();
        engine.join().unwrap().unwrap();
    });
    assert_eq!(bank.stock().unwrap().mosaics, [3, 3]);
}

#[test]
fn a_bank_that_is_too_small_is_said_before_or_while_it_happens() {
    let dir = tempfile::tempdir().unwrap();
    let mut limits = mosaicbank::bank::Limits {
        max_per_category: 4,
        ..Default::default()
    };
    let bank = Bank::create(dir.path(), bank_common::info(2, limits)).unwrap();
    let text = Prewarm::new(&bank, vec![5, 1], Odds::default(), 9)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("at most 4"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    limits.max_per_category = 0;
    limits.max_bytes = 60_000;
    let bank = Bank::create(dir.path(), bank_common::info(2, limits)).unwrap();
    let mut source = Prewarm::new(&bank, vec![50, 50], Odds::default(), 9).unwrap();
    let (out, _) = make(&bank, &Fake::default(), &mut source, settings(1));
    let text = out.unwrap_err().to_string();
    assert!(text.contains("max_bytes"), "{text}");
}

#[test]
fn a_panic_while_labelling_ends_the_engine_with_its_reason() {
    let (_dir, bank) = temporary(2);
    let fake = Fake {
        before_label: Arc::new(|_| panic!("the log cannot be written")),
        ..Fake::default()
    };
    let (out, status) = make(&bank, &fake, &mut prewarm(&bank, &[9, 9]), settings(1));
    let text = out.unwrap_err().to_string();
    assert!(text.contains("the log cannot be written"), "{text}");
    assert_eq!(status.state, State::Failed);
}

#[test]
fn an_engine_whose_bank_is_removed_ends() {
    for idle in [false, true] {
        let (dir, bank) = temporary(2);
        let path = bank.path().to_path_buf();
        let remove = path.clone();
        let fake = Fake {
            before_label: Arc::new(move |_| {
                if !idle {
                    let _ = std::fs::remove_dir_all(&remove);
                }
            }),
            ..Fake::default()
        };
        let status = StatusWriter::start(&path, "test", || false).unwrap();
        let never = || false;
        let control = Control::new(&path, &never);
        let out = std::thread::scope(|scope| {
            let engine = scope.spawn(|| {
                let mut source = OnDemand::new(&bank, vec![0, 1], 3, Odds::default(), "test");
                let mut seeds = Seeds::new(&path, None);
                let settings = Settings {
                    idle_exit: None,
                    ..settings(1)
                };
                run(
                    &fake,
                    &bank,
                    &mut source,
                    &mut seeds,
                    &control,
                    settings,
                    &status,
                )
            });
            if idle {
                while status.update(|s| s.state) != State::Stocked {
                    assert!(!engine.is_finished());
                    std::thread::sleep(Duration::from_millis(5));
                }
                std::fs::remove_dir_all(&path).unwrap();
            }
            engine.join().unwrap()
        });
        let text = out.unwrap_err().to_string();
        assert!(text.contains("bank"), "{text}");
        drop(dir);
    }
}

#[test]
fn mirrored_layouts_keep_the_sizes_of_their_regions() {
    let fake = Fake::default();
    let order = |mirrored| Order {
        categories: ["a", "b", "c", "d"].map(String::from).into(),
        seed: 3,
        layout: 9,
        mirrored,
    };
    let sizes = |c: &Canvas| {
        let mut sizes: Vec<Size> = c.regions.iter().map(|r| r.bbox.size()).collect();
        sizes.sort_by_key(|s| (s.height, s.width));
        sizes
    };
    let plain = fake.canvas(&order([false; 2])).unwrap();
    let mut places = BTreeSet::new();
    for mirrored in [[false, false], [true, false], [false, true], [true, true]] {
        let canvas = fake.canvas(&order(mirrored)).unwrap();
        assert_eq!(sizes(&canvas), sizes(&plain));
        let area: u64 = canvas.regions.iter().map(|r| r.own.size().area()).sum();
        assert_eq!(area, canvas.size.area());
        places.insert(<[u32; 4]>::from(canvas.regions[0].own));
    }
    assert_eq!(places.len(), 4, "{places:?}");
}
