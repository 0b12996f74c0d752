//! From mosaics to WebDataset shards: tar files in which the members of one sample stand together
//! and share the name before the first dot.
//!
//! ```text
//! <out>/mosaics-000000.tar    <id>.png, <id>.json, <id>.png, <id>.json, ...
//! ```
//!
//! The format: <https://github.com/webdataset/webdataset>.

use std::path::Path;

use serde::Serialize;

use super::category::CategoryTable;
use super::entry::Entry;
use super::file::write_beside;
use crate::error::{Error, Result};
use crate::mask::Rle;
use crate::record::Scores;

/// `<id>.json` of a sample.
#[derive(Serialize)]
struct Sample<'a> {
    id: String,
    height: u32,
    width: u32,
    seed: u64,
    recipe: &'a str,
    model: &'a str,
    weights: &'a str,
    annotations: Vec<Annotation<'a>>,
}

#[derive(Serialize)]
struct Annotation<'a> {
    category: &'a str,
    category_id: u64,
    /// x, y, width, height in pixels, as COCO has it.
    bbox: [u32; 4],
    area: u64,
    segmentation: &'a Rle,
    score: f32,
    #[serde(skip_serializing_if = "Scores::is_empty")]
    scores: &'a Scores,
    prompt: &'a str,
}

/// Writes the shards, `per_shard` mosaics in each; `picture` gives a record's picture as a PNG
/// file. Returns the numbers of shards, pictures and instances. Mosaics without instances are left
/// out. The same mosaics give the same bytes.
///
/// # Errors
/// [`Error::UnknownCategory`], [`Error::Io`], and what `picture` returns.
pub fn write_webdataset(
    out: &Path,
    entries: &[Entry],
    table: &CategoryTable,
    per_shard: usize,
    picture: &mut dyn FnMut(&Entry) -> Result<Vec<u8>>,
) -> Result<(usize, usize, usize)> {
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let full: Vec<&Entry> = entries
        .iter()
        .filter(|e| !e.mosaic.instances.is_empty())
        .collect();
    let (mut shards, mut instances) = (0, 0);
    for part in full.chunks(per_shard.max(1)) {
        let path = out.join(format!("mosaics-{shards:06}.tar"));
        let mut failure = None;
        write_beside(&path, |file| {
            let mut tar = tar::Builder::new(file);
            for entry in part {
                match members(entry, table, picture) {
                    Ok((json, png)) => {
                        append(&mut tar, &format!("{}.png", entry.mosaic.id), &png)?;
                        append(&mut tar, &format!("{}.json", entry.mosaic.id), &json)?;
                    }
                    Err(e) => {
                        failure = Some(e);
                        return Err(std::io::Error::other("a mosaic cannot be written"));
                    }
                }
                instances += entry.mosaic.instances.len();
            }
            tar.finish()
        })
        .map_err(|e| failure.take().unwrap_or(e))?;
        shards += 1;
    }
    Ok((shards, full.len(), instances))
}

fn members(
    entry: &Entry,
    table: &CategoryTable,
    picture: &mut dyn FnMut(&Entry) -> Result<Vec<u8>>,
) -> Result<(Vec<u8>, Vec<u8>)> {
    let record = &entry.mosaic;
    let prompt = |at: u32| record.regions.get(at as usize).map_or("", |r| &r.prompt);
    let annotations = record
        .instances
        .iter()
        .map(|i| {
            Ok(Annotation {
                category: &i.category.name,
                category_id: table.get(&i.category.name)?.id,
                bbox: i.bbox.to_xywh(),
                area: i.area,
                segmentation: &i.mask,
                score: i.score,
                scores: &i.scores,
                prompt: prompt(i.region),
            })
        })
        .collect::<Result<_>>()?;
    let sample = Sample {
        id: record.id.to_string(),
        height: record.size.height,
        width: record.size.width,
        seed: record.seed,
        recipe: &record.recipe,
        model: &record.model,
        weights: &record.weights,
        annotations,
    };
    let json = serde_json::to_vec(&sample).map_err(|e| Error::backend("writing JSON", e))?;
    Ok((json, picture(entry)?))
}

fn append<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}
