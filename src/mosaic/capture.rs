//! Reading the subjects' cross-attention while the UNet runs.
//!
//! Only the subject tokens' columns of the probabilities are computed, and they are added at once
//! to one map per region and resolution: nothing grows with the number of steps or layers.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::diffusion::{CrossAttention, Hook, Stage};
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::{Block, Captured, LevelMap, Reading};

/// Sums of one resolution for all regions of a group.
struct Level {
    size: Size,
    /// `[regions, h, w]`, float32.
    sum: Option<Tensor>,
    layers: u64,
}

/// The maps of the regions that are denoised together.
pub(super) struct GroupMaps {
    levels: BTreeMap<u32, Level>,
    /// One weight per token, `[regions, 1, tokens, 1]`.
    selection: Tensor,
    regions: i64,
    reading: Reading,
}

impl GroupMaps {
    /// For regions whose latents have `size` and whose subjects stand at `positions` of prompts
    /// of `tokens`.
    pub(super) fn new(
        reading: Reading,
        size: Size,
        positions: &[Vec<usize>],
        tokens: usize,
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
        // What the probabilities are multiplied with: the mean over each subject's columns.
        let mut selection = vec![0f32; positions.len() * tokens];
        for (row, columns) in selection.chunks_mut(tokens).zip(positions) {
            for &column in columns {
                if let Some(share) = row.get_mut(column) {
                    *share = 1.0 / columns.len() as f32;
                }
            }
        }
        let shape = [positions.len() as i64, 1, tokens as i64, 1];
        Self {
            levels,
            selection: Tensor::from_slice(&selection).view(shape).to_device(device),
            regions: positions.len() as i64,
            reading,
        }
    }

    fn add(&mut self, layer: &CrossAttention<'_>) {
        let block = match layer.stage {
            Stage::Down => Block::Down,
            Stage::Mid => Block::Mid,
            Stage::Up => Block::Up,
        };
        let size = Size::new(layer.height as u32, layer.width as u32);
        if !self.reading.blocks.contains(&block) {
            return;
        }
        let Some(level) = self.levels.values_mut().find(|l| l.size == size) else {
            return;
        };
        let n = self.regions;
        let batch = layer.query.size()[0];
        // With guidance the conditional half stands last.
        let query = layer.query.narrow(0, batch - n, n).to_kind(Kind::Float);
        let key = layer.key.narrow(0, batch - n, n).to_kind(Kind::Float) * layer.scale;
        let probabilities = query
            .matmul(&key.transpose(-2, -1))
            .softmax(-1, Kind::Float);
        let map = probabilities
            .matmul(&self.selection)
            .mean_dim([1].as_slice(), false, Kind::Float)
            .view([n, layer.height, layer.width]);
        match &mut level.sum {
            Some(sum) => {
                let _ = sum.g_add_(&map);
            }
            None => level.sum = Some(map),
        }
        level.layers += 1;
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
                "blocks and levels at which the UNet has cross-attention",
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

/// The hook of one UNet call: stops when asked to, and reads attention into each reading's maps.
pub(super) struct Watch<'a> {
    pub check: &'a mut dyn FnMut() -> Result<()>,
    pub maps: &'a mut [GroupMaps],
}

impl Hook for Watch<'_> {
    fn check(&mut self) -> Result<()> {
        (self.check)()
    }

    fn cross_attention(&mut self, layer: &CrossAttention<'_>) {
        for maps in &mut *self.maps {
            maps.add(layer);
        }
    }
}
