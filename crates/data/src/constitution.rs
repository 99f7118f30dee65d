//! A constitution: the principles that a model judges and corrects its own answers by, as in Constitutional AI
//! (Bai et al. 2022), and the turns of a conversation that put them to it.
//!
//! It is a TOML file; `configs/constitution.toml` is one, with a comment on every key. A [`Principle`] has three texts: what
//! asks for a critique of an answer, what asks for a revision, and the question which of two answers is better. Templates
//! (Jinja) place them in a turn. All texts are in English and Korean, and [`Language::of`] a prompt says which is used.
//!
//! [`import()`] makes one of the JSON files of other projects.

mod error;
mod file;
mod import;
mod templates;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::Environment;
use serde::{Deserialize, Serialize};

pub use self::error::ConstitutionError;
pub use self::import::import;
use self::templates::Templates;
use crate::checker::{has_phrase, normalise};
use crate::format::describe;

/// The languages that a constitution is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English; also for texts of any other language.
    En,
    /// Korean.
    Ko,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::En, Self::Ko];

    /// The language of a text: Korean where it has any Hangul syllable, composed or not.
    pub fn of(text: &str) -> Self {
        let korean = |c| matches!(c, '가'..='힣' | '\u{1100}'..='\u{11FF}');
        if text.chars().any(korean) { Self::Ko } else { Self::En }
    }

    /// The two-letter code.
    pub fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Ko => "ko",
        }
    }
}

/// The same thing in every language.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Localised<T> {
    /// In English.
    pub en: T,
    /// In Korean.
    pub ko: T,
}

impl<T> Localised<T> {
    /// What it is in `language`.
    pub fn of(&self, language: Language) -> &T {
        match language {
            Language::En => &self.en,
            Language::Ko => &self.ko,
        }
    }
}

/// What an answer should be, in words that ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principle {
    /// Its name, like no other's: lower-case letters, digits and single `-` between them.
    pub id: String,
    /// What it is about; [`Constitution::tagged`] finds it by them.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Asks what is wrong with an answer.
    pub critique: Localised<String>,
    /// Asks for a better answer.
    pub revision: Localised<String>,
    /// Asks which of two answers is better.
    pub comparison: Localised<String>,
}

/// A critique and a revision to show how it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demonstration {
    /// The language of its texts.
    pub language: Language,
    /// What the user asks.
    pub prompt: String,
    /// The first answer.
    pub response: String,
    /// What asks for a critique of it.
    pub critique_request: String,
    /// What is wrong with the answer.
    pub critique: String,
    /// What asks for a better one.
    pub revision_request: String,
    /// The better answer.
    pub revision: String,
}

/// Principles, demonstrations, and how they are put to a model; checked, with templates that work.
#[derive(Debug, Clone)]
pub struct Constitution {
    /// What it is called.
    pub name: String,
    /// At least one.
    pub principles: Vec<Principle>,
    /// Demonstrations, in the order of the file.
    pub examples: Vec<Demonstration>,
    no_problem: Localised<Vec<String>>,
    refusals: Localised<Vec<String>>,
    templates: Templates,
    environment: Environment<'static>,
}

impl Constitution {
    /// Reads a constitution and checks it: there is a principle, their ids differ, no text is empty, and every template
    /// compiles, names only fields that there are, and renders.
    ///
    /// # Errors
    /// The file cannot be read, is no such TOML, or breaks one of these rules; each names the file and the key.
    pub fn load(path: &Path) -> Result<Self, ConstitutionError> {
        let text = fs_err::read_to_string(path)?;
        Self::parse(&text).map_err(|problem| ConstitutionError::InFile {
            path: path.display().to_string(),
            problem: Box::new(problem),
        })
    }

    /// The same of a text.
    ///
    /// # Errors
    /// As [`load`](Self::load), but no error names a file.
    pub fn parse(text: &str) -> Result<Self, ConstitutionError> {
        let file: file::File =
            toml::from_str(text).map_err(|error| ConstitutionError::toml(text, &error))?;
        Self::new(file)
    }

    fn new(file: file::File) -> Result<Self, ConstitutionError> {
        file.check()?;
        let environment = file.templates.compile()?;
        let file::File { name, no_problem, refusals, templates, principles, examples } = file;
        Ok(Self { name, principles, examples, no_problem, refusals, templates, environment })
    }

    /// Positions in [`principles`](Self::principles) of those with at least one of the tags, in order; of all where `tags` is
    /// empty.
    ///
    /// # Errors
    /// A tag that no principle has; it names those there are.
    pub fn tagged(&self, tags: &[String]) -> Result<Vec<usize>, ConstitutionError> {
        let has = |principle: &Principle, tag: &String| principle.tags.contains(tag);
        for tag in tags {
            if !self.principles.iter().any(|principle| has(principle, tag)) {
                return Err(ConstitutionError::unknown_tag(tag, &self.principles));
            }
        }
        let all = self.principles.iter().enumerate();
        Ok(all
            .filter(|(_, principle)| tags.is_empty() || tags.iter().any(|tag| has(principle, tag)))
            .map(|(at, _)| at)
            .collect())
    }

    /// The turn that asks for a critique of `response`, which answers `prompt`.
    ///
    /// # Errors
    /// The template fails on these texts.
    pub fn critique_turn(
        &self,
        principle: &Principle,
        language: Language,
        prompt: &str,
        response: &str,
    ) -> Result<String, ConstitutionError> {
        let request = principle.critique.of(language);
        let fields = [("request", request.as_str()), ("prompt", prompt), ("response", response)];
        self.render("critique", language, &fields)
    }

    /// The turn that asks for a revision of `response`: one that heeds the critique, or, where there is none, at once.
    ///
    /// # Errors
    /// The template fails on these texts.
    pub fn revision_turn(
        &self,
        principle: &Principle,
        language: Language,
        prompt: &str,
        response: &str,
        critique: Option<&str>,
    ) -> Result<String, ConstitutionError> {
        let request = principle.revision.of(language);
        let fields = [("request", request.as_str()), ("prompt", prompt), ("response", response)];
        match critique {
            Some(critique) => {
                let [request, prompt, response] = fields;
                let fields = [request, prompt, response, ("critique", critique)];
                self.render("revision", language, &fields)
            }
            None => self.render("direct_revision", language, &fields),
        }
    }

    /// The turn that asks which of two responses to `prompt` is better, (A) or (B); with `reasoning`, after thinking about it.
    /// The assistant's turn begins with [`answer_prefix`](Self::answer_prefix) once it answers.
    ///
    /// # Errors
    /// The template fails on these texts.
    pub fn comparison_turn(
        &self,
        principle: &Principle,
        language: Language,
        prompt: &str,
        responses: (&str, &str),
        reasoning: bool,
    ) -> Result<String, ConstitutionError> {
        let fields = [
            ("question", principle.comparison.of(language).as_str()),
            ("prompt", prompt),
            ("response_a", responses.0),
            ("response_b", responses.1),
        ];
        let turn = self.render("comparison", language, &fields)?;
        if !reasoning {
            return Ok(turn);
        }
        Ok(format!("{turn}\n{}", self.templates.reasoning.of(language)))
    }

    /// How the assistant's answer to a comparison begins, up to the letter.
    pub fn answer_prefix(&self, language: Language) -> &str {
        self.templates.answer.of(language)
    }

    /// Whether a critique says that nothing is wrong: it has one of the phrases for that, in any language. Phrases are found
    /// as [`checker`](crate::checker) finds them: case, white space and punctuation do not matter.
    pub fn finds_no_problem(&self, critique: &str) -> bool {
        has_any(&self.no_problem, critique)
    }

    /// Whether a response refuses: it has one of the phrases for that, found likewise.
    pub fn refuses(&self, response: &str) -> bool {
        has_any(&self.refusals, response)
    }

    /// The file's text, with every template; [`parse`](Self::parse) reads the same constitution from it.
    pub fn to_toml(&self) -> String {
        file::write(self)
    }

    fn render(
        &self,
        name: &str,
        language: Language,
        fields: &[(&str, &str)],
    ) -> Result<String, ConstitutionError> {
        let fields: BTreeMap<&str, &str> = fields.iter().copied().collect();
        self.environment
            .get_template(&templates::title(name, language))
            .and_then(|template| template.render(&fields))
            .map_err(|error| ConstitutionError::Render {
                key: templates::key(name, language),
                message: describe(&error),
            })
    }
}

fn has_any(phrases: &Localised<Vec<String>>, text: &str) -> bool {
    let text = normalise(text);
    let mut all = Language::ALL.into_iter().flat_map(|language| phrases.of(language));
    all.any(|phrase| has_phrase(&text, phrase))
}
