//! Filters and methods whose result can be far larger than what goes in, or which take long over little: what they would
//! make is reckoned first.

use std::borrow::Cow;
use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, StringInput, Value, from_args};
use minijinja::{Environment, Error, State, filters};
use minijinja_contrib::pycompat;

use super::{ITEM_BYTES, meter, refusal, weight};

/// The widest field of a format.
const WIDEST_FIELD: u64 = 999;
/// The most blanks of `indent` and parts of `batch` and `slice`.
const PARTS: usize = 100_000;
/// Comparisons of characters that count as a byte that is made.
const COMPARISONS: u64 = 64;

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    on_text(environment);
    environment.add_filter(
        "join",
        |state: &State, items: &Value, separator: Option<StringInput>| {
            let length = separator.as_ref().map_or(0, |text| text.as_str().len());
            meter(state)?.take(joined(items, length))?;
            filters::join(state, items, separator)
        },
    );
    environment.add_filter("list", |state: &State, items: Value| {
        if let Some(text) = items.as_str() {
            meter(state)?.take(items_of(text.chars().count()))?;
        }
        filters::list(state, items)
    });
    environment.add_filter(
        "batch",
        |state: &State, items: Value, count: usize, fill: Option<Value>| {
            meter(state)?.take(items_of(few(count)?))?;
            filters::batch(state, items, count, fill)
        },
    );
    environment.add_filter(
        "slice",
        |state: &State, items: Value, count: usize, fill: Option<Value>| {
            meter(state)?.take(items_of(few(count)?))?;
            filters::slice(state, items, count, fill)
        },
    );
}

fn on_text(environment: &mut Environment<'static>) {
    environment.add_filter(
        "replace",
        |state: &State, text: StringInput, from: StringInput, to: StringInput| {
            meter(state)?.take(replaced(text.as_str(), from.as_str(), to.as_str()))?;
            filters::replace(state, text, from, to)
        },
    );
    environment.add_filter("indent", |state: &State, text: StringInput, rest: Rest<Value>| {
        type Arguments = (Option<usize>, Option<bool>, Option<bool>, Kwargs);
        let (width, first, blank, named): Arguments = from_args(&rest)?;
        let widest = few(width.or_else(|| named.peek("width").ok()).unwrap_or(4))?;
        let lines = text.as_str().lines().count() as u64 + 1;
        meter(state)?.take(widest as u64 * lines)?;
        filters::indent(text, width, first, blank, named)
    });
    environment.add_filter("format", |state: &State, format: &Value, values: Rest<Value>| {
        if let Some(text) = format.as_str() {
            meter(state)?.take(formatted(text, '%', &values)?)?;
        }
        filters::format(state, format, values)
    });
    environment.add_filter("trim", |state: &State, text: StringInput, chars: Option<Cow<str>>| {
        meter(state)?.take(trimmed(text.as_str(), chars.as_deref()))?;
        Ok::<_, Error>(filters::trim(text, chars))
    });
    environment.add_filter(
        "split",
        |state: &State, text: &Value, between: Option<Arc<str>>, most: Option<i64>| {
            meter(state)?.take(pieces(text.as_str().unwrap_or_default(), between.as_deref()))?;
            filters::split(text, between, most)
        },
    );
    environment.add_filter("lines", |state: &State, text: &Value| {
        meter(state)?.take(pieces(text.as_str().unwrap_or_default(), Some("\n")))?;
        filters::lines(text)
    });
}

/// A method of Python's that values have.
fn method(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let argument = |at: usize| arguments.get(at).and_then(Value::as_str);
        let cost = match name {
            "replace" => replaced(text, argument(0).unwrap_or(text), argument(1).unwrap_or("")),
            "join" => arguments.first().map_or(0, |items| joined(items, text.len())),
            "format" => formatted(text, '{', arguments)?,
            "strip" | "lstrip" | "rstrip" => trimmed(text, argument(0)),
            "split" => pieces(text, argument(0)),
            "splitlines" => pieces(text, Some("\n")),
            // The engine would look for nothing without end. Python finds it around every character.
            "count" if argument(0) == Some("") && arguments.len() == 1 => {
                return Ok(Value::from(text.chars().count() + 1));
            }
            _ => 0,
        };
        meter(state)?.take(cost)?;
    }
    pycompat::unknown_method_callback(state, value, name, arguments)
}

fn few(count: usize) -> Result<usize, Error> {
    if count > PARTS {
        return Err(refusal(format!("asks for {count} parts; {PARTS} are allowed")));
    }
    Ok(count)
}

fn items_of(count: usize) -> u64 {
    count as u64 * ITEM_BYTES
}

/// The most bytes that replacing gives.
fn replaced(text: &str, from: &str, to: &str) -> u64 {
    let times = text.matches(from).count() as u64;
    text.len() as u64 + times.saturating_mul(to.len() as u64)
}

/// The bytes of the separators that joining gives; the items have been charged.
fn joined(items: &Value, separator: usize) -> u64 {
    let count = items.len().or_else(|| Some(items.try_iter().ok()?.count())).unwrap_or(0);
    (count as u64).saturating_mul(separator as u64)
}

/// What a text takes in the pieces between a separator, or between blanks.
fn pieces(text: &str, separator: Option<&str>) -> u64 {
    let count = match separator {
        Some(separator) => text.matches(separator).count() + 1,
        None => text.split_whitespace().count(),
    };
    items_of(count) + text.len() as u64
}

/// How long it can take to find where characters of a set end, each being compared with each.
fn trimmed(text: &str, chars: Option<&str>) -> u64 {
    let chars = chars.map_or(0, |chars| chars.chars().count() as u64);
    (text.len() as u64).saturating_mul(chars) / COMPARISONS
}

/// The most bytes that a format gives, whose fields begin with `mark`: each field may be as long as the longest value, or as
/// wide as is allowed.
fn formatted(format: &str, mark: char, values: &[Value]) -> Result<u64, Error> {
    let fields = || format.split(mark).skip(1);
    for field in fields() {
        let options = if mark == '%' {
            // What comes before the letter of the type, and after a name.
            let after = field.strip_prefix('(').and_then(|named| named.split_once(')'));
            let options = after.map_or(field, |(_, after)| after);
            options.split(|c: char| c.is_alphabetic()).next()
        } else {
            field.split('}').next()
        };
        let options = options.unwrap_or_default();
        let mut numbers = options.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let wide = numbers
            .any(|number| number.parse().is_ok_and(|n: u64| n > WIDEST_FIELD) || number.len() > 18);
        if wide || mark == '%' && options.contains('*') {
            return Err(refusal(format!("has a format with a width above {WIDEST_FIELD}")));
        }
    }
    let weights = values.iter().map(weight).collect::<Result<Vec<u64>, Error>>()?;
    let longest = weights.into_iter().max().unwrap_or(0);
    Ok((fields().count() as u64).saturating_mul(longest + WIDEST_FIELD))
}
