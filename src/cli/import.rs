//! `mosaicbank import`: instances and mosaics from elsewhere into a bank.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};

use super::context::{catch_stop, check_stop};
use super::limits::LimitArgs;
use super::progress::Counter;
use crate::bank::import::{Class, instance_of_mask, read_picture, read_pool};
use crate::bank::{Bank, BankInfo, Category, InstanceRecord, Limits, PutReport};
use crate::dataset::{CategoryTable, Dataset, Entry, Exporter, folder};
use crate::error::{Error, Result};
use crate::record::Mosaic;

/// Instances that are written in one commit.
const BATCH: usize = 64;

/// Fill a bank from a labelled dataset, an instance pool, or a folder of mosaics
///
/// A labelled dataset makes plain Copy-Paste: its own objects are pasted. The bank is made
/// when it does not exist.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["annotations", "pool", "mosaics"]))]
#[command(after_help = "Examples:\n  \
    mosaicbank import --bank bank/ --annotations train.json --images train2017/\n  \
    mosaicbank import --bank bank/ --pool instance_pools.json --categories lvis_v1_train.json\n  \
    mosaicbank import --bank bank/ --mosaics out/")]
pub struct ImportArgs {
    /// The bank's directory
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// LVIS or COCO annotation file: its objects become instances
    #[arg(long, value_name = "JSON", requires = "images")]
    annotations: Option<PathBuf>,
    /// Folder of the dataset's images
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Instance pool of X-Paste or DiverGen: class index (or name) -> RGBA pictures
    #[arg(long, value_name = "JSON")]
    pool: Option<PathBuf>,
    /// Folder that the pool's relative paths start from [default: the pool's own]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder that `mosaicbank generate` or `mosaicbank export --format mosaics` wrote
    #[arg(long, value_name = "DIR")]
    mosaics: Option<PathBuf>,
    /// Annotation file (or list of categories) with the new bank's categories [default: the
    /// dataset's, or the mosaics']
    #[arg(long, value_name = "JSON")]
    categories: Option<PathBuf>,
    /// Objects with fewer pixels are left out
    #[arg(long, value_name = "PIXELS", default_value_t = 400)]
    min_area: u64,
    /// Most instances taken of each category of a dataset; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 0)]
    per_category: u64,
    #[command(flatten)]
    limits: LimitArgs,
}

fn open_or_create(args: &ImportArgs, own: Option<&CategoryTable>) -> Result<Bank> {
    if args.bank.join(crate::bank::INFO_FILE).exists() {
        let bank = Bank::open(&args.bank)?;
        args.limits.apply(&bank)?;
        return Ok(bank);
    }
    let given = args
        .categories
        .as_ref()
        .map(CategoryTable::read)
        .transpose()?;
    let table = given.as_ref().or(own).ok_or_else(|| {
        Error::value(
            "--categories",
            "an annotation file, since the bank does not exist yet",
            "nothing",
        )
    })?;
    // What is imported was chosen: no limit per category.
    let limits = Limits {
        max_per_category: 0,
        ..Limits::default()
    };
    let bank = Bank::open_or_create(&args.bank, || {
        BankInfo::new(Category::of_table(table)?, "", args.limits.over(limits))
    })?;
    // Another process may have been faster.
    args.limits.apply(&bank)?;
    Ok(bank)
}

/// Instances on their way into a bank.
struct Batch<'b> {
    bank: &'b Bank,
    waiting: Vec<InstanceRecord>,
    report: PutReport,
}

impl Batch<'_> {
    fn flush(&mut self) -> Result<()> {
        let r = self
            .bank
            .put_instances(&std::mem::take(&mut self.waiting))?;
        self.report.added += r.added;
        self.report.known += r.known;
        self.report.evicted += r.evicted;
        Ok(())
    }

    /// Takes an instance; one that cannot be made is counted and named.
    fn take(&mut self, made: Result<InstanceRecord>) -> Result<()> {
        match made {
            Ok(instance) => self.waiting.push(instance),
            Err(e) => {
                tracing::warn!("left out: {e}");
                self.report.refused += 1;
            }
        }
        if self.waiting.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }
}

/// Runs `mosaicbank import` and says what was added.
///
/// # Errors
/// Files that cannot be read, categories that the bank does not have, a full disk.
pub fn run(args: &ImportArgs) -> Result<()> {
    catch_stop()?;
    let (bank, report) = match (&args.annotations, &args.pool, &args.mosaics) {
        (Some(json), ..) => annotations(args, json)?,
        (_, Some(json), _) => pool(args, json)?,
        (_, _, Some(folder)) => mosaics(args, folder)?,
        _ => {
            return Err(Error::value(
                "source",
                "--annotations, --pool or --mosaics",
                "none",
            ));
        }
    };
    println!(
        "{}: {} records added, {} were there already, {} left out, {} evicted",
        bank.path().display(),
        report.added,
        report.known,
        report.refused,
        report.evicted
    );
    Ok(())
}

fn annotations(args: &ImportArgs, json: &Path) -> Result<(Bank, PutReport)> {
    let data = Dataset::read(json)?;
    let bank = open_or_create(args, Some(&data.categories))?;
    let images = args.images.clone().unwrap_or_default();
    let mut batch = Batch {
        bank: &bank,
        waiting: Vec::new(),
        report: PutReport::default(),
    };
    let mut taken = vec![0u64; bank.categories().len()];
    let mut counter = Counter::new("images");
    for (i, (entry, list)) in data
        .images
        .iter()
        .zip(data.annotations_by_image())
        .enumerate()
    {
        check_stop()?;
        counter.set(i as u64, data.images.len() as u64);
        let mut picture = None;
        for at in list {
            let Some(a) = data.annotations.get(at as usize) else {
                continue;
            };
            let category = data.categories.by_id(a.category_id);
            let Some(class) =
                category.and_then(|c| Some((bank.category(&c.name).ok()?, &c.name)))
            else {
                batch.report.refused += 1;
                continue;
            };
            let count = taken.get_mut(class.0 as usize);
            let full = args.per_category > 0
                && count.as_ref().is_some_and(|n| **n >= args.per_category);
            if a.iscrowd || full {
                continue;
            }
            let rle = match data.rle(at as usize) {
                Ok(rle) if rle.area() >= args.min_area.max(1) => rle,
                Ok(_) => continue,
                Err(e) => {
                    batch.take(Err(e))?;
                    continue;
                }
            };
            if picture.is_none() {
                let path = images.join(entry.path().unwrap_or_default());
                picture = Some(read_picture(&path).and_then(|(size, rgb, _)| {
                    if size == entry.size() {
                        Ok(rgb)
                    } else {
                        let expected = format!("{:?}, as the annotations say", entry.size());
                        Err(Error::format(path, expected, format!("{size:?}")))
                    }
                }));
            }
            let made = match &picture {
                Some(Ok(rgb)) => {
                    let (index, name) = class;
                    let source = format!("image {} annotation {}", entry.id, a.id);
                    instance_of_mask(Class { index, name }, entry.size(), rgb, &rle, source)
                }
                Some(Err(e)) => Err(Error::backend(format!("image {}", entry.id), e)),
                None => continue,
            };
            if let (Ok(_), Some(n)) = (&made, count) {
                *n += 1;
            }
            batch.take(made)?;
        }
    }
    batch.flush()?;
    counter.finish();
    let report = batch.report;
    Ok((bank, report))
}

fn pool(args: &ImportArgs, json: &Path) -> Result<(Bank, PutReport)> {
    let bank = open_or_create(args, None)?;
    let own = json.parent().unwrap_or(Path::new("."));
    let entries = read_pool(json, args.root.as_deref().unwrap_or(own), bank.categories())?;
    let mut batch = Batch {
        bank: &bank,
        waiting: Vec::new(),
        report: PutReport::default(),
    };
    let mut counter = Counter::new("pictures");
    for (i, entry) in entries.iter().enumerate() {
        check_stop()?;
        counter.set(i as u64, entries.len() as u64);
        let category = bank.categories().get(entry.category as usize);
        let made = entry.instance(category.map_or("", |c| &c.name));
        if made.as_ref().is_ok_and(|r| r.area < args.min_area) {
            continue;
        }
        batch.take(made)?;
    }
    batch.flush()?;
    counter.finish();
    let report = batch.report;
    Ok((bank, report))
}

fn mosaics(args: &ImportArgs, path: &Path) -> Result<(Bank, PutReport)> {
    let entries = Entry::read_folder(path)?;
    let own = Exporter::table_of(&entries)?;
    let bank = open_or_create(args, Some(&own))?;
    for (hash, text) in folder::recipes(path)? {
        bank.keep_recipe(&hash, &text)?;
    }
    let mut report = PutReport::default();
    let mut counter = Counter::new("mosaics");
    let count = entries.len() as u64;
    for (i, entry) in (0..).zip(entries) {
        check_stop()?;
        counter.set(i, count);
        let id = entry.mosaic.id;
        let done = read_picture(&entry.picture_in(path))
            .and_then(|(_, image, _)| {
                let mosaic = entry.mosaic;
                bank.indexed(Mosaic { image, ..mosaic })
            })
            .and_then(|m| bank.put_mosaics(&[m]));
        match done {
            Ok(r) => {
                report.added += r.added;
                report.known += r.known;
                report.evicted += r.evicted;
            }
            Err(e @ (Error::Io { .. } | Error::Interrupted)) => return Err(e),
            Err(e) => {
                tracing::warn!("left out: mosaic {id}: {e}");
                report.refused += 1;
            }
        }
    }
    counter.finish();
    Ok((bank, report))
}
