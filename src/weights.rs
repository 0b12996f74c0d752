//! Strict loading of safetensors: every tensor of the configuration must be there with its shape,
//! and no other tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use parking_lot::Mutex;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Buffers of old checkpoints without learned values.
const IGNORED_SUFFIXES: [&str; 1] = ["position_ids"];

/// Endings of files that are pickles.
const PICKLES: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// Largest header (safetensors' own limit).
const MAX_HEADER: u64 = 100_000_000;

/// Where a tensor's bytes are.
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    start: usize,
    end: usize,
}

/// The tensors of one component (`unet/`, `vae/`, `text_encoder/`), memory-mapped.
///
/// [`Weights::tensor`] hands each out at most once per name, straight to the device;
/// [`Weights::finish`] then refuses the tensors that were not requested.
pub struct Weights {
    files: Vec<(PathBuf, Mmap)>,
    entries: BTreeMap<String, Entry>,
    seen: Mutex<BTreeSet<String>>,
    device: Device,
    kind: Kind,
}

impl Weights {
    /// Opens `<dir>/<stem>.safetensors`, its `fp16` variant, or the shards that
    /// `<stem>.safetensors.index.json` lists. The plain file is preferred for float32, the
    /// `fp16` one otherwise; either is converted to `kind`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none (naming the file expected, also when only a pickle
    /// is there); [`Error::Format`] when a file is truncated or malformed; [`Error::Io`].
    pub fn open(dir: &Path, stem: &str, device: Device, kind: Kind) -> Result<Self> {
        let mut weights = Self {
            files: Vec::new(),
            entries: BTreeMap::new(),
            seen: Mutex::new(BTreeSet::new()),
            device,
            kind,
        };
        for path in Self::locate(dir, stem, kind)? {
            weights.add_file(path)?;
        }
        Ok(weights)
    }

    /// The files that [`Weights::open`] would read.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn locate(dir: &Path, stem: &str, kind: Kind) -> Result<Vec<PathBuf>> {
        let variants: [&str; 2] = if kind == Kind::Float {
            ["", ".fp16"]
        } else {
            [".fp16", ""]
        };
        for variant in variants {
            let single = dir.join(format!("{stem}{variant}.safetensors"));
            if single.is_file() {
                return Ok(vec![single]);
            }
            let index = if variant.is_empty() {
                dir.join(format!("{stem}.safetensors.index.json"))
            } else {
                dir.join(format!("{stem}.safetensors.index{variant}.json"))
            };
            if index.is_file() {
                return Self::shards(dir, &index);
            }
        }
        let expected = dir.join(format!("{stem}.safetensors"));
        let pickle = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|p| {
                p.extension()
                    .is_some_and(|e| PICKLES.iter().any(|x| e == *x))
            });
        let hint = match pickle {
            Some(p) => format!(
                "\nhint: {} is a pickle, which can run code when it is read, and is refused; \
                 save the component with `safe_serialization=True` to get {}",
                p.display(),
                expected.display()
            ),
            None => String::new(),
        };
        Err(Error::NotFound {
            what: "weights".into(),
            path: expected,
            hint,
        })
    }

    fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, e))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|e| {
            Error::format(index, "an object `weight_map` of tensor to file name", e)
        })?;
        let names: BTreeSet<&String> = parsed.weight_map.values().collect();
        if names.is_empty() {
            return Err(Error::format(
                index,
                "at least one shard",
                "an empty `weight_map`",
            ));
        }
        names
            .into_iter()
            .map(|name| {
                let plain = Path::new(name)
                    .file_name()
                    .is_some_and(|f| f == name.as_str());
                if !plain || !name.ends_with(".safetensors") {
                    return Err(Error::format(
                        index,
                        "file names ending in .safetensors, beside the index",
                        format!("{name:?}"),
                    ));
                }
                let path = dir.join(name);
                if path.is_file() {
                    Ok(path)
                } else {
                    Err(Error::NotFound {
                        what: format!("shard named by {}", index.display()),
                        path,
                        hint: String::new(),
                    })
                }
            })
            .collect()
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        // SAFETY: the map is read-only; a file that another process truncates while it is mapped
        // faults, as with every reader of mapped weights.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(&path, e))?;
        let bad = |e: &dyn std::fmt::Display| {
            Error::format(
                &path,
                "a complete safetensors file",
                format!("{} bytes: {e}", map.len()),
            )
        };
        if let Some(head) = map.get(..8) {
            let mut size = [0; 8];
            size.copy_from_slice(head);
            let size = u64::from_le_bytes(size);
            if size > MAX_HEADER {
                return Err(bad(&format!("a header of {size} bytes")));
            }
        }
        let (header, metadata): (usize, Metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| bad(&e))?;
        let data = header + 8;
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > map.len() {
                return Err(bad(&format!("tensor {name:?} ends at byte {end}")));
            }
            let entry = Entry {
                file: index,
                dtype: info.dtype,
                shape: info.shape.iter().map(|&d| d as i64).collect(),
                start,
                end,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(Error::Tensor {
                    file: path,
                    tensor: name,
                    expected: "each tensor in one shard".into(),
                    got: "it in two".into(),
                });
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Whether a tensor of this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The path that errors about this component name.
    pub fn path(&self) -> &Path {
        self.files
            .first()
            .map_or(Path::new("<no file>"), |(p, _)| p)
    }

    /// The tensor `name` of exactly `shape`, on the device, in the working dtype.
    ///
    /// # Errors
    /// [`Error::Tensor`] when it is missing or has another shape, or its dtype is not
    /// float32, float16 or bfloat16.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let error = |file: &Path, got: String| Error::Tensor {
            file: file.to_path_buf(),
            tensor: name.into(),
            expected: format!("float {shape:?}"),
            got,
        };
        let Some(entry) = self.entries.get(name) else {
            return Err(error(self.path(), "nothing".into()));
        };
        let (path, map) = &self.files[entry.file];
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(error(path, format!("{other:?} {:?}", entry.shape))),
        };
        if entry.shape != shape {
            return Err(error(path, format!("{:?} {:?}", entry.dtype, entry.shape)));
        }
        let bytes = &map[entry.start..entry.end];
        let tensor = Tensor::f_from_data_size(bytes, shape, kind)
            .and_then(|t| t.f_to_device_(self.device, self.kind, false, false))
            .map_err(|e| Error::backend(format!("{}: tensor {name:?}", path.display()), e))?;
        // The copy is made, so the file's pages need not stay resident. If the hint fails, it only
        // costs memory.
        // SAFETY: the map is a read-only, file-backed one; pages that are touched again are
        // read from the file again.
        let _ = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, entry.start, bytes.len())
        };
        self.seen.lock().insert(name.to_owned());
        Ok(tensor)
    }

    /// Refuses tensors that the architecture did not ask for.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first superfluous one and how many there are.
    pub fn finish(&self) -> Result<()> {
        let seen = self.seen.lock();
        let mut extra = self
            .entries
            .iter()
            .filter(|(n, _)| !seen.contains(*n))
            .filter(|(n, _)| !IGNORED_SUFFIXES.iter().any(|s| n.ends_with(s)));
        let Some((name, entry)) = extra.next() else {
            return Ok(());
        };
        let more = extra.count();
        Err(Error::Tensor {
            file: self.files[entry.file].0.clone(),
            tensor: name.clone(),
            expected: "no tensor beyond those that config.json describes".into(),
            got: format!("{:?} {:?} and {more} more", entry.dtype, entry.shape),
        })
    }

    /// A view on the tensors below `prefix` (`""` for all).
    pub fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
        }
    }

    /// SHA-256 over the content of the component's files, in order of their names.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read again.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for (path, _) in &self.files {
            // Not through the map, whose pages would all become resident.
            let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => hasher.update(&buffer[..n]),
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(Error::io(path, e)),
                }
            }
        }
        Ok(hasher.finalize().into())
    }
}

/// A prefix in the tree of tensor names.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The scope `<this>.<name>`.
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self {
            weights: self.weights,
            prefix: self.name(&name.to_string()),
        }
    }

    fn name(&self, leaf: &str) -> String {
        if self.prefix.is_empty() {
            leaf.to_owned()
        } else {
            format!("{}.{leaf}", self.prefix)
        }
    }

    /// Whether `<this>.<leaf>` exists.
    pub fn has(&self, leaf: &str) -> bool {
        self.weights.has(&self.name(leaf))
    }

    /// The tensor `<this>.<leaf>`; see [`Weights::tensor`].
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn tensor(&self, leaf: &str, shape: &[i64]) -> Result<Tensor> {
        self.weights.tensor(&self.name(leaf), shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn write(dir: &Path, name: &str, tensors: &[(&str, &[usize], f32)]) -> PathBuf {
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, shape, v)| {
                std::iter::repeat_n(v.to_le_bytes(), shape.iter().product())
                    .flatten()
                    .collect()
            })
            .collect();
        let views = tensors.iter().zip(&data).map(|((n, shape, _), d)| {
            (*n, TensorView::new(Dtype::F32, shape.to_vec(), d).unwrap())
        });
        let path = dir.join(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn open(dir: &Path) -> Result<Weights> {
        Weights::open(dir, "model", Device::Cpu, Kind::Float)
    }

    #[test]
    fn names_the_missing_the_misshapen_and_the_superfluous() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "model.safetensors",
            &[("a", &[2, 3], 1.5), ("b", &[4], 2.0)],
        );
        let w = open(dir.path()).unwrap();
        assert_eq!(w.tensor("a", &[2, 3]).unwrap().double_value(&[1, 2]), 1.5);
        for (e, words) in [
            (w.tensor("c", &[1]).unwrap_err(), ["\"c\"", "nothing"]),
            (w.tensor("b", &[5]).unwrap_err(), ["[5]", "[4]"]),
            (w.finish().unwrap_err(), ["\"b\"", "0 more"]),
        ] {
            let text = e.to_string();
            assert!(text.contains("model.safetensors"), "{text}");
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        assert_eq!(w.tensor("b", &[4]).unwrap().numel(), 4);
        w.finish().unwrap();
    }

    #[test]
    fn truncation_is_an_error_at_every_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(
            dir.path(),
            "model.safetensors",
            &[("a", &[8], 1.0), ("b", &[2], 2.0)],
        );
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let e = open(dir.path())
                .err()
                .unwrap_or_else(|| panic!("{cut} bytes accepted"));
            assert!(e.to_string().contains("model.safetensors"), "{e}");
        }
    }

    #[test]
    fn pickles_are_refused_naming_the_file_expected() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.bin"), b"x").unwrap();
        let text = open(dir.path()).err().unwrap().to_string();
        assert!(
            text.contains("model.safetensors") && text.contains("pickle"),
            "{text}"
        );
    }

    #[test]
    fn shards_are_joined_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model-1.safetensors", &[("a", &[1], 1.0)]);
        let index = dir.path().join("model.safetensors.index.json");
        let map = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        std::fs::write(&index, map).unwrap();
        assert!(
            open(dir.path())
                .err()
                .unwrap()
                .to_string()
                .contains("model-2.safetensors")
        );
        write(dir.path(), "model-2.safetensors", &[("b", &[1], 2.0)]);
        assert_eq!(open(dir.path()).unwrap().names().count(), 2);
        std::fs::write(&index, r#"{"weight_map": {"a": "../model-1.safetensors"}}"#).unwrap();
        assert!(open(dir.path()).is_err());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
        #[test]
        fn changed_bytes_never_panic(
            changes in proptest::collection::vec((0usize..200, proptest::prelude::any::<u8>()), 1..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path =
                write(dir.path(), "model.safetensors", &[("a", &[2, 3], 1.5), ("b", &[4], 2.0)]);
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, value) in changes {
                let n = bytes.len();
                bytes[at % n] = value;
            }
            std::fs::write(&path, bytes).unwrap();
            if let Ok(weights) = open(dir.path()) {
                for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
                    let _ = weights.tensor(&name, &[2, 3]);
                }
                let _ = weights.finish();
            }
        }
    }
}
