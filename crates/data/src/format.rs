//! Turns raw records into [`Example`]s: recognised forms, explicit columns, or templates.
//!
//! Without a [`Mapping`] the form is recognised by field names:
//!
//! | kind | forms, in this order |
//! | --- | --- |
//! | `text` | `text` |
//! | `chat` | `messages` (role, content), `conversations` (ShareGPT: from, value), `prompt` + `completion` or `response` (strings, or both lists of messages), `instruction` + `output` (Alpaca, with optional `input`, `system`, `history`) |
//! | `completion` | `prompt` + `completion` or `response`, `instruction` + `output` through [`Mapping::instruction_template`] |
//! | `preference` | a prompt, below, with `chosen` + `rejected` (a string, a message, or a list of messages that may repeat the prompt); `chosen` + `rejected` alone (lists of messages, or transcripts as in hh-rlhf) that differ in the last answer; a prompt with `responses`, `replies` or `completions` (each with `rank`, 0 is best, or `score`): every two of different rank; a tree of Open Assistant (`prompt` with `replies` in it) |
//! | `preference-plain` | `prompt` (string) or `instruction` with `chosen` + `rejected` or with `responses`, ...; two transcripts |
//! | `prompt` | every form of `chat` up to its last answer, or a prompt alone |
//!
//! A prompt is `prompt` (a string or a list of messages), `conversations` or `messages`, or
//! `instruction` (with optional `input`, `system`, `history`). A pair may have a `margin` and a
//! `probability`.
//!
//! Everything else needs a mapping: column names (`prompt = "Q"`) or templates over the record's
//! fields (`prompt_template = "{{ title }}: {{ question }}"`, Jinja; an odd name is
//! `{{ record["acceptable?"] }}`).

mod error;
mod mapping;
mod messages;
mod preferences;
mod rankings;
#[cfg(test)]
mod tests;
mod transcript;

use minijinja::{Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::error::FormatError;
pub use self::mapping::Mapping;
use crate::checker::Checker;
use crate::records::{Origin, Record};

/// The prompt of Stanford Alpaca (Taori et al. 2023), used for `instruction` records where
/// no chat template is wanted.
pub const ALPACA_TEMPLATE: &str = "{% if input %}Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n{{ instruction }}\n\n### Input:\n{{ input }}\n\n### Response:\n{% else %}Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{{ instruction }}\n\n### Response:\n{% endif %}";

/// What the records of a data set are used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Running text: every token counts in the loss.
    Text,
    /// A conversation through the chat template: what the assistant says counts.
    Chat,
    /// A prompt and its completion as they are: the completion counts.
    Completion,
    /// Two responses to one prompt, the preferred one first, through the chat template.
    Preference,
    /// Two responses to one prompt as they are.
    PreferencePlain,
    /// What a model is to answer, through the chat template.
    Prompt,
    /// What a model is to go on from, as it is.
    PromptPlain,
}

impl Kind {
    /// The name it has in a config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Preference => "preference",
            Self::PreferencePlain => "preference-plain",
            Self::Prompt => "prompt",
            Self::PromptPlain => "prompt-plain",
        }
    }

    /// Whether its examples are conversations, which the chat template renders.
    pub fn is_chat(self) -> bool {
        matches!(self, Self::Chat | Self::Preference | Self::Prompt)
    }

    /// Whether its examples are pairs of responses.
    pub fn is_pairs(self) -> bool {
        matches!(self, Self::Preference | Self::PreferencePlain)
    }

    /// Whether its examples are prompts alone.
    pub fn is_prompts(self) -> bool {
        matches!(self, Self::Prompt | Self::PromptPlain)
    }
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

/// What a response follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation up to where the assistant answers.
    Messages(Vec<Message>),
    /// Text that the response goes on from, with nothing between.
    Text(String),
}

/// Two responses to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// What both answer.
    pub prompt: Prompt,
    /// The preferred response.
    pub chosen: String,
    /// The other one.
    pub rejected: String,
    /// By how much the chosen one is preferred; finite.
    pub margin: Option<f32>,
    /// How likely it is that the chosen one is the better, from 0 to 1; absent: certain.
    pub probability: Option<f32>,
}

/// A record in the form that tokenisation needs.
#[derive(Debug, Clone, PartialEq)]
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
    /// Two responses to one prompt; becomes a pair row.
    Preference(Preference),
    /// What a model is to answer; becomes a prompt row.
    Prompt(Prompt),
}

/// Why a record gives no example although nothing is wrong with its form. The caller counts these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Its two conversations differ before their last answers, so they have no prompt in common.
    Parted,
    /// One of its conversations does not end with the assistant's turn.
    Unanswered,
    /// It has no two responses of different rank.
    Unranked,
}

impl Unfit {
    /// The reason in words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Parted => "the conversations differ before their last answers",
            Self::Unanswered => "a conversation does not end with the assistant's turn",
            Self::Unranked => "no two responses of different rank",
        }
    }
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

/// A compiled [`Mapping`] for one [`Kind`].
pub struct Mapper {
    kind: Kind,
    mapping: Mapping,
    environment: Environment<'static>,
}

impl Mapper {
    /// Checks the mapping against the kind and compiles its templates.
    pub fn new(kind: Kind, mapping: &Mapping) -> Result<Self, FormatError> {
        mapping.check(kind)?;
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
            ("chosen_template", &mapping.chosen_template),
            ("rejected_template", &mapping.rejected_template),
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

    /// Makes examples of one record: one, or several where it ranks more than two responses.
    ///
    /// # Errors
    /// If its form is not recognised, or a field or the mapping is at fault.
    pub fn map(&self, record: &Record) -> Result<Result<Vec<Mapped>, Unfit>, FormatError> {
        let mut answer = label(record, artifact::columns::ANSWER);
        let examples = match self.kind {
            Kind::Text => vec![self.text(record)?],
            Kind::Chat => vec![self.chat(record)?],
            Kind::Completion => vec![self.completion(record)?],
            Kind::Prompt => {
                let (messages, response) = self.prompt(record)?;
                answer = answer.or(response);
                vec![Example::Prompt(Prompt::Messages(messages))]
            }
            Kind::PromptPlain => {
                let prompt = self.plain_prompt(record)?;
                let prompt = prompt.ok_or_else(|| {
                    unrecognised(record, "prompt-plain", "`prompt` or `instruction`")
                })?;
                vec![Example::Prompt(Prompt::Text(prompt))]
            }
            Kind::Preference | Kind::PreferencePlain => match self.preferences(record)? {
                Ok(pairs) => pairs.into_iter().map(Example::Preference).collect(),
                Err(unfit) => return Ok(Err(unfit)),
            },
        };
        let checker = checker_of(record)?;
        let task = label(record, artifact::columns::TASK);
        let mapped = |example| Mapped {
            example,
            checker: checker.clone(),
            answer: answer.clone(),
            task: task.clone(),
        };
        Ok(Ok(examples.into_iter().map(mapped).collect()))
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
        let mut messages = if let Some(column) = &self.mapping.messages {
            messages::list(record, column, &self.mapping)?
        } else if !self.mapping.turns.is_empty() {
            messages::turns(record, &self.mapping.turns)?
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
        if self.mapping.train_on_prompt {
            for message in &mut messages {
                message.train.get_or_insert(true);
            }
        }
        if !messages.iter().any(Message::counts) {
            return Err(bad_field(
                record,
                "messages",
                "no message of the assistant, so nothing would count in the loss",
            ));
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
            return Ok(Example::Completion {
                prompt: self.instruction(record)?,
                completion: string(record, "output")?,
            });
        }
        Err(unrecognised(
            record,
            "completion",
            "`prompt` with `completion` or `response`, or `instruction` with `output`",
        ))
    }

    /// The prompt of an `instruction` record where no chat template is wanted.
    fn instruction(&self, record: &Record) -> Result<String, FormatError> {
        let input = optional_string(record, "input")?.unwrap_or_default();
        let mut fields = record.fields.clone();
        fields.insert("instruction".to_owned(), string(record, "instruction")?.into());
        fields.insert("input".to_owned(), Value::String(input.trim().to_owned()));
        let record_with_input = Record { fields, origin: record.origin.clone() };
        self.render(&record_with_input, "instruction_template")
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

fn bad_field(record: &Record, field: &str, message: impl Into<String>) -> FormatError {
    FormatError::Field {
        origin: record.origin.clone(),
        field: field.to_owned(),
        message: message.into(),
    }
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
        Some(value) => text_of(record, field, value).map(Some),
    }
}

fn text_of(record: &Record, field: &str, value: &Value) -> Result<String, FormatError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => Err(bad_field(
            record,
            field,
            format!(
                "expected text but found {}; use a template such as \"{{{{ {field}[0] }}}}\"",
                crate::records::type_name(other)
            ),
        )),
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
