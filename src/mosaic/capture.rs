//! The observer that turns attention events into the maps from which masks are made.
//!
//! Each event is reduced at once to one map per region and added to the sum of its resolution:
//! nothing grows with the number of steps or layers.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::diffusion::{AttentionEvent, Layer, Observer, Stage};
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::{Block, Captured, LevelMap, Reading};

/// The sum of one resolution for all regions of a group.
struct Level {
    size: Size,
    /// `[regions, h, w]`, float32.
    sum: Option<Tensor>,
    layers: u64,
}

/// One reading's maps of the regions that are denoised together.
pub(super) struct GroupMaps {
    levels: BTreeMap<u32, Level>,
    /// The share of every token in its region's map, `[regions, 1, tokens, 1]`.
    selection: Tensor,
    regions: i64,
    reading: Reading,
}

impl GroupMaps {
    /// For regions whose latents have `size`, given for each the share of every token of its
    /// prompt in the subject's map.
    pub(super) fn new(
        reading: Reading,
        size: Size,
        subjects: &[Vec<f32>],
        device: tch::Device,
    ) -> Self {
        let mut levels = BTreeMap::new();
        let (mut h, mut w) = (size.height, size.width);
        for level in 0..=reading.levels.iter().copied().max().unwrap_or(0) {
            if reading.levels.contains(&level) {
                let size = Size::new(h, w);
                levels.insert(
                    level,
                    Level {
                        size,
                        sum: None,
                        layers: 0,
                    },
                );
            }
            // As a convolution of stride two leaves it.
            (h, w) = (h.div_ceil(2), w.div_ceil(2));
        }
        let regions = subjects.len() as i64;
        let selection = Tensor::from_slice(&subjects.concat()).view([regions, 1, -1, 1]);
        Self {
            levels,
            selection: selection.to_device(device),
            regions,
            reading,
        }
    }

    /// The mean maps of each region, by level.
    ///
    /// # Errors
    /// [`Error::Value`] when no layer matched the recipe's blocks and levels.
    pub(super) fn finish(self) -> Result<Vec<Captured>> {
        let mut regions: Vec<Vec<LevelMap>> = vec![Vec::new(); self.regions as usize];
        for level in self.levels.into_values() {
            let Some(sum) = level.sum else { continue };
            let mean = (sum / level.layers as f64)
                .to_device(tch::Device::Cpu)
                .contiguous();
            for (i, maps) in regions.iter_mut().enumerate() {
                let mut data = vec![0f32; level.size.area() as usize];
                let len = data.len();
                mean.get(i as i64)
                    .f_copy_data(&mut data, len)
                    .map_err(|e| Error::backend("reading attention", e))?;
                maps.push(LevelMap {
                    size: level.size,
                    data,
                });
            }
        }
        if regions.iter().any(Vec::is_empty) {
            return Err(Error::value(
                "recipe, key \"masks\", a reading of attention",
                "blocks and levels at which the model attends to the prompt",
                format!(
                    "{:?} at levels {:?}, where it has none",
                    self.reading.blocks, self.reading.levels
                ),
            ));
        }
        Ok(regions
            .into_iter()
            .map(|levels| Captured {
                reading: self.reading.clone(),
                levels,
            })
            .collect())
    }
}

impl Observer for GroupMaps {
    fn wants(&self, layer: Layer, grid: Size) -> bool {
        let block = match layer.stage {
            Stage::Down => Block::Down,
            Stage::Mid => Block::Mid,
            Stage::Up => Block::Up,
        };
        self.reading.blocks.contains(&block) && self.levels.values().any(|l| l.size == grid)
    }

    fn attention(&mut self, event: &AttentionEvent<'_>) -> Result<()> {
        let Some(level) = self.levels.values_mut().find(|l| l.size == event.grid) else {
            return Ok(());
        };
        let shape = [
            self.regions,
            i64::from(event.grid.height),
            i64::from(event.grid.width),
        ];
        let map = event
            .text_probabilities()
            .matmul(&self.selection)
            .mean_dim([1].as_slice(), false, Kind::Float)
            .view(shape);
        match &mut level.sum {
            Some(sum) => {
                let _ = sum.g_add_(&map);
            }
            None => level.sum = Some(map),
        }
        level.layers += 1;
        Ok(())
    }
}
