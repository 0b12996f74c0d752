//! `mosaicbank bench`: generation, injection, and a training loop alongside an engine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::context::{Context, check_stop};
use super::engine::{MakeArgs, Work};
use crate::bank::{Bank, Choice};
use crate::dataset::write_beside;
use crate::engine::backend::{Backend, ModelBackend, Order};
use crate::engine::plan::{Batch, REGION_COUNTS};
use crate::engine::planner::{Next, Outlook, Planner, Report};
use crate::engine::seeds::Seeds;
use crate::engine::worker::run as run_loop;
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mosaic::Progress;
use crate::paste::{PasteOptions, paste};
use crate::rng;
use crate::sampler::{SamplerConfig, State as StreamState, Stream};
use crate::status::{EngineStatus, State, process};

/// The Python that runs the command: the engine alongside is started with it.
const PYTHON: &str = "MOSAICBANK_PYTHON";
/// Draws that are timed, and pastes.
const DRAWS: u64 = 300;
const PASTES: u64 = 50;
/// Indices that are timed.
const INDICES: u64 = 1_000_000;
/// Pictures of the training loop, pixels on a side.
const PICTURE: u32 = 256;

/// Measure generation, injection, and a training loop beside an engine.
///
/// Prints a table, and writes bench.json and bench.svg. The training loop is a small
/// convolutional network on the engine's device; each of its steps trains on one picture of
/// noise, with up to 20 instances pasted except in the plain case.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mosaicbank bench --out bench/ --mosaics 16 --seconds 30")]
pub(super) struct BenchArgs {
    /// Folder for bench.json, bench.svg and the bank that is made
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Mosaics that are made and timed
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    mosaics: u64,
    /// Length of each of the training loops
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Duties of the engine alongside; 0 leaves that part out
    #[arg(
        long,
        default_value = "0.25,1",
        value_delimiter = ',',
        value_name = "DUTY,..."
    )]
    duties: Vec<f64>,
    #[command(flatten)]
    make: MakeArgs,
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs, context: &Context) -> Result<()> {
    let seconds = Duration::try_from_secs_f64(args.seconds)
        .map_err(|_| Error::value("--seconds", "a number of at least 0", args.seconds))?;
    crate::dataset::own_folder(&args.out, "bench", false)?;
    let dir = args.out.join("bank");
    let work = Work::start(&args.make, context, &dir, "bench")?;
    work.run(|load_backend, work| {
        let backend = load_backend()?;
        let (generation, mut rows) = generation(args, work, &backend)?;
        let (injection, more) = injection(&work.bank)?;
        rows.extend(more);
        let (alongside, more) = alongside(args, context, work, &backend, seconds)?;
        rows.extend(more);
        let all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": args.make.device, "dtype": args.make.dtype,
            "threads": tch::get_num_threads(),
            "generation": generation, "injection": injection, "alongside": alongside,
        });
        let text =
            serde_json::to_string_pretty(&all).map_err(|e| Error::backend("bench", e))?;
        write_beside(&args.out.join("bench.json"), |out| {
            out.write_all(text.as_bytes())
        })?;
        let svg = plot(&alongside);
        write_beside(&args.out.join("bench.svg"), |out| {
            out.write_all(svg.as_bytes())
        })?;
        for (name, value, unit) in &rows {
            println!("{name:<52} {value:>12} {unit}");
        }
        println!("{}", args.out.join("bench.json").display());
        Ok(())
    })
}

/// Lines of the table: what, how much, of what.
type Rows = Vec<(String, String, &'static str)>;

fn row(rows: &mut Rows, name: impl Into<String>, value: f64, unit: &'static str) {
    let text = if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    };
    rows.push((name.into(), text, unit));
}

/// Asks for a number of mosaics over all categories in turn.
struct Count {
    left: u64,
    next: u32,
    categories: u32,
    regions: u32,
}

impl Planner for Count {
    fn next(&mut self, _: &Bank, _: &[u64], most: usize) -> Result<Next> {
        let n = (most as u64).min(self.left);
        if n == 0 {
            return Ok(Next::Done);
        }
        self.left -= n;
        let mosaics = (0..n)
            .map(|_| {
                (0..self.regions)
                    .map(|_| {
                        self.next = (self.next + 1) % self.categories;
                        self.next
                    })
                    .collect()
            })
            .collect();
        Ok(Next::Make(Batch {
            regions: self.regions,
            mosaics,
        }))
    }

    fn written(&mut self, _: &Report) {}

    fn outlook(&self) -> Outlook {
        Outlook::default()
    }
}

/// (a) Mosaics and instances per second, the model's calls, where the time goes, memory.
fn generation(
    args: &BenchArgs,
    work: &Work<'_>,
    backend: &ModelBackend,
) -> Result<(Value, Rows)> {
    let categories = work.bank.categories().len() as u32;
    let regions = work.odds.counts().max().unwrap_or(REGION_COUNTS[0]);
    let mut seeds = Seeds::new(work.bank.path(), args.make.seed);
    let mut make = |n: u64| {
        let mut source = Count {
            left: n,
            next: 0,
            categories,
            regions,
        };
        run_loop(
            backend,
            &work.bank,
            &mut source,
            &mut seeds,
            &work.control(),
            work.settings,
            &work.status,
        )
    };
    // Prompts are embedded and memory is taken the first time.
    make(work.settings.batch as u64)?;
    let before = work.status.update(|b| b.clone());
    let begin = Instant::now();
    make(args.mosaics)?;
    let time = begin.elapsed().as_secs_f64();
    let after = work.status.update(|b| b.clone());
    let share = |f: fn(&EngineStatus) -> f64| (f(&after) - f(&before)) / time;
    let instances = after.instances - before.instances;
    let call = one_call(args, work, backend)?;
    let peak = process::peak_memory();
    let mut rows = Rows::new();
    let per_second = args.mosaics as f64 / time;
    row(
        &mut rows,
        format!("mosaics of {regions} regions"),
        per_second,
        "/s",
    );
    row(&mut rows, "instances", instances as f64 / time, "/s");
    row(
        &mut rows,
        "one UNet call (one region, with guidance)",
        1e3 * call,
        "ms",
    );
    let stages = [
        ("denoising and decoding", share(|b| b.stages.denoise)),
        ("labelling (beside it)", share(|b| b.stages.label)),
        (
            "encoding and writing (beside it)",
            share(|b| b.stages.write),
        ),
        ("planning", share(|b| b.stages.plan)),
        ("device waits", share(|b| b.stages.wait)),
    ];
    for (name, share) in stages {
        row(&mut rows, format!("share of the time: {name}"), share, "");
    }
    if let Some(peak) = peak {
        row(
            &mut rows,
            "peak memory of the process",
            peak as f64 / 1e6,
            "MB",
        );
    }
    let value = json!({
        "regions": regions, "mosaics": args.mosaics, "seconds": time,
        "mosaics_per_second": per_second,
        "instances_per_second": instances as f64 / time,
        "regions_rejected": after.rejected - before.rejected,
        "unet_call_ms": 1e3 * call,
        "shares": stages.iter().map(|(n, s)| ((*n).to_owned(), json!(s)))
            .collect::<serde_json::Map<_, _>>(),
        "peak_memory_bytes": peak,
    });
    Ok((value, rows))
}

/// Median time of a denoising step of one region: one call of the UNet, and little else.
fn one_call(args: &BenchArgs, work: &Work<'_>, backend: &ModelBackend) -> Result<f64> {
    let mut seeds = Seeds::new(work.bank.path(), args.make.seed);
    let seed = seeds.take()?;
    let name = work.bank.categories().first().map(|c| c.name.clone());
    let canvas = backend.canvas(&Order {
        categories: name.into_iter().collect(),
        seed,
        layout: seed,
        mirrored: [false; 2],
    })?;
    let mut times = Vec::new();
    let mut mark = Instant::now();
    let mut failed = None;
    backend.denoise(
        &[canvas],
        1,
        &mut Progress {
            check: &mut check_stop,
            step: &mut |_, _| {
                failed = backend.synchronize().err();
                times.push(mark.elapsed().as_secs_f64());
                mark = Instant::now();
            },
        },
    )?;
    match failed {
        Some(e) => Err(e),
        None => Ok(median(&mut times)),
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Median seconds of `work` over `n` times.
fn timed(n: u64, mut work: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for i in 0..n {
        check_stop()?;
        let begin = Instant::now();
        work(i)?;
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(median(&mut times))
}

/// (b) What the trainer's side costs.
fn injection(bank: &Bank) -> Result<(Value, Rows)> {
    let stock = bank.stock()?;
    let stocked: Vec<u32> = (0..)
        .zip(&stock.mosaics)
        .filter(|(_, n)| **n > 0)
        .map(|(c, _)| c)
        .collect();
    if stocked.is_empty() {
        return Err(Error::value(
            "mosaics of the bank",
            "at least one with an instance, to time its reading",
            "none (every region was rejected)",
        ));
    }
    let instance = timed(DRAWS, |i| {
        let mut bits = draws(i);
        bank.draw_instance(&Choice::ClassBalanced, &mut bits)
            .map(drop)
    })?;
    let mosaic = timed(DRAWS, |i| {
        let mut bits = draws(i);
        let c = stocked.get(i as usize % stocked.len()).copied();
        bank.draw_mosaic(c.unwrap_or_default(), &mut bits).map(drop)
    })?;
    let size = Size::new(896, 896);
    let options = PasteOptions {
        min_instances: 20,
        max_instances: 20,
        ..PasteOptions::default()
    };
    let mut image = vec![128; 3 * size.area() as usize];
    let pasting = timed(PASTES, |i| {
        paste(&mut image, size, &mut Vec::new(), bank, &options, i).map(drop)
    })?;
    let categories = bank.categories().len() as u32;
    let config = SamplerConfig {
        factors: Arc::from(vec![1.5f32; 100_000]),
        categories,
        mix_ratio: 0.2,
        seed: 0,
        rank: 0,
        world_size: 1,
        shuffle: true,
        keyed: true,
    };
    let weights = vec![1.0; categories as usize];
    let mut stream = Stream::new(Arc::new(config), StreamState::default(), &weights)?;
    let begin = Instant::now();
    let sum = (0..INDICES).fold(0i64, |sum, _| sum.wrapping_add(stream.next()));
    let indices = INDICES as f64 / begin.elapsed().as_secs_f64();
    tracing::debug!("indices, summed so that they are made: {sum}");
    let mut rows = Rows::new();
    row(
        &mut rows,
        "read and decode one instance",
        1e3 * instance,
        "ms",
    );
    row(&mut rows, "read and decode one mosaic", 1e3 * mosaic, "ms");
    row(
        &mut rows,
        "paste 20 instances on 896 x 896",
        1e3 * pasting,
        "ms",
    );
    row(&mut rows, "sampler, million indices", indices / 1e6, "/s");
    let value = json!({
        "instance_ms": 1e3 * instance, "mosaic_ms": 1e3 * mosaic,
        "paste_20_ms": 1e3 * pasting, "sampler_indices_per_second": indices,
    });
    Ok((value, rows))
}

/// Random bits for draw number `i`.
fn draws(i: u64) -> impl FnMut() -> u64 {
    use rand::Rng;
    let mut rng = rng::keyed(i, "bench", 0);
    move || rng.next_u64()
}

/// (c) Iterations per second of a training loop: without mosaicbank, with a warm bank, and with
/// an engine beside it.
fn alongside(
    args: &BenchArgs,
    context: &Context,
    work: &Work<'_>,
    backend: &ModelBackend,
    time: Duration,
) -> Result<(Value, Rows)> {
    let mut rows = Rows::new();
    let mut cases = Vec::new();
    if time.is_zero() {
        return Ok((json!(cases), rows));
    }
    let bank = &work.bank;
    // Not timed: memory is taken, and the caches warm up.
    train(backend, Some(bank), time.min(Duration::from_secs(2)))?;
    let mut add = |name: String, speed: f64, mosaics: Option<f64>| {
        row(
            &mut rows,
            format!("training, {name}"),
            speed,
            "iterations/s",
        );
        if let Some(rate) = mosaics {
            row(&mut rows, "  and meanwhile", rate, "mosaics/s");
        }
        cases.push(json!({
            "case": name, "iterations_per_second": speed, "mosaics_per_second": mosaics,
        }));
    };
    add(
        "without mosaicbank".into(),
        train(backend, None, time)?,
        None,
    );
    add(
        "warm bank, no engine".into(),
        train(backend, Some(bank), time)?,
        None,
    );
    for &duty in args.duties.iter().filter(|d| **d > 0.0) {
        let mut engine = Engine::start(args, context, bank, duty)?;
        engine.wait_until_it_works(bank)?;
        let before = engine.mosaics(bank);
        let begin = Instant::now();
        let speed = train(backend, Some(bank), time)?;
        let made = engine.mosaics(bank).saturating_sub(before);
        let rate = made as f64 / begin.elapsed().as_secs_f64();
        add(format!("engine at duty {duty}"), speed, Some(rate));
    }
    Ok((json!(cases), rows))
}

/// An engine in a process of its own, ended when dropped.
struct Engine(Child);

impl Engine {
    fn start(args: &BenchArgs, context: &Context, bank: &Bank, duty: f64) -> Result<Self> {
        let python = std::env::var_os(PYTHON).ok_or_else(|| {
            Error::value(
                format!("environment variable {PYTHON}"),
                "the Python that mosaicbank is installed in (the command `mosaicbank` sets it)",
                "nothing",
            )
        })?;
        let make = &args.make;
        let mut command = Command::new(&python);
        command
            .args(["-m", "mosaicbank", "engine", "--target", "1000000"])
            .arg("--bank")
            .arg(bank.path())
            .arg("--model")
            .arg(context.model(&make.model)?)
            .args(["--device", &make.device, "--dtype", &make.dtype])
            .args(["--duty", &duty.to_string()])
            .args(["--parent", &std::process::id().to_string()]);
        if let Some(batch) = make.batch {
            command.args(["--batch", &batch.to_string()]);
        }
        if let Some(threads) = make.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        if let Some(recipe) = &make.recipe {
            command.arg("--recipe").arg(recipe);
        }
        for set in &make.set {
            command.args(["--set", set]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
            .map_err(|e| Error::io(Path::new(&python), e))
    }

    fn beat(&self, bank: &Bank) -> Option<EngineStatus> {
        EngineStatus::read_all(bank.path())
            .ok()?
            .into_iter()
            .rfind(|b| b.pid == self.0.id())
    }

    fn mosaics(&self, bank: &Bank) -> u64 {
        self.beat(bank).map_or(0, |b| b.mosaics)
    }

    fn wait_until_it_works(&mut self, bank: &Bank) -> Result<()> {
        loop {
            check_stop()?;
            let beat = self.beat(bank);
            if beat
                .as_ref()
                .is_some_and(|b| b.state == State::Working && b.mosaics > 0)
            {
                return Ok(());
            }
            if let Ok(Some(status)) = self.0.try_wait() {
                let why = beat.and_then(|b| b.last_error).map(|e| e.message);
                return Err(Error::backend(
                    "the engine alongside",
                    why.unwrap_or_else(|| status.to_string()),
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Trains a small network for `time`; iterations per second.
fn train(backend: &ModelBackend, bank: Option<&Bank>, time: Duration) -> Result<f64> {
    backend.generator().with_model("training", |model| {
        let options = (Kind::Float, model.device);
        let mut weights: Vec<Tensor> = [(3, 32), (32, 64), (64, 64), (64, 8)]
            .iter()
            .map(|&(from, to)| {
                let scale = (2.0 / (9.0 * from as f64)).sqrt();
                (Tensor::randn([to, from, 3, 3], options) * scale).set_requires_grad(true)
            })
            .collect();
        let size = Size::new(PICTURE, PICTURE);
        let side = i64::from(PICTURE);
        let begin = Instant::now();
        let mut n = 0u64;
        while begin.elapsed() < time {
            check_stop()?;
            let mut image: Vec<u8> = (0..3 * size.area()).map(|i| (i * 31 + n) as u8).collect();
            if let Some(bank) = bank {
                let how = PasteOptions::default();
                paste(&mut image, size, &mut Vec::new(), bank, &how, n)?;
            }
            let x = Tensor::from_slice(&image)
                .view([1, side, side, 3])
                .permute([0, 3, 1, 2])
                .to_device(model.device)
                .to_kind(Kind::Float)
                / 255.0;
            tch::with_grad(|| {
                let mut y = x;
                for w in &weights {
                    y = y
                        .conv2d(w, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 1)
                        .relu();
                }
                y.square().mean(Kind::Float).backward();
            });
            for w in &mut weights {
                let step = w.grad() * 1e-3;
                let _ = w.g_sub_(&step);
                w.zero_grad();
            }
            if let tch::Device::Cuda(index) = model.device {
                tch::Cuda::synchronize(index as i64);
            }
            n += 1;
        }
        Ok(n as f64 / begin.elapsed().as_secs_f64())
    })
}

/// Iterations per second of each case as bars.
fn plot(cases: &Value) -> String {
    let cases: Vec<(&str, f64, Option<f64>)> = cases
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            (
                c["case"].as_str().unwrap_or_default(),
                c["iterations_per_second"].as_f64().unwrap_or_default(),
                c["mosaics_per_second"].as_f64(),
            )
        })
        .collect();
    let most = cases.iter().map(|c| c.1).fold(f64::MIN_POSITIVE, f64::max);
    let height = 40 + 36 * cases.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"640\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-weight=\"bold\">Training iterations per second</text>\n"
    );
    for (i, (name, speed, mosaics)) in cases.iter().enumerate() {
        let y = 36 + 36 * i;
        let width = 300.0 * speed / most;
        let more = mosaics.map_or_else(String::new, |m| format!(", {m:.2} mosaics/s"));
        svg += &format!(
            "<text x=\"10\" y=\"{}\">{name}</text>\n\
             <rect x=\"170\" y=\"{y}\" width=\"{width:.1}\" height=\"24\" fill=\"#4477aa\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{speed:.1}{more}</text>\n",
            y + 17,
            178.0 + width,
            y + 17,
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_numbers() {
        let svg = plot(&json!([
            {"case": "plain", "iterations_per_second": 10.0, "mosaics_per_second": null},
            {"case": "engine", "iterations_per_second": 5.0, "mosaics_per_second": 1.5},
        ]));
        assert!(
            svg.contains("width=\"300.0\"") && svg.contains("width=\"150.0\""),
            "{svg}"
        );
        assert!(svg.contains("1.50 mosaics/s") && svg.ends_with("</svg>\n"));
        assert!(plot(&json!([])).contains("</svg>"));
    }

    #[test]
    fn medians() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!(median(&mut []).abs() < 1e-12);
    }
}
