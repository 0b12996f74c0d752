//! From what a trainer observes to the demand board's feedback: the seam [`FeedbackPolicy`].
//!
//! A policy turns losses, AP and counts into one [`Factor`] per category. [`write`] is the only
//! place that puts factors on the demand board: it bounds them, so that no policy can starve or
//! flood a category by mistake, and a NaN never reaches the board. Where they act is said in
//! [`crate::priority`].
//!
//! A new policy is one file (a type that implements the trait) and one line in [`POLICIES`].

use crate::bank::Bank;
use crate::error::{Error, Result};

/// The least and the most that feedback changes a category by; 0 (off) is allowed, too.
pub const FACTOR_BOUNDS: (f32, f32) = (0.1, 10.0);

/// What is known of one category when feedback is computed. What nobody has measured is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observation {
    /// Moving average of the classification loss of real proposals.
    pub loss: Option<f64>,
    /// Validation AP, 0 to 100.
    pub ap: Option<f64>,
    /// Training images that contain it.
    pub images: Option<u64>,
    /// Synthetic samples that the trainer has been given.
    pub synthetic: u64,
}

/// What feedback says about one category, relative to neutral 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    /// How much it is wanted.
    pub weight: f32,
    /// The size that it is pasted at.
    pub size: f32,
}

impl Default for Factor {
    fn default() -> Self {
        Self {
            weight: 1.0,
            size: 1.0,
        }
    }
}

impl Factor {
    /// Within [`FACTOR_BOUNDS`]; neutral where it is not a number.
    fn bounded(self) -> Self {
        let (least, most) = FACTOR_BOUNDS;
        let bound = |f: f32, off: bool| match f {
            f if !f.is_finite() => 1.0,
            f if off && f == 0.0 => 0.0,
            f => f.clamp(least, most),
        };
        Self {
            weight: bound(self.weight, true),
            size: bound(self.size, false),
        }
    }
}

/// Turns observations into factors.
pub trait FeedbackPolicy: Send {
    /// The name in a config, and in the bank's status.
    fn name(&self) -> &'static str;

    /// One factor per category, in the order of `observed`. May keep a state (moving averages).
    fn factors(&mut self, observed: &[Observation]) -> Vec<Factor>;
}

/// The default policy: nothing is changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFeedback;

impl FeedbackPolicy for NoFeedback {
    fn name(&self) -> &'static str {
        "none"
    }

    fn factors(&mut self, observed: &[Observation]) -> Vec<Factor> {
        vec![Factor::default(); observed.len()]
    }
}

/// Makes a policy.
type Maker = fn() -> Box<dyn FeedbackPolicy>;

/// The policies that there are; the first is the default.
pub const POLICIES: &[(&str, Maker)] = &[("none", || Box::new(NoFeedback))];

/// The policy of this name.
///
/// # Errors
/// [`Error::Value`] listing the names.
pub fn policy(name: &str) -> Result<Box<dyn FeedbackPolicy>> {
    find(POLICIES, name)
}

fn find(known: &[(&str, Maker)], name: &str) -> Result<Box<dyn FeedbackPolicy>> {
    let found = known.iter().find(|(n, _)| *n == name);
    found.map(|(_, make)| make()).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
        Error::value(
            "feedback policy",
            format!("one of {}", names.join(", ")),
            format!("{name:?}"),
        )
    })
}

/// Asks the policy, and puts its factors on the bank's demand board, bounded. Where the bank cannot
/// be written nothing happens.
///
/// # Errors
/// [`Error::Value`] when there is not one observation, and one factor, per category of the bank.
pub fn write(
    policy: &mut dyn FeedbackPolicy,
    bank: &Bank,
    observed: &[Observation],
) -> Result<()> {
    let categories = bank.categories().len();
    let factors = policy.factors(observed);
    for (what, got) in [
        ("observations", observed.len()),
        (policy.name(), factors.len()),
    ] {
        if got != categories {
            return Err(Error::value(
                format!("feedback: {what}"),
                format!("one per category of the bank ({categories})"),
                got,
            ));
        }
    }
    let Some(board) = bank.board() else {
        return Ok(());
    };
    for (c, factor) in (0..).zip(factors) {
        let f = factor.bounded();
        board.set_feedback(c, f.weight, f.size)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{BankInfo, Category, Limits};

    /// What a new policy needs: this, and its line in a table.
    struct OfLoss;

    impl FeedbackPolicy for OfLoss {
        fn name(&self) -> &'static str {
            "test"
        }

        fn factors(&mut self, observed: &[Observation]) -> Vec<Factor> {
            let of = |o: &Observation| Factor {
                weight: o.loss.unwrap_or(1.0) as f32,
                size: f32::NAN,
            };
            observed.iter().map(of).collect()
        }
    }

    fn bank(dir: &std::path::Path) -> Bank {
        let categories = (1..=4)
            .map(|id| Category {
                id,
                name: format!("c{id}"),
                frequency: None,
                image_count: None,
            })
            .collect();
        Bank::create(
            dir,
            BankInfo::new(categories, "", Limits::default()).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn a_policy_is_found_by_name_and_its_factors_reach_the_board_bounded() {
        let known: &[(&str, Maker)] = &[
            ("none", || Box::new(NoFeedback)),
            ("test", || Box::new(OfLoss)),
        ];
        let error = find(known, "tset").err().unwrap().to_string();
        assert!(error.contains("none, test"), "{error}");
        let mut policy = find(known, "test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path());
        let observed = [2.0, f64::NAN, 1e9, 0.0].map(|loss| Observation {
            loss: Some(loss),
            ..Observation::default()
        });
        write(&mut *policy, &bank, &observed).unwrap();
        let board = bank.board().unwrap();
        let got: Vec<(f32, f32)> = board
            .snapshot()
            .iter()
            .map(|d| (d.weight, d.size_factor))
            .collect();
        assert_eq!(got, [(2.0, 1.0), (1.0, 1.0), (10.0, 1.0), (0.0, 1.0)]);
        assert!(write(&mut *policy, &bank, &observed[..3]).is_err());
    }

    #[test]
    fn the_default_policy_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bank = bank(dir.path());
        let mut policy = policy(POLICIES[0].0).unwrap();
        assert_eq!(policy.name(), "none");
        let before = bank.board().unwrap().snapshot();
        write(&mut *policy, &bank, &[Observation::default(); 4]).unwrap();
        assert_eq!(bank.board().unwrap().snapshot(), before);
    }
}
