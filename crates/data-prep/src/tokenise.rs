//! Prepared examples to token files, with the report and the preview.

use artifact::RunDir;
use artifact::prompts::PromptRow;
use data::encode::{
    EncodeError, EncodeOptions, Encoded, EncodedPair, Skip, encode_example, encode_pair,
};
use data::format::{Example, Kind, Mapped, Message, Prompt};
use data::template::TemplateError;
use data::tokenizer::{Tokenizer, TokenizerError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stage::Team;

use crate::config::BadRecords;
use crate::failure;
use crate::files::Files;
use crate::plan::{DatasetPlan, Plan};
use crate::prepare::{
    Chunk, Counts, EMPTY_RESPONSE, EQUAL_RESPONSES, Examiner, Gate, Prepared, Reader, Reason, Split,
};
use crate::preview::Preview;
use crate::report::SetReport;
use crate::shares;
use crate::vocabulary::Vocabulary;

/// What one data set gave.
pub(crate) struct SetOutput {
    pub(crate) report: SetReport,
    /// The first rows.
    pub(crate) preview: Vec<Preview>,
}

/// What an example became, with all that is written of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) split: Split,
    pub(crate) rows: Rows,
    /// Where one is to be written.
    pub(crate) prompt: Option<PromptRow>,
}

/// The rows of an example.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Rows {
    Tokens(Encoded),
    Pair(MadePair),
    /// A prompt alone, as token ids.
    Prompt(Vec<u32>),
}

/// A pair, with what its record says of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MadePair {
    pub(crate) ids: EncodedPair,
    pub(crate) margin: Option<f32>,
    pub(crate) probability: Option<f32>,
    pub(crate) task: Option<String>,
}

/// A prompt as a model gets it.
struct RenderedPrompt {
    text: String,
    /// The answer that the record has.
    response: Option<String>,
    /// What it renders, where that is a conversation.
    messages: Option<Vec<Message>>,
}

/// An example made into rows, or why not.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tokenised {
    Made(Box<Made>),
    Drop(Reason),
    #[serde(with = "failure")]
    Fail(anyhow::Error),
}

/// Writes the files of a data set; see the text of the crate. `tick` is told how many records have been read.
pub(crate) fn write_set(
    run: &RunDir,
    set: &DatasetPlan,
    plan: &Plan,
    vocabulary: &Vocabulary,
    team: Option<&Team>,
    tick: &mut (dyn FnMut(u64) -> anyhow::Result<()> + Send),
) -> anyhow::Result<SetOutput> {
    let examiner = Examiner::new(set, plan.seed)?;
    let mut gate = Gate::new(set);
    let mut sink = Sink {
        files: Files::create(run, set, vocabulary)?,
        output: SetOutput { report: SetReport::default(), preview: Vec::new() },
        preview_rows: plan.preview_rows,
        dropped: Counts::default(),
    };
    match team {
        None => alone(set, vocabulary, &examiner, &mut gate, &mut sink, tick)?,
        Some(team) => {
            let make =
                |chunk| examiner.examine(chunk, |prepared| tokenise(set, vocabulary, &prepared));
            shares::merge(team, set, ROWS, &make, &mut |outcomes| {
                sink.take(gate.admit(outcomes)?)?;
                tick(gate.counts.read)
            })?;
        }
    }
    let Sink { files, mut output, dropped, .. } = sink;
    for (reason, count) in dropped.dropped {
        *gate.counts.dropped.entry(reason).or_default() += count;
    }
    files.finish(&mut output.report)?;
    let stops = !vocabulary.tokenizer.stop_ids(None).is_empty() || set.config.kind.is_chat();
    output.report.close(gate.counts, stops, &set.config);
    if output.report.records_kept == 0 {
        let reasons: Vec<String> =
            output.report.dropped.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        anyhow::bail!(
            "all {} records were dropped: {}",
            output.report.records_read,
            reasons.join(", ")
        );
    }
    Ok(output)
}

/// What the rows of a set are called among the ranks.
const ROWS: &str = "rows";

/// Another process's share of [`write_set`].
pub(crate) fn make_share(
    set: &DatasetPlan,
    plan: &Plan,
    vocabulary: &Vocabulary,
    team: &Team,
) -> anyhow::Result<()> {
    let examiner = Examiner::new(set, plan.seed)?;
    shares::make(team, set, ROWS, &|chunk| {
        examiner.examine(chunk, |prepared| tokenise(set, vocabulary, &prepared))
    })
}

/// Makes the rows of a set in one process.
fn alone(
    set: &DatasetPlan,
    vocabulary: &Vocabulary,
    examiner: &Examiner<'_>,
    gate: &mut Gate,
    sink: &mut Sink,
    tick: &mut (dyn FnMut(u64) -> anyhow::Result<()> + Send),
) -> anyhow::Result<()> {
    let mut reader = Reader::open(set)?;
    let mut chunk = reader.next_chunk()?;
    let mut made = Vec::new();
    // While a chunk is tokenised, the next one is read and the one before it is written.
    while chunk.is_some() || !made.is_empty() {
        let (next, (tokenised, written)) = rayon::join(
            || reader.next_chunk(),
            || {
                rayon::join(
                    || make(set, vocabulary, examiner, gate, chunk.unwrap_or_default()),
                    || sink.take(made),
                )
            },
        );
        written?;
        made = tokenised?;
        chunk = match next {
            Ok(next) => next,
            // What was read before it is told first.
            Err(error) => {
                sink.take(made)?;
                return Err(error);
            }
        };
        tick(gate.counts.read)?;
    }
    Ok(())
}

/// The rows of a chunk's records. What repeats another is not tokenised.
fn make(
    set: &DatasetPlan,
    vocabulary: &Vocabulary,
    examiner: &Examiner<'_>,
    gate: &mut Gate,
    chunk: Chunk,
) -> anyhow::Result<Vec<Tokenised>> {
    let kept = gate.admit(examiner.examine(chunk, |prepared| prepared))?;
    Ok(kept.into_par_iter().map(|prepared| tokenise(set, vocabulary, &prepared)).collect())
}

/// Where rows end: files, report and preview.
struct Sink {
    files: Files,
    output: SetOutput,
    preview_rows: usize,
    dropped: Counts,
}

impl Sink {
    fn take(&mut self, rows: Vec<Tokenised>) -> anyhow::Result<()> {
        let Self { files, output, preview_rows, dropped } = self;
        for tokenised in rows {
            match tokenised {
                Tokenised::Fail(error) => return Err(error),
                Tokenised::Drop(reason) => dropped.drop(reason),
                Tokenised::Made(made) => {
                    let room = preview_rows.saturating_sub(output.preview.len());
                    output.preview.extend(Preview::of(&made).into_iter().take(room));
                    files.write(&made)?;
                    count(&mut output.report, &made, files.unknown);
                }
            }
        }
        Ok(())
    }
}

fn count(report: &mut SetReport, made: &Made, unknown: Option<u32>) {
    report.records_kept += 1;
    match &made.rows {
        Rows::Prompt(ids) => {
            report.bytes += made.prompt.as_ref().map_or(0, |row| row.prompt.len() as u64);
            report.tokens += ids.len() as u64;
            report.longest_prompt = report.longest_prompt.max(ids.len() as u64);
            report.count_row(0, false, true, ids, unknown);
        }
        Rows::Tokens(encoded) => {
            report.bytes += encoded.bytes as u64;
            // Rows of a split record share their border token.
            let tokens: usize = encoded.rows.iter().map(|row| row.ids.len()).sum();
            report.tokens += (tokens + encoded.tokens_cut + 1 - encoded.rows.len()) as u64;
            report.split_records += u64::from(encoded.rows.len() > 1);
            let ids = encoded.rows.iter().flat_map(|row| &row.ids);
            report.count_row(encoded.tokens_cut, encoded.straddles, encoded.closed, ids, unknown);
        }
        Rows::Pair(MadePair { ids: pair, .. }) => {
            report.bytes += pair.bytes as u64;
            // Its bytes have the prompt twice, too.
            report.tokens += (pair.num_tokens() + pair.prompt.len() + pair.tokens_cut) as u64;
            let ids = [&pair.prompt, &pair.chosen, &pair.rejected].into_iter().flatten();
            report.count_row(pair.tokens_cut, pair.straddles, pair.closed, ids, unknown);
        }
    }
}

fn tokenise(set: &DatasetPlan, vocabulary: &Vocabulary, prepared: &Prepared) -> Tokenised {
    match rows_of(set, vocabulary, prepared) {
        Ok(Ok(made)) => Tokenised::Made(Box::new(made)),
        Ok(Err(skip)) => Tokenised::Drop(reason(&skip, set.config.kind).into()),
        Err(error) if set.config.bad_records == BadRecords::Skip && of_template(&error) => {
            Tokenised::Drop("refused by the chat template".into())
        }
        Err(error) => Tokenised::Fail(error.context(prepared.origin.to_string())),
    }
}

fn of_template(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(EncodeError::Template(TemplateError::Render(_))))
}

fn rows_of(
    set: &DatasetPlan,
    vocabulary: &Vocabulary,
    prepared: &Prepared,
) -> anyhow::Result<Result<Made, Skip>> {
    let options = EncodeOptions { max_length: set.config.max_length, overlong: set.overlong };
    let (tokenizer, template) = (&vocabulary.tokenizer, vocabulary.template.as_ref());
    let Prepared { mapped, split, .. } = prepared;
    let rows = match &mapped.example {
        Example::Preference(pair) => encode_pair(tokenizer, template, pair, options)?.map(|ids| {
            let (margin, probability) = (pair.margin, pair.probability);
            Rows::Pair(MadePair { ids, margin, probability, task: mapped.task.clone() })
        }),
        Example::Prompt(prompt) => {
            return match prompt_alone(vocabulary, prompt, options.max_length)? {
                Ok((ids, prompt)) => {
                    let prompt = Some(prompt_row(mapped, prompt)?);
                    Ok(Ok(Made { split: *split, rows: Rows::Prompt(ids), prompt }))
                }
                Err(skip) => Ok(Err(skip)),
            };
        }
        example => encode_example(tokenizer, template, example, options)?.map(Rows::Tokens),
    };
    let rows = match rows {
        Ok(rows) => rows,
        Err(skip) => return Ok(Err(skip)),
    };
    let wanted = match split {
        Split::Train => set.config.train_prompts,
        Split::Validation => true,
    };
    let prompt = if wanted { render_prompt(vocabulary, &mapped.example)? } else { None };
    let prompt = prompt.map(|prompt| prompt_row(mapped, prompt)).transpose()?;
    Ok(Ok(Made { split: *split, rows, prompt }))
}

fn prompt_row(mapped: &Mapped, prompt: RenderedPrompt) -> serde_json::Result<PromptRow> {
    let answer = answer(mapped, &prompt);
    Ok(PromptRow {
        prompt: prompt.text,
        answer,
        task: mapped.task.clone(),
        checker: mapped.checker.as_ref().map(serde_json::to_string).transpose()?,
        messages: prompt.messages.as_ref().map(serde_json::to_string).transpose()?,
    })
}

/// What is to follow a prompt. Where rows teach it, it is that; a pair or a prompt alone can have a better one beside it.
fn answer(mapped: &Mapped, prompt: &RenderedPrompt) -> Option<String> {
    let own = mapped.answer.as_ref();
    let response = prompt.response.as_ref();
    match mapped.example {
        Example::Chat { .. } | Example::Completion { .. } => response.or(own),
        _ => own.or(response),
    }
    .cloned()
}

/// A prompt without a response. It is never cut: what follows its end would not be an answer.
fn prompt_alone(
    vocabulary: &Vocabulary,
    prompt: &Prompt,
    max_length: usize,
) -> Result<Result<(Vec<u32>, RenderedPrompt), Skip>, EncodeError> {
    let tokenizer = &vocabulary.tokenizer;
    if let Prompt::Messages(messages) = prompt
        && let Some(token) = messages.iter().find_map(|m| tokenizer.special_in(&m.content))
    {
        return Ok(Err(Skip::SpecialToken { token: token.to_owned() }));
    }
    let text = prompt_text(vocabulary, prompt)?;
    let ids = tokenizer.encode(&text, false)?.ids;
    if ids.len() > max_length {
        return Ok(Err(Skip::TooLong { tokens: ids.len() }));
    }
    Ok(Ok((ids, RenderedPrompt { text, response: None, messages: conversation_of(prompt) })))
}

fn reason(skip: &Skip, kind: Kind) -> &'static str {
    match skip {
        Skip::Empty if kind.is_pairs() => EMPTY_RESPONSE,
        Skip::Empty => "empty",
        Skip::TooLong { .. } => "more tokens than max_length",
        Skip::NoTargets if kind.is_pairs() => "nothing of a response is left within max_length",
        Skip::NoTargets => "nothing counted in the loss is left within max_length",
        Skip::Equal { cut: false } => EQUAL_RESPONSES,
        Skip::Equal { cut: true } => "both responses are the same within max_length",
        Skip::SpecialToken { .. } => "a special token is spelled out in the text",
    }
}

/// The prompt of an example as a model gets it, with the answer that the record has. Running text has none.
fn render_prompt(
    vocabulary: &Vocabulary,
    example: &Example,
) -> Result<Option<RenderedPrompt>, EncodeError> {
    let (text, response, messages) = match example {
        Example::Text { .. } => return Ok(None),
        Example::Chat { messages } => {
            let last = messages.iter().rposition(Message::counts).unwrap_or_default();
            let before = &messages[..last];
            let text = chat_text(vocabulary, before)?;
            (text, Some(&messages[last].content), Some(before.to_vec()))
        }
        Example::Completion { prompt, completion } => {
            (with_bos(&vocabulary.tokenizer, prompt)?, Some(completion), None)
        }
        Example::Preference(pair) => {
            let text = prompt_text(vocabulary, &pair.prompt)?;
            (text, Some(&pair.chosen), conversation_of(&pair.prompt))
        }
        Example::Prompt(prompt) => {
            (prompt_text(vocabulary, prompt)?, None, conversation_of(prompt))
        }
    };
    Ok(Some(RenderedPrompt { text, response: response.cloned(), messages }))
}

fn conversation_of(prompt: &Prompt) -> Option<Vec<Message>> {
    match prompt {
        Prompt::Messages(messages) => Some(messages.clone()),
        Prompt::Text(_) => None,
    }
}

fn prompt_text(vocabulary: &Vocabulary, prompt: &Prompt) -> Result<String, EncodeError> {
    match prompt {
        Prompt::Messages(messages) => chat_text(vocabulary, messages),
        Prompt::Text(text) => Ok(with_bos(&vocabulary.tokenizer, text)?),
    }
}

/// A conversation up to where the assistant answers.
fn chat_text(vocabulary: &Vocabulary, messages: &[Message]) -> Result<String, EncodeError> {
    let template = vocabulary.template.as_ref().ok_or(EncodeError::NoTemplate)?;
    Ok(template.render(messages, true)?)
}

/// Spells out the BOS that the tokenizer puts before a plain text.
fn with_bos(tokenizer: &Tokenizer, prompt: &str) -> Result<String, TokenizerError> {
    let adds = tokenizer.encode("", true)?.ids.first() == tokenizer.bos_id().as_ref();
    let bos = tokenizer.specials().get("bos_token").filter(|_| adds).unwrap_or_default();
    Ok(format!("{bos}{prompt}"))
}
