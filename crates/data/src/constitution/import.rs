//! Constitutions out of the JSON files of other projects.

use serde_json::{Map, Value};

use super::templates::{Templates, both};
use super::{Constitution, ConstitutionError, Localised, Principle, file};
use crate::records::type_name;

/// The texts of one principle as they are found; a missing one gets a neutral text.
#[derive(Default)]
struct Found {
    id: String,
    critique: Option<String>,
    revision: Option<String>,
    comparison: Option<String>,
}

/// Makes a constitution called `name` of the principles in a JSON file of one of these forms:
///
/// - `{"constitutions": [{"critic": .., "revision": ..}, ..]}`, as llm-swarm has it;
/// - `{"harmful0": {"prompt": [".. CritiqueRequest: X\n\nCritique:"], "edit_request": "\n\nRevisionRequest: Y\n\nRevision:"}, ..}`,
///   Anthropic's `CritiqueRevisionInstructions.json`, where `prompt` is a text or a list of them; each gives a principle;
/// - `["\nWhich response is better? Options:", ..]`, Anthropic's `RLMadisonInstructions.json`.
///
/// These files have one language: a text is used for both. Where a principle has no critique, revision or comparison, a
/// neutral one stands in. There are no tags and no demonstrations; templates and phrases are the defaults.
///
/// # Errors
/// Another form, an entry without its texts, or a rule of constitutions that is broken (see [`Constitution::load`]).
pub fn import(json: &Value, name: &str) -> Result<Constitution, ConstitutionError> {
    let found = match json {
        Value::Object(fields) => match fields.get("constitutions") {
            Some(list) => critics(list)?,
            None => instructions(fields)?,
        },
        Value::Array(questions) => comparisons(questions)?,
        _ => return Err(ConstitutionError::UnknownForm),
    };
    Constitution::new(file::File {
        name: name.to_owned(),
        no_problem: file::no_problem(),
        refusals: file::refusals(),
        templates: Templates::default(),
        principles: found.into_iter().map(principle).collect(),
        examples: Vec::new(),
    })
}

fn principle(found: Found) -> Principle {
    let or = |text: Option<String>, en: &str, ko: &str| match text {
        Some(text) => Localised { en: text.clone(), ko: text },
        None => both(en, ko),
    };
    Principle {
        id: found.id,
        tags: Vec::new(),
        critique: or(
            found.critique,
            "Is anything wrong with the answer?",
            "이 대답에 잘못된 것이 있나요?",
        ),
        revision: or(
            found.revision,
            "Rewrite the answer so that it is better.",
            "대답을 더 좋게 고쳐 주세요.",
        ),
        comparison: or(found.comparison, "Which answer is better?", "어느 대답이 더 좋은가요?"),
    }
}

fn critics(list: &Value) -> Result<Vec<Found>, ConstitutionError> {
    let Value::Array(items) = list else { return Err(wrong("constitutions", "a list", list)) };
    let one = |(at, item): (usize, &Value)| {
        let text = |field: &str| string(item.get(field), &format!("constitutions[{at}].{field}"));
        Ok(Found {
            id: numbered(at),
            critique: Some(text("critic")?.trim().to_owned()),
            revision: Some(text("revision")?.trim().to_owned()),
            ..Found::default()
        })
    };
    items.iter().enumerate().map(one).collect()
}

fn instructions(fields: &Map<String, Value>) -> Result<Vec<Found>, ConstitutionError> {
    let known = |item: &Value| item.get("prompt").is_some() || item.get("edit_request").is_some();
    if !fields.values().any(known) {
        return Err(ConstitutionError::UnknownForm);
    }
    let mut found = Vec::new();
    for (at, (name, item)) in fields.iter().enumerate() {
        let edit = string(item.get("edit_request"), &format!("{name}.edit_request"))?;
        let revision = between(edit, "RevisionRequest:", "Revision:");
        let key = format!("{name}.prompt");
        let prompts = match item.get("prompt") {
            Some(Value::Array(list)) => list.iter().collect(),
            other => other.into_iter().collect::<Vec<_>>(),
        };
        if prompts.is_empty() {
            return Err(missing(&key));
        }
        for (number, prompt) in (1..).zip(&prompts) {
            let several = if prompts.len() > 1 { format!("-{number}") } else { String::new() };
            found.push(Found {
                id: format!("{}{several}", id_of(name, at)),
                critique: Some(between(
                    string(Some(prompt), &key)?,
                    "CritiqueRequest:",
                    "Critique:",
                )),
                revision: Some(revision.clone()),
                comparison: None,
            });
        }
    }
    Ok(found)
}

fn comparisons(questions: &[Value]) -> Result<Vec<Found>, ConstitutionError> {
    let one = |(at, item): (usize, &Value)| {
        let text = string(Some(item), &format!("[{at}]"))?.trim();
        let question = text.strip_suffix("Options:").unwrap_or(text).trim_end();
        Ok(Found { id: numbered(at), comparison: Some(question.to_owned()), ..Found::default() })
    };
    questions.iter().enumerate().map(one).collect()
}

/// What stands after the last `head` of a text and before its end, `tail`.
fn between(text: &str, head: &str, tail: &str) -> String {
    let text = text.trim();
    let text = text.rsplit_once(head).map_or(text, |(_, rest)| rest);
    text.strip_suffix(tail).unwrap_or(text).trim().to_owned()
}

fn numbered(at: usize) -> String {
    format!("principle-{}", at + 1)
}

/// `name` in the characters that an id may have.
fn id_of(name: &str, at: usize) -> String {
    let name = name.to_lowercase();
    let parts = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let id = parts.collect::<Vec<_>>().join("-");
    if id.is_empty() { numbered(at) } else { id }
}

fn string<'a>(value: Option<&'a Value>, key: &str) -> Result<&'a str, ConstitutionError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(key, "a text", other)),
        None => Err(missing(key)),
    }
}

fn wrong(key: &str, wants: &str, found: &Value) -> ConstitutionError {
    let message = format!("expected {wants} but found {}", type_name(found));
    ConstitutionError::Import { key: key.to_owned(), message }
}

fn missing(key: &str) -> ConstitutionError {
    ConstitutionError::Import {
        key: key.to_owned(),
        message: "is not there; add it, or take the entry out".to_owned(),
    }
}
