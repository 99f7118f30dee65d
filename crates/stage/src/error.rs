//! Errors as a user meets them: a usage mark, hints, and the report on stderr.

use std::error::Error as StdError;
use std::fmt::{self, Display, Write as _};

use crate::interrupt::{Interrupted, Signal};

/// The exit code of a failed run.
const FAILED: u8 = 1;
/// The exit code of wrong usage or configuration.
const USAGE: u8 = 2;

/// An error whose cause is the command line or the configuration: exit code 2.
///
/// It reads exactly as the error inside.
pub struct UsageError(anyhow::Error);

impl UsageError {
    /// Marks an error as one of usage.
    pub fn new(error: impl Into<anyhow::Error>) -> Self {
        Self(error.into())
    }

    /// A usage error that is only a message.
    pub fn msg(message: impl Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self(anyhow::Error::msg(message))
    }
}

/// An error with advice for the reader, printed as a `hint:` line.
///
/// It reads exactly as the error inside.
pub struct Hint {
    error: anyhow::Error,
    hint: String,
}

impl Hint {
    /// Adds advice to an error.
    pub fn new(error: impl Into<anyhow::Error>, hint: impl Display) -> Self {
        Self { error: error.into(), hint: hint.to_string() }
    }
}

macro_rules! reads_as_inner {
    ($name:ident, $field:tt) => {
        impl Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Display::fmt(&self.$field, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.$field, f)
            }
        }

        impl StdError for $name {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                self.$field.source()
            }
        }
    };
}

reads_as_inner!(UsageError, 0);
reads_as_inner!(Hint, error);

/// Adding a hint or the usage mark to a `Result`.
pub trait ErrorExt<T> {
    /// Adds a `hint:` line to the error.
    ///
    /// # Errors
    /// The error of `self`.
    fn hint(self, hint: impl Display) -> anyhow::Result<T>;

    /// Makes the error one of usage (exit code 2).
    ///
    /// # Errors
    /// The error of `self`.
    fn usage(self) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> ErrorExt<T> for Result<T, E> {
    fn hint(self, hint: impl Display) -> anyhow::Result<T> {
        self.map_err(|error| Hint::new(error, hint).into())
    }

    fn usage(self) -> anyhow::Result<T> {
        self.map_err(|error| UsageError::new(error).into())
    }
}

/// What the wrappers in an error's chain say.
#[derive(Default)]
struct Facts {
    usage: bool,
    signal: Option<Signal>,
    hints: Vec<String>,
}

impl Facts {
    fn of(error: &anyhow::Error) -> Self {
        let mut facts = Self::default();
        error.chain().for_each(|cause| facts.note(cause));
        facts
    }

    fn note(&mut self, cause: &(dyn StdError + 'static)) {
        if let Some(UsageError(inner)) = cause.downcast_ref() {
            self.usage = true;
            self.note(inner.as_ref());
        } else if let Some(Hint { error, hint }) = cause.downcast_ref() {
            self.hints.push(hint.clone());
            self.note(error.as_ref());
        } else if let Some(Interrupted(signal)) = cause.downcast_ref() {
            self.signal = Some(*signal);
        }
    }
}

/// The signal that stopped a run, if one did.
pub(crate) fn signal_of(error: &anyhow::Error) -> Option<Signal> {
    Facts::of(error).signal
}

/// The exit code that an error stands for: 130/143/138 for a signal, 2 for usage, else 1.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let facts = Facts::of(error);
    match facts.signal {
        Some(signal) => signal.exit_code(),
        None if facts.usage => USAGE,
        None => FAILED,
    }
}

/// The error as it is printed: an `error:` line, the `caused by:` chain, `hint:` lines.
///
/// ```text
/// error: cannot load configs/ppo.toml
///   caused by: TOML parse error at line 14, column 1
///      14 | kl_coeff = 0.05
///         | ^^^^^^^^
///      unknown field `kl_coeff`, expected one of `kl_coef`, `gae_lambda`
/// hint: did you mean `kl_coef`?
/// ```
///
/// Of a run that a signal stopped, what it was doing is no error: that it was stopped is all there is to say.
pub fn report(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    let facts = Facts::of(error);
    if let Some(signal) = facts.signal {
        line(&mut text, "error: ", "  ", &Interrupted(signal).to_string());
    }
    for cause in error.chain().filter(|_| facts.signal.is_none()) {
        let message = cause.to_string();
        let message = message.trim_end();
        if last.is_empty() {
            line(&mut text, "error: ", "  ", message);
        } else if !last.contains(message) {
            line(&mut text, "  caused by: ", "     ", message);
        }
        message.clone_into(&mut last);
    }
    for hint in facts.hints {
        line(&mut text, "hint: ", "      ", &hint);
    }
    text
}

fn line(text: &mut String, label: &str, indent: &str, message: &str) {
    for (n, part) in message.split('\n').enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}{part}", if n == 0 { label } else { indent });
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn the_chain_is_printed_once_with_hints_last() {
        let inner: anyhow::Result<()> = Err(anyhow!("no column `prompt`\nit has (text: Utf8)"));
        let error = inner
            .hint("make it with data-prep")
            .context("reading train.parquet")
            .usage()
            .hint("or give another file")
            .unwrap_err();
        assert_eq!(
            report(&error),
            "error: reading train.parquet\n  caused by: no column `prompt`\n     it has (text: Utf8)\n\
             hint: or give another file\nhint: make it with data-prep\n"
        );
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn a_cause_that_the_message_already_tells_is_left_out() {
        let inner = std::io::Error::other("no space left");
        let error = anyhow::Error::new(inner).context("writing x: no space left");
        assert_eq!(report(&error), "error: writing x: no space left\n");
    }

    #[test]
    fn exit_codes_follow_the_kind_at_any_depth() {
        assert_eq!(exit_code(&anyhow!("x")), 1);
        assert_eq!(exit_code(&UsageError::msg("x").into()), 2);
        let wrapped = anyhow::Error::new(UsageError::msg("x")).context("a").context("b");
        assert_eq!(exit_code(&wrapped), 2);
        for (signal, code) in [(Signal::Int, 130), (Signal::Term, 143), (Signal::Usr1, 138)] {
            let error = anyhow::Error::new(Interrupted(signal)).context("training");
            assert_eq!(exit_code(&error), code);
            assert_eq!(exit_code(&Hint::new(Interrupted(signal), "again").into()), code);
            assert_eq!(report(&error), format!("error: {}\n", Interrupted(signal)));
        }
    }
}
