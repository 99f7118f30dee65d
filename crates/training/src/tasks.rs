//! A model's answers to held-out prompts, compared with the right ones: before and after it is trained.
//!
//! By generating: ROUGE, exact match, F1 and chrF of [`data::metrics`], and `accuracy` where prompts carry a rule. By
//! probability: `label_accuracy` over answers to choose from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use artifact::columns::{AFTER, ANSWER, BEFORE, EVALUATION, PROMPT, ROUGE_L, SCORE, TASK};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use data::batch::Branches;
use data::metrics::TextScores;
use data::tokenizer::Tokenizer;
use model::Decoder;
use serde_json::{Map, Value, json};
use stage::{Context, Problems, Progress};

use crate::branches;
use crate::prompts::{Prompt, read};
use crate::respond::answers;
use crate::settings::Evaluation;

/// One `[evaluation.NAME]`, read.
#[derive(Debug, Clone)]
struct Task {
    name: String,
    settings: Evaluation,
    prompts: Vec<Prompt>,
    /// The answers to choose from, with their end.
    labels: Vec<Vec<i64>>,
}

/// What a model made of one task.
#[derive(Debug, Clone)]
struct Answered {
    texts: Vec<String>,
    /// The place of the most probable label, where there are labels.
    chosen: Vec<Option<usize>>,
}

/// All evaluations of a run.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Vec<Task>);

/// A model's answers to all tasks.
#[derive(Debug, Clone)]
pub struct Answers(BTreeMap<String, Answered>);

impl Tasks {
    /// Reads the prompts of `[evaluation]`; all that is wrong goes into `problems`.
    pub fn read(
        tables: BTreeMap<String, Evaluation>,
        tokenizer: &Tokenizer,
        problems: &mut Problems,
    ) -> Self {
        let mut tasks = Vec::new();
        for (name, settings) in tables {
            let key = format!("evaluation.{name}");
            let own = settings.problems();
            let usable = own.is_empty();
            problems.extend(&key, own);
            if !usable {
                continue;
            }
            let limit = settings.max_prompts.unwrap_or(usize::MAX);
            let prompts =
                problems.take(&format!("{key}.prompts"), read(&settings.prompts, tokenizer, limit));
            let labels =
                problems.take(&format!("{key}.labels"), labels_of(&settings.labels, tokenizer));
            let (Some(prompts), Some(labels)) = (prompts, labels) else { continue };
            let mute = prompts.iter().position(|p| p.row.answer.is_none() && p.checker.is_none());
            if let Some(row) = mute {
                let file = settings.prompts.display();
                problems.push(
                    format!("{key}.prompts"),
                    format_args!("{file}: row {row} has no right answer to compare with (columns `answer`, `checker`)"),
                );
            }
            let known = |prompt: &Prompt| {
                let answer = prompt.row.answer.as_deref().map(str::trim);
                settings.labels.iter().any(|label| answer == Some(label.trim()))
            };
            problems.check(
                labels.is_empty() || prompts.iter().any(known),
                &format!("{key}.labels"),
                "no prompt has one of them as its answer; write them as the data has them",
            );
            tasks.push(Task { name, settings, prompts, labels });
        }
        Self(tasks)
    }

    /// Checks that prompts leave room for an answer, and for the labels, in a context of `positions` tokens.
    pub fn check_context(&self, positions: i64, problems: &mut Problems) {
        for task in &self.0 {
            let least = task.labels.iter().map(Vec::len).max().unwrap_or(1);
            let long = |prompt: &Prompt| prompt.ids.len() + least > positions as usize;
            if let Some(row) = task.prompts.iter().position(long) {
                problems.push(
                    format!("evaluation.{}.prompts", task.name),
                    format_args!(
                        "{}: row {row}: a prompt of {} tokens leaves no room for an answer in the model's {positions} positions",
                        task.settings.prompts.display(),
                        task.prompts[row].ids.len()
                    ),
                );
            }
        }
    }

    /// The files that are read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|task| task.settings.prompts.as_path())
    }

    /// A line a task for `--check`.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut out = String::new();
        for Task { name, settings, prompts, .. } in &self.0 {
            let when = if settings.before { "before and after" } else { "after" };
            let _ = writeln!(out, "evaluation  {name}: {} prompts, {when} training", prompts.len());
        }
        out
    }

    /// Lets `decoder` answer; `before` training only the tasks that ask for it.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub fn answer(
        &self,
        ctx: &Context,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        before: bool,
    ) -> anyhow::Result<Answers> {
        let mut all = BTreeMap::new();
        let asked = || self.0.iter().filter(|task| task.settings.before || !before);
        let total: usize = asked().map(|task| task.prompts.len()).sum();
        let progress = Progress::new("evaluation", Some(total as u64));
        for task in asked() {
            let Evaluation { max_new_tokens, batch_rows, .. } = task.settings;
            let responses = answers(
                ctx,
                decoder,
                tokenizer,
                &task.prompts,
                max_new_tokens,
                batch_rows,
                &progress,
            )?;
            let texts = responses.into_iter().map(|response| response.text).collect();
            let chosen = choose(ctx, decoder, task)?;
            all.insert(task.name.clone(), Answered { texts, chosen });
        }
        progress.finish();
        Ok(Answers(all))
    }

    /// Compares, writes `samples.parquet`, shows some answers, and returns for the manifest `evaluation`: for each task the
    /// scores before and after.
    ///
    /// # Errors
    /// The file system's.
    pub fn report(
        &self,
        ctx: &Context,
        before: &Answers,
        after: &Answers,
    ) -> anyhow::Result<Map<String, Value>> {
        let mut results = Map::new();
        let mut table = TableWriter::create(ctx.run_dir.samples_path(), &columns())?;
        for task in &self.0 {
            let mut own = Map::new();
            let (was, now) = (before.0.get(&task.name), after.0.get(&task.name));
            let Some(now) = now else { continue };
            if let Some(was) = was {
                own.insert("before".to_owned(), Value::Object(task.scores(was)));
            }
            let scores = task.scores(now);
            tracing::info!("{}: {}", task.name, changes(own.get("before"), &scores));
            own.insert("after".to_owned(), Value::Object(scores));
            task.show(was, now);
            task.write(&mut table, was, now)?;
            results.insert(task.name.clone(), Value::Object(own));
        }
        table.finish()?;
        if results.is_empty() {
            ctx.run_dir.remove_samples()?;
            return Ok(Map::new());
        }
        Ok(Map::from_iter([("evaluation".to_owned(), Value::Object(results))]))
    }
}

impl Task {
    /// What is reported of answers: `prompts`, the text scores, `accuracy` and `label_accuracy` where they can be judged.
    fn scores(&self, answered: &Answered) -> Map<String, Value> {
        let mut texts = TextScores::default();
        let [mut right, mut judged] = [0_u64; 2];
        for (prompt, text) in self.prompts.iter().zip(&answered.texts) {
            if let Some(answer) = &prompt.row.answer {
                texts.add(text.trim(), &[answer.trim()]);
            }
            if let Some(checker) = &prompt.checker {
                judged += 1;
                right += u64::from(checker.check(text));
            }
        }
        let mut scores = Map::from_iter([("prompts".to_owned(), json!(self.prompts.len()))]);
        scores.extend(texts.means().into_iter().map(|(name, mean)| (name.to_owned(), json!(mean))));
        if judged > 0 {
            scores.insert("accuracy".to_owned(), json!(right as f64 / judged as f64));
        }
        if !self.labels.is_empty() {
            let hits = self.prompts.iter().zip(&answered.chosen).filter(|(prompt, chosen)| {
                let label = chosen.map(|chosen| self.settings.labels[chosen].trim());
                label.is_some() && label == prompt.row.answer.as_deref().map(str::trim)
            });
            let share = hits.count() as f64 / self.prompts.len().max(1) as f64;
            scores.insert("label_accuracy".to_owned(), json!(share));
        }
        scores
    }

    /// Shows the first answers.
    fn show(&self, before: Option<&Answered>, after: &Answered) {
        for (row, prompt) in self.prompts.iter().enumerate().take(self.settings.examples) {
            let mut out = format!("{}, prompt {row}: {}", self.name, prompt.row.prompt.trim());
            let answer = prompt.row.answer.as_deref();
            let was = before.map(|before| before.texts[row].as_str());
            let now = Some(after.texts[row].as_str());
            for (name, text) in [("right", answer), ("before", was), ("after", now)] {
                if let Some(text) = text {
                    let _ =
                        write!(out, "\n  {name:<7}{}", text.trim().replace('\n', "\n         "));
                }
            }
            tracing::info!("{out}");
        }
    }

    fn write(
        &self,
        table: &mut TableWriter,
        before: Option<&Answered>,
        after: &Answered,
    ) -> anyhow::Result<()> {
        for (row, prompt) in self.prompts.iter().enumerate() {
            let text = after.texts[row].as_str();
            let right = prompt.checker.as_ref().map(|checker| checker.check(text));
            let answer = prompt.row.answer.as_deref();
            let mut alone = TextScores::default();
            let rouge = answer.map(|answer| alone.add(text.trim(), &[answer.trim()]).rouge_l);
            table.write_row(&[
                Cell::from(self.name.as_str()),
                Cell::from(prompt.row.prompt.as_str()),
                Cell::from(answer),
                Cell::from(before.map(|before| before.texts[row].as_str())),
                Cell::from(text),
                Cell::from(prompt.row.task.as_deref()),
                Cell::from(right.map(|right| if right { 1.0 } else { 0.0 })),
                Cell::from(rouge),
            ])?;
        }
        Ok(())
    }
}

fn columns() -> [Column; 8] {
    [
        Column::required(EVALUATION, Kind::Text),
        Column::required(PROMPT, Kind::Text),
        Column::optional(ANSWER, Kind::Text),
        Column::optional(BEFORE, Kind::Text),
        Column::required(AFTER, Kind::Text),
        Column::optional(TASK, Kind::Text),
        Column::optional(SCORE, Kind::Float32),
        Column::optional(ROUGE_L, Kind::Float32),
    ]
}

/// The scores in a line, each with what it was before where that is known.
fn changes(before: Option<&Value>, after: &Map<String, Value>) -> String {
    let scores = after.iter().filter(|(name, _)| *name != "prompts");
    let shown = scores.filter_map(|(name, now)| {
        let now = now.as_f64()?;
        let was = before.and_then(|before| before.get(name)?.as_f64());
        let was = was.map_or_else(String::new, |was| format!("{was:.3} -> "));
        Some(format!("{name} {was}{now:.3}"))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The tokens of each label, with those that end a response.
fn labels_of(labels: &[String], tokenizer: &Tokenizer) -> anyhow::Result<Vec<Vec<i64>>> {
    let end = tokenizer.stop_ids(None).first().copied();
    let encode = |label: &String| {
        let ids = tokenizer.encode(label, false)?.ids;
        anyhow::Ok(ids.into_iter().chain(end).map(i64::from).collect())
    };
    labels.iter().map(encode).collect()
}

/// The place of the label that is the most probable continuation of each prompt: by the sum of its tokens'
/// log-probabilities, its end included.
fn choose(ctx: &Context, decoder: &Decoder, task: &Task) -> anyhow::Result<Vec<Option<usize>>> {
    /// Tokens of one forward pass.
    const TOKENS: usize = 4096;
    if task.labels.is_empty() {
        return Ok(vec![None; task.prompts.len()]);
    }
    let labels: Vec<&[i64]> = task.labels.iter().map(Vec::as_slice).collect();
    let mut chosen = Vec::with_capacity(task.prompts.len());
    let mut prompts = task.prompts.iter().peekable();
    while prompts.peek().is_some() {
        ctx.check_interrupt()?;
        let mut rows = Branches::new();
        while let Some(prompt) = prompts.next_if(|_| rows.num_expanded() < TOKENS) {
            rows.push(&prompt.ids, &labels);
        }
        let logprobs = branches::logprobs(decoder, &rows)?;
        let sum = |own: &Vec<f32>| own.iter().map(|&p| f64::from(p)).sum::<f64>();
        let sums: Vec<f64> = logprobs.iter().map(sum).collect();
        for sums in sums.chunks(labels.len()) {
            chosen.push((0..sums.len()).max_by(|&a, &b| sums[a].total_cmp(&sums[b])));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests;
