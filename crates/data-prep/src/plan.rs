//! The configuration, checked and resolved.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use data::encode::Overlong;
use data::format::{Kind, Mapper, generated};
use data::records::{Origin, RecordError, Source};
use data::template::{ChatTemplate, SpecialTokens};
use data::tokenizer::BpeOptions;
use fs_err as fs;
use stage::{Describe, Paths, Problems, StageConfig};

use crate::config::{
    Config, DatasetConfig, Dedup, ExistingTokenizer, TokenizerConfig, TrainTokenizer,
};
use crate::prepare::RecordIter;
use crate::world;

/// What `data-prep` works from.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) preview_rows: usize,
    pub(crate) tokenizer: TokenizerPlan,
    /// The template that replaces the tokenizer's own.
    pub(crate) chat_template: Option<String>,
    /// The file it was read from.
    pub(crate) chat_template_file: Option<PathBuf>,
    pub(crate) chat_template_date: String,
    /// Sorted by name.
    pub(crate) datasets: Vec<DatasetPlan>,
}

/// Where the tokenizer comes from.
pub(crate) enum TokenizerPlan {
    Train(TrainTokenizer),
    Existing(ExistingTokenizer),
}

/// One data set with its files found.
#[derive(Debug, Clone)]
pub(crate) struct DatasetPlan {
    pub(crate) name: String,
    pub(crate) config: DatasetConfig,
    pub(crate) overlong: Overlong,
    /// Absent for a generated data set.
    pub(crate) source: Option<Source>,
}

impl DatasetPlan {
    /// Its records, from the beginning.
    pub(crate) fn open(&self) -> anyhow::Result<RecordIter> {
        if let Some(source) = &self.source {
            return Ok(Box::new(source.records()));
        }
        self.generate()
    }

    /// The records of one file, as [`sizes`](Self::sizes) counts them.
    pub(crate) fn open_file(&self, file: usize) -> anyhow::Result<RecordIter> {
        match &self.source {
            Some(source) => Ok(Box::new(source.records_of(file))),
            None => self.generate(),
        }
    }

    /// The bytes of each of its files, in the order in which they are read; `None` where that is not known. A generator counts
    /// as one file.
    pub(crate) fn sizes(&self) -> Vec<Option<u64>> {
        match &self.source {
            Some(source) => {
                let size = |path: &Path| fs::metadata(path).ok().map(|meta| meta.len());
                source.files().map(size).collect()
            }
            None => vec![None],
        }
    }

    fn generate(&self) -> anyhow::Result<RecordIter> {
        let Some(spec) = &self.config.world else {
            anyhow::bail!("data set `{}` has neither sources nor world", self.name);
        };
        let numbered = (1_u64..).zip(world::records(spec)?);
        Ok(Box::new(numbered.map(|(row, fields)| {
            let fields = fields.map_err(|error| RecordError::Generated {
                origin: Origin { file: Path::new("<world>").into(), row },
                message: format!("{error:#}"),
            })?;
            Ok(generated("<world>", row, fields))
        })))
    }
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let names: Vec<&String> = self.datasets.keys().collect();
        let chat_template = plan_template(&self.tokenizer, &mut problems);
        let tokenizer = plan_tokenizer(&self.tokenizer, &names, &mut problems);
        problems.check(!names.is_empty(), "datasets", "is empty; add a table [datasets.<name>]");
        let mut datasets = Vec::new();
        for (name, config) in &self.datasets {
            let mut own = Problems::new();
            datasets.extend(plan_dataset(name, config, &mut own));
            problems.extend(&format!("datasets.{name}"), own);
        }
        let Some(tokenizer) = tokenizer else { return Err(problems) };
        problems.finish(Plan {
            seed: self.seed,
            preview_rows: self.preview_rows,
            tokenizer,
            chat_template,
            chat_template_file: self.tokenizer.chat_template_file,
            chat_template_date: self.tokenizer.chat_template_date,
            datasets,
        })
    }
}

fn plan_template(config: &TokenizerConfig, problems: &mut Problems) -> Option<String> {
    let source = match (&config.chat_template, &config.chat_template_file) {
        (Some(_), Some(_)) => {
            problems.push(
                "tokenizer.chat_template",
                "is given together with chat_template_file; keep one",
            );
            return None;
        }
        (Some(source), None) => Some(source.clone()),
        (None, Some(path)) => {
            problems.take("tokenizer.chat_template_file", fs::read_to_string(path))
        }
        (None, None) => None,
    };
    let check = |source: &str, date| {
        ChatTemplate::with_date(source, SpecialTokens::default(), date).map(|_| ())
    };
    problems.take("tokenizer.chat_template_date", check("", Some(&config.chat_template_date)));
    if let Some(source) = &source {
        problems.take("tokenizer.chat_template", check(source, None));
    }
    source
}

fn plan_tokenizer(
    config: &TokenizerConfig,
    names: &[&String],
    problems: &mut Problems,
) -> Option<TokenizerPlan> {
    match (&config.train, &config.existing) {
        (Some(train), None) => {
            let key = "tokenizer.train";
            let smallest = BpeOptions {
                extra_special_tokens: train.extra_special_tokens.clone(),
                ..BpeOptions::default()
            }
            .smallest_vocab();
            problems.check(
                train.vocab_size >= smallest,
                &format!("{key}.vocab_size"),
                format_args!(
                    "{} is too small; the special tokens and the 256 bytes alone are {smallest}",
                    train.vocab_size
                ),
            );
            problems.check(
                train.max_digits >= 1,
                &format!("{key}.max_digits"),
                "must be at least 1",
            );
            problems.check(
                train.max_train_mb >= 1,
                &format!("{key}.max_train_mb"),
                "must be at least 1",
            );
            for name in train.datasets.iter().flatten() {
                problems.check(
                    names.contains(&name),
                    &format!("{key}.datasets"),
                    format_args!("names `{name}`, and there is no table [datasets.{name}]"),
                );
            }
            Some(TokenizerPlan::Train(train.clone()))
        }
        (None, Some(existing)) => {
            problems.require_path("tokenizer.existing.path", &existing.path);
            Some(TokenizerPlan::Existing(existing.clone()))
        }
        _ => {
            problems.push(
                "tokenizer",
                "needs exactly one of [tokenizer.train] and [tokenizer.existing]",
            );
            None
        }
    }
}

fn plan_dataset(
    name: &str,
    config: &DatasetConfig,
    problems: &mut Problems,
) -> Option<DatasetPlan> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    problems.check(
        name.chars().all(plain) && !name.starts_with('.'),
        "",
        "the name becomes a folder; use letters, digits, `-`, `_` and `.` only",
    );
    let overlong = config.overlong.unwrap_or(match config.kind {
        Kind::Text => Overlong::Split,
        _ => Overlong::Drop,
    });
    problems.check(
        config.kind == Kind::Text || overlong != Overlong::Split,
        "overlong",
        "\"split\" is for kind = \"text\"; use \"truncate\" or \"drop\"",
    );
    problems.check(
        !config.kind.is_prompts() || overlong != Overlong::Truncate,
        "overlong",
        "\"truncate\" would cut a prompt before its end; use \"drop\" for prompts alone",
    );
    problems.check(
        config.kind != Kind::Text || !config.train_prompts,
        "train_prompts",
        "is for records with a prompt; kind = \"text\" has none",
    );
    problems.check(config.max_length >= 2, "max_length", "must be at least 2 tokens");
    problems.check(
        (0.0..=1.0).contains(&config.validation_fraction),
        "validation_fraction",
        "must be from 0 to 1",
    );
    problems.check(
        config.split_field.is_none() || config.validation_fraction == 0.0,
        "validation_fraction",
        "does nothing beside split_field; leave one out",
    );
    let (least, most) = (config.filter.min_chars, config.filter.max_chars);
    problems.check(
        least.zip(most).is_none_or(|(least, most)| least <= most),
        "filter.min_chars",
        "is more than filter.max_chars",
    );
    check_dedup(&config.dedup, problems);
    problems.take("mapping", Mapper::new(config.kind, &config.mapping).map(|_| ()));
    let source = match (&config.sources, &config.world) {
        (Some(sources), None) if sources.is_empty() => {
            problems.push("sources", "is empty; name at least one file, folder or pattern");
            return None;
        }
        (Some(sources), None) => {
            Some(problems.take("sources", Source::open(sources, &config.read))?)
        }
        (None, Some(spec)) => {
            problems.take("world", world::records(spec).map(|_| ()));
            None
        }
        _ => {
            problems.push("", "needs exactly one of `sources` and a `world` table");
            return None;
        }
    };
    Some(DatasetPlan { name: name.to_owned(), config: config.clone(), overlong, source })
}

fn check_dedup(dedup: &Dedup, problems: &mut Problems) {
    let Some(near) = dedup.near else { return };
    problems.check(
        near.bands > 0
            && near.num_hashes >= near.bands
            && near.num_hashes.is_multiple_of(near.bands),
        "dedup.near.bands",
        format_args!("must divide num_hashes ({}) without remainder", near.num_hashes),
    );
    problems.check(
        near.threshold > 0.0 && near.threshold <= 1.0,
        "dedup.near.threshold",
        "must be above 0 and at most 1",
    );
    problems.check(near.shingle_chars > 0, "dedup.near.shingle_chars", "must be at least 1");
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let mut out = String::new();
        let _ = match &self.tokenizer {
            TokenizerPlan::Train(train) => {
                writeln!(
                    out,
                    "tokenizer      byte-level BPE, {} tokens, trained here",
                    train.vocab_size
                )
            }
            TokenizerPlan::Existing(existing) => {
                writeln!(out, "tokenizer      {}", existing.path.display())
            }
        };
        let template = if self.chat_template.is_some() {
            "from the config"
        } else {
            "the tokenizer's own, or the default"
        };
        let _ = writeln!(out, "chat template  {template}");
        for set in &self.datasets {
            let kind = set.config.kind.name();
            let from = match (&set.source, &set.config.world) {
                (Some(source), _) => {
                    let files: Vec<&Path> = source.files().collect();
                    let bytes: u64 = files
                        .iter()
                        .filter_map(|file| fs::metadata(file).ok())
                        .map(|m| m.len())
                        .sum();
                    format!("{} file(s), {}", files.len(), stage::human_bytes(bytes))
                }
                (None, Some(world)) => {
                    format!("{} generated records", world.records + world.held_out)
                }
                (None, None) => String::new(),
            };
            let length = set.config.max_length;
            let over = match set.overlong {
                Overlong::Truncate => "longer ones are cut",
                Overlong::Drop => "longer ones are dropped",
                Overlong::Split => "longer ones are divided",
            };
            let _ = writeln!(
                out,
                "{:<14} {kind}, {from}; rows of at most {length} tokens, {over}",
                set.name
            );
        }
        out
    }
}
