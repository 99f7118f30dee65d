//! The fields of a request's body, taken one by one: whatever is wrong names its field, and none is passed over in silence.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// Fields that change no answer.
const IGNORED: [&str; 8] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// A JSON object whose fields are taken out as they are read.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(Refusal::bad("the body must be a JSON object")),
            Err(error) => Err(Refusal::bad(format!("the body is not JSON: {error}"))),
        }
    }

    /// A field that is there and not null.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(set)) => Ok(set),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let what = format!("a number from {} to {}", range.start(), range.end());
        self.within(name, &what, Value::as_f64, |number| range.contains(number))
    }

    pub(crate) fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<usize>, Refusal> {
        let what = match *range.end() {
            u64::MAX => format!("a whole number from {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let count = self.within(name, &what, Value::as_u64, |count| range.contains(count))?;
        Ok(count.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// Any whole number of 64 bits, for its bits.
    pub(crate) fn bits(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        let bits =
            |value: &Value| value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        self.within(name, "a whole number of 64 bits", bits, |_| true)
    }

    /// A string or a list of strings.
    pub(crate) fn strings(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let what = "a string or a list of strings";
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(name, what, &other)),
                })
                .collect(),
            Some(other) => Err(wrong(name, what, &other)),
        }
    }

    fn within<T: Copy>(
        &mut self,
        name: &str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
        fits: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value).filter(|number| fits(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, what, &value)),
        }
    }

    /// Refuses a field that this server cannot follow, unless it has a value that asks for nothing.
    pub(crate) fn only(
        &mut self,
        name: &str,
        neutral: impl Fn(&Value) -> bool,
    ) -> Result<(), Refusal> {
        match self.take(name) {
            Some(value) if !neutral(&value) => {
                let value = shown(&value);
                Err(Refusal::param(name, format!("`{name}` is not supported here (it is {value})")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what has not been taken.
    pub(crate) fn end(self) -> Result<(), Refusal> {
        let mut left = self.0.iter().filter(|(name, _)| !IGNORED.contains(&name.as_str()));
        match left.find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                Err(Refusal::param(name, format!("`{name}` is not a parameter that is known here")))
            }
            None => Ok(()),
        }
    }
}

/// The field must be something else.
pub(crate) fn wrong(name: &str, what: impl Display, value: &Value) -> Refusal {
    Refusal::param(name, format!("`{name}` must be {what}, not {}", shown(value)))
}

/// A value, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
