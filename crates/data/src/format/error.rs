//! What can be wrong with a record or a mapping.

use crate::records::Origin;

/// Why a record or a mapping cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A mapping names too much or too little.
    #[error("mapping: {0}")]
    Mapping(String),
    /// A template does not compile.
    #[error("mapping.{key}: not a valid template: {message}")]
    Template {
        /// The key of the mapping.
        key: &'static str,
        /// The engine's message.
        message: String,
    },
    /// A template fails on a record.
    #[error("{origin}: mapping.{key} fails: {message}; the record has {fields}")]
    Render {
        /// File and row.
        origin: Origin,
        /// The key of the mapping.
        key: &'static str,
        /// The engine's message.
        message: String,
        /// The record's field names.
        fields: String,
    },
    /// No form matches the fields.
    #[error(
        "{origin}: cannot tell what this record is for kind `{kind}`: it has {fields}, and {wants} is needed; say which columns to use in [mapping]"
    )]
    Unrecognised {
        /// File and row.
        origin: Origin,
        /// The kind asked for.
        kind: &'static str,
        /// The record's field names.
        fields: String,
        /// The recognised forms.
        wants: &'static str,
    },
    /// A field is not there or null.
    #[error("{origin}: no field `{field}`; the record has {fields}")]
    Missing {
        /// File and row.
        origin: Origin,
        /// The field.
        field: String,
        /// The record's field names.
        fields: String,
    },
    /// A field has the wrong type or content.
    #[error("{origin}: field `{field}`: {message}")]
    Field {
        /// File and row.
        origin: Origin,
        /// The field, with an index for list items.
        field: String,
        /// What is wrong.
        message: String,
    },
}
