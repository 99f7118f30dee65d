//! What can be wrong with a constitution.

use std::collections::BTreeSet;

use super::Principle;

/// Why a constitution cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstitutionError {
    /// The file cannot be read; the message names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// Any of the others, in a file.
    #[error("{path}: {problem}")]
    InFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: Box<Self>,
    },
    /// Not TOML, or not the keys of a constitution.
    #[error("{0}")]
    Toml(String),
    /// No principle.
    #[error("it has no principles; add at least one [[principles]] table")]
    NoPrinciples,
    /// A text is blank.
    #[error("{key}: is empty; write a text there")]
    Blank {
        /// The key.
        key: String,
    },
    /// A principle's id has other characters.
    #[error(
        "{key}: `{id}` is no id; use lower-case letters a to z, digits, and single `-` between them"
    )]
    Id {
        /// The key.
        key: String,
        /// The id.
        id: String,
    },
    /// Two principles have one id.
    #[error("{key}: `{id}` is also the id of principles[{first}]; give each its own")]
    SameId {
        /// The key of the second.
        key: String,
        /// The id.
        id: String,
        /// The position of the first.
        first: usize,
    },
    /// A template does not compile.
    #[error("{key}: not a valid template: {message}")]
    Template {
        /// The key.
        key: String,
        /// The engine's message.
        message: String,
    },
    /// A template names a field that there is not.
    #[error("{key}: unknown field `{field}`; known are {known}")]
    UnknownField {
        /// The key.
        key: String,
        /// The field.
        field: String,
        /// The fields there are.
        known: String,
    },
    /// A text that is used as it stands is written as a template.
    #[error(
        "{key}: is used as it stands and has no fields; write it without {{{{ }}}}, {{% %}} and {{# #}}"
    )]
    NotPlain {
        /// The key.
        key: String,
    },
    /// A template fails on the texts that it is given.
    #[error("{key}: fails: {message}")]
    Render {
        /// The key.
        key: String,
        /// The engine's message.
        message: String,
    },
    /// No principle has the tag.
    #[error("no principle has the tag `{tag}`; {known}")]
    UnknownTag {
        /// The tag asked for.
        tag: String,
        /// Those there are, in words.
        known: String,
    },
    /// A JSON of no form that [`import`](super::import()) knows.
    #[error(
        "this is no list of principles that can be imported; known are {{\"constitutions\": [{{\"critic\": .., \"revision\": ..}}]}}, \
         {{name: {{\"prompt\": .., \"edit_request\": ..}}}}, and a list of questions that end in \"Options:\""
    )]
    UnknownForm,
    /// A JSON to import that lacks something.
    #[error("{key}: {message}")]
    Import {
        /// Where in the JSON.
        key: String,
        /// What is wrong.
        message: String,
    },
}

impl ConstitutionError {
    /// The parser's message, with the line.
    pub(super) fn toml(text: &str, error: &toml::de::Error) -> Self {
        let message = error.message().trim_end();
        let before = error.span().and_then(|span| text.get(..span.start));
        Self::Toml(match before {
            Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
            None => message.to_owned(),
        })
    }

    pub(super) fn unknown_tag(tag: &str, principles: &[Principle]) -> Self {
        let tags: BTreeSet<&str> =
            principles.iter().flat_map(|principle| &principle.tags).map(String::as_str).collect();
        let known = if tags.is_empty() {
            "none has any".to_owned()
        } else {
            format!("there are {}", tags.into_iter().collect::<Vec<_>>().join(", "))
        };
        Self::UnknownTag { tag: tag.to_owned(), known }
    }
}
