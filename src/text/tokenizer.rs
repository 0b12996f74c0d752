//! The CLIP tokenizer, with the character offsets that find a subject's tokens.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Replace, Sequence as Normalizers, utils::Lowercase};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};

/// Default length that every prompt is cut or padded to.
const DEFAULT_LENGTH: usize = 77;

/// How CLIP splits lowercased text into words before byte-pair merging (Radford et al., 2021).
const WORD_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A prompt as the text encoder takes it.
#[derive(Debug, Clone)]
pub struct TokenizedPrompt {
    /// Token ids, cut and padded to the model's length, start and end tokens included.
    pub ids: Vec<i64>,
    /// For each token the characters of the prompt that it covers; empty for special tokens.
    pub offsets: Vec<Range<usize>>,
}

impl TokenizedPrompt {
    /// Positions of the tokens that overlap the characters `span` of the prompt; empty when the
    /// prompt was cut before them.
    pub fn positions(&self, span: &Range<usize>) -> Vec<usize> {
        self.offsets
            .iter()
            .enumerate()
            .filter(|(_, o)| !o.is_empty() && o.start < span.end && span.start < o.end)
            .map(|(i, _)| i)
            .collect()
    }
}

/// A CLIP tokenizer read from `tokenizer.json`, or from `vocab.json` and `merges.txt`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
}

impl Tokenizer {
    /// Reads the `tokenizer/` directory of a diffusers-layout model.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no vocabulary is there, [`Error::Format`] when a file is
    /// malformed or a special token is not in the vocabulary.
    pub fn open(dir: &Path) -> Result<Self> {
        let json = dir.join("tokenizer.json");
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        let config = SpecialTokens::read(dir)?;
        let (source, mut inner) = if json.is_file() {
            let inner = tokenizers::Tokenizer::from_file(&json)
                .map_err(|e| Error::format(&json, "a CLIP tokenizer", e))?;
            (json, inner)
        } else if vocab.is_file() && merges.is_file() {
            let inner = from_vocab(&vocab, &merges, &config)?;
            (vocab, inner)
        } else {
            return Err(Error::NotFound {
                what: "tokenizer (tokenizer.json, or vocab.json with merges.txt)".into(),
                path: dir.to_path_buf(),
                hint: String::new(),
            });
        };
        // Cutting and padding are done here, so that the end token survives the cut.
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(&source, "a tokenizer without truncation", e))?
            .with_padding(None);
        let id = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| {
                Error::format(
                    &source,
                    format!("the special token {token:?}"),
                    "a vocabulary without it",
                )
            })
        };
        Ok(Self {
            start: id(&config.start)?,
            end: id(&config.end)?,
            pad: id(&config.pad)?,
            length: config.length,
            inner,
        })
    }

    /// Number of tokens of every prompt (77 for Stable Diffusion).
    pub fn length(&self) -> usize {
        self.length
    }

    /// Tokens of `prompt`, cut to the model's length with the end token kept, then padded.
    ///
    /// # Errors
    /// [`Error::Backend`] when the tokenizer fails.
    pub fn encode(&self, prompt: &str) -> Result<TokenizedPrompt> {
        let encoding = self
            .inner
            .encode_char_offsets(prompt, false)
            .map_err(|e| Error::backend("tokenizer", e))?;
        let room = self.length - 2;
        let mut ids = vec![i64::from(self.start)];
        let mut offsets = vec![Range::default()];
        for (&id, &(from, to)) in encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .take(room)
        {
            ids.push(i64::from(id));
            offsets.push(from..to);
        }
        ids.push(i64::from(self.end));
        ids.resize(self.length, i64::from(self.pad));
        offsets.resize(self.length, Range::default());
        Ok(TokenizedPrompt { ids, offsets })
    }
}

/// The special tokens that `tokenizer_config.json` and `special_tokens_map.json` name.
struct SpecialTokens {
    start: String,
    end: String,
    pad: String,
    unknown: String,
    length: usize,
}

impl SpecialTokens {
    fn read(dir: &Path) -> Result<Self> {
        let mut found = Self {
            start: "<|startoftext|>".into(),
            end: "<|endoftext|>".into(),
            pad: "<|endoftext|>".into(),
            unknown: "<|endoftext|>".into(),
            length: DEFAULT_LENGTH,
        };
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = dir.join(name);
            if !path.is_file() {
                continue;
            }
            let value: Value = read_json(&path)?;
            for (key, slot) in [
                ("bos_token", &mut found.start),
                ("eos_token", &mut found.end),
                ("pad_token", &mut found.pad),
                ("unk_token", &mut found.unknown),
            ] {
                let content = match value.get(key) {
                    Some(Value::String(s)) => Some(s.as_str()),
                    Some(Value::Object(o)) => o.get("content").and_then(Value::as_str),
                    _ => None,
                };
                if let Some(token) = content {
                    *slot = token.to_owned();
                }
            }
            if let Some(n) = value.get("model_max_length").and_then(Value::as_u64) {
                // Transformers writes an astronomically large number for "no limit".
                if n < 10_000 {
                    found.length = n as usize;
                }
            }
        }
        if found.length < 3 {
            return Err(Error::format(
                dir.join("tokenizer_config.json"),
                "model_max_length of at least 3",
                found.length,
            ));
        }
        Ok(found)
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, "JSON", e))
}

/// CLIP's pipeline around the two vocabulary files.
fn from_vocab(
    vocab: &Path,
    merges: &Path,
    special: &SpecialTokens,
) -> Result<tokenizers::Tokenizer> {
    let path_text = |p: &PathBuf| p.to_string_lossy().into_owned();
    let bad = |e: tokenizers::Error| Error::format(vocab, "a CLIP byte-pair vocabulary", e);
    let bpe = BPE::from_file(
        &path_text(&vocab.to_path_buf()),
        &path_text(&merges.to_path_buf()),
    )
    .unk_token(special.unknown.clone())
    .end_of_word_suffix("</w>".into())
    .continuing_subword_prefix(String::new())
    .build()
    .map_err(bad)?;
    let whitespace = Replace::new(
        tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()),
        " ",
    )
    .map_err(bad)?;
    let words = Split::new(
        SplitPattern::Regex(WORD_PATTERN.into()),
        SplitDelimiterBehavior::Removed,
        true,
    )
    .map_err(bad)?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NFC.into(),
        whitespace.into(),
        Lowercase.into(),
    ])));
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        words.into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    let added: Vec<AddedToken> = [&special.start, &special.end, &special.unknown, &special.pad]
        .into_iter()
        .map(|t| AddedToken::from(t.clone(), true))
        .collect();
    let _ = tokenizer.add_special_tokens(&added);
    Ok(tokenizer)
}
