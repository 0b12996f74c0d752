//! How likely a slot asks for a category.

use crate::bank::Demand;

/// Most that unmet demand raises a category.
const MAX_DEMAND: f64 = 4.0;

/// Weight of each category: rarity x demand x feedback.
///
/// * rarity is the repeat factor `sqrt(threshold / f(c))` where that is above 1, and 0 for
///   categories that are frequent enough; a category without any training image counts as
///   half an image, so it is drawn too, and more often than one with an image;
/// * demand is `(asked + 1) / (served + 1)`, 1 to 4: what was asked for and not there catches up
///   when it comes;
/// * feedback is the demand board's weight.
///
/// When no category is rare (a small or balanced dataset), rarity is `1 / images` instead.
pub fn slot_weights(
    image_counts: &[u64],
    images: u64,
    threshold: f64,
    demand: Option<&[Demand]>,
) -> Vec<f64> {
    let count = |n: u64| if n == 0 { 0.5 } else { n as f64 };
    let mut rarity: Vec<f64> = image_counts
        .iter()
        .map(|&n| (threshold * images.max(1) as f64 / count(n)).sqrt())
        .map(|r| if r > 1.0 { r } else { 0.0 })
        .collect();
    if rarity.iter().all(|r| *r == 0.0) {
        rarity = image_counts.iter().map(|&n| 1.0 / count(n)).collect();
    }
    if let Some(demand) = demand {
        for (r, d) in rarity.iter_mut().zip(demand) {
            let served = (d.served_fresh + d.served_again) as f64;
            let unmet = ((d.asked as f64 + 1.0) / (served + 1.0)).clamp(1.0, MAX_DEMAND);
            *r *= unmet * f64::from(d.weight);
        }
    }
    rarity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_and_unseen_categories_get_slots_frequent_ones_do_not() {
        let w = slot_weights(&[0, 1, 10, 500], 100_000, 0.001, None);
        assert!(
            w[0] > w[1] && w[1] > w[2] && w[2] > 0.0 && w[3] == 0.0,
            "{w:?}"
        );
        assert!((w[2] - 10f64.sqrt()).abs() < 1e-12);
        // Nothing is rare: inverse counts.
        assert_eq!(slot_weights(&[2, 4], 4, 0.001, None), [0.5, 0.25]);
    }

    #[test]
    fn feedback_and_unmet_demand_raise() {
        let mut d = [Demand::default(); 2];
        d[0].weight = 3.0;
        d[1].asked = 1000;
        let plain = slot_weights(&[1, 1], 100_000, 0.001, None);
        let w = slot_weights(&[1, 1], 100_000, 0.001, Some(&d));
        assert!((w[0] / plain[0] - 3.0).abs() < 1e-6);
        assert!((w[1] / plain[1] - MAX_DEMAND).abs() < 1e-6);
    }
}
