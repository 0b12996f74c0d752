//! `mosaicbank export --from BANK`: a bank's mosaics as records and pictures.

use std::path::Path;

use image::ImageEncoder;

use super::context::{catch_stop, check_stop};
use super::progress::Counter;
use crate::bank::{Bank, Kind, MosaicRecord};
use crate::dataset::{self, Category, CategoryTable, Frequency, RECORD_FORMAT};
use crate::error::{Error, Result};
use crate::geometry::PixelBox;
use crate::mask::filter::Verdict;

/// Whether a folder is a bank.
pub(super) fn is_bank(folder: &Path) -> bool {
    folder.join(crate::bank::INFO_FILE).is_file()
}

/// The records of a bank's mosaics. A damaged mosaic is named and left out.
///
/// # Errors
/// A bank that cannot be read.
pub(super) fn records(bank: &Bank) -> Result<Vec<dataset::MosaicRecord>> {
    catch_stop()?;
    let ids = bank.ids(Kind::Mosaic)?;
    let mut counter = Counter::new("mosaics read");
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
        records.push(record(bank, &mosaic)?);
    }
    counter.finish();
    Ok(records)
}

/// The picture of one of these records, as a PNG file.
///
/// # Errors
/// A record that cannot be read.
pub(super) fn picture(bank: &Bank, record: &dataset::MosaicRecord) -> Result<Vec<u8>> {
    let mosaic = bank.mosaic(record.id.parse()?)?;
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(
            &mosaic.image,
            mosaic.size.width,
            mosaic.size.height,
            image::ExtendedColorType::Rgb8,
        )
        .map_err(|e| Error::backend(format!("mosaic {}: writing a PNG", record.id), e))?;
    Ok(png)
}

/// The bank's categories as a table.
///
/// # Errors
/// As [`CategoryTable::new`].
pub(super) fn table(bank: &Bank) -> Result<CategoryTable> {
    let categories = bank
        .categories()
        .iter()
        .map(|c| Category {
            id: u64::from(c.id),
            name: c.name.clone(),
            synset: String::new(),
            definition: String::new(),
            synonyms: vec![c.name.clone()],
            frequency: c
                .frequency
                .as_deref()
                .and_then(Frequency::from_letter)
                .unwrap_or_else(|| {
                    Frequency::from_image_count(c.image_count.unwrap_or_default())
                }),
            image_count: 0,
            instance_count: 0,
        })
        .collect();
    CategoryTable::new(
        bank.path().join(crate::bank::INFO_FILE).display(),
        categories,
    )
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
            let trace = r.trace.as_ref();
            let planned = m.generation.as_ref().zip(trace);
            let planned = planned
                .and_then(|(generation, trace)| generation.regions.get(trace.planned as usize));
            Ok(dataset::RegionRecord {
                bbox: r.bbox,
                own: trace.map_or(r.bbox, |w| w.own),
                prompt: r.prompt.clone(),
                subject: planned.map_or([0, 0], |p| p.subject),
                guidance: planned.map_or(0.0, |p| p.guidance),
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
