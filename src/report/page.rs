//! Everything on one page.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::figures::{Contents, EngineFacts, Figures, reason};
use super::{charts, pictures};
use crate::bank::format::FOREGROUND;
use crate::bank::{Bank, InstanceRecord, Kind, MosaicRecord, RecordId};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::mask::{BinaryMask, Rle};
use crate::record::{Region, RegionTrace};

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// Bytes that the pictures of mosaics take, about, where nobody says how large they are.
const PICTURE_BYTES: u64 = 5 << 20;
/// Mosaics that tell how many bytes a picture takes.
const SAMPLES: usize = 12;
/// Longest side of an instance's picture, pixels.
const INSTANCE_PIXELS: u32 = 96;
/// Pictures of instances per category, at most.
const PER_CATEGORY: usize = 48;
/// Categories that the overview lists as farthest below the target.
const LISTED: usize = 12;
/// Uses that have a bar of their own; more share the last one.
const USE_BARS: u64 = 6;

/// How much goes on the page. The figures are always those of the whole bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Mosaics with pictures, at most.
    pub mosaics: usize,
    /// Instances with pictures, at most.
    pub instances: usize,
    /// Longest side of a mosaic's picture, pixels; none: as large as a page of a few megabytes
    /// allows.
    pub pixels: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mosaics: 1000,
            instances: 400,
            pixels: None,
        }
    }
}

impl Options {
    fn validate(self) -> Result<()> {
        match self.pixels {
            Some(pixels) if !(32..=2048).contains(&pixels) => Err(Error::value(
                "longest side of the report's pictures",
                "32..=2048 pixels",
                pixels,
            )),
            _ => Ok(()),
        }
    }
}

/// A finished page.
#[derive(Debug, Clone)]
pub struct Report {
    /// The file's text.
    pub html: String,
    /// Mosaics that it shows.
    pub mosaics: usize,
    /// Instances that it shows.
    pub instances: usize,
    /// The figures on it.
    pub figures: Figures,
}

/// A mosaic as the page's script reads it. Outlines and boxes are in the mosaic's own pixels.
#[derive(Serialize)]
struct PageMosaic {
    id: String,
    size: Size,
    /// JPEG, base64.
    picture: String,
    uses: u32,
    seed: String,
    model: String,
    weights: String,
    recipe: String,
    /// Device, type and threads, where its record says all that `mosaicbank reproduce` needs.
    made_on: Option<String>,
    regions: Vec<PageRegion>,
    objects: Vec<PageObject>,
}

#[derive(Serialize)]
struct PageRegion {
    #[serde(rename = "box")]
    bbox: PixelBox,
    prompt: String,
    category: u32,
    verdict: String,
    /// The verdict without its numbers; none for a region with an instance.
    reason: Option<String>,
    trace: Option<PageTrace>,
}

/// How a region came to its verdict.
#[derive(Serialize)]
struct PageTrace {
    /// The part of the picture that its instance may lie in.
    own: PixelBox,
    /// Cells of the attention map.
    cells: Size,
    /// Row-major, a byte per cell, base64.
    levels: String,
    threshold: f32,
    /// Outline of the cells above the threshold, in cells.
    above: String,
    /// Outline of the refined mask, in pixels of the region.
    refined: String,
    /// Where in the prompt the words stand that the attention is of: characters from and to.
    subject: Option<[u32; 2]>,
    guidance: Option<f64>,
}

#[derive(Serialize)]
struct PageObject {
    category: u32,
    #[serde(rename = "box")]
    bbox: PixelBox,
    area: u64,
    score: f32,
    region: u32,
    outline: String,
}

/// An instance as the page's script reads it. Its outline is in the crop's own pixels.
#[derive(Serialize)]
struct PageInstance {
    id: String,
    category: u32,
    size: Size,
    picture: String,
    outline: String,
    area: u64,
    score: f32,
    scores: BTreeMap<String, f32>,
    uses: u32,
    /// The mosaic that it is from; empty for labelled data.
    mosaic: String,
    region: u32,
    source: String,
    prompt: String,
}

#[derive(Serialize)]
struct Data<'a> {
    figures: &'a Figures,
    /// The directory as a shell takes it.
    bank: String,
    mosaics: Vec<PageMosaic>,
    instances: Vec<PageInstance>,
}

/// Makes the page. `engines` are those of the bank; `progress` is called with (done, total) from
/// several threads and may stop the work.
///
/// # Errors
/// Those of the bank's reader, what `progress` returns, and [`Error::Value`] for an option out of
/// bounds. Damaged records are counted and left out.
pub fn build(
    bank: &Bank,
    engines: Vec<EngineFacts>,
    options: Options,
    progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Report> {
    options.validate()?;
    let mut figures = Figures::gather(bank, engines)?;
    figures.scan(bank, &mut |_, _| progress(0, 0))?;
    let mosaic_ids = spread(bank, Kind::Mosaic, options.mosaics, usize::MAX)?;
    let instance_ids = spread(bank, Kind::Instance, options.instances, PER_CATEGORY)?;
    let pixels = match options.pixels {
        Some(pixels) => pixels,
        None => {
            let apart = mosaic_ids.len().div_ceil(SAMPLES).max(1);
            let samples = mosaic_ids
                .iter()
                .step_by(apart)
                .filter_map(|&id| bank.mosaic(id).ok())
                .map(|m| (m.image, m.size))
                .collect();
            pictures::side_for(samples, mosaic_ids.len(), PICTURE_BYTES)?
        }
    };
    let total = (mosaic_ids.len() + instance_ids.len()) as u64;
    let done = AtomicU64::new(0);
    let step = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
    // A pool of its own, gone when the page is made.
    let pool = rayon::ThreadPoolBuilder::new()
        .build()
        .map_err(|e| Error::backend("starting threads for the report", e))?;
    let (mosaics, instances) = pool.install(|| -> Result<_> {
        let mosaics: Vec<Option<PageMosaic>> = mosaic_ids
            .par_iter()
            .map(|&id| {
                step()?;
                let uses = bank.use_count(Kind::Mosaic, id)?.unwrap_or_default();
                readable(bank.mosaic(id))
                    .map(|m| page_mosaic(m, uses, pixels))
                    .transpose()
            })
            .collect::<Result<_>>()?;
        let instances: Vec<Option<PageInstance>> = instance_ids
            .par_iter()
            .map(|&id| {
                step()?;
                let uses = bank.use_count(Kind::Instance, id)?.unwrap_or_default();
                readable(bank.instance(id))
                    .map(|i| page_instance(i, uses))
                    .transpose()
            })
            .collect::<Result<_>>()?;
        Ok((mosaics, instances))
    })?;
    let data = Data {
        figures: &figures,
        bank: shell_word(&bank.path().to_string_lossy()),
        mosaics: mosaics.into_iter().flatten().collect(),
        instances: instances.into_iter().flatten().collect(),
    };
    let html = render(bank, &data)?;
    let (mosaics, instances) = (data.mosaics.len(), data.instances.len());
    Ok(Report {
        html,
        mosaics,
        instances,
        figures,
    })
}

/// A damaged record is named in the log and left out.
fn readable<T>(record: Result<T>) -> Option<T> {
    record
        .inspect_err(|e| tracing::warn!("left out of the report: {e}"))
        .ok()
}

/// At most `most` records, evenly over the categories (`per_category` of each at most): of a bank
/// that is too large for a page, every category is seen.
fn spread(bank: &Bank, kind: Kind, most: usize, per_category: usize) -> Result<Vec<RecordId>> {
    let lists = (0..bank.categories().len() as u32)
        .map(|c| bank.ids_of(kind, c))
        .collect::<Result<Vec<_>>>()?;
    let longest = lists.iter().map(Vec::len).max().unwrap_or_default();
    let mut chosen = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for turn in 0..longest.min(per_category) {
        for list in &lists {
            // The newest are listed last.
            let at = list.len().checked_sub(turn + 1);
            if let Some(&id) = at.and_then(|at| list.get(at))
                && chosen.len() < most
                && seen.insert(id)
            {
                chosen.push(id);
            }
        }
    }
    // Mosaics that are listed nowhere: nothing was kept of them.
    if kind == Kind::Mosaic {
        for id in bank.ids(kind)? {
            if chosen.len() < most && seen.insert(id) {
                chosen.push(id);
            }
        }
    }
    Ok(chosen)
}

fn page_mosaic(m: MosaicRecord, uses: u32, pixels: u32) -> Result<PageMosaic> {
    let scale = pictures::scale(m.size, pixels);
    let objects = m
        .instances
        .iter()
        .map(|i| {
            Ok(PageObject {
                category: i.category,
                bbox: i.bbox,
                area: i.area,
                score: i.score,
                region: i.region,
                outline: pictures::outline(&i.mask, scale)?,
            })
        })
        .collect::<Result<_>>()?;
    let regions = m
        .regions
        .into_iter()
        .map(|r| {
            let trace = r.trace.as_ref().map(|t| page_trace(&r, t, scale));
            Ok(PageRegion {
                trace: trace.transpose()?,
                bbox: r.bbox,
                prompt: r.prompt,
                category: r.category,
                reason: (!r.verdict.is_kept()).then(|| reason(&r.verdict)),
                verdict: r.verdict.to_string(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(PageMosaic {
        id: m.id.to_string(),
        size: m.size,
        picture: pictures::thumbnail(m.image, m.size, pixels)?,
        uses,
        seed: m.seed.to_string(),
        made_on: m.generation.map(|made| {
            format!(
                "{} in {}, {} thread(s)",
                made.device, made.dtype, made.threads
            )
        }),
        model: m.model,
        weights: m.weights,
        recipe: m.recipe,
        regions,
        objects,
    })
}

fn page_trace(region: &Region<u32>, trace: &RegionTrace, scale: f64) -> Result<PageTrace> {
    let map = &trace.attention;
    let above = map
        .levels()
        .iter()
        .map(|&level| u8::from(f32::from(level) > 255.0 * trace.threshold))
        .collect();
    let above = Rle::encode(&BinaryMask::from_vec(map.size(), above)?)?;
    let planned = region.subject != [0, 0];
    Ok(PageTrace {
        own: region.own,
        cells: map.size(),
        levels: pictures::base64(map.levels()),
        threshold: trace.threshold,
        // Cells are large on the page: none is rounded off.
        above: pictures::outline(&above, 0.0)?,
        refined: pictures::outline(&trace.refined, scale)?,
        subject: planned.then_some(region.subject),
        guidance: planned.then_some(region.guidance),
    })
}

fn page_instance(i: InstanceRecord, uses: u32) -> Result<PageInstance> {
    let solid = i.alpha.iter().map(|&a| u8::from(a > FOREGROUND)).collect();
    let mask = Rle::encode(&BinaryMask::from_vec(i.size, solid)?)?;
    Ok(PageInstance {
        id: i.id.to_string(),
        category: i.category,
        size: i.size,
        picture: pictures::thumbnail(i.image, i.size, INSTANCE_PIXELS)?,
        outline: pictures::outline(&mask, pictures::scale(i.size, INSTANCE_PIXELS))?,
        area: i.area,
        score: i.score,
        scores: i.scores,
        uses,
        mosaic: i.provenance.mosaic,
        region: i.provenance.region,
        source: i.provenance.model,
        prompt: i.provenance.prompt,
    })
}

/// JSON that may stand in a `<script>` element: no `<` in it can end the element or open another.
fn embedded(value: &impl Serialize) -> Result<String> {
    let text =
        serde_json::to_string(value).map_err(|e| Error::backend("writing the report", e))?;
    Ok(text.replace('<', "\\u003c"))
}

/// A word as a POSIX shell takes it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
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
fn fingerprint(text: &str) -> String {
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

fn render(bank: &Bank, data: &Data<'_>) -> Result<String> {
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
    use crate::bank::{BankInfo, Category, Limits, MosaicInstance, Region};
    use crate::mask::Verdict;
    use crate::record::{AttentionMap, Scores};

    const EVIL: &str = "</script><img src=x onerror=alert(1)><!--<script> ' \" & `";

    fn category(id: u32, name: &str) -> Category {
        Category {
            id,
            name: name.into(),
            frequency: Some("r".into()),
            image_count: None,
        }
    }

    fn mosaic(seed: u64, categories: [u32; 2], words: &str) -> MosaicRecord {
        let size = Size::new(40, 60);
        let mut mask = BinaryMask::zeros(size);
        for y in 5..25 {
            mask.data_mut()[y * 60 + 3..y * 60 + 20].fill(1);
        }
        let mask = Rle::encode(&mask).unwrap();
        let region = |x0, category, verdict: &str| Region {
            prompt: words.into(),
            trace: (seed == 1).then(|| RegionTrace {
                planned: 0,
                attention: AttentionMap::shrink(
                    &(0..40 * 32)
                        .map(|i| (i % 32) as f32 / 31.0)
                        .collect::<Vec<_>>(),
                    Size::new(40, 32),
                )
                .unwrap(),
                threshold: 0.5,
                refined: Rle::encode(&BinaryMask::zeros(Size::new(40, 30))).unwrap(),
            }),
            ..Region::bare(
                PixelBox::new(x0, 0, x0 + 30, 40),
                category,
                Verdict::from_text(verdict),
            )
        };
        MosaicRecord {
            id: RecordId((u128::from(seed) + 1).to_be_bytes()),
            size,
            image: (0..size.area() * 3).map(|i| (i * 7 + seed) as u8).collect(),
            regions: vec![
                region(0, categories[0], "kept"),
                region(30, categories[1], words),
            ],
            instances: vec![MosaicInstance {
                category: categories[0],
                bbox: mask.bbox().unwrap(),
                area: mask.area(),
                mask,
                score: 0.5,
                scores: Scores::new(),
                region: 0,
            }],
            model: words.into(),
            weights: "w".into(),
            recipe: "r".into(),
            seed,
            generation: None,
        }
    }

    fn bank(dir: &std::path::Path, name: &str, mosaics: &[MosaicRecord]) -> Bank {
        let categories = vec![category(1, "cup"), category(2, EVIL), category(9, "none")];
        let info = BankInfo::new(categories, "", Limits::default()).unwrap();
        let bank = Bank::create(&dir.join(name), info).unwrap();
        bank.put_mosaics(mosaics).unwrap();
        bank
    }

    fn go_on(_: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn data(html: &str) -> serde_json::Value {
        let (_, rest) = html
            .split_once("<script type=\"application/json\" id=\"data\">")
            .unwrap();
        serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn what_a_record_says_is_text_and_never_markup() {
        let dir = tempfile::tempdir().unwrap();
        let records = [mosaic(1, [0, 1], EVIL), mosaic(2, [1, 0], "fine")];
        // The directory's name stands on the page, too.
        let bank = bank(dir.path(), "it's <b>a bank<!--", &records);
        let html = build(&bank, Vec::new(), Options::default(), &go_on)
            .unwrap()
            .html;
        assert!(!html.contains("<img src=x"), "a prompt became markup");
        assert!(!html.contains("<b>a bank") && !html.contains("<!--"));
        assert_eq!(html.matches("<script").count(), 2);
        assert_eq!(html.matches("</script").count(), 2);
        // And nothing of it is lost.
        let data = data(&html);
        assert_eq!(data["figures"]["categories"][1]["name"], EVIL);
        let prompts = data["mosaics"].as_array().unwrap().iter();
        assert!(prompts.clone().any(|m| m["regions"][0]["prompt"] == EVIL));
        let bank = data["bank"].as_str().unwrap();
        assert!(
            bank.starts_with('\'') && bank.ends_with("it'\\''s <b>a bank<!--'"),
            "{bank}"
        );
        // The page loads nothing, and runs no script but its own.
        assert!(!html.contains("http://") || html.matches("http://").count() == 1);
        assert!(html.contains("default-src 'none'") && html.contains(&fingerprint(SCRIPT)));
    }

    #[test]
    fn the_way_of_a_region_is_on_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let records = [mosaic(1, [0, 1], "a"), mosaic(2, [1, 0], "b")];
        let bank = bank(dir.path(), "bank", &records);
        let report = build(&bank, Vec::new(), Options::default(), &go_on).unwrap();
        let data = data(&report.html);
        for m in data["mosaics"].as_array().unwrap() {
            let trace = &m["regions"][0]["trace"];
            assert_eq!(trace.is_null(), m["seed"] == "2");
            if !trace.is_null() {
                // Ten by eight cells, attention rising to the right: the right half is above.
                assert_eq!(
                    trace["cells"],
                    serde_json::json!({"height": 10, "width": 8})
                );
                assert_eq!(trace["above"], "M8 0l0 10 -4 0 0 -10z");
                assert_eq!(trace["refined"], "");
                assert_eq!(trace["own"], serde_json::json!([0, 0, 30, 40]));
            }
        }
    }

    #[test]
    fn figures_are_of_the_whole_bank_and_pictures_of_every_category() {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<_> = (0..9)
            .map(|i| mosaic(i, if i == 4 { [1, 0] } else { [0, 1] }, "the mask is empty"))
            .collect();
        let bank = bank(dir.path(), "bank", &records);
        bank.draw_mosaic(1, &mut || 0).unwrap().unwrap();
        let options = Options {
            mosaics: 2,
            instances: 1,
            pixels: Some(32),
        };
        let report = build(&bank, Vec::new(), options, &go_on).unwrap();
        assert_eq!((report.mosaics, report.instances), (2, 1));
        let data = data(&report.html);
        let mut expected = Figures::gather(&bank, Vec::new()).unwrap();
        expected.scan(&bank, &mut go_on).unwrap();
        assert_eq!(data["figures"], serde_json::to_value(&expected).unwrap());
        let contents = expected.contents.unwrap();
        assert_eq!((contents.regions, contents.rejected), (18, 9));
        assert_eq!(contents.mosaics_by_uses, [(0, 8), (1, 1)]);
        assert_eq!(contents.instances_by_uses, [(0, 9)]);
        assert_eq!(contents.mosaics_by_regions, [(2, 9)]);
        assert_eq!(contents.reasons[0].reason, "the mask is empty");
        let cup = expected.categories[0].contents.unwrap();
        assert_eq!((cup.regions, cup.rejected, cup.unused_mosaics), (9, 1, 8));
        let evil = expected.categories[1].contents.unwrap();
        assert_eq!((evil.mosaic_uses, evil.unused_mosaics), (1, 0));
        // Both categories that are in stock are on the page.
        let of = |m: &serde_json::Value| m["objects"][0]["category"].as_u64();
        let mut shown: Vec<_> = data["mosaics"].as_array().unwrap().iter().map(of).collect();
        shown.sort_unstable();
        assert_eq!(shown, [Some(0), Some(1)]);
        assert!(report.html.contains("pictures of 2 of 9 mosaics"));
    }

    #[test]
    fn an_empty_bank_has_a_page_and_bad_options_none() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path(), "bank", &[]);
        let html = build(&bank, Vec::new(), Options::default(), &go_on)
            .unwrap()
            .html;
        assert!(html.contains("No engine has told of itself"));
        let wrong = Options {
            pixels: Some(8),
            ..Options::default()
        };
        let e = build(&bank, Vec::new(), wrong, &go_on).unwrap_err();
        assert!(e.to_string().contains("32..=2048"), "{e}");
    }

    #[test]
    fn words_for_a_shell() {
        for (text, word) in [
            ("/a/b-c", "/a/b-c"),
            ("/a b", "'/a b'"),
            ("it's", "'it'\\''s'"),
            ("$(x)", "'$(x)'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }
}
