//! A canvas as its mosaic's record has it, and back.

use super::canvas::{Canvas, Region};
use super::prompt::Subject;
use crate::error::{Error, Result};
use crate::record::{Generation, Planned, StartPicture, fingerprint};

/// The regions of a canvas as its record keeps them.
pub(super) fn planned(canvas: &Canvas) -> Vec<Planned> {
    canvas
        .regions
        .iter()
        .map(|region| Planned {
            bbox: region.bbox,
            own: region.own,
            category: region.category.clone(),
            prompt: region.subject.prompt.clone(),
            subject: [
                region.subject.span.start as u32,
                region.subject.span.end as u32,
            ],
            guidance: region.guidance,
            noise_seed: region.noise_seed,
            start: region.image.as_ref().map(|image| StartPicture {
                strength: image.strength,
                pixels: fingerprint(&image.rgb, region.bbox.size()),
            }),
        })
        .collect()
}

impl Canvas {
    /// The canvas that a record says its mosaic was made of.
    ///
    /// # Errors
    /// [`Error::Value`] when a subject lies outside its prompt, or a region started from a
    /// picture, which records do not keep.
    pub fn of_record(generation: &Generation, seed: u64) -> Result<Self> {
        let regions = generation.regions.iter().enumerate().map(|(i, r)| {
            if r.start.is_some() {
                return Err(Error::value(
                    format!("region {i}"),
                    "one that started from noise, which its seed gives again",
                    "one that started from a picture, which the record does not keep",
                ));
            }
            let [start, end] = r.subject.map(|at| at as usize);
            Ok(Region {
                bbox: r.bbox,
                own: r.own,
                category: r.category.clone(),
                subject: Subject::at(&r.prompt, start..end)?,
                guidance: r.guidance,
                noise_seed: r.noise_seed,
                image: None,
            })
        });
        Ok(Self {
            size: generation.canvas,
            regions: regions.collect::<Result<_>>()?,
            seed,
        })
    }
}
