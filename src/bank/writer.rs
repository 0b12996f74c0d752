//! Writing: one transaction per batch, idempotent, within the limits.

use std::collections::BTreeSet;

use heed::RwTxn;

use super::env::{OpenEnv, Tables};
use super::format::{InstanceRecord, MosaicRecord};
use super::index::{self, Entry, Kind, NEXT_SLOT_KEY, Place, Totals};
use super::{Bank, RecordId, format};
use crate::error::{Error, Result};

/// LMDB's page, and the size up to which a value stays inside one.
const PAGE: u64 = 4096;
/// Records of another bank that are merged per commit.
const MERGE_BATCH: usize = 64;

/// What a write did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutReport {
    /// Records added.
    pub added: u64,
    /// Records that were there already (or had been, and were evicted or retired).
    pub known: u64,
    /// Records evicted to stay within the limits.
    pub evicted: u64,
    /// Records that could not be taken (damaged, or of a category that is not in the table).
    pub refused: u64,
}

impl PutReport {
    fn add(&mut self, other: Self) {
        self.added += other.added;
        self.known += other.known;
        self.evicted += other.evicted;
        self.refused += other.refused;
    }
}

/// A record ready to be written.
struct NewRecord {
    kind: Kind,
    id: RecordId,
    frame: Vec<u8>,
    categories: Vec<u32>,
    score: f32,
    uses: u32,
}

impl NewRecord {
    fn mosaic(bank: &Bank, m: &MosaicRecord) -> Result<Self> {
        m.validate_in(bank.info.categories.len())?;
        Ok(Self {
            kind: Kind::Mosaic,
            id: m.id,
            frame: m.encode(bank.info.mosaic_codec)?,
            categories: categories_of(m),
            score: score_of(m),
            uses: 0,
        })
    }

    fn instance(bank: &Bank, i: &InstanceRecord) -> Result<Self> {
        i.validate(bank.info.categories.len())?;
        Ok(Self {
            kind: Kind::Instance,
            id: i.id,
            frame: i.encode(bank.info.instance_codec)?,
            categories: vec![i.category],
            score: i.score,
            uses: 0,
        })
    }
}

/// A mosaic is listed under every category that it has an instance of.
fn categories_of(m: &MosaicRecord) -> Vec<u32> {
    let set: BTreeSet<u32> = m.instances.iter().map(|i| i.category).collect();
    set.into_iter().collect()
}

/// A mosaic is as good as its worst instance.
fn score_of(m: &MosaicRecord) -> f32 {
    let worst = m
        .instances
        .iter()
        .map(|i| i.score)
        .fold(f32::INFINITY, f32::min);
    if worst.is_finite() { worst } else { 0.0 }
}

fn pages(frame: u64) -> u64 {
    // Up to half a page a value stands in a leaf; beyond, on whole pages with a header.
    if frame <= PAGE / 2 {
        frame
    } else {
        (frame + 16).div_ceil(PAGE) * PAGE
    }
}

/// One write transaction with the tables at hand.
struct Writing<'e> {
    bank: &'e Bank,
    env: &'e OpenEnv,
    tables: &'e Tables,
    txn: RwTxn<'e>,
}

impl Bank {
    /// Writes mosaics, and their instances as crops for pasting, in one atomic and durable
    /// commit. A mosaic whose id is there already is left alone.
    ///
    /// # Errors
    /// [`Error::Value`] when a record does not agree with itself or the category table,
    /// [`Error::Io`] when the disk is full or the bank read-only (nothing is changed then).
    pub fn put_mosaics(&self, mosaics: &[MosaicRecord]) -> Result<PutReport> {
        let mut records = Vec::new();
        for m in mosaics {
            records.push(NewRecord::mosaic(self, m)?);
            for crop in m.crops() {
                records.push(NewRecord::instance(self, &crop)?);
            }
        }
        self.put(records)
    }

    /// Writes instances in one atomic and durable commit.
    ///
    /// # Errors
    /// As [`Bank::put_mosaics`].
    pub fn put_instances(&self, instances: &[InstanceRecord]) -> Result<PutReport> {
        let records = instances
            .iter()
            .map(|i| NewRecord::instance(self, i))
            .collect::<Result<_>>()?;
        self.put(records)
    }

    /// Removes every record that was used `max_uses` times, as `bank.toml` says now.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full or the bank read-only; those of [`Bank::read_limits`].
    pub fn retire(&self) -> Result<u64> {
        let max = self.read_limits()?.max_uses;
        if max == 0 {
            return Ok(0);
        }
        let mut used = Vec::new();
        self.read(|trees, _| {
            let places = self.table(trees, "places")?;
            let Some(root) = places.root else {
                return Ok(());
            };
            for entry in trees.iter_from(root, &[]) {
                let (key, value) = entry.map_err(|d| self.damaged(d))?;
                if Place::decode(value).is_some_and(|p| self.uses_of(p.slot) >= max) {
                    used.extend(split_place_key(key));
                }
            }
            Ok(())
        })?;
        if used.is_empty() {
            return Ok(0);
        }
        self.write(|w| {
            let mut n = 0;
            for (kind, id) in used {
                n += u64::from(w.remove(kind, id)?);
            }
            Ok(n)
        })
    }

    /// Takes over everything of `other` that this bank does not have; categories are matched
    /// by name. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Format`] when `other` cannot be read at all, [`Error::Io`] when the disk is full.
    pub fn merge_from(&self, other: &Self) -> Result<PutReport> {
        let map: Vec<Option<u32>> = other
            .info
            .categories
            .iter()
            .map(|c| self.category(&c.name).ok())
            .collect();
        self.take_recipes(other)?;
        let mut report = PutReport::default();
        for kind in Kind::ALL {
            for ids in other.ids(kind)?.chunks(MERGE_BATCH) {
                let mut batch = Vec::new();
                for &id in ids {
                    match self.translated(other, kind, id, &map) {
                        Ok(record) => batch.push(record),
                        Err(e) => {
                            tracing::warn!("not merged: {e}");
                            report.refused += 1;
                        }
                    }
                }
                report.add(self.put(batch)?);
            }
        }
        Ok(report)
    }

    /// As [`Bank::merge_from`] for a bank with the same table that may be damaged: goes on
    /// behind what cannot be read.
    pub(super) fn salvage_from(
        &self,
        other: &Self,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<PutReport> {
        let mut report = PutReport::default();
        let map: Vec<Option<u32>> = (0..other.info.categories.len() as u32).map(Some).collect();
        let mut done = 0;
        for kind in Kind::ALL {
            // Ids that can be reached; the pages behind damaged ones are lost.
            let ids: Vec<RecordId> = other.read(|trees, _| {
                let root = trees.table(super::reader::table_of(kind)).ok().flatten();
                Ok(root.map_or_else(Vec::new, |root| {
                    let mut entries = trees.iter_from(root, &[]);
                    std::iter::from_fn(move || entries.next_entry())
                        .filter_map(|e| e.ok()?.0.try_into().ok().map(RecordId))
                        .collect()
                }))
            })?;
            let total = done + ids.len() as u64;
            for ids in ids.chunks(MERGE_BATCH) {
                progress(done, total)?;
                done += ids.len() as u64;
                let mut batch = Vec::new();
                for &id in ids {
                    match self.translated(other, kind, id, &map) {
                        Ok(record) => batch.push(record),
                        Err(e) => {
                            tracing::warn!("left out: {e}");
                            report.refused += 1;
                        }
                    }
                }
                report.add(self.put(batch)?);
            }
        }
        progress(done, done)?;
        Ok(report)
    }

    fn translated(
        &self,
        other: &Self,
        kind: Kind,
        id: RecordId,
        map: &[Option<u32>],
    ) -> Result<NewRecord> {
        let to = |category: u32| {
            map.get(category as usize)
                .copied()
                .flatten()
                .ok_or_else(|| {
                    Error::value(
                        format!("{} {id}", kind.name()),
                        "categories that are in this bank's table",
                        category,
                    )
                })
        };
        let uses = other.use_count(kind, id).ok().flatten().unwrap_or_default();
        let identity = self.info.categories.len() == map.len()
            && map.iter().enumerate().all(|(i, to)| *to == Some(i as u32));
        let mut record = match kind {
            Kind::Mosaic => {
                let mut m = other.mosaic(id)?;
                for i in &mut m.instances {
                    i.category = to(i.category)?;
                }
                for r in &mut m.regions {
                    r.category = to(r.category)?;
                }
                NewRecord {
                    kind,
                    id,
                    categories: categories_of(&m),
                    score: score_of(&m),
                    frame: if identity {
                        other.frame(kind, id)?
                    } else {
                        // Keeps the coded image: coding it again would lose a little.
                        format::with_meta_of_mosaic(&other.frame(kind, id)?, &m)?
                    },
                    uses: 0,
                }
            }
            Kind::Instance => {
                let mut i = other.instance(id)?;
                i.category = to(i.category)?;
                NewRecord {
                    kind,
                    id,
                    categories: vec![i.category],
                    score: i.score,
                    frame: if identity {
                        other.frame(kind, id)?
                    } else {
                        format::with_meta_of_instance(&other.frame(kind, id)?, &i)?
                    },
                    uses: 0,
                }
            }
        };
        record.uses = uses;
        Ok(record)
    }

    fn frame(&self, kind: Kind, id: RecordId) -> Result<Vec<u8>> {
        self.read(|trees, _| {
            let table = self.table(trees, super::reader::table_of(kind))?;
            self.lookup(trees, &table, &id.0)?
                .map(<[u8]>::to_vec)
                .ok_or_else(|| {
                    Error::value(format!("{} id", kind.name()), "one in the bank", id)
                })
        })
    }

    fn put(&self, records: Vec<NewRecord>) -> Result<PutReport> {
        if records.is_empty() {
            return Ok(PutReport::default());
        }
        self.write(|w| {
            let mut report = PutReport::default();
            let mut touched = BTreeSet::new();
            for record in &records {
                if w.add(record)? {
                    report.added += 1;
                    touched.extend(record.categories.iter().map(|c| (record.kind as u8, *c)));
                } else {
                    report.known += 1;
                }
            }
            report.evicted = w.evict(&touched)?;
            Ok(report)
        })
    }

    fn write<T>(&self, f: impl FnOnce(&mut Writing<'_>) -> Result<T>) -> Result<T> {
        let env = self.env.get()?;
        let tables = *env.tables()?;
        // Slots of readers that were killed would pin old pages for ever.
        env.clear_dead_readers()?;
        let txn = env
            .env()
            .write_txn()
            .map_err(|e| env.error("starting to write", e))?;
        let mut writing = Writing {
            bank: self,
            env: &env,
            tables: &tables,
            txn,
        };
        let out = f(&mut writing)?;
        let Writing { txn, .. } = writing;
        txn.commit().map_err(|e| env.error("committing", e))?;
        Ok(out)
    }
}

fn split_place_key(key: &[u8]) -> Option<(Kind, RecordId)> {
    let (kind, id) = key.split_first()?;
    let kind = Kind::ALL.into_iter().find(|k| *k as u8 == *kind)?;
    Some((kind, RecordId(id.try_into().ok()?)))
}

impl Writing<'_> {
    fn fail<T>(&self, what: &'static str, done: heed::Result<T>) -> Result<T> {
        done.map_err(|e| self.env.error(what, e))
    }

    fn totals(&self, key: &[u8]) -> Result<Totals> {
        let found = self.tables.counters.get(&self.txn, key);
        Ok(self
            .fail("reading counters", found)?
            .and_then(Totals::decode)
            .unwrap_or_default())
    }

    fn set_totals(&mut self, key: &[u8], totals: Totals) -> Result<()> {
        let done = self
            .tables
            .counters
            .put(&mut self.txn, key, &totals.encode());
        self.fail("writing counters", done)
    }

    /// A slot of the use-count file: a freed one, or the next.
    fn slot(&mut self, uses: u32) -> Result<u32> {
        let freed = self.tables.free_slots.first(&self.txn);
        let freed = self
            .fail("reading free slots", freed)?
            .and_then(|(key, _)| key.try_into().ok().map(u32::from_be_bytes));
        let slot = match freed {
            Some(slot) => {
                let done = self
                    .tables
                    .free_slots
                    .delete(&mut self.txn, &slot.to_be_bytes());
                self.fail("taking a free slot", done)?;
                slot
            }
            None => {
                let next = self.tables.counters.get(&self.txn, NEXT_SLOT_KEY);
                let next = self
                    .fail("reading counters", next)?
                    .and_then(|b| index::u32_le(b, 0))
                    .unwrap_or_default();
                let done = self.tables.counters.put(
                    &mut self.txn,
                    NEXT_SLOT_KEY,
                    &next.saturating_add(1).to_le_bytes(),
                );
                self.fail("writing counters", done)?;
                next
            }
        };
        if let Some(counts) = &self.bank.uses {
            counts.reserve(slot.saturating_add(1))?;
            counts.set(slot, uses);
        }
        Ok(slot)
    }

    fn add(&mut self, record: &NewRecord) -> Result<bool> {
        let key = index::place_key(record.kind, record.id);
        let known = self.tables.places.get(&self.txn, &key).and_then(|place| {
            Ok(place.is_some() || self.tables.gone.get(&self.txn, &key)?.is_some())
        });
        if self.fail("looking for a record", known)? {
            return Ok(false);
        }
        let slot = self.slot(record.uses)?;
        let table = match record.kind {
            Kind::Mosaic => self.tables.mosaics,
            Kind::Instance => self.tables.instances,
        };
        let done = table.put(&mut self.txn, &record.id.0, &record.frame);
        self.fail("writing a record", done)?;
        let entry = Entry {
            id: record.id,
            slot,
            score: record.score,
            bytes: record.frame.len() as u32,
        };
        let mut place = Place {
            slot,
            bytes: entry.bytes,
            score: record.score,
            positions: Vec::new(),
        };
        let bytes = pages(record.frame.len() as u64);
        for &category in &record.categories {
            let counter = index::category_key(record.kind, category);
            let mut totals = self.totals(&counter)?;
            let position = totals.stock as u32;
            place.positions.push((category, position));
            let key = index::list_key(record.kind, category, position);
            let done = self
                .tables
                .by_category
                .put(&mut self.txn, &key, &entry.encode());
            self.fail("listing a record", done)?;
            totals.stock += 1;
            totals.added += 1;
            totals.bytes += bytes;
            self.set_totals(&counter, totals)?;
        }
        let done = self.tables.places.put(&mut self.txn, &key, &place.encode());
        self.fail("placing a record", done)?;
        let counter = index::totals_key(record.kind);
        let mut totals = self.totals(&counter)?;
        totals.stock += 1;
        totals.added += 1;
        totals.bytes += bytes;
        self.set_totals(&counter, totals)?;
        Ok(true)
    }

    /// Removes a record for good; the last of each list takes its place there.
    fn remove(&mut self, kind: Kind, id: RecordId) -> Result<bool> {
        let key = index::place_key(kind, id);
        let place = self.tables.places.get(&self.txn, &key);
        let Some(place) = self
            .fail("looking for a record", place)?
            .and_then(Place::decode)
        else {
            return Ok(false);
        };
        let bytes = pages(u64::from(place.bytes));
        for &(category, position) in &place.positions {
            let counter = index::category_key(kind, category);
            let mut totals = self.totals(&counter)?;
            let last = totals.stock.saturating_sub(1) as u32;
            let last_key = index::list_key(kind, category, last);
            if position != last {
                let moved = self.tables.by_category.get(&self.txn, &last_key);
                let moved = self
                    .fail("reading a list", moved)?
                    .and_then(Entry::decode)
                    .ok_or_else(|| self.env.damaged("a list with a hole"))?;
                let at = index::list_key(kind, category, position);
                let done = self
                    .tables
                    .by_category
                    .put(&mut self.txn, &at, &moved.encode());
                self.fail("writing a list", done)?;
                self.move_place(kind, moved.id, category, position)?;
            }
            let done = self.tables.by_category.delete(&mut self.txn, &last_key);
            self.fail("writing a list", done)?;
            totals.stock = u64::from(last);
            totals.removed += 1;
            totals.bytes = totals.bytes.saturating_sub(bytes);
            self.set_totals(&counter, totals)?;
        }
        let table = match kind {
            Kind::Mosaic => self.tables.mosaics,
            Kind::Instance => self.tables.instances,
        };
        let done = table
            .delete(&mut self.txn, &id.0)
            .and_then(|_| self.tables.places.delete(&mut self.txn, &key))
            .and_then(|_| self.tables.gone.put(&mut self.txn, &key, &[]))
            .and_then(|()| {
                let slot = place.slot.to_be_bytes();
                self.tables.free_slots.put(&mut self.txn, &slot, &[])
            });
        self.fail("removing a record", done)?;
        let counter = index::totals_key(kind);
        let mut totals = self.totals(&counter)?;
        totals.stock = totals.stock.saturating_sub(1);
        totals.removed += 1;
        totals.bytes = totals.bytes.saturating_sub(bytes);
        self.set_totals(&counter, totals)?;
        Ok(true)
    }

    fn move_place(&mut self, kind: Kind, id: RecordId, category: u32, to: u32) -> Result<()> {
        let key = index::place_key(kind, id);
        let place = self.tables.places.get(&self.txn, &key);
        let mut place = self
            .fail("looking for a record", place)?
            .and_then(Place::decode)
            .ok_or_else(|| self.env.damaged("a listed record without a place"))?;
        for (c, position) in &mut place.positions {
            if *c == category {
                *position = to;
            }
        }
        let done = self.tables.places.put(&mut self.txn, &key, &place.encode());
        self.fail("placing a record", done)
    }

    /// Brings the bank within its limits: most used first, then the lowest score.
    fn evict(&mut self, touched: &BTreeSet<(u8, u32)>) -> Result<u64> {
        let limits = self.bank.limits();
        let mut evicted = 0;
        if limits.max_per_category > 0 {
            for &(kind, category) in touched {
                let Some(kind) = Kind::ALL.into_iter().find(|k| *k as u8 == kind) else {
                    continue;
                };
                let stock = self.totals(&index::category_key(kind, category))?.stock;
                let over = stock.saturating_sub(limits.max_per_category);
                evicted += self.evict_worst(kind, category, over)?;
            }
        }
        if limits.max_bytes == 0 {
            return Ok(evicted);
        }
        loop {
            let mut bytes = 0;
            for kind in Kind::ALL {
                bytes += self.totals(&index::totals_key(kind))?.bytes;
            }
            if bytes <= limits.max_bytes {
                break;
            }
            // The category that holds most gives first: rare ones keep what they have.
            let mut largest = (0, Kind::Mosaic, 0, 0);
            for kind in Kind::ALL {
                for category in 0..self.bank.info.categories.len() as u32 {
                    let t = self.totals(&index::category_key(kind, category))?;
                    if t.bytes > largest.0 {
                        largest = (t.bytes, kind, category, t.stock);
                    }
                }
            }
            let (held, kind, category, stock) = largest;
            if stock == 0 {
                break;
            }
            let share = (bytes - limits.max_bytes).min(held) * stock / held.max(1);
            let n = self.evict_worst(kind, category, share.clamp(1, stock.div_ceil(4)))?;
            if n == 0 {
                break;
            }
            evicted += n;
        }
        Ok(evicted)
    }

    fn evict_worst(&mut self, kind: Kind, category: u32, n: u64) -> Result<u64> {
        if n == 0 {
            return Ok(0);
        }
        let prefix = index::list_key(kind, category, 0);
        let found: heed::Result<Vec<Entry>> = self
            .tables
            .by_category
            .prefix_iter(&self.txn, &prefix[..5])
            .and_then(|entries| {
                entries
                    .filter_map(|e| e.map(|(_, value)| Entry::decode(value)).transpose())
                    .collect()
            });
        let mut entries: Vec<(u32, Entry)> = self
            .fail("reading a list", found)?
            .into_iter()
            .map(|e| (self.bank.uses_of(e.slot), e))
            .collect();
        entries.sort_by(|(uses_a, a), (uses_b, b)| {
            uses_b
                .cmp(uses_a)
                .then(a.score.total_cmp(&b.score))
                .then(a.id.cmp(&b.id))
        });
        let mut removed = 0;
        for (_, entry) in entries.into_iter().take(n as usize) {
            removed += u64::from(self.remove(kind, entry.id)?);
        }
        Ok(removed)
    }
}
