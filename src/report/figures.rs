//! The figures of a bank: `mosaicbank stats` and the report take them from here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::bank::{Bank, Category, Demand, DemandBoard, Kind, Limits, RecordId, Stock};
use crate::error::Result;
use crate::mask::Verdict;
use crate::priority::supply::Supply;
use crate::status::{self, EngineStatus};

/// Longest text of a reason; a foreign bank may say anything.
const MAX_REASON: usize = 80;
/// Different reasons that are told apart; further ones count as [`OTHER`].
const MAX_REASONS: usize = 50;
const OTHER: &str = "other reasons";

/// How far an engine was at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds since 1970.
    pub time: f64,
    /// Mosaics written so far.
    pub mosaics: u64,
    /// Instances written so far.
    pub instances: u64,
    /// Regions made so far.
    pub regions: u64,
    /// Regions that gave no instance so far.
    pub rejected: u64,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineFacts {
    /// Unlike that of any other engine of the bank.
    pub id: String,
    /// `engine` or `prewarm`.
    pub command: String,
    /// What it is doing; `dead` when it can no longer say so itself.
    pub state: String,
    /// Name of the model's directory.
    pub model: String,
    /// Device and dtype.
    pub device: String,
    /// When it started, seconds since 1970.
    pub started: f64,
    /// When it was last heard of, seconds since 1970.
    pub time: f64,
    /// Unused mosaics that every category should have.
    pub target: u64,
    /// Mosaics written.
    pub mosaics: u64,
    /// Instances written.
    pub instances: u64,
    /// Regions made.
    pub regions: u64,
    /// Regions that gave no instance.
    pub rejected: u64,
    /// Mosaics that could not be used.
    pub dropped: u64,
    /// Over the last minute that it spoke of.
    pub mosaics_per_second: f64,
    /// Over the last minute that it spoke of.
    pub instances_per_second: f64,
    /// How it got there, oldest first; empty for engines of older versions.
    pub history: Vec<Moment>,
}

impl From<status::Moment> for Moment {
    fn from(m: status::Moment) -> Self {
        Self {
            time: m.time,
            mosaics: m.mosaics,
            instances: m.instances,
            regions: m.regions,
            rejected: m.rejected,
        }
    }
}

impl EngineFacts {
    /// What the engines of a bank say of themselves.
    ///
    /// # Errors
    /// As [`EngineStatus::read_all`].
    pub fn read_all(bank: &Bank) -> Result<Vec<Self>> {
        let engines = EngineStatus::read_all(bank.path())?;
        Ok(engines.into_iter().map(Self::from).collect())
    }
}

impl From<EngineStatus> for EngineFacts {
    fn from(mut e: EngineStatus) -> Self {
        // The file itself is the last moment that is known of.
        if e.history.last().is_some_and(|m| m.time < e.time) {
            e.history.push(e.moment(e.time));
        }
        Self {
            state: e.observed().name().into(),
            started: e.started,
            time: e.time,
            target: e.target,
            mosaics: e.mosaics,
            instances: e.instances,
            regions: e.regions,
            rejected: e.rejected,
            dropped: e.dropped,
            mosaics_per_second: e.mosaics_per_second,
            instances_per_second: e.instances_per_second,
            history: e.history.into_iter().map(Moment::from).collect(),
            id: e.id,
            command: e.command,
            model: e.model,
            device: e.device,
        }
    }
}

/// Why regions have no instance, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The verdict without its numbers.
    pub reason: String,
    /// Regions.
    pub regions: u64,
}

/// What only a walk through all records tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Mosaics that could not be read; not part of what follows.
    pub damaged: u64,
    /// Regions of all mosaics.
    pub regions: u64,
    /// Those without an instance.
    pub rejected: u64,
    /// Why, the most frequent first.
    pub reasons: Vec<Reason>,
    /// (regions of a mosaic, mosaics with so many).
    pub mosaics_by_regions: Vec<(u64, u64)>,
    /// (uses, mosaics used so often).
    pub mosaics_by_uses: Vec<(u64, u64)>,
    /// (uses, instances used so often).
    pub instances_by_uses: Vec<(u64, u64)>,
}

/// The part of [`Contents`] that is about one category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CategoryContents {
    /// Mosaics with it that were never used.
    pub unused_mosaics: u64,
    /// Instances that were never used.
    pub unused_instances: u64,
    /// Uses of the mosaics with it.
    pub mosaic_uses: u64,
    /// Uses of its instances.
    pub instance_uses: u64,
    /// Regions that were to show it.
    pub regions: u64,
    /// Those without an instance.
    pub rejected: u64,
}

/// The figures of one category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CategoryFigures {
    /// The dataset's id.
    pub id: u32,
    /// The dataset's name.
    pub name: String,
    /// `r`, `c` or `f`.
    pub frequency: Option<String>,
    /// Mosaics with it.
    pub mosaics: u64,
    /// Instances of it.
    pub instances: u64,
    /// Slots resolved for it.
    pub asked: u64,
    /// Answered with something never used before.
    pub served_fresh: u64,
    /// Answered with something used before.
    pub served_again: u64,
    /// Not answered: the bank had nothing.
    pub missed: u64,
    /// Feedback: share relative to neutral 1.
    pub weight: f32,
    /// Feedback: factor on the pasted size relative to neutral 1.
    pub size_factor: f32,
    /// Whether the bank holds mosaics of it, or a running engine draws it.
    pub supplied: bool,
    /// What a walk through the records tells.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub contents: Option<CategoryContents>,
}

impl CategoryFigures {
    fn new(
        category: &Category,
        index: usize,
        stock: &Stock,
        demand: &[Demand],
        supplied: bool,
    ) -> Self {
        let count = |list: &[u64]| list.get(index).copied().unwrap_or_default();
        let d = demand.get(index).copied().unwrap_or_default();
        Self {
            id: category.id,
            name: category.name.clone(),
            frequency: category.frequency.clone(),
            mosaics: count(&stock.mosaics),
            instances: count(&stock.instances),
            asked: d.asked,
            served_fresh: d.served_fresh,
            served_again: d.served_again,
            missed: d.missed,
            weight: d.weight,
            size_factor: d.size_factor,
            supplied,
            contents: None,
        }
    }

    /// Whether there is anything to tell.
    pub const fn is_idle(&self) -> bool {
        self.mosaics + self.instances + self.asked == 0
    }
}

/// What is in a bank, what is asked of it, and who fills it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// The directory.
    pub bank: PathBuf,
    /// Version of its layout.
    pub format: u32,
    /// Mosaics in all.
    pub mosaics: u64,
    /// Instances in all.
    pub instances: u64,
    /// Bytes of all records, as pages.
    pub bytes: u64,
    /// Records ever added.
    pub added: u64,
    /// Records evicted or retired.
    pub removed: u64,
    /// What keeps the bank from growing for ever.
    pub limits: Limits,
    /// One line about the categories that neither the bank nor a running engine supplies.
    pub shortfall: Option<String>,
    /// Unused mosaics that the engine heard of last wants of every category.
    pub target: Option<u64>,
    /// What engines say of themselves, oldest first.
    pub engines: Vec<EngineFacts>,
    /// What a walk through the records tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
    /// Every category, in table order.
    pub categories: Vec<CategoryFigures>,
}

impl Figures {
    /// From counters that are kept as records come and go: nothing is scanned.
    ///
    /// # Errors
    /// [`crate::Error::Format`] when the store is damaged.
    pub fn gather(bank: &Bank, engines: Vec<EngineFacts>) -> Result<Self> {
        let stock = bank.stock()?;
        let supply = Supply::of(bank)?;
        let demand = bank.board().map_or_else(Vec::new, DemandBoard::snapshot);
        let target = engines
            .iter()
            .filter(|e| e.target > 0)
            .max_by(|a, b| a.time.total_cmp(&b.time))
            .map(|e| e.target);
        Ok(Self {
            bank: bank.path().to_path_buf(),
            format: bank.info().format,
            mosaics: stock.total_mosaics,
            instances: stock.total_instances,
            bytes: stock.bytes,
            added: stock.added,
            removed: stock.removed,
            limits: bank.limits(),
            shortfall: supply.shortfall(bank, &[]),
            target,
            engines,
            contents: None,
            categories: bank
                .categories()
                .iter()
                .enumerate()
                .map(|(i, c)| CategoryFigures::new(c, i, &stock, &demand, supply.has(i)))
                .collect(),
        })
    }

    /// Adds what only a walk through all records tells; pictures are not decoded. `progress` is
    /// called with (done, total) now and then and may stop the walk.
    ///
    /// # Errors
    /// Those of the bank's reader, and what `progress` returns. A damaged record is counted.
    pub fn scan(
        &mut self,
        bank: &Bank,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut contents = Contents::default();
        let mut of: Vec<CategoryContents> = Vec::new();
        of.resize(self.categories.len(), CategoryContents::default());
        self.scan_regions(bank, &mut contents, &mut of, progress)?;
        for kind in Kind::ALL {
            let mut uses = BTreeMap::new();
            for id in bank.ids(kind)? {
                *uses.entry(uses_of(bank, kind, id)?).or_default() += 1;
            }
            let uses = uses.into_iter().collect();
            match kind {
                Kind::Mosaic => contents.mosaics_by_uses = uses,
                Kind::Instance => contents.instances_by_uses = uses,
            }
            for (c, of) in (0..).zip(&mut of) {
                for id in bank.ids_of(kind, c)? {
                    let uses = uses_of(bank, kind, id)?;
                    let (unused, sum) = match kind {
                        Kind::Mosaic => (&mut of.unused_mosaics, &mut of.mosaic_uses),
                        Kind::Instance => (&mut of.unused_instances, &mut of.instance_uses),
                    };
                    *unused += u64::from(uses == 0);
                    *sum += uses;
                }
            }
        }
        self.contents = Some(contents);
        for (category, of) in self.categories.iter_mut().zip(of) {
            category.contents = Some(of);
        }
        Ok(())
    }

    fn scan_regions(
        &self,
        bank: &Bank,
        contents: &mut Contents,
        of: &mut [CategoryContents],
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut reasons = BTreeMap::<String, u64>::new();
        let mut by_regions = BTreeMap::<u64, u64>::new();
        let ids = bank.ids(Kind::Mosaic)?;
        for (i, &id) in ids.iter().enumerate() {
            progress(i as u64, ids.len() as u64)?;
            let Ok(regions) = bank.regions(id) else {
                contents.damaged += 1;
                continue;
            };
            *by_regions.entry(regions.len() as u64).or_default() += 1;
            contents.regions += regions.len() as u64;
            for region in &regions {
                let rejected = !region.verdict.is_kept();
                if let Some(of) = of.get_mut(region.category as usize) {
                    of.regions += 1;
                    of.rejected += u64::from(rejected);
                }
                if rejected {
                    contents.rejected += 1;
                    let mut reason = reason(&region.verdict);
                    if reasons.len() >= MAX_REASONS && !reasons.contains_key(&reason) {
                        reason = OTHER.into();
                    }
                    *reasons.entry(reason).or_default() += 1;
                }
            }
        }
        contents.mosaics_by_regions = by_regions.into_iter().collect();
        contents.reasons = reasons
            .into_iter()
            .map(|(reason, regions)| Reason { reason, regions })
            .collect();
        contents
            .reasons
            .sort_by(|a, b| b.regions.cmp(&a.regions).then(a.reason.cmp(&b.reason)));
        Ok(())
    }

    /// Leaves out the categories about which there is nothing to tell.
    pub fn drop_idle(&mut self) {
        self.categories.retain(|c| !c.is_idle());
    }
}

fn uses_of(bank: &Bank, kind: Kind, id: RecordId) -> Result<u64> {
    Ok(bank.use_count(kind, id)?.map_or(0, u64::from))
}

/// [`Verdict::reason`], cut where a foreign bank says more than fits.
pub(super) fn reason(verdict: &Verdict) -> String {
    verdict.reason().chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_are_cut() {
        let text = "x".repeat(1000);
        assert_eq!(reason(&Verdict::Other { text }).len(), MAX_REASON);
        assert_eq!(reason(&Verdict::NoComponent), "the mask is empty");
    }
}
