//! Records to cleaned, filtered, deduplicated examples, in order and in bounded memory.
//!
//! A chunk of records is mapped, cleaned and fingerprinted in parallel; what depends on the records
//! before it (duplicates) is then decided one after another. So the result does not depend on the
//! number of threads, and memory holds a few chunks and the fingerprints.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::Context as _;
use data::format::{Example, FormatError, Mapped, Mapper, Message, Preference, Prompt};
use data::records::{Origin, Record, RecordError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::clean;
use crate::config::{BadRecords, DatasetConfig};
use crate::dedup::{Fingerprint, Hasher, Repeat, Seen};
use crate::failure;
use crate::plan::DatasetPlan;

/// A chunk ends after this many records ...
const CHUNK_RECORDS: usize = 2048;
/// ... or about this many bytes of text.
const CHUNK_BYTES: usize = 8 << 20;

/// The part of the data that a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Split {
    Train,
    Validation,
}

/// Why a record or an example is dropped.
pub(crate) type Reason = Cow<'static, str>;

/// An example to be kept unless it repeats another.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) mapped: Mapped,
    pub(crate) origin: Origin,
    pub(crate) split: Split,
    /// A hash of the text, for sampling.
    pub(crate) hash: u64,
}

/// How many records were read, and why some were dropped.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) read: u64,
    /// Examples that the records gave.
    pub(crate) examples: u64,
    pub(crate) dropped: BTreeMap<Reason, u64>,
}

impl Counts {
    pub(crate) fn drop(&mut self, reason: impl Into<Reason>) {
        *self.dropped.entry(reason.into()).or_default() += 1;
    }
}

/// Where records come from: files, or a generator.
pub(crate) type RecordIter = Box<dyn Iterator<Item = Result<Record, RecordError>> + Send>;

/// Records as they were read.
pub(crate) type Chunk = Vec<Result<Record, RecordError>>;

/// Reads chunk after chunk, so that it can be ahead of what becomes of them.
pub(crate) struct Reader(RecordIter);

/// What needs one record only, and is done in parallel.
pub(crate) struct Examiner<'a> {
    config: &'a DatasetConfig,
    seed: u64,
    mapper: Mapper,
    hasher: Hasher,
}

/// What depends on the records before, and is done one after another: drops repeats, and counts.
pub(crate) struct Gate {
    seen: Seen,
    pub(crate) counts: Counts,
}

/// What the parallel part makes of one record: its examples as `T`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome<T> {
    Examples(Vec<Kept<T>>),
    Drop(Reason),
    #[serde(with = "failure")]
    Fail(anyhow::Error),
}

/// An example to be kept unless it repeats another, or the reason why not.
type Kept<T> = Result<Box<(T, Fingerprint)>, Reason>;

impl<T> Outcome<T> {
    fn map<U>(self, f: impl Fn(T) -> U) -> Outcome<U> {
        let make = |kept: Box<(T, Fingerprint)>| {
            let (example, text) = *kept;
            Box::new((f(example), text))
        };
        match self {
            Self::Examples(list) => {
                Outcome::Examples(list.into_iter().map(|one| one.map(make)).collect())
            }
            Self::Drop(reason) => Outcome::Drop(reason),
            Self::Fail(error) => Outcome::Fail(error),
        }
    }
}

impl Gate {
    pub(crate) fn new(set: &DatasetPlan) -> Self {
        Self { seen: Seen::new(&set.config.dedup), counts: Counts::default() }
    }

    /// The examples of the next records that are kept.
    pub(crate) fn admit<T>(&mut self, outcomes: Vec<Outcome<T>>) -> anyhow::Result<Vec<T>> {
        self.counts.read += outcomes.len() as u64;
        let mut kept = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            let examples = match outcome {
                Outcome::Fail(error) => return Err(error),
                Outcome::Drop(reason) => {
                    self.counts.drop(reason);
                    continue;
                }
                Outcome::Examples(examples) => examples,
            };
            self.counts.examples += examples.len() as u64;
            for example in examples {
                match example.and_then(|kept| self.admit_one(*kept)) {
                    Ok(example) => kept.push(example),
                    Err(reason) => self.counts.drop(reason),
                }
            }
        }
        Ok(kept)
    }

    fn admit_one<T>(&mut self, (example, text): (T, Fingerprint)) -> Result<T, Reason> {
        self.seen.admit(&text).map_err(|repeat| match repeat {
            Repeat::Exact => "exact duplicate",
            Repeat::Near => "near duplicate",
        })?;
        Ok(example)
    }
}

impl Reader {
    pub(crate) fn open(set: &DatasetPlan) -> anyhow::Result<Self> {
        Ok(Self(set.open()?))
    }

    /// Reads one of the set's files alone.
    pub(crate) fn open_file(set: &DatasetPlan, file: usize) -> anyhow::Result<Self> {
        Ok(Self(set.open_file(file)?))
    }

    /// The next records; `None` at the end. An error of a single record is among them.
    pub(crate) fn next_chunk(&mut self) -> anyhow::Result<Option<Chunk>> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while chunk.len() < CHUNK_RECORDS && bytes < CHUNK_BYTES {
            match self.0.next() {
                None => break,
                Some(Err(error)) if !error.is_row() => return Err(error.into()),
                Some(item) => {
                    bytes += item.as_ref().map_or(0, |record| fields_size(&record.fields));
                    chunk.push(item);
                }
            }
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

impl<'a> Examiner<'a> {
    pub(crate) fn new(set: &'a DatasetPlan, seed: u64) -> anyhow::Result<Self> {
        let config = &set.config;
        let mapper = Mapper::new(config.kind, &config.mapping)?;
        Ok(Self { config, seed, mapper, hasher: Hasher::new(&config.dedup) })
    }

    /// What becomes of each record of a chunk, with `make` of its examples.
    pub(crate) fn examine<T: Send>(
        &self,
        chunk: Chunk,
        make: impl Fn(Prepared) -> T + Sync,
    ) -> Vec<Outcome<T>> {
        chunk.into_par_iter().map(|item| self.examine_one(item).map(&make)).collect()
    }

    fn examine_one(&self, item: Result<Record, RecordError>) -> Outcome<Prepared> {
        let config = self.config;
        let skip = config.bad_records == BadRecords::Skip;
        let record = match item {
            Ok(record) => record,
            Err(error) if skip => return Outcome::Drop(unreadable(&error).into()),
            Err(error) => return Outcome::Fail(error.into()),
        };
        let examples = match self.mapper.map(&record) {
            Ok(Ok(examples)) => examples,
            Ok(Err(unfit)) => return Outcome::Drop(unfit.reason().into()),
            Err(error) if skip && of_record(&error) => {
                return Outcome::Drop("unusable fields".into());
            }
            Err(error) => return Outcome::Fail(error.into()),
        };
        let kept = examples.into_iter().map(|mapped| self.prepare(&record, mapped));
        match kept.collect::<anyhow::Result<_>>() {
            Ok(kept) => Outcome::Examples(kept),
            Err(error) => Outcome::Fail(error),
        }
    }

    /// Cleans and filters one example.
    fn prepare(&self, record: &Record, mut mapped: Mapped) -> anyhow::Result<Kept<Prepared>> {
        let config = self.config;
        clean::example(&mut mapped.example, config.clean);
        if let Some(reason) = useless(&mapped.example) {
            return Ok(Err(reason.into()));
        }
        let chars = count_chars(&mapped.example);
        if config.filter.min_chars.is_some_and(|least| chars < least) {
            return Ok(Err("fewer characters than min_chars".into()));
        }
        if config.filter.max_chars.is_some_and(|most| chars > most) {
            return Ok(Err("more characters than max_chars".into()));
        }
        let text = whole_text(&mapped.example);
        let split = self.split(record, &mapped.example)?;
        let hash = xxh3_64_with_seed(text.as_bytes(), self.seed);
        let prepared = Prepared { mapped, origin: record.origin.clone(), split, hash };
        Ok(Ok(Box::new((prepared, self.hasher.fingerprint(&text)))))
    }

    /// By the record's own field where the config names one; else by a hash of the prompt (text: of the
    /// whole), so that all answers to one prompt are in one split, wherever the record stands.
    fn split(&self, record: &Record, example: &Example) -> anyhow::Result<Split> {
        let config = self.config;
        if let Some(field) = &config.split_field {
            return split_named(record, field);
        }
        let hash = xxh3_64_with_seed(prompt_text(example).as_bytes(), self.seed);
        let place = (hash >> 11) as f64 / (1_u64 << 53) as f64;
        Ok(if place < config.validation_fraction { Split::Validation } else { Split::Train })
    }
}

fn split_named(record: &Record, field: &str) -> anyhow::Result<Split> {
    let origin = &record.origin;
    let name = record.fields.get(field).and_then(Value::as_str);
    let name = name.with_context(|| format!("{origin}: no text in split_field `{field}`"))?;
    match name.trim() {
        "train" => Ok(Split::Train),
        "validation" | "valid" | "val" | "dev" | "eval" | "test" | "held-out" => {
            Ok(Split::Validation)
        }
        other => anyhow::bail!(
            "{origin}: split_field `{field}` says `{other}`; it must be one of train, validation, \
             valid, val, dev, eval, test, held-out"
        ),
    }
}

fn unreadable(error: &RecordError) -> &'static str {
    match error {
        RecordError::Utf8 { .. } => "invalid UTF-8",
        RecordError::Json { .. } => "invalid JSON",
        RecordError::NotObject { .. } => "not an object",
        _ => "wrong number of columns",
    }
}

/// A pair with a blank response.
pub(crate) const EMPTY_RESPONSE: &str = "a response is empty";
/// A pair that prefers nothing.
pub(crate) const EQUAL_RESPONSES: &str = "both responses are the same";

fn of_record(error: &FormatError) -> bool {
    matches!(
        error,
        FormatError::Render { .. }
            | FormatError::Unrecognised { .. }
            | FormatError::Missing { .. }
            | FormatError::Field { .. }
    )
}

fn fields_size(fields: &Map<String, Value>) -> usize {
    fn size(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(fields) => fields_size(fields),
            _ => 8,
        }
    }
    fields.values().map(size).sum()
}

/// Why an example has nothing to learn from, if it has not.
fn useless(example: &Example) -> Option<&'static str> {
    let blank = |text: &str| text.trim().is_empty();
    let empty = match example {
        Example::Text { text } => blank(text),
        Example::Chat { messages } => messages.iter().all(|m| !m.counts() || blank(&m.content)),
        Example::Completion { completion, .. } => blank(completion),
        Example::Preference(pair) if blank(&pair.chosen) || blank(&pair.rejected) => {
            return Some(EMPTY_RESPONSE);
        }
        Example::Preference(pair) => {
            return (pair.chosen == pair.rejected).then_some(EQUAL_RESPONSES);
        }
        Example::Prompt(prompt) => prompt_texts(prompt).all(blank),
    };
    empty.then_some("empty")
}

fn count_chars(example: &Example) -> usize {
    let chars = |text: &str| text.chars().count();
    match example {
        Example::Text { text } => chars(text),
        Example::Chat { messages } => messages.iter().map(|m| chars(&m.content)).sum(),
        Example::Completion { prompt, completion } => chars(prompt) + chars(completion),
        Example::Preference(pair) => {
            let prompt: usize = prompt_texts(&pair.prompt).map(chars).sum();
            prompt + chars(&pair.chosen) + chars(&pair.rejected)
        }
        Example::Prompt(prompt) => prompt_texts(prompt).map(chars).sum(),
    }
}

fn prompt_texts(prompt: &Prompt) -> impl Iterator<Item = &str> {
    let (messages, text) = match prompt {
        Prompt::Messages(messages) => (messages.as_slice(), None),
        Prompt::Text(text) => (&[][..], Some(text.as_str())),
    };
    messages.iter().map(|m| m.content.as_str()).chain(text)
}

fn turns<'m>(messages: impl Iterator<Item = &'m Message>) -> String {
    messages.flat_map(|m| [m.role.as_str(), "\n", m.content.as_str(), "\n"]).collect()
}

/// All the text of an example, for hashing.
fn whole_text(example: &Example) -> String {
    match example {
        Example::Text { text } => text.clone(),
        Example::Chat { messages } => turns(messages.iter()),
        Example::Completion { prompt, completion } => format!("{prompt}{completion}"),
        Example::Preference(pair) => {
            let prompt = joined(&pair.prompt);
            format!("{prompt}\nchosen\n{}\nrejected\n{}", pair.chosen, pair.rejected)
        }
        Example::Prompt(prompt) => joined(prompt),
    }
}

fn joined(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Messages(messages) => turns(messages.iter()),
        Prompt::Text(text) => text.clone(),
    }
}

/// What comes before the first counted part, or the first answer. So all pairs of a tree, and the
/// conversations that go on from one opening, are in one split. Of a conversation that counts from its
/// beginning it is all but the last turn.
fn prompt_text(example: &Example) -> String {
    match example {
        Example::Text { text } => text.clone(),
        Example::Chat { messages } => {
            let counted = messages.iter().position(Message::counts).unwrap_or(messages.len());
            let end = if counted == 0 { messages.len().saturating_sub(1).max(1) } else { counted };
            turns(messages.iter().take(end))
        }
        Example::Completion { prompt, .. } => prompt.clone(),
        Example::Preference(Preference { prompt, .. }) | Example::Prompt(prompt) => match prompt {
            Prompt::Messages(messages) => {
                turns(messages.iter().take_while(|m| m.role != "assistant"))
            }
            Prompt::Text(text) => text.clone(),
        },
    }
}

/// The texts of an example that a tokenizer is trained on.
pub(crate) fn texts(example: Example) -> Vec<String> {
    let of_prompt = |prompt| match prompt {
        Prompt::Messages(messages) => messages.into_iter().map(|m: Message| m.content).collect(),
        Prompt::Text(text) => vec![text],
    };
    match example {
        Example::Text { text } => vec![text],
        Example::Chat { messages } => messages.into_iter().map(|m| m.content).collect(),
        Example::Completion { prompt, completion } => vec![prompt, completion],
        Example::Preference(pair) => {
            let mut texts = of_prompt(pair.prompt);
            texts.extend([pair.chosen, pair.rejected]);
            texts
        }
        Example::Prompt(prompt) => of_prompt(prompt),
    }
}
