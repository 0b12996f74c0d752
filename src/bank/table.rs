//! Between a dataset's categories and a bank's: tables, and the categories of records.

use super::{Bank, Category, INFO_FILE, MosaicRecord};
use crate::dataset::{self, CategoryTable, Frequency};
use crate::error::{Error, Result};
use crate::record::{Class, Mosaic};

impl Category {
    /// A dataset's category. An image count of 0 becomes `None`: tables without counts say 0,
    /// too, and the frequency then tells more.
    ///
    /// # Errors
    /// [`Error::Value`] when the id has more than 32 bits.
    pub fn from_dataset(c: &dataset::Category) -> Result<Self> {
        Ok(Self {
            id: u32::try_from(c.id).map_err(|_| {
                Error::value(
                    format!("id of category {:?}", c.name),
                    format!("at most {}", u32::MAX),
                    c.id,
                )
            })?,
            name: c.name.clone(),
            frequency: Some(c.frequency.letter().to_owned()),
            image_count: (c.image_count > 0).then_some(c.image_count),
        })
    }

    /// The same category as datasets have it; without a frequency it has the one that its image
    /// count gives.
    pub fn to_dataset(&self) -> dataset::Category {
        let images = self.image_count.unwrap_or_default();
        let letter = self.frequency.as_deref();
        dataset::Category {
            id: u64::from(self.id),
            name: self.name.clone(),
            synset: String::new(),
            definition: String::new(),
            synonyms: vec![self.name.clone()],
            frequency: letter
                .and_then(Frequency::from_letter)
                .unwrap_or_else(|| Frequency::from_image_count(images)),
            image_count: images,
            instance_count: 0,
        }
    }

    /// The categories of a table, for a new bank.
    ///
    /// # Errors
    /// As [`Category::from_dataset`].
    pub fn of_table(table: &CategoryTable) -> Result<Vec<Self>> {
        table.categories().iter().map(Self::from_dataset).collect()
    }
}

impl Bank {
    /// Its categories as a table.
    ///
    /// # Errors
    /// As [`CategoryTable::new`].
    pub fn category_table(&self) -> Result<CategoryTable> {
        let categories = self.categories().iter().map(Category::to_dataset);
        CategoryTable::new(self.path().join(INFO_FILE).display(), categories.collect())
    }

    /// A mosaic with this bank's category indices for its names.
    ///
    /// # Errors
    /// [`Error::UnknownCategory`] for a category that the bank does not have.
    pub fn indexed<C: AsRef<str>>(&self, mosaic: Mosaic<C>) -> Result<MosaicRecord> {
        mosaic.with_categories(|c| self.category(c.as_ref()))
    }

    /// One of its mosaics with category names, and the dataset's ids.
    ///
    /// # Errors
    /// [`Error::Format`] when an index is not in the table.
    pub fn named(&self, mosaic: MosaicRecord) -> Result<Mosaic<Class>> {
        mosaic.with_categories(|&index| {
            let c = self.categories().get(index as usize).ok_or_else(|| {
                Error::format(
                    self.path(),
                    "categories of its own table",
                    format!("index {index}"),
                )
            })?;
            Ok(Class {
                name: c.name.clone(),
                id: Some(u64::from(c.id)),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_count_is_known_or_not_and_never_zero() {
        let table = CategoryTable::from_names(["cup"]).unwrap();
        let bank = Category::of_table(&table).unwrap();
        assert_eq!(bank[0].image_count, None);
        let mut counted = table.categories()[0].clone();
        counted.image_count = 7;
        let category = Category::from_dataset(&counted).unwrap();
        assert_eq!(category.image_count, Some(7));
        assert_eq!(category.to_dataset().image_count, 7);
        counted.id = 1 << 40;
        let e = Category::from_dataset(&counted).unwrap_err().to_string();
        assert!(e.contains("cup"), "{e}");
    }
}
