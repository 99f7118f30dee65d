//! Several responses to one prompt in an order of preference: lists, and trees of Open Assistant.

use serde_json::{Map, Value};

use super::messages::role_name;
use super::{FormatError, Mapping, Message, Preference, Prompt, bad_field};
use crate::records::{Record, type_name};

/// The keys of the list of responses.
pub(super) const LISTS: [&str; 3] = ["responses", "replies", "completions"];

/// A response and how good it is; higher is better, and absent where nobody has said.
struct Ranked {
    text: String,
    worth: Option<f64>,
}

/// The pairs of a list of responses, as chosen and rejected: every two of different rank, in their
/// order in the list.
pub(super) fn list(
    record: &Record,
    column: &str,
    value: &Value,
) -> Result<Vec<(String, String)>, FormatError> {
    let Value::Array(items) = value else {
        let found = type_name(value);
        return Err(bad_field(
            record,
            column,
            format!("expected a list of responses but found {found}"),
        ));
    };
    let ranked = |(index, item): (usize, &Value)| {
        let of_item = match item {
            Value::Object(fields) => response(fields),
            other => Err(format!("expected a response object but found {}", type_name(other))),
        };
        of_item.map_err(|message| bad_field(record, &format!("{column}[{index}]"), message))
    };
    let ranked: Vec<Ranked> = items.iter().enumerate().map(ranked).collect::<Result<_, _>>()?;
    let pairs = pairs(&ranked).map(|(better, worse)| (better.text.clone(), worse.text.clone()));
    Ok(pairs.collect())
}

/// Every two responses of different worth, the better one first.
fn pairs(ranked: &[Ranked]) -> impl Iterator<Item = (&Ranked, &Ranked)> {
    let all = ranked.iter().enumerate();
    let all = all.flat_map(|(at, one)| ranked[at + 1..].iter().map(move |other| (one, other)));
    all.filter_map(|(one, other)| match one.worth?.partial_cmp(&other.worth?)? {
        std::cmp::Ordering::Greater => Some((one, other)),
        std::cmp::Ordering::Less => Some((other, one)),
        std::cmp::Ordering::Equal => None,
    })
}

fn response(fields: &Map<String, Value>) -> Result<Ranked, String> {
    let text = ["text", "content", "value"].iter().find_map(|key| fields.get(*key)?.as_str());
    let text = text.ok_or("no text under `text`, `content` or `value`")?.to_owned();
    let worth = match (number(fields, "rank")?, number(fields, "score")?) {
        (Some(rank), _) => Some(-rank),
        (None, score) => score,
    };
    Ok(Ranked { text, worth })
}

fn number(fields: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(other) => Err(format!("`{key}` must be a number, not {}", type_name(other))),
    }
}

/// Whether a value is the root of a tree.
pub(super) fn is_tree(value: &Value) -> bool {
    value.get("replies").is_some_and(Value::is_array)
}

/// The pairs of a tree: at every node whose replies are the assistant's, every two of different
/// rank, with the way to the node as the conversation.
pub(super) fn tree(
    record: &Record,
    field: &str,
    root: &Value,
    mapping: &Mapping,
) -> Result<Vec<Preference>, FormatError> {
    let mut walk = Walk { record, mapping, path: Vec::new(), found: Vec::new() };
    walk.node(field, root)?;
    Ok(walk.found)
}

struct Walk<'a> {
    record: &'a Record,
    mapping: &'a Mapping,
    /// The messages from the root to the node.
    path: Vec<Message>,
    found: Vec<Preference>,
}

impl Walk<'_> {
    fn node(&mut self, field: &str, value: &Value) -> Result<(), FormatError> {
        let fields = self.fields(field, value)?;
        let (role, own) = self.message(field, fields)?;
        self.path.push(Message::new(role, own.text));
        let replies = match fields.get("replies") {
            Some(Value::Array(replies)) => replies.as_slice(),
            _ => &[],
        };
        let mut answers = Vec::new();
        for (index, reply) in replies.iter().enumerate() {
            let field = format!("{field}.replies[{index}]");
            let (role, answer) = self.message(&field, self.fields(&field, reply)?)?;
            if role == "assistant" {
                answers.push(answer);
            }
        }
        for (better, worse) in pairs(&answers) {
            self.found.push(Preference {
                prompt: Prompt::Messages(self.path.clone()),
                chosen: better.text.clone(),
                rejected: worse.text.clone(),
                margin: None,
                probability: None,
            });
        }
        for (index, reply) in replies.iter().enumerate() {
            self.node(&format!("{field}.replies[{index}]"), reply)?;
        }
        self.path.pop();
        Ok(())
    }

    fn fields<'v>(
        &self,
        field: &str,
        value: &'v Value,
    ) -> Result<&'v Map<String, Value>, FormatError> {
        value.as_object().ok_or_else(|| {
            let found = type_name(value);
            bad_field(
                self.record,
                field,
                format!("expected a message of the tree but found {found}"),
            )
        })
    }

    /// The role of a node, and its text with its rank.
    fn message(
        &self,
        field: &str,
        fields: &Map<String, Value>,
    ) -> Result<(String, Ranked), FormatError> {
        let bad = |message: String| bad_field(self.record, field, message);
        let role = fields.get("role").and_then(Value::as_str);
        let role = role.ok_or_else(|| bad("no text under `role`".to_owned()))?;
        Ok((role_name(role, self.mapping), response(fields).map_err(bad)?))
    }
}
