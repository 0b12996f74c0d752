//! The generator: a loaded model that makes labelled mosaics.

use std::path::Path;

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::canvas::{Canvas, Region};
use super::denoise::{self, Controls, Denoised};
use super::guard;
use super::label::{self, Labelled, MadeBy};
use super::layout::Layout;
use super::model::{Model, device_kind, dtype_name};
use super::prompt::Subject;
use crate::dataset::{Aliases, CategoryTable, Vocabulary};
use crate::diffusion::Observer;
use crate::error::{Error, Result};
use crate::mask::Tools;
use crate::recipe::Recipe;
use crate::record::RecordId;
use crate::rng;

/// The file in a model directory that lists the categories it was trained on.
const CATEGORIES: &str = "categories.json";

/// Regions per denoiser call, when nobody says otherwise. On a CPU feature maps that leave its
/// caches cost more than calls do (`benches/diffusion_vs_diffusers.py`: two regions take 12 % less time
/// than four at the embedded model's size).
pub const fn regions_per_call(device: Device) -> usize {
    match device {
        Device::Cpu => 2,
        _ => 16,
    }
}

/// How a batch is made; nothing here changes its pixels.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether attention is read; without it there are no masks and no instances.
    pub capture: bool,
    /// Regions per denoiser call at most (twice that many rows with guidance); as suits the device
    /// when absent.
    pub batch: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            capture: true,
            batch: None,
        }
    }
}

/// What is told, and asked, while a batch is made.
pub struct Progress<'a> {
    /// Called often; an error stops the work.
    pub check: &'a mut dyn FnMut() -> Result<()>,
    /// Called after every denoising step with the number done and the number of all.
    pub step: &'a mut dyn FnMut(usize, usize),
}

/// A loaded model that makes labelled mosaics.
pub struct Generator {
    model: Model,
    /// The categories that the model was trained on.
    trained: Option<CategoryTable>,
    categories: Option<CategoryTable>,
    /// What the model calls `categories`.
    vocabulary: Vocabulary,
}

impl Generator {
    /// Loads a diffusers-layout directory. The category table beside it, when there is one, gives
    /// definitions and refuses other names; [`Generator::with_categories`] replaces it.
    ///
    /// # Errors
    /// Those of [`Model::open`] and of the category table.
    pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        let model = guard::torch(device, "loading the model", || {
            Model::open(path, device, kind)
        })?;
        let trained = Self::trained_categories(&model.path)?;
        Ok(Self {
            model,
            categories: trained.clone(),
            trained,
            vocabulary: Vocabulary::default(),
        })
    }

    /// The categories that the model in this directory was trained on; `None` where it does not
    /// say (it then draws any name).
    ///
    /// # Errors
    /// As [`CategoryTable::read`].
    pub fn trained_categories(path: &Path) -> Result<Option<CategoryTable>> {
        let table = path.join(CATEGORIES);
        table
            .is_file()
            .then(|| CategoryTable::read(&table))
            .transpose()
    }

    /// The same generator with the categories of a dataset, drawn under the names that the model
    /// was trained on, or under `aliases`.
    ///
    /// # Errors
    /// As [`Vocabulary::new`].
    pub fn with_categories(self, categories: CategoryTable, aliases: &Aliases) -> Result<Self> {
        let vocabulary = Vocabulary::new(&categories, self.trained.as_ref(), aliases)?;
        Ok(self.with_vocabulary(categories, vocabulary))
    }

    /// As [`Generator::with_categories`], with what the user names: the categories of an annotation
    /// file (those of the model where there is none), and aliases ([`Aliases::collect`]).
    ///
    /// # Errors
    /// Those of the two; [`Error::Value`] for aliases without any category table.
    pub fn for_dataset(self, annotations: Option<&Path>, aliases: &[String]) -> Result<Self> {
        if annotations.is_none() && aliases.is_empty() {
            return Ok(self);
        }
        let table = match (annotations, &self.trained) {
            (Some(path), _) => CategoryTable::read(path)?,
            (None, Some(own)) => own.clone(),
            (None, None) => {
                return Err(Error::value(
                    "aliases",
                    "annotations with them: the model does not list its categories",
                    "no category table",
                ));
            }
        };
        self.with_categories(table, &Aliases::collect(aliases)?)
    }

    /// As [`Generator::with_categories`], with a vocabulary that was made before.
    #[must_use]
    pub fn with_vocabulary(
        mut self,
        categories: CategoryTable,
        vocabulary: Vocabulary,
    ) -> Self {
        self.categories = Some(categories);
        self.vocabulary = vocabulary;
        self
    }

    /// The loaded model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The categories that may be asked for; any name may where there is no table.
    pub fn categories(&self) -> Option<&CategoryTable> {
        self.categories.as_ref()
    }

    /// The paper's recipe, with the model's recommendations and the user's own values over it.
    ///
    /// # Errors
    /// [`Error::Value`] as [`Recipe::resolve`], or where the number of steps does not suit the
    /// scheduler.
    pub fn recipe(&self, own: &Map<String, Value>) -> Result<Recipe> {
        let recipe = Recipe::resolve(&self.model.recommended, own)?;
        let config = self.model.scheduler();
        config.trajectory(recipe.scheduler, recipe.steps)?;
        Ok(recipe)
    }

    /// The category's name as the table writes it, with its definition.
    fn category<'a>(&'a self, name: &'a str) -> Result<(&'a str, Option<&'a str>)> {
        match &self.categories {
            Some(table) => {
                let category = table.get(name)?;
                let definition = category.definition.as_str();
                Ok((
                    &category.name,
                    (!definition.is_empty()).then_some(definition),
                ))
            }
            None => Ok((name, None)),
        }
    }

    /// A mosaic of the named categories, one per region in row order, with the layout that the
    /// seed stands for.
    ///
    /// # Errors
    /// [`Error::Value`] when there are not as many names as regions, or sizes do not divide;
    /// [`Error::UnknownCategory`].
    pub fn canvas(&self, recipe: &Recipe, categories: &[String], seed: u64) -> Result<Canvas> {
        self.canvas_with_layout(recipe, categories, seed, seed)
    }

    /// As [`Generator::canvas`], with the layout of another seed, so that mosaics can share one.
    ///
    /// # Errors
    /// As [`Generator::canvas`].
    pub fn canvas_with_layout(
        &self,
        recipe: &Recipe,
        categories: &[String],
        seed: u64,
        layout_seed: u64,
    ) -> Result<Canvas> {
        if categories.len() != recipe.regions as usize {
            return Err(Error::value(
                "categories of a mosaic",
                format!("{} (recipe, key \"regions\")", recipe.regions),
                format!("{}: {}", categories.len(), categories.join(", ")),
            ));
        }
        let layout = Layout::draw(recipe, self.model.space().multiple(), layout_seed)?;
        let regions = layout
            .parts
            .iter()
            .zip(categories)
            .map(|(&part, name)| {
                let (name, definition) = self.category(name)?;
                let subject = match self.vocabulary.get(name) {
                    Some(words) => Subject::from_words(recipe, words)?,
                    None => Subject::from_recipe(recipe, name, definition)?,
                };
                Ok(Region::new(part, name, subject, recipe.guidance))
            })
            .collect::<Result<_>>()?;
        Ok(Canvas {
            size: layout.canvas,
            regions,
            seed,
        })
    }

    /// The id that the mosaic will have.
    ///
    /// # Errors
    /// As [`Recipe::hash`].
    pub fn mosaic_id(&self, recipe: &Recipe, canvas: &Canvas) -> Result<RecordId> {
        Ok(label::mosaic_id(&self.model.id, &recipe.hash()?, canvas))
    }

    /// Denoises and decodes the canvases: the device's part of the work.
    ///
    /// `init_noise`: one float32 `[1, channels, h, w]` per canvas, or nothing for seeded noise.
    ///
    /// # Errors
    /// [`Error::Value`] for what cannot be made; [`Error::OutOfMemory`]; [`Error::Backend`];
    /// whatever `progress.check` returns.
    pub fn denoise(
        &self,
        recipe: &Recipe,
        canvases: &[Canvas],
        init_noise: Option<&[Tensor]>,
        options: Options,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Denoised>> {
        self.denoise_observed(recipe, canvases, init_noise, options, progress, &mut [])
    }

    /// As [`Generator::denoise`], with `observers` that see the attention of every denoiser call.
    /// They change nothing, nor does their number.
    ///
    /// # Errors
    /// As [`Generator::denoise`]; those of the observers.
    pub fn denoise_observed(
        &self,
        recipe: &Recipe,
        canvases: &[Canvas],
        init_noise: Option<&[Tensor]>,
        options: Options,
        progress: &mut Progress<'_>,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Vec<Denoised>> {
        if init_noise.is_some_and(|n| n.len() != canvases.len()) {
            return Err(Error::value(
                "init_noise",
                format!("one per mosaic ({})", canvases.len()),
                init_noise.map_or(0, <[Tensor]>::len),
            ));
        }
        guard::torch(self.model.device, "denoising", || {
            let mut controls = Controls {
                check: &mut *progress.check,
                step: &mut *progress.step,
                capture: options.capture,
                observers: observers
                    .iter_mut()
                    .map(|o| &mut **o as &mut dyn Observer)
                    .collect(),
                batch: options
                    .batch
                    .unwrap_or_else(|| regions_per_call(self.model.device)),
            };
            denoise::run(&self.model, recipe, canvases, init_noise, &mut controls)
        })
    }

    /// Finds the instances in decoded canvases: the CPU's part of the work, in parallel.
    ///
    /// # Errors
    /// [`Error::Value`] when a canvas and its picture do not belong together.
    pub fn label(
        &self,
        recipe: &Recipe,
        canvases: &[Canvas],
        denoised: Vec<Denoised>,
    ) -> Result<Vec<Labelled>> {
        self.labeller().label(recipe, canvases, denoised)
    }

    /// The CPU's part of the work alone, for a thread of its own beside the device's.
    pub fn labeller(&self) -> Labeller {
        Labeller {
            made_by: MadeBy {
                model: self.model.id.clone(),
                device: device_kind(self.model.device),
                dtype: dtype_name(self.model.kind),
                threads: tch::get_num_threads().max(0) as u32,
            },
            tools: Tools::default(),
        }
    }

    /// Makes labelled mosaics: [`Generator::denoise`], then [`Generator::label`].
    ///
    /// # Errors
    /// As those.
    pub fn generate(
        &self,
        recipe: &Recipe,
        canvases: &[Canvas],
        init_noise: Option<&[Tensor]>,
        options: Options,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Labelled>> {
        let denoised = self.denoise(recipe, canvases, init_noise, options, progress)?;
        self.label(recipe, canvases, denoised)
    }

    /// Runs `work` on the model, with what libtorch throws turned into our error.
    ///
    /// # Errors
    /// What `work` returns; [`Error::OutOfMemory`]; [`Error::Backend`].
    pub fn with_model<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Model) -> Result<T>,
    ) -> Result<T> {
        guard::torch(self.model.device, what, || work(&self.model))
    }
}

/// What labels the decoded canvases of one generator; holds no part of the model.
#[derive(Debug, Clone)]
pub struct Labeller {
    made_by: MadeBy,
    tools: Tools,
}

impl Labeller {
    /// The same labeller with what the recipe's mask sources, refiners and checks may borrow.
    #[must_use]
    pub fn with_tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// As [`Generator::label`].
    ///
    /// # Errors
    /// [`Error::Value`] when a canvas and its picture do not belong together.
    pub fn label(
        &self,
        recipe: &Recipe,
        canvases: &[Canvas],
        denoised: Vec<Denoised>,
    ) -> Result<Vec<Labelled>> {
        label::label(
            &self.made_by,
            recipe,
            &recipe.hash()?,
            canvases,
            denoised,
            &self.tools,
        )
    }
}

/// The categories of a mosaic's regions: `all[main]`, then others drawn without repetition as
/// long as there are enough, in an order that is shuffled; both as `seed` has it.
pub fn choose_categories(
    all: &[String],
    main: usize,
    regions: usize,
    seed: u64,
) -> Vec<String> {
    use rand::seq::SliceRandom;
    let mut draw = rng::keyed(seed, "categories", 0);
    let mut others: Vec<usize> = (0..all.len()).filter(|&i| i != main).collect();
    let mut chosen = vec![main];
    while chosen.len() < regions {
        others.shuffle(&mut draw);
        chosen.extend(others.iter().take(regions - chosen.len()));
        if others.is_empty() {
            chosen.resize(regions, main);
        }
    }
    chosen.shuffle(&mut draw);
    chosen.into_iter().map(|i| all[i].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_hold_the_main_one_and_repeat_only_when_they_must() {
        let all: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).into();
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let names = choose_categories(&all, 2, 4, seed);
            assert_eq!(names, choose_categories(&all, 2, 4, seed));
            assert!(names.contains(&"c".to_owned()));
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), 4);
            orders.insert(names);
        }
        assert!(orders.len() > 20, "{}", orders.len());
        assert_eq!(choose_categories(&all[..1], 0, 4, 0), ["a"; 4]);
        let two = choose_categories(&all[..2], 1, 4, 0);
        assert!(two.contains(&"a".to_owned()) && two.contains(&"b".to_owned()));
    }
}
