//! Questions with several answers, of which a model finds one the most probable.
//!
//! As lm-evaluation-harness has it: `accuracy` (its `acc`) takes the choice with the highest sum of
//! log-probabilities behind the question, `accuracy_norm` (its `acc_bytes`; its `acc_norm` divides by characters, which are
//! bytes in ASCII) the one with the highest sum over the choice's UTF-8 bytes; of equal ones the first. Blanks at the end of a
//! question belong to the choice, and the choice's tokens are those of question and choice together behind the question's own.
//! Of a question that is too long the last tokens are read: as many as there are positions, less those of the choice but for
//! its last.
//!
//! Through the chat template (`chat`, and always for `prompts`) the question is the user's turn, and a choice is the answer with the
//! token that ends it, so that one that is the beginning of another is told apart.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use artifact::evaluation::Better;
use data::batch::Branches;
use data::checker::normalise;
use data::constitution::Language;
use data::dataset::shuffle;
use data::format::Message;
use data::records::{Record, Source};
use serde_json::Value;
use stage::Problems;
use training::branches;

use super::generation::by_both;
use super::{Sitting, check_either};
use crate::asked::{self, Asked, check_most, is_taken};
use crate::config::Choice;
use crate::outcome::{Answer, Metric, Outcome};
use crate::subject::{Subject, widen};

/// The questions.
#[derive(Debug)]
pub(crate) struct Work {
    table: Choice,
    inputs: Vec<PathBuf>,
    pub(crate) questions: Vec<Question>,
}

/// One question.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) text: String,
    /// How it is put to a model that converses.
    asked: Option<Asked>,
    pub(crate) choices: Vec<String>,
    /// The place of the right one.
    pub(crate) gold: usize,
    task: Option<String>,
    at: String,
}

/// A question for one model: what each choice follows, and its tokens.
type Encoded = Vec<(Vec<i64>, Vec<i64>)>;

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: Choice,
        (takers, seed): (&[&Subject], u64),
        problems: &mut Problems,
    ) -> Option<Self> {
        let of = |part: &str| format!("{key}.{part}");
        let lists = [
            ("sources", table.sources.is_empty(), "records with choices"),
            ("prompts", table.prompts.is_empty(), "with right answers"),
        ];
        if !check_either(key, lists, problems) {
            return None;
        }
        let (name, inputs, questions) = if table.sources.is_empty() {
            problems.check(table.wrong_answers > 0, &of("wrong_answers"), "must be at least 1");
            check_most(key, table.max_items, problems);
            let asked = asked::plan(key, &table.prompts, None, takers, problems)?;
            let questions = drawn(asked, table.wrong_answers, table.max_items, seed);
            (of("prompts"), table.prompts.clone(), problems.take(&of("prompts"), questions)?)
        } else {
            let source =
                problems.take(&of("sources"), Source::open(&table.sources, &table.read))?;
            if !check_most(key, table.max_items, problems) {
                return None;
            }
            let mut all = Vec::new();
            for record in source.records() {
                let record = problems.take(&of("sources"), record)?;
                all.push(problems.take(&of("sources"), told(Question::read(&record, table.chat)))?);
            }
            let (count, most) = (all.len(), table.max_items);
            let taken = all.into_iter().enumerate().filter(|(at, _)| is_taken(*at, count, most));
            let inputs = source.inputs().into_iter().map(Path::to_path_buf).collect();
            (of("sources"), inputs, taken.map(|(_, question)| question).collect())
        };
        if !problems.check(!questions.is_empty(), &name, "has no question") {
            return None;
        }
        let work = Self { table, inputs, questions };
        for subject in takers {
            for question in &work.questions {
                problems.take(&name, told(work.encode(subject, question)))?;
            }
        }
        Some(work)
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.inputs.clone()
    }

    /// The choices' log-probabilities, and which is taken.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let Sitting { ctx, subject, decoder, batch_tokens, progress } = *sitting;
        let mut outcome = Outcome::default();
        let most = self.questions.iter().map(|own| own.choices.len()).max().unwrap_or(0);
        let mut questions = self.questions.iter().peekable();
        while questions.peek().is_some() {
            ctx.check_interrupt()?;
            let (mut rows, mut members) = (Branches::new(), Vec::new());
            while let Some(question) = questions.next_if(|_| rows.num_expanded() < batch_tokens) {
                push(&mut rows, &self.encode(subject, question)?);
                members.push(question);
            }
            let sums: Vec<f64> = branches::logprobs(decoder, &rows)?
                .iter()
                .map(|own| own.iter().map(|&logprob| f64::from(logprob)).sum())
                .collect();
            let mut rest = sums.as_slice();
            for question in &members {
                let (own, others) = rest.split_at(question.choices.len());
                rest = others;
                ensure!(
                    own.iter().all(|sum| sum.is_finite()),
                    "{}: a choice's probability is not finite",
                    question.at
                );
                question.judge(own, most, &mut outcome);
            }
            progress.inc(members.len() as u64);
        }
        Ok(outcome)
    }

    /// A question as a model reads it.
    fn encode(&self, subject: &Subject, question: &Question) -> anyhow::Result<Encoded> {
        let room = subject.positions();
        let at = || format!("{}, for `{}`", question.at, subject.name);
        let mut all = Vec::with_capacity(question.choices.len());
        for choice in &question.choices {
            let (prompt, ids) = match &question.asked {
                Some(asked) => (subject.prompt_ids(asked)?, subject.response_ids(choice, true)?),
                None => {
                    plain(subject, &question.text, &format!("{}{choice}", self.table.delimiter))
                        .with_context(at)?
                }
            };
            ensure!(!ids.is_empty(), "{}: the choice {choice:?} has no tokens of its own", at());
            ensure!(
                ids.len() <= room,
                "{}: a choice of {} tokens has no room in {room} positions",
                at(),
                ids.len()
            );
            all.push((end_of(prompt, ids.len(), room), ids));
        }
        Ok(all)
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let accuracy = Metric::share("accuracy", "right", Better::Higher);
        let mut metrics = vec![accuracy.clone()];
        metrics.push(Metric::share("accuracy_norm", "right_norm", Better::Higher));
        let all = &self.questions;
        let languages: Vec<_> =
            all.iter().map(|own| Some(Language::of(&own.text).code())).collect();
        let tasks: Vec<_> = all.iter().map(|own| own.task.as_deref()).collect();
        metrics.extend(by_both(&accuracy, &languages, &tasks));
        metrics
    }
}

/// An error with all its causes, in a line.
fn told<T>(result: anyhow::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

/// Of the tokens of a question those at its end that have room before a choice of `behind` tokens, at most `room`. The
/// choice's last token is predicted and not read, so it takes no room.
fn end_of(mut question: Vec<i64>, behind: usize, room: usize) -> Vec<i64> {
    let cut = (question.len() + behind).saturating_sub(room + 1);
    question.drain(..cut);
    question
}

/// Puts a question into a row, its prompt once where all choices follow the same.
fn push(rows: &mut Branches, encoded: &Encoded) {
    let first = encoded.first().map(|(prompt, _)| prompt);
    if encoded.iter().all(|(prompt, _)| Some(prompt) == first) {
        let choices: Vec<&[i64]> = encoded.iter().map(|(_, ids)| ids.as_slice()).collect();
        rows.push(first.map_or(&[], Vec::as_slice), &choices);
        return;
    }
    for (prompt, ids) in encoded {
        rows.push(prompt, &[ids]);
    }
}

/// Question and choice as running text.
fn plain(subject: &Subject, question: &str, choice: &str) -> anyhow::Result<(Vec<i64>, Vec<i64>)> {
    let asked = question.trim_end();
    let whole = subject.tokenizer.ids_plain(&format!("{question}{choice}"), true)?;
    let before = subject.tokenizer.ids_plain(asked, true)?.len();
    let mut prompt = widen(&whole[..before.min(whole.len())]);
    let ids = widen(&whole[before.min(whole.len())..]);
    if asked.is_empty() && prompt.is_empty() {
        prompt.extend(subject.beginning());
    }
    ensure!(
        !prompt.is_empty(),
        "the question is empty, and the tokenizer has no token for the beginning of a text"
    );
    Ok((prompt, ids))
}

impl Question {
    /// Of a record in one of the forms that the documentation lists.
    fn read(record: &Record, chat: bool) -> anyhow::Result<Self> {
        let at = record.origin.to_string();
        let found = question(record).with_context(|| at.clone())?;
        let (text, choices, gold) = found;
        ensure!(choices.len() >= 2, "{at}: needs at least two choices, has {}", choices.len());
        ensure!(choices.iter().all(|choice| !choice.trim().is_empty()), "{at}: a choice is empty");
        let last = choices.len() - 1;
        ensure!(
            gold <= last,
            "{at}: the right answer is {gold}, and the choices go from 0 to {last}"
        );
        let task =
            record.fields.get(artifact::columns::TASK).and_then(Value::as_str).map(str::to_owned);
        let asked = chat.then(|| {
            let language = Language::of(&text);
            let messages = Some(vec![Message::new("user", text.clone())]);
            let row = artifact::prompts::PromptRow { prompt: text.clone(), ..Default::default() };
            Asked { row, messages, language, checker: None, at: at.clone() }
        });
        Ok(Self { text, asked, choices, gold, task, at })
    }

    /// Notes which choice is taken, and the sums, of as many columns as there are choices at `most`.
    fn judge(&self, sums: &[f64], most: usize, outcome: &mut Outcome) {
        let bytes = self.choices.iter().map(|choice| choice.len() as f64);
        let norm: Vec<f64> = sums.iter().zip(bytes).map(|(sum, bytes)| sum / bytes).collect();
        let (taken, taken_norm) = (first_best(sums), first_best(&norm));
        outcome.push_bool("right", Some(taken == self.gold));
        outcome.push_bool("right_norm", Some(taken_norm == self.gold));
        for choice in 0..most {
            outcome.push(&format!("logprob_{choice}"), sums.get(choice).copied());
        }
        let score = Some(f64::from(taken == self.gold));
        let text = self.choices[taken].clone();
        outcome.answers.push(Answer { text, ended: true, score, ..Answer::default() });
    }
}

fn first_best(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

/// Question, choices and the place of the right one.
fn question(record: &Record) -> anyhow::Result<(String, Vec<String>, usize)> {
    let fields = &record.fields;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let list = |value: Option<&Value>| -> Option<Vec<String>> {
        value?.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let place = |name: &str| -> anyhow::Result<usize> {
        let value = fields.get(name).unwrap_or(&Value::Null);
        let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
        let number = number.and_then(|number| usize::try_from(number).ok());
        number
            .with_context(|| format!("`{name}` is {value}, and not the number of a choice, from 0"))
    };
    // lm-evaluation-harness
    if let (Some(query), Some(choices)) = (text("query"), list(fields.get("choices"))) {
        return Ok((query, choices, place("gold")?));
    }
    if let Some(question) = text("question") {
        // MMLU
        if let Some(choices) = list(fields.get("choices")) {
            return Ok((question, choices, place("answer")?));
        }
        // ARC, OpenBookQA, CommonsenseQA
        if let Some(choices) = fields.get("choices").and_then(Value::as_object) {
            let (texts, labels) = (list(choices.get("text")), list(choices.get("label")));
            let (Some(texts), Some(labels), Some(key)) = (texts, labels, text("answerKey")) else {
                bail!(
                    "`choices` needs the lists `text` and `label`, and `answerKey` one of the labels"
                );
            };
            let gold = labels.iter().position(|label| *label == key);
            let gold = gold.with_context(|| {
                format!("`answerKey` is {key:?}, and the labels are {labels:?}")
            })?;
            return Ok((question, texts, gold));
        }
    }
    // HellaSwag
    if let (Some(context), Some(endings)) = (text("ctx"), list(fields.get("endings"))) {
        return Ok((context, endings, place("label")?));
    }
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    bail!(
        "no question with choices; it has {}; known are `query`, `choices`, `gold`; `question`, `choices`, `answer` (MMLU); \
         `question`, `choices.text`, `choices.label`, `answerKey` (ARC); `ctx`, `endings`, `label` (HellaSwag)",
        names.join(", ")
    )
}

/// Questions of prompts with right answers: to each, wrong ones are drawn from the answers of other prompts of its task and
/// language that are others and that its checker does not accept. Prompts for which there are too few are left out.
fn drawn(
    asked: Vec<Asked>,
    wrong: usize,
    most: Option<usize>,
    seed: u64,
) -> anyhow::Result<Vec<Question>> {
    let group = |asked: &Asked| (asked.language.code(), asked.row.task.clone());
    let mut pools: std::collections::BTreeMap<_, Vec<String>> = std::collections::BTreeMap::new();
    for asked in &asked {
        let Some(answer) = &asked.row.answer else {
            bail!("{}: has no right answer (column `answer`)", asked.at);
        };
        let pool = pools.entry(group(asked)).or_default();
        if !answer.trim().is_empty() && !pool.contains(answer) {
            pool.push(answer.clone());
        }
    }
    let mut questions = Vec::new();
    for (number, asked) in asked.into_iter().enumerate() {
        let answer = asked.row.answer.clone().unwrap_or_default();
        let (right, accepts) = (normalise(&answer), |text: &String| {
            asked.checker.as_ref().is_some_and(|checker| checker.check(text))
        });
        let pool = pools.get(&group(&asked)).into_iter().flatten();
        let mut others: Vec<String> =
            pool.filter(|text| normalise(text) != right && !accepts(text)).cloned().collect();
        shuffle(&mut others, [seed, number as u64, 0, 11]);
        others.truncate(wrong);
        if others.len() < wrong || answer.trim().is_empty() {
            continue;
        }
        others.push(answer.clone());
        shuffle(&mut others, [seed, number as u64, 1, 11]);
        let gold = others.iter().position(|text| *text == answer).unwrap_or_default();
        let (text, task, at) = (asked.text().to_owned(), asked.row.task.clone(), asked.at.clone());
        questions.push(Question { text, asked: Some(asked), choices: others, gold, task, at });
    }
    ensure!(
        !questions.is_empty(),
        "for no prompt there are {wrong} answers of others of its task and language that are wrong; lower `wrong_answers`"
    );
    let count = questions.len();
    let taken = questions.into_iter().enumerate().filter(|(at, _)| is_taken(*at, count, most));
    Ok(taken.map(|(_, question)| question).collect())
}

#[cfg(test)]
mod tests;
