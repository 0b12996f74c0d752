//! A bank's mosaics as entries of a folder of mosaics, for exports.

use std::path::Path;

use super::{Bank, INFO_FILE, Kind};
use crate::dataset::{Entry, Folder};
use crate::error::Result;
use crate::picture;
use crate::record::{Class, Mosaic};

/// Whether a folder is a bank.
pub fn is_bank(folder: &Path) -> bool {
    folder.join(INFO_FILE).is_file()
}

impl Bank {
    /// The records of all mosaics, without their pictures. A damaged mosaic is named in the log
    /// and left out. `progress` is called with (done, total) and may stop the walk.
    ///
    /// # Errors
    /// Those of the reader, and what `progress` returns.
    pub fn entries(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Vec<Entry>> {
        let ids = self.ids(Kind::Mosaic)?;
        let mut entries = Vec::with_capacity(ids.len());
        for (i, &id) in ids.iter().enumerate() {
            progress(i as u64, ids.len() as u64)?;
            match self.mosaic(id).and_then(|m| self.named(m)) {
                Ok(mut mosaic) => {
                    mosaic.image = Vec::new();
                    entries.push(Entry::new(mosaic));
                }
                Err(e) => tracing::warn!("left out: {e}"),
            }
        }
        Ok(entries)
    }

    /// The mosaic of an entry with its picture.
    ///
    /// # Errors
    /// As [`Bank::mosaic`].
    pub fn whole(&self, entry: &Entry) -> Result<Mosaic<Class>> {
        self.mosaic(entry.mosaic.id).and_then(|m| self.named(m))
    }

    /// The picture of an entry as a PNG file.
    ///
    /// # Errors
    /// As [`Bank::mosaic`].
    pub fn picture_of(&self, entry: &Entry) -> Result<Vec<u8>> {
        let mosaic = self.mosaic(entry.mosaic.id)?;
        picture::png(&mosaic.image, mosaic.size)
    }

    /// Copies the recipes of these mosaics into a folder, as far as the bank keeps them.
    ///
    /// # Errors
    /// As [`Folder::keep_recipe`].
    pub fn recipes_into(&self, folder: &Folder, entries: &[Entry]) -> Result<()> {
        let mut hashes: Vec<&str> = entries.iter().map(|e| e.mosaic.recipe.as_str()).collect();
        hashes.sort_unstable();
        hashes.dedup();
        for hash in hashes {
            if let Ok(text) = self.recipe(hash) {
                folder.keep_recipe(hash, &text)?;
            }
        }
        Ok(())
    }
}
