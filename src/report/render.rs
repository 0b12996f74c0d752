//! Figures and records into the page's text.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::figures::{Contents, Figures};
use super::records::{PageInstance, PageMosaic};
use super::{charts, pictures};
use crate::bank::Bank;
use crate::error::{Error, Result};

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
pub(super) const SCRIPT: &str = include_str!("report.js");

/// Categories that the overview lists as farthest below the target.
const LISTED: usize = 12;
/// Uses that have a bar of their own; more share the last one.
const USE_BARS: u64 = 6;

/// What the page's script and template get.
#[derive(Serialize)]
pub(super) struct Data<'a> {
    pub figures: &'a Figures,
    /// The directory as a shell takes it.
    pub bank: String,
    pub mosaics: Vec<PageMosaic>,
    pub instances: Vec<PageInstance>,
}

/// JSON that may stand in a `<script>` element: no `<` in it can end the element or open another.
fn embedded(value: &impl Serialize) -> Result<String> {
    let text =
        serde_json::to_string(value).map_err(|e| Error::backend("writing the report", e))?;
    Ok(text.replace('<', "\\u003c"))
}

/// A word as a POSIX shell takes it. (A path holds no NUL, the one thing that no shell takes.)
pub(super) fn shell_word(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.replace('\0', ""), Cow::into_owned)
}

/// Text as the value of a link's parameter.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(b).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

/// What a `Content-Security-Policy` calls a script or a style: nothing else may run or apply.
pub(super) fn fingerprint(text: &str) -> String {
    format!("'sha256-{}'", pictures::base64(&Sha256::digest(text)))
}

/// A number with its digits in groups of three.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A bar with its name, its figure, and its length as a share of the longest.
#[derive(Serialize)]
struct Bar {
    name: String,
    /// Where on the page it leads; none: nowhere.
    link: Option<String>,
    value: u64,
    /// Percent.
    length: f64,
}

/// Anything as the template reads it.
fn value(of: &impl Serialize) -> Value {
    Value::from(Serde(of))
}

fn bars(items: impl IntoIterator<Item = (String, Option<String>, u64)>) -> Value {
    let items: Vec<_> = items.into_iter().collect();
    let most = items.iter().map(|i| i.2).max().unwrap_or_default().max(1);
    let bars: Vec<Bar> = items
        .into_iter()
        .map(|(name, link, value)| Bar {
            name,
            link,
            value,
            length: 100.0 * value as f64 / most as f64,
        })
        .collect();
    value(&bars)
}

fn use_bars(uses: &[(u64, u64)]) -> Value {
    let mut grouped = BTreeMap::<u64, u64>::new();
    for &(uses, records) in uses {
        *grouped.entry(uses.min(USE_BARS)).or_default() += records;
    }
    bars(grouped.into_iter().map(|(uses, records)| {
        let name = match uses {
            0 => "never".to_owned(),
            1 => "once".to_owned(),
            n if n == USE_BARS => format!("{n} times or more"),
            n => format!("{n} times"),
        };
        (name, None, records)
    }))
}

/// Categories, stock and demand of one band of rarity.
#[derive(Serialize, Default)]
struct Band {
    name: &'static str,
    letter: &'static str,
    categories: u64,
    stocked: u64,
    at_target: u64,
    instances: u64,
    missed: u64,
}

fn bands(figures: &Figures) -> Vec<Band> {
    let mut bands: HashMap<&str, Band> = HashMap::new();
    let words = [
        ("r", "rare"),
        ("c", "common"),
        ("f", "frequent"),
        ("", "not said"),
    ];
    for c in &figures.categories {
        let letter = c.frequency.as_deref().unwrap_or_default();
        let (letter, name) = words
            .into_iter()
            .find(|(l, _)| *l == letter)
            .unwrap_or(("", "not said"));
        let band = bands.entry(letter).or_default();
        (band.letter, band.name) = (letter, name);
        band.categories += 1;
        band.stocked += u64::from(c.mosaics + c.instances > 0);
        let unused = c.contents.map_or(0, |k| k.unused_mosaics);
        band.at_target += u64::from(figures.target.is_some_and(|t| unused >= t));
        // Mosaics are not added up: one may be listed under several categories.
        band.instances += c.instances;
        band.missed += c.missed;
    }
    words
        .into_iter()
        .filter_map(|(letter, _)| bands.remove(letter))
        .collect()
}

pub(super) fn render(bank: &Bank, data: &Data<'_>) -> Result<String> {
    let figures = data.figures;
    let failed = |e| Error::backend("writing the report", e);
    let mut environment = Environment::new();
    environment.add_filter("number", number);
    environment.add_filter("mib", |n: u64| {
        format!("{:.1}", n as f64 / f64::from(1 << 20))
    });
    environment.add_filter("short", |n: f64| format!("{n:.2}"));
    environment
        .add_template("report.html", TEMPLATE)
        .map_err(failed)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64());
    let contents = figures.contents.clone().unwrap_or_default();
    let Contents {
        regions, rejected, ..
    } = contents;
    // With a target: those that lack most, rarest first. Without: the smallest stock.
    let mut short: Vec<(u64, usize)> = figures
        .categories
        .iter()
        .enumerate()
        .map(|(i, c)| (c.contents.map_or(0, |k| k.unused_mosaics), i))
        .filter(|(unused, _)| figures.target.is_some_and(|t| *unused < t))
        .collect();
    let below_target = short.len();
    let rarity = |i: usize| {
        let band = figures
            .categories
            .get(i)
            .and_then(|c| c.frequency.as_deref());
        charts::BANDS.iter().position(|b| Some(*b) == band)
    };
    short.sort_by_key(|&(unused, i)| (unused, rarity(i).unwrap_or(charts::BANDS.len()), i));
    let lacking: Vec<Value> = short
        .iter()
        .take(LISTED)
        .filter_map(|&(unused, i)| {
            let c = figures.categories.get(i)?;
            let target = figures.target.unwrap_or_default().max(1);
            Some(context! {
                name => c.name.clone(), index => i, unused, missed => c.missed,
                length => 100.0 * unused as f64 / target as f64,
            })
        })
        .collect();
    let name = bank
        .path()
        .file_name()
        .map_or_else(|| "bank".into(), |n| n.to_string_lossy().into_owned());
    let counted = |n: u64, word: &str| {
        let plural = if n == 1 { "" } else { "s" };
        format!("{n} {word}{plural}")
    };
    let page = context! {
        name,
        figures => value(figures),
        made_by => format!("mosaicbank {}", env!("CARGO_PKG_VERSION")),
        created_by => bank.info().created_by.clone(),
        now,
        style => Value::from_safe_string(STYLE.into()),
        script => Value::from_safe_string(SCRIPT.into()),
        style_hash => Value::from_safe_string(fingerprint(STYLE)),
        script_hash => Value::from_safe_string(fingerprint(SCRIPT)),
        data => Value::from_safe_string(embedded(data)?),
        shown_mosaics => data.mosaics.len(),
        shown_instances => data.instances.len(),
        stocked => figures.categories.iter().filter(|c| c.mosaics + c.instances > 0).count(),
        categories => figures.categories.len(),
        below_target,
        lacking,
        bands => value(&bands(figures)),
        stock_chart => Value::from_safe_string(charts::stock(figures)),
        instance_rate => charts::rate(&figures.engines, charts::Rate::Instances, now)
            .map(Value::from_safe_string),
        reject_rate => charts::rate(&figures.engines, charts::Rate::Rejected, now)
            .map(Value::from_safe_string),
        damaged => contents.damaged,
        regions,
        rejected,
        rejected_percent => if regions > 0 { 100.0 * rejected as f64 / regions as f64 } else { 0.0 },
        reasons => bars(contents.reasons.iter().map(|r| {
            let link = format!("#/gallery?reason={}", percent(&r.reason));
            (r.reason.clone(), Some(link), r.regions)
        })),
        by_regions => bars(contents.mosaics_by_regions.iter().map(|&(n, mosaics)| {
            (counted(n, "region"), Some(format!("#/gallery?regions={n}")), mosaics)
        })),
        mosaic_uses => use_bars(&contents.mosaics_by_uses),
        instance_uses => use_bars(&contents.instances_by_uses),
        unused_mosaics => unused(&contents.mosaics_by_uses),
        unused_instances => unused(&contents.instances_by_uses),
    };
    environment
        .get_template("report.html")
        .and_then(|t| t.render(page))
        .map_err(failed)
}

fn unused(uses: &[(u64, u64)]) -> u64 {
    uses.iter().find(|(uses, _)| *uses == 0).map_or(0, |u| u.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        for text in [
            "/a/b-c", "/a b", "it's", "$(x)", "", "!x", "-e", "a\nb", "'\"`\\",
        ] {
            let command = format!("echo {}", shell_word(text));
            assert_eq!(shlex::split(&command).unwrap(), ["echo", text], "{command}");
        }
        assert_eq!(shell_word("/a/b-c"), "/a/b-c");
        assert_eq!(shell_word("/a b"), "'/a b'");
    }
}
