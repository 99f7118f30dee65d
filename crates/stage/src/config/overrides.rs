//! `--set key=value` and `--out DIR` as changes to a TOML table.

use std::path::Path;

use anyhow::bail;
use toml::{Table, Value};

/// One change to a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The flag as typed, for messages: `--set seed=7`.
    pub flag: String,
    /// The dotted key; a number is an index into a list.
    pub key: String,
    /// The value.
    pub value: Value,
}

impl Override {
    /// Parses `KEY=VALUE`. The value is TOML (`3e-5`, `true`, `[1, 2]`, `{a = 1}`, `"text"`); what is not
    /// TOML is text, so that paths and words need no quotes.
    ///
    /// # Errors
    /// If there is no `=`, or a part of the key is empty; the message cites the flag.
    pub fn parse(text: &str) -> Result<Self, String> {
        let flag = format!("--set {text}");
        let Some((key, value)) = text.split_once('=') else {
            return Err(format!("{flag}: expected KEY=VALUE, for instance --set seed=7"));
        };
        let key = key.trim();
        if key.is_empty() {
            return Err(format!("{flag}: the key is empty; expected KEY=VALUE"));
        }
        if key.split('.').any(str::is_empty) {
            return Err(format!("{flag}: the key has an empty part; write it as a.b=VALUE"));
        }
        // A line break would start another key.
        let toml = Some(value).filter(|value| !value.contains(['\n', '\r']));
        let toml = toml.and_then(|value| format!("value = {value}").parse::<Table>().ok());
        let value = toml.and_then(|mut table| table.remove("value"));
        let value = value
            .unwrap_or_else(|| Value::String(text[text.find('=').unwrap_or(0) + 1..].to_owned()));
        Ok(Self { flag, key: key.to_owned(), value })
    }

    /// `--out DIR`: sets the key `out`.
    pub fn out(dir: &Path) -> Self {
        Self {
            flag: format!("--out {}", dir.display()),
            key: "out".to_owned(),
            value: Value::String(dir.to_string_lossy().into_owned()),
        }
    }

    /// Sets the key in `table`, making tables on the way.
    ///
    /// # Errors
    /// If a part of the key names a value that is no table, or an index outside a list.
    pub fn apply(&self, table: &mut Table) -> anyhow::Result<()> {
        let mut parts = self.key.split('.').peekable();
        let first = parts.next().unwrap_or_default();
        let mut place = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
        let mut done = first.to_owned();
        for part in parts {
            place = match place {
                Value::Table(inner) => {
                    inner.entry(part).or_insert_with(|| Value::Table(Table::new()))
                }
                Value::Array(items) => {
                    let len = items.len();
                    match part.parse::<usize>().ok().and_then(|at| items.get_mut(at)) {
                        Some(item) => item,
                        None => bail!(
                            "{}: `{done}` is a list of {len}; `{part}` is not an index into it (the first is 0)",
                            self.flag
                        ),
                    }
                }
                other => bail!(
                    "{}: `{done}` is {} and has no key `{part}`",
                    self.flag,
                    with_article(other.type_str())
                ),
            };
            done = format!("{done}.{part}");
        }
        *place = self.value.clone();
        Ok(())
    }
}

fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}
