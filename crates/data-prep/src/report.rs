//! What was read, kept and dropped: for the terminal and for the manifest.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use artifact::tokens::TokenCounts;
use serde::Serialize;
use serde_json::Value;

use crate::config::DatasetConfig;
use crate::prepare::Counts;

/// One data set's numbers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct SetReport {
    pub(crate) records_read: u64,
    pub(crate) records_kept: u64,
    pub(crate) dropped: BTreeMap<&'static str, u64>,
    pub(crate) train: TokenCounts,
    pub(crate) validation: TokenCounts,
    /// Held-out prompts with a checker.
    pub(crate) prompts: u64,
    /// UTF-8 bytes of the kept texts, as they were tokenised.
    pub(crate) bytes: u64,
    /// Tokens made of them, special tokens included.
    pub(crate) tokens: u64,
    pub(crate) tokens_per_byte: f64,
    pub(crate) truncated_records: u64,
    pub(crate) truncated_tokens: u64,
    /// Records cut into several rows.
    pub(crate) split_records: u64,
    /// Records with a token that is part prompt, part response.
    pub(crate) straddling_records: u64,
    /// Records whose last counted token is not one that stops generation.
    pub(crate) open_records: u64,
    pub(crate) unknown_tokens: u64,
    pub(crate) warnings: Vec<String>,
}

impl SetReport {
    /// Takes over the counts and derives the rest.
    pub(crate) fn close(&mut self, counts: Counts, stops: bool, config: &DatasetConfig) {
        self.records_read = counts.read;
        self.dropped = counts.dropped;
        if self.bytes > 0 {
            self.tokens_per_byte = self.tokens as f64 / self.bytes as f64;
        }
        if config.validation_fraction > 0.0 && self.validation.rows == 0 {
            self.warnings.push(format!(
                "no record of {} fell into the validation split; raise validation_fraction, or cut text \
                 into smaller records with read.text_unit",
                self.records_kept
            ));
        }
        let complete = self.records_kept - self.truncated_records;
        if stops && complete > 0 && self.open_records >= self.records_kept {
            self.warnings.push(
                "no row ends with a counted token that stops generation (EOS or end of turn), so a \
                 model trained on it will not learn to stop"
                    .to_owned(),
            );
        }
        if self.straddling_records > 0 {
            self.warnings.push(format!(
                "{} records have a token that is part prompt, part response; at generation the prompt \
                 ends before it (move a blank at the end of the prompt to the start of the response)",
                self.straddling_records
            ));
        }
        if self.unknown_tokens > 0 {
            self.warnings.push(format!(
                "{} tokens are unknown to the tokenizer: it cannot represent all of the text",
                self.unknown_tokens
            ));
        }
    }

    /// The lines for the terminal.
    pub(crate) fn lines(&self, name: &str) -> String {
        let mut out = String::new();
        let dropped: u64 = self.dropped.values().sum();
        let _ = writeln!(
            out,
            "{name}: {} records read, {} kept, {} dropped",
            self.records_read, self.records_kept, dropped
        );
        for (reason, count) in &self.dropped {
            let _ = writeln!(out, "  dropped {count:>9}  {reason}");
        }
        for (split, counts) in [("train", &self.train), ("validation", &self.validation)] {
            let _ = writeln!(
                out,
                "  {split:<10} {:>9} rows {:>12} tokens {:>12} counted in the loss, longest row {}",
                counts.rows, counts.tokens, counts.targets, counts.longest
            );
        }
        let _ = writeln!(out, "  {:.3} tokens per byte of text", self.tokens_per_byte);
        if self.prompts > 0 {
            let _ = writeln!(out, "  {} held-out prompts with a checker", self.prompts);
        }
        if self.split_records > 0 {
            let _ = writeln!(out, "  {} long records cut into several rows", self.split_records);
        }
        if self.truncated_records > 0 {
            let _ = writeln!(
                out,
                "  {} records truncated, {} tokens lost",
                self.truncated_records, self.truncated_tokens
            );
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "  warning: {warning}");
        }
        out
    }

    /// The report for the manifest.
    pub(crate) fn to_json(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self)
    }
}
