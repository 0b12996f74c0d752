//! The arrows between the rooms of `src/`, held by reading the sources.
//!
//! A room is a module of the crate's root: `src/mask/...` and `src/weights.rs` are the rooms
//! `mask` and `weights`. The table below says which rooms each may name; a room that is not in
//! the table fails the test, so that a new room is a decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that everybody may use.
const SHARED: [&str; 4] = ["error", "recipe", "geometry", "rng"];

/// Room -> what it may use besides [`SHARED`]; `*` is every room.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("geometry", &[]),
    ("recipe", &["mask"]),
    ("rng", &[]),
    ("dataset", &["record", "mask", "picture"]),
    ("weights", &[]),
    ("nn", &["weights"]),
    ("text", &["nn", "weights"]),
    ("diffusion", &["nn", "weights"]),
    ("family", &["text", "diffusion"]),
    (
        "mosaic",
        &["family", "text", "diffusion", "mask", "record", "dataset"],
    ),
    ("mask", &[]),
    ("record", &["mask"]),
    ("picture", &["mask"]),
    ("bank", &["record", "mask", "dataset", "picture"]),
    ("priority", &["bank", "status"]),
    ("sampler", &["bank", "priority"]),
    ("paste", &["bank", "mask"]),
    ("status", &["dataset"]),
    ("engine", &["*"]),
    ("report", &["bank", "record", "mask", "priority", "status"]),
    ("cli", &["*"]),
    ("python", &["*"]),
];

/// Rooms that link libtorch: they exist with the feature `engine` only.
const TORCH_ROOMS: [&str; 7] = [
    "weights",
    "nn",
    "text",
    "diffusion",
    "family",
    "mosaic",
    "engine",
];

/// Every file with this ending under `root`, sorted.
fn files(root: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for path in entries.map(|entry| entry.expect("a readable directory").path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    files(&src, ".rs")
        .into_iter()
        .filter_map(|path| {
            let inside = path.strip_prefix(&src).expect("a path under src");
            let first = inside.components().next().expect("a component");
            let first = Path::new(first.as_os_str());
            let room = first
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let text = code(&fs::read_to_string(&path).expect("a UTF-8 source"));
            (room != "lib" && room != "main").then_some((room, path, text))
        })
        .collect()
}

/// A source without its comments and without its unit tests: a module `tests` with a body, which
/// comes last in a file. (`mod name;` behind the same line is a file of its own.)
fn code(source: &str) -> String {
    let source = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or("");
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rooms named after `crate::` in a source: `crate::a::B`, and each of `crate::{a::B, c}`.
fn named_rooms(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, matched) in text.match_indices("crate::") {
        let rest = &text[at + matched.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0_usize;
            let mut start = true;
            let mut name = String::new();
            for c in group.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        rooms.insert(std::mem::take(&mut name));
                        start = true;
                    }
                    ':' if depth == 0 => start = false,
                    c if start && depth == 0 && (c.is_alphanumeric() || c == '_') => {
                        name.push(c);
                    }
                    _ => {}
                }
            }
            rooms.insert(name);
        } else {
            let name = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            rooms.insert(name);
        }
    }
    // `crate::Error`, `crate::Result`: re-exports of the room `error`.
    rooms.retain(|name| name.chars().next().is_some_and(char::is_lowercase));
    rooms
}

#[test]
fn rooms_only_know_the_rooms_they_may() {
    let table: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    let sources = sources();
    assert!(sources.len() > 3, "no sources found");
    for (room, path, text) in &sources {
        let Some(allowed) = table.get(room.as_str()) else {
            wrong.push(format!(
                "{}: room {room:?} is not in the table",
                path.display()
            ));
            continue;
        };
        for used in named_rooms(text) {
            let fine = used == *room
                || allowed.contains(&"*")
                || SHARED.contains(&used.as_str())
                || allowed.contains(&used.as_str());
            if !fine {
                wrong.push(format!(
                    "{}: {room} may use {allowed:?}, got {used}",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_engine_side_links_libtorch() {
    for (room, path, text) in sources() {
        let name = path.to_string_lossy();
        // In bindings and commands, only the files that are behind the feature.
        let gated = (room == "python" && name.contains("/python/engine"))
            || (room == "cli" && gated_cli_files().contains(&path));
        if TORCH_ROOMS.contains(&room.as_str()) || gated {
            continue;
        }
        assert!(
            !text.contains("tch::"),
            "{name}: expected no libtorch in room {room}, got a use of tch"
        );
        assert!(
            room == "cli"
                || room == "python"
                || !TORCH_ROOMS
                    .iter()
                    .any(|torch| named_rooms(&text).contains(*torch)),
            "{name}: expected no room that links libtorch in {room}"
        );
    }
}

/// Files of `cli` whose `mod` line stands behind `#[cfg(feature = "engine")]`.
fn gated_cli_files() -> Vec<PathBuf> {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli");
    let text = fs::read_to_string(cli.join("mod.rs")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|pair| pair[0] == "#[cfg(feature = \"engine\")]")
        .filter_map(|pair| {
            let name = pair[1]
                .trim_start_matches("pub ")
                .trim_start_matches("mod ");
            let name = name.strip_suffix(';')?;
            Some(cli.join(format!("{name}.rs")))
        })
        .collect()
}

/// A thread that waits for a lock with the GIL held blocks the thread that it waits for.
#[test]
fn the_bindings_take_no_lock_but_the_one_that_gives_up_the_gil() {
    for (room, path, text) in sources() {
        if room != "python" || path.ends_with("python/mod.rs") {
            continue;
        }
        for word in ["Mutex", "RwLock", ".lock()", "Condvar"] {
            assert!(
                !text.contains(word),
                "{}: expected python::Exclusive instead of {word}",
                path.display()
            );
        }
    }
}

#[test]
fn the_scheduler_and_the_denoiser_meet_in_the_denoising_loop_only() {
    let mut seen = 0;
    for (room, path, text) in sources() {
        let name = path.to_string_lossy();
        let steps = text.contains(".step(") || text.contains(".scale_model_input(");
        let predicts = text.contains(".predict(");
        if name.ends_with("mosaic/denoise.rs") {
            assert!(steps && predicts, "{name}: expected the loop here");
            seen += 1;
        } else if room == "mosaic" || room == "family" || room == "text" {
            assert!(
                !steps,
                "{name}: expected scheduler steps in mosaic/denoise.rs only"
            );
        } else if room == "diffusion" {
            assert!(
                !(steps && predicts),
                "{name}: expected schedulers that do not call the denoiser"
            );
        }
    }
    assert_eq!(seen, 1, "expected one loop");
}

#[test]
fn detectron2_is_imported_in_its_own_folder_only() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/mosaicbank");
    let sources = files(&package, ".py");
    assert!(!sources.is_empty(), "no Python sources found");
    for path in sources {
        let text = fs::read_to_string(&path).expect("a UTF-8 source");
        let imports = text.lines().map(str::trim_start).any(|line| {
            line.starts_with("import detectron2") || line.starts_with("from detectron2")
        });
        let at_home = path.starts_with(package.join("detectron2"));
        assert!(
            at_home || !imports,
            "{}: expected no detectron2 here",
            path.display()
        );
    }
}

#[test]
fn the_reader_of_arrows_sees_every_form() {
    let text = code(
        "#[cfg(test)]\nmod other;\nuse crate::mask::{Mask, rle};\nuse crate::{bank, error::Error, instance::{A, b}};\n\
         // use crate::comment::X;\nlet x = crate::text::y(); use crate::Error;\n\
         #[cfg(test)]\nmod tests { use crate::engine::Z; }",
    );
    let rooms: Vec<String> = named_rooms(&text).into_iter().collect();
    assert_eq!(rooms, ["bank", "error", "instance", "mask", "text"]);
}
