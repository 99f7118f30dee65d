//! Whether a reward model scores the better of two answers higher.

use std::path::{Path, PathBuf};

use artifact::columns::{CHOSEN, REJECTED};
use artifact::evaluation::{Better, Unit};
use artifact::pairs::PairReader;
use data::dataset::PairDataset;
use data::encode::{EncodeOptions, Overlong, encode_pair};
use data::format::{Example, Kind, Mapper, Preference as Pair, Prompt};
use data::records::Source;
use stage::Problems;
use training::branches;

use super::score::against;
use super::{Sitting, check_either, check_tokenizer};
use crate::asked::{check_most, is_taken};
use crate::config::Preference;
use crate::outcome::{Answer, Metric, Outcome};
use crate::subject::{Subject, widen};

/// The pairs.
#[derive(Debug)]
pub(crate) struct Work {
    inputs: Vec<PathBuf>,
    pub(crate) pairs: Vec<Two>,
}

/// One pair.
#[derive(Debug)]
pub(crate) struct Two {
    pub(crate) prompt: String,
    pub(crate) chosen: String,
    pub(crate) rejected: String,
    form: Form,
    task: Option<String>,
    at: String,
}

#[derive(Debug)]
enum Form {
    /// Both answers with their prompt, in the tokens of the one tokenizer they were made with.
    Tokens([Vec<i64>; 2]),
    Text(Pair),
}

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: &Preference,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        let of = |part: &str| format!("{key}.{part}");
        let lists = [
            ("rows", table.rows.is_empty(), "pair rows of data-prep"),
            ("sources", table.sources.is_empty(), "records"),
        ];
        if !check_either(key, lists, problems) {
            return None;
        }
        if !check_most(key, table.max_items, problems) {
            return None;
        }
        let (inputs, mut pairs) = if table.sources.is_empty() {
            let first = takers.first()?;
            for file in &table.rows {
                let reader = problems.take(&of("rows"), PairReader::open(file))?;
                let made_with = (file.as_path(), &reader.meta().tokenizer);
                if !check_tokenizer(&of("rows"), made_with, takers, problems) {
                    return None;
                }
            }
            (table.rows.clone(), problems.take(&of("rows"), of_rows(&table.rows, first))?)
        } else {
            let source =
                problems.take(&of("sources"), Source::open(&table.sources, &table.read))?;
            let pairs = problems.take(&of("sources"), of_records(&source, table))?;
            (source.inputs().into_iter().map(Path::to_path_buf).collect(), pairs)
        };
        let (count, mut place) = (pairs.len(), 0);
        pairs.retain(|_| {
            place += 1;
            is_taken(place - 1, count, table.max_items)
        });
        if !problems.check(!pairs.is_empty(), key, "has no pair") {
            return None;
        }
        let work = Self { inputs, pairs };
        for subject in takers {
            problems.take(key, work.texts(subject))?;
        }
        Some(work)
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.inputs.clone()
    }

    /// Both answers of each pair, one after the other.
    fn texts(&self, subject: &Subject) -> anyhow::Result<Vec<Vec<i64>>> {
        let options = EncodeOptions { max_length: usize::MAX, overlong: Overlong::Drop };
        let mut texts = Vec::with_capacity(2 * self.pairs.len());
        for Two { form, at, .. } in &self.pairs {
            match form {
                Form::Tokens(both) => texts.extend(both.clone()),
                Form::Text(pair) => {
                    let (tokenizer, template) = (&subject.tokenizer, subject.template.as_ref());
                    let encoded = encode_pair(tokenizer, template, pair, options)
                        .map_err(|error| anyhow::anyhow!("{at}: `{}`: {error}", subject.name))?;
                    // What is no pair for this model has no score.
                    let both = encoded.map_or([Vec::new(), Vec::new()], |encoded| {
                        [&encoded.chosen, &encoded.rejected].map(|response| {
                            widen(&[encoded.prompt.as_slice(), response.as_slice()].concat())
                        })
                    });
                    texts.extend(both);
                }
            }
        }
        Ok(texts)
    }

    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let Sitting { ctx, subject, decoder, batch_tokens, progress } = *sitting;
        let mut seen = 0;
        let done = |count: usize| {
            progress.inc((count / 2 - seen) as u64);
            seen = count / 2;
            Ok(ctx.check_interrupt()?)
        };
        let scores = branches::text_scores(decoder, &self.texts(subject)?, batch_tokens, done)?;
        let mut outcome = Outcome::default();
        for (two, scores) in self.pairs.iter().zip(scores.chunks_exact(2)) {
            let both = scores[0].zip(scores[1]).map(|(a, b)| (f64::from(a), f64::from(b)));
            let right = both.map(|(chosen, rejected)| against(chosen, rejected));
            outcome.push("right", right);
            outcome.push("margin", both.map(|(chosen, rejected)| chosen - rejected));
            let preferred = if right == Some(0.0) { &two.rejected } else { &two.chosen };
            let text = if both.is_some() { preferred.clone() } else { String::new() };
            outcome.answers.push(Answer { text, ended: true, score: right, ..Answer::default() });
        }
        let long = scores.chunks_exact(2).filter(|pair| pair.contains(&None)).count();
        if long > 0 {
            tracing::warn!(
                "{long} pairs are beyond the {} positions of `{}`, or no pairs for it, and do not count",
                subject.positions(),
                subject.name
            );
        }
        Ok(outcome)
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let accuracy = Metric::share("accuracy", "right", Better::Higher);
        let mut metrics = vec![accuracy.clone()];
        metrics.push(Metric::mean("margin", "margin", Unit::Score, Better::Neither));
        let tasks: Vec<_> = self.pairs.iter().map(|pair| pair.task.as_deref()).collect();
        metrics.extend(accuracy.by_parts(&tasks));
        metrics
    }
}

fn of_rows(files: &[PathBuf], subject: &Subject) -> anyhow::Result<Vec<Two>> {
    let mut rows = PairDataset::sequential(files)?;
    let mut pairs = Vec::new();
    while let Some(row) = rows.next_row()? {
        let all = [&row.prompt, &row.chosen, &row.rejected]
            .map(|ids| ids.iter().map(|&id| id as u32).collect::<Vec<u32>>());
        let text = |ids: &[u32], skip| subject.tokenizer.decode(ids, skip);
        pairs.push(Two {
            prompt: text(&all[0], false)?,
            chosen: text(&all[1], true)?,
            rejected: text(&all[2], true)?,
            form: Form::Tokens(
                [&all[1], &all[2]].map(|response| widen(&[all[0].as_slice(), response].concat())),
            ),
            task: row.task.clone(),
            at: format!("pair {}", pairs.len()),
        });
    }
    Ok(pairs)
}

fn of_records(source: &Source, table: &Preference) -> anyhow::Result<Vec<Two>> {
    let mapper = Mapper::new(Kind::Preference, &table.mapping)?;
    let mut pairs = Vec::new();
    for record in source.records() {
        let record = record?;
        let mapped = mapper.map(&record)?.map_err(|unfit| {
            anyhow::anyhow!(
                "{}: no pair of `{CHOSEN}` and `{REJECTED}`: {}",
                record.origin,
                unfit.reason()
            )
        })?;
        for mapped in mapped {
            let Example::Preference(pair) = mapped.example else { continue };
            let prompt = match &pair.prompt {
                Prompt::Messages(messages) => {
                    messages.last().map_or_else(String::new, |last| last.content.clone())
                }
                Prompt::Text(text) => text.clone(),
            };
            let (chosen, rejected) = (pair.chosen.clone(), pair.rejected.clone());
            let (task, at) = (mapped.task, record.origin.to_string());
            pairs.push(Two { prompt, chosen, rejected, form: Form::Text(pair), task, at });
        }
    }
    Ok(pairs)
}
