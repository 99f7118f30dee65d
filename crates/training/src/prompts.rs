//! Prompts read, tokenised and found good.

use std::path::Path;

use artifact::prompts::{self, PromptRow};
use data::checker::Checker;
use data::format::Message;
use data::tokenizer::Tokenizer;

/// A prompt to answer.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// As the file has it.
    pub row: PromptRow,
    /// Its tokens, at least one.
    pub ids: Vec<i64>,
    /// The rule that judges a response, where the row has one.
    pub checker: Option<Checker>,
}

/// The rule that a row carries; `at` names the row.
///
/// # Errors
/// JSON that is no checker.
pub fn checker_of(row: &PromptRow, at: &str) -> anyhow::Result<Option<Checker>> {
    let checker = row.checker.as_deref().map(serde_json::from_str).transpose();
    checker.map_err(|error| anyhow::anyhow!("{at}: not a checker: {error}"))
}

/// The conversation that a row carries; `at` names the row.
///
/// # Errors
/// JSON that is no list of messages; an empty one.
pub fn messages_of(row: &PromptRow, at: &str) -> anyhow::Result<Option<Vec<Message>>> {
    let Some(json) = &row.messages else { return Ok(None) };
    let messages: Vec<Message> = serde_json::from_str(json)
        .map_err(|error| anyhow::anyhow!("{at}: column `messages`: {error}"))?;
    anyhow::ensure!(!messages.is_empty(), "{at}: column `messages` is an empty list");
    Ok(Some(messages))
}

/// Reads prompt rows, at most `limit` of them.
///
/// # Errors
/// A file that cannot be read; a row with an empty prompt or a checker that is none (file and row are named).
pub fn read(path: &Path, tokenizer: &Tokenizer, limit: usize) -> anyhow::Result<Vec<Prompt>> {
    let rows = prompts::read(path)?;
    let at = |row: usize| format!("{}: row {row}", path.display());
    let mut all = Vec::with_capacity(rows.len().min(limit));
    for (index, row) in rows.into_iter().take(limit).enumerate() {
        let tokens = tokenizer.encode(&row.prompt, false)?.ids;
        anyhow::ensure!(!tokens.is_empty(), "{}: the prompt is empty", at(index));
        all.push(Prompt {
            ids: tokens.into_iter().map(i64::from).collect(),
            checker: checker_of(&row, &at(index))?,
            row,
        });
    }
    Ok(all)
}
