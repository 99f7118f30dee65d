//! The output files of a data set: rows in splits, and prompts.

use std::collections::HashSet;
use std::path::PathBuf;

use artifact::RunDir;
use artifact::pairs::{PairRow, PairWriter};
use artifact::prompts::{PromptRow, PromptWriter};
use artifact::tokens::{TokenMeta, TokenWriter};
use data::template::ChatTemplate;
use xxhash_rust::xxh3::xxh3_128;

use crate::plan::DatasetPlan;
use crate::prepare::Split;
use crate::report::SetReport;
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
        let only_prompts = kind.is_prompts();
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
            let splits = Splits { train: train?, validation: validation? };
            Some(RowFiles::Pairs(Box::new(splits)))
        } else {
            let [train, validation] = splits.map(|path| TokenWriter::create(path, meta.clone()));
            let splits = Splits { train: train?, validation: validation? };
            Some(RowFiles::Tokens(Box::new(splits)))
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

    pub(crate) fn write(&mut self, made: &Made) -> anyhow::Result<()> {
        if let Some(files) = &mut self.rows {
            files.write(made.split, &made.rows)?;
        }
        let Some(row) = &made.prompt else { return Ok(()) };
        match made.split {
            Split::Train => self.train_prompts.write(row),
            Split::Validation => self.prompts.write(row),
        }
    }

    pub(crate) fn finish(self, report: &mut SetReport) -> anyhow::Result<()> {
        let [train, validation] = match self.rows {
            Some(RowFiles::Tokens(splits)) => {
                let Splits { train, validation } = *splits;
                [train.finish()?, validation.finish()?].map(|counts| Some(counts.into()))
            }
            Some(RowFiles::Pairs(splits)) => {
                let Splits { train, validation } = *splits;
                [train.finish()?, validation.finish()?].map(|counts| Some(counts.into()))
            }
            None => [None, None],
        };
        (report.train, report.validation) = (train, validation);
        report.prompts = self.prompts.finish()?;
        report.train_prompts = self.train_prompts.finish()?;
        Ok(())
    }
}

/// A file for each split.
struct Splits<W> {
    train: W,
    validation: W,
}

impl<W> Splits<W> {
    fn get(&mut self, split: Split) -> &mut W {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
        }
    }
}

/// The rows of both splits.
enum RowFiles {
    Tokens(Box<Splits<TokenWriter>>),
    Pairs(Box<Splits<PairWriter>>),
}

impl RowFiles {
    fn write(&mut self, split: Split, rows: &Rows) -> anyhow::Result<()> {
        match (self, rows) {
            (Self::Tokens(files), Rows::Tokens(encoded)) => {
                for row in &encoded.rows {
                    files.get(split).write_row(&row.ids, Some(&row.mask))?;
                }
            }
            (Self::Pairs(files), Rows::Pair(pair)) => {
                files.get(split).write_row(&PairRow {
                    prompt: &pair.ids.prompt,
                    chosen: &pair.ids.chosen,
                    rejected: &pair.ids.rejected,
                    margin: pair.margin,
                    probability: pair.probability,
                    task: pair.task.as_deref(),
                })?;
            }
            _ => anyhow::bail!("rows of another kind than the data set's"),
        }
        Ok(())
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
