//! Answers of a model to prompts: `samples.parquet`, judged by rule where the prompts carry a checker.

use std::collections::BTreeMap;

use anyhow::Context as _;
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

/// Lets `decoder` answer the prompts, greedily, and writes `samples.parquet`: prompt, response, and where the prompt row
/// has them answer, task and score (1 right, 0 wrong, by its checker). Returns for the manifest how many there were, the
/// share of right answers (`accuracy`), and that by task.
///
/// # Errors
/// Prompts that cannot be read, a prompt that leaves no room for a response (file and row are named), a checker that is
/// not one; a signal.
pub fn respond(
    ctx: &Context,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    samples: &Samples,
) -> anyhow::Result<Map<String, Value>> {
    let file = samples.prompts.display();
    let mut rows = prompts::read(&samples.prompts)?;
    rows.truncate(samples.max_prompts.unwrap_or(usize::MAX));
    let context = decoder.config().max_position_embeddings as usize;
    let mut requests = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let ids = tokenizer.encode(&row.prompt, false)?.ids;
        anyhow::ensure!(
            !ids.is_empty() && ids.len() < context,
            "{file}: row {index}: a prompt of {} tokens; it must have at least one and leave room in the model's \
             context of {context}",
            ids.len()
        );
        requests.push(Request {
            ids: ids.into_iter().map(i64::from).collect(),
            max_new_tokens: samples.max_new_tokens,
            sampling: Sampling::greedy(),
        });
    }
    let generated = generate(ctx, decoder, tokenizer, &requests, samples.batch_rows)?;
    write(ctx, tokenizer, samples, &rows, &generated)
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
    samples: &Samples,
    rows: &[PromptRow],
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
    for (index, (row, generated)) in rows.iter().zip(generated).enumerate() {
        let ids: Vec<u32> = generated.ids.iter().map(|id| *id as u32).collect();
        let response = tokenizer.decode(&ids, true)?;
        let right = judge(row, &response)
            .with_context(|| format!("{}: row {index}", samples.prompts.display()))?;
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
        ("responses".to_owned(), json!(rows.len())),
        ("accuracy".to_owned(), all.share()),
        ("accuracy_by_task".to_owned(), Value::Object(tasks.collect())),
    ]))
}

/// Whether the response is right by the row's checker; `None` without one.
fn judge(row: &PromptRow, response: &str) -> anyhow::Result<Option<bool>> {
    let Some(json) = &row.checker else { return Ok(None) };
    let checker: Checker = serde_json::from_str(json).context("the checker is not one")?;
    Ok(Some(checker.check(response)))
}
