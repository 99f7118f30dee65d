//! The TOML file of a constitution: its keys, its rules, and how it is written.

use std::fmt::Write as _;

use serde::Deserialize;

use super::templates::Templates;
use super::{Constitution, ConstitutionError, Demonstration, Language, Localised, Principle};
use crate::checker::normalise;

/// The file as it is read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) no_problem: Localised<Vec<String>>,
    pub(super) refusals: Localised<Vec<String>>,
    #[serde(default)]
    pub(super) templates: Templates,
    // Absent is told in words of its own.
    #[serde(default)]
    pub(super) principles: Vec<Principle>,
    #[serde(default)]
    pub(super) examples: Vec<Demonstration>,
}

/// The phrase by which a critique says that nothing is wrong, for files that have none.
pub(super) fn no_problem() -> Localised<Vec<String>> {
    phrases(&["No problem found"], &["문제가 없어요"])
}

/// The phrases by which a response refuses, for files that have none.
pub(super) fn refusals() -> Localised<Vec<String>> {
    phrases(
        &[
            "I will not help",
            "I can't help",
            "I cannot help",
            "I can't assist",
            "I cannot assist",
            "I'm sorry, but I",
        ],
        &["도울 수 없어요", "도울 수 없습니다", "도와드릴 수 없어요", "도와드릴 수 없습니다"],
    )
}

fn phrases(en: &[&str], ko: &[&str]) -> Localised<Vec<String>> {
    let owned = |list: &[&str]| list.iter().map(|phrase| (*phrase).to_owned()).collect();
    Localised { en: owned(en), ko: owned(ko) }
}

impl File {
    /// The rules but for those about templates as such.
    pub(super) fn check(&self) -> Result<(), ConstitutionError> {
        filled("name", &self.name)?;
        for (key, list) in [("no_problem", &self.no_problem), ("refusals", &self.refusals)] {
            for language in Language::ALL {
                for (at, phrase) in list.of(language).iter().enumerate() {
                    // What has no letter would be found in no text.
                    filled(&format!("{key}.{}[{at}]", language.code()), &normalise(phrase))?;
                }
            }
        }
        for (name, texts, _) in self.templates.all() {
            filled_both(&format!("templates.{name}"), texts)?;
        }
        if self.principles.is_empty() {
            return Err(ConstitutionError::NoPrinciples);
        }
        for (at, principle) in self.principles.iter().enumerate() {
            self.check_principle(at, principle)?;
        }
        self.examples.iter().enumerate().try_for_each(|(at, example)| check_example(at, example))
    }

    fn check_principle(&self, at: usize, principle: &Principle) -> Result<(), ConstitutionError> {
        let id = &principle.id;
        let key = format!("principles[{at}].id");
        filled(&key, id)?;
        let letters = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if !id.split('-').all(letters) {
            return Err(ConstitutionError::Id { key, id: id.clone() });
        }
        if let Some(first) = self.principles[..at].iter().position(|other| other.id == *id) {
            return Err(ConstitutionError::SameId { key, id: id.clone(), first });
        }
        for tag in &principle.tags {
            filled(&format!("principles.{id}.tags"), tag)?;
        }
        filled_both(&format!("principles.{id}.critique"), &principle.critique)?;
        filled_both(&format!("principles.{id}.revision"), &principle.revision)?;
        filled_both(&format!("principles.{id}.comparison"), &principle.comparison)
    }
}

fn check_example(at: usize, example: &Demonstration) -> Result<(), ConstitutionError> {
    texts(example)
        .into_iter()
        .try_for_each(|(key, text)| filled(&format!("examples[{at}].{key}"), text))
}

fn texts(example: &Demonstration) -> [(&'static str, &str); 6] {
    [
        ("prompt", &example.prompt),
        ("response", &example.response),
        ("critique_request", &example.critique_request),
        ("critique", &example.critique),
        ("revision_request", &example.revision_request),
        ("revision", &example.revision),
    ]
}

fn filled(key: &str, text: &str) -> Result<(), ConstitutionError> {
    if text.trim().is_empty() {
        return Err(ConstitutionError::Blank { key: key.to_owned() });
    }
    Ok(())
}

fn filled_both(key: &str, texts: &Localised<String>) -> Result<(), ConstitutionError> {
    Language::ALL
        .into_iter()
        .try_for_each(|language| filled(&format!("{key}.{}", language.code()), texts.of(language)))
}

/// The text of the file, one line a key where its value has no line break.
pub(super) fn write(constitution: &Constitution) -> String {
    let mut out = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{words}");
    };
    line(format_args!("name = {}", string(&constitution.name)));
    line(format_args!("no_problem = {}", pair(&constitution.no_problem, |list| strings(list))));
    line(format_args!("refusals = {}", pair(&constitution.refusals, |list| strings(list))));
    line(format_args!("\n[templates]"));
    for (name, texts, _) in constitution.templates.all() {
        line(format_args!("{name} = {}", pair(texts, |text| string(text))));
    }
    for principle in &constitution.principles {
        line(format_args!("\n[[principles]]\nid = {}", string(&principle.id)));
        line(format_args!("tags = {}", strings(&principle.tags)));
        for (key, texts) in [
            ("critique", &principle.critique),
            ("revision", &principle.revision),
            ("comparison", &principle.comparison),
        ] {
            line(format_args!("{key} = {}", pair(texts, |text| string(text))));
        }
    }
    for example in &constitution.examples {
        line(format_args!("\n[[examples]]\nlanguage = {}", string(example.language.code())));
        for (key, text) in texts(example) {
            line(format_args!("{key} = {}", string(text)));
        }
    }
    out
}

fn pair<T>(both: &Localised<T>, write: impl Fn(&T) -> String) -> String {
    format!("{{ en = {}, ko = {} }}", write(&both.en), write(&both.ko))
}

fn strings(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|text| string(text)).collect();
    format!("[{}]", list.join(", "))
}

/// A text with TOML's quotes and escapes.
fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
