//! Prepared examples to token files, with the report and the preview.

use anyhow::Context as _;
use artifact::RunDir;
use data::encode::{
    EncodeError, EncodeOptions, Encoded, EncodedPair, Skip, encode_example, encode_pair,
};
use data::format::{Example, Kind, Message, Prompt};
use data::template::TemplateError;
use data::tokenizer::{Tokenizer, TokenizerError};
use rayon::prelude::*;

use crate::config::BadRecords;
use crate::files::Files;
use crate::plan::{DatasetPlan, Plan};
use crate::prepare::{
    Chunk, Counts, EMPTY_RESPONSE, EQUAL_RESPONSES, Prepare, Prepared, Reader, Split,
};
use crate::preview::Preview;
use crate::report::SetReport;
use crate::vocabulary::Vocabulary;

/// What one data set gave.
pub(crate) struct SetOutput {
    pub(crate) report: SetReport,
    /// The first rows.
    pub(crate) preview: Vec<Preview>,
}

/// What an example became.
pub(crate) struct Made {
    pub(crate) rows: Rows,
    /// Where one is to be written.
    pub(crate) prompt: Option<RenderedPrompt>,
}

/// The rows of an example.
pub(crate) enum Rows {
    Tokens(Encoded),
    Pair(EncodedPair),
    /// A prompt alone, as token ids.
    Prompt(Vec<u32>),
}

/// A prompt as a model gets it.
pub(crate) struct RenderedPrompt {
    pub(crate) text: String,
    /// The answer that the record has.
    pub(crate) response: Option<String>,
    /// What it renders, where that is a conversation.
    pub(crate) messages: Option<Vec<Message>>,
}

/// An example made into rows, or the reason why not.
type Tokenised = anyhow::Result<Result<Made, &'static str>>;

/// Writes the files of a data set; see the text of the crate.
pub(crate) fn write_set(
    run: &RunDir,
    set: &DatasetPlan,
    plan: &Plan,
    vocabulary: &Vocabulary,
    tick: &mut dyn FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<SetOutput> {
    let mut reader = Reader::open(set)?;
    let mut prepare = Prepare::new(set, plan.seed)?;
    let mut sink = Sink {
        files: Files::create(run, set, vocabulary)?,
        output: SetOutput { report: SetReport::default(), preview: Vec::new() },
        preview_rows: plan.preview_rows,
        dropped: Counts::default(),
    };
    let mut chunk = reader.next_chunk()?;
    let mut made = Vec::new();
    // While a chunk is tokenised, the next one is read and the one before it is written.
    while chunk.is_some() || !made.is_empty() {
        let (next, (tokenised, written)) = rayon::join(
            || reader.next_chunk(),
            || {
                rayon::join(
                    || {
                        chunk.map_or(Ok(Vec::new()), |chunk| {
                            make(&mut prepare, set, vocabulary, chunk)
                        })
                    },
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
        tick(prepare.counts.read)?;
    }
    let Sink { files, mut output, dropped, .. } = sink;
    for (reason, count) in dropped.dropped {
        *prepare.counts.dropped.entry(reason).or_default() += count;
    }
    files.finish(&mut output.report)?;
    let stops = !vocabulary.tokenizer.stop_ids(None).is_empty() || set.config.kind.is_chat();
    output.report.close(prepare.counts, stops, &set.config);
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

/// The rows of a chunk's records.
fn make(
    prepare: &mut Prepare<'_>,
    set: &DatasetPlan,
    vocabulary: &Vocabulary,
    chunk: Chunk,
) -> anyhow::Result<Vec<(Prepared, Tokenised)>> {
    let kept = prepare.keep(chunk)?.into_par_iter();
    Ok(kept
        .map(|prepared| {
            let tokenised = tokenise(set, vocabulary, &prepared);
            (prepared, tokenised)
        })
        .collect())
}

/// Where rows end: files, report and preview.
struct Sink {
    files: Files,
    output: SetOutput,
    preview_rows: usize,
    dropped: Counts,
}

impl Sink {
    fn take(&mut self, rows: Vec<(Prepared, Tokenised)>) -> anyhow::Result<()> {
        let Self { files, output, preview_rows, dropped } = self;
        for (prepared, tokenised) in rows {
            match tokenised? {
                Err(reason) => dropped.drop(reason),
                Ok(made) => {
                    let room = preview_rows.saturating_sub(output.preview.len());
                    output.preview.extend(Preview::of(&made).into_iter().take(room));
                    files.write(&prepared, &made)?;
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
            report.bytes += made.prompt.as_ref().map_or(0, |prompt| prompt.text.len() as u64);
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
        Rows::Pair(pair) => {
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
        Ok(Ok(made)) => Ok(Ok(made)),
        Ok(Err(skip)) => Ok(Err(reason(&skip, set.config.kind))),
        Err(EncodeError::Template(TemplateError::Render(_)))
            if set.config.bad_records == BadRecords::Skip =>
        {
            Ok(Err("refused by the chat template"))
        }
        Err(error) => Err(error).with_context(|| prepared.origin.to_string()),
    }
}

fn rows_of(
    set: &DatasetPlan,
    vocabulary: &Vocabulary,
    prepared: &Prepared,
) -> Result<Result<Made, Skip>, EncodeError> {
    let options = EncodeOptions { max_length: set.config.max_length, overlong: set.overlong };
    let (tokenizer, template) = (&vocabulary.tokenizer, vocabulary.template.as_ref());
    let example = &prepared.mapped.example;
    let rows = match example {
        Example::Preference(pair) => {
            encode_pair(tokenizer, template, pair, options)?.map(Rows::Pair)
        }
        Example::Prompt(prompt) => return prompt_alone(vocabulary, prompt, options.max_length),
        _ => encode_example(tokenizer, template, example, options)?.map(Rows::Tokens),
    };
    let rows = match rows {
        Ok(rows) => rows,
        Err(skip) => return Ok(Err(skip)),
    };
    let wanted = match prepared.split {
        Split::Train => set.config.train_prompts,
        Split::Validation => true,
    };
    let prompt = if wanted { render_prompt(vocabulary, example)? } else { None };
    Ok(Ok(Made { rows, prompt }))
}

/// A prompt without a response. It is never cut: what follows its end would not be an answer.
fn prompt_alone(
    vocabulary: &Vocabulary,
    prompt: &Prompt,
    max_length: usize,
) -> Result<Result<Made, Skip>, EncodeError> {
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
    let prompt = Some(RenderedPrompt { text, response: None, messages: conversation_of(prompt) });
    Ok(Ok(Made { rows: Rows::Prompt(ids), prompt }))
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
