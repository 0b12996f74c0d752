//! Whether a mosaic that was made again is the same as the bank's.

use crate::bank::{Bank, MosaicRecord, RecordId};
use crate::error::Result;
use crate::mosaic::Labelled;
use crate::recipe::Recipe;
use crate::record::fingerprint;

/// The mosaic with this id, or the one that the instance with this id was cut from.
///
/// # Errors
/// [`crate::Error::Value`] when the bank has neither.
pub fn find(bank: &Bank, id: &str) -> Result<MosaicRecord> {
    let wanted: RecordId = id.parse()?;
    match bank.mosaic(wanted) {
        Err(e) => {
            let instance = bank.instance(wanted).map_err(|_| e)?;
            bank.mosaic(instance.provenance.mosaic.parse()?)
        }
        found => found,
    }
}

/// The recipe that the bank keeps for a mosaic.
///
/// # Errors
/// [`crate::Error::NotFound`] when it keeps none, [`Error::Format`] when it is another one.
pub fn recipe_of(bank: &Bank, kept: &MosaicRecord) -> Result<Recipe> {
    let text = bank.recipe(&kept.recipe)?;
    let place = bank
        .path()
        .join("recipes")
        .join(format!("{}.json", kept.recipe));
    Recipe::read_stored(&text, &kept.recipe, &place)
}

/// What is the same of a mosaic that was made again.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Whether the pixels are, as they were before the bank coded them.
    pub pixels: bool,
    /// Largest difference to the bank's picture, which lost a little by its coding, 0..255;
    /// `None` when their sizes differ.
    pub largest: Option<u8>,
    /// IoU of each kept mask with the one made again.
    pub masks: Vec<f64>,
    /// Instances made again.
    pub instances: usize,
    /// Whether all verdicts are.
    pub verdicts: bool,
}

impl Comparison {
    /// Of a bank's mosaic with one made again.
    pub fn of(kept: &MosaicRecord, made: &Labelled) -> Self {
        let again = &made.record;
        let masks = kept
            .instances
            .iter()
            .enumerate()
            .map(|(i, instance)| {
                again
                    .instances
                    .get(i)
                    .and_then(|again| instance.mask.iou(&again.mask).ok())
                    .unwrap_or(0.0)
            })
            .collect();
        let pixels = fingerprint(&again.image, again.size);
        let differences = kept.image.iter().zip(&again.image);
        Self {
            pixels: kept.generation.as_ref().map(|g| &g.pixels) == Some(&pixels),
            largest: (again.size == kept.size)
                .then(|| differences.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)),
            masks,
            instances: again.instances.len(),
            verdicts: kept.regions.len() == again.regions.len()
                && kept
                    .regions
                    .iter()
                    .zip(&again.regions)
                    .all(|(a, b)| a.verdict == b.verdict),
        }
    }

    /// Whether every mask is the same, and there are as many.
    pub fn same_masks(&self) -> bool {
        self.instances == self.masks.len() && self.masks.iter().all(|&iou| iou >= 1.0)
    }

    /// Whether pixels, masks and verdicts are the same.
    pub fn identical(&self) -> bool {
        self.pixels && self.same_masks() && self.verdicts
    }
}
