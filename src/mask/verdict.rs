//! Whether a region gave an instance, and why not.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the filter measures of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Columns of its box.
    Width,
    /// Rows of its box.
    Height,
    /// Positions.
    Area,
}

impl Measure {
    const ALL: [Self; 3] = [Self::Width, Self::Height, Self::Area];

    const fn name(self) -> &'static str {
        match self {
            Self::Width => "width",
            Self::Height => "height",
            Self::Area => "area",
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a region gave an instance, and why not.
///
/// `Display` writes text for people. Serde writes `"kept"` or `{"too_small": {...}}`, and also
/// reads the text that banks of version 0.1 hold ([`Verdict::from_text`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Verdict {
    /// It did.
    Kept,
    /// There is no usable attention map: none was asked for, it holds values that are not
    /// finite, or the picture is unusable.
    NoAttention,
    /// No mask source proposed a mask.
    NoProposal,
    /// The mask is empty on the region's own part of the canvas.
    NoComponent,
    /// The best component is below a bound.
    TooSmall {
        /// What is.
        what: Measure,
        /// In pixels.
        got: u64,
        /// The bound.
        least: u64,
    },
    /// The best component is above a bound.
    TooLarge {
        /// What is.
        what: Measure,
        /// In pixels.
        got: u64,
        /// The bound.
        most: u64,
    },
    /// More than one component is within the bounds.
    TooManyComponents {
        /// How many.
        found: u32,
    },
    /// It would have, but others of its canvas did not, and the recipe keeps whole canvases.
    CanvasDropped {
        /// How many regions failed.
        failed: u32,
    },
    /// A check's number misses its threshold.
    Score {
        /// Name of the check.
        check: String,
        /// The best number that an instance of the region had.
        score: f32,
        /// The least number that passes.
        threshold: f32,
    },
    /// A reason that this version does not know, in words.
    Other {
        /// The words.
        text: String,
    },
}

impl Verdict {
    /// Whether the region gave an instance.
    pub const fn is_kept(&self) -> bool {
        matches!(self, Self::Kept)
    }

    /// The verdict without its numbers: what many regions have in common.
    pub fn reason(&self) -> String {
        match self {
            Self::TooSmall { what, .. } => format!("{what} below the bound"),
            Self::TooLarge { what, .. } => format!("{what} above the bound"),
            Self::TooManyComponents { .. } => "several components, expected one".into(),
            Self::CanvasDropped { .. } => {
                "good, but other regions of its canvas are not".into()
            }
            Self::Score { check, .. } => format!("{check} score below the threshold"),
            Self::Kept
            | Self::NoAttention
            | Self::NoProposal
            | Self::NoComponent
            | Self::Other { .. } => self.to_string(),
        }
    }

    /// The verdict whose `Display` wrote `text`; [`Verdict::Other`] for any other text.
    pub fn from_text(text: &str) -> Self {
        [
            Self::Kept,
            Self::NoAttention,
            Self::NoProposal,
            Self::NoComponent,
        ]
        .into_iter()
        .find(|v| v.to_string() == text)
        .or_else(|| Self::with_numbers(text))
        .unwrap_or_else(|| Self::Other { text: text.into() })
    }

    fn with_numbers(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let found = match words.as_slice() {
            [what, "of", got, "px", "is", side, bound, "px"] => {
                let what = Measure::ALL.into_iter().find(|m| m.name() == *what)?;
                let (got, bound) = (got.parse().ok()?, bound.parse().ok()?);
                match *side {
                    "below" => Self::TooSmall {
                        what,
                        got,
                        least: bound,
                    },
                    _ => Self::TooLarge {
                        what,
                        got,
                        most: bound,
                    },
                }
            }
            ["good,", "but", failed, ..] => Self::CanvasDropped {
                failed: failed.parse().ok()?,
            },
            [found, "components,", ..] => Self::TooManyComponents {
                found: found.parse().ok()?,
            },
            _ => return None,
        };
        // Only what is written exactly so.
        (found.to_string() == text).then_some(found)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => write!(f, "kept"),
            Self::NoAttention => write!(f, "there is no usable attention map"),
            Self::CanvasDropped { failed } => {
                write!(
                    f,
                    "good, but {failed} other region(s) of its canvas are not"
                )
            }
            Self::NoProposal => write!(f, "no mask source proposed a mask"),
            Self::NoComponent => write!(f, "the mask is empty"),
            Self::TooSmall { what, got, least } => {
                write!(f, "{what} of {got} px is below {least} px")
            }
            Self::TooLarge { what, got, most } => {
                write!(f, "{what} of {got} px is above {most} px")
            }
            Self::TooManyComponents { found } => write!(f, "{found} components, expected one"),
            Self::Score {
                check,
                score,
                threshold,
            } => write!(f, "{check} score of {score} is below {threshold}"),
            Self::Other { text } => f.write_str(text),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> de::Visitor<'de> for Form {
            type Value = Verdict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a verdict: text, or an object with one key")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Verdict, E> {
                // The name of a variant without numbers, or text of version 0.1.
                let named = Verdict::deserialize(StrDeserializer::<E>::new(text));
                Ok(named.unwrap_or_else(|_| Verdict::from_text(text)))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Verdict, A::Error> {
                Verdict::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Verdict> {
        let mut all = vec![
            Verdict::Kept,
            Verdict::NoAttention,
            Verdict::NoProposal,
            Verdict::NoComponent,
            Verdict::TooManyComponents { found: 3 },
            Verdict::CanvasDropped { failed: 2 },
        ];
        for what in Measure::ALL {
            all.push(Verdict::TooSmall {
                what,
                got: 3,
                least: 20,
            });
            all.push(Verdict::TooLarge {
                what,
                got: 9,
                most: 8,
            });
        }
        all
    }

    #[test]
    fn the_text_of_old_records_becomes_the_verdict_again() {
        for verdict in all() {
            let text = verdict.to_string();
            assert_eq!(Verdict::from_text(&text), verdict);
            let stored = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<Verdict>(&stored).unwrap(), verdict);
        }
        for text in [
            "",
            "two components",
            "width of 3 px is beside 4 px",
            "03 components, x",
        ] {
            let other = Verdict::Other { text: text.into() };
            assert_eq!(Verdict::from_text(text), other);
            assert_eq!(other.to_string(), text);
            assert!(!other.is_kept());
        }
    }

    #[test]
    fn verdicts_survive_json_with_their_numbers() {
        let mut all = all();
        all.push(Verdict::Score {
            check: "clip".into(),
            score: 0.1,
            threshold: 0.28,
        });
        all.push(Verdict::Other {
            text: "kept".into(),
        });
        for verdict in all {
            let json = serde_json::to_string(&verdict).unwrap();
            assert_eq!(
                serde_json::from_str::<Verdict>(&json).unwrap(),
                verdict,
                "{json}"
            );
        }
        assert_eq!(serde_json::to_string(&Verdict::Kept).unwrap(), "\"kept\"");
        for bad in ["7", "null", "{}", r#"{"too_small":{}}"#, r#"{"nice":{}}"#] {
            assert!(serde_json::from_str::<Verdict>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn verdicts_that_differ_in_numbers_have_one_reason() {
        let small = |got| Verdict::TooSmall {
            what: Measure::Width,
            got,
            least: 20,
        };
        assert_eq!(small(3).reason(), "width below the bound");
        assert_eq!(small(3).reason(), small(17).reason());
        let many = |found| Verdict::TooManyComponents { found }.reason();
        assert_eq!(many(2), many(5));
        let dropped = |failed| Verdict::CanvasDropped { failed }.reason();
        assert_eq!(dropped(1), dropped(3));
        let score = |score| Verdict::Score {
            check: "clip".into(),
            score,
            threshold: 0.5,
        };
        assert_eq!(score(0.1).reason(), "clip score below the threshold");
        assert_eq!(score(0.1).reason(), score(0.2).reason());
        assert_eq!(Verdict::NoComponent.reason(), "the mask is empty");
    }
}
