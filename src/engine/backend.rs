//! From a plan to canvases, from canvases to records of the bank; the model behind one seam, so
//! that the loop can be tested with what no real device does on demand (running out of memory).

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::bank::trace::{self, AttentionMap, Generation, Planned, RegionTrace};
use crate::bank::{Bank, BankInfo, Limits, MosaicInstance, MosaicRecord, Region, format};
use crate::dataset::{Category, CategoryTable};
use crate::error::{Error, Result};
use crate::geometry::PixelBox;
use crate::mask::Rle;
use crate::mosaic::{
    Canvas, Denoised, Generator, Labeller, Mosaic, Options, Progress, RegionResult, Subject,
    device_kind, dtype_name,
};
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
    /// Attention to instances.
    ///
    /// # Errors
    /// As [`Generator::label`].
    fn label(&self, canvases: &[Canvas], denoised: Vec<Denoised>) -> Result<Vec<Mosaic>>;

    /// A finished mosaic, made of `canvas`, as the bank keeps it.
    ///
    /// # Errors
    /// [`Error::UnknownCategory`] for a category that the bank does not have.
    fn record(&self, bank: &Bank, canvas: &Canvas, mosaic: &Mosaic) -> Result<MosaicRecord>;
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
            model: self.generator.model().id.name.clone(),
            weights: self.generator.model().id.weights.clone(),
            device: device_kind(self.generator.model().device),
            dtype: dtype_name(self.generator.model().kind),
            threads: tch::get_num_threads().max(0) as u32,
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
    model: String,
    weights: String,
    device: &'static str,
    dtype: &'static str,
    threads: u32,
}

impl Finisher for ModelFinisher {
    fn label(&self, canvases: &[Canvas], denoised: Vec<Denoised>) -> Result<Vec<Mosaic>> {
        let regions = canvases.first().map_or(0, |c| c.regions.len());
        self.labeller
            .label(recipe_for(&self.recipes, regions)?, canvases, denoised)
    }

    fn record(&self, bank: &Bank, canvas: &Canvas, mosaic: &Mosaic) -> Result<MosaicRecord> {
        // The recipe's hash is in the provenance, also after the picture was cut.
        let recipe = match mosaic.instances.first() {
            Some(i) => i.provenance.recipe.clone(),
            None => recipe_for(&self.recipes, mosaic.regions.len())?.hash()?,
        };
        let backend = MadeBy {
            model: &self.model,
            weights: &self.weights,
            device: self.device,
            dtype: self.dtype,
            threads: self.threads,
        };
        record_of(bank, canvas, mosaic, backend, &recipe)
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

/// What made a mosaic.
#[derive(Debug, Clone, Copy)]
pub struct MadeBy<'a> {
    /// Name of the model directory (or hub id).
    pub model: &'a str,
    /// SHA-256 over the weights files, hex.
    pub weights: &'a str,
    /// `cpu` or `cuda`.
    pub device: &'a str,
    /// Type of the weights in memory: `float32`, ...
    pub dtype: &'a str,
    /// Threads that the CPU computes with.
    pub threads: u32,
}

/// A finished mosaic, made of `canvas`, as the bank keeps it. Recipe (its hash is `recipe`), seed
/// and the canvas's regions are all that its pixels are a function of, besides the weights.
///
/// # Errors
/// [`Error::UnknownCategory`] for a category that the bank does not have.
pub fn record_of(
    bank: &Bank,
    canvas: &Canvas,
    mosaic: &Mosaic,
    backend: MadeBy<'_>,
    recipe: &str,
) -> Result<MosaicRecord> {
    let regions = mosaic
        .regions
        .iter()
        .map(|r| {
            Ok(Region {
                trace: trace(canvas, mosaic, r)?,
                bbox: r.bbox,
                prompt: r.subject.prompt.clone(),
                category: bank.category(&r.category)?,
                verdict: if r.verdict.is_kept() {
                    format::KEPT.into()
                } else {
                    r.verdict.to_string()
                },
            })
        })
        .collect::<Result<_>>()?;
    let instances = mosaic
        .instances
        .iter()
        .map(|i| {
            // Where the picture was cut, regions are numbered anew.
            let region = mosaic
                .regions
                .iter()
                .position(|r| r.category == i.category && r.own.intersect(i.bbox) == i.bbox)
                .map_or(i.provenance.region, |at| at as u32);
            Ok(MosaicInstance {
                category: bank.category(&i.category)?,
                mask: i.mask.clone(),
                bbox: i.bbox,
                area: i.area,
                score: i.score,
                region,
            })
        })
        .collect::<Result<_>>()?;
    Ok(MosaicRecord {
        id: MosaicRecord::id_of(recipe, backend.weights, mosaic.seed),
        size: mosaic.size,
        image: mosaic.rgb.clone(),
        regions,
        instances,
        model: backend.model.to_owned(),
        weights: backend.weights.to_owned(),
        recipe: recipe.to_owned(),
        seed: mosaic.seed,
        generation: Some(Generation {
            canvas: canvas.size,
            window: mosaic.window,
            regions: canvas.regions.iter().map(planned).collect(),
            device: backend.device.to_owned(),
            dtype: backend.dtype.to_owned(),
            threads: backend.threads,
            pixels: trace::fingerprint(&mosaic.rgb, mosaic.size),
        }),
    })
}

fn planned(region: &crate::mosaic::Region) -> Planned {
    let subject = &region.subject.span;
    Planned {
        bbox: region.bbox,
        own: region.own,
        category: region.category.clone(),
        prompt: region.subject.prompt.clone(),
        subject: [subject.start as u32, subject.end as u32],
        guidance: region.guidance,
    }
}

/// The canvas that [`record_of`] wrote down.
///
/// # Errors
/// [`Error::Value`] when a subject lies outside its prompt.
pub fn canvas_of(generation: &Generation, seed: u64) -> Result<Canvas> {
    let regions = generation
        .regions
        .iter()
        .map(|r| {
            let [start, end] = r.subject.map(|at| at as usize);
            Ok(crate::mosaic::Region {
                bbox: r.bbox,
                own: r.own,
                category: r.category.clone(),
                subject: Subject::at(&r.prompt, start..end)?,
                guidance: r.guidance,
                noise_seed: None,
                image: None,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Canvas {
        size: generation.canvas,
        regions,
        seed,
    })
}

/// How a region came to its verdict; nothing where its attention was not read.
fn trace(
    canvas: &Canvas,
    mosaic: &Mosaic,
    region: &RegionResult,
) -> Result<Option<RegionTrace>> {
    let Some(mask) = &region.mask else {
        return Ok(None);
    };
    let (x, y) = (mosaic.window.x0, mosaic.window.y0);
    // A picture that was cut holds whole own parts, and regions are numbered anew.
    let planned = canvas
        .regions
        .iter()
        .position(|p| [p.own.x0, p.own.y0] == [region.own.x0 + x, region.own.y0 + y]);
    Ok(Some(RegionTrace {
        planned: planned.unwrap_or_default() as u32,
        own: region.own,
        attention: AttentionMap::shrink(&region.attention, mask.size())?,
        threshold: region.threshold,
        refined: Rle::encode(mask)?,
    }))
}

/// The description of a bank for the categories of `table`.
///
/// # Errors
/// [`Error::Value`] when an id does not fit, or the table is empty.
pub fn bank_info(table: &CategoryTable, recipe: &str, limits: Limits) -> Result<BankInfo> {
    let categories = table
        .categories()
        .iter()
        .map(|c| {
            Ok(crate::bank::Category {
                id: u32::try_from(c.id).map_err(|_| {
                    Error::value(
                        format!("{}: category id", table.place()),
                        format!("at most {}", u32::MAX),
                        c.id,
                    )
                })?,
                name: c.name.clone(),
                frequency: Some(c.frequency.letter().to_owned()),
                // 0 is also what tables without counts say; the frequency then tells more.
                image_count: (c.image_count > 0).then_some(c.image_count),
            })
        })
        .collect::<Result<_>>()?;
    BankInfo::new(categories, recipe, limits)
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
            let images = own.image_count.unwrap_or_default();
            Category {
                id: u64::from(own.id),
                name: own.name.clone(),
                synset: known.map_or_else(String::new, |c| c.synset.clone()),
                definition: known.map_or_else(String::new, |c| c.definition.clone()),
                synonyms: Vec::new(),
                frequency: known
                    .map_or(crate::dataset::Frequency::from_image_count(images), |c| {
                        c.frequency
                    }),
                image_count: images,
                instance_count: 0,
            }
        })
        .collect();
    CategoryTable::new(
        bank.path().join(crate::bank::INFO_FILE).display(),
        categories,
    )
}
