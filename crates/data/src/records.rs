//! Streams records out of files: text, JSON Lines, JSON, CSV, TSV and Parquet, plain or compressed.
//!
//! A [`Source`] is a list of files, made from paths, folders and glob patterns; [`Source::records`]
//! walks them in a fixed order and holds one record (Parquet: one small batch) at a time.
//!
//! | name ends in | what a record is |
//! | --- | --- |
//! | `.txt`, `.text`, `.md` | see [`TextUnit`]; the field is `text` |
//! | `.jsonl`, `.ndjson` | one JSON object a line (a file that begins with `[` is read as `.json`) |
//! | `.json` | each element of the top-level array, or each of several top-level objects; or, [`by_key`](ReadOptions::by_key), each value of one |
//! | `.csv`, `.tsv` | one row; the first row names the columns. In TSV quotes are literal |
//! | `.parquet` | one row |
//!
//! Any of the text formats may also end in `.gz` (several members allowed) or `.zst`. A byte order
//! mark at the start is dropped.

mod delimited;
mod json;
mod open;
mod parquet;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use json::type_name;
use open::open_stream;

/// No record may be larger than this many bytes; a larger one is an error, so that a file without
/// line breaks or with a lost quote cannot fill the memory.
pub const MAX_RECORD_BYTES: usize = 256 << 20;

/// A text document longer than this many bytes is cut at the next line break into several records.
pub const DOCUMENT_PIECE_BYTES: usize = 4 << 20;

/// Where a record came from, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file; for generated records a name in angle brackets.
    pub file: Arc<Path>,
    /// 1-based: the line for text, JSON Lines, CSV and TSV; the record's number for the others.
    pub row: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.row)
    }
}

/// One raw record: its fields in file order and its origin.
#[derive(Debug, Clone)]
pub struct Record {
    /// Field name to value. CSV and TSV values are strings.
    pub fields: Map<String, Value>,
    /// The file and row.
    pub origin: Origin,
}

/// What one record of a plain text file is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextUnit {
    /// The whole file (cut every [`DOCUMENT_PIECE_BYTES`]).
    #[default]
    Document,
    /// Lines up to the next blank line.
    Paragraph,
    /// One line; blank lines are skipped.
    Line,
    /// Lines up to the next that is this and nothing else but blanks, which belongs to no record.
    Until(String),
}

/// The format of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// Plain text.
    Text,
    /// JSON Lines.
    Jsonl,
    /// A JSON array of objects, or objects one after another.
    Json,
    /// Comma separated, quoted with `"`.
    Csv,
    /// Tab separated, quotes literal.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

/// How to read the files where their names do not say it all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadOptions {
    /// The format of every file, whatever its name. Default: by the name's ending.
    pub format: Option<FileFormat>,
    /// What one record of a text file is.
    pub text_unit: TextUnit,
    /// Column names of CSV or TSV files that have no header row.
    pub columns: Option<Vec<String>>,
    /// The top-level key that holds the array of records in a `.json` file, such as `data`.
    pub field: Option<String>,
    /// In a `.json` file the records are not in an array but the values of an object, each under a key of its own.
    pub by_key: bool,
}

/// What can go wrong while reading records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A path or pattern names nothing.
    #[error(
        "`{spec}`: no such file or folder, and no file matches it as a pattern; check the path"
    )]
    NoMatch {
        /// The path as written.
        spec: String,
    },
    /// A glob pattern is malformed.
    #[error("`{spec}`: not a valid file pattern: {message}")]
    Pattern {
        /// The pattern as written.
        spec: String,
        /// What is wrong with it.
        message: String,
    },
    /// A folder holds no file of a known format.
    #[error("{}: the folder has no .txt, .jsonl, .json, .csv, .tsv or .parquet file (.gz and .zst allowed); name the files with a pattern such as `{}/*.ext` and set `format`", path.display(), path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The name's ending says nothing about the format.
    #[error("{}: the name does not tell the format; set `format` to one of text, jsonl, json, csv, tsv, parquet", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Compressed data ends early or is damaged.
    #[error("{}: the {codec} data is damaged or cut off after record {row} ({message}); fetch the file again", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// `gzip` or `zstd`.
        codec: &'static str,
        /// Records that could be read before it.
        row: u64,
        /// The decoder's message.
        message: String,
    },
    /// A row is not UTF-8.
    #[error(
        "{origin}: invalid UTF-8 at byte {at} of the row; convert the file to UTF-8, or set `bad_records = \"skip\"`"
    )]
    Utf8 {
        /// File and row.
        origin: Origin,
        /// Byte offset inside the row.
        at: usize,
    },
    /// A row is not JSON.
    #[error("{origin}: not valid JSON: {message}; mend the row, or set `bad_records = \"skip\"`")]
    Json {
        /// File and row.
        origin: Origin,
        /// The parser's message.
        message: String,
    },
    /// The JSON ends inside a record.
    #[error("{origin}: the file ends inside this record; it is cut off: fetch it again")]
    JsonCut {
        /// File and row.
        origin: Origin,
    },
    /// The text between JSON records is not what JSON allows there.
    #[error(
        "{origin}: expected {expected} but found `{found}`; the file is not a JSON array or a sequence of JSON objects"
    )]
    JsonStructure {
        /// File and row.
        origin: Origin,
        /// What the grammar allows.
        expected: &'static str,
        /// What is there.
        found: char,
    },
    /// A JSON value is not an object.
    #[error(
        "{origin}: expected a JSON object but found {found}; each record must be an object such as {{\"text\": \"...\"}}"
    )]
    NotObject {
        /// File and row.
        origin: Origin,
        /// The type found.
        found: &'static str,
    },
    /// The key named by `field` is not there.
    #[error("{}: no top-level key `{field}` with {} in it; top-level keys: {found}", path.display(), if *by_key { "an object" } else { "an array" })]
    NoField {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        field: String,
        /// Whether an object was expected under it.
        by_key: bool,
        /// The keys that are there.
        found: String,
    },
    /// A CSV row has another number of fields than the header.
    #[error(
        "{origin}: {found} fields where the header has {expected}; quote fields that contain the separator, or set `bad_records = \"skip\"`"
    )]
    Ragged {
        /// File and row.
        origin: Origin,
        /// Fields in the header.
        expected: usize,
        /// Fields in the row.
        found: usize,
    },
    /// Two columns have one name.
    #[error("{}: the header names column `{column}` twice; rename one, or give names with `columns`", path.display())]
    DuplicateColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },
    /// The file is not readable Parquet.
    #[error("{}: cannot read as Parquet: {message}; the file may be damaged: fetch it again", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The reader's message.
        message: String,
    },
    /// A Parquet column has a type that no record field can hold.
    #[error("{}: column `{column}` has type {data_type}, which is not text, number, boolean, list or struct; leave the column out of the file", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its Arrow type.
        data_type: String,
    },
    /// A record is larger than [`MAX_RECORD_BYTES`].
    #[error("{origin}: the record is larger than {} MiB; a line break or a closing quote may be missing", MAX_RECORD_BYTES >> 20)]
    TooLarge {
        /// File and row.
        origin: Origin,
    },
    /// A record that a program makes could not be made.
    #[error("{origin}: {message}")]
    Generated {
        /// The program and the record's number.
        origin: Origin,
        /// What is wrong.
        message: String,
    },
    /// Nothing in any of the files.
    #[error("{spec}: no records in {files} file(s); the data set is empty")]
    Empty {
        /// The paths as written.
        spec: String,
        /// How many files were read.
        files: usize,
    },
}

impl RecordError {
    /// True when only this row is bad and the rows after it can still be read.
    pub fn is_row(&self) -> bool {
        matches!(
            self,
            Self::Utf8 { .. } | Self::Json { .. } | Self::NotObject { .. } | Self::Ragged { .. }
        )
    }
}

/// The files of one data set, in reading order.
#[derive(Debug, Clone)]
pub struct Source {
    specs: Vec<String>,
    files: Vec<(PathBuf, FileFormat)>,
    options: ReadOptions,
}

impl Source {
    /// Resolves `specs` (files, folders or glob patterns) to a list of files.
    ///
    /// The order of `specs` is kept; a folder (searched at every depth, hidden files left out) and a
    /// pattern give their files sorted by name. A file named twice is read once. From a folder only
    /// files of a known ending are taken, and `.md` files are not, because they tend to be notes
    /// about the data; name them with a pattern.
    pub fn open<S: AsRef<str>>(specs: &[S], options: &ReadOptions) -> Result<Self, RecordError> {
        let specs: Vec<String> = specs.iter().map(|spec| spec.as_ref().to_owned()).collect();
        let files = open::resolve(&specs, options)?;
        Ok(Self { specs, files, options: options.clone() })
    }

    /// The files, in reading order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// What was named, for a record of what was read: a folder as the folder, a pattern as the files
    /// that it matches.
    pub fn inputs(&self) -> Vec<&Path> {
        let mut inputs: Vec<&Path> = Vec::new();
        for (path, _) in &self.files {
            let folder =
                self.specs.iter().map(Path::new).find(|s| s.is_dir() && path.starts_with(s));
            let input = folder.unwrap_or(path);
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        inputs
    }

    /// An iterator over the records of one file, by its place in the reading order; it may have none. Errors are as those of
    /// [`records`](Self::records).
    pub fn records_of(&self, file: usize) -> Records {
        let files = vec![self.files[file].clone()];
        let source = Self { files, ..self.clone() };
        Records { may_be_empty: true, ..source.records() }
    }

    /// The error of a source without a single record.
    pub fn empty(&self) -> RecordError {
        RecordError::Empty { spec: self.specs.join(", "), files: self.files.len() }
    }

    /// An iterator over all records. A row error (see [`RecordError::is_row`]) may be skipped by
    /// calling `next` again; after any other error the iterator ends. A source without a single
    /// record gives [`RecordError::Empty`].
    pub fn records(&self) -> Records {
        Records {
            source: self.clone(),
            next_file: 0,
            current: None,
            seen: 0,
            done: false,
            may_be_empty: false,
        }
    }
}

pub(crate) type FileRecords = Box<dyn Iterator<Item = Result<Record, RecordError>> + Send>;

/// See [`Source::records`].
pub struct Records {
    source: Source,
    next_file: usize,
    current: Option<FileRecords>,
    seen: u64,
    done: bool,
    may_be_empty: bool,
}

impl Records {
    fn open_next(&mut self) -> Option<Result<FileRecords, RecordError>> {
        let (path, format) = self.source.files.get(self.next_file)?;
        self.next_file += 1;
        let options = &self.source.options;
        Some(match format {
            FileFormat::Text => text::open(path, options.text_unit.clone()),
            FileFormat::Jsonl => json::open_lines(path),
            FileFormat::Json => json::open(path, options.field.as_deref(), options.by_key),
            FileFormat::Csv => delimited::open(path, b',', options.columns.as_deref()),
            FileFormat::Tsv => delimited::open(path, b'\t', options.columns.as_deref()),
            FileFormat::Parquet => parquet::open(path),
        })
    }
}

impl Iterator for Records {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if let Some(item) = self.current.as_mut().and_then(Iterator::next) {
                self.seen += 1;
                if let Err(error) = &item {
                    self.done = !error.is_row();
                }
                return Some(item);
            }
            match self.open_next() {
                Some(Ok(records)) => self.current = Some(records),
                Some(Err(error)) => {
                    self.done = true;
                    return Some(Err(error));
                }
                None => {
                    self.done = true;
                    if self.seen == 0 && !self.may_be_empty {
                        return Some(Err(self.source.empty()));
                    }
                }
            }
        }
        None
    }
}
