//! What can be wrong with an artifact, in words that name the path and the way out.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;

/// The result of reading or writing an artifact.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong with an artifact. Every message reads `path: what is wrong; what to do`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// A folder that was to become a run directory holds other things.
    #[error(
        "{}: holds `{entry}`, so it is not a run directory of temper; choose another output directory",
        path.display()
    )]
    NotRunDir {
        /// The folder.
        path: PathBuf,
        /// The first entry in it that no run directory has.
        entry: String,
    },

    /// The run directory has no manifest: its stage has not finished.
    #[error(
        "{}: no manifest.json, so the run that makes it has not finished; run its stage to the end first",
        path.display()
    )]
    Unfinished {
        /// The run directory.
        path: PathBuf,
    },

    /// `manifest.json` cannot be understood.
    #[error("{}: not a manifest ({what}); run the stage that makes this directory again", path.display())]
    BadManifest {
        /// The manifest file.
        path: PathBuf,
        /// Why.
        what: String,
    },

    /// `results.json` cannot be understood.
    #[error("{}: not the results of an evaluation ({what}); run `evaluate` again", path.display())]
    BadResults {
        /// The results file.
        path: PathBuf,
        /// Why.
        what: String,
    },

    /// `manifest.json` is of another format version.
    #[error(
        "{}: format version {found}, but this build reads version {supported}; \
         run the stage again with this build, or use the build that made it",
        path.display()
    )]
    FormatVersion {
        /// The manifest or Parquet file.
        path: PathBuf,
        /// The version written in it.
        found: u64,
        /// The version this build reads.
        supported: u64,
    },

    /// Neither a Hugging Face model directory nor a run directory with a model.
    #[error("{}: {what}; give a Hugging Face model directory or the run directory of a finished stage that makes a model", path.display())]
    NotModel {
        /// The path given.
        path: PathBuf,
        /// What was looked for and not found.
        what: String,
    },

    /// The file is not readable as Parquet: truncated, damaged, or of another kind.
    #[error(
        "{}: not a readable Parquet file ({what}); it is truncated, damaged or of another kind: \
         make it again with the stage that wrote it, or restore it",
        path.display()
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the Parquet reader said.
        what: String,
    },

    /// The Parquet file is sound but holds other columns or no footer record.
    #[error("{}: {what}; {advice}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What is missing or of another type, and what is there.
        what: String,
        /// Which stage makes the right file.
        advice: String,
    },

    /// One row cannot be written or read.
    #[error("{}: row {row}: {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0 over the whole file.
        row: u64,
        /// What is wrong and what to do.
        what: String,
    },

    /// A product is not what its producer wrote.
    #[error(
        "{}: changed since stage `{stage}` wrote it ({} recorded, {found} now); \
         run `{stage}` again, or restore the file",
        path.display(), recorded.short()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// The stage that wrote it.
        stage: String,
        /// The digest in the producer's manifest.
        recorded: Digest,
        /// The digest of what is there, or the word `missing`.
        found: String,
    },

    /// Data and model do not share a tokenizer.
    #[error(
        "{}: made with tokenizer {}, but {} has tokenizer {}; \
         tokenise the data again with that model's tokenizer, or give the model this data was made for",
        data.display(), recorded.short(), model.display(), found.short()
    )]
    Tokenizer {
        /// The data.
        data: PathBuf,
        /// The tokenizer digest recorded in the data.
        recorded: Digest,
        /// The model directory.
        model: PathBuf,
        /// The digest of the tokenizer in it.
        found: Digest,
    },

    /// A digest is not written as `sha256:` and 64 lower-case hexadecimal digits.
    #[error("`{0}` is not a digest; expected `sha256:` and 64 lower-case hexadecimal digits")]
    BadDigest(String),
}
