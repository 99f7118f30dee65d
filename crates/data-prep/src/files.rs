//! The output files of a data set: rows in splits, and prompts.

use std::collections::HashSet;
use std::path::PathBuf;

use artifact::RunDir;
use artifact::pairs::{PairRow, PairWriter};
use artifact::prompts::{PromptRow, PromptWriter};
use artifact::tokens::{TokenMeta, TokenWriter};
use data::encode::{Encoded, EncodedPair};
use data::format::{Example, Kind};
use data::template::ChatTemplate;
use xxhash_rust::xxh3::xxh3_128;

use crate::plan::DatasetPlan;
use crate::prepare::{Prepared, Split};
use crate::report::{SetReport, SplitCounts};
use crate::tokenise::{Made, Rows};
use crate::vocabulary::Vocabulary;

/// The open output files of a data set.
pub(crate) struct Files {
    /// Absent where there are prompts only.
    rows: Option<RowFiles>,
    prompts: PromptFile,
    train_prompts: PromptFile,
    pub(crate) unknown: Option<u32>,
}

impl Files {
    pub(crate) fn create(
        run: &RunDir,
        set: &DatasetPlan,
        vocabulary: &Vocabulary,
    ) -> anyhow::Result<Self> {
        let tokenizer = &vocabulary.tokenizer;
        let kind = set.config.kind;
        let only_prompts = kind == Kind::Prompt;
        let template = vocabulary.template.as_ref().filter(|_| kind.is_chat());
        let meta = TokenMeta {
            tokenizer: tokenizer.digest(),
            vocab_size: tokenizer.vocab_size(),
            seq_len: set.config.max_length,
            chat_template: template.map(ChatTemplate::digest),
        };
        let file = |name: &str| run.data_file(&set.name, name);
        let splits = ["train", "validation"].map(file);
        let rows = if only_prompts {
            None
        } else if kind.is_pairs() {
            let [train, validation] = splits.map(|path| PairWriter::create(path, meta.clone()));
            Some(RowFiles::Pairs { train: train?, validation: validation? })
        } else {
            let [train, validation] = splits.map(|path| TokenWriter::create(path, meta.clone()));
            Some(RowFiles::Tokens { train: train?, validation: validation? })
        };
        // A prompt may have many pairs or answers; what is a data set of prompts says itself what repeats.
        let mut prompts = PromptFile::new(file("prompts"), kind.is_pairs());
        let mut train_prompts = PromptFile::new(file("train-prompts"), !only_prompts);
        if only_prompts {
            prompts.open()?;
        }
        if only_prompts || set.config.train_prompts {
            train_prompts.open()?;
        }
        let unknown = tokenizer.specials().get("unk_token").and_then(|unk| tokenizer.token_id(unk));
        Ok(Self { rows, prompts, train_prompts, unknown })
    }

    pub(crate) fn write(&mut self, prepared: &Prepared, made: &Made) -> anyhow::Result<()> {
        match (&mut self.rows, &made.rows) {
            (Some(files), Rows::Tokens(encoded)) => files.write_tokens(prepared.split, encoded)?,
            (Some(files), Rows::Pair(pair)) => files.write_pair(prepared, pair)?,
            _ => {}
        }
        let Some(prompt) = &made.prompt else { return Ok(()) };
        let mapped = &prepared.mapped;
        let checker = mapped.checker.as_ref().map(serde_json::to_string).transpose()?;
        let row = PromptRow {
            prompt: prompt.text.clone(),
            answer: mapped.answer.clone().or_else(|| prompt.response.clone()),
            task: mapped.task.clone(),
            checker,
        };
        match prepared.split {
            Split::Train => self.train_prompts.write(&row),
            Split::Validation => self.prompts.write(&row),
        }
    }

    pub(crate) fn finish(self, report: &mut SetReport) -> anyhow::Result<()> {
        match self.rows {
            Some(RowFiles::Tokens { train, validation }) => {
                report.train = Some(SplitCounts::from(train.finish()?));
                report.validation = Some(SplitCounts::from(validation.finish()?));
            }
            Some(RowFiles::Pairs { train, validation }) => {
                report.train = Some(SplitCounts::from(train.finish()?));
                report.validation = Some(SplitCounts::from(validation.finish()?));
            }
            None => {}
        }
        report.prompts = self.prompts.finish()?;
        report.train_prompts = self.train_prompts.finish()?;
        Ok(())
    }
}

/// The rows of both splits.
enum RowFiles {
    Tokens { train: TokenWriter, validation: TokenWriter },
    Pairs { train: PairWriter, validation: PairWriter },
}

impl RowFiles {
    fn write_tokens(&mut self, split: Split, encoded: &Encoded) -> anyhow::Result<()> {
        let Self::Tokens { train, validation } = self else { return Ok(()) };
        let writer = if split == Split::Train { train } else { validation };
        for row in &encoded.rows {
            writer.write_row(&row.ids, Some(&row.mask))?;
        }
        Ok(())
    }

    fn write_pair(&mut self, prepared: &Prepared, pair: &EncodedPair) -> anyhow::Result<()> {
        let Self::Pairs { train, validation } = self else { return Ok(()) };
        let Example::Preference(preference) = &prepared.mapped.example else { return Ok(()) };
        let writer = if prepared.split == Split::Train { train } else { validation };
        Ok(writer.write_row(&PairRow {
            prompt: &pair.prompt,
            chosen: &pair.chosen,
            rejected: &pair.rejected,
            margin: preference.margin,
            probability: preference.probability,
            task: prepared.mapped.task.as_deref(),
        })?)
    }
}

/// A file of prompts; it is there once it was opened or has a prompt.
struct PromptFile {
    path: PathBuf,
    writer: Option<PromptWriter>,
    /// The prompts written, where each is to be written once.
    seen: Option<HashSet<u128>>,
}

impl PromptFile {
    fn new(path: PathBuf, distinct: bool) -> Self {
        Self { path, writer: None, seen: distinct.then(HashSet::new) }
    }

    fn open(&mut self) -> anyhow::Result<&mut PromptWriter> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => PromptWriter::create(&self.path)?,
        };
        Ok(self.writer.insert(writer))
    }

    fn write(&mut self, row: &PromptRow) -> anyhow::Result<()> {
        let new =
            self.seen.as_mut().is_none_or(|seen| seen.insert(xxh3_128(row.prompt.as_bytes())));
        if new {
            self.open()?.write_row(row)?;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<u64> {
        Ok(self.writer.map(PromptWriter::finish).transpose()?.unwrap_or_default())
    }
}
