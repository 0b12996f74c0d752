//! 4-connected components of a mask.

use super::BinaryMask;
use crate::geometry::{PixelBox, Size};

/// One 4-connected component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its value in [`Components::labels`], from 1.
    pub label: u32,
    /// Number of positions.
    pub area: u64,
    /// The tight box.
    pub bbox: PixelBox,
    /// Its first position in row order, `(x, y)`.
    pub first: (u32, u32),
}

/// All components of a mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Components {
    /// Height and width.
    pub size: Size,
    /// Row-major `[height * width]`: 0 for background, otherwise the component's label.
    pub labels: Vec<u32>,
    /// The components, in the order of their first positions; `items[i].label == i + 1`.
    pub items: Vec<Component>,
}

impl Components {
    /// The mask of one component; empty when there is no such label.
    pub fn mask(&self, label: u32) -> BinaryMask {
        let mut mask = BinaryMask::zeros(self.size);
        if label > 0 {
            for (v, &l) in mask.data_mut().iter_mut().zip(&self.labels) {
                *v = u8::from(l == label);
            }
        }
        mask
    }

    /// The component with the largest area (the first of equals), `None` for an empty mask.
    pub fn largest(&self) -> Option<&Component> {
        self.items.iter().rev().max_by_key(|c| c.area)
    }
}

/// A horizontal piece of foreground: row `y`, columns `x0..x1`, and its set.
struct Run {
    y: u32,
    x0: u32,
    x1: u32,
}

fn find(parents: &mut [u32], mut i: u32) -> u32 {
    while parents[i as usize] != i {
        let above = parents[parents[i as usize] as usize];
        parents[i as usize] = above;
        i = above;
    }
    i
}

/// Finds the 4-connected components (horizontal runs joined by union-find).
pub fn components(mask: &BinaryMask) -> Components {
    let size = mask.size();
    let w = size.width as usize;
    let mut labels = vec![0u32; mask.data().len()];
    let mut runs: Vec<Run> = Vec::new();
    let mut parents: Vec<u32> = Vec::new();
    // Runs of the row above: runs[above.0..above.1].
    let mut above = (0usize, 0usize);
    for (y, row) in mask.data().chunks_exact(w.max(1)).enumerate() {
        let begin = runs.len();
        let mut candidate = above.0;
        let mut at = 0;
        while let Some(skip) = row[at..].iter().position(|&v| v != 0) {
            let x0 = at + skip;
            at = x0
                + row[x0..]
                    .iter()
                    .position(|&v| v == 0)
                    .unwrap_or(row.len() - x0);
            let (x0, x1) = (x0 as u32, at as u32);
            let id = runs.len() as u32;
            parents.push(id);
            runs.push(Run {
                y: y as u32,
                x0,
                x1,
            });
            while candidate < above.1 && runs[candidate].x1 <= x0 {
                candidate += 1;
            }
            let mut touching = candidate;
            while touching < above.1 && runs[touching].x0 < x1 {
                let (a, b) = (find(&mut parents, id), find(&mut parents, touching as u32));
                // The smaller id is the root: roots stay in the order of first positions.
                parents[a.max(b) as usize] = a.min(b);
                touching += 1;
            }
        }
        above = (begin, runs.len());
    }
    let mut items: Vec<Component> = Vec::new();
    let mut label_of_root = vec![0u32; runs.len()];
    for (id, run) in runs.iter().enumerate() {
        let root = find(&mut parents, id as u32) as usize;
        let piece = PixelBox::new(run.x0, run.y, run.x1, run.y + 1);
        if label_of_root[root] == 0 {
            items.push(Component {
                label: items.len() as u32 + 1,
                area: 0,
                bbox: piece,
                first: (run.x0, run.y),
            });
            label_of_root[root] = items.len() as u32;
        }
        let label = label_of_root[root];
        let item = &mut items[label as usize - 1];
        item.area += u64::from(run.x1 - run.x0);
        item.bbox = PixelBox::new(
            item.bbox.x0.min(piece.x0),
            item.bbox.y0,
            item.bbox.x1.max(piece.x1),
            piece.y1,
        );
        let start = run.y as usize * w;
        labels[start + run.x0 as usize..start + run.x1 as usize].fill(label);
    }
    Components {
        size,
        labels,
        items,
    }
}

/// The mask's largest 4-connected component (the first of equals), `None` for an empty mask.
pub fn largest_component(mask: &BinaryMask) -> Option<BinaryMask> {
    let found = components(mask);
    let label = found.largest()?.label;
    Some(found.mask(label))
}
