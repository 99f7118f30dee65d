//! Pairs of responses and prompts in their several spellings.

use serde_json::Value;

use super::{
    FormatError, Kind, Mapper, Message, Preference, Prompt, Unfit, bad_field, fields_of, messages,
    optional_string, rankings, text_of, transcript, unrecognised,
};
use crate::records::{Record, type_name};

/// Said of a text that should hold the prompt, too.
const NO_TRANSCRIPT: &str = "there is no prompt in the record, and this is no transcript \
                             (\"\\n\\nHuman: ...\\n\\nAssistant: ...\") that holds one; say where the \
                             prompt is in [mapping]";

/// A part of a record, with the name it has in messages.
struct Part {
    field: String,
    value: Value,
}

/// A prompt with the two responses to it.
type Pair = (Prompt, String, String);

impl Mapper {
    /// The pairs of a record.
    pub(super) fn preferences(
        &self,
        record: &Record,
    ) -> Result<Result<Vec<Preference>, Unfit>, FormatError> {
        let mapping = &self.mapping;
        let chosen = self.part(record, mapping.chosen.as_ref(), "chosen_template", "chosen")?;
        let rejected =
            self.part(record, mapping.rejected.as_ref(), "rejected_template", "rejected")?;
        let missing = |field: &str| FormatError::Missing {
            origin: record.origin.clone(),
            field: field.to_owned(),
            fields: fields_of(record),
        };
        let (chosen, rejected) = match (chosen, rejected) {
            (None, None) => return self.ranked(record),
            (Some(_), None) => return Err(missing("rejected")),
            (None, Some(_)) => return Err(missing("chosen")),
            (Some(chosen), Some(rejected)) => (chosen, rejected),
        };
        let pair = if self.kind == Kind::Preference {
            self.chat_pair(record, &chosen, &rejected)?
        } else {
            self.plain_pair(record, &chosen, &rejected)?
        };
        let margin = number(record, mapping.margin.as_deref().unwrap_or("margin"))?;
        let probability = number(record, "probability")?;
        if let Some(outside) = probability.filter(|p| !(0.0..=1.0).contains(p)) {
            let message = format!("{outside} is no probability; it must be from 0 to 1");
            return Err(bad_field(record, "probability", message));
        }
        Ok(pair.map(|(prompt, chosen, rejected)| {
            vec![Preference { prompt, chosen, rejected, margin, probability }]
        }))
    }

    /// The conversation that a model is to answer, and the answer that the record has.
    pub(super) fn prompt(
        &self,
        record: &Record,
    ) -> Result<(Vec<Message>, Option<String>), FormatError> {
        let mapping = &self.mapping;
        let mapped = mapping.prompt.is_some() || mapping.prompt_template.is_some();
        let whole = match &mapping.messages {
            Some(column) => Some((column.as_str(), messages::list(record, column, mapping)?)),
            None if !mapping.turns.is_empty() => {
                Some((mapping.turns[0].as_str(), messages::turns(record, &mapping.turns)?))
            }
            None if mapped => None,
            None => messages::recognise(record, mapping)?.map(|messages| ("messages", messages)),
        };
        let Some((field, whole)) = whole else {
            let prompt = self.prompt_messages(record)?;
            let forms = "`messages`, `conversations`, `prompt` or `instruction`";
            return prompt
                .map(|messages| (messages, None))
                .ok_or_else(|| unrecognised(record, "prompt", forms));
        };
        let mut whole = without_flags(whole);
        let answer = whole.pop_if(|last| last.role == "assistant").map(|last| last.content);
        if whole.is_empty() {
            let message = "no message before the assistant's, so there is nothing to answer";
            return Err(bad_field(record, field, message));
        }
        Ok((whole, answer))
    }

    /// A part by template, by the column that the mapping names, or by its usual name.
    fn part(
        &self,
        record: &Record,
        column: Option<&String>,
        template: &'static str,
        usual: &str,
    ) -> Result<Option<Part>, FormatError> {
        if self.has_template(template) {
            let value = Value::String(self.render(record, template)?);
            return Ok(Some(Part { field: template.to_owned(), value }));
        }
        let field = column.map_or(usual, String::as_str);
        match record.fields.get(field) {
            Some(value) if !value.is_null() => {
                Ok(Some(Part { field: field.to_owned(), value: value.clone() }))
            }
            _ if column.is_some() => Err(FormatError::Missing {
                origin: record.origin.clone(),
                field: field.to_owned(),
                fields: fields_of(record),
            }),
            _ => Ok(None),
        }
    }

    /// Whether the mapping has a template under this key.
    fn has_template(&self, key: &'static str) -> bool {
        self.environment.get_template(key).is_ok()
    }

    fn prompt_part(&self, record: &Record) -> Result<Option<Part>, FormatError> {
        self.part(record, self.mapping.prompt.as_ref(), "prompt_template", "prompt")
    }

    /// The conversation up to where the assistant answers; `None` where the record has none apart.
    fn prompt_messages(&self, record: &Record) -> Result<Option<Vec<Message>>, FormatError> {
        let mapping = &self.mapping;
        let lists = ["conversations", "messages"];
        let list = lists.into_iter().find(|column| record.fields.contains_key(*column));
        let (field, mut found) = if let Some(column) = &mapping.messages {
            (column.clone(), messages::list(record, column, mapping)?)
        } else if let Some(part) = self.prompt_part(record)? {
            let messages = match &part.value {
                Value::Array(_) => messages::list_of(record, &part.field, &part.value, mapping)?,
                Value::Object(_) => {
                    vec![messages::one_of(record, &part.field, &part.value, mapping)?]
                }
                other => {
                    let text = text_of(record, &part.field, other)?;
                    let open = transcript::parse_open(&text);
                    open.unwrap_or_else(|| vec![Message::new("user", text)])
                }
            };
            (part.field, messages)
        } else if let Some(column) = list {
            (column.to_owned(), messages::list(record, column, mapping)?)
        } else if record.fields.contains_key("instruction") {
            ("instruction".to_owned(), messages::instruction(record)?)
        } else {
            return Ok(None);
        };
        match self.mapped_system(record)? {
            Some(system) => found.insert(0, Message::new("system", system)),
            None => messages::prepend_system(record, &mut found)?,
        }
        if found.last().is_some_and(|last| last.role == "assistant") {
            let message = "ends with the assistant's turn, and a prompt ends before it";
            return Err(bad_field(record, &field, message));
        }
        Ok(Some(without_flags(found)))
    }

    fn chat_pair(
        &self,
        record: &Record,
        chosen: &Part,
        rejected: &Part,
    ) -> Result<Result<Pair, Unfit>, FormatError> {
        let prompt = self.prompt_messages(record)?;
        let whole = |part: &Part| -> Result<Vec<Message>, FormatError> {
            let mut response = without_flags(self.response(record, part, prompt.is_none())?);
            if let Some(prompt) = &prompt {
                return Ok(follow(prompt, &response));
            }
            messages::prepend_system(record, &mut response)?;
            Ok(response)
        };
        Ok(divide(whole(chosen)?, whole(rejected)?))
    }

    /// The messages of a response; `alone` where the record has no prompt beside it, so that they are
    /// the whole conversation.
    fn response(
        &self,
        record: &Record,
        part: &Part,
        alone: bool,
    ) -> Result<Vec<Message>, FormatError> {
        let Part { field, value } = part;
        match value {
            Value::Array(_) => messages::list_of(record, field, value, &self.mapping),
            Value::Object(_) if !alone => {
                Ok(vec![messages::one_of(record, field, value, &self.mapping)?])
            }
            Value::String(text) if alone => {
                transcript::parse(text).ok_or_else(|| bad_field(record, field, NO_TRANSCRIPT))
            }
            other if alone => {
                let found = type_name(other);
                let message = format!(
                    "there is no prompt in the record, so a whole conversation is needed here: \
                     expected a list of messages or a transcript but found {found}"
                );
                Err(bad_field(record, field, message))
            }
            other => Ok(vec![Message::new("assistant", text_of(record, field, other)?)]),
        }
    }

    fn plain_pair(
        &self,
        record: &Record,
        chosen: &Part,
        rejected: &Part,
    ) -> Result<Result<Pair, Unfit>, FormatError> {
        let chosen_text = text_of(record, &chosen.field, &chosen.value)?;
        let rejected_text = text_of(record, &rejected.field, &rejected.value)?;
        if let Some(prompt) = self.plain_prompt(record)? {
            return Ok(Ok((Prompt::Text(prompt), chosen_text, rejected_text)));
        }
        for (field, text) in [(&chosen.field, &chosen_text), (&rejected.field, &rejected_text)] {
            if transcript::parse(text).is_none() {
                return Err(bad_field(record, field, NO_TRANSCRIPT));
            }
        }
        let split = transcript::split(&chosen_text).zip(transcript::split(&rejected_text));
        let Some(((prompt, chosen), (other_prompt, rejected))) = split else {
            return Ok(Err(Unfit::Unanswered));
        };
        if prompt != other_prompt {
            return Ok(Err(Unfit::Parted));
        }
        Ok(Ok((Prompt::Text(prompt.to_owned()), chosen.to_owned(), rejected.to_owned())))
    }

    /// Text to go on from, without a chat template; `None` where the record has none.
    pub(super) fn plain_prompt(&self, record: &Record) -> Result<Option<String>, FormatError> {
        if let Some(part) = self.prompt_part(record)? {
            return text_of(record, &part.field, &part.value).map(Some);
        }
        let instruction = record.fields.contains_key("instruction");
        instruction.then(|| self.instruction(record)).transpose()
    }

    /// The pairs of a ranking or of a tree.
    fn ranked(&self, record: &Record) -> Result<Result<Vec<Preference>, Unfit>, FormatError> {
        let chat = self.kind == Kind::Preference;
        let some = |pairs: Vec<Preference>| {
            Ok(if pairs.is_empty() { Err(Unfit::Unranked) } else { Ok(pairs) })
        };
        if chat
            && let Some(root) = self.prompt_part(record)?
            && rankings::is_tree(&root.value)
        {
            return some(rankings::tree(record, &root.field, &root.value, &self.mapping)?);
        }
        let columns = rankings::LISTS.into_iter();
        let list = columns.filter_map(|name| record.fields.get(name).map(|value| (name, value)));
        let prompt = if chat {
            self.prompt_messages(record)?.map(Prompt::Messages)
        } else {
            self.plain_prompt(record)?.map(Prompt::Text)
        };
        let Some(((column, value), prompt)) = list.take(1).next().zip(prompt) else {
            let wants = if chat {
                "a prompt with `chosen` and `rejected` or with `responses`, `chosen` and `rejected` \
                 as whole conversations, or a tree of replies in `prompt`"
            } else {
                "`prompt` or `instruction` with `chosen` and `rejected` or with `responses`, or two \
                 transcripts in `chosen` and `rejected`"
            };
            return Err(unrecognised(record, self.kind.name(), wants));
        };
        let pairs = rankings::list(record, column, value)?.into_iter();
        let pairs = pairs.map(|(chosen, rejected)| {
            let prompt = prompt.clone();
            Preference { prompt, chosen, rejected, margin: None, probability: None }
        });
        some(pairs.collect())
    }
}

/// What a data set for supervised training says of messages does not matter here.
fn without_flags(mut messages: Vec<Message>) -> Vec<Message> {
    for message in &mut messages {
        message.train = None;
    }
    messages
}

/// The prompt with a response, which may repeat the prompt, with or without its system message.
fn follow(prompt: &[Message], response: &[Message]) -> Vec<Message> {
    let [(system, turns), (other_system, others)] = [prompt, response].map(|messages| {
        messages.split_at(messages.iter().take_while(|m| m.role == "system").count())
    });
    if turns.is_empty() || !others.starts_with(turns) {
        return [prompt, response].concat();
    }
    let system = if system.is_empty() { other_system } else { system };
    [system, others].concat()
}

/// Two conversations as what they share and the last answer of each.
fn divide(mut chosen: Vec<Message>, mut rejected: Vec<Message>) -> Result<Pair, Unfit> {
    let last = |messages: &mut Vec<Message>| messages.pop_if(|last| last.role == "assistant");
    let (Some(better), Some(worse)) = (last(&mut chosen), last(&mut rejected)) else {
        return Err(Unfit::Unanswered);
    };
    if chosen != rejected {
        return Err(Unfit::Parted);
    }
    Ok((Prompt::Messages(chosen), better.content, worse.content))
}

/// A number, which a file of text alone may have as text.
fn number(record: &Record, field: &str) -> Result<Option<f32>, FormatError> {
    let Some(text) = optional_string(record, field)? else { return Ok(None) };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let number = text.trim().parse::<f32>().ok().filter(|number| number.is_finite());
    number.map(Some).ok_or_else(|| {
        bad_field(record, field, format!("expected a finite number but found `{text}`"))
    })
}
