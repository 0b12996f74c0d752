//! The bilateral solver: fits a mask to the edges of the image.
//!
//! Barron and Poole, "The Fast Bilateral Solver" (arXiv 1511.03296), with the simplified
//! bilateral grid: pixels whose quantized position and colour agree share a vertex. With the
//! splat `S`, the blur `B` over vertices whose coordinates differ by one in one dimension, and
//! `Dm`, `Dn` from bistochastization, the solved vertex values `y` satisfy
//!
//! ```text
//! A y = b,  A = lambda (Dm - Dn B Dn) + diag(S c),  b = S (c t)     (section 2 of the paper)
//! ```
//!
//! for the target `t` and the confidence `c`, and the solution is the slice `S^T y`.

use serde::{Deserialize, Serialize};

use super::{Draft, Refiner};
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask::BinaryMask;
use crate::mask::tools::Tools;

/// Grid dimensions: x, y, luma and two of chroma.
const DIMENSIONS: f64 = 5.0;

/// JPEG's RGB to YCbCr (ITU-T T.871, BT.601 weights): luma in thousandths, chroma in units of
/// 32 millionths, all whole numbers, so that sums are exact and a grey pixel's chroma does not
/// flicker between two bins.
const TO_Y: [i32; 3] = [299, 587, 114];
const TO_CB: [i32; 3] = [-5273, -10352, 15625];
const TO_CR: [i32; 3] = [15625, -13084, -2541];
const LUMA_UNITS: f64 = 1000.0;
const CHROMA_UNITS: f64 = 31250.0;
/// Chroma 128.
const CHROMA_OFFSET: i32 = 4_000_000;

/// How a mask is refined; the defaults are MosaicFusion's (arXiv 2309.13042).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bilateral {
    /// Number of passes; each takes the last one's mask as its target.
    pub passes: u32,
    /// Side of a grid cell, px.
    pub sigma_spatial: f64,
    /// Luma of a grid cell (0..255).
    pub sigma_luma: f64,
    /// Chroma of a grid cell (0..255).
    pub sigma_chroma: f64,
    /// Weight of smoothness against the target.
    pub lambda: f64,
    /// Confidence in the target, constant over the image.
    pub confidence: f64,
    /// Smallest diagonal value of the Jacobi preconditioner.
    pub diagonal_floor: f64,
    /// Conjugate gradients stop when the residual's norm is below this share of `b`'s.
    pub tolerance: f64,
    /// Maximum number of iterations of conjugate gradients.
    pub max_iterations: u32,
    /// Iterations of bistochastization.
    pub bistochastize: u32,
    /// Foreground is above this, after division by the maximum.
    pub threshold: f32,
}

impl Default for Bilateral {
    fn default() -> Self {
        Self {
            passes: 2,
            sigma_spatial: 16.0,
            sigma_luma: 16.0,
            sigma_chroma: 8.0,
            lambda: 256.0,
            confidence: 0.999,
            diagonal_floor: 1e-5,
            tolerance: 1e-5,
            max_iterations: 25,
            bistochastize: 10,
            threshold: 0.5,
        }
    }
}

impl Bilateral {
    /// The refined mask: `passes` times the bilateral solver with the target 255 inside the mask
    /// and 0 outside, divided by its maximum, above the threshold.
    ///
    /// `rgb` is the picture under the mask, row-major `[height, width, 3]`. An empty mask stays
    /// empty.
    ///
    /// # Errors
    /// [`Error::Value`] when the picture's length is not the mask's size times three, or a
    /// parameter is out of range.
    pub fn apply(&self, mask: &BinaryMask, rgb: &[u8]) -> Result<BinaryMask> {
        let grid = BilateralGrid::new(rgb, mask.size(), self)?;
        let weight = grid.uniform_weight();
        let mut b = vec![0f64; grid.vertices()];
        let mut covered = vec![0u32; b.len()];
        for (&v, &inside) in grid.vertex.iter().zip(mask.data()) {
            covered[v as usize] += u32::from(inside);
        }
        for (&place, n) in grid.places.iter().zip(covered) {
            b[place as usize] = f64::from(n);
        }
        let mut inside = vec![0u8; b.len()];
        for pass in 0..self.passes {
            for (i, b) in b.iter_mut().enumerate() {
                // From the second pass on the mask is the same on all pixels of a vertex.
                let set = if pass == 0 {
                    *b
                } else {
                    f64::from(inside[i]) * grid.pixels[i]
                };
                *b = 255.0 * self.confidence * set;
            }
            let (y, _) = grid.solve_vertices(&b, &weight);
            let max = y.iter().copied().fold(0f64, f64::max);
            for (inside, y) in inside.iter_mut().zip(&y) {
                *inside = u8::from(max > 0.0 && y / max > f64::from(self.threshold));
            }
        }
        let inside: Vec<u8> = grid.places.iter().map(|&p| inside[p as usize]).collect();
        let data = grid.vertex.iter().map(|&v| inside[v as usize]).collect();
        BinaryMask::from_vec(mask.size(), data)
    }
}

impl Refiner for Bilateral {
    fn validate(&self, place: &str) -> Result<()> {
        let check = |key: &str, ok: bool, expected: &str, got: f64| {
            if ok {
                Ok(())
            } else {
                Err(Error::value(format!("{place}.{key}"), expected, got))
            }
        };
        for (key, v) in [
            ("sigma_spatial", self.sigma_spatial),
            ("sigma_luma", self.sigma_luma),
            ("sigma_chroma", self.sigma_chroma),
        ] {
            check(
                key,
                (1.0..=4096.0).contains(&v),
                "a value from 1 to 4096",
                v,
            )?;
        }
        check(
            "passes",
            (1..=16).contains(&self.passes),
            "1 to 16",
            self.passes.into(),
        )?;
        check(
            "lambda",
            (0.0..=1e9).contains(&self.lambda),
            "a value from 0 to 1e9",
            self.lambda,
        )?;
        check(
            "confidence",
            self.confidence > 0.0 && self.confidence <= 1.0,
            "a value above 0, at most 1",
            self.confidence,
        )?;
        check(
            "diagonal_floor",
            self.diagonal_floor > 0.0 && self.diagonal_floor.is_finite(),
            "a value above 0",
            self.diagonal_floor,
        )?;
        check(
            "tolerance",
            (0.0..1.0).contains(&self.tolerance),
            "a value from 0 to below 1",
            self.tolerance,
        )?;
        check(
            "max_iterations",
            (1..=10_000).contains(&self.max_iterations),
            "1 to 10000",
            self.max_iterations.into(),
        )?;
        check(
            "bistochastize",
            (1..=1000).contains(&self.bistochastize),
            "1 to 1000",
            self.bistochastize.into(),
        )?;
        check(
            "threshold",
            (0.0..1.0).contains(&self.threshold),
            "a value from 0 to below 1",
            self.threshold.into(),
        )
    }

    fn refine(&self, drafts: &[Draft<'_>], _tools: &Tools) -> Result<Vec<BinaryMask>> {
        drafts
            .iter()
            .map(|d| self.apply(d.mask, &d.region.pixels()?))
            .collect()
    }
}

/// Statistics of a solution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolveReport {
    /// Vertices of the grid.
    pub vertices: usize,
    /// Iterations of conjugate gradients.
    pub iterations: u32,
    /// Norm of the last residual, as a share of `b`'s.
    pub residual: f64,
}

/// A picture's bilateral grid, ready to solve for any target.
///
/// Vertices are sorted by their number of neighbours, so that sums over neighbours run in loops
/// of a fixed length; those without any come first and need no solving.
#[derive(Debug, Clone)]
pub struct BilateralGrid {
    params: Bilateral,
    /// Vertex of each pixel, row-major, as numbered when found.
    vertex: Vec<u32>,
    /// Sorted place of each vertex so numbered; everything below is in this order.
    places: Vec<u32>,
    /// Pixels of each vertex.
    pixels: Vec<f64>,
    /// First vertex with each number of neighbours, 0 to [`MOST_NEIGHBOURS`], and the end.
    by_degree: [usize; MOST_NEIGHBOURS + 2],
    /// Neighbours of the connected vertices, in order, as many for each as its degree says,
    /// counted from the first connected vertex.
    neighbours: Vec<u32>,
    /// Diagonals of `Dn` and `Dm`.
    n: Vec<f64>,
    m: Vec<f64>,
}

/// Two in each of five dimensions.
const MOST_NEIGHBOURS: usize = 10;

/// Ranges of positions that fall into the same bin of `sigma`.
fn bins(length: u32, sigma: f64) -> Vec<std::ops::Range<usize>> {
    let bin = |i: usize| (i as f64 / sigma) as u64;
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    for i in 0..length as usize {
        match ranges.last_mut() {
            Some(r) if bin(r.start) == bin(i) => r.end = i + 1,
            _ => ranges.push(i..i + 1),
        }
    }
    ranges
}

/// Division of whole numbers below 2^23 by a fixed number: multiplication and shift.
#[derive(Clone, Copy)]
struct Divider {
    multiplier: u64,
    shift: u32,
}

impl Divider {
    /// For a divisor from 1 to 2^28. With `m = floor(2^s / d) + 1`, `x m / 2^s` exceeds `x / d` by
    /// at most `x / 2^s`; `s` is large enough for that never to reach the next multiple.
    fn new(divisor: f64) -> Self {
        let shift = 31 + divisor.log2() as u32;
        Self {
            multiplier: ((1u64 << shift) as f64 / divisor) as u64 + 1,
            shift,
        }
    }

    #[inline(always)]
    fn divide(self, x: u64) -> u64 {
        (x * self.multiplier) >> self.shift
    }
}

/// Turns colours into keys: one number for the bins of luma and chroma.
///
/// A step of one bin in a dimension is a fixed step of the key, and there is a free bin at either
/// end of each dimension, so that such steps never meet a colour elsewhere.
struct Quantizer {
    /// For each value of red, green and blue, its parts of luma (bits 46 up), Cb (23 up) and Cr.
    parts: [[u64; 256]; 3],
    luma: Divider,
    chroma: Divider,
    /// The divisor of luma where it is whole, or 0.
    luma_edge: u64,
    sigma_luma: f64,
    /// Key steps of Cr, Cb and luma.
    steps: [u64; 3],
    keys: u64,
}

impl Quantizer {
    const FIELD: u32 = 23;
    const MASK: u64 = (1 << Self::FIELD) - 1;

    fn new(params: &Bilateral) -> Self {
        let mut parts = [[0u64; 256]; 3];
        for (channel, parts) in parts.iter_mut().enumerate() {
            for (value, part) in (0i32..).zip(parts.iter_mut()) {
                // Chroma's offset is spread so that no part is negative.
                let chroma = |k: [i32; 3]| {
                    let used: i32 = k.iter().map(|k| 255 * k.min(&0)).sum();
                    let rest = if channel == 0 {
                        CHROMA_OFFSET + used
                    } else {
                        0
                    };
                    (k[channel] * value - 255 * k[channel].min(0) + rest) as u64
                };
                *part = (((TO_Y[channel] * value) as u64) << (2 * Self::FIELD))
                    | (chroma(TO_CB) << Self::FIELD)
                    | chroma(TO_CR);
            }
        }
        let (luma_units, chroma_units) = (
            params.sigma_luma * LUMA_UNITS,
            params.sigma_chroma * CHROMA_UNITS,
        );
        let bins = |most: f64, units: f64| (most / units) as u64 + 3;
        let chroma_bins = bins(255.5 * CHROMA_UNITS, chroma_units);
        Self {
            parts,
            luma: Divider::new(luma_units),
            chroma: Divider::new(chroma_units),
            luma_edge: if luma_units.fract() == 0.0 {
                luma_units as u64
            } else {
                0
            },
            sigma_luma: params.sigma_luma,
            steps: [1, chroma_bins, chroma_bins * chroma_bins],
            keys: bins(255.0 * LUMA_UNITS, luma_units) * chroma_bins * chroma_bins,
        }
    }

    #[inline(always)]
    fn key(&self, [r, g, b]: [u8; 3]) -> u32 {
        let [of_r, of_g, of_b] = &self.parts;
        let sums = of_r[usize::from(r)] + of_g[usize::from(g)] + of_b[usize::from(b)];
        let exact = sums >> (2 * Self::FIELD);
        let mut luma = self.luma.divide(exact);
        if luma * self.luma_edge == exact && luma > 0 {
            luma = self.luma_on_an_edge([r, g, b]);
        }
        let cb = self.chroma.divide((sums >> Self::FIELD) & Self::MASK);
        let cr = self.chroma.divide(sums & Self::MASK);
        ((luma + 1) * self.steps[2] + (cb + 1) * self.steps[1] + cr + 1) as u32
    }

    /// The bin of a luma right on an edge between two, as about one colour in 16,000 has.
    ///
    /// There float64 implementations go by their rounding; this one rounds as they mostly do: as a
    /// matrix product with fused multiply-adds (NumPy on any BLAS).
    #[cold]
    fn luma_on_an_edge(&self, pixel: [u8; 3]) -> u64 {
        let [r, g, b] = pixel.map(f64::from);
        let rounded = b.mul_add(0.114, g.mul_add(0.587, r * 0.299));
        (rounded / self.sigma_luma) as u64
    }
}

/// Partial sums that are kept side by side, so that one addition need not wait for the last.
const LANES: usize = 8;

impl BilateralGrid {
    /// The grid of a picture, row-major `[height, width, 3]` of 8-bit RGB, with its
    /// bistochastization.
    ///
    /// # Errors
    /// [`Error::Value`] when the length is not the size's times three, the size is empty or
    /// over 2^28 positions, or a parameter is out of range.
    pub fn new(rgb: &[u8], size: Size, params: &Bilateral) -> Result<Self> {
        params.validate("bilateral")?;
        if size.area() == 0 || size.area() > crate::mask::rle::MAX_PIXELS {
            return Err(Error::value(
                "guide picture",
                "at least 1 x 1 and at most 2^28 positions",
                format!("{} x {}", size.height, size.width),
            ));
        }
        if rgb.len() as u64 != size.area() * 3 {
            return Err(Error::value(
                "guide picture",
                format!("{} x {} x 3 bytes", size.height, size.width),
                format!("{} bytes", rgb.len()),
            ));
        }
        let width = size.width as usize;
        let (columns, rows) = (
            bins(size.width, params.sigma_spatial),
            bins(size.height, params.sigma_spatial),
        );
        let quantizer = Quantizer::new(params);

        // Vertices, cell by cell of positions: those of a cell are consecutive. `last` has, for
        // each key, one more than the last vertex with it; entries of earlier cells are told by
        // their range, and so never need clearing.
        let mut last = vec![0u32; quantizer.keys as usize];
        let mut vertex = vec![0u32; size.area() as usize];
        let mut keys: Vec<u32> = Vec::new();
        let mut counts: Vec<u32> = Vec::new();
        // Links to the next bin of each dimension.
        let mut links: Vec<(u32, u32)> = Vec::new();
        let mut cells: Vec<std::ops::Range<u32>> =
            Vec::with_capacity(columns.len() * rows.len());
        let within = |entry: u32, range: &std::ops::Range<u32>| {
            entry.wrapping_sub(range.start + 1) < range.end - range.start
        };
        for row in &rows {
            let mut left = 0..0u32;
            for column in &columns {
                let mut cell = keys.len() as u32..keys.len() as u32;
                for y in row.clone() {
                    let line = y * width + column.start..y * width + column.end;
                    let (colours, _) = rgb[3 * line.start..3 * line.end].as_chunks::<3>();
                    for (v, &pixel) in vertex[line].iter_mut().zip(colours) {
                        let key = quantizer.key(pixel);
                        let entry = &mut last[key as usize];
                        if within(*entry, &cell) {
                            let found = *entry - 1;
                            counts[found as usize] += 1;
                            *v = found;
                        } else {
                            if within(*entry, &left) {
                                links.push((*entry - 1, cell.end));
                            }
                            *v = cell.end;
                            cell.end += 1;
                            *entry = cell.end;
                            keys.push(key);
                            counts.push(1);
                        }
                    }
                }
                for v in cell.clone() {
                    for step in quantizer.steps {
                        let entry = last[keys[v as usize] as usize + step as usize];
                        if within(entry, &cell) {
                            links.push((v, entry - 1));
                        }
                    }
                }
                cells.push(cell.clone());
                left = cell;
            }
        }
        // The same down the columns, for the links to the cell below.
        for c in 0..columns.len() {
            let mut above = 0..0u32;
            for cell in cells.iter().skip(c).step_by(columns.len()) {
                for v in cell.clone() {
                    let entry = &mut last[keys[v as usize] as usize];
                    if within(*entry, &above) {
                        links.push((*entry - 1, v));
                    }
                    *entry = v + 1;
                }
                above = cell.clone();
            }
        }
        Ok(Self::assemble(params, vertex, &counts, &links))
    }

    /// Sorts the vertices by degree, lists their neighbours and bistochastizes.
    fn assemble(
        params: &Bilateral,
        vertex: Vec<u32>,
        counts: &[u32],
        links: &[(u32, u32)],
    ) -> Self {
        let mut degrees = vec![0u8; counts.len()];
        for &(a, b) in links {
            degrees[a as usize] += 1;
            degrees[b as usize] += 1;
        }
        let mut by_degree = [0usize; MOST_NEIGHBOURS + 2];
        for &d in &degrees {
            by_degree[usize::from(d) + 1] += 1;
        }
        for d in 1..by_degree.len() {
            by_degree[d] += by_degree[d - 1];
        }
        // From a vertex to its sorted place, and to the first free place in its neighbour list.
        let mut free = by_degree;
        let mut lists = [0usize; MOST_NEIGHBOURS + 1];
        for d in 1..=MOST_NEIGHBOURS {
            let before = by_degree[d] - by_degree[d - 1];
            lists[d] = lists[d - 1] + (d - 1) * before;
        }
        let mut places = vec![0u32; counts.len()];
        let mut slots = vec![0u32; counts.len()];
        let mut pixels = vec![0f64; counts.len()];
        for (old, &d) in degrees.iter().enumerate() {
            let d = usize::from(d);
            let new = free[d];
            free[d] += 1;
            places[old] = new as u32;
            slots[old] = (lists[d] + (new - by_degree[d]) * d) as u32;
            pixels[new] = f64::from(counts[old]);
        }
        let first = by_degree[1] as u32;
        let mut neighbours = vec![0u32; 2 * links.len()];
        for &(a, b) in links {
            for (from, to) in [(a, b), (b, a)] {
                let slot = &mut slots[from as usize];
                neighbours[*slot as usize] = places[to as usize] - first;
                *slot += 1;
            }
        }
        let mut grid = Self {
            params: *params,
            vertex,
            places,
            n: vec![1.0; pixels.len()],
            m: pixels.clone(),
            pixels,
            by_degree,
            neighbours,
        };
        grid.scale();
        grid
    }

    /// Number of vertices.
    pub fn vertices(&self) -> usize {
        self.n.len()
    }

    /// First vertex that has a neighbour.
    const fn connected(&self) -> usize {
        self.by_degree[1]
    }

    /// For every connected vertex, the sum of `values` over its neighbours; both without the
    /// vertices that have none.
    #[inline(always)]
    fn neighbour_sums(&self, values: &[f64], sums: &mut [f64]) {
        #[inline(always)]
        fn of_degree<'a, 's, const D: usize>(
            count: usize,
            lists: &'a [u32],
            values: &[f64],
            sums: &'s mut [f64],
        ) -> (&'a [u32], &'s mut [f64]) {
            let (now, later) = lists.split_at(count * D);
            let (sums, others) = sums.split_at_mut(count);
            let (now, _) = now.as_chunks::<D>();
            for (sum, list) in sums.iter_mut().zip(now) {
                *sum = list.iter().map(|&j| values[j as usize]).sum();
            }
            (later, others)
        }
        let count = |d: usize| self.by_degree[d + 1] - self.by_degree[d];
        let (l, s) = of_degree::<1>(count(1), &self.neighbours, values, sums);
        let (l, s) = of_degree::<2>(count(2), l, values, s);
        let (l, s) = of_degree::<3>(count(3), l, values, s);
        let (l, s) = of_degree::<4>(count(4), l, values, s);
        let (l, s) = of_degree::<5>(count(5), l, values, s);
        let (l, s) = of_degree::<6>(count(6), l, values, s);
        let (l, s) = of_degree::<7>(count(7), l, values, s);
        let (l, s) = of_degree::<8>(count(8), l, values, s);
        let (l, s) = of_degree::<9>(count(9), l, values, s);
        of_degree::<10>(count(10), l, values, s);
    }

    /// Scales the blur so that its rows and columns add up to the pixels of each vertex
    /// (bistochastization, in the paper's supplement), then takes `m` from what was reached.
    #[inline(always)]
    fn bistochastize(&mut self) {
        const OWN: f64 = 2.0 * DIMENSIONS;
        let first = self.connected();
        // Without neighbours the first iteration is the last.
        for (n, pixels) in self.n[..first].iter_mut().zip(&self.pixels) {
            *n = (pixels / OWN).sqrt();
        }
        let mut n = vec![1.0; self.n.len() - first];
        let mut sums = vec![0f64; n.len()];
        let pixels = &self.pixels[first..];
        for _ in 0..self.params.bistochastize {
            self.neighbour_sums(&n, &mut sums);
            // On its own, so that roots and quotients run side by side.
            for ((n, pixels), sum) in n.iter_mut().zip(pixels).zip(&sums) {
                *n = (*n * pixels / (OWN * *n + sum)).sqrt();
            }
        }
        self.neighbour_sums(&n, &mut sums);
        for ((m, n), sum) in self.m[first..].iter_mut().zip(&n).zip(&sums) {
            *m = n * (OWN * n + sum);
        }
        self.n[first..].copy_from_slice(&n);
    }

    /// The solved map, row-major, on the target's scale.
    ///
    /// `target` has a value for each pixel, of any scale; `confidence`, 0..1, too, and is the
    /// parameters' where absent.
    ///
    /// # Errors
    /// [`Error::Value`] when a length is not the picture's, a target is not finite, or a
    /// confidence is not within 0..1.
    pub fn solve(
        &self,
        target: &[f32],
        confidence: Option<&[f32]>,
    ) -> Result<(Vec<f32>, SolveReport)> {
        let pixels = self.vertex.len();
        for (what, values) in [("target", Some(target)), ("confidence", confidence)] {
            let length = values.map_or(pixels, <[f32]>::len);
            if length != pixels {
                return Err(Error::value(
                    what,
                    format!("{pixels} values, as the guide picture"),
                    format!("{length} values"),
                ));
            }
        }
        if let Some(v) = target.iter().find(|v| !v.is_finite()) {
            return Err(Error::value("target", "finite values", v));
        }
        if let Some(v) = confidence
            .into_iter()
            .flatten()
            .find(|v| !(0.0..=1.0).contains(*v))
        {
            return Err(Error::value("confidence", "values within 0..1", v));
        }
        let mut b = vec![0f64; self.vertices()];
        let weight = match confidence {
            None => {
                let mut sums = vec![0f64; self.vertices()];
                for (&v, &t) in self.vertex.iter().zip(target) {
                    sums[v as usize] += f64::from(t);
                }
                for (&place, sum) in self.places.iter().zip(sums) {
                    b[place as usize] = self.params.confidence * sum;
                }
                self.uniform_weight()
            }
            Some(confidence) => {
                let mut weight = vec![0f64; self.vertices()];
                for ((&v, &t), &c) in self.vertex.iter().zip(target).zip(confidence) {
                    let place = self.places[v as usize] as usize;
                    b[place] += f64::from(c) * f64::from(t);
                    weight[place] += f64::from(c);
                }
                weight
            }
        };
        let (y, report) = self.solve_vertices(&b, &weight);
        let values: Vec<f32> = self.places.iter().map(|&p| y[p as usize] as f32).collect();
        let solved = self.vertex.iter().map(|&v| values[v as usize]).collect();
        Ok((solved, report))
    }

    /// `S c` for the parameters' confidence.
    fn uniform_weight(&self) -> Vec<f64> {
        let c = self.params.confidence;
        self.pixels.iter().map(|pixels| c * pixels).collect()
    }

    /// [`Self::bistochastize`] with the widest vectors that the processor has. Sums are kept by
    /// lane ([`LANES`]), so that every processor gets the same bits.
    fn scale(&mut self) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn wide(grid: &mut BilateralGrid) {
                grid.bistochastize();
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the feature.
                return unsafe { wide(self) };
            }
        }
        self.bistochastize();
    }

    /// [`Self::conjugate_gradients`] with the widest vectors that the processor has.
    fn solve_vertices(&self, b: &[f64], weight: &[f64]) -> (Vec<f64>, SolveReport) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn wide(g: &BilateralGrid, b: &[f64], w: &[f64]) -> (Vec<f64>, SolveReport) {
                g.conjugate_gradients(b, w)
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the feature.
                return unsafe { wide(self, b, weight) };
            }
        }
        self.conjugate_gradients(b, weight)
    }

    /// Jacobi-preconditioned conjugate gradients, from the splatted target's mean.
    ///
    /// With `P` the square root of the preconditioner, this runs plain conjugate gradients on
    /// `(P A P) u = P b`, which makes the same steps; `y = P u`. A vertex without neighbours is
    /// solved by the start value: its residual is 0, and stays so.
    #[inline(always)]
    fn conjugate_gradients(&self, b: &[f64], weight: &[f64]) -> (Vec<f64>, SolveReport) {
        let p = &self.params;
        let count = b.len();
        let first = self.connected();
        let mut y: Vec<f64> = b
            .iter()
            .zip(weight)
            .map(|(b, w)| if *w > 0.0 { b / w } else { 0.0 })
            .collect();
        let norm = b.iter().map(|b| b * b).sum::<f64>().sqrt();
        let mut report = SolveReport {
            vertices: count,
            iterations: 0,
            residual: 0.0,
        };
        if norm == 0.0 {
            return (vec![0.0; count], report);
        }
        // P A P = 1 - G (neighbour sums) G, G = sqrt(lambda) Dn P, but for a diagonal below its
        // floor, which only a confidence of 0 gives: then `unit` holds what stands for the 1.
        let connected = count - first;
        let mut root = vec![0f64; connected];
        let mut g = vec![0f64; connected];
        let mut back = vec![0f64; connected];
        let mut unit: Option<Vec<f64>> = None;
        let root_lambda = p.lambda.sqrt();
        for i in 0..connected {
            let n = self.n[first + i];
            let diagonal =
                p.lambda * (self.m[first + i] - 2.0 * DIMENSIONS * n * n) + weight[first + i];
            back[i] = diagonal.max(p.diagonal_floor);
            if diagonal < p.diagonal_floor {
                unit.get_or_insert_with(|| vec![1.0; connected])[i] =
                    diagonal / p.diagonal_floor;
            }
            root[i] = 1.0 / back[i].sqrt();
            g[i] = root_lambda * n * root[i];
        }
        // u starts at y / P; its scaled residual is P (b - A y).
        let start = &mut y[first..];
        let mut r = vec![0f64; connected];
        let mut q = vec![0f64; connected];
        let mut scaled = vec![0f64; connected];
        for (((s, g), y), root) in scaled.iter_mut().zip(&g).zip(&*start).zip(&root) {
            *s = g * y / root;
        }
        self.neighbour_sums(&scaled, &mut q);
        for i in 0..connected {
            let own = unit.as_ref().map_or(1.0, |unit| unit[i]);
            r[i] = root[i] * b[first + i] - (own * start[i] / root[i] - g[i] * q[i]);
        }
        // The residual's norm, not scaled. It is worth its time only near the end.
        let least = back.iter().copied().fold(f64::INFINITY, f64::min);
        let enough = p.tolerance * norm;
        let unscaled = |r: &[f64]| -> f64 {
            let sum: f64 = r.iter().zip(&back).map(|(r, back)| back * r * r).sum();
            sum.sqrt()
        };
        let mut rho: f64 = r.iter().map(|r| r * r).sum();
        let mut direction = vec![0f64; connected];
        // u - its start value.
        let mut u = vec![0f64; connected];
        let mut beta = 0.0;
        while report.iterations < p.max_iterations {
            if (least * rho).sqrt() < enough && unscaled(&r) < enough {
                break;
            }
            for (((d, s), r), g) in direction.iter_mut().zip(&mut scaled).zip(&r).zip(&g) {
                *d = r + beta * *d;
                *s = g * *d;
            }
            self.neighbour_sums(&scaled, &mut q);
            if let Some(unit) = &unit {
                // `apply` takes 1 d: what is missing of it goes into the sum (where g is 0, the
                // vertex has no links that count, and no confidence: nothing moves it).
                for (((q, d), unit), g) in q.iter_mut().zip(&direction).zip(unit).zip(&g) {
                    if *unit != 1.0 && *g > 0.0 {
                        *q += (1.0 - unit) * d / g;
                    }
                }
            }
            let curvature = apply(&direction, &g, &mut q);
            if curvature <= 0.0 || !curvature.is_finite() {
                // Solved to the last bit, or as far as rounding lets it.
                break;
            }
            let last = rho;
            rho = step(rho / curvature, &direction, &q, &mut u, &mut r);
            beta = rho / last;
            report.iterations += 1;
        }
        for ((y, root), u) in start.iter_mut().zip(&root).zip(&u) {
            *y += root * u;
        }
        report.residual = unscaled(&r) / norm;
        (y, report)
    }
}

/// From neighbour sums `q` to `d - g q`; gives its product with `d`.
#[inline(always)]
fn apply(d: &[f64], g: &[f64], q: &mut [f64]) -> f64 {
    let mut sums = [0f64; LANES];
    let (d4, d1) = d.as_chunks::<LANES>();
    let (g4, g1) = g.as_chunks::<LANES>();
    let (q4, q1) = q.as_chunks_mut::<LANES>();
    for ((d, g), q) in d4.iter().zip(g4).zip(q4) {
        for k in 0..LANES {
            q[k] = d[k] - g[k] * q[k];
            sums[k] += d[k] * q[k];
        }
    }
    for ((d, g), q) in d1.iter().zip(g1).zip(q1) {
        *q = d - g * *q;
        sums[0] += d * *q;
    }
    sums.iter().sum()
}

/// `u += alpha d`, `r -= alpha q`; gives `r . r`.
#[inline(always)]
fn step(alpha: f64, d: &[f64], q: &[f64], u: &mut [f64], r: &mut [f64]) -> f64 {
    let mut sums = [0f64; LANES];
    let (d4, d1) = d.as_chunks::<LANES>();
    let (q4, q1) = q.as_chunks::<LANES>();
    let (u4, u1) = u.as_chunks_mut::<LANES>();
    let (r4, r1) = r.as_chunks_mut::<LANES>();
    for (((d, q), u), r) in d4.iter().zip(q4).zip(u4).zip(r4) {
        for k in 0..LANES {
            u[k] += alpha * d[k];
            r[k] -= alpha * q[k];
            sums[k] += r[k] * r[k];
        }
    }
    for (((d, q), u), r) in d1.iter().zip(q1).zip(u1).zip(r1) {
        *u += alpha * d;
        *r -= alpha * q;
        sums[0] += *r * *r;
    }
    sums.iter().sum()
}

/// The bilateral solver on one picture and target: see [`BilateralGrid::new`] and
/// [`BilateralGrid::solve`]; keep the grid where one picture has several targets.
///
/// # Errors
/// As those two.
pub fn bilateral_solve(
    rgb: &[u8],
    size: Size,
    target: &[f32],
    confidence: Option<&[f32]>,
    params: &Bilateral,
) -> Result<(Vec<f32>, SolveReport)> {
    BilateralGrid::new(rgb, size, params)?.solve(target, confidence)
}
