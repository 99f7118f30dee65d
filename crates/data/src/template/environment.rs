//! The Jinja environment of transformers' `apply_chat_template`, in minijinja.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use super::limits;
use crate::format::Message;

pub(super) const NAME: &str = "chat_template";
/// The variable that holds the mark around `{% generation %}` blocks.
pub(super) const MARK_VARIABLE: &str = "generation_mark__";

/// What `strftime_now` tells.
#[derive(Clone, Copy)]
pub(super) struct Clock(Option<Date>);

impl Clock {
    pub(super) fn new(date: Option<&str>) -> Result<Self, String> {
        date.map(|text| {
            text.parse::<Date>()
                .map_err(|_| format!("`{text}` is not a date; write it as YYYY-MM-DD"))
        })
        .transpose()
        .map(Self)
    }

    fn now(self) -> Result<Zoned, jiff::Error> {
        match self.0 {
            Some(date) => date.to_zoned(TimeZone::UTC),
            None => Ok(Timestamp::now().to_zoned(TimeZone::UTC)),
        }
    }
}

pub(super) fn build(clock: Clock) -> Environment<'static> {
    let mut environment = Environment::new();
    limits::install(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        let bad = |error: jiff::Error| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
        };
        let now = clock.now().map_err(bad)?;
        jiff::fmt::strtime::format(format, &now).map_err(bad)
    });
    environment.add_filter("tojson", tojson);
    environment
}

/// The most blanks of an indent of JSON.
const WIDEST_INDENT: usize = 64;

/// `json.dumps(value, ensure_ascii=False, indent=indent)` of Python.
#[expect(clippy::needless_pass_by_value, reason = "the engine's filter trait passes Kwargs so")]
fn tojson(_: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = kwargs.get(ignored)?;
    }
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => write(&mut out, value, PythonFormatter(CompactFormatter)),
        Some(width) if width > WIDEST_INDENT => {
            let what = format!("tojson: an indent of {width}; {WIDEST_INDENT} are allowed");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        Some(width) => {
            let spaces = " ".repeat(width);
            write(&mut out, value, PrettyFormatter::with_indent(spaces.as_bytes()))
        }
    };
    let bad = |message: String| Error::new(ErrorKind::BadSerialization, message);
    written.map_err(|error| bad(error.to_string()))?;
    let text = String::from_utf8(out).map_err(|error| bad(error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

fn write<F: Formatter>(out: &mut Vec<u8>, value: &Value, formatter: F) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, formatter))
}

/// Python's separators: `", "` and `": "`.
struct PythonFormatter(CompactFormatter);

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        self.0.end_object_key(writer)
    }
}

/// Rewrites `{% generation %}` and `{% endgeneration %}`, which minijinja does not know, so that
/// they print a mark. White space control and the scope of the block stay as they were.
pub(super) fn expand_generation(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        out.push_str(&rest[..start]);
        let tag = &rest[start..];
        // Behind the `{%`, whose sign `{%}` would share.
        let Some(end) = tag[2..].find("%}").map(|end| end + 4) else {
            out.push_str(tag);
            return (out, found);
        };
        let inner = &tag[2..end - 2];
        let signs = ["-", "+"];
        let left = signs.into_iter().find(|sign| inner.starts_with(sign)).unwrap_or_default();
        let right = signs.into_iter().find(|sign| inner.ends_with(sign)).unwrap_or_default();
        let name = inner.trim_matches(['-', '+']).trim();
        match name {
            "generation" => {
                found = true;
                out.extend([
                    "{%",
                    left,
                    " with %}{{ ",
                    MARK_VARIABLE,
                    " }}{% if true ",
                    right,
                    "%}",
                ]);
            }
            "endgeneration" => {
                out.extend([
                    "{%",
                    left,
                    " endif %}{{ ",
                    MARK_VARIABLE,
                    " }}{% endwith ",
                    right,
                    "%}",
                ]);
            }
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    (out, found)
}

/// A mark that occurs in no message: private-use characters around a number.
pub(super) fn unused_mark(messages: &[Message]) -> String {
    let mut number = 0_u64;
    loop {
        let mark = format!("\u{F8F0}{number}\u{F8F1}");
        if !messages.iter().any(|message| message.content.contains(&mark)) {
            return mark;
        }
        number += 1;
    }
}

pub(super) fn drop_marks(text: &str, mark: &str) -> String {
    text.replace(mark, "")
}
