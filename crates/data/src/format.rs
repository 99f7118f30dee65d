//! Turns raw records into [`Example`]s: recognised forms, explicit columns, or templates.
//!
//! Without a [`Mapping`] the form is recognised by field names:
//!
//! | kind | forms, in this order |
//! | --- | --- |
//! | `text` | `text` |
//! | `chat` | `messages` (role, content), `conversations` (ShareGPT: from, value), `prompt` + `completion` or `response` (strings, or both lists of messages), `instruction` + `output` (Alpaca, with optional `input`, `system`, `history`) |
//! | `completion` | `prompt` + `completion` or `response`, `instruction` + `output` through [`Mapping::instruction_template`] |
//!
//! Everything else needs a mapping: column names (`prompt = "Q"`) or templates over the record's
//! fields (`prompt_template = "{{ title }}: {{ question }}"`, Jinja; an odd name is
//! `{{ record["acceptable?"] }}`).

mod messages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use minijinja::{Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checker::Checker;
use crate::records::{Origin, Record};

/// The prompt of Stanford Alpaca (Taori et al. 2023), used for `instruction` records where
/// no chat template is wanted.
pub const ALPACA_TEMPLATE: &str = "{% if input %}Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n{{ instruction }}\n\n### Input:\n{{ input }}\n\n### Response:\n{% else %}Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{{ instruction }}\n\n### Response:\n{% endif %}";

/// What the records of a data set are used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Running text: every token counts in the loss.
    Text,
    /// A conversation through the chat template: what the assistant says counts.
    Chat,
    /// A prompt and its completion as they are: the completion counts.
    Completion,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or whatever else the chat template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
    /// Whether the turn counts in the loss; absent: when the role is `assistant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<bool>,
}

impl Message {
    /// A message that counts in the loss when it is the assistant's.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), train: None }
    }

    /// Whether the message counts in the loss.
    pub fn counts(&self) -> bool {
        self.train.unwrap_or(self.role == "assistant")
    }
}

/// A record in the form that tokenisation needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// Running text.
    Text {
        /// The text.
        text: String,
    },
    /// A conversation.
    Chat {
        /// At least one message.
        messages: Vec<Message>,
    },
    /// A prompt and what follows it, joined without anything between.
    Completion {
        /// Does not count in the loss.
        prompt: String,
        /// Counts in the loss.
        completion: String,
    },
}

/// An example with what a rule-based checker needs, where the record carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// The example.
    pub example: Example,
    /// From the field `checker`: an object, or a string with JSON in it.
    pub checker: Option<Checker>,
    /// From the field `answer`.
    pub answer: Option<String>,
    /// From the field `task`: a label to group results by.
    pub task: Option<String>,
}

/// How fields become an example. All absent: recognise the form by the field names.
///
/// `*_template` keys are Jinja over the record's fields (also reachable as `record["name"]`); the
/// others are column names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mapping {
    /// Column with the running text.
    pub text: Option<String>,
    /// Template of the running text.
    pub text_template: Option<String>,
    /// Column with a system message.
    pub system: Option<String>,
    /// Template of a system message; nothing is added where it renders to blank.
    pub system_template: Option<String>,
    /// Column with the prompt.
    pub prompt: Option<String>,
    /// Template of the prompt.
    pub prompt_template: Option<String>,
    /// Column with the completion.
    pub completion: Option<String>,
    /// Template of the completion.
    pub completion_template: Option<String>,
    /// Column with a list of messages.
    pub messages: Option<String>,
    /// The key of a message's role. Default: `role`, else `from`.
    pub role_key: Option<String>,
    /// The key of a message's text. Default: `content`, else `value`.
    pub content_key: Option<String>,
    /// Other names of roles, such as `{ tutor = "assistant" }`.
    pub roles: BTreeMap<String, String>,
    /// Prompt of `instruction`/`input` records for kind `completion`. Default: [`ALPACA_TEMPLATE`].
    pub instruction_template: Option<String>,
}

/// Why a record or a mapping cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A mapping names too much or too little.
    #[error("mapping: {0}")]
    Mapping(String),
    /// A template does not compile.
    #[error("mapping.{key}: not a valid template: {message}")]
    Template {
        /// The key of the mapping.
        key: &'static str,
        /// The engine's message.
        message: String,
    },
    /// A template fails on a record.
    #[error("{origin}: mapping.{key} fails: {message}; the record has {fields}")]
    Render {
        /// File and row.
        origin: Origin,
        /// The key of the mapping.
        key: &'static str,
        /// The engine's message.
        message: String,
        /// The record's field names.
        fields: String,
    },
    /// No form matches the fields.
    #[error(
        "{origin}: cannot tell what this record is for kind `{kind}`: it has {fields}, and {wants} is needed; say which columns to use in [mapping]"
    )]
    Unrecognised {
        /// File and row.
        origin: Origin,
        /// The kind asked for.
        kind: &'static str,
        /// The record's field names.
        fields: String,
        /// The recognised forms.
        wants: &'static str,
    },
    /// A field is not there or null.
    #[error("{origin}: no field `{field}`; the record has {fields}")]
    Missing {
        /// File and row.
        origin: Origin,
        /// The field.
        field: String,
        /// The record's field names.
        fields: String,
    },
    /// A field has the wrong type or content.
    #[error("{origin}: field `{field}`: {message}")]
    Field {
        /// File and row.
        origin: Origin,
        /// The field, with an index for list items.
        field: String,
        /// What is wrong.
        message: String,
    },
}

/// A compiled [`Mapping`] for one [`Kind`].
pub struct Mapper {
    kind: Kind,
    mapping: Mapping,
    environment: Environment<'static>,
}

impl Mapper {
    /// Checks the mapping against the kind and compiles its templates.
    pub fn new(kind: Kind, mapping: &Mapping) -> Result<Self, FormatError> {
        check_keys(kind, mapping)?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let templates = [
            ("text_template", &mapping.text_template),
            ("system_template", &mapping.system_template),
            ("prompt_template", &mapping.prompt_template),
            ("completion_template", &mapping.completion_template),
        ];
        let mut add = |key: &'static str, source: &str| {
            environment
                .add_template_owned(key, source.to_owned())
                .map_err(|error| FormatError::Template { key, message: describe(&error) })
        };
        for (key, source) in templates {
            if let Some(source) = source {
                add(key, source)?;
            }
        }
        let instruction = mapping.instruction_template.as_deref().unwrap_or(ALPACA_TEMPLATE);
        add("instruction_template", instruction)?;
        Ok(Self { kind, mapping: mapping.clone(), environment })
    }

    /// Makes an example of one record.
    pub fn map(&self, record: &Record) -> Result<Mapped, FormatError> {
        let example = match self.kind {
            Kind::Text => self.text(record)?,
            Kind::Chat => self.chat(record)?,
            Kind::Completion => self.completion(record)?,
        };
        Ok(Mapped {
            example,
            checker: checker_of(record)?,
            answer: label(record, artifact::columns::ANSWER),
            task: label(record, artifact::columns::TASK),
        })
    }

    fn text(&self, record: &Record) -> Result<Example, FormatError> {
        let mapping = &self.mapping;
        if let Some(text) = self.value(
            record,
            mapping.text.as_ref(),
            mapping.text_template.is_some(),
            "text_template",
        )? {
            return Ok(Example::Text { text });
        }
        if record.fields.contains_key("text") {
            return Ok(Example::Text { text: string(record, "text")? });
        }
        Err(unrecognised(record, "text", "`text`"))
    }

    fn chat(&self, record: &Record) -> Result<Example, FormatError> {
        let messages = if let Some(column) = &self.mapping.messages {
            messages::list(record, column, &self.mapping)?
        } else if let Some((prompt, completion)) = self.mapped_pair(record)? {
            let mut messages = Vec::with_capacity(3);
            if let Some(system) = self.mapped_system(record)? {
                messages.push(Message::new("system", system));
            }
            messages.push(Message::new("user", prompt));
            messages.push(Message::new("assistant", completion));
            messages
        } else {
            messages::recognise(record, &self.mapping)?.ok_or_else(|| {
                unrecognised(
                    record,
                    "chat",
                    "`messages`, `conversations`, `prompt` with `completion` or `response`, or \
                     `instruction` with `output`",
                )
            })?
        };
        if !messages.iter().any(Message::counts) {
            return Err(FormatError::Field {
                origin: record.origin.clone(),
                field: "messages".to_owned(),
                message: "no message of the assistant, so nothing would count in the loss"
                    .to_owned(),
            });
        }
        Ok(Example::Chat { messages })
    }

    fn completion(&self, record: &Record) -> Result<Example, FormatError> {
        if let Some((prompt, completion)) = self.mapped_pair(record)? {
            return Ok(Example::Completion { prompt, completion });
        }
        let has = |field: &str| record.fields.contains_key(field);
        if has("prompt") && (has("completion") || has("response")) {
            let completion = if has("completion") { "completion" } else { "response" };
            return Ok(Example::Completion {
                prompt: string(record, "prompt")?,
                completion: string(record, completion)?,
            });
        }
        if has("instruction") && has("output") {
            let input = optional_string(record, "input")?.unwrap_or_default();
            let mut fields = record.fields.clone();
            fields.insert("instruction".to_owned(), string(record, "instruction")?.into());
            fields.insert("input".to_owned(), Value::String(input.trim().to_owned()));
            let record_with_input = Record { fields, origin: record.origin.clone() };
            return Ok(Example::Completion {
                prompt: self.render(&record_with_input, "instruction_template")?,
                completion: string(record, "output")?,
            });
        }
        Err(unrecognised(
            record,
            "completion",
            "`prompt` with `completion` or `response`, or `instruction` with `output`",
        ))
    }

    fn mapped_system(&self, record: &Record) -> Result<Option<String>, FormatError> {
        let mapping = &self.mapping;
        let templated = mapping.system_template.is_some();
        let system = self.value(record, mapping.system.as_ref(), templated, "system_template")?;
        Ok(system.filter(|text| !text.trim().is_empty()))
    }

    fn mapped_pair(&self, record: &Record) -> Result<Option<(String, String)>, FormatError> {
        let mapping = &self.mapping;
        let templated = mapping.prompt_template.is_some();
        let prompt = self.value(record, mapping.prompt.as_ref(), templated, "prompt_template")?;
        let templated = mapping.completion_template.is_some();
        let column = mapping.completion.as_ref();
        let completion = self.value(record, column, templated, "completion_template")?;
        Ok(prompt.zip(completion))
    }

    fn value(
        &self,
        record: &Record,
        column: Option<&String>,
        templated: bool,
        key: &'static str,
    ) -> Result<Option<String>, FormatError> {
        match column {
            Some(column) => string(record, column).map(Some),
            None if templated => self.render(record, key).map(Some),
            None => Ok(None),
        }
    }

    fn render(&self, record: &Record, key: &'static str) -> Result<String, FormatError> {
        let mut context = record.fields.clone();
        context.insert("record".to_owned(), Value::Object(record.fields.clone()));
        self.environment.get_template(key).and_then(|template| template.render(&context)).map_err(
            |error| FormatError::Render {
                origin: record.origin.clone(),
                key,
                message: describe(&error),
                fields: fields_of(record),
            },
        )
    }
}

fn check_keys(kind: Kind, mapping: &Mapping) -> Result<(), FormatError> {
    let wrong = |message: &str| Err(FormatError::Mapping(message.to_owned()));
    let twice = [
        ("text", &mapping.text, &mapping.text_template),
        ("system", &mapping.system, &mapping.system_template),
        ("prompt", &mapping.prompt, &mapping.prompt_template),
        ("completion", &mapping.completion, &mapping.completion_template),
    ];
    for (name, column, template) in twice {
        if column.is_some() && template.is_some() {
            return wrong(&format!("give `{name}` or `{name}_template`, not both"));
        }
    }
    let text = mapping.text.is_some() || mapping.text_template.is_some();
    let prompt = mapping.prompt.is_some() || mapping.prompt_template.is_some();
    let completion = mapping.completion.is_some() || mapping.completion_template.is_some();
    let system = mapping.system.is_some() || mapping.system_template.is_some();
    if prompt != completion {
        return wrong("`prompt` and `completion` (or their templates) go together");
    }
    if mapping.messages.is_some() && (prompt || system) {
        return wrong(
            "`messages` already holds the whole conversation; drop prompt, completion and system",
        );
    }
    if text && kind != Kind::Text {
        return wrong("`text` is for kind = \"text\" only");
    }
    if kind == Kind::Text && (prompt || system || mapping.messages.is_some()) {
        return wrong("kind = \"text\" takes `text` or `text_template` only");
    }
    if kind == Kind::Completion && (system || mapping.messages.is_some()) {
        return wrong("kind = \"completion\" takes prompt and completion only");
    }
    if kind != Kind::Completion && mapping.instruction_template.is_some() {
        return wrong(
            "`instruction_template` is for kind = \"completion\"; kind = \"chat\" uses the chat template",
        );
    }
    if kind == Kind::Chat && system && !prompt {
        return wrong("`system` goes with `prompt` and `completion`");
    }
    Ok(())
}

/// The engine's message without its location prefix, on one line.
pub(crate) fn describe(error: &minijinja::Error) -> String {
    let mut message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        message = format!("{message} (line {line})");
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    message
}

fn fields_of(record: &Record) -> String {
    if record.fields.is_empty() {
        return "no fields".to_owned();
    }
    let names: Vec<String> = record.fields.keys().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn unrecognised(record: &Record, kind: &'static str, wants: &'static str) -> FormatError {
    FormatError::Unrecognised {
        origin: record.origin.clone(),
        kind,
        fields: fields_of(record),
        wants,
    }
}

/// A field as text: strings as they are, numbers and booleans as JSON writes them.
fn string(record: &Record, field: &str) -> Result<String, FormatError> {
    optional_string(record, field)?.ok_or_else(|| FormatError::Missing {
        origin: record.origin.clone(),
        field: field.to_owned(),
        fields: fields_of(record),
    })
}

fn optional_string(record: &Record, field: &str) -> Result<Option<String>, FormatError> {
    match record.fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(other) => Err(FormatError::Field {
            origin: record.origin.clone(),
            field: field.to_owned(),
            message: format!(
                "expected text but found {}; use a template such as \"{{{{ {field}[0] }}}}\"",
                crate::records::type_name(other)
            ),
        }),
    }
}

fn label(record: &Record, field: &str) -> Option<String> {
    match record.fields.get(field)? {
        Value::String(text) => Some(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

fn checker_of(record: &Record) -> Result<Option<Checker>, FormatError> {
    let field = artifact::columns::CHECKER;
    let parsed = match record.fields.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text),
        Some(value) => serde_json::from_value(value.clone()),
    };
    parsed.map(Some).map_err(|error| FormatError::Field {
        origin: record.origin.clone(),
        field: field.to_owned(),
        message: format!("not a checker: {error}"),
    })
}

/// A record made by a program rather than read from a file.
pub fn generated(name: &str, row: u64, fields: Map<String, Value>) -> Record {
    let file = std::path::Path::new(name).into();
    Record { fields, origin: Origin { file, row } }
}
