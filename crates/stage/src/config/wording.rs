//! The words of configuration errors.

use super::{Failure, Override};

/// An error in the file: the line, a caret under the place, the message.
pub(super) fn in_file(text: &str, error: &toml::de::Error) -> Failure {
    let message = error.message().trim_end();
    let words = match error.span() {
        None => message.to_owned(),
        Some(span) => {
            let start = span.start.min(text.len());
            let before = text.get(..start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            let line = before.matches('\n').count() + 1;
            let content =
                text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
            let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
            let inside = text.get(start..span.end.min(line_start + content.len()).max(start));
            let carets = inside.unwrap_or_default().chars().count().max(1);
            format!(
                "TOML parse error at line {line}, column {column}\n{line} | {content}\n{:gutter$} | {:pad$}{}\n{message}",
                "",
                "",
                "^".repeat(carets),
                gutter = line.to_string().len(),
                pad = column - 1,
            )
        }
    };
    Failure {
        error: anyhow::Error::msg(words),
        hints: nearest_names(message).into_iter().collect(),
    }
}

/// An error that an override brought about: the flag as typed, the message.
pub(super) fn in_override(change: &Override, error: &toml::de::Error) -> Failure {
    let message = error.message().trim_end();
    let mut hints: Vec<String> = nearest_names(message).into_iter().collect();
    if message.contains("expected a string") || message.contains("expected path string") {
        hints.push(format!(
            "text that looks like a number or a truth value needs quotes: --set '{}=\"...\"'",
            change.key
        ));
    }
    Failure { error: anyhow::anyhow!("{}: {message}", change.flag), hints }
}

/// For serde's "unknown field `x`, expected ..." (or variant): which of the expected names are near `x`.
fn nearest_names(message: &str) -> Option<String> {
    let rest = message
        .strip_prefix("unknown field ")
        .or_else(|| message.strip_prefix("unknown variant "))?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let mut near: Vec<(f64, &str)> = quoted
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(similarity, _)| *similarity > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = near.iter().take(3).map(|(_, name)| format!("`{name}`")).collect();
    if names.is_empty() { None } else { Some(format!("did you mean {}?", names.join(" or "))) }
}
