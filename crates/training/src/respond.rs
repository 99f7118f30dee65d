//! Answers of a model to prompts: `samples.parquet`, judged by rule where the prompts carry a checker.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::columns::{ANSWER, PROMPT, RESPONSE, SCORE, TASK};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use data::tokenizer::{StreamDecoder, Tokenizer};
use model::Decoder;
use model::generate::{
    Engine, Finish, Generated, NewTextDecoder, Request, Sampling, StopRules, TextDecoder,
};
use serde_json::{Map, Value, json};
use stage::{Context, Progress};

use crate::prompts::Prompt;
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

/// Prompts read before a model is trained to answer them.
#[derive(Debug, Clone)]
pub struct Prompts {
    settings: Samples,
    prompts: Vec<Prompt>,
}

impl Prompts {
    /// Reads the prompt rows that the table names.
    ///
    /// # Errors
    /// As [`read`](crate::prompts::read).
    pub fn read(settings: &Samples, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let limit = settings.max_prompts.unwrap_or(usize::MAX);
        let prompts = crate::prompts::read(&settings.prompts, tokenizer, limit)?;
        Ok(Self { settings: settings.clone(), prompts })
    }

    /// Checks that every prompt leaves room for a response in a context of `positions` tokens.
    ///
    /// # Errors
    /// The first that does not, with file and row.
    pub fn check_context(&self, positions: i64) -> anyhow::Result<()> {
        match self.prompts.iter().position(|prompt| prompt.ids.len() as i64 >= positions) {
            Some(row) => anyhow::bail!(
                "{}: row {row}: a prompt of {} tokens leaves no room for a response in the model's {positions} positions",
                self.settings.prompts.display(),
                self.prompts[row].ids.len()
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
    let Samples { max_new_tokens, batch_rows, .. } = prompts.settings;
    let progress = Progress::new("samples", Some(prompts.prompts.len() as u64));
    let responses =
        answers(ctx, decoder, tokenizer, &prompts.prompts, max_new_tokens, batch_rows, &progress)?;
    progress.finish();
    write(ctx, prompts, &responses)
}

/// Greedy answers to prompts, in their order.
///
/// # Errors
/// A prompt that leaves no room for a response; libtorch's; a signal.
pub(crate) fn answers(
    ctx: &Context,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    max_new_tokens: usize,
    batch_rows: usize,
    progress: &Progress,
) -> anyhow::Result<Vec<Response>> {
    let mut model = Responder::new(decoder, tokenizer, Stop::default(), batch_rows)?;
    let request = |prompt: &Prompt| {
        let ids = prompt.ids.clone();
        Request { ids, max_new_tokens, sampling: Sampling::greedy() }
    };
    model.answer_all(ctx, &prompts.iter().map(request).collect::<Vec<_>>(), progress)
}

/// The tokens at which a response ends.
fn stop_ids(tokenizer: &Tokenizer) -> Vec<i64> {
    tokenizer.stop_ids(None).into_iter().map(i64::from).collect()
}

/// A response's text as its tokens come, for the generation engine.
pub struct Streamed<'a>(Option<StreamDecoder<'a>>);

impl<'a> Streamed<'a> {
    /// What follows a text is written in pieces of `decoder`.
    pub fn new(decoder: StreamDecoder<'a>) -> Self {
        Self(Some(decoder))
    }
}

impl TextDecoder for Streamed<'_> {
    fn push(&mut self, id: i64) -> String {
        let piece = self.0.as_mut().map(|decoder| decoder.push(id as u32));
        // An id that the vocabulary does not know is shown as what it is.
        piece.and_then(Result::ok).unwrap_or_else(|| "\u{FFFD}".to_owned())
    }

    fn finish(&mut self) -> String {
        self.0.take().and_then(|decoder| decoder.finish().ok()).unwrap_or_default()
    }
}

/// The seed of the `number`-th response's random numbers in a run.
///
/// Steele et al. 2014, "Fast splittable pseudorandom number generators" (`SplitMix64`).
#[must_use]
pub fn sample_seed(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a model wrote.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its tokens, with the one that ended it.
    pub ids: Vec<i64>,
    /// Of each token, at the temperature it was sampled with.
    pub logprobs: Vec<f32>,
    /// Without special tokens and stop strings.
    pub text: String,
    /// Whether it ended by itself, rather than by its length.
    pub ended: bool,
}

/// When a response ends, beside its length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stop<'a> {
    /// Strings that end it, and are no part of it.
    pub strings: &'a [String],
    /// Go on behind the tokens that end a turn.
    pub ignore_eos: bool,
}

/// A model that answers requests in text.
pub struct Responder<'a> {
    engine: Engine<'a>,
    tokenizer: &'a Tokenizer,
    stop: StopRules,
    batch_rows: usize,
}

impl<'a> Responder<'a> {
    /// At most `batch_rows` requests are answered at the same time.
    ///
    /// # Errors
    /// If that is 0; for a reward model.
    pub fn new(
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        stop: Stop<'_>,
        batch_rows: usize,
    ) -> anyhow::Result<Self> {
        let positions = decoder.config().max_position_embeddings as usize;
        let ids = if stop.ignore_eos { Vec::new() } else { stop_ids(tokenizer) };
        let stop = StopRules { ids, strings: stop.strings.to_vec() };
        Ok(Self {
            engine: Engine::new(decoder, batch_rows, positions)?,
            tokenizer,
            stop,
            batch_rows,
        })
    }

    /// Answers requests, in their order; what a request gets does not depend on the others.
    ///
    /// # Errors
    /// A request that leaves no room for its response; logits that are not finite.
    pub fn answer(&mut self, requests: &[Request]) -> anyhow::Result<Vec<Response>> {
        let tokenizer = self.tokenizer;
        let new_text =
            || -> Box<dyn TextDecoder + '_> { Box::new(Streamed::new(tokenizer.stream(true))) };
        let text: Option<NewTextDecoder<'_, '_>> =
            if self.stop.strings.is_empty() { None } else { Some(&new_text) };
        let generated = self.engine.generate(requests, &self.stop, text, None)?;
        generated.into_iter().map(|generated| finish(tokenizer, generated)).collect()
    }

    /// Answers many requests as [`answer`](Self::answer) does, in portions, so that a signal is heard between them.
    ///
    /// # Errors
    /// As [`answer`](Self::answer); a signal.
    pub fn answer_all(
        &mut self,
        ctx: &Context,
        requests: &[Request],
        progress: &Progress,
    ) -> anyhow::Result<Vec<Response>> {
        let mut responses = Vec::with_capacity(requests.len());
        for portion in requests.chunks(8 * self.batch_rows) {
            ctx.check_interrupt()?;
            responses.extend(self.answer(portion)?);
            progress.inc(portion.len() as u64);
        }
        Ok(responses)
    }
}

fn finish(tokenizer: &Tokenizer, generated: Generated) -> anyhow::Result<Response> {
    let Generated { ids, logprobs, text, finish, .. } = generated;
    let text = if let Some(text) = text {
        text
    } else {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        tokenizer.decode(&ids, true)?
    };
    Ok(Response { ids, logprobs, text, ended: finish == Finish::Stop })
}

fn write(
    ctx: &Context,
    prompts: &Prompts,
    responses: &[Response],
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
    for (Prompt { row, checker, .. }, response) in prompts.prompts.iter().zip(responses) {
        let response = response.text.as_str();
        let right = checker.as_ref().map(|checker| checker.check(response));
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
        ("responses".to_owned(), json!(prompts.prompts.len())),
        ("accuracy".to_owned(), all.share()),
        ("accuracy_by_task".to_owned(), Value::Object(tasks.collect())),
    ]))
}
