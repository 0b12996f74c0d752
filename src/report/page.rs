//! Everything on one page.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::figures::{EngineFacts, Figures};
use super::pictures;
use super::records::{PageInstance, PageMosaic, page_instance, page_mosaic};
use super::render::{Data, render, shell_word};
use crate::bank::{Bank, Kind, RecordId};
use crate::error::{Error, Result};

/// Bytes that the pictures of mosaics take, about, where nobody says how large they are.
const PICTURE_BYTES: u64 = 5 << 20;
/// Mosaics that tell how many bytes a picture takes.
const SAMPLES: usize = 12;
/// Pictures of instances per category, at most.
const PER_CATEGORY: usize = 48;
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

#[cfg(test)]
mod tests {
    use super::super::render::{SCRIPT, fingerprint};
    use super::*;
    use crate::bank::{BankInfo, Category, Limits, MosaicInstance, MosaicRecord, Region};
    use crate::geometry::{PixelBox, Size};
    use crate::mask::{BinaryMask, Rle, Verdict};
    use crate::record::{AttentionMap, RegionTrace, Scores};

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
        let words = shlex::split(bank).unwrap();
        assert!(
            words.len() == 1 && words[0].ends_with("it's <b>a bank<!--"),
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
        assert!(html.contains("No engine has reported yet"));
        let wrong = Options {
            pixels: Some(8),
            ..Options::default()
        };
        let e = build(&bank, Vec::new(), wrong, &go_on).unwrap_err();
        assert!(e.to_string().contains("32..=2048"), "{e}");
    }
}
