//! A `mosaicbank.Region` on its way in.

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Error;
use crate::geometry::PixelBox;
use crate::mosaic::{Part, Region, RegionImage, Subject};

fn read_box(value: &Bound<'_, PyAny>) -> PyResult<PixelBox> {
    let [x0, y0, x1, y1]: [u32; 4] = value.extract().map_err(|_| {
        PyErr::from(Error::value(
            "region box",
            "(x0, y0, x1, y1) in whole pixels, none negative",
            value
                .repr()
                .map_or_else(|_| "another value".into(), |r| r.to_string()),
        ))
    })?;
    Ok(PixelBox::new(x0, y0, x1, y1))
}

/// A `mosaicbank.Region`, and whether it names its guidance.
pub(super) fn read_region(index: usize, region: &Bound<'_, PyAny>) -> PyResult<(Region, bool)> {
    let bbox = read_box(&region.getattr("box")?)?;
    let own = region.getattr("own")?;
    let own = if own.is_none() { bbox } else { read_box(&own)? };
    let prompt: String = region.getattr("prompt")?.extract()?;
    let subject: Option<String> = region.getattr("subject")?.extract()?;
    let category: Option<String> = region.getattr("category")?.extract()?;
    let guidance: Option<f64> = region.getattr("guidance")?.extract()?;
    let found = Subject::find(&prompt, subject.as_deref()).map_err(|e| match e {
        Error::Value {
            what,
            expected,
            got,
        } => Error::Value {
            what: format!("region {index}: {what}"),
            expected,
            got,
        },
        other => other,
    })?;
    let category = category.or(subject).unwrap_or_else(|| prompt.clone());
    let part = Part { region: bbox, own };
    let mut out = Region::new(part, &category, found, guidance.unwrap_or(1.0));
    out.noise_seed = region.getattr("noise_seed")?.extract()?;
    let image = region.getattr("image")?;
    if !image.is_none() {
        let array: PyReadonlyArrayDyn<'_, u8> = image.extract().map_err(|_| {
            PyErr::from(Error::value(
                format!("region {index}: image"),
                "a uint8 numpy array [h, w, 3]",
                image
                    .get_type()
                    .name()
                    .map_or_else(|_| "another type".into(), |n| n.to_string()),
            ))
        })?;
        let expected = [bbox.height() as usize, bbox.width() as usize, 3];
        if array.shape() != expected {
            return Err(Error::value(
                format!("region {index}: image"),
                format!("uint8 {expected:?}"),
                format!("{:?}", array.shape()),
            )
            .into());
        }
        out.image = Some(RegionImage {
            rgb: array.as_array().iter().copied().collect(),
            strength: region.getattr("strength")?.extract()?,
        });
    }
    Ok((out, guidance.is_some()))
}
