//! How much a category is wanted, and whether it can be had at all.
//!
//! One formula, [`priority`], serves the sampler (which category a slot asks for) and the planner
//! (which category the engine makes next):
//!
//! ```text
//! priority = rarity x demand x feedback
//! ```
//!
//! | factor | source | sampler | planner |
//! | --- | --- | --- | --- |
//! | rarity | [`rarity`]: training images of the category | yes | yes |
//! | demand | the demand board's counters | [`unmet`]: requests per answer, 1 to 4 | [`anticipated`]: what trainers request |
//! | feedback | the demand board's `weight` | yes | yes, while no trainer requests anything |
//!
//! Each factor acts once. Trainers draw their requests in proportion to rarity and feedback, so
//! request counts already contain both: the planner takes the counts as they are, and uses
//! rarity and feedback only to predict the requests of categories that have none
//! ([`anticipated`]). A feedback of 0 switches a category off for both.
//!
//! [`supply`] says which categories the bank or a running engine can deliver. Priority without
//! supply is never spent: no slot goes there.

pub mod supply;

use crate::bank::{Category, Demand};

/// Most that unmet demand raises a category.
pub const MAX_UNMET: f64 = 4.0;
/// A category without a training image (a novel one) counts as half an image: rarer than one with
/// an image, and finite.
const NO_IMAGE: f64 = 0.5;
/// Training images of a category where only its LVIS band is known: about the medians of LVIS v1
/// (the bands are 1..=10, 11..=100, and more).
const IMAGES_BY_FREQUENCY: [(&str, f64); 3] = [("r", 5.0), ("c", 40.0), ("f", 400.0)];
/// Training images of a category of which nothing is known, and the reference of planners, which do
/// not know the number of images: the most that LVIS calls rare.
pub const RARE_IMAGES: f64 = 10.0;
/// Share of a request that a category without requests counts for, so that its turn comes.
const UNREQUESTED: f64 = 0.002;

/// The number of training images to reckon with: the count where it is known, else a typical one
/// for the band, else [`RARE_IMAGES`]. Zero images count as half an image.
pub fn images(count: Option<u64>, band: Option<&str>) -> f64 {
    match (count, band) {
        (Some(0), _) => NO_IMAGE,
        (Some(n), _) => n as f64,
        (None, Some(band)) => IMAGES_BY_FREQUENCY
            .iter()
            .find(|(letter, _)| *letter == band)
            .map_or(RARE_IMAGES, |(_, images)| *images),
        (None, None) => RARE_IMAGES,
    }
}

/// [`images`] of a line of a bank's category table.
pub fn images_of(category: &Category) -> f64 {
    images(category.image_count, category.frequency.as_deref())
}

/// How rare a category with so many training `images` is: `sqrt(reference / images)`.
///
/// With `reference = t x N` (threshold times images in the dataset) this is the LVIS repeat factor
/// `r = max(1, sqrt(t / f))`, `f = images / N`, before it is cut off at 1 (Gupta, Dollar,
/// Girshick, arXiv 1908.03195, section 4). The cut-off is left to the caller: it decides which
/// categories are rare ([`is_rare`]), whereas the ratio between two categories does not depend
/// on the reference, so that planners, which do not know `N`, use [`RARE_IMAGES`].
pub fn rarity(images: f64, reference: f64) -> f64 {
    (reference.max(0.0) / images.max(NO_IMAGE)).sqrt()
}

/// Whether LVIS's repeat factor is above 1.
pub fn is_rare(rarity: f64) -> bool {
    rarity > 1.0
}

/// Requests per answer, 1 to [`MAX_UNMET`]: a category that was asked for in vain catches up when
/// it comes into stock.
pub fn unmet(demand: &Demand) -> f64 {
    let served = (demand.served_fresh + demand.served_again) as f64;
    ((demand.asked as f64 + 1.0) / (served + 1.0)).clamp(1.0, MAX_UNMET)
}

/// How much a category is wanted: rarity x demand x feedback, each at least 0.
pub fn priority(rarity: f64, demand: f64, feedback: f64) -> f64 {
    rarity * demand * feedback
}

/// The requests that trainers will make, any scale: `requests` as counted, plus a little of
/// `prior` (their own [`priority`], from which they draw) so that categories without a request
/// are ordered, too. `prior` alone where nobody requests anything; 0 where the prior is 0.
pub fn anticipated(requests: &[f64], prior: &[f64]) -> Vec<f64> {
    let most = requests.iter().copied().fold(0.0, f64::max);
    let highest = prior.iter().copied().fold(0.0, f64::max);
    // Less than one request within the memory of the engine.
    if most < 0.01 || highest <= 0.0 {
        return prior.to_vec();
    }
    requests
        .iter()
        .zip(prior)
        .map(|(asked, prior)| {
            if *prior > 0.0 {
                asked / most + UNREQUESTED * prior / highest
            } else {
                0.0
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rarity_is_the_lvis_repeat_factor_before_its_cut_off() {
        // t = 0.001, N = 100,000: r = max(1, sqrt(0.001 / f)).
        for n in [1u64, 10, 99, 100, 101, 5000] {
            let f = n as f64 / 1e5;
            let r = (0.001 / f).sqrt().max(1.0);
            let ours = rarity(images(Some(n), None), 0.001 * 1e5);
            assert!((ours.max(1.0) - r).abs() < 1e-12, "{n}");
            assert_eq!(is_rare(ours), n < 100, "{n}");
        }
    }

    #[test]
    fn unknown_and_zero_counts_have_their_place() {
        let of = |count, band| rarity(images(count, band), RARE_IMAGES);
        assert!((of(Some(10), None) - 1.0).abs() < 1e-12);
        // A novel category comes before one with an image, whatever its band says.
        assert!(of(Some(0), Some("f")) > of(Some(1), Some("r")));
        assert!(of(None, Some("r")) > of(None, Some("c")));
        assert!(of(None, Some("c")) > of(None, Some("f")));
        assert!((of(None, None) - 1.0).abs() < 1e-12);
        assert!((of(None, Some("x")) - 1.0).abs() < 1e-12);
        // Balanced: all alike.
        assert_eq!(of(Some(40), None), of(Some(40), Some("c")));
    }

    #[test]
    fn requests_are_taken_as_they_are_and_0_switches_off() {
        let prior = [4.0, 1.0, 0.0];
        assert_eq!(anticipated(&[0.0; 3], &prior), prior);
        let got = anticipated(&[0.0, 5.0, 50.0], &prior);
        assert!(got[1] > got[0] && got[0] > 0.0 && got[2] == 0.0, "{got:?}");
        // A request made because of a feedback of 2 is not doubled again.
        let plain = anticipated(&[10.0, 5.0, 0.0], &[1.0, 1.0, 1.0]);
        let fed = anticipated(&[10.0, 5.0, 0.0], &[2.0, 1.0, 1.0]);
        assert!(
            (fed[0] / fed[1] - plain[0] / plain[1]).abs() < 0.01,
            "{fed:?}"
        );
    }

    #[test]
    fn unmet_demand_is_bounded() {
        let mut d = Demand::default();
        assert_eq!(unmet(&d), 1.0);
        d.asked = 1;
        assert_eq!(unmet(&d), 2.0);
        d.asked = 1000;
        assert_eq!(unmet(&d), MAX_UNMET);
        d.served_again = 2000;
        assert_eq!(unmet(&d), 1.0);
    }
}
