//! Answers of a model to prompts: `samples.parquet`, judged by rule where the prompts carry a checker.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::columns::{ANSWER, PROMPT, RESPONSE, SCORE, TASK};
use artifact::prompts::{self, PromptRow};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use data::checker::Checker;
use data::tokenizer::Tokenizer;
use model::Decoder;
use model::generate::{Engine, Generated, Request, Sampling, StopRules};
use serde_json::{Map, Value, json};
use stage::{Context, Progress};

use crate::settings::Samples;

/// Right answers out of all that could be judged.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    right: u64,
    judged: u64,
}

impl Tally {
    fn share(self) -> Value {
        if self.judged == 0 { Value::Null } else { json!(self.right as f64 / self.judged as f64) }
    }
}

/// Prompts read, tokenised and found good, before a model is trained to answer them.
#[derive(Debug, Clone)]
pub struct Prompts {
    settings: Samples,
    rows: Vec<PromptRow>,
    /// The rows' prompts.
    ids: Vec<Vec<i64>>,
    /// The rows' rules.
    checkers: Vec<Option<Checker>>,
}

impl Prompts {
    /// Reads the prompt rows that the table names.
    ///
    /// # Errors
    /// A file that cannot be read; a row with an empty prompt or a checker that is none (file and row are named).
    pub fn read(settings: &Samples, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let mut rows = prompts::read(&settings.prompts)?;
        rows.truncate(settings.max_prompts.unwrap_or(usize::MAX));
        let at = |row: usize| format!("{}: row {row}", settings.prompts.display());
        let (mut ids, mut checkers) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            let tokens = tokenizer.encode(&row.prompt, false)?.ids;
            anyhow::ensure!(!tokens.is_empty(), "{}: the prompt is empty", at(index));
            ids.push(tokens.into_iter().map(i64::from).collect());
            let checker = row.checker.as_deref().map(serde_json::from_str).transpose();
            let named = |error| anyhow::anyhow!("{}: not a checker: {error}", at(index));
            checkers.push(checker.map_err(named)?);
        }
        Ok(Self { settings: settings.clone(), rows, ids, checkers })
    }

    /// Checks that every prompt leaves room for a response in a context of `positions` tokens.
    ///
    /// # Errors
    /// The first that does not, with file and row.
    pub fn check_context(&self, positions: i64) -> anyhow::Result<()> {
        match self.ids.iter().position(|ids| ids.len() as i64 >= positions) {
            Some(row) => anyhow::bail!(
                "{}: row {row}: a prompt of {} tokens leaves no room for a response in the model's {positions} positions",
                self.settings.prompts.display(),
                self.ids[row].len()
            ),
            None => Ok(()),
        }
    }

    /// Where they were read.
    pub fn path(&self) -> &Path {
        &self.settings.prompts
    }
}

/// Lets `decoder` answer the prompts, greedily, and writes `samples.parquet`: prompt, response, and where the prompt row
/// has them answer, task and score (1 right, 0 wrong, by its checker). Returns for the manifest how many there were, the
/// share of right answers (`accuracy`), and that by task.
///
/// # Errors
/// A prompt that leaves no room for a response; the file system's; a signal.
pub fn respond(
    ctx: &Context,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompts: &Prompts,
) -> anyhow::Result<Map<String, Value>> {
    prompts.check_context(decoder.config().max_position_embeddings)?;
    let requests: Vec<Request> = prompts
        .ids
        .iter()
        .map(|ids| Request {
            ids: ids.clone(),
            max_new_tokens: prompts.settings.max_new_tokens,
            sampling: Sampling::greedy(),
        })
        .collect();
    let batch_rows = prompts.settings.batch_rows;
    let generated = generate(ctx, decoder, tokenizer, &requests, batch_rows)?;
    write(ctx, tokenizer, prompts, &generated)
}

fn generate(
    ctx: &Context,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    requests: &[Request],
    batch_rows: usize,
) -> anyhow::Result<Vec<Generated>> {
    let stop_ids = tokenizer.stop_ids(None).into_iter().map(i64::from).collect();
    let stop = StopRules { ids: stop_ids, strings: Vec::new() };
    let context = decoder.config().max_position_embeddings as usize;
    let mut engine = Engine::new(decoder, batch_rows, context)?;
    let progress = Progress::new("samples", Some(requests.len() as u64));
    let mut generated = Vec::with_capacity(requests.len());
    // In portions, so that a signal is heard between them.
    for portion in requests.chunks(8 * batch_rows) {
        ctx.check_interrupt()?;
        generated.extend(engine.generate(portion, &stop, None, None)?);
        progress.inc(portion.len() as u64);
    }
    progress.finish();
    Ok(generated)
}

fn write(
    ctx: &Context,
    tokenizer: &Tokenizer,
    prompts: &Prompts,
    generated: &[Generated],
) -> anyhow::Result<Map<String, Value>> {
    let columns = [
        Column::required(PROMPT, Kind::Text),
        Column::required(RESPONSE, Kind::Text),
        Column::optional(ANSWER, Kind::Text),
        Column::optional(TASK, Kind::Text),
        Column::optional(SCORE, Kind::Float32),
    ];
    let mut table = TableWriter::create(ctx.run_dir.samples_path(), &columns)?;
    let mut all = Tally::default();
    let mut by_task: BTreeMap<&str, Tally> = BTreeMap::new();
    let rows = prompts.rows.iter().zip(&prompts.checkers);
    for ((row, checker), generated) in rows.zip(generated) {
        let ids: Vec<u32> = generated.ids.iter().map(|id| *id as u32).collect();
        let response = tokenizer.decode(&ids, true)?;
        let right = checker.as_ref().map(|checker| checker.check(&response));
        if let Some(right) = right {
            let task = row.task.as_deref().unwrap_or("all");
            for tally in [&mut all, by_task.entry(task).or_default()] {
                tally.judged += 1;
                tally.right += u64::from(right);
            }
        }
        table.write_row(&[
            Cell::from(row.prompt.as_str()),
            Cell::from(response),
            Cell::from(row.answer.as_deref()),
            Cell::from(row.task.as_deref()),
            Cell::from(right.map(|right| if right { 1.0 } else { 0.0 })),
        ])?;
    }
    table.finish()?;
    let tasks = by_task.into_iter().map(|(task, tally)| (task.to_owned(), tally.share()));
    Ok(Map::from_iter([
        ("responses".to_owned(), json!(prompts.rows.len())),
        ("accuracy".to_owned(), all.share()),
        ("accuracy_by_task".to_owned(), Value::Object(tasks.collect())),
    ]))
}
