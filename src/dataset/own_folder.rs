//! Output folders: new, empty, or made by the same command before. What lies elsewhere is never
//! overwritten.

use std::path::Path;

use crate::error::{Error, Result};

/// Holds the name of the command that a folder belongs to.
const MARKER: &str = ".mosaicbank";

/// Makes the folder `path` for the output of `command`, or takes the one that an earlier run made:
/// it has the command's marker, or `known` says so.
///
/// # Errors
/// [`Error::Value`] when it holds something else, [`Error::Io`] when it cannot be made.
pub fn own_folder(path: &Path, command: &str, known: bool) -> Result<()> {
    let io = |e| Error::io(path, e);
    std::fs::create_dir_all(path).map_err(io)?;
    let marker = path.join(MARKER);
    match std::fs::read_to_string(&marker) {
        Ok(text) if text.trim() == command => return Ok(()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(&marker, e));
        }
        _ => {}
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        found.push(
            entry
                .map_err(io)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    if !known && !found.is_empty() {
        found.sort();
        let more = if found.len() > 5 { ", ..." } else { "" };
        found.truncate(5);
        return Err(Error::value(
            "--out",
            format!("a new or an empty folder, or one that `mosaicbank {command}` made"),
            format!("{} with {}{more}", path.display(), found.join(", ")),
        ));
    }
    std::fs::write(&marker, format!("{command}\n")).map_err(|e| Error::io(&marker, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_content_is_refused_and_an_own_folder_is_taken_again() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a/b");
        own_folder(&path, "bench", false).unwrap();
        std::fs::write(path.join("bench.json"), "{}").unwrap();
        own_folder(&path, "bench", false).unwrap();
        let e = own_folder(&path, "export", false).unwrap_err().to_string();
        assert!(
            e.contains("bench.json") && e.contains("`mosaicbank export`"),
            "{e}"
        );
        // A folder that version 0.1 made.
        std::fs::remove_file(path.join(MARKER)).unwrap();
        assert!(own_folder(&path, "bench", false).is_err());
        own_folder(&path, "bench", true).unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(
            own_folder(&file, "bench", false),
            Err(Error::Io { .. })
        ));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
