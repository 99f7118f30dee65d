//! What was read, kept and dropped: for the terminal and for the manifest.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use artifact::pairs::PairCounts;
use artifact::tokens::TokenCounts;
use serde::Serialize;
use serde_json::Value;

use crate::config::DatasetConfig;
use crate::prepare::{Counts, Reason};

/// One data set's numbers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct SetReport {
    pub(crate) records_read: u64,
    /// Pairs in those records, where it is pairs that are made: a record may hold several, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pairs: Option<u64>,
    /// Records, or pairs.
    pub(crate) records_kept: u64,
    pub(crate) dropped: BTreeMap<Reason, u64>,
    /// Absent where there are prompts only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) train: Option<SplitCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) validation: Option<SplitCounts>,
    /// Held-out prompts.
    pub(crate) prompts: u64,
    /// Prompts of the training split.
    pub(crate) train_prompts: u64,
    /// Tokens of the longest prompt, where there are prompts only.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) longest_prompt: u64,
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

/// The rows of one split.
#[derive(Debug, Serialize)]
pub(crate) struct SplitCounts {
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    /// Absent for pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) targets: Option<u64>,
    pub(crate) longest: u64,
}

impl From<TokenCounts> for SplitCounts {
    fn from(counts: TokenCounts) -> Self {
        let TokenCounts { rows, tokens, targets, longest } = counts;
        Self { rows, tokens, targets: Some(targets), longest }
    }
}

impl From<PairCounts> for SplitCounts {
    fn from(counts: PairCounts) -> Self {
        let PairCounts { rows, tokens, longest } = counts;
        Self { rows, tokens, targets: None, longest }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl SetReport {
    /// Counts what is peculiar about a row, or the row of a pair.
    pub(crate) fn count_row<'a>(
        &mut self,
        tokens_cut: usize,
        straddles: bool,
        closed: bool,
        ids: impl IntoIterator<Item = &'a u32>,
        unknown: Option<u32>,
    ) {
        self.truncated_records += u64::from(tokens_cut > 0);
        self.truncated_tokens += tokens_cut as u64;
        self.straddling_records += u64::from(straddles);
        self.open_records += u64::from(!closed);
        if let Some(unknown) = unknown {
            self.unknown_tokens += ids.into_iter().filter(|id| **id == unknown).count() as u64;
        }
    }

    /// Takes over the counts and derives the rest.
    pub(crate) fn close(&mut self, counts: Counts, stops: bool, config: &DatasetConfig) {
        self.records_read = counts.read;
        self.pairs = config.kind.is_pairs().then_some(counts.examples);
        self.dropped = counts.dropped;
        if self.bytes > 0 {
            self.tokens_per_byte = self.tokens as f64 / self.bytes as f64;
        }
        let held_out = match &self.validation {
            Some(validation) => validation.rows,
            None => self.prompts,
        };
        if config.validation_fraction > 0.0 && held_out == 0 {
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
        let pairs = self.pairs.map(|pairs| format!(" {pairs} pairs in them,")).unwrap_or_default();
        let _ = writeln!(
            out,
            "{name}: {} records read,{pairs} {} kept, {} dropped",
            self.records_read, self.records_kept, dropped
        );
        for (reason, count) in &self.dropped {
            let _ = writeln!(out, "  dropped {count:>9}  {reason}");
        }
        for (split, counts) in [("train", &self.train), ("validation", &self.validation)] {
            let Some(SplitCounts { rows, tokens, targets, longest }) = counts else { continue };
            let _ = match targets {
                Some(targets) => writeln!(
                    out,
                    "  {split:<10} {rows:>9} rows {tokens:>12} tokens {targets:>12} counted in the loss, longest row {longest}"
                ),
                None => writeln!(
                    out,
                    "  {split:<10} {rows:>9} pairs {tokens:>12} tokens, longest prompt with response {longest}"
                ),
            };
        }
        let _ = writeln!(out, "  {:.3} tokens per byte of text", self.tokens_per_byte);
        if self.train_prompts > 0 {
            let _ = writeln!(out, "  {} prompts of the training split", self.train_prompts);
        }
        if self.prompts > 0 {
            let _ = writeln!(out, "  {} held-out prompts", self.prompts);
        }
        if self.longest_prompt > 0 {
            let _ = writeln!(out, "  longest prompt {} tokens", self.longest_prompt);
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
