//! How likely a slot asks for a category.

use crate::bank::Demand;
use crate::priority::{is_rare, priority, unmet};

/// Weight of each category: its [`priority`], 0 where no slot may go.
///
/// Slots go to the allowed categories that LVIS would oversample (repeat factor above 1). Where
/// none of them is that rare (a small or balanced dataset, or nothing rare can be supplied),
/// all allowed ones get slots, by the same formula.
///
/// * `rarity`: of each category, see [`crate::priority::rarity`];
/// * `allowed`: categories that are wanted and can be supplied;
/// * `demand`: the demand board, in the same order.
pub fn slot_weights(rarity: &[f64], allowed: &[bool], demand: Option<&[Demand]>) -> Vec<f64> {
    let neutral = Demand::default();
    let may = |c: usize| allowed.get(c).copied().unwrap_or_default();
    let any_rare = (0..).zip(rarity).any(|(c, r)| may(c) && is_rare(*r));
    (0..)
        .zip(rarity)
        .map(|(c, &r)| {
            if !may(c) || (any_rare && !is_rare(r)) {
                return 0.0;
            }
            let d = demand.and_then(|d| d.get(c)).unwrap_or(&neutral);
            priority(r, unmet(d), f64::from(d.weight))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::{MAX_UNMET, images, rarity};

    fn rarities(counts: &[u64], reference: f64) -> Vec<f64> {
        counts
            .iter()
            .map(|&n| rarity(images(Some(n), None), reference))
            .collect()
    }

    #[test]
    fn rare_and_unseen_categories_get_slots_frequent_ones_do_not() {
        let r = rarities(&[0, 1, 10, 500], 100.0);
        let w = slot_weights(&r, &[true; 4], None);
        assert!(
            w[0] > w[1] && w[1] > w[2] && w[2] > 0.0 && w[3] == 0.0,
            "{w:?}"
        );
        assert!((w[2] - 10f64.sqrt()).abs() < 1e-12);
        // Nothing is rare: all get slots, the rarer more.
        let w = slot_weights(&rarities(&[2, 8], 1.0), &[true; 2], None);
        assert!(w[1] > 0.0 && (w[0] / w[1] - 2.0).abs() < 1e-12, "{w:?}");
    }

    #[test]
    fn slots_go_to_what_is_allowed_alone() {
        let r = rarities(&[1, 10, 500, 400], 100.0);
        let w = slot_weights(&r, &[false, true, true, false], None);
        assert!(
            w[0] == 0.0 && w[1] > 0.0 && w[2] == 0.0 && w[3] == 0.0,
            "{w:?}"
        );
        // No rare category can be had: the share goes to those that can.
        let w = slot_weights(&r, &[false, false, true, false], None);
        assert!(w[2] > 0.0 && w[0] + w[1] + w[3] == 0.0, "{w:?}");
        assert_eq!(slot_weights(&r, &[false; 4], None), [0.0; 4]);
    }

    #[test]
    fn feedback_and_unmet_demand_raise() {
        let mut d = [Demand::default(); 2];
        d[0].weight = 3.0;
        d[1].asked = 1000;
        let r = rarities(&[1, 1], 100.0);
        let plain = slot_weights(&r, &[true; 2], None);
        let w = slot_weights(&r, &[true; 2], Some(&d));
        assert!((w[0] / plain[0] - 3.0).abs() < 1e-6);
        assert!((w[1] / plain[1] - MAX_UNMET).abs() < 1e-6);
    }
}
