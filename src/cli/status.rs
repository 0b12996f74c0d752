//! `mosaicbank status`: the engines of a bank, its stock, and what trainers ask for.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::context::{catch_stop, check_stop};
use crate::bank::Bank;
use crate::engine::control::{PAUSE_FILE, set_paused};
use crate::error::{Error, Result};
use crate::priority::supply::Supply;
use crate::status::{EngineStatus, now};

/// Columns of every line.
const WIDTH: usize = 80;
/// Categories that are listed, those that lack most first.
const LISTED: usize = 12;
/// Between two looks of `--watch` where there is no terminal to draw over.
const LOG_EVERY: u32 = 10;

/// Show the engines of a bank, its stock, and what trainers ask for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    mosaicbank status --bank bank/ --watch\n  \
    mosaicbank status --bank bank/ --pause")]
pub struct StatusArgs {
    /// The bank's directory
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// Go on until Ctrl-C: drawn anew every second, or every ten where there is no terminal
    #[arg(long)]
    watch: bool,
    /// Everything, as JSON (with --watch a line each second)
    #[arg(long)]
    json: bool,
    /// Pause the bank's engines first
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Let paused engines go on first
    #[arg(long)]
    resume: bool,
}

/// Runs the command.
///
/// # Errors
/// As [`Bank::open`]; [`Error::Interrupted`] never: Ctrl-C is how `--watch` ends.
pub fn run(args: &StatusArgs) -> Result<()> {
    let bank = Bank::open(&args.bank)?;
    if args.pause || args.resume {
        set_paused(bank.path(), args.pause)?;
    }
    if !args.watch {
        return print(&bank, args, false);
    }
    catch_stop()?;
    let terminal = std::io::stdout().is_terminal();
    let mut ticks: u32 = 0;
    loop {
        if terminal || args.json || ticks.is_multiple_of(LOG_EVERY) {
            print(&bank, args, terminal && !args.json)?;
        }
        ticks = ticks.wrapping_add(1);
        for _ in 0..10 {
            if check_stop().is_err() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn print(bank: &Bank, args: &StatusArgs, over: bool) -> Result<()> {
    let text = if args.json {
        let value = as_json(bank)?;
        let text = if args.watch {
            serde_json::to_string(&value)
        } else {
            serde_json::to_string_pretty(&value)
        };
        text.map_err(|e| Error::backend("status", e))? + "\n"
    } else {
        as_text(bank)?
    };
    let mut out = std::io::stdout().lock();
    let before = if over { "\x1b[2J\x1b[H" } else { "" };
    let after = if args.watch && !args.json { "\n" } else { "" };
    match write!(out, "{before}{text}{after}").and_then(|()| out.flush()) {
        // Whoever read it has gone.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Error::Interrupted),
        Err(e) => Err(Error::io("standard output", e)),
        Ok(()) => Ok(()),
    }
}

fn as_json(bank: &Bank) -> Result<Value> {
    let stock = bank.stock()?;
    let engines = EngineStatus::read_all(bank.path())?
        .into_iter()
        .map(|e| {
            let (state, alive) = (e.observed(), e.is_alive());
            let mut value =
                serde_json::to_value(&e).map_err(|e| Error::backend("status", e))?;
            if let Value::Object(map) = &mut value {
                map.insert("state".into(), state.name().into());
                map.insert("alive".into(), alive.into());
            }
            Ok(value)
        })
        .collect::<Result<Vec<_>>>()?;
    let supply = Supply::of(bank)?;
    let demand = bank.board().map_or_else(Vec::new, |b| b.snapshot());
    let categories: Vec<Value> = bank
        .categories()
        .iter()
        .enumerate()
        .map(|(c, category)| {
            let d = demand.get(c).copied().unwrap_or_default();
            let of = |list: &[u64]| list.get(c).copied().unwrap_or_default();
            json!({
                "name": category.name, "mosaics": of(&stock.mosaics),
                "instances": of(&stock.instances), "asked": d.asked,
                "served_fresh": d.served_fresh, "served_again": d.served_again,
                "missed": d.missed, "weight": d.weight, "size_factor": d.size_factor,
                "supplied": supply.has(c),
            })
        })
        .collect();
    Ok(json!({
        "bank": bank.path(),
        "shortfall": supply.shortfall(bank, &[]),
        "paused": bank.path().join(PAUSE_FILE).exists(),
        "mosaics": stock.total_mosaics,
        "instances": stock.total_instances,
        "bytes": stock.bytes,
        "engines": engines,
        "categories": categories,
    }))
}

fn as_text(bank: &Bank) -> Result<String> {
    let mut out = String::new();
    let stock = bank.stock()?;
    let empty = stock.mosaics.iter().filter(|n| **n == 0).count();
    line(&mut out, &format!("bank {}", bank.path().display()));
    line(
        &mut out,
        &format!(
            "{} mosaics, {} instances, {}; {empty} of {} categories empty",
            stock.total_mosaics,
            stock.total_instances,
            indicatif::HumanBytes(stock.bytes),
            bank.categories().len()
        ),
    );
    if let Some(shortfall) = Supply::of(bank)?.shortfall(bank, &[]) {
        wrapped(&mut out, &shortfall);
    }
    if bank.path().join(PAUSE_FILE).exists() {
        line(&mut out, "engines are paused (mosaicbank status --resume)");
    }
    line(&mut out, "");
    let engines = EngineStatus::read_all(bank.path())?;
    if engines.is_empty() {
        line(&mut out, "no engine has worked on this bank");
    } else {
        line(
            &mut out,
            &format!(
                "{:<30} {:<8} {:>7} {:>6} {:>7} {:>5} {:>8}",
                "ENGINE", "STATE", "MOSAICS", "INST/S", "REJECTS", "DUTY", "SEEN"
            ),
        );
    }
    for engine in &engines {
        engine_lines(&mut out, engine);
    }
    line(&mut out, "");
    demand_lines(&mut out, bank, &stock.mosaics);
    Ok(out)
}

fn engine_lines(out: &mut String, e: &EngineStatus) {
    let rejects = if e.regions > 0 {
        format!("{:.0} %", 100.0 * e.rejected as f64 / e.regions as f64)
    } else {
        "-".into()
    };
    let duty = e
        .measured_duty
        .map_or_else(|| "-".into(), |d| format!("{d:.2}"));
    line(
        out,
        &format!(
            "{:<30} {:<8} {:>7} {:>6.2} {rejects:>7} {duty:>5} {:>8}",
            cut(&e.id, 30),
            e.observed().name(),
            e.mosaics,
            e.instances_per_second,
            age(now() - e.time)
        ),
    );
    let mut detail = format!(
        "  {} of {} ({}), {}, batch {}",
        e.command,
        if e.model.is_empty() {
            "no model"
        } else {
            &e.model
        },
        e.device,
        if e.missing == 0 && e.categories > 0 {
            "all stocked".to_owned()
        } else {
            format!("{}/{} stocked", e.stocked, e.categories)
        },
        e.batch
    );
    if e.halved > 0 {
        let _ = write!(detail, " (halved {} times)", e.halved);
    }
    line(out, &detail);
    if e.dropped > 0 {
        let seeds: Vec<String> = e.dropped_seeds.iter().rev().map(u64::to_string).collect();
        line(
            out,
            &format!("  {} dropped, seeds {}", e.dropped, seeds.join(" ")),
        );
    }
    if let Some(error) = &e.last_error {
        let text = format!(
            "last of {} errors, {} ago: {}",
            e.errors,
            age(now() - error.time),
            error.message
        );
        wrapped(out, &text);
    }
}

fn demand_lines(out: &mut String, bank: &Bank, mosaics: &[u64]) {
    let demand = bank.board().map_or_else(Vec::new, |b| b.snapshot());
    let mut asked: Vec<usize> = (0..demand.len())
        .filter(|&c| demand.get(c).is_some_and(|d| d.asked > 0))
        .collect();
    if asked.is_empty() {
        line(out, "no trainer has asked for anything");
        return;
    }
    asked.sort_by_key(|&c| {
        demand
            .get(c)
            .map(|d| std::cmp::Reverse((d.missed, d.asked)))
    });
    line(
        out,
        &format!(
            "{:<30} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "CATEGORY", "ASKED", "FRESH", "AGAIN", "MISSED", "MOSAICS"
        ),
    );
    for &c in asked.iter().take(LISTED) {
        let (Some(d), Some(category)) = (demand.get(c), bank.categories().get(c)) else {
            continue;
        };
        line(
            out,
            &format!(
                "{:<30} {:>8} {:>8} {:>8} {:>8} {:>8}",
                cut(&category.name, 30),
                d.asked,
                d.served_fresh,
                d.served_again,
                d.missed,
                mosaics.get(c).copied().unwrap_or_default()
            ),
        );
    }
    if asked.len() > LISTED {
        line(out, &format!("and {} more", asked.len() - LISTED));
    }
}

/// The first `width` characters, without control characters.
fn cut(text: &str, width: usize) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if plain.chars().count() <= width {
        return plain;
    }
    let mut short: String = plain.chars().take(width.saturating_sub(3)).collect();
    short.push_str("...");
    short
}

fn line(out: &mut String, text: &str) {
    out.push_str(cut(text, WIDTH).trim_end());
    out.push('\n');
}

/// A message over several lines, each indented.
fn wrapped(out: &mut String, text: &str) {
    let mut current = String::from(" ");
    for word in text.split_whitespace() {
        if current.chars().count() + 1 + word.chars().count() > WIDTH && current.len() > 3 {
            line(out, &current);
            current = String::from("   ");
        }
        current.push(' ');
        current.push_str(word);
    }
    line(out, &current);
}

/// How long ago, in few characters.
fn age(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..=2 => "now".into(),
        3..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        7200..=172_799 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{BankInfo, Category, Limits};
    use crate::status::State;

    #[test]
    fn every_line_fits_80_columns_and_says_what_happened() {
        let dir = tempfile::tempdir().unwrap();
        let long = "a_category_with_quite_a_long_name_indeed_and_then_some";
        let categories = (1..=30)
            .map(|id| Category {
                id,
                name: format!("{long}_{id}"),
                frequency: None,
                image_count: None,
            })
            .collect();
        let info = BankInfo::new(categories, "", Limits::default()).unwrap();
        let bank = Bank::create(&dir.path().join("bank"), info).unwrap();
        assert!(as_text(&bank).unwrap().contains("no engine"));
        for c in 0..20 {
            bank.board().unwrap().asked(c);
            bank.board().unwrap().missed(c);
        }
        let mut beat = EngineStatus::new("engine");
        beat.id = "x".repeat(100);
        beat.state = State::Blocked;
        beat.model = "m".repeat(90);
        (beat.mosaics, beat.regions, beat.rejected) = (123_456_789, 900, 300);
        (0..40).for_each(|s| beat.record_drop(u64::MAX - s));
        beat.record_error(format!(
            "No space left on device\n\x1b[31m{}",
            "word ".repeat(60)
        ));
        beat.write(bank.path()).unwrap();
        let text = as_text(&bank).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line:?}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        for words in [
            "blocked",
            "33 %",
            "No space left",
            "and 8 more",
            "40 dropped",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let value = as_json(&bank).unwrap();
        assert_eq!(value["engines"][0]["state"], "blocked");
        assert_eq!(value["categories"][3]["missed"], 1);
        assert_eq!(value["categories"][3]["supplied"], false);
        assert!(
            text.contains("30 of 30 categories have no supply"),
            "{text}"
        );
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (0.5, "now"),
            (59.0, "59 s"),
            (300.0, "5 min"),
            (9e4, "25 h"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
