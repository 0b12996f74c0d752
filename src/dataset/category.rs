//! The category table: ids, names, definitions, and how rare each is.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::{KeyRule, Record, is_id, is_text, is_texts};
use crate::error::{Error, Result};

/// How often a category occurs in the training images, as LVIS counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Frequency {
    /// Rare: at most 10 training images.
    #[serde(rename = "r")]
    Rare,
    /// Common: 11 to 100.
    #[serde(rename = "c")]
    Common,
    /// Frequent: more than 100.
    #[serde(rename = "f")]
    Frequent,
}

impl Frequency {
    /// The most training images of a rare category (LVIS, arXiv 1908.03195).
    pub const RARE: u64 = 10;
    /// The most training images of a common category.
    pub const COMMON: u64 = 100;

    /// The band of a category that `images` training images show.
    pub const fn from_image_count(images: u64) -> Self {
        if images <= Self::RARE {
            Self::Rare
        } else if images <= Self::COMMON {
            Self::Common
        } else {
            Self::Frequent
        }
    }

    /// The frequency that [`Frequency::letter`] writes.
    pub fn from_letter(letter: &str) -> Option<Self> {
        [Self::Rare, Self::Common, Self::Frequent]
            .into_iter()
            .find(|f| f.letter() == letter)
    }

    /// `r`, `c` or `f`.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Rare => "r",
            Self::Common => "c",
            Self::Frequent => "f",
        }
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.letter())
    }
}

/// A class of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// Id in the annotation file.
    pub id: u64,
    /// Name, as the file spells it (`school_bus`).
    pub name: String,
    /// WordNet synset, empty where the file has none.
    pub synset: String,
    /// Definition, empty where the file has none.
    pub definition: String,
    /// Other names (LVIS lists the name itself too).
    pub synonyms: Vec<String>,
    /// The file's band, or the one that its image count gives.
    pub frequency: Frequency,
    /// Training images that show it.
    pub image_count: u64,
    /// Training annotations of it.
    pub instance_count: u64,
}

/// A category as files hold it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct CategoryFields {
    id: u64,
    name: String,
    #[serde(default)]
    synset: String,
    #[serde(default)]
    def: String,
    #[serde(default)]
    synonyms: Vec<String>,
    frequency: Option<Frequency>,
    image_count: Option<u64>,
    instance_count: Option<u64>,
}

impl Record for CategoryFields {
    const LIST: &'static str = "categories";

    fn keys() -> &'static [KeyRule] {
        &[
            ("id", true, "a whole number", is_id),
            ("name", true, "text", is_text),
            ("synset", false, "text", is_text),
            ("def", false, "text", is_text),
            ("synonyms", false, "a list of texts", is_texts),
            ("frequency", false, "\"r\", \"c\" or \"f\"", |v| {
                matches!(v.as_str(), Some("r" | "c" | "f")) || v.is_null()
            }),
            ("image_count", false, "a whole number", |v| {
                is_id(v) || v.is_null()
            }),
            ("instance_count", false, "a whole number", |v| {
                is_id(v) || v.is_null()
            }),
        ]
    }
}

impl CategoryFields {
    /// Whether images or instances must be counted to complete it.
    pub(super) fn needs_counts(&self) -> bool {
        self.image_count.is_none() || self.instance_count.is_none()
    }

    fn complete(self, counts: Option<&HashMap<u64, (u64, u64)>>) -> Category {
        let counted = counts
            .and_then(|c| c.get(&self.id))
            .copied()
            .unwrap_or((0, 0));
        let image_count = self.image_count.unwrap_or(counted.0);
        Category {
            id: self.id,
            name: self.name,
            synset: self.synset,
            definition: self.def,
            synonyms: self.synonyms,
            frequency: self
                .frequency
                .unwrap_or_else(|| Frequency::from_image_count(image_count)),
            image_count,
            instance_count: self.instance_count.unwrap_or(counted.1),
        }
    }
}

/// Images and instances of each category, counted from `(image id, category id)` pairs.
pub(super) fn count_pairs(pairs: impl Iterator<Item = (u64, u64)>) -> HashMap<u64, (u64, u64)> {
    let mut counts: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut seen = HashSet::new();
    for (image, category) in pairs {
        let count = counts.entry(category).or_default();
        count.0 += u64::from(seen.insert((image, category)));
        count.1 += 1;
    }
    counts
}

/// The categories of a dataset, found by id, name or synonym.
#[derive(Debug, Clone)]
pub struct CategoryTable {
    place: String,
    categories: Vec<Category>,
    by_id: HashMap<u64, usize>,
    by_name: HashMap<String, usize>,
    /// Normalized names and synonyms; several categories may share a synonym.
    by_alias: HashMap<String, Vec<usize>>,
}

impl PartialEq for CategoryTable {
    fn eq(&self, other: &Self) -> bool {
        self.categories == other.categories
    }
}

/// Spelling that lookups ignore: case, and `_` or `-` for a space.
pub(super) fn normalize(name: &str) -> String {
    name.trim()
        .chars()
        .map(|c| match c {
            ' ' | '-' => '_',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

/// Number of letters to insert, delete, replace, or swap with the next, between two words
/// (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut least = (last[j] + usize::from(a[i] != b[j]))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

impl CategoryTable {
    /// A table of `categories`; `place` (a file, mostly) stands in error messages.
    ///
    /// # Errors
    /// [`Error::Value`] when an id or a name occurs twice, or a name is empty.
    pub fn new(place: impl fmt::Display, categories: Vec<Category>) -> Result<Self> {
        let place = place.to_string();
        let mut by_id = HashMap::with_capacity(categories.len());
        let mut by_name = HashMap::with_capacity(categories.len());
        let mut by_alias: HashMap<String, Vec<usize>> = HashMap::new();
        let twice = |i: usize, key: &str, got: String, first: usize| {
            Error::value(
                format!("{place}: categories[{i}], key {key:?}"),
                format!("another one than categories[{first}] has"),
                got,
            )
        };
        for (i, c) in categories.iter().enumerate() {
            if c.name.trim().is_empty() {
                return Err(Error::value(
                    format!("{place}: categories[{i}], key \"name\""),
                    "a name",
                    "an empty one",
                ));
            }
            if let Some(first) = by_id.insert(c.id, i) {
                return Err(twice(i, "id", c.id.to_string(), first));
            }
            if let Some(first) = by_name.insert(c.name.clone(), i) {
                return Err(twice(i, "name", format!("{:?}", c.name), first));
            }
            for alias in std::iter::once(&c.name).chain(&c.synonyms) {
                let holders = by_alias.entry(normalize(alias)).or_default();
                if !holders.contains(&i) {
                    holders.push(i);
                }
            }
        }
        Ok(Self {
            place,
            categories,
            by_id,
            by_name,
            by_alias,
        })
    }

    /// A table of bare names with ids from 1, in the order given, without any training image.
    ///
    /// # Errors
    /// [`Error::Value`] for an empty or repeated name.
    pub fn from_names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        let categories = names
            .into_iter()
            .zip(1..)
            .map(|(name, id)| Category {
                id,
                name: name.into(),
                synset: String::new(),
                definition: String::new(),
                synonyms: Vec::new(),
                frequency: Frequency::Rare,
                image_count: 0,
                instance_count: 0,
            })
            .collect();
        Self::new("the list of names", categories)
    }

    pub(super) fn from_fields(
        place: &Path,
        fields: Vec<CategoryFields>,
        counts: Option<&HashMap<u64, (u64, u64)>>,
    ) -> Result<Self> {
        let categories = fields.into_iter().map(|f| f.complete(counts)).collect();
        Self::new(place.display(), categories)
    }

    /// The categories, in the file's order.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// Number of categories.
    pub fn len(&self) -> usize {
        self.categories.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.categories.is_empty()
    }

    /// Where the table came from, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The category with this id.
    pub fn by_id(&self, id: u64) -> Option<&Category> {
        self.by_id.get(&id).map(|&i| &self.categories[i])
    }

    /// The category that the table spells exactly so.
    pub fn by_exact_name(&self, name: &str) -> Option<&Category> {
        self.by_name.get(name).and_then(|&i| self.categories.get(i))
    }

    /// Whether several categories share this name or synonym, so that it means none of them.
    pub fn is_shared(&self, name: &str) -> bool {
        let holders = self.by_alias.get(&normalize(name));
        holders.is_some_and(|h| h.len() > 1) && self.get(name).is_err()
    }

    /// Position of the category that [`CategoryTable::get`] finds.
    ///
    /// # Errors
    /// As [`CategoryTable::get`].
    pub fn index(&self, name: &str) -> Result<usize> {
        let id = self.get(name)?.id;
        Ok(self.by_id.get(&id).copied().unwrap_or_default())
    }

    /// Finds a category by name: as the file spells it; else ignoring case and `_`, `-` or
    /// space; else by synonym.
    ///
    /// # Errors
    /// [`Error::UnknownCategory`] with suggestions, also when several categories share the
    /// synonym.
    pub fn get(&self, name: &str) -> Result<&Category> {
        if let Some(&i) = self.by_name.get(name) {
            return Ok(&self.categories[i]);
        }
        let key = normalize(name);
        let holders = self.by_alias.get(&key).map_or(&[][..], Vec::as_slice);
        // A category's own name goes before another's synonym.
        let named = holders
            .iter()
            .filter(|&&i| normalize(&self.categories[i].name) == key);
        match (named.clone().count(), holders) {
            (1, _) => {
                if let Some(&i) = named.clone().next() {
                    return Ok(&self.categories[i]);
                }
            }
            (_, &[i]) => return Ok(&self.categories[i]),
            _ => {}
        }
        Err(Error::UnknownCategory {
            name: name.to_string(),
            place: self.place.clone(),
            hint: self.hint(&key, holders),
        })
    }

    /// `"; did you mean ...?"`, or nothing.
    fn hint(&self, key: &str, holders: &[usize]) -> String {
        const SUGGESTIONS: usize = 3;
        let names: Vec<&str> = if holders.is_empty() {
            let allowed = (key.chars().count() / 3).max(1);
            let mut close: Vec<(usize, &str)> = self
                .by_alias
                .iter()
                .filter(|_| !key.is_empty())
                .filter_map(|(alias, holders)| {
                    // `bow` for `bow_(weapon)` counts as one letter away.
                    let part = alias
                        .strip_prefix(key)
                        .is_some_and(|rest| rest.starts_with("_("));
                    let distance = if part { 1 } else { edit_distance(key, alias) };
                    let name = &self.categories[*holders.first()?].name;
                    (distance <= allowed).then_some((distance, name.as_str()))
                })
                .collect();
            close.sort_unstable();
            let mut names: Vec<&str> = Vec::new();
            for (_, name) in close {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        } else {
            holders
                .iter()
                .map(|&i| self.categories[i].name.as_str())
                .collect()
        };
        match names.as_slice() {
            [] => format!(" ({} categories)", self.categories.len()),
            names => {
                let shown: Vec<_> = names.iter().take(SUGGESTIONS).copied().collect();
                format!("; did you mean {}?", shown.join(" or "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances() {
        for (a, b, d) in [
            ("", "", 0),
            ("", "dog", 3),
            ("dog", "dog", 0),
            ("dgo", "dog", 1),
            ("bananna", "banana", 1),
            ("teapot", "teapto", 1),
            ("cat", "dog", 3),
        ] {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
            assert_eq!(edit_distance(b, a), d, "{b} {a}");
        }
    }

    #[test]
    fn a_shared_synonym_is_no_name() -> Result<()> {
        let mut table = CategoryTable::from_names(["mouse_(animal)", "mouse_(computer)"])?;
        let mut categories = std::mem::take(&mut table.categories);
        for c in &mut categories {
            c.synonyms.push("mouse".into());
        }
        let table = CategoryTable::new("table.json", categories)?;
        let message = match table.get("mouse") {
            Err(e) => e.to_string(),
            Ok(c) => c.name.clone(),
        };
        assert!(
            message.contains("did you mean mouse_(animal) or mouse_(computer)?"),
            "{message}"
        );
        Ok(())
    }
}
