//! From the config tables of a supervised stage to a checked plan. Reads data, tokenizer and model config; no tensor.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use artifact::RunDir;
use artifact::chain::{producer, verify_chain};
use artifact::tokens::TokenMeta;
use data::batch::{Batch, BatchSize, Batcher, FlatBatch};
use data::dataset::{Dataset, DatasetError, Order, RowSource};
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::division::Ranks;
use model::{Decoder, Head, LoadOptions, Loading, ModelConfig};
use stage::{Problems, human_bytes};

use crate::evaluate::{BestBy, Validation};
use crate::memory_estimate::MemoryEstimate;
use crate::peft::{self, Trained};
use crate::respond::Prompts;
use crate::settings::{Data, Peft, Samples, Save, Train};
use crate::supervised::Supervised;
use crate::world::World;

/// The tables that every supervised stage's config has beside its model.
#[derive(Debug, Clone)]
pub struct Tables {
    /// `seed`.
    pub seed: u64,
    /// `[data]`.
    pub data: Data,
    /// `[train]`.
    pub train: Train,
    /// `[peft]`.
    pub peft: Option<Peft>,
    /// `[samples]`.
    pub samples: Option<Samples>,
    /// `[save]`.
    pub save: Save,
}

/// What a supervised stage works from, beside its model.
pub struct Plan {
    /// What the loop works from.
    pub supervised: Supervised,
    /// The tokenizer's files, which go with the model.
    pub tokenizer: Arc<Tokenizer>,
    /// Where they were.
    pub tokenizer_path: PathBuf,
    /// Prompts to answer with the trained model.
    pub prompts: Option<Prompts>,
    /// How the model is written.
    pub save: Save,
    /// The adapter to train in place of the whole model.
    pub peft: Option<peft::Plan>,
    meta: TokenMeta,
    longest_row: u64,
    summary: String,
}

impl Plan {
    /// Checks the tables against texts to train on and their tokenizer. All problems go into `problems`; `None` if there
    /// were any.
    pub fn new(tables: Tables, problems: &mut Problems) -> Option<Self> {
        let mut plan = Self::of_rows::<FlatBatch>(tables, BestBy::Loss, problems)?;
        if let Some(validation) = &mut plan.supervised.validation {
            validation.byte_lengths = Some(plan.tokenizer.byte_lengths());
        }
        Some(plan)
    }

    /// As [`new`](Self::new), for rows of any kind and another idea of the best model.
    pub fn of_rows<B: Batch>(
        tables: Tables,
        best_by: BestBy,
        problems: &mut Problems,
    ) -> Option<Self> {
        let Tables { seed, data, train, peft, samples, save } = tables;
        let adapted = peft.is_some();
        let peft = peft.and_then(|table| peft::Plan::new(table, problems));
        let mut own = train.problems();
        for (key, set) in [
            ("eval.every_steps", train.eval.every_steps.is_some()),
            ("eval.max_tokens", train.eval.max_tokens.is_some()),
        ] {
            let has_split = !data.validation.is_empty();
            own.check(has_split || !set, key, "needs a validation split; set data.validation");
        }
        own.check(
            !matches!(train.batch_size, BatchSize::Prompts(_)) || B::HAS_PAIRS,
            "batch_size.prompts",
            "is for pairs of responses; give batch_size.sequences or batch_size.tokens",
        );
        let usable = own.is_empty();
        problems.extend("train", own);
        if let Some(samples) = &samples {
            problems.extend("samples", samples.problems());
        }
        problems.check(save.max_shard_mb > 0, "save.max_shard_mb", "must be at least 1");
        let order = Order::Shuffled { seed };
        let rows = open::<B::Source>("data.train", &data.train, order, problems);
        let validation = if data.validation.is_empty() {
            None
        } else {
            let (key, files) = ("data.validation", &data.validation);
            Some(open::<B::Source>(key, files, Order::Sequential, problems)?)
        };
        let rows = rows?;
        if let Some(held) = &validation {
            let (ours, theirs) = (rows.meta(), held.meta());
            for (what, same) in [
                ("tokenizer", ours.tokenizer == theirs.tokenizer),
                ("chat template", ours.chat_template == theirs.chat_template),
            ] {
                problems.check(
                    same,
                    "data.validation",
                    format_args!(
                        "was made with another {what} than data.train; make both with the same one"
                    ),
                );
            }
        }
        let tokenizer = find_tokenizer(&data, rows.meta(), problems);
        if !usable || (adapted && peft.is_none()) {
            return None;
        }
        let (epochs, total_steps) = problems.take("data.train", total_steps::<B>(&train, &rows))?;
        let (tokenizer, tokenizer_path) = tokenizer?;
        let prompts = match &samples {
            Some(samples) => {
                Some(problems.take("samples.prompts", Prompts::read(samples, &tokenizer))?)
            }
            None => None,
        };
        let tokenizer = Arc::new(tokenizer);
        let held_longest = validation.as_ref().map_or(0, Dataset::longest_row);
        let summary = summary(&train, &rows, validation.as_ref(), total_steps);
        let validation = validation.map(|_| Validation {
            files: data.validation.clone(),
            max_tokens: train.eval.max_tokens,
            micro_batch_tokens: train.micro_batch_tokens,
            byte_lengths: None,
        });
        Some(Self {
            meta: rows.meta().clone(),
            longest_row: rows.longest_row().max(held_longest),
            supervised: Supervised {
                settings: train,
                train: data.train,
                epochs,
                total_steps,
                validation,
                best_by,
                tokenizer: Some(Arc::clone(&tokenizer)),
            },
            tokenizer,
            tokenizer_path,
            prompts,
            save,
            peft,
            summary,
        })
    }

    /// The adapter and the model it is trained over, for writing it.
    pub fn trained<'a>(&'a self, base: Option<&'a Path>) -> Option<Trained<'a>> {
        Some(Trained { plan: self.peft.as_ref()?, base: base? })
    }

    /// Reads the model to train from `dir`: all of it, or the adapter that `[peft]` says.
    ///
    /// # Errors
    /// As [`peft::load`].
    pub fn load(
        &self,
        dir: &Path,
        head: Option<Head>,
        seed: u64,
        world: &World,
    ) -> anyhow::Result<Decoder> {
        let ranks = self.holders(world);
        let loading = Loading {
            options: self.load_options(world),
            head,
            seed,
            ranks: ranks.as_ref(),
            ..Loading::default()
        };
        peft::load(dir, loading, self.peft.as_ref())
    }

    /// How a model to train is held.
    pub fn load_options(&self, world: &World) -> LoadOptions {
        let precision = self.supervised.settings.precision;
        LoadOptions { device: world.device(), precision, trainable: true }
    }

    /// The ranks that hold the model together, where it is to be divided.
    pub fn holders(&self, world: &World) -> Option<Arc<dyn Ranks>> {
        world.holders(self.supervised.settings.zero_stage == 3)
    }

    /// Checks that a model can take the data: every id in its vocabulary, every row within its positions, and where it
    /// brings a tokenizer (`dir` is its directory), the one the data was made with. `key` names it in messages.
    /// Which output layer it has is for the stage to check.
    pub fn check_model(
        &self,
        key: &str,
        config: &ModelConfig,
        dir: Option<&Path>,
        problems: &mut Problems,
    ) {
        let (ids, vocab) = (self.meta.vocab_size, config.vocab_size);
        problems.check(
            ids as i64 <= vocab,
            key,
            format_args!(
                "has a vocabulary of {vocab}, but the data's tokenizer has ids up to {}; use the model the data was \
                 tokenised for",
                ids.saturating_sub(1)
            ),
        );
        let (longest, positions) = (self.longest_row, config.max_position_embeddings);
        problems.check(
            longest as i64 <= positions,
            key,
            format_args!(
                "has {positions} positions (max_position_embeddings), but the longest row of the data has {longest} \
                 tokens; run data-prep with max_length = {positions} or less"
            ),
        );
        if let Some(peft) = &self.peft {
            peft.check_model(config, dir, problems);
        }
        if let Some(prompts) = &self.prompts {
            problems.take("samples.prompts", prompts.check_context(positions));
        }
        if let Some(dir) = dir.filter(|dir| dir.join("tokenizer.json").is_file())
            && let Some(tokenizer) = problems.take(key, Tokenizer::load(dir))
        {
            let data = &self.supervised.train[0];
            problems.take(key, verify_chain(data, &self.meta.tokenizer, dir, &tokenizer.digest()));
        }
    }

    /// What `--check` prints: model, data, steps, and an estimate of the memory that each process needs.
    pub fn describe(&self, config: &ModelConfig, processes: usize) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "model       {}, {} parameters, {} layers of width {}",
            config.architecture.model_type(),
            config.num_parameters(),
            config.num_hidden_layers,
            config.hidden_size
        );
        if let Some(peft) = &self.peft {
            out.push_str(&peft.describe(config));
        }
        let _ = writeln!(out, "tokenizer   {}", self.tokenizer_path.display());
        out.push_str(&self.summary);
        if let Some(prompts) = &self.prompts {
            let _ = writeln!(out, "samples     {}", prompts.path().display());
        }
        let memory = MemoryEstimate::new(
            config,
            &self.supervised.settings,
            self.peft.as_ref(),
            self.longest_row,
            processes,
        );
        let each = if processes > 1 {
            format!(" in each of {processes} processes")
        } else {
            String::new()
        };
        let _ = writeln!(
            out,
            "memory      about {}{each} (weights {}, gradients {}, optimiser {}, activations {})",
            human_bytes(memory.total()),
            human_bytes(memory.weights),
            human_bytes(memory.gradients),
            human_bytes(memory.optimizer),
            human_bytes(memory.activations)
        );
        out
    }
}

/// The directory and config of the language model that `key` names.
pub fn language_model(
    key: &str,
    path: &Path,
    problems: &mut Problems,
) -> Option<(PathBuf, ModelConfig)> {
    let dir = problems.take(key, artifact::model_dir(path))?;
    let config = problems.take(key, ModelConfig::from_dir(&dir))?;
    problems.take(key, config.check_language_model())?;
    Some((dir, config))
}

fn open<S: RowSource>(
    key: &str,
    files: &[PathBuf],
    order: Order,
    problems: &mut Problems,
) -> Option<Dataset<S>> {
    let missing = files.iter().filter(|file| !problems.require_path(key, file)).count();
    if missing > 0 {
        return None;
    }
    let rows = problems.take(key, Dataset::with_order(files, order, Some(1)))?;
    let some = rows.targets_per_epoch() > 0;
    problems.check(some, key, "has nothing to predict: no token counts in the loss").then_some(rows)
}

/// How many passes the data is good for, and how many optimiser steps the run has.
fn total_steps<B: Batch>(
    train: &Train,
    rows: &Dataset<B::Source>,
) -> Result<(Option<u64>, u64), DatasetError> {
    let (None, Some(epochs)) = (train.steps, train.epochs) else {
        return Ok((None, train.steps.unwrap_or_default()));
    };
    let whole = epochs.ceil().max(1.0);
    let passes = Some(whole as u64);
    let batches = Batcher::<B>::new(rows.restarted().with_epochs(passes), train.batch_config());
    let counted = batches.count_steps()?.unwrap_or_default();
    let steps = (counted as f64 * (epochs / whole)).round() as u64;
    Ok((passes, steps.max(1)))
}

/// Loads the tokenizer that goes with the data and checks that it is the one that made it.
fn find_tokenizer(
    data: &Data,
    meta: &TokenMeta,
    problems: &mut Problems,
) -> Option<(Tokenizer, PathBuf)> {
    let key = "data.tokenizer";
    let path = match &data.tokenizer {
        Some(path) => path.clone(),
        None => problems.take(key, tokenizer_beside(&data.train[0]))?,
    };
    let mut tokenizer = problems.take(key, Tokenizer::load(&path))?;
    problems
        .take(key, verify_chain(&data.train[0], &meta.tokenizer, &path, &tokenizer.digest()))?;
    if let Some(made_with) = &meta.chat_template {
        problems.check(
            tokenizer.chat_template_digest().as_ref() == Some(made_with),
            key,
            format_args!(
                "{} has another chat template than the one {} was rendered with; give the tokenizer/ of the run that \
                 made the data",
                path.display(),
                data.train[0].display()
            ),
        );
    }
    if let Some(source) = tokenizer.chat_template() {
        let template = ChatTemplate::parse(source, tokenizer.specials().clone());
        let template = problems.take(key, template)?;
        // Whoever generates with the model stops where a turn ends.
        let stop_ids = tokenizer.stop_ids(template.end_of_turn());
        tokenizer.set_stop_ids(&stop_ids);
    }
    Some((tokenizer, path))
}

/// `tokenizer/` of the run that made a token file.
fn tokenizer_beside(file: &Path) -> anyhow::Result<PathBuf> {
    let run = producer(file)?;
    let run = run.with_context(|| {
        format!(
            "{} is not in a run directory of data-prep; say where its tokenizer is",
            file.display()
        )
    })?;
    Ok(RunDir::open(run.run_dir)?.tokenizer_dir())
}

fn summary<S: RowSource>(
    train: &Train,
    rows: &Dataset<S>,
    validation: Option<&Dataset<S>>,
    total_steps: u64,
) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "data        {} rows, {} tokens, {} of them targets; longest row {}",
        rows.num_rows(),
        rows.tokens_per_epoch(),
        rows.targets_per_epoch(),
        rows.longest_row()
    );
    if let Some(held) = validation {
        let (rows, tokens) = (held.num_rows(), held.tokens_per_epoch());
        let _ = writeln!(out, "validation  {rows} rows, {tokens} tokens");
    }
    let size = match train.batch_size {
        BatchSize::Tokens(tokens) => format!("at most {tokens} tokens"),
        BatchSize::Sequences(rows) => format!("{rows} sequences"),
        BatchSize::Prompts(prompts) => format!("all pairs of {prompts} prompts"),
    };
    let length = train.epochs.map_or_else(String::new, |epochs| format!(" ({epochs} epochs)"));
    let _ = writeln!(
        out,
        "steps       {total_steps}{length}, {size} each, micro-batches of at most {} tokens, {}",
        train.micro_batch_tokens, train.precision
    );
    out
}
