//! The arrows between the rooms of `src/`, held by reading the sources.
//!
//! A room is a module of the crate's root: `src/mask/...` and `src/weights.rs` are the rooms
//! `mask` and `weights`. The table on the crate's front page (`src/lib.rs`) says what each may use
//! and must not do; this test reads it. A room that is not in the table fails the test, so that a
//! new room is a decision, and so does an allowance that nothing uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A line of the table in `src/lib.rs`.
struct Row {
    rooms: Vec<String>,
    /// Every room may use these rooms.
    shared: bool,
    /// Rooms that it may use besides the shared ones; `None` is every room.
    uses: Option<BTreeSet<String>>,
    must_not: Vec<String>,
}

/// The names in backticks.
fn quoted(cell: &str) -> Vec<String> {
    let names = cell.split('`').skip(1).step_by(2);
    names.map(ToOwned::to_owned).collect()
}

/// The table: room, does, may use, must not.
fn table() -> Vec<Row> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(lib).expect("src/lib.rs");
    let rows: Vec<Row> = text
        .lines()
        .filter_map(|line| line.strip_prefix("//! |"))
        .map(|line| {
            line.trim_end()
                .trim_end_matches('|')
                .split('|')
                .map(str::trim)
                .collect()
        })
        .filter_map(|cells: Vec<&str>| match cells[..] {
            [rooms, does, uses, must_not] if rooms.contains('`') => Some(Row {
                rooms: quoted(rooms),
                shared: does.starts_with("shared"),
                uses: (uses != "every room").then(|| quoted(uses).into_iter().collect()),
                must_not: must_not.split(", ").map(ToOwned::to_owned).collect(),
            }),
            _ => None,
        })
        .collect();
    assert!(rows.len() > 10, "no table in src/lib.rs");
    rows
}

/// How a line of the table's column "must not" is held.
enum Held {
    /// By the column "may use".
    Arrows,
    /// None of these stand in the room's sources.
    Without(&'static [&'static str]),
    /// By a test of its own, in this file or another.
    Elsewhere,
}

/// Every entry of the column "must not". A new entry fails the test until it is here.
const MUST_NOT: &[(&str, Held)] = &[
    ("know any stage", Held::Arrows),
    ("know any other stage", Held::Arrows),
    ("know an architecture", Held::Arrows),
    ("know the UNet", Held::Arrows),
    ("know prompts or masks", Held::Arrows),
    // Its arrows leave it nothing but masks and plain data.
    ("do anything", Held::Arrows),
    ("know a family", Held::Elsewhere), // it names the trait of the room `family` only; by reading
    ("step a scheduler", Held::Without(&[".step("])),
    (
        "touch a file",
        Held::Without(&["std::fs", "fs::", "File::", "write_beside"]),
    ),
    // Draws from a bank, and writes to one.
    ("draw", Held::Without(&[".draw_"])),
    (
        "write",
        Held::Without(&["fs::write", "File::create", ".put_", "write_beside"]),
    ),
    ("touch pixels", Held::Without(&["image::"])),
    (
        "write files",
        Held::Without(&[
            "fs::write",
            "File::create",
            "File::options",
            "OpenOptions",
            "write_beside",
            "create_dir",
            "remove_",
        ]),
    ),
    (
        "own a thread pool",
        Held::Without(&["rayon", "thread::spawn", "thread::Builder", "thread::scope"]),
    ),
    ("link libtorch", Held::Elsewhere), // `only_the_engine_side_links_libtorch`
    ("keep a lock across a fork", Held::Elsewhere), // tests/python/test_bank.py forks
    ("be needed by the trainer", Held::Elsewhere), // `the_trainer_needs_no_engine`
    // Drawing counts a use, and so does the demand board.
    (
        "count a use",
        Held::Without(&[".draw_", ".asked(", ".served(", ".missed("]),
    ),
    (
        "need a network",
        Held::Without(&[
            "std::net",
            "TcpStream",
            "UdpSocket",
            "https://",
            "src=\"//",
            "@import",
            "fetch(",
            "XMLHttpRequest",
        ]),
    ),
    ("hold logic", Held::Elsewhere), // by reading
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
    let table = table();
    let shared: BTreeSet<&str> = table
        .iter()
        .filter(|row| row.shared)
        .flat_map(|row| row.rooms.iter().map(String::as_str))
        .collect();
    let sources = sources();
    let mut wrong = Vec::new();
    let mut used: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (room, path, text) in &sources {
        let Some(row) = table.iter().find(|row| row.rooms.contains(room)) else {
            wrong.push(format!(
                "{}: room {room:?} is not in the table of src/lib.rs",
                path.display()
            ));
            continue;
        };
        for name in named_rooms(text) {
            let fine = name == *room
                || shared.contains(name.as_str())
                || row.uses.as_ref().is_none_or(|uses| uses.contains(&name));
            if !fine {
                wrong.push(format!(
                    "{}: {room} may use {:?}, got {name}",
                    path.display(),
                    row.uses
                ));
            }
            used.entry(room).or_default().insert(name);
        }
    }
    for row in &table {
        for room in &row.rooms {
            if !sources.iter().any(|(name, ..)| name == room) {
                wrong.push(format!("the table has a room {room:?}, src/ has none"));
            }
        }
        for name in row.uses.iter().flatten() {
            let is_used =
                |room: &String| used.get(room.as_str()).is_some_and(|u| u.contains(name));
            if !row.rooms.iter().any(is_used) {
                wrong.push(format!("{:?} may use {name} and does not", row.rooms));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_table_forbids_is_held() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for row in table() {
        for entry in row.must_not {
            let Some((_, held)) = MUST_NOT.iter().find(|(known, _)| *known == entry) else {
                wrong.push(format!(
                    "{:?} must not {entry:?}: say how that is held",
                    row.rooms
                ));
                continue;
            };
            let Held::Without(forbidden) = held else {
                continue;
            };
            // A room's pages and scripts, too.
            let pages = [".html", ".js", ".css"]
                .into_iter()
                .flat_map(|e| files(&src, e));
            let pages = pages.map(|path| {
                let text = fs::read_to_string(&path).expect("a UTF-8 page");
                let room = path.parent().and_then(Path::file_name).unwrap_or_default();
                (room.to_string_lossy().into_owned(), path, text)
            });
            for (room, path, text) in sources().into_iter().chain(pages) {
                if !row.rooms.contains(&room) {
                    continue;
                }
                for word in forbidden.iter().filter(|word| text.contains(**word)) {
                    wrong.push(format!(
                        "{}: must not {entry}, has {word:?}",
                        path.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_trainer_needs_no_engine() {
    for row in table().iter().filter(|row| row.uses.is_some()) {
        assert!(
            !row.uses.iter().flatten().any(|name| name == "engine"),
            "{:?} may use the engine",
            row.rooms
        );
    }
}

/// The module of a source, from the crate's root: `bank/create.rs` is `bank`, `create`.
fn module_of(path: &Path) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path
        .strip_prefix(src)
        .expect("a path under src")
        .with_extension("");
    let parts = inside
        .components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned());
    let mut module: Vec<String> = parts.collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// The modules that `module` names with `super::` or with its full path, as far as they are known.
fn named_modules(
    module: &[String],
    text: &str,
    known: &BTreeSet<Vec<String>>,
) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut note = |base: &[String], rest: &str| {
        let group = rest
            .strip_prefix('{')
            .map(|g| g.split(';').next().unwrap_or_default());
        for part in group.unwrap_or(rest).split(',') {
            let name: String = part
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let target = [base, &[name]].concat();
            if known.contains(&target) && !module.starts_with(&target) {
                found.insert(target);
            }
            if group.is_none() {
                break;
            }
        }
    };
    for (at, matched) in text.match_indices("super::") {
        let before = &text[..at];
        if before.ends_with("super::") {
            continue;
        }
        let mut rest = &text[at + matched.len()..];
        let mut up = 1;
        while let Some(further) = rest.strip_prefix("super::") {
            rest = further;
            up += 1;
        }
        note(&module[..module.len().saturating_sub(up)], rest);
    }
    let own = format!("crate::{}::", module[0]);
    for (at, matched) in text.match_indices(&own) {
        note(&module[..1], &text[at + matched.len()..]);
    }
    found
}

#[test]
fn files_of_a_room_do_not_import_in_circles() {
    // `mod.rs` has what a room's files share, and names them all: it is left out.
    let sources: BTreeMap<Vec<String>, String> = sources()
        .into_iter()
        .map(|(_, path, text)| (module_of(&path), text))
        .collect();
    let known: BTreeSet<Vec<String>> = sources.keys().cloned().collect();
    let named: BTreeMap<_, _> = sources
        .iter()
        .map(|(module, text)| (module, named_modules(module, text, &known)))
        .collect();
    let mut wrong = Vec::new();
    for start in named.keys() {
        let mut open: Vec<_> = named[*start].iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = open.pop() {
            // Down into a module's own files, and back up to it, is no import.
            if seen.insert(next) && !start.starts_with(next) {
                open.extend(&named[next]);
            }
        }
        if seen.contains(start) {
            wrong.push(format!("{} names itself through others", start.join("::")));
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

#[test]
fn the_reader_of_imports_sees_every_form() {
    let path =
        |text: &str| -> Vec<String> { text.split("::").map(ToOwned::to_owned).collect() };
    let known = [
        "bank",
        "bank::env",
        "bank::disk",
        "bank::index",
        "python::bank::draw",
    ]
    .map(path)
    .into();
    let text = "use super::{Bank, env::Env, disk};\nuse crate::bank::index::Kind;";
    let found = named_modules(&path("bank::reader"), text, &known);
    let expected = ["bank::disk", "bank::env", "bank::index"].map(path).into();
    assert_eq!(found, expected);
    let found = named_modules(
        &path("python::bank::put"),
        "super::super::bank::draw::x",
        &known,
    );
    assert!(found.is_empty(), "{found:?}");
}
