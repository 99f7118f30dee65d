//! Conversations in their several spellings.

use serde_json::{Map, Value};

use super::{FormatError, Mapping, Message, optional_string, string};
use crate::records::{Record, type_name};

/// Recognises a conversation by the record's field names; `None` when no form matches.
pub(super) fn recognise(
    record: &Record,
    mapping: &Mapping,
) -> Result<Option<Vec<Message>>, FormatError> {
    let has = |field: &str| record.fields.contains_key(field);
    for column in ["messages", "conversations"] {
        if has(column) {
            let mut messages = list(record, column, mapping)?;
            prepend_system(record, &mut messages)?;
            return Ok(Some(messages));
        }
    }
    for completion in ["completion", "response"] {
        if has("prompt") && has(completion) {
            return pair(record, completion, mapping).map(Some);
        }
    }
    if has("instruction") && has("output") {
        return alpaca(record).map(Some);
    }
    Ok(None)
}

/// The conversation in `columns`, one a turn, of which the last is the assistant's. Blank ones are left out, but not the answer.
pub(super) fn turns(record: &Record, columns: &[String]) -> Result<Vec<Message>, FormatError> {
    let mut messages = Vec::with_capacity(columns.len());
    for (from_the_end, column) in columns.iter().rev().enumerate() {
        let null = record.fields.get(column).is_some_and(Value::is_null);
        let text = if null { String::new() } else { string(record, column)? };
        if from_the_end > 0 && text.trim().is_empty() {
            continue;
        }
        let role = if messages.len().is_multiple_of(2) { "assistant" } else { "user" };
        messages.push(Message::new(role, text));
    }
    messages.reverse();
    Ok(messages)
}

/// The messages in the list under `column`.
pub(super) fn list(
    record: &Record,
    column: &str,
    mapping: &Mapping,
) -> Result<Vec<Message>, FormatError> {
    match record.fields.get(column) {
        Some(value) => list_of(record, column, value, mapping),
        None => Err(FormatError::Missing {
            origin: record.origin.clone(),
            field: column.to_owned(),
            fields: super::fields_of(record),
        }),
    }
}

/// The messages in a list; `field` is what it is called in messages.
pub(super) fn list_of(
    record: &Record,
    field: &str,
    value: &Value,
    mapping: &Mapping,
) -> Result<Vec<Message>, FormatError> {
    let bad = |message: String| super::bad_field(record, field, message);
    let Value::Array(items) = value else {
        let found = type_name(value);
        return Err(bad(format!("expected a list of messages but found {found}")));
    };
    if items.is_empty() {
        return Err(bad("the list of messages is empty".to_owned()));
    }
    let numbered = items.iter().enumerate();
    numbered.map(|(at, item)| one_of(record, &format!("{field}[{at}]"), item, mapping)).collect()
}

/// One message; `field` is what it is called in messages.
pub(super) fn one_of(
    record: &Record,
    field: &str,
    value: &Value,
    mapping: &Mapping,
) -> Result<Message, FormatError> {
    match value {
        Value::Object(fields) => message(fields, mapping),
        other => Err(format!("expected a message object but found {}", type_name(other))),
    }
    .map_err(|message| super::bad_field(record, field, message))
}

fn message(fields: &Map<String, Value>, mapping: &Mapping) -> Result<Message, String> {
    let key = |given: &Option<String>, usual: &'static str, other: &'static str| match given {
        Some(key) => key.clone(),
        None if fields.contains_key(usual) || !fields.contains_key(other) => usual.to_owned(),
        None => other.to_owned(),
    };
    for (name, what) in [("tool_calls", "tool calls"), ("function_call", "function calls")] {
        if fields.get(name).is_some_and(|value| !value.is_null()) {
            return Err(format!(
                "{what} are not supported; remove the record or render it to text"
            ));
        }
    }
    let role_key = key(&mapping.role_key, "role", "from");
    let content_key = key(&mapping.content_key, "content", "value");
    let role = match fields.get(&role_key) {
        Some(Value::String(role)) => role_name(role, mapping),
        _ => return Err(format!("no text under `{role_key}` that says whose message it is")),
    };
    let content = match fields.get(&content_key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => join_parts(parts)?,
        _ => return Err(format!("no text under `{content_key}`")),
    };
    Ok(Message { role, content, train: train_flag(fields)? })
}

/// OpenAI's `content: [{"type": "text", "text": ...}]`.
fn join_parts(parts: &[Value]) -> Result<String, String> {
    let text = |part: &Value| match part.get("text") {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err("only text parts are supported in a message".to_owned()),
    };
    parts.iter().map(text).collect()
}

/// `train: bool` (also axolotl's) or OpenAI's `weight: 0 | 1`.
fn train_flag(fields: &Map<String, Value>) -> Result<Option<bool>, String> {
    match (fields.get("train"), fields.get("weight")) {
        (Some(Value::Bool(train)), _) => Ok(Some(*train)),
        (None | Some(Value::Null), None | Some(Value::Null)) => Ok(None),
        (None | Some(Value::Null), Some(Value::Number(weight))) => match weight.as_f64() {
            // Weight 1 is the default, which for other roles than the assistant means "no".
            Some(1.0) => Ok(None),
            Some(0.0) => Ok(Some(false)),
            _ => Err(format!("weight {weight}: only 0 and 1 are supported")),
        },
        (Some(other), _) => Err(format!("`train` must be true or false, not {other}")),
        (_, Some(other)) => Err(format!("`weight` must be 0 or 1, not {other}")),
    }
}

pub(super) fn role_name(role: &str, mapping: &Mapping) -> String {
    if let Some(name) = mapping.roles.get(role) {
        return name.clone();
    }
    match role {
        "human" | "prompter" => "user",
        "gpt" | "chatgpt" | "bot" | "model" => "assistant",
        other => other,
    }
    .to_owned()
}

pub(super) fn prepend_system(
    record: &Record,
    messages: &mut Vec<Message>,
) -> Result<(), FormatError> {
    if let Some(system) = optional_string(record, "system")?
        && !system.trim().is_empty()
        && messages.first().is_none_or(|first| first.role != "system")
    {
        messages.insert(0, Message::new("system", system));
    }
    Ok(())
}

/// Prompt and completion, both text or both lists of messages; only the completion counts.
fn pair(record: &Record, completion: &str, mapping: &Mapping) -> Result<Vec<Message>, FormatError> {
    let conversational = |field: &str| matches!(record.fields.get(field), Some(Value::Array(_)));
    if conversational("prompt") || conversational(completion) {
        let mut messages = list(record, "prompt", mapping)?;
        for message in &mut messages {
            message.train = Some(false);
        }
        messages.extend(list(record, completion, mapping)?);
        return Ok(messages);
    }
    let mut messages = vec![
        Message::new("user", string(record, "prompt")?),
        Message::new("assistant", string(record, completion)?),
    ];
    prepend_system(record, &mut messages)?;
    Ok(messages)
}

/// `instruction`, `input`, `output`, with LLaMA-Factory's `system` and `history`.
fn alpaca(record: &Record) -> Result<Vec<Message>, FormatError> {
    let mut messages = instruction(record)?;
    messages.push(Message::new("assistant", string(record, "output")?));
    Ok(messages)
}

/// The conversation of an Alpaca record up to its answer.
pub(super) fn instruction(record: &Record) -> Result<Vec<Message>, FormatError> {
    let mut messages = Vec::new();
    prepend_system(record, &mut messages)?;
    match record.fields.get("history") {
        None | Some(Value::Null) => {}
        Some(Value::Array(turns)) => {
            for (index, turn) in turns.iter().enumerate() {
                let texts = turn.as_array().map(Vec::as_slice);
                let Some([Value::String(user), Value::String(assistant)]) = texts else {
                    return Err(super::bad_field(
                        record,
                        &format!("history[{index}]"),
                        "expected a pair of texts: what the user and the assistant said",
                    ));
                };
                messages.push(Message::new("user", user));
                messages.push(Message::new("assistant", assistant));
            }
        }
        Some(other) => {
            let message = format!("expected a list of pairs but found {}", type_name(other));
            return Err(super::bad_field(record, "history", message));
        }
    }
    let mut prompt = string(record, "instruction")?;
    let input = optional_string(record, "input")?.unwrap_or_default();
    if !input.trim().is_empty() {
        prompt = format!("{prompt}\n\n{input}");
    }
    messages.push(Message::new("user", prompt));
    Ok(messages)
}
