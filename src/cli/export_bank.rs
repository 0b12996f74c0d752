//! `mosaicbank export --from BANK`: a bank's mosaics as records and picture files.

use std::path::Path;

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::{Bank, Kind, MosaicRecord};
use crate::dataset::{self, RECORD_FORMAT};
use crate::error::{Error, Result};
use crate::geometry::PixelBox;
use crate::mask::filter::Verdict;

/// Whether a folder is a bank.
pub(super) fn is_bank(folder: &Path) -> bool {
    folder.join(crate::bank::INFO_FILE).is_file()
}

/// Writes the mosaics' pictures (PNG) to `images` and returns their records. A damaged mosaic is
/// named and left out.
///
/// # Errors
/// A bank that cannot be opened, or a folder that cannot be written.
pub(super) fn records(bank: &Path, images: &Path) -> Result<Vec<dataset::MosaicRecord>> {
    catch_stop()?;
    let bank = Bank::open(bank)?;
    std::fs::create_dir_all(images).map_err(|e| Error::io(images, e))?;
    let ids = bank.ids(Kind::Mosaic)?;
    let mut counter = Counter::new("mosaics");
    let mut records = Vec::with_capacity(ids.len());
    for (i, &id) in ids.iter().enumerate() {
        check_stop()?;
        counter.set(i as u64, ids.len() as u64);
        let mosaic = match bank.mosaic(id) {
            Ok(mosaic) => mosaic,
            Err(e) => {
                tracing::warn!("left out: {e}");
                continue;
            }
        };
        let record = record(&bank, &mosaic)?;
        let path = images.join(&record.file_name);
        image::save_buffer(
            &path,
            &mosaic.image,
            mosaic.size.width,
            mosaic.size.height,
            image::ExtendedColorType::Rgb8,
        )
        .map_err(|e| match e {
            image::ImageError::IoError(e) => Error::io(&path, e),
            e => Error::backend(format!("writing {}", path.display()), e),
        })?;
        records.push(record);
    }
    counter.finish();
    Ok(records)
}

fn record(bank: &Bank, m: &MosaicRecord) -> Result<dataset::MosaicRecord> {
    let category = |index: u32| {
        bank.categories().get(index as usize).ok_or_else(|| {
            Error::format(
                bank.path(),
                "categories of its own table",
                format!("index {index}"),
            )
        })
    };
    let regions = m
        .regions
        .iter()
        .map(|r| {
            let c = category(r.category)?;
            Ok(dataset::RegionRecord {
                bbox: r.bbox,
                own: r.bbox,
                prompt: r.prompt.clone(),
                subject: [0, 0],
                guidance: 0.0,
                category: c.name.clone(),
                category_id: Some(u64::from(c.id)),
                verdict: if r.verdict == crate::bank::format::KEPT {
                    Verdict::Kept
                } else {
                    Verdict::NoComponent
                },
            })
        })
        .collect::<Result<_>>()?;
    let instances = m
        .instances
        .iter()
        .map(|i| {
            let c = category(i.category)?;
            Ok(dataset::InstanceRecord {
                category: c.name.clone(),
                category_id: Some(u64::from(c.id)),
                bbox: PixelBox::from(<[u32; 4]>::from(i.bbox)),
                area: i.area,
                score: i.score,
                rle: i.mask.clone(),
                provenance: m.provenance(i),
            })
        })
        .collect::<Result<_>>()?;
    Ok(dataset::MosaicRecord {
        format: RECORD_FORMAT,
        id: m.id.to_string(),
        file_name: format!("{}.png", m.id),
        height: m.size.height,
        width: m.size.width,
        seed: m.seed,
        recipe: m.recipe.clone(),
        model: m.model.clone(),
        weights: m.weights.clone(),
        regions,
        instances,
    })
}
