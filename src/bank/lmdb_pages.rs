//! Bounds-checked reading of LMDB's pages.
//!
//! LMDB trusts its file: a flipped bit in a tree page or a missing tail can send its own
//! lookups out of bounds and kill the process. A trainer must survive a damaged bank, so readers
//! walk the pages here. LMDB still gives them the snapshot (the read transaction keeps the
//! pages of its commit from being reused); this file only follows page numbers, and checks each
//! page and each offset on the way. Writers run [`check_file`] before LMDB may touch a file.
//!
//! The format is LMDB's data version 1 on 64-bit little-endian machines (`struct MDB_meta`,
//! `MDB_page`, `MDB_node` in `libraries/liblmdb/mdb.c`): two meta pages, then B+tree pages of a
//! 16-byte header, an array of 16-bit node offsets, and nodes growing down from the end; values
//! beyond half a page stand on runs of overflow pages.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::index::{u32_le, u64_le};
use crate::error::{Error, Result};

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
const PAGE_HEADER: usize = 16;
const NODE_HEADER: usize = 8;
/// Bytes of `MDB_meta`.
const META_BYTES: usize = 136;
const NO_PAGE: u64 = u64::MAX;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
const BIG_DATA: u16 = 0x01;
const SUB_DATA: u16 = 0x02;
const DUP_DATA: u16 = 0x04;
/// LMDB's own limit (`CURSOR_STACK`).
const MAX_DEPTH: usize = 32;

/// Where the file is not what it should be.
pub(super) type Damage = String;

/// Root of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    page: u64,
    depth: u16,
    /// Number of entries, as the tree's header says.
    pub entries: u64,
}

/// One commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta {
    pub page_size: usize,
    pub free: Root,
    pub main: Root,
    pub last_page: u64,
    pub txn: u64,
}

fn u16_le(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn root(db: &[u8]) -> Option<Root> {
    Some(Root {
        depth: u16_le(db, 6)?,
        entries: u64_le(db, 32)?,
        page: u64_le(db, 40)?,
    })
}

/// Parses a meta page; `page_size` is known after the first.
fn meta(page: &[u8]) -> Result<Meta, Damage> {
    let short = || Damage::from("a file that ends within a meta page");
    let flags = u16_le(page, 10).ok_or_else(short)?;
    let m = page
        .get(PAGE_HEADER..PAGE_HEADER + META_BYTES)
        .ok_or_else(short)?;
    if flags & META == 0 || u32_le(m, 0) != Some(MAGIC) {
        return Err("no LMDB meta page".into());
    }
    let version = u32_le(m, 4).unwrap_or_default();
    if version != DATA_VERSION {
        return Err(format!("LMDB data version {version}"));
    }
    let page_size = u32_le(m, 24).unwrap_or_default() as usize;
    if !(512..=32768).contains(&page_size) || !page_size.is_power_of_two() {
        return Err(format!("pages of {page_size} bytes"));
    }
    Ok(Meta {
        page_size,
        free: m.get(24..72).and_then(root).ok_or_else(short)?,
        main: m.get(72..120).and_then(root).ok_or_else(short)?,
        last_page: u64_le(m, 120).ok_or_else(short)?,
        txn: u64_le(m, 128).ok_or_else(short)?,
    })
}

/// The meta page that commit `txn` wrote (they alternate).
pub(super) fn meta_of(map: &[u8], txn: u64) -> Result<Meta, Damage> {
    let first = meta(map)?;
    if txn & 1 == 0 {
        return Ok(first);
    }
    meta(map.get(first.page_size..).unwrap_or_default())
}

/// The newest commit in a file that nobody writes.
pub(super) fn newest_meta(map: &[u8]) -> Result<Meta, Damage> {
    let (a, b) = (meta_of(map, 0)?, meta_of(map, 1)?);
    Ok(if b.txn > a.txn { b } else { a })
}

/// Whether a file is that of a new environment, or the beginning of one that was never finished: no
/// table but `tables`, and no entry in them.
pub(super) fn holds_nothing(map: &[u8], tables: &[&str]) -> bool {
    let Ok(newest) = newest_meta(map) else {
        // LMDB writes both meta pages at once; before that there is nothing.
        let begun = meta(map).is_ok_and(|m| map.len() < 2 * m.page_size);
        return begun || (map.len() < 4096 && map.iter().all(|b| *b == 0));
    };
    let trees = Trees::new(map, &newest);
    let mut known = 0;
    for name in tables {
        match trees.table(name) {
            Ok(Some(root)) if root.entries == 0 => known += 1,
            Ok(None) => {}
            _ => return false,
        }
    }
    newest.main.entries == known
}

/// Checks that a file starts as an LMDB file does, before LMDB may open it.
///
/// # Errors
/// [`Error::Format`] with what was found, [`Error::Io`] when it cannot be read.
pub(super) fn check_header(path: &Path) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut head = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(2 * 32768)
        .read_to_end(&mut head)
        .map_err(io)?;
    newest_meta(&head)
        .map(|_| ())
        .map_err(|found| Error::format(path, "an LMDB data file of version 1", found))
}

/// A page that was checked: its kind, and that its offsets stay inside.
struct Page<'m> {
    bytes: &'m [u8],
    keys: usize,
    upper: usize,
    leaf: bool,
}

struct Node<'m> {
    flags: u16,
    key: &'m [u8],
    /// Low 32 bits of a child's page number, or the length of the data.
    low: u32,
    rest: &'m [u8],
}

impl<'m> Page<'m> {
    fn node(&self, i: usize) -> Result<Node<'m>, Damage> {
        let bad = || Damage::from("a node outside its page");
        let at = u16_le(self.bytes, PAGE_HEADER + 2 * i).ok_or_else(bad)? as usize;
        if i >= self.keys || at < self.upper {
            return Err(bad());
        }
        let node = self.bytes.get(at..).ok_or_else(bad)?;
        let key_len = u16_le(node, 6).ok_or_else(bad)? as usize;
        Ok(Node {
            flags: u16_le(node, 4).ok_or_else(bad)?,
            key: node
                .get(NODE_HEADER..NODE_HEADER + key_len)
                .ok_or_else(bad)?,
            low: u32_le(node, 0).ok_or_else(bad)?,
            rest: node.get(NODE_HEADER + key_len..).ok_or_else(bad)?,
        })
    }

    fn child(&self, i: usize) -> Result<u64, Damage> {
        let node = self.node(i)?;
        Ok(u64::from(node.low) | u64::from(node.flags) << 32)
    }

    /// Index of the first node with a key >= `key`.
    fn lower_bound(&self, key: &[u8], from: usize) -> Result<usize, Damage> {
        let (mut low, mut high) = (from, self.keys);
        while low < high {
            let middle = low.midpoint(high);
            if self.node(middle)?.key < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Index of the child whose range holds `key` (the first child has no lower bound).
    fn child_for(&self, key: &[u8]) -> Result<usize, Damage> {
        let at = self.lower_bound(key, 1)?;
        let exact = at < self.keys && self.node(at)?.key == key;
        Ok(if exact { at } else { at - 1 })
    }
}

/// One commit's trees in a mapped file.
#[derive(Clone, Copy)]
pub(super) struct Trees<'m> {
    map: &'m [u8],
    page_size: usize,
    main: Root,
}

impl<'m> Trees<'m> {
    pub fn new(map: &'m [u8], meta: &Meta) -> Self {
        Self {
            map,
            page_size: meta.page_size,
            main: meta.main,
        }
    }

    fn page_bytes(&self, number: u64, pages: usize) -> Result<&'m [u8], Damage> {
        let from = usize::try_from(number)
            .ok()
            .and_then(|n| n.checked_mul(self.page_size));
        let to = pages
            .checked_mul(self.page_size)
            .and_then(|len| from?.checked_add(len));
        let bytes = from.zip(to).and_then(|(from, to)| self.map.get(from..to));
        let bytes =
            bytes.ok_or_else(|| format!("page {number} lies beyond the end of the file"))?;
        if u64_le(bytes, 0) != Some(number) {
            return Err(format!("page {number} carries another number"));
        }
        Ok(bytes)
    }

    fn page(&self, number: u64) -> Result<Page<'m>, Damage> {
        let bytes = self.page_bytes(number, 1)?;
        let field = |at| u16_le(bytes, at).unwrap_or_default();
        let (flags, lower, upper) = (field(10), field(12) as usize, field(14) as usize);
        let leaf = match flags & (BRANCH | LEAF | OVERFLOW | META) {
            BRANCH => false,
            LEAF => true,
            _ => return Err(format!("page {number} is not a tree page")),
        };
        let keys = lower.saturating_sub(PAGE_HEADER) / 2;
        if lower < PAGE_HEADER || lower > upper || upper > self.page_size || (!leaf && keys < 2)
        {
            return Err(format!("page {number} has a damaged header"));
        }
        Ok(Page {
            bytes,
            keys,
            upper,
            leaf,
        })
    }

    fn value(&self, node: &Node<'m>) -> Result<&'m [u8], Damage> {
        let len = node.low as usize;
        if node.flags & DUP_DATA != 0 {
            return Err("a value with duplicates, which a bank never has".into());
        }
        if node.flags & BIG_DATA == 0 {
            return node
                .rest
                .get(..len)
                .ok_or_else(|| "a value outside its page".into());
        }
        let number = u64_le(node.rest, 0).ok_or("a value outside its page")?;
        let pages = (PAGE_HEADER + len).div_ceil(self.page_size);
        let bytes = self.page_bytes(number, pages)?;
        if u16_le(bytes, 10).unwrap_or_default() & OVERFLOW == 0
            || (u32_le(bytes, 12).unwrap_or_default() as usize) < pages
        {
            return Err(format!("page {number} is not the overflow run of a value"));
        }
        bytes
            .get(PAGE_HEADER..PAGE_HEADER + len)
            .ok_or_else(|| "a value outside its pages".into())
    }

    /// The tree of a named table, `None` when there is none.
    pub fn table(&self, name: &str) -> Result<Option<Root>, Damage> {
        let Some(node) = self.find(self.main, name.as_bytes())? else {
            return Ok(None);
        };
        let db = self.value(&node)?;
        if node.flags & SUB_DATA == 0 || db.len() != 48 {
            return Err(format!("the entry of table {name:?} is damaged"));
        }
        Ok(root(db))
    }

    fn find(&self, tree: Root, key: &[u8]) -> Result<Option<Node<'m>>, Damage> {
        if tree.page == NO_PAGE {
            return Ok(None);
        }
        let mut number = tree.page;
        for _ in 0..MAX_DEPTH {
            let page = self.page(number)?;
            if page.leaf {
                let at = page.lower_bound(key, 0)?;
                if at == page.keys {
                    return Ok(None);
                }
                let node = page.node(at)?;
                return Ok((node.key == key).then_some(node));
            }
            number = page.child(page.child_for(key)?)?;
        }
        Err("a tree deeper than LMDB allows".into())
    }

    /// The value of a key.
    pub fn get(&self, tree: Root, key: &[u8]) -> Result<Option<&'m [u8]>, Damage> {
        self.find(tree, key)?.map(|n| self.value(&n)).transpose()
    }

    /// Entries from `key` on, in order. Damage is reported once per damaged page, and
    /// iteration goes on behind it.
    pub fn iter_from(&self, tree: Root, key: &[u8]) -> Iter<'m> {
        let mut iter = Iter {
            trees: *self,
            stack: Vec::new(),
            pending: None,
            // A sound tree has each page once; one that leads in circles ends here.
            budget: self.map.len() / self.page_size + 1,
        };
        if tree.page != NO_PAGE {
            iter.descend(tree.page, Some(key));
        }
        iter
    }
}

/// See [`Trees::iter_from`].
pub(super) struct Iter<'m> {
    trees: Trees<'m>,
    /// Page number and next index, root first.
    stack: Vec<(u64, usize)>,
    pending: Option<Damage>,
    /// Pages that may still be entered.
    budget: usize,
}

impl<'m> Iter<'m> {
    /// Goes down from `number` to a leaf, to the first entry >= `key` (or the first at all).
    fn descend(&mut self, mut number: u64, key: Option<&[u8]>) {
        let base = self.stack.len();
        loop {
            if self.stack.len() >= MAX_DEPTH {
                self.pending = Some("a tree deeper than LMDB allows".into());
                self.stack.truncate(base);
                return;
            }
            if self.budget == 0 {
                self.pending = Some("a tree that leads in circles".into());
                self.stack.clear();
                return;
            }
            self.budget -= 1;
            let step = self.trees.page(number).and_then(|page| {
                let at = match key {
                    None => 0,
                    Some(key) if page.leaf => page.lower_bound(key, 0)?,
                    Some(key) => page.child_for(key)?,
                };
                let child = if page.leaf {
                    None
                } else {
                    Some(page.child(at)?)
                };
                Ok((at, child))
            });
            match step {
                Ok((at, Some(child))) => {
                    self.stack.push((number, at + 1));
                    number = child;
                }
                Ok((at, None)) => {
                    self.stack.push((number, at));
                    return;
                }
                Err(damage) => {
                    self.pending = Some(damage);
                    return;
                }
            }
        }
    }
}

/// A key and, unless it is damaged, its value.
pub(super) type KeyAndValue<'m> = (&'m [u8], Result<&'m [u8], Damage>);

impl<'m> Iterator for Iter<'m> {
    type Item = Result<(&'m [u8], &'m [u8]), Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry()
            .map(|entry| entry.and_then(|(key, value)| Ok((key, value?))))
    }
}

impl<'m> Iter<'m> {
    /// The next entry; tells a damaged page (`Err`) from a damaged value, whose key is known.
    pub fn next_entry(&mut self) -> Option<Result<KeyAndValue<'m>, Damage>> {
        loop {
            if let Some(damage) = self.pending.take() {
                return Some(Err(damage));
            }
            let &(number, at) = self.stack.last()?;
            let page = match self.trees.page(number) {
                Ok(page) => page,
                Err(damage) => {
                    self.stack.pop();
                    return Some(Err(damage));
                }
            };
            if at >= page.keys {
                self.stack.pop();
                continue;
            }
            if let Some(top) = self.stack.last_mut() {
                top.1 = at + 1;
            }
            if page.leaf {
                let entry = page.node(at);
                return Some(entry.map(|node| (node.key, self.trees.value(&node))));
            }
            match page.child(at) {
                Ok(child) => self.descend(child, None),
                Err(damage) => return Some(Err(damage)),
            }
        }
    }
}

/// What a full check found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Checked {
    /// Tree pages walked.
    pub pages: u64,
}

/// Walks every tree page of a file's newest commit, so that LMDB may be let loose on it.
///
/// # Errors
/// The first damage found.
pub(super) fn check_file(map: &[u8], meta: &Meta) -> Result<Checked, Damage> {
    let trees = Trees::new(map, meta);
    let mut checked = Checked::default();
    let mut walk = Walk {
        trees,
        last_page: meta.last_page,
        integers: true,
        checked: &mut checked,
    };
    walk.tree(meta.free, &mut |_, value, _| {
        // A free list: a count, then page numbers in descending order.
        let numbers = value.len() / 8;
        let count = u64_le(value, 0).ok_or("a damaged free list")?;
        if count as usize >= numbers.max(1) {
            return Err("a damaged free list".into());
        }
        let mut above = meta.last_page + 1;
        for i in 1..=count as usize {
            let number = u64_le(value, 8 * i).ok_or("a damaged free list")?;
            if number >= above || number < 2 {
                return Err("a damaged free list".into());
            }
            above = number;
        }
        Ok(())
    })?;
    walk.integers = false;
    let mut tables = Vec::new();
    walk.tree(meta.main, &mut |_, value, flags| {
        if flags & SUB_DATA != 0 {
            tables.push(root(value).ok_or("a damaged table entry")?);
        }
        Ok(())
    })?;
    for table in tables {
        walk.tree(table, &mut |_, _, _| Ok(()))?;
    }
    Ok(checked)
}

type Visit<'v> = dyn FnMut(&[u8], &[u8], u16) -> Result<(), Damage> + 'v;

struct Walk<'m, 'c> {
    trees: Trees<'m>,
    last_page: u64,
    /// Keys are native integers (LMDB's free list has transaction numbers), not bytes.
    integers: bool,
    checked: &'c mut Checked,
}

impl Walk<'_, '_> {
    fn order(&self, a: &[u8], b: &[u8]) -> Ordering {
        if self.integers {
            u64_le(a, 0).cmp(&u64_le(b, 0))
        } else {
            a.cmp(b)
        }
    }

    fn tree(&mut self, tree: Root, visit: &mut Visit<'_>) -> Result<(), Damage> {
        if tree.page == NO_PAGE {
            return Ok(());
        }
        let entries = self.page(tree.page, 1, tree.depth as usize, visit)?;
        if entries != tree.entries {
            return Err(format!(
                "a tree of {entries} entries whose header says {}",
                tree.entries
            ));
        }
        Ok(())
    }

    fn page(
        &mut self,
        number: u64,
        depth: usize,
        tree_depth: usize,
        visit: &mut Visit<'_>,
    ) -> Result<u64, Damage> {
        if depth > MAX_DEPTH || number > self.last_page || number < 2 {
            return Err(format!("page {number} does not belong in a tree"));
        }
        let page = self.trees.page(number)?;
        if page.leaf != (depth == tree_depth) {
            return Err(format!("page {number} stands at the wrong depth"));
        }
        self.checked.pages += 1;
        if self.checked.pages > self.last_page {
            return Err("a tree that leads in circles".into());
        }
        let mut entries = 0;
        let mut last: Option<&[u8]> = None;
        for i in 0..page.keys {
            let node = page.node(i)?;
            if page.leaf || i > 0 {
                if last.is_some_and(|last| self.order(last, node.key) != Ordering::Less) {
                    return Err(format!("page {number} has keys out of order"));
                }
                last = Some(node.key);
            }
            if page.leaf {
                visit(node.key, self.trees.value(&node)?, node.flags)?;
                entries += 1;
            } else {
                entries += self.page(page.child(i)?, depth + 1, tree_depth, visit)?;
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// Two meta pages and one branch page whose children are itself.
    fn circle() -> Vec<u8> {
        let mut file = vec![0u8; 3 * PAGE];
        for (n, page) in file.chunks_exact_mut(PAGE).enumerate().take(2) {
            page[0] = n as u8;
            page[10] = META as u8;
            let m = &mut page[PAGE_HEADER..];
            m[..4].copy_from_slice(&MAGIC.to_le_bytes());
            m[4] = 1;
            m[24..28].copy_from_slice(&(PAGE as u32).to_le_bytes());
            m[64..72].copy_from_slice(&NO_PAGE.to_le_bytes());
            m[72 + 6] = 30; // depth of the main tree
            m[72 + 32] = 1;
            m[72 + 40] = 2; // its root
            m[120] = 2;
        }
        let page = &mut file[2 * PAGE..];
        page[0] = 2;
        page[10] = BRANCH as u8;
        page[12] = (PAGE_HEADER + 4) as u8;
        page[14..16].copy_from_slice(&4000u16.to_le_bytes());
        for (i, at) in [4000u16, 4016].into_iter().enumerate() {
            page[16 + 2 * i..18 + 2 * i].copy_from_slice(&at.to_le_bytes());
            page[at as usize] = 2;
            page[at as usize + 6] = i as u8;
            page[at as usize + 8] = b'k';
        }
        file
    }

    #[test]
    fn a_tree_that_leads_in_circles_ends() {
        let file = circle();
        let meta = newest_meta(&file).unwrap();
        let trees = Trees::new(&file, &meta);
        assert!(trees.get(meta.main, b"x").is_err());
        let found: Vec<_> = trees.iter_from(meta.main, &[]).collect();
        assert!(found.len() < 10 && found.iter().all(Result::is_err));
        assert!(check_file(&file, &meta).is_err());
    }
}
