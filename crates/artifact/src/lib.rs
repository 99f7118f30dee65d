//! The contract between stages: what a stage leaves on disk and how the next one finds and trusts it.
//!
//! A stage writes one **run directory** ([`RunDir`]) and, last of all, its `manifest.json`
//! ([`Manifest`]). A run directory with a manifest is finished; one without is not, and nothing
//! may be read from it. Every file appears whole or not at all ([`atomic`]), every product is
//! recorded with its digest ([`digest`]), and a consumer checks both that digest and the tokenizer's
//! before it uses anything ([`chain`]).
//!
//! This crate knows no tensors, no tokenizers and no training: only paths, bytes and columns.
//!
//! | module | hides |
//! |---|---|
//! | [`atomic`] | temporary siblings, fsync, rename, leftovers of killed runs |
//! | [`digest`] | SHA-256 of files and directories |
//! | [`guard`] | panics of libraries on damaged input |
//! | [`mod@columns`] | the names of Parquet columns |
//! | [`tokens`], [`pairs`] | token rows and pair rows: Parquet with tokenizer and counts in the footer |
//! | [`parquet_file`] | Parquet files of any columns, from anywhere |
//! | [`rows`], [`prompts`] | tables of text and numbers |
//! | [`evaluation`] | what `evaluate` measured |
//! | [`manifest`], [`run_dir`], [`chain`] | the run directory, its record, and checking it |

pub mod atomic;
pub mod chain;
pub mod columns;
pub mod digest;
mod error;
pub mod evaluation;
mod extend;
pub mod guard;
pub mod manifest;
pub mod mmap;
pub mod pairs;
pub mod parquet_file;
pub mod prompts;
pub mod rows;
pub mod run_dir;
mod thrift;
mod token_file;
pub mod tokens;

pub use chain::{check_input, verify_chain};
pub use digest::Digest;
pub use error::{Error, Result};
pub use extend::with_columns;
pub use manifest::{FORMAT_VERSION, Input, Manifest};
pub use run_dir::{RunDir, adapter_dir, model_dir};
