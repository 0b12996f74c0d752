//! From a plan to canvases, from canvases to records; the model behind one seam, so
//! that the loop can be tested with what no real device does on demand (running out of memory).

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::bank::{Bank, BankInfo, Category, Limits};
use crate::dataset::CategoryTable;
use crate::error::{Error, Result};
use crate::geometry::PixelBox;
use crate::mosaic::{Canvas, Denoised, Generator, Labelled, Labeller, Options, Progress};
use crate::recipe::Recipe;

/// What is to be made: everything that a mosaic is a function of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Category of each region, by name.
    pub categories: Vec<String>,
    /// Decides the noise.
    pub seed: u64,
    /// Decides the layout, before it is mirrored.
    pub layout: u64,
    /// Whether the layout is mirrored left to right, and top to bottom.
    pub mirrored: [bool; 2],
}

/// The device's part of the work.
pub trait Backend {
    /// The canvas of an order with this many regions.
    ///
    /// # Errors
    /// As [`Generator::canvas`].
    fn canvas(&self, order: &Order) -> Result<Canvas>;

    /// Denoises and decodes canvases of the same number of regions, at most `regions_at_once`
    /// regions in one call of the model.
    ///
    /// # Errors
    /// As [`Generator::denoise`].
    fn denoise(
        &self,
        canvases: &[Canvas],
        regions_at_once: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Denoised>>;

    /// Waits until the device has done what it was given.
    ///
    /// # Errors
    /// [`Error::Backend`].
    fn synchronize(&self) -> Result<()>;

    /// The CPU's part of the work.
    fn finisher(&self) -> Box<dyn Finisher>;

    /// Whether device and CPU are the same, so that labelling takes of the device's time.
    fn on_cpu(&self) -> bool;
}

/// The CPU's part of the work.
pub trait Finisher: Send + Sync {
    /// Attention to instances: the records, with the bank's category names.
    ///
    /// # Errors
    /// As [`Generator::label`].
    fn label(&self, canvases: &[Canvas], denoised: Vec<Denoised>) -> Result<Vec<Labelled>>;
}

/// A loaded model with one recipe per region count.
pub struct ModelBackend {
    generator: Generator,
    recipes: HashMap<u32, Recipe>,
}

impl ModelBackend {
    /// With the model's recommended recipe and the user's `own` values over it; `regions` are
    /// the counts that will be asked for.
    ///
    /// # Errors
    /// As [`Generator::recipe`].
    pub fn new(
        generator: Generator,
        own: &Map<String, Value>,
        regions: impl IntoIterator<Item = u32>,
    ) -> Result<Self> {
        let mut recipes = HashMap::new();
        // One region is what is left when nothing else fits.
        for count in regions.into_iter().chain([1]) {
            let mut own = own.clone();
            own.insert("regions".into(), count.into());
            recipes.insert(count, generator.recipe(&own)?);
        }
        Ok(Self { generator, recipes })
    }

    /// Writes the recipes into the bank, so that its mosaics can be made again.
    ///
    /// # Errors
    /// As [`Bank::keep_recipe`].
    pub fn keep_recipes(&self, bank: &Bank) -> Result<()> {
        for recipe in self.recipes.values() {
            let text = serde_json::to_string_pretty(recipe)
                .map_err(|e| Error::backend("recipe", e))?;
            bank.keep_recipe(&recipe.hash()?, &text)?;
        }
        Ok(())
    }

    /// The model.
    pub fn generator(&self) -> &Generator {
        &self.generator
    }

    fn recipe_for(&self, regions: usize) -> Result<&Recipe> {
        recipe_for(&self.recipes, regions)
    }
}

fn recipe_for(recipes: &HashMap<u32, Recipe>, regions: usize) -> Result<&Recipe> {
    u32::try_from(regions)
        .ok()
        .and_then(|n| recipes.get(&n))
        .ok_or_else(|| {
            let mut known: Vec<_> = recipes.keys().collect();
            known.sort_unstable();
            Error::value("regions of a mosaic", format!("one of {known:?}"), regions)
        })
}

impl Backend for ModelBackend {
    fn canvas(&self, order: &Order) -> Result<Canvas> {
        let recipe = self.recipe_for(order.categories.len())?;
        let mut canvas = self.generator.canvas_with_layout(
            recipe,
            &order.categories,
            order.seed,
            order.layout,
        )?;
        mirror(&mut canvas, order.mirrored);
        Ok(canvas)
    }

    fn denoise(
        &self,
        canvases: &[Canvas],
        regions_at_once: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Denoised>> {
        let recipe = self.recipe_for(canvases.first().map_or(0, |c| c.regions.len()))?;
        let options = Options {
            batch: Some(regions_at_once),
            ..Options::default()
        };
        self.generator
            .denoise(recipe, canvases, None, options, progress)
    }

    fn synchronize(&self) -> Result<()> {
        self.generator.with_model("waiting for the device", |m| {
            if let tch::Device::Cuda(index) = m.device {
                tch::Cuda::synchronize(index as i64);
            }
            Ok(())
        })
    }

    fn finisher(&self) -> Box<dyn Finisher> {
        Box::new(ModelFinisher {
            labeller: self.generator.labeller(),
            recipes: self.recipes.clone(),
        })
    }

    fn on_cpu(&self) -> bool {
        self.generator.model().device == tch::Device::Cpu
    }
}

/// The CPU's part of a [`ModelBackend`].
struct ModelFinisher {
    labeller: Labeller,
    recipes: HashMap<u32, Recipe>,
}

impl Finisher for ModelFinisher {
    fn label(&self, canvases: &[Canvas], denoised: Vec<Denoised>) -> Result<Vec<Labelled>> {
        let regions = canvases.first().map_or(0, |c| c.regions.len());
        self.labeller
            .label(recipe_for(&self.recipes, regions)?, canvases, denoised)
    }
}

/// Mirrors the places of the regions; their sizes stay, so that such canvases share the calls of
/// the model with those that are not mirrored.
pub fn mirror(canvas: &mut Canvas, [across, down]: [bool; 2]) {
    let (height, width) = (canvas.size.height, canvas.size.width);
    let turn = |b: PixelBox| {
        let (x0, x1) = if across {
            (width - b.x1, width - b.x0)
        } else {
            (b.x0, b.x1)
        };
        let (y0, y1) = if down {
            (height - b.y1, height - b.y0)
        } else {
            (b.y0, b.y1)
        };
        PixelBox::new(x0, y0, x1, y1)
    };
    for region in &mut canvas.regions {
        region.bbox = turn(region.bbox);
        region.own = turn(region.own);
    }
}

/// The description of a bank for the categories of `table`.
///
/// # Errors
/// [`Error::Value`] when an id does not fit, or the table is empty.
pub fn bank_info(table: &CategoryTable, recipe: &str, limits: Limits) -> Result<BankInfo> {
    BankInfo::new(Category::of_table(table)?, recipe, limits)
}

/// The bank's categories with the definitions that one of `sources` has for them (the first that
/// knows the name), for prompts.
///
/// # Errors
/// As [`CategoryTable::new`].
pub fn prompt_table(bank: &Bank, sources: &[&CategoryTable]) -> Result<CategoryTable> {
    let categories = bank
        .categories()
        .iter()
        .map(|own| {
            let known = sources.iter().find_map(|t| {
                t.categories()
                    .iter()
                    .find(|c| c.name == own.name)
                    .or_else(|| t.get(&own.name).ok())
            });
            let mut category = own.to_dataset();
            if let Some(known) = known {
                category.synset.clone_from(&known.synset);
                category.definition.clone_from(&known.definition);
            }
            category
        })
        .collect();
    CategoryTable::new(
        bank.path().join(crate::bank::INFO_FILE).display(),
        categories,
    )
}
