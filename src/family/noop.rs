//! A family for tests, with networks that compute next to nothing. The whole of it is this file
//! and its line in `FAMILIES`; the tests below make mosaics with it through [`Generator`] and the
//! real denoising loop.
//!
//! [`Generator`]: crate::mosaic::Generator

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{
    Autoencoder, Conditioned, Conditioning, Denoiser, Family, Parts, Source, TextEmbedding,
    TextStack,
};
use crate::diffusion::{
    AttentionEvent, LatentSpace, Layer, Prediction, SchedulerConfig, Scores, Stage, Watch,
};
use crate::error::Result;
use crate::geometry::Size;
use crate::text::TokenizedPrompt;

pub(super) const FAMILY: Family = Family {
    name: "noop",
    models: "for tests",
    components: &[("noop", "NoopModel")],
    foreign: &[],
    open,
};

/// Tokens of every prompt.
const TOKENS: usize = 12;
const CHANNELS: i64 = 3;
const FACTOR: i64 = 4;
const PATCH: i64 = 2;

fn open(source: &Source<'_>) -> Result<Parts> {
    let scheduler =
        SchedulerConfig::read(&source.dir.join("scheduler").join("scheduler_config.json"))?;
    Ok(Parts {
        text: Box::new(Words),
        denoiser: Box::new(Paint),
        autoencoder: Box::new(Enlarge),
        space: LatentSpace {
            channels: CHANNELS,
            factor: FACTOR as u32,
            patch: PATCH as u32,
            scale: 1.0,
            shift: 0.0,
        },
        scheduler: scheduler.predicting(Prediction::Epsilon),
        digests: vec![[7; 32]],
    })
}

/// One token per word; the pooled vector has a value per channel.
struct Words;

/// What the prompt paints, per channel, -0.5..0.5; nothing for the empty prompt.
fn colour(prompt: &str) -> [f32; CHANNELS as usize] {
    let sum: usize = prompt.bytes().map(usize::from).sum();
    [3, 5, 7].map(|n| match sum {
        0 => 0.0,
        _ => (sum % n) as f32 / n as f32 - 0.4,
    })
}

impl TextStack for Words {
    fn tokens(&self, prompt: &str) -> Result<TokenizedPrompt> {
        let mut at = 0;
        let mut offsets: Vec<Range<usize>> = prompt
            .split(' ')
            .map(|word| {
                let from = at;
                at += word.chars().count() + 1;
                from..at - 1
            })
            .collect();
        offsets.resize(TOKENS, 0..0);
        let ids = offsets.iter().map(|o| o.len() as i64).collect();
        Ok(TokenizedPrompt { ids, offsets })
    }

    fn encode(&self, prompt: &str, _clip_skip: usize) -> Result<TextEmbedding> {
        let ids = self.tokens(prompt)?.ids;
        Ok(TextEmbedding {
            sequence: Tensor::from_slice(&ids).view([1, TOKENS as i64, 1]),
            pooled: Some(Tensor::from_slice(&colour(prompt)).view([1, CHANNELS])),
        })
    }
}

/// Predicts what is to be taken away for the prompt's colour to be left.
struct Paint;

struct Painted(Conditioning);

impl Denoiser for Paint {
    fn condition<'a>(&'a self, on: Conditioning) -> Result<Box<dyn Conditioned + 'a>> {
        Ok(Box::new(Painted(on)))
    }
}

impl Painted {
    /// Full attention to the last word in the middle of the region; before the text stands one
    /// key of another kind.
    fn show_attention(&self, size: &[i64], watch: &mut Watch<'_>) -> Result<()> {
        let (h, w) = (size[2] / PATCH, size[3] / PATCH);
        let layer = Layer {
            stage: Stage::Up,
            index: 0,
        };
        let grid = Size::new(h as u32, w as u32);
        if !watch.wants(layer, grid) {
            return Ok(());
        }
        let all = Tensor::zeros(
            [size[0], 1, h, w, TOKENS as i64 + 1],
            (Kind::Float, Device::Cpu),
        );
        for row in 0..size[0] {
            let ids = self.0.text.sequence.get(row).flatten(0, -1);
            let last = ids.count_nonzero(0).int64_value(&[]);
            let _ = all
                .get(row)
                .narrow(1, h / 4, h / 2)
                .narrow(2, w / 4, w / 2)
                .select(-1, last)
                .fill_(1.0);
        }
        watch.attention(&AttentionEvent {
            layer,
            grid,
            heads: 1,
            scores: Scores::Probabilities(&all.flatten(2, 3)),
            text: 1..TOKENS as i64 + 1,
            conditional: self.0.conditional.clone(),
        })
    }
}

impl Conditioned for Painted {
    fn predict(&self, latents: &Tensor, _t: f64, watch: &mut Watch<'_>) -> Result<Tensor> {
        watch.check()?;
        let size = latents.size();
        assert_eq!(size[0], self.0.placements.len() as i64);
        for (side, place) in self.0.placements.iter().enumerate() {
            let region = place.region.size();
            let cells = [region.height, region.width].map(|s| i64::from(s) / FACTOR);
            assert_eq!(cells, [size[2], size[3]], "row {side}");
        }
        self.show_attention(&size, watch)?;
        let colours = self.0.text.pooled.as_ref().expect("a pooled vector");
        Ok(latents - colours.view([size[0], CHANNELS, 1, 1]))
    }
}

/// Every cell as a square of pixels.
struct Enlarge;

impl Autoencoder for Enlarge {
    fn decode(&self, latents: &Tensor, _watch: &mut Watch<'_>) -> Result<Tensor> {
        Ok(latents
            .repeat_interleave_self_int(FACTOR, 2, None)
            .repeat_interleave_self_int(FACTOR, 3, None))
    }

    fn encode(&self, pixels: &Tensor, _watch: &mut Watch<'_>) -> Result<Tensor> {
        Ok(pixels.avg_pool2d(
            [FACTOR, FACTOR],
            [FACTOR, FACTOR],
            [0, 0],
            false,
            true,
            None,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::diffusion::Observer;
    use crate::mosaic::{Generator, Options, Progress};
    use crate::recipe::Recipe;
    use crate::record::Mosaic;

    const NAMES: [&str; 4] = ["banana", "teapot", "dog", "cup"];

    fn write(dir: &Path, class: &str) {
        std::fs::create_dir_all(dir.join("scheduler")).unwrap();
        for (file, value) in [
            ("model_index.json", json!({"noop": ["tests", class]})),
            (
                "scheduler/scheduler_config.json",
                json!({"_class_name": "NoopScheduler"}),
            ),
        ] {
            std::fs::write(dir.join(file), value.to_string()).unwrap();
        }
    }

    fn generator() -> Generator {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "NoopModel");
        Generator::open(dir.path(), Device::Cpu, Kind::Float).unwrap()
    }

    fn recipe(generator: &Generator, more: Value) -> Result<Recipe> {
        let mut own = json!({
            "height": 128, "width": 128, "steps": 3, "guidance": 1.5, "refine": null,
            "masks": [{"kind": "attention", "levels": [1], "threshold": {"fixed": 0.5}}],
        });
        for (key, value) in more.as_object().unwrap() {
            own[key] = value.clone();
        }
        generator.recipe(own.as_object().unwrap())
    }

    fn make(generator: &Generator, recipe: &Recipe, options: Options) -> Result<Mosaic> {
        let names = NAMES.map(String::from);
        let canvas = generator.canvas(recipe, &names[..recipe.regions as usize], 5)?;
        let mut steps = 0;
        let mosaics = generator.generate(
            recipe,
            &[canvas],
            None,
            options,
            &mut Progress {
                check: &mut || Ok(()),
                step: &mut |_, _| steps += 1,
            },
        )?;
        assert_eq!(steps, recipe.steps);
        Ok(mosaics.into_iter().next().unwrap().record)
    }

    #[test]
    fn a_mosaic_comes_through_the_generator_and_the_real_loop() {
        let generator = generator();
        let recipe = recipe(&generator, json!({})).unwrap();
        let mosaic = make(&generator, &recipe, Options::default()).unwrap();
        assert_eq!(mosaic.size, Size::new(256, 256));
        for region in &mosaic.regions {
            // Far from the neighbours: the guided colour of the region's own prompt.
            let (y, x) = (
                (region.own.y0 + region.own.y1) / 2,
                (region.own.x0 + region.own.x1) / 2,
            );
            let at = 3 * (y * mosaic.size.width + x) as usize;
            for (byte, value) in mosaic.image[at..at + 3].iter().zip(colour(&region.prompt)) {
                let expected = ((1.5 * value + 1.0) * 127.5).round();
                assert!(
                    (f32::from(*byte) - expected).abs() <= 1.0,
                    "{}: {byte} and {expected}",
                    region.prompt
                );
            }
            assert!(region.verdict.is_kept(), "{}", region.verdict);
        }
        assert_eq!(mosaic.instances.len(), 4);
        for (instance, region) in mosaic.instances.iter().zip(&mosaic.regions) {
            assert_eq!(instance.category, region.category);
            let middle = |low: u32, high: u32| f64::from(low + high) / 2.0;
            let (b, r) = (instance.bbox, region.bbox);
            assert!((middle(b.x0, b.x1) - middle(r.x0, r.x1)).abs() <= 16.0);
            assert!((middle(b.y0, b.y1) - middle(r.y0, r.y1)).abs() <= 16.0);
        }
    }

    #[test]
    fn capture_and_batch_change_no_pixel() {
        let generator = generator();
        let recipe = recipe(&generator, json!({})).unwrap();
        let with = |capture, batch| {
            let options = Options {
                capture,
                batch: Some(batch),
            };
            make(&generator, &recipe, options).unwrap()
        };
        let first = with(true, 1);
        for (capture, batch) in [(false, 1), (true, 4), (false, 3)] {
            let other = with(capture, batch);
            assert_eq!(other.image, first.image);
            assert_eq!(other.instances.len(), if capture { 4 } else { 0 });
        }
    }

    /// Counts the regions whose attention it sees.
    struct Count(i64);

    impl Observer for Count {
        fn attention(&mut self, event: &AttentionEvent<'_>) -> Result<()> {
            let probabilities = event.text_probabilities().size();
            let (regions, positions) = (probabilities[0], event.grid.area() as i64);
            assert_eq!(probabilities, [regions, 1, positions, TOKENS as i64]);
            // The unconditional half comes first.
            assert_eq!(event.conditional, regions..2 * regions);
            self.0 += regions;
            Ok(())
        }
    }

    #[test]
    fn every_observer_sees_every_region_in_every_step_and_changes_nothing() {
        let generator = generator();
        let recipe = recipe(&generator, json!({})).unwrap();
        let canvas = generator
            .canvas(&recipe, &NAMES.map(String::from), 5)
            .unwrap();
        let (mut one, mut other) = (Count(0), Count(0));
        let denoised = generator
            .denoise_observed(
                &recipe,
                &[canvas],
                None,
                Options::default(),
                &mut Progress {
                    check: &mut || Ok(()),
                    step: &mut |_, _| {},
                },
                &mut [&mut one, &mut other],
            )
            .unwrap();
        assert_eq!((one.0, other.0), (3 * 4, 3 * 4));
        let unseen = make(&generator, &recipe, Options::default()).unwrap();
        assert_eq!(denoised[0].rgb, unseen.image);
    }

    #[test]
    fn regions_must_be_multiples_of_the_patch() {
        let generator = generator();
        // A multiple of the factor, not of the patch.
        let recipe = recipe(&generator, json!({"height": 132})).unwrap();
        let text = make(&generator, &recipe, Options::default())
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("multiples of 8") && text.contains("132"),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_family_is_refused_with_those_known() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "AnotherModel");
        let text = Generator::open(dir.path(), Device::Cpu, Kind::Float)
            .err()
            .unwrap()
            .to_string();
        for word in [
            "model_index.json",
            "AnotherModel",
            "stable_diffusion",
            "noop",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
}
