//! The weights with which the predictions of overlapping regions are averaged.

use tch::{Device, Kind, Tensor};

use crate::geometry::Size;
use crate::recipe::Window;

/// Weights along one axis of `n` latent cells.
fn axis(window: Window, n: u32) -> Vec<f64> {
    let middle = f64::from(n.saturating_sub(1)) / 2.0;
    let side = f64::from(n);
    (0..n)
        .map(|i| {
            let d = f64::from(i) - middle;
            match window {
                Window::Gaussian { variance } => {
                    let v = variance * side * side;
                    (-d * d / (2.0 * v)).exp() / (2.0 * std::f64::consts::PI * variance).sqrt()
                }
                Window::Constant => 1.0,
                // Half a cell beyond the ends, so that no weight is zero.
                Window::Quartic => (1.0 - (d / (side / 2.0 + 0.5)).powi(2)).powi(2),
            }
        })
        .collect()
}

/// Separable weights `[1, 1, h, w]`, float32, all positive.
pub(super) fn blend_weights(window: Window, size: Size, device: Device) -> Tensor {
    let column = Tensor::from_slice(&axis(window, size.height)).unsqueeze(1);
    let row = Tensor::from_slice(&axis(window, size.width)).unsqueeze(0);
    (column * row)
        // A narrow Gaussian underflows at the corners of large regions.
        .clamp_min(f64::from(f32::MIN_POSITIVE))
        .to_kind(Kind::Float)
        .to_device(device)
        .unsqueeze(0)
        .unsqueeze(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_positive_symmetric_and_peak_in_the_middle() {
        for window in [
            Window::Gaussian { variance: 0.01 },
            Window::Constant,
            Window::Quartic,
        ] {
            for n in [1u32, 2, 9, 64, 160] {
                let a = axis(window, n);
                let mirrored: Vec<f64> = a.iter().rev().copied().collect();
                assert!(a.iter().zip(&mirrored).all(|(x, y)| (x - y).abs() < 1e-12));
                assert!(
                    a.iter()
                        .all(|&v| v > 0.0 && v <= a[(n as usize - 1) / 2] + 1e-12)
                );
            }
        }
    }
}
