//! Prepared examples to token files, with the report and the preview.

use anyhow::Context as _;
use artifact::RunDir;
use artifact::prompts::{PromptRow, PromptWriter};
use artifact::tokens::{TokenMeta, TokenWriter};
use data::encode::{EncodeError, EncodeOptions, Encoded, Skip, TokenRow, encode_example};
use data::format::{Example, Mapped, Message};
use data::template::{ChatTemplate, TemplateError};
use data::tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::config::BadRecords;
use crate::plan::{DatasetPlan, Plan};
use crate::prepare::{Chunk, Counts, Prepare, Prepared, Reader, Split};
use crate::report::SetReport;
use crate::vocabulary::Vocabulary;

/// What one data set gave.
pub(crate) struct SetOutput {
    pub(crate) report: SetReport,
    /// The first rows.
    pub(crate) preview: Vec<TokenRow>,
}

/// An example made into rows, or the reason why not.
type Tokenised = anyhow::Result<Result<Encoded, &'static str>>;

/// Writes `data/<name>/train.parquet`, `validation.parquet` and, where held-out records carry a
/// checker, `prompts.parquet`.
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
    let stops = !vocabulary.tokenizer.stop_ids(None).is_empty() || set.is_chat();
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
struct Sink<'a> {
    files: Files<'a>,
    output: SetOutput,
    preview_rows: usize,
    dropped: Counts,
}

impl Sink<'_> {
    fn take(&mut self, rows: Vec<(Prepared, Tokenised)>) -> anyhow::Result<()> {
        let Self { files, output, preview_rows, dropped } = self;
        for (prepared, tokenised) in rows {
            match tokenised? {
                Err(reason) => dropped.drop(reason),
                Ok(encoded) => {
                    let room = preview_rows.saturating_sub(output.preview.len());
                    output.preview.extend(encoded.rows.iter().take(room).cloned());
                    files.write(&prepared, &encoded)?;
                    count(&mut output.report, &encoded, files.unknown);
                }
            }
        }
        Ok(())
    }
}

fn count(report: &mut SetReport, encoded: &Encoded, unknown: Option<u32>) {
    report.records_kept += 1;
    report.bytes += encoded.bytes as u64;
    // Rows of a split record share their border token.
    let tokens: usize = encoded.rows.iter().map(|row| row.ids.len()).sum();
    report.tokens += (tokens + encoded.tokens_cut + 1 - encoded.rows.len()) as u64;
    report.truncated_records += u64::from(encoded.tokens_cut > 0);
    report.truncated_tokens += encoded.tokens_cut as u64;
    report.split_records += u64::from(encoded.rows.len() > 1);
    report.straddling_records += u64::from(encoded.straddles);
    report.open_records += u64::from(!encoded.closed);
    if let Some(unknown) = unknown {
        let ids = encoded.rows.iter().flat_map(|row| &row.ids);
        report.unknown_tokens += ids.filter(|id| **id == unknown).count() as u64;
    }
}

fn tokenise(set: &DatasetPlan, vocabulary: &Vocabulary, prepared: &Prepared) -> Tokenised {
    let options = EncodeOptions { max_length: set.config.max_length, overlong: set.overlong };
    let template = vocabulary.template.as_ref();
    match encode_example(&vocabulary.tokenizer, template, &prepared.mapped.example, options) {
        Ok(Ok(encoded)) => Ok(Ok(encoded)),
        Ok(Err(skip)) => Ok(Err(reason(&skip))),
        Err(EncodeError::Template(TemplateError::Render(_)))
            if set.config.bad_records == BadRecords::Skip =>
        {
            Ok(Err("refused by the chat template"))
        }
        Err(error) => Err(error).with_context(|| prepared.origin.to_string()),
    }
}

fn reason(skip: &Skip) -> &'static str {
    match skip {
        Skip::Empty => "empty",
        Skip::TooLong { .. } => "more tokens than max_length",
        Skip::NoTargets => "nothing counted in the loss is left within max_length",
        Skip::SpecialToken { .. } => "a special token is spelled out in the text",
    }
}

/// The open output files of a data set.
struct Files<'a> {
    run: &'a RunDir,
    name: &'a str,
    vocabulary: &'a Vocabulary,
    train: TokenWriter,
    validation: TokenWriter,
    prompts: Option<PromptWriter>,
    unknown: Option<u32>,
}

impl<'a> Files<'a> {
    fn create(
        run: &'a RunDir,
        set: &'a DatasetPlan,
        vocabulary: &'a Vocabulary,
    ) -> anyhow::Result<Self> {
        let tokenizer = &vocabulary.tokenizer;
        let template = vocabulary.template.as_ref().filter(|_| set.is_chat());
        let meta = TokenMeta {
            tokenizer: tokenizer.digest(),
            vocab_size: tokenizer.vocab_size(),
            seq_len: set.config.max_length,
            chat_template: template.map(ChatTemplate::digest),
        };
        let unknown = tokenizer.specials().get("unk_token").and_then(|unk| tokenizer.token_id(unk));
        Ok(Self {
            run,
            name: &set.name,
            vocabulary,
            train: TokenWriter::create(run.data_file(&set.name, "train"), meta.clone())?,
            validation: TokenWriter::create(run.data_file(&set.name, "validation"), meta)?,
            prompts: None,
            unknown,
        })
    }

    fn write(&mut self, prepared: &Prepared, encoded: &Encoded) -> anyhow::Result<()> {
        let writer = match prepared.split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
        };
        for row in &encoded.rows {
            writer.write_row(&row.ids, Some(&row.mask))?;
        }
        if prepared.split == Split::Validation
            && let Some(row) = prompt_row(self.vocabulary, &prepared.mapped)?
        {
            if self.prompts.is_none() {
                let path = self.run.data_file(self.name, "prompts");
                self.prompts = Some(PromptWriter::create(path)?);
            }
            if let Some(prompts) = &mut self.prompts {
                prompts.write_row(&row)?;
            }
        }
        Ok(())
    }

    fn finish(self, report: &mut SetReport) -> anyhow::Result<()> {
        report.train = self.train.finish()?;
        report.validation = self.validation.finish()?;
        if let Some(prompts) = self.prompts {
            report.prompts = prompts.finish()?;
        }
        Ok(())
    }
}

/// The prompt of a held-out record with a checker, rendered as far as where the model answers.
fn prompt_row(vocabulary: &Vocabulary, mapped: &Mapped) -> anyhow::Result<Option<PromptRow>> {
    let Some(checker) = &mapped.checker else { return Ok(None) };
    let (prompt, response) = match (&mapped.example, &vocabulary.template) {
        (Example::Chat { messages }, Some(template)) => {
            let last = messages.iter().rposition(Message::counts).unwrap_or_default();
            (template.render(&messages[..last], true)?, messages[last].content.clone())
        }
        (Example::Completion { prompt, completion }, _) => {
            (with_bos(&vocabulary.tokenizer, prompt)?, completion.clone())
        }
        _ => return Ok(None),
    };
    Ok(Some(PromptRow {
        prompt,
        answer: Some(mapped.answer.clone().unwrap_or(response)),
        task: mapped.task.clone(),
        checker: Some(serde_json::to_string(checker)?),
    }))
}

/// Spells out the BOS that the tokenizer puts before a plain text.
fn with_bos(tokenizer: &Tokenizer, prompt: &str) -> anyhow::Result<String> {
    let adds = tokenizer.encode("", true)?.ids.first() == tokenizer.bos_id().as_ref();
    let bos = tokenizer.specials().get("bos_token").filter(|_| adds).unwrap_or_default();
    Ok(format!("{bos}{prompt}"))
}
