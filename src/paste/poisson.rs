//! Seamless blending (Perez, Gangnet, Blake: Poisson Image Editing, 2003): inside the mask the
//! pasted gradients, on its rim the image's colours.
//!
//! With `f = source + u`, the correction `u` is harmonic inside the mask and `image - source` on
//! its rim; neighbours beyond the image's edge do not count. The 5-point system is solved by
//! conjugate gradients with a multigrid V-cycle as the preconditioner (2 x 2 aggregates, Galerkin
//! edge weights, coarse corrections doubled as piecewise constants need), on the cutout's
//! rectangle only, all three channels at once.

#![expect(clippy::needless_range_loop, reason = "lanes of a vector are counted")]

use super::plane::{Cutout, Window};

/// Channels, and a lane to fill the vector.
type V = [f32; 4];
const ZERO: V = [0.0; 4];
/// Jacobi damping.
const OMEGA: f32 = 0.8;
/// Sweeps before and after each coarse correction.
const SWEEPS: usize = 2;
/// Sweeps on the coarsest grid.
const COARSE_SWEEPS: usize = 24;
/// Piecewise constant corrections are too small by about this (Braess 1995).
const OVER: f32 = 1.8;
/// The residual's norm, relative to the right-hand side's, at which the solution is taken.
const TOLERANCE: f32 = 1e-4;
const MAX_ITERATIONS: usize = 80;

/// A weighted 5-point operator on a grid with a border of one position.
struct Level {
    h: usize,
    w: usize,
    /// 0 where there is no unknown.
    diagonal: Vec<f32>,
    /// Weight of the edge to the right, and down.
    right: Vec<f32>,
    down: Vec<f32>,
}

impl Level {
    fn new(h: usize, w: usize) -> Self {
        let n = (h + 2) * (w + 2);
        Self {
            h,
            w,
            diagonal: vec![0.0; n],
            right: vec![0.0; n],
            down: vec![0.0; n],
        }
    }

    const fn stride(&self) -> usize {
        self.w + 2
    }

    const fn at(&self, y: usize, x: usize) -> usize {
        (y + 1) * self.stride() + x + 1
    }

    fn coarser(&self) -> Self {
        let mut c = Self::new(self.h.div_ceil(2), self.w.div_ceil(2));
        for y in 0..self.h {
            for x in 0..self.w {
                let (f, t) = (self.at(y, x), c.at(y / 2, x / 2));
                c.diagonal[t] += self.diagonal[f];
                if x % 2 == 0 {
                    c.diagonal[t] -= 2.0 * self.right[f];
                } else {
                    c.right[t] += self.right[f];
                }
                if y % 2 == 0 {
                    c.diagonal[t] -= 2.0 * self.down[f];
                } else {
                    c.down[t] += self.down[f];
                }
            }
        }
        c
    }

    /// `visit(position, A x at it)` for every unknown.
    fn product(&self, x: &[V], mut visit: impl FnMut(usize, V)) {
        let s = self.stride();
        for row in 0..self.h {
            let first = self.at(row, 0);
            for i in first..first + self.w {
                let d = self.diagonal[i];
                if d <= 0.0 {
                    continue;
                }
                let weights = [
                    self.right[i],
                    self.right[i - 1],
                    self.down[i],
                    self.down[i - s],
                ];
                let near = [&x[i + 1], &x[i - 1], &x[i + s], &x[i - s]];
                let mut out = ZERO;
                for k in 0..4 {
                    out[k] = d * x[i][k]
                        - weights[0] * near[0][k]
                        - weights[1] * near[1][k]
                        - weights[2] * near[2][k]
                        - weights[3] * near[3][k];
                }
                visit(i, out);
            }
        }
    }

    /// One damped Jacobi sweep for `A x = b`.
    fn sweep(&self, x: &mut [V], b: &[V], scratch: &mut [V]) {
        self.product(x, |i, ax| {
            let scale = OMEGA / self.diagonal[i];
            for k in 0..4 {
                scratch[i][k] = x[i][k] + scale * (b[i][k] - ax[k]);
            }
        });
        for (i, d) in self.diagonal.iter().enumerate() {
            if *d > 0.0 {
                x[i] = scratch[i];
            }
        }
    }
}

/// Vectors of one level.
struct Work {
    x: Vec<V>,
    b: Vec<V>,
    scratch: Vec<V>,
}

struct Multigrid {
    levels: Vec<Level>,
    work: Vec<Work>,
}

impl Multigrid {
    fn new(finest: Level) -> Self {
        let mut levels = vec![finest];
        while let Some(last) = levels.last() {
            if last.h.max(last.w) <= 3 {
                break;
            }
            let next = last.coarser();
            levels.push(next);
        }
        let work = levels
            .iter()
            .map(|l| {
                let n = l.diagonal.len();
                Work {
                    x: vec![ZERO; n],
                    b: vec![ZERO; n],
                    scratch: vec![ZERO; n],
                }
            })
            .collect();
        Self { levels, work }
    }

    /// One V-cycle from zero for the right-hand side in `work[at].b`; the answer is in `x`.
    fn cycle(&mut self, at: usize) {
        let last = at + 1 == self.levels.len();
        let sweeps = if last { COARSE_SWEEPS } else { SWEEPS };
        let level = &self.levels[at];
        let (here, below) = self.work.split_at_mut(at + 1);
        let w = &mut here[at];
        w.x.fill(ZERO);
        for _ in 0..sweeps {
            level.sweep(&mut w.x, &w.b, &mut w.scratch);
        }
        if last {
            return;
        }
        let coarse = &self.levels[at + 1];
        below[0].b.fill(ZERO);
        let s = level.stride();
        level.product(&w.x, |i, ax| {
            let t = coarse.at((i / s - 1) / 2, (i % s - 1) / 2);
            for k in 0..4 {
                below[0].b[t][k] += w.b[i][k] - ax[k];
            }
        });
        self.cycle(at + 1);
        let level = &self.levels[at];
        let coarse = &self.levels[at + 1];
        let (here, below) = self.work.split_at_mut(at + 1);
        let w = &mut here[at];
        for y in 0..level.h {
            for x in 0..level.w {
                let i = level.at(y, x);
                if level.diagonal[i] > 0.0 {
                    let c = below[0].x[coarse.at(y / 2, x / 2)];
                    for k in 0..4 {
                        w.x[i][k] += OVER * c[k];
                    }
                }
            }
        }
        for _ in 0..SWEEPS {
            level.sweep(&mut w.x, &w.b, &mut w.scratch);
        }
    }
}

fn dot(a: &[V], b: &[V]) -> [f64; 4] {
    let mut sum = [0f64; 4];
    for (a, b) in a.iter().zip(b) {
        for k in 0..4 {
            sum[k] += f64::from(a[k]) * f64::from(b[k]);
        }
    }
    sum
}

/// Solves `A x = b`.
fn solve(finest: Level, b: &[V]) -> Vec<V> {
    let n = b.len();
    let mut grid = Multigrid::new(finest);
    let mut x = vec![ZERO; n];
    let mut r = b.to_vec();
    let mut p = vec![ZERO; n];
    let mut ap = vec![ZERO; n];
    let limit = dot(b, b).map(|v| v * f64::from(TOLERANCE * TOLERANCE));
    let mut rz = [0f64; 4];
    for iteration in 0..MAX_ITERATIONS {
        let rr = dot(&r, &r);
        if rr.iter().zip(&limit).all(|(rr, limit)| rr <= limit) {
            break;
        }
        grid.work[0].b.copy_from_slice(&r);
        grid.cycle(0);
        let z = &grid.work[0].x;
        let new = dot(&r, z);
        let mut beta = [0f32; 4];
        for k in 0..4 {
            if iteration > 0 && rz[k] > 0.0 {
                beta[k] = (new[k] / rz[k]) as f32;
            }
        }
        for (p, z) in p.iter_mut().zip(z) {
            for k in 0..4 {
                p[k] = z[k] + beta[k] * p[k];
            }
        }
        grid.levels[0].product(&p, |i, v| ap[i] = v);
        let pap = dot(&p, &ap);
        let mut alpha = [0f32; 4];
        for k in 0..4 {
            if pap[k] > 0.0 {
                alpha[k] = (new[k] / pap[k]) as f32;
            }
        }
        for i in 0..n {
            for k in 0..4 {
                x[i][k] += alpha[k] * p[i][k];
                r[i][k] -= alpha[k] * ap[i][k];
            }
        }
        rz = new;
    }
    x
}

/// Blends the cutout's foreground inside `w` seamlessly into `image` (`u8 [H, W, 3]`).
pub(super) fn blend(image: &mut [u8], image_width: usize, cutout: &Cutout, w: Window) {
    let image_height = image.len() / 3 / image_width.max(1);
    let mut level = Level::new(w.height, w.width);
    let mut b = vec![ZERO; level.diagonal.len()];
    let cutout_width = cutout.picture.width;
    let inside =
        |y: usize, x: usize| cutout.mask[(w.cutout_y + y) * cutout_width + w.cutout_x + x] != 0;
    let mut rim = false;
    for y in 0..w.height {
        for x in 0..w.width {
            if !inside(y, x) {
                continue;
            }
            let i = level.at(y, x);
            for (dy, dx) in [(0i64, 1i64), (1, 0), (0, -1), (-1, 0)] {
                let (ny, nx) = (y as i64 + dy, x as i64 + dx);
                let (iy, ix) = (w.image_y as i64 + ny, w.image_x as i64 + nx);
                if iy < 0 || ix < 0 || iy >= image_height as i64 || ix >= image_width as i64 {
                    continue;
                }
                level.diagonal[i] += 1.0;
                // Within the image and the foreground's border means within the window.
                let (ny, nx) = (ny as usize, nx as usize);
                if inside(ny, nx) {
                    match (dy, dx) {
                        (0, 1) => level.right[i] = 1.0,
                        (1, 0) => level.down[i] = 1.0,
                        _ => {}
                    }
                    continue;
                }
                rim = true;
                let to = (iy as usize * image_width + ix as usize) * 3;
                let from = ((w.cutout_y + ny) * cutout_width + w.cutout_x + nx) * 4;
                for k in 0..3 {
                    b[i][k] +=
                        f32::from(image[to + k]) - f32::from(cutout.picture.data[from + k]);
                }
            }
        }
    }
    // A mask that covers the image has no rim to take colours from.
    let u = if rim {
        solve(level, &b)
    } else {
        b.iter().map(|_| ZERO).collect()
    };
    let stride = w.width + 2;
    for y in 0..w.height {
        for x in 0..w.width {
            if !inside(y, x) {
                continue;
            }
            let from = ((w.cutout_y + y) * cutout_width + w.cutout_x + x) * 4;
            let to = ((w.image_y + y) * image_width + w.image_x + x) * 3;
            for k in 0..3 {
                let v =
                    f32::from(cutout.picture.data[from + k]) + u[(y + 1) * stride + x + 1][k];
                image[to + k] = (v + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }
}
