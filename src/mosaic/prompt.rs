//! Prompts, and where in them the subject stands.

use std::ops::Range;

use crate::dataset::Words;
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// A prompt with the characters that name its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The whole prompt.
    pub prompt: String,
    /// The subject's characters in it (not bytes).
    pub span: Range<usize>,
}

/// A name without its sense in parentheses.
fn bare(spoken: &str) -> &str {
    match spoken.trim().split_once(" (") {
        Some((name, _)) if !name.is_empty() => name,
        _ => spoken.trim(),
    }
}

impl Subject {
    /// The recipe's prompt for a category: the template with the name (`_` as a space), and the
    /// definition where the recipe wants it and one is known. A sense in parentheses
    /// (`bow_(weapon)`) stands in the prompt but is not part of the subject.
    ///
    /// # Errors
    /// [`Error::Value`] for an empty name.
    pub fn from_recipe(recipe: &Recipe, name: &str, definition: Option<&str>) -> Result<Self> {
        let spoken = name.replace('_', " ");
        let spoken = spoken.trim();
        if spoken.is_empty() {
            return Err(Error::value("category", "a name", format!("{name:?}")));
        }
        let bare = bare(spoken);
        let (before, after) = recipe.template.split_once("{category}").ok_or_else(|| {
            Error::value(
                "recipe, key \"template\"",
                "a text with {category} once",
                format!("{:?}", recipe.template),
            )
        })?;
        let mut prompt = format!("{before}{spoken}{after}");
        if let Some(definition) = definition.map(str::trim).filter(|d| !d.is_empty())
            && recipe.definition
        {
            prompt.push_str(", ");
            prompt.push_str(definition);
        }
        let start = before.chars().count();
        Ok(Self {
            prompt,
            span: start..start + bare.chars().count(),
        })
    }

    /// The prompt for a category under the words that the model knows it by: the user's own, or
    /// as [`Subject::from_recipe`].
    ///
    /// # Errors
    /// [`Error::Value`] for an empty name, or a prompt of the user's own without it.
    pub fn from_words(recipe: &Recipe, words: &Words) -> Result<Self> {
        match &words.prompt {
            Some(prompt) => Self::find(prompt, Some(bare(&words.name.replace('_', " ")))),
            None => Self::from_recipe(recipe, &words.name, Some(&words.definition)),
        }
    }

    /// A prompt with the subject's characters in it, as they were written down.
    ///
    /// # Errors
    /// [`Error::Value`] when they are none, or not within the prompt.
    pub fn at(prompt: &str, span: Range<usize>) -> Result<Self> {
        let length = prompt.chars().count();
        if span.is_empty() || span.end > length {
            return Err(Error::value(
                "subject",
                format!("a range within the prompt's {length} characters"),
                format!("{span:?}"),
            ));
        }
        Ok(Self {
            prompt: prompt.to_owned(),
            span,
        })
    }

    /// A free prompt with the first whole-word occurrence of `subject` in it; without a subject,
    /// the whole prompt is it.
    ///
    /// # Errors
    /// [`Error::Value`] for an empty prompt, or one that does not contain the subject.
    pub fn find(prompt: &str, subject: Option<&str>) -> Result<Self> {
        if prompt.trim().is_empty() {
            return Err(Error::value("prompt", "a text", format!("{prompt:?}")));
        }
        let text: Vec<char> = prompt.chars().collect();
        let Some(subject) = subject else {
            return Ok(Self {
                prompt: prompt.to_owned(),
                span: 0..text.len(),
            });
        };
        let word: Vec<char> = subject.trim().replace('_', " ").chars().collect();
        let same = |a: char, b: char| a.to_lowercase().eq(b.to_lowercase());
        let found = (!word.is_empty())
            .then(|| {
                (0..(text.len() + 1).saturating_sub(word.len())).find(|&i| {
                    let end = i + word.len();
                    let matches = text[i..end].iter().zip(&word).all(|(&a, &b)| same(a, b));
                    let starts = i == 0 || !text[i - 1].is_alphanumeric();
                    let ends = text.get(end).is_none_or(|c| !c.is_alphanumeric());
                    matches && starts && ends
                })
            })
            .flatten();
        match found {
            Some(start) => Ok(Self {
                prompt: prompt.to_owned(),
                span: start..start + word.len(),
            }),
            None => Err(Error::value(
                "subject",
                format!("words of the prompt {prompt:?}"),
                format!("{subject:?}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spanned(s: &Subject) -> String {
        s.prompt
            .chars()
            .skip(s.span.start)
            .take(s.span.len())
            .collect()
    }

    #[test]
    fn the_subject_is_the_name_without_its_sense() {
        let recipe = Recipe::default();
        let s = Subject::from_recipe(&recipe, "bow_(weapon)", Some("shoots arrows")).unwrap();
        assert_eq!(s.prompt, "a photo of a single bow (weapon), shoots arrows");
        assert_eq!(spanned(&s), "bow");
        let s = Subject::from_recipe(&recipe, "school_bus", None).unwrap();
        assert_eq!(s.prompt, "a photo of a single school bus");
        assert_eq!(spanned(&s), "school bus");
        assert!(Subject::from_recipe(&recipe, " _ ", None).is_err());
    }

    #[test]
    fn free_prompts_need_the_subject_as_a_whole_word() {
        let s = Subject::find("a scarf on a Car, é", Some("car")).unwrap();
        assert_eq!(spanned(&s), "Car");
        assert!(Subject::find("a scarf", Some("car")).is_err());
        assert!(Subject::find("a scarf", Some("")).is_err());
        assert!(Subject::find("  ", None).is_err());
        assert_eq!(Subject::find("ab", None).unwrap().span, 0..2);
    }
}
