//! Checking a whole bank, and saving what can be read into a new one.

use std::collections::BTreeMap;
use std::path::Path;

use super::env::TABLE_NAMES;
use super::format::{InstanceRecord, MosaicRecord};
use super::index::{self, Entry, Kind, Place};
use super::reader::table_of;
use super::{Bank, PutReport, RecordId};
use crate::error::Result;

/// A record that failed its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// What it is.
    pub kind: Kind,
    /// Its id (of the key, whatever the record says).
    pub id: RecordId,
    /// What is wrong with it.
    pub why: String,
}

/// What [`Bank::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Mosaics that passed.
    pub mosaics: u64,
    /// Instances that passed.
    pub instances: u64,
    /// Tree pages that were walked.
    pub pages: u64,
    /// Records that failed.
    pub bad: Vec<BadRecord>,
    /// What is wrong beside single records: damaged pages, lists that do not agree.
    pub problems: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.bad.is_empty() && self.problems.is_empty()
    }
}

impl Bank {
    /// Reads and decodes everything. `progress` is called with (done, total) now and then and
    /// may stop the walk with an error.
    ///
    /// # Errors
    /// When there is no commit to read, or what `progress` returns; damage is reported, not
    /// returned.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let env = self.env.get()?;
        match env.check() {
            Ok(checked) => report.pages = checked.pages,
            Err(e) => report.problems.push(e.to_string()),
        }
        env.read(|trees, txn| {
            for name in TABLE_NAMES {
                if matches!(trees.table(name), Ok(None)) {
                    report
                        .problems
                        .push(format!("the table {name:?} is missing"));
                }
            }
            let stock = self.stock_of(trees, txn).unwrap_or_default();
            let total = stock.total_mosaics + stock.total_instances;
            let mut done = 0;
            let mut found: BTreeMap<(u8, RecordId), Vec<u32>> = BTreeMap::new();
            for kind in Kind::ALL {
                let root = match trees.table(table_of(kind)) {
                    Ok(Some(root)) => root,
                    Ok(None) => continue,
                    Err(d) => {
                        report.problems.push(d);
                        continue;
                    }
                };
                let mut entries = trees.iter_from(root, &[]);
                while let Some(entry) = entries.next_entry() {
                    done += 1;
                    if done % 256 == 0 {
                        progress(done, total)?;
                    }
                    let (key, bytes) = match entry {
                        Ok(entry) => entry,
                        Err(d) => {
                            report.problems.push(format!("{}s: {d}", kind.name()));
                            continue;
                        }
                    };
                    let Ok(id) = key.try_into().map(RecordId) else {
                        report.problems.push(format!(
                            "{}s: a key of {} bytes",
                            kind.name(),
                            key.len()
                        ));
                        continue;
                    };
                    match bytes.and_then(|bytes| self.check_record(kind, id, bytes)) {
                        Ok(categories) => {
                            match kind {
                                Kind::Mosaic => report.mosaics += 1,
                                Kind::Instance => report.instances += 1,
                            }
                            found.insert((kind as u8, id), categories);
                        }
                        Err(why) => report.bad.push(BadRecord { kind, id, why }),
                    }
                }
            }
            progress(total, total)?;
            let bad: std::collections::HashSet<_> =
                report.bad.iter().map(|b| (b.kind as u8, b.id)).collect();
            let mut problems = Vec::new();
            if let Ok(Some(root)) = trees.table("by_category") {
                for entry in trees.iter_from(root, &[]).filter_map(|e| e.ok()) {
                    let (key, value) = entry;
                    let (Some(kind), Some(e)) = (key.first(), Entry::decode(value)) else {
                        problems.push("a damaged list entry".to_string());
                        continue;
                    };
                    let category = key
                        .get(1..5)
                        .and_then(|b| b.try_into().ok())
                        .map(u32::from_be_bytes);
                    if bad.contains(&(*kind, e.id)) {
                        continue;
                    }
                    let listed = found
                        .get_mut(&(*kind, e.id))
                        .and_then(|left| {
                            let at = left.iter().position(|c| Some(*c) == category)?;
                            left.swap_remove(at);
                            Some(())
                        })
                        .is_some();
                    if !listed {
                        problems.push(format!(
                            "{} is listed under category {category:?}, but is not of it",
                            e.id
                        ));
                    }
                }
            }
            let places = self.table(trees, "places").ok();
            for ((kind, id), left) in &found {
                for category in left {
                    problems.push(format!(
                        "{id} is missing from the list of category {category}"
                    ));
                }
                let kind = if *kind == Kind::Mosaic as u8 {
                    Kind::Mosaic
                } else {
                    Kind::Instance
                };
                let place = places.as_ref().and_then(|p| {
                    self.lookup(trees, p, &index::place_key(kind, *id))
                        .ok()
                        .flatten()
                        .and_then(Place::decode)
                });
                if place.is_none() {
                    problems.push(format!("{id} has no place"));
                }
            }
            for (counted, seen, what) in [
                (stock.total_mosaics, Kind::Mosaic, "mosaics"),
                (stock.total_instances, Kind::Instance, "instances"),
            ] {
                let seen = found.keys().filter(|(k, _)| *k == seen as u8).count()
                    + bad.iter().filter(|(k, _)| *k == seen as u8).count();
                if counted != seen as u64 {
                    problems.push(format!(
                        "the counters say {counted} {what}, there are {seen}"
                    ));
                }
            }
            report.problems.extend(problems);
            Ok(())
        })?;
        Ok(report)
    }

    fn check_record(&self, kind: Kind, id: RecordId, bytes: &[u8]) -> Result<Vec<u32>, String> {
        let n = self.info.categories.len();
        let (own, categories) = match kind {
            Kind::Mosaic => {
                let m = self.known_categories(MosaicRecord::decode(bytes)?)?;
                let mut categories: Vec<u32> = m.instances.iter().map(|i| i.category).collect();
                categories.sort_unstable();
                categories.dedup();
                (m.id, categories)
            }
            Kind::Instance => {
                let i = InstanceRecord::decode(bytes)?;
                if i.category as usize >= n {
                    return Err("its category is not in the table".into());
                }
                (i.id, vec![i.category])
            }
        };
        if own != id {
            return Err(format!("it says it is {own}"));
        }
        Ok(categories)
    }

    /// Writes everything that can be read into a new bank at `to`, without the free space
    /// and the damage of this one. Use counts and feedback weights are kept.
    ///
    /// # Errors
    /// As [`Bank::create`] and [`Bank::put_mosaics`].
    pub fn compact_into(
        &self,
        to: &Path,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<(Self, PutReport)> {
        let bank = Self::create(to, self.info.clone())?;
        let report = bank.salvage_from(self, progress)?;
        if let (Some(from), Some(to)) = (self.board(), bank.board()) {
            for (category, d) in from.snapshot().into_iter().enumerate() {
                to.set_feedback(category as u32, d.weight, d.size_factor)?;
            }
        }
        Ok((bank, report))
    }
}
