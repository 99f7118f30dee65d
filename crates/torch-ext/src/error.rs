//! The one error type of this crate's tensor functions.

/// What went wrong in a call into libtorch or in the arguments given to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The arguments do not fit together: shapes, dtypes, devices, ranges.
    #[error("{op}: {message}")]
    Argument {
        /// The function that refused.
        op: &'static str,
        /// Which argument, what it is, and what was expected.
        message: String,
    },
    /// libtorch raised a C++ exception.
    #[error("{op}: {message}")]
    Libtorch {
        /// The function that was running.
        op: &'static str,
        /// The exception's message, without its C++ backtrace.
        message: String,
    },
    /// A closure of a custom autograd node failed or panicked.
    #[error("{op}: {message}")]
    Closure {
        /// The function that was running.
        op: &'static str,
        /// The closure's error chain, or its panic message.
        message: String,
    },
}

impl TorchError {
    pub(crate) fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Self::Argument { op, message: message.into() }
    }

    pub(crate) fn from_tch(op: &'static str, error: &tch::TchError) -> Self {
        let text = error.to_string();
        // Everything after the first line is libtorch's C++ backtrace.
        let message = text.lines().next().unwrap_or_default();
        let message = message.trim_start_matches("Internal torch error: ").to_owned();
        Self::Libtorch { op, message }
    }
}

/// A result whose error is a [`TorchError`].
pub type Result<T> = std::result::Result<T, TorchError>;
