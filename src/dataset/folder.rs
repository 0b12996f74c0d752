//! A folder of mosaics: what `generate` writes, `export` can write, and `import` reads.
//!
//! ```text
//! <out>/mosaics/<id>.json     the record, written last: a mosaic without one is unfinished
//! <out>/images/<id>.png       the picture (`file_name` is its name, below `images/`)
//! <out>/masks/<id>_<k>.png    one mask for each instance
//! <out>/overlays/<id>.png     for looking at
//! <out>/recipes/<hash>.json   the recipes, so that mosaics can be made again
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::category::CategoryTable;
use super::entry::{Entry, IMAGES, MOSAICS, file_name, finished, is_plain_name, path_in};
use super::export::{ExportFormat, ExportOptions, ExportReport, Exporter};
use super::file::write_beside;
use super::own_folder::own_folder;
use crate::error::{Error, Result};
use crate::picture;
use crate::recipe::Recipe;
use crate::record::json::MosaicJson;
use crate::record::{Class, Mosaic, RecordId};

/// Folder of the masks.
const MASKS: &str = "masks";
/// Folder of the overlay pictures.
const OVERLAYS: &str = "overlays";
/// Folder of the recipes.
const RECIPES: &str = "recipes";
/// The recipe of a folder that one command filled.
const RECIPE: &str = "recipe.json";

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_beside(path, |out| out.write_all(bytes))
}

/// A folder that mosaics are written to.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    finished: BTreeSet<String>,
}

impl Folder {
    /// Makes the folder of `command` where it is missing. One that holds mosaics is continued with
    /// `resume` only.
    ///
    /// # Errors
    /// [`Error::Value`] when it holds mosaics and `resume` is not set, or what no mosaicbank
    /// command wrote; [`Error::Io`].
    pub fn open(path: &Path, command: &str, resume: bool) -> Result<Self> {
        let finished = finished(path)?;
        if !finished.is_empty() && !resume {
            return Err(Error::value(
                "--out",
                "a folder without mosaics, or --resume",
                format!("{} with {} mosaics", path.display(), finished.len()),
            ));
        }
        own_folder(path, command, !finished.is_empty())?;
        for part in [MOSAICS, IMAGES, MASKS, OVERLAYS] {
            let dir = path.join(part);
            fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            finished,
        })
    }

    /// Whether it held this mosaic when it was opened.
    pub fn holds(&self, id: RecordId) -> bool {
        self.finished.contains(&id.to_string())
    }

    /// Writes `recipe.json`, the one recipe of all mosaics of the folder.
    ///
    /// # Errors
    /// [`Error::Format`] when the folder holds mosaics of another recipe; [`Error::Io`].
    pub fn set_recipe(&self, recipe: &Recipe) -> Result<()> {
        let file = self.path.join(RECIPE);
        if !self.finished.is_empty() && file.is_file() {
            let before = read_recipe(&file)?;
            if before != *recipe {
                return Err(Error::format(
                    &file,
                    "the recipe of this command, so that the folder can be continued",
                    format!("another one (hash {})", before.hash()?),
                ));
            }
        }
        let text = serde_json::to_string_pretty(recipe)
            .map_err(|e| Error::backend("writing the recipe", e))?;
        write(&file, text.as_bytes())
    }

    /// Keeps the text of a recipe among others, under its hash.
    ///
    /// # Errors
    /// [`Error::Value`] when the hash cannot name a file; [`Error::Io`].
    pub fn keep_recipe(&self, hash: &str, text: &str) -> Result<()> {
        if !is_plain_name(hash) {
            let got = format!("{hash:?}");
            return Err(Error::value("recipe hash", "hexadecimal digits", got));
        }
        let dir = self.path.join(RECIPES);
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        write(&dir.join(format!("{hash}.json")), text.as_bytes())
    }

    /// Writes a mosaic: the pictures, then the record that says that they are complete.
    ///
    /// # Errors
    /// As [`Mosaic::validate`] and [`Mosaic::validate_picture`]; [`Error::Io`].
    pub fn write(&self, mosaic: &Mosaic<Class>) -> Result<()> {
        mosaic.validate()?;
        mosaic.validate_picture()?;
        let file_name = file_name(mosaic.id);
        let image = picture::png(&mosaic.image, mosaic.size)?;
        write(&self.path.join(IMAGES).join(&file_name), &image)?;
        for (k, instance) in mosaic.instances.iter().enumerate() {
            let name = format!("{}_{k}.png", mosaic.id);
            let mask = picture::mask_png(&instance.mask)?;
            write(&self.path.join(MASKS).join(name), &mask)?;
        }
        let objects = mosaic.instances.iter();
        let objects = objects.map(|i| (&i.mask, i.bbox, i.category.name.as_str()));
        let drawn = picture::overlay(&mosaic.image, mosaic.size, objects)?;
        let drawn = picture::image_png(&drawn)?;
        write(&self.path.join(OVERLAYS).join(&file_name), &drawn)?;
        let json = serde_json::to_vec(&MosaicJson::of(mosaic, file_name))
            .map_err(|e| Error::backend("mosaic record", e))?;
        write(&path_in(&self.path, &mosaic.id.to_string()), &json)
    }

    /// Writes `annotations.json` (LVIS) for everything in the folder; without a table the names
    /// and ids are those of the records.
    ///
    /// # Errors
    /// As [`Entry::read_folder`] and [`Exporter::add`].
    pub fn annotate(&self, table: Option<&CategoryTable>) -> Result<(PathBuf, ExportReport)> {
        let entries = Entry::read_folder(&self.path)?;
        let table = match table {
            Some(table) => table.clone(),
            None => Exporter::table_of(&entries)?,
        };
        let options = ExportOptions {
            format: ExportFormat::Lvis,
            image_folder: IMAGES.into(),
            ..ExportOptions::default()
        };
        let mut exporter = Exporter::new(table, options)?;
        for entry in &entries {
            exporter.add(entry)?;
        }
        let path = self.path.join("annotations.json");
        let report = exporter.write(&path)?;
        Ok((path, report))
    }
}

fn read_recipe(file: &Path) -> Result<Recipe> {
    Recipe::resolve(&serde_json::Map::new(), &Recipe::read_overrides(file)?)
}

/// The recipes that a folder of mosaics keeps: hash and text of each.
///
/// # Errors
/// [`Error::Io`], and [`Error::Format`] for what is no recipe.
pub fn recipes(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut files: Vec<PathBuf> = match fs::read_dir(folder.join(RECIPES)) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    files.push(folder.join(RECIPE));
    files.retain(|f| f.is_file() && f.extension().is_some_and(|e| e == "json"));
    files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
            Ok((read_recipe(file)?.hash()?, text))
        })
        .collect()
}
