//! From regions to verdicts: the recipe's sources, refiners and checks, one list after the other.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::mask::{
    BinaryMask, Candidate, Component, Draft, Finding, Objects, Proposal, RegionView, Tools,
    Verdict,
};
use crate::recipe::Recipe;
use crate::record::Scores;

/// What was found in one region.
pub(super) struct Examined {
    /// What the mask came from: the source's kind and its proposal.
    pub proposal: Option<(&'static str, Proposal)>,
    /// The refined mask of the region's size.
    pub mask: Option<BinaryMask>,
    /// Kept, or why not.
    pub verdict: Verdict,
    /// The kept objects on the whole canvas, with their scores by check.
    pub objects: Vec<(BinaryMask, Scores)>,
    /// For each check the best score of an object, kept or not.
    pub scores: Scores,
}

/// Runs one kind on all `items`: on a device in one call, otherwise on all CPU cores.
fn stage<T: Sync, R: Send>(
    kind: &str,
    on_device: bool,
    items: &[T],
    work: impl Fn(&[T]) -> Result<Vec<R>> + Sync,
) -> Result<Vec<R>> {
    let counted = |part: &[T]| {
        let out = work(part)?;
        if out.len() == part.len() {
            Ok(out)
        } else {
            Err(Error::backend(
                kind,
                format!("expected {} results, got {}", part.len(), out.len()),
            ))
        }
    };
    if items.is_empty() {
        Ok(Vec::new())
    } else if on_device {
        counted(items)
    } else {
        let parts: Vec<Vec<R>> = items
            .par_iter()
            .map(|item| counted(std::slice::from_ref(item)))
            .collect::<Result<_>>()?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// The source's most confident proposal, the first of equals.
fn best(
    kind: &str,
    region: &RegionView<'_>,
    proposals: Vec<Proposal>,
) -> Result<Option<Proposal>> {
    let size = region.bbox.size();
    let mut best: Option<Proposal> = None;
    for p in proposals {
        if p.mask.size() != size || p.soft.len() as u64 != size.area() {
            return Err(Error::backend(
                kind,
                format!(
                    "expected a mask and a soft map of {} x {}, got {} x {} and {} values",
                    size.height,
                    size.width,
                    p.mask.size().height,
                    p.mask.size().width,
                    p.soft.len()
                ),
            ));
        }
        if best.as_ref().is_none_or(|b| p.confidence > b.confidence) {
            best = Some(p);
        }
    }
    Ok(best)
}

/// A region on its way through the checks.
struct Standing {
    /// Its index.
    region: usize,
    objects: Objects,
    /// Those that passed so far.
    standing: Vec<Component>,
    /// Scores of each object that has any, by its label.
    scores: BTreeMap<u32, Scores>,
    /// For each check the best score of an object.
    best: Scores,
    verdict: Verdict,
}

impl Standing {
    /// Takes over what a check found.
    fn judge(&mut self, check: &str, finding: Finding) -> Result<()> {
        let n = self.standing.len();
        let passed = finding.pass.iter().filter(|p| **p).count();
        if finding.pass.len() != n
            || !(finding.scores.is_empty() || finding.scores.len() == n)
            || finding.verdict.is_kept() != (passed > 0)
            || finding.scores.iter().any(|s| !s.is_finite())
        {
            return Err(Error::backend(
                check,
                format!(
                    "expected for {n} objects whether each passes, finite scores or none, and \
                     \"kept\" when one passes; got {finding:?}"
                ),
            ));
        }
        for (object, score) in self.standing.iter().zip(&finding.scores) {
            self.scores
                .entry(object.label)
                .or_default()
                .insert(check.to_owned(), *score);
        }
        if let Some(best) = finding.scores.iter().copied().reduce(f32::max) {
            self.best.insert(check.to_owned(), best);
        }
        let mut pass = finding.pass.into_iter();
        self.standing.retain(|_| pass.next() == Some(true));
        self.verdict = finding.verdict;
        Ok(())
    }
}

/// Walks the recipe's lists for these regions.
///
/// # Errors
/// Those of the recipe's kinds; [`Error::Backend`] when one of them breaks its contract.
pub(super) fn examine(
    recipe: &Recipe,
    regions: &[RegionView<'_>],
    tools: &Tools,
) -> Result<Vec<Examined>> {
    let mut proposals: Vec<Vec<(&'static str, Proposal)>> = vec![Vec::new(); regions.len()];
    for source in &recipe.masks {
        let kind = source.kind();
        let found = stage(kind, source.on_device(), regions, |part| {
            source.propose(part, tools)
        })?;
        for ((all, region), list) in proposals.iter_mut().zip(regions).zip(found) {
            if let Some(proposal) = best(kind, region, list)? {
                all.push((kind, proposal));
            }
        }
    }

    let masked: Vec<usize> = (0..regions.len())
        .filter(|&i| !proposals[i].is_empty())
        .collect();
    let mut masks: Vec<BinaryMask> = masked
        .iter()
        .map(|&i| proposals[i][0].1.mask.clone())
        .collect();
    for refiner in &recipe.refine {
        let kind = refiner.kind();
        let drafts: Vec<Draft<'_>> = masked
            .iter()
            .zip(&masks)
            .map(|(&i, mask)| Draft {
                region: &regions[i],
                proposal: &proposals[i][0].1,
                mask,
            })
            .collect();
        masks = stage(kind, refiner.on_device(), &drafts, |part| {
            refiner.refine(part, tools)
        })?;
    }

    let mut standing: Vec<Standing> = masked
        .par_iter()
        .zip(&masks)
        .map(|(&region, mask)| {
            let view = &regions[region];
            let objects = Objects::find(mask, view.bbox, view.own, view.canvas)?;
            let standing = objects.all().to_vec();
            Ok(Standing {
                region,
                verdict: if standing.is_empty() {
                    Verdict::NoComponent
                } else {
                    Verdict::Kept
                },
                objects,
                standing,
                scores: BTreeMap::new(),
                best: Scores::new(),
            })
        })
        .collect::<Result<_>>()?;
    for check in &recipe.checks {
        let kind = check.kind();
        let going: Vec<usize> = (0..standing.len())
            .filter(|&k| standing[k].verdict.is_kept())
            .collect();
        let candidates: Vec<Candidate<'_>> = going
            .iter()
            .map(|&k| {
                let s = &standing[k];
                Candidate {
                    region: &regions[s.region],
                    proposals: &proposals[s.region],
                    mask: &masks[k],
                    objects: &s.objects,
                    standing: &s.standing,
                }
            })
            .collect();
        let findings = stage(kind, check.on_device(), &candidates, |part| {
            check.examine(part, tools)
        })?;
        for (k, finding) in going.into_iter().zip(findings) {
            standing[k].judge(kind, finding)?;
        }
    }

    let kept: Vec<_> = standing
        .into_par_iter()
        .zip(masks)
        .map(|(mut s, mask)| {
            let objects = s
                .standing
                .iter()
                .map(|object| {
                    let scores = s.scores.remove(&object.label).unwrap_or_default();
                    (s.objects.mask(object), scores)
                })
                .collect();
            (s.region, mask, s.verdict, objects, s.best)
        })
        .collect();
    let mut out: Vec<Examined> = regions
        .iter()
        .map(|region| {
            // A reading that is not there is the usual reason.
            let read = recipe.readings().iter().all(|r| region.levels(r).is_some());
            Examined {
                proposal: None,
                mask: None,
                verdict: if read {
                    Verdict::NoProposal
                } else {
                    Verdict::NoAttention
                },
                objects: Vec::new(),
                scores: Scores::new(),
            }
        })
        .collect();
    for (i, mask, verdict, objects, scores) in kept {
        out[i] = Examined {
            proposal: proposals[i].drain(..).next(),
            mask: Some(mask),
            verdict,
            objects,
            scores,
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::geometry::{PixelBox, Size};
    use crate::mask::source::no_op::Calls;
    use crate::mosaic::label::{Labelled, MadeBy, label as label_all};
    use crate::mosaic::{Canvas, Denoised, ModelId, Part, Region, Subject};

    /// Labels two pictures of two regions each, without attention, as the engine does.
    fn label(own: Value, tools: Tools) -> Result<Vec<Labelled>> {
        let own = own.as_object().cloned().unwrap();
        let recipe = Recipe::resolve(&serde_json::Map::new(), &own)?;
        let size = Size::new(8, 16);
        let regions: Vec<Region> = [(0, "cup"), (8, "dog")]
            .map(|(x, name)| {
                let bbox = PixelBox::new(x, 0, x + 8, 8);
                let subject = Subject::at(name, 0..name.len()).unwrap();
                Region::new(
                    Part {
                        region: bbox,
                        own: bbox,
                    },
                    name,
                    subject,
                    1.0,
                )
            })
            .into();
        let canvases: Vec<Canvas> = (0..2)
            .map(|seed| Canvas {
                size,
                regions: regions.clone(),
                seed,
            })
            .collect();
        let denoised = vec![
            Denoised {
                rgb: vec![99; 3 * size.area() as usize],
                size,
                captured: Some(vec![Vec::new(); 2]),
                problem: None,
            };
            2
        ];
        let made_by = MadeBy {
            model: ModelId {
                name: "none".into(),
                weights: "0".into(),
            },
            device: "cpu",
            dtype: "float32",
            threads: 1,
        };
        let hash = recipe.hash()?;
        label_all(&made_by, &recipe, &hash, &canvases, denoised, &tools)
    }

    const BASE: &str = r#"{"height": 8, "width": 8, "regions": 2, "refine": []}"#;

    fn with(more: Value) -> Value {
        let mut own: Value = serde_json::from_str(BASE).unwrap();
        own.as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap());
        own
    }

    #[test]
    fn a_source_and_a_check_of_a_new_kind_reach_the_instances() {
        let mosaics = label(
            with(json!({"masks": [{"kind": "no_op"}],
                "checks": [{"kind": "no_op", "score": 0.75, "threshold": 0.5}]})),
            Tools::default(),
        )
        .unwrap();
        assert_eq!(mosaics.len(), 2);
        for Labelled { record, maps, .. } in &mosaics {
            assert_eq!(record.instances.len(), 2);
            assert!(maps.iter().all(|m| m.source == Some("no_op")));
            record.validate().unwrap();
            for (region, instance) in record.regions.iter().zip(&record.instances) {
                assert_eq!(region.verdict, Verdict::Kept);
                assert_eq!(region.scores, instance.scores);
                assert_eq!(instance.bbox, region.own);
                assert_eq!((instance.area, instance.score), (64, 1.0));
                assert_eq!(
                    instance.scores,
                    BTreeMap::from([("no_op".to_owned(), 0.75)])
                );
            }
        }
    }

    #[test]
    fn a_score_below_its_threshold_is_the_verdict() {
        let mosaics = label(
            with(json!({"masks": [{"kind": "no_op"}], "checks": [
                {"kind": "size", "max_area": 1.0},
                {"kind": "no_op", "score": 0.25, "threshold": 0.5},
            ]})),
            Tools::default(),
        )
        .unwrap();
        for mosaic in &mosaics {
            assert!(mosaic.record.instances.is_empty());
            for region in &mosaic.record.regions {
                assert_eq!(region.scores["no_op"], 0.25);
                assert_eq!(
                    region.verdict,
                    Verdict::Score {
                        check: "no_op".into(),
                        score: 0.25,
                        threshold: 0.5
                    }
                );
                assert!(region.trace.is_some());
            }
        }
    }

    #[test]
    fn checks_run_in_the_recipes_order_and_stop_at_the_first_verdict() {
        // All of an 8 x 8 region is above the default share of 0.95.
        let mosaics = label(
            with(json!({"masks": [{"kind": "no_op"}],
                "checks": [{"kind": "size"}, {"kind": "no_op", "threshold": 1.0}]})),
            Tools::default(),
        )
        .unwrap();
        let verdict = &mosaics[0].record.regions[0].verdict;
        assert!(matches!(verdict, Verdict::TooLarge { .. }), "{verdict}");
    }

    #[test]
    fn the_first_source_that_proposes_a_mask_gives_it() {
        // Attention was not captured, so it proposes none.
        let mosaics = label(
            with(json!({"masks": [{"kind": "attention"}, {"kind": "no_op"}], "checks": []})),
            Tools::default(),
        )
        .unwrap();
        assert_eq!(mosaics[0].maps[1].source, Some("no_op"));
        let mosaics = label(with(json!({"checks": []})), Tools::default()).unwrap();
        assert_eq!(mosaics[0].maps[0].source, None);
        assert_eq!(mosaics[0].record.regions[0].verdict, Verdict::NoAttention);
    }

    #[test]
    fn a_device_gets_the_whole_batch_at_once_and_tools_are_lent() {
        for (on_device, want) in [(true, vec![4]), (false, vec![1; 4])] {
            let calls = Arc::new(Calls::default());
            let mut tools = Tools::default();
            tools.lend(calls.clone());
            let own = with(json!({"checks": [],
                "masks": [{"kind": "no_op", "counted": true, "on_device": on_device}]}));
            label(own, tools).unwrap();
            assert_eq!(*calls.lock().unwrap(), want);
        }
        let own = with(json!({"masks": [{"kind": "no_op", "counted": true}]}));
        let e = label(own, Tools::default()).unwrap_err().to_string();
        assert!(e.contains("the mask source no_op needs"), "{e}");
    }

    #[test]
    fn a_kind_that_breaks_its_contract_is_named() {
        let e = stage("odd", true, &[1, 2], |_| Ok(vec![0]))
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("odd") && e.contains("expected 2 results, got 1"),
            "{e}"
        );
        let own = with(json!({"masks": [{"kind": "no_op"}],
            "checks": [{"kind": "no_op", "score": 1e39, "threshold": 0.5}]}));
        let e = label(own, Tools::default()).unwrap_err().to_string();
        assert!(e.contains("finite"), "{e}");
    }
}
