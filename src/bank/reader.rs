//! Reading: stock, random draws, the least used, and single records.

use std::sync::Arc;

use super::format::{InstanceRecord, MosaicRecord};
use super::index::{self, Entry, Kind, Place, Totals};
use super::lmdb_pages::{Root, Trees};
use super::{Bank, RecordId, Region, env};
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::rng::below;

/// Draws that meet a retired record try again this often before they search in order.
const RETRIES: usize = 8;
/// Most records of a category that are looked at to find the least used; beyond it, a window
/// at a random place is.
const LEAST_USED_WINDOW: u32 = 4096;

/// How many records there are, by category.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stock {
    /// Per category, in table order.
    pub mosaics: Vec<u64>,
    /// Per category, in table order.
    pub instances: Vec<u64>,
    /// Categories that have an instance.
    stocked: Vec<u32>,
    /// Running sum of `instances`.
    sums: Vec<u64>,
    /// Mosaics in all (one may be listed under several categories).
    pub total_mosaics: u64,
    /// Instances in all.
    pub total_instances: u64,
    /// Bytes of all records, as pages.
    pub bytes: u64,
    /// Records ever added.
    pub added: u64,
    /// Records evicted or retired.
    pub removed: u64,
}

/// Which instance to draw.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice<'a> {
    /// A category uniformly among those in stock, then one of it uniformly.
    ClassBalanced,
    /// Uniformly over all instances.
    Uniform,
    /// A category uniformly among these (those in stock), then one of it uniformly.
    Categories(&'a [u32]),
}

/// A drawn record; its use has been counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn<T> {
    /// The record.
    pub record: T,
    /// How often it had been used before.
    pub uses: u32,
}

pub(super) struct Table {
    pub name: &'static str,
    pub root: Option<Root>,
}

impl Bank {
    /// Runs `f` on one commit of the store.
    pub(super) fn read<T>(&self, f: impl FnOnce(&Trees<'_>, u64) -> Result<T>) -> Result<T> {
        self.env.get()?.read(f)
    }

    pub(super) fn damaged(&self, damage: impl std::fmt::Display) -> Error {
        match self.env.get() {
            Ok(env) => env.damaged(damage),
            Err(e) => e,
        }
    }

    pub(super) fn table(&self, trees: &Trees<'_>, name: &'static str) -> Result<Table> {
        let root = trees.table(name).map_err(|d| self.damaged(d))?;
        Ok(Table { name, root })
    }

    pub(super) fn lookup<'m>(
        &self,
        trees: &Trees<'m>,
        table: &Table,
        key: &[u8],
    ) -> Result<Option<&'m [u8]>> {
        let Some(root) = table.root else {
            return Ok(None);
        };
        trees
            .get(root, key)
            .map_err(|d| self.damaged(format!("{d} (table {})", table.name)))
    }

    /// How many records there are. Kept per commit: no scan.
    ///
    /// # Errors
    /// [`Error::Format`] when the store is damaged.
    pub fn stock(&self) -> Result<Arc<Stock>> {
        self.read(|trees, txn| self.stock_of(trees, txn))
    }

    pub(super) fn stock_of(&self, trees: &Trees<'_>, txn: u64) -> Result<Arc<Stock>> {
        if let Some(cached) = self.stock.try_lock()
            && let Some((at, stock)) = cached.as_ref()
            && *at == txn
        {
            return Ok(stock.clone());
        }
        let table = self.table(trees, "counters")?;
        let n = self.info.categories.len();
        let mut stock = Stock {
            mosaics: vec![0; n],
            instances: vec![0; n],
            ..Stock::default()
        };
        if let Some(root) = table.root {
            for entry in trees.iter_from(root, b"c") {
                let (key, value) = entry.map_err(|d| self.damaged(d))?;
                let (Some(totals), [_, kind, category @ ..]) = (Totals::decode(value), key)
                else {
                    continue;
                };
                let list = match *kind {
                    k if k == Kind::Mosaic as u8 => &mut stock.mosaics,
                    _ => &mut stock.instances,
                };
                let category = category
                    .first_chunk::<4>()
                    .map_or(usize::MAX, |b| u32::from_be_bytes(*b) as usize);
                if let (Some(cell), [b'c', ..]) = (list.get_mut(category), key) {
                    *cell = totals.stock;
                }
            }
        }
        for kind in Kind::ALL {
            let totals = self
                .lookup(trees, &table, &index::totals_key(kind))?
                .and_then(Totals::decode)
                .unwrap_or_default();
            match kind {
                Kind::Mosaic => stock.total_mosaics = totals.stock,
                Kind::Instance => stock.total_instances = totals.stock,
            }
            stock.bytes += totals.bytes;
            stock.added += totals.added;
            stock.removed += totals.removed;
        }
        let mut sum = 0;
        for (category, &n) in stock.instances.iter().enumerate() {
            if n > 0 {
                stock.stocked.push(category as u32);
            }
            sum += n;
            stock.sums.push(sum);
        }
        let stock = Arc::new(stock);
        if let Some(mut cached) = self.stock.try_lock() {
            *cached = Some((txn, stock.clone()));
        }
        Ok(stock)
    }

    fn retired(&self, slot: u32) -> bool {
        let max = self.limits().max_uses;
        max > 0 && self.uses_of(slot) >= max
    }

    fn entry_at(
        &self,
        trees: &Trees<'_>,
        list: &Table,
        kind: Kind,
        category: u32,
        position: u64,
    ) -> Option<Entry> {
        let key = index::list_key(kind, category, position as u32);
        match self.lookup(trees, list, &key) {
            Ok(value) => value.and_then(Entry::decode),
            Err(e) => {
                self.skip_page(&e.to_string());
                None
            }
        }
    }

    /// Draws an instance and counts its use; `None` when there is nothing to draw.
    ///
    /// `bits` gives random 64-bit numbers; with the same bank and use counts, the same numbers
    /// give the same instance. Records that fail their checks are skipped.
    ///
    /// # Errors
    /// [`Error::Format`] when the store itself is damaged, [`Error::Value`] when a category is
    /// not in the table.
    pub fn draw_instance(
        &self,
        choice: &Choice<'_>,
        bits: &mut dyn FnMut() -> u64,
    ) -> Result<Option<Drawn<InstanceRecord>>> {
        self.draw_instance_near(choice, bits, &mut |record| Some(record.size))
    }

    /// As [`Bank::draw_instance`], decoding only as large a picture as `want` asks for; see
    /// [`InstanceRecord::decode_near`].
    ///
    /// # Errors
    /// As [`Bank::draw_instance`].
    pub fn draw_instance_near(
        &self,
        choice: &Choice<'_>,
        bits: &mut dyn FnMut() -> u64,
        want: &mut dyn FnMut(&InstanceRecord) -> Option<Size>,
    ) -> Result<Option<Drawn<InstanceRecord>>> {
        let known = self.info.categories.len();
        if let Choice::Categories(list) = choice
            && let Some(&bad) = list.iter().find(|c| **c as usize >= known)
        {
            return Err(Error::value(
                "category index",
                format!("below {known}, the size of the bank's table"),
                bad,
            ));
        }
        self.read(|trees, txn| {
            let stock = self.stock_of(trees, txn)?;
            let restricted: Vec<u32>;
            let categories: &[u32] = match choice {
                Choice::Categories(wanted) => {
                    restricted = wanted
                        .iter()
                        .copied()
                        .filter(|&c| stock.instances.get(c as usize).is_some_and(|&n| n > 0))
                        .collect();
                    &restricted
                }
                _ => &stock.stocked,
            };
            if categories.is_empty() {
                return Ok(None);
            }
            let list = self.table(trees, "by_category")?;
            let frames = self.table(trees, "instances")?;
            let mut pick = || -> (u32, u64) {
                if *choice == Choice::Uniform {
                    let r = below(bits(), stock.total_instances);
                    let category = stock.sums.partition_point(|&s| s <= r);
                    let before = match category {
                        0 => 0,
                        c => stock.sums.get(c - 1).copied().unwrap_or_default(),
                    };
                    return (category as u32, r - before);
                }
                let i = below(bits(), categories.len() as u64) as usize;
                let category = categories.get(i).copied().unwrap_or_default();
                let n = stock.instances.get(category as usize).copied();
                (category, below(bits(), n.unwrap_or_default()))
            };
            let mut last = (0, 0);
            for _ in 0..RETRIES {
                last = pick();
                let (category, position) = last;
                let entry = self.entry_at(trees, &list, Kind::Instance, category, position);
                if let Some(drawn) = entry.map(|e| self.take_instance(trees, &frames, e, want))
                    && let Some(drawn) = drawn?
                {
                    return Ok(Some(drawn));
                }
            }
            // Mostly retired (or damaged): go through all in order, from the last place on.
            let start = categories.iter().position(|c| *c == last.0).unwrap_or(0);
            for step in 0..categories.len() {
                let at = (start + step) % categories.len();
                let category = categories.get(at).copied().unwrap_or_default();
                let n = stock.instances.get(category as usize).copied().unwrap_or(0);
                for k in 0..n {
                    let position = (last.1 + k) % n;
                    let entry = self.entry_at(trees, &list, Kind::Instance, category, position);
                    if let Some(drawn) =
                        entry.map(|e| self.take_instance(trees, &frames, e, want))
                        && let Some(drawn) = drawn?
                    {
                        return Ok(Some(drawn));
                    }
                }
            }
            Ok(None)
        })
    }

    /// Decodes and counts an instance unless it is retired or damaged.
    fn take_instance(
        &self,
        trees: &Trees<'_>,
        frames: &Table,
        entry: Entry,
        want: &mut dyn FnMut(&InstanceRecord) -> Option<Size>,
    ) -> Result<Option<Drawn<InstanceRecord>>> {
        if self.retired(entry.slot) {
            return Ok(None);
        }
        let decoded = match self.lookup(trees, frames, &entry.id.0) {
            Ok(Some(bytes)) => {
                let known = self.info.categories.len();
                // Nothing is asked about a record that will not be taken.
                InstanceRecord::decode_near(bytes, &mut |record| {
                    ((record.category as usize) < known)
                        .then(|| want(record))
                        .flatten()
                })
            }
            Ok(None) => Err("it is listed, but not there".into()),
            Err(e) => Err(e.to_string()),
        };
        match decoded {
            Ok(record) if (record.category as usize) < self.info.categories.len() => {
                let uses = self.uses.as_ref().map_or(0, |u| u.add(entry.slot));
                Ok(Some(Drawn { record, uses }))
            }
            Ok(_) => {
                self.skip(Kind::Instance, entry.id, "its category is not in the table");
                Ok(None)
            }
            Err(why) => {
                self.skip(Kind::Instance, entry.id, &why);
                Ok(None)
            }
        }
    }

    /// Draws the least used mosaic of a category (one of them at random when several are
    /// used equally), counts its use, and keeps the demand board; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Format`] when the store itself is damaged, [`Error::Value`] when the category
    /// is not in the table.
    pub fn draw_mosaic(
        &self,
        category: u32,
        bits: &mut dyn FnMut() -> u64,
    ) -> Result<Option<Drawn<MosaicRecord>>> {
        let known = self.info.categories.len();
        if category as usize >= known {
            return Err(Error::value(
                "category index",
                format!("below {known}, the size of the bank's table"),
                category,
            ));
        }
        let drawn = self.least_used(category, bits)?;
        if let Some(board) = &self.board {
            board.asked(category);
            match &drawn {
                Some(d) => board.served(category, d.uses == 0),
                None => board.missed(category),
            }
        }
        Ok(drawn)
    }

    fn least_used(
        &self,
        category: u32,
        bits: &mut dyn FnMut() -> u64,
    ) -> Result<Option<Drawn<MosaicRecord>>> {
        self.read(|trees, txn| {
            let stock = self.stock_of(trees, txn)?;
            let n = stock.mosaics.get(category as usize).copied().unwrap_or(0);
            if n == 0 {
                return Ok(None);
            }
            let list = self.table(trees, "by_category")?;
            let Some(root) = list.root else {
                return Ok(None);
            };
            let window = n.min(u64::from(LEAST_USED_WINDOW));
            let start = if n > window {
                below(bits(), n - window + 1)
            } else {
                0
            };
            let from = index::list_key(Kind::Mosaic, category, start as u32);
            let mut candidates: Vec<(u32, Entry)> = trees
                .iter_from(root, &from)
                .take_while(|e| e.as_ref().map_or(true, |(k, _)| k.starts_with(&from[..5])))
                .take(window as usize)
                .filter_map(|e| Entry::decode(e.ok()?.1))
                .filter(|e| !self.retired(e.slot))
                .map(|e| (self.uses_of(e.slot), e))
                .collect();
            let frames = self.table(trees, "mosaics")?;
            while let Some(least) = candidates.iter().map(|(uses, _)| *uses).min() {
                let ties: Vec<usize> = (0..candidates.len())
                    .filter(|&i| candidates.get(i).is_some_and(|(uses, _)| *uses == least))
                    .collect();
                let pick = below(bits(), ties.len() as u64) as usize;
                let at = ties.get(pick).copied().unwrap_or_default();
                let (_, entry) = candidates.swap_remove(at);
                let decoded = match self.lookup(trees, &frames, &entry.id.0) {
                    Ok(Some(bytes)) => MosaicRecord::decode(bytes),
                    Ok(None) => Err("it is listed, but not there".into()),
                    Err(e) => Err(e.to_string()),
                }
                .and_then(|m| self.known_categories(m));
                match decoded {
                    Ok(record) => {
                        let uses = self.uses.as_ref().map_or(0, |u| u.add(entry.slot));
                        return Ok(Some(Drawn { record, uses }));
                    }
                    Err(why) => self.skip(Kind::Mosaic, entry.id, &why),
                }
            }
            Ok(None)
        })
    }

    pub(super) fn known_categories(&self, m: MosaicRecord) -> Result<MosaicRecord, String> {
        let n = self.info.categories.len();
        let known = m.instances.iter().all(|i| (i.category as usize) < n)
            && m.regions.iter().all(|r| (r.category as usize) < n);
        if known {
            Ok(m)
        } else {
            Err("a category is not in the table".into())
        }
    }

    /// One mosaic by id, not counted as a use.
    ///
    /// # Errors
    /// [`Error::Value`] when there is none, [`Error::Format`] when it is damaged.
    pub fn mosaic(&self, id: RecordId) -> Result<MosaicRecord> {
        self.record(Kind::Mosaic, id, MosaicRecord::decode)
    }

    /// The regions of one mosaic, whose picture is not decoded; not counted as a use.
    ///
    /// # Errors
    /// As [`Bank::mosaic`].
    pub fn regions(&self, id: RecordId) -> Result<Vec<Region>> {
        self.record(Kind::Mosaic, id, MosaicRecord::decode_regions)
    }

    /// One instance by id, not counted as a use.
    ///
    /// # Errors
    /// [`Error::Value`] when there is none, [`Error::Format`] when it is damaged.
    pub fn instance(&self, id: RecordId) -> Result<InstanceRecord> {
        self.record(Kind::Instance, id, InstanceRecord::decode)
    }

    fn record<T>(
        &self,
        kind: Kind,
        id: RecordId,
        decode: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T> {
        self.read(|trees, _| {
            let table = self.table(trees, table_of(kind))?;
            let bytes = self.lookup(trees, &table, &id.0)?.ok_or_else(|| {
                Error::value(
                    format!("{} id", kind.name()),
                    format!("one in {}", self.dir.display()),
                    id,
                )
            })?;
            decode(bytes).map_err(|found| {
                Error::format(
                    self.dir.join(env::DATA_FILE),
                    format!("a valid {} {id}", kind.name()),
                    found,
                )
            })
        })
    }

    /// How often a record was used; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::Format`] when the store is damaged.
    pub fn use_count(&self, kind: Kind, id: RecordId) -> Result<Option<u32>> {
        self.read(|trees, _| {
            let places = self.table(trees, "places")?;
            Ok(self
                .lookup(trees, &places, &index::place_key(kind, id))?
                .and_then(Place::decode)
                .map(|p| self.uses_of(p.slot)))
        })
    }

    /// Ids of all records of a kind, in id order.
    ///
    /// # Errors
    /// [`Error::Format`] when the store is damaged.
    pub fn ids(&self, kind: Kind) -> Result<Vec<RecordId>> {
        self.read(|trees, _| {
            let table = self.table(trees, table_of(kind))?;
            let Some(root) = table.root else {
                return Ok(Vec::new());
            };
            trees
                .iter_from(root, &[])
                .filter_map(|entry| match entry {
                    Ok((key, _)) => key.try_into().ok().map(|id| Ok(RecordId(id))),
                    Err(d) => Some(Err(self.damaged(d))),
                })
                .collect()
        })
    }

    /// Ids of a category's records, in list order.
    ///
    /// # Errors
    /// [`Error::Format`] when the store is damaged.
    pub fn ids_of(&self, kind: Kind, category: u32) -> Result<Vec<RecordId>> {
        self.read(|trees, _| {
            let list = self.table(trees, "by_category")?;
            let Some(root) = list.root else {
                return Ok(Vec::new());
            };
            let from = index::list_key(kind, category, 0);
            trees
                .iter_from(root, &from)
                .take_while(|e| e.as_ref().map_or(true, |(k, _)| k.starts_with(&from[..5])))
                .map(|e| {
                    let (_, value) = e.map_err(|d| self.damaged(d))?;
                    Entry::decode(value)
                        .map(|e| e.id)
                        .ok_or_else(|| self.damaged("a damaged list entry"))
                })
                .collect()
        })
    }
}

pub(super) const fn table_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Mosaic => "mosaics",
        Kind::Instance => "instances",
    }
}
