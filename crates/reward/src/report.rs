//! How good the trained model's scores are, on pairs it was not trained on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use artifact::columns::{CHOSEN, CHOSEN_SCORE, PROMPT, REJECTED, REJECTED_SCORE, TASK};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use data::batch::{BatchConfig, BatchSize, Batcher, PairBatch};
use data::dataset::Dataset;
use data::tokenizer::Tokenizer;
use model::Decoder;
use objectives::{calibration_error, correlation};
use serde_json::{Map, Value, json};
use stage::{Context, Progress};
use training::branches;

/// Pairs of the training split that serve where there is no validation split.
const TRAINING_PAIRS: usize = 2000;

/// Rows of `samples.parquet`.
const SAMPLES: usize = 200;

/// Bins of the calibration error.
const BINS: usize = 10;

/// Scored pairs.
#[derive(Debug, Default)]
pub(crate) struct Scored {
    /// Of the chosen and the rejected response of each pair.
    pub(crate) scores: Vec<[f64; 2]>,
    /// Tokens of the two responses.
    pub(crate) lengths: Vec<[f64; 2]>,
    pub(crate) tasks: Vec<Option<String>>,
    /// Prompt, chosen and rejected as ids, of the first pairs.
    samples: Vec<[Vec<u32>; 3]>,
}

impl Scored {
    /// Scores the pairs of `files` in their order, `limit` of them at most.
    ///
    /// # Errors
    /// Data that cannot be read; a signal.
    pub(crate) fn new(
        ctx: &Context,
        decoder: &Decoder,
        files: &[PathBuf],
        micro_batch_tokens: usize,
        limit: usize,
    ) -> anyhow::Result<Self> {
        let config =
            BatchConfig { size: BatchSize::Tokens(micro_batch_tokens), micro_batch_tokens };
        let dataset = Dataset::sequential(files)?;
        let total = dataset.num_rows().min(limit as u64);
        let mut batches = Batcher::<PairBatch>::new(dataset, config);
        let progress = Progress::new("scores", Some(total));
        let mut found = Self::default();
        while found.scores.len() < limit
            && let Some(step) = batches.next_step()?
        {
            for batch in &step.micro_batches {
                ctx.check_interrupt()?;
                found.add(decoder, batch)?;
                progress.set_position(found.scores.len() as u64);
            }
        }
        progress.finish();
        Ok(found)
    }

    fn add(&mut self, decoder: &Decoder, batch: &PairBatch) -> anyhow::Result<()> {
        let scores = tch::no_grad(|| branches::scores(decoder, &batch.branches))?;
        let scores: Vec<f32> = Vec::try_from(scores)?;
        let pairs = scores.chunks(2).map(|pair| [f64::from(pair[0]), f64::from(pair[1])]);
        self.scores.extend(pairs);
        let rows = &batch.branches;
        let lengths = rows.responses.chunks(2);
        self.lengths.extend(lengths.map(|pair| [pair[0].len() as f64, pair[1].len() as f64]));
        self.tasks.extend(batch.tasks.iter().cloned());
        for (pair, responses) in rows.responses.chunks(2).enumerate() {
            if self.samples.len() < SAMPLES {
                let of = |range: &std::ops::Range<usize>| {
                    rows.input_ids[range.clone()].iter().map(|&id| id as u32).collect()
                };
                let prompt = of(&rows.prompts[2 * pair]);
                self.samples.push([prompt, of(&responses[0]), of(&responses[1])]);
            }
        }
        Ok(())
    }

    /// Mean and standard deviation of all scores.
    pub(crate) fn statistics(&self) -> (f64, f64) {
        let all = self.scores.iter().flatten().map(|score| *score as f32);
        objectives::mean_and_deviation(all)
    }

    /// For the manifest: accuracy, margin, scores, calibration, correlation with length, accuracy by task.
    pub(crate) fn results(&self) -> Map<String, Value> {
        let margins: Vec<f64> = self.scores.iter().map(|[a, b]| a - b).collect();
        let right = |margin: &f64| if *margin == 0.0 { 0.5 } else { f64::from(*margin > 0.0) };
        let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len().max(1) as f64;
        let rights: Vec<f64> = margins.iter().map(right).collect();
        let mut by_task: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (task, right) in self.tasks.iter().zip(&rights) {
            if let Some(task) = task {
                by_task.entry(task).or_default().push(*right);
            }
        }
        let scores: Vec<f64> = self.scores.iter().flatten().copied().collect();
        let lengths: Vec<f64> = self.lengths.iter().flatten().copied().collect();
        let longer: Vec<f64> = self.lengths.iter().map(|[a, b]| right(&(a - b))).collect();
        let (score_mean, score_std) = self.statistics();
        let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let tasks =
            by_task.into_iter().map(|(task, rights)| (task.to_owned(), json!(mean(&rights))));
        Map::from_iter([
            ("pairs".to_owned(), json!(self.scores.len())),
            ("accuracy".to_owned(), json!(mean(&rights))),
            ("accuracy_by_task".to_owned(), Value::Object(tasks.collect())),
            ("margin".to_owned(), json!(mean(&margins))),
            ("score_mean".to_owned(), json!(score_mean)),
            ("score_std".to_owned(), json!(score_std)),
            ("score_min".to_owned(), json!(least)),
            ("score_max".to_owned(), json!(most)),
            ("calibration_error".to_owned(), json!(calibration_error(&margins, BINS))),
            ("length_correlation".to_owned(), json!(correlation(&scores, &lengths))),
            ("chosen_is_longer".to_owned(), json!(mean(&longer))),
        ])
    }

    /// Writes the first pairs with their scores as `samples.parquet`.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write_samples(&self, ctx: &Context, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        let columns = [
            Column::required(PROMPT, Kind::Text),
            Column::required(CHOSEN, Kind::Text),
            Column::required(REJECTED, Kind::Text),
            Column::required(CHOSEN_SCORE, Kind::Float32),
            Column::required(REJECTED_SCORE, Kind::Float32),
            Column::optional(TASK, Kind::Text),
        ];
        let mut table = TableWriter::create(ctx.run_dir.samples_path(), &columns)?;
        let rows = self.samples.iter().zip(&self.scores).zip(&self.tasks);
        for (([prompt, chosen, rejected], [of_chosen, of_rejected]), task) in rows {
            table.write_row(&[
                Cell::from(tokenizer.decode(prompt, false)?),
                Cell::from(tokenizer.decode(chosen, true)?),
                Cell::from(tokenizer.decode(rejected, true)?),
                Cell::from(*of_chosen),
                Cell::from(*of_rejected),
                Cell::from(task.as_deref()),
            ])?;
        }
        table.finish()?;
        Ok(())
    }
}

/// The pairs to report on: the validation split, or the beginning of the training split.
pub(crate) fn pairs_of(plan: &training::supervised::Supervised) -> (Vec<PathBuf>, usize) {
    match &plan.validation {
        Some(validation) => (validation.files.clone(), usize::MAX),
        None => (plan.train.clone(), TRAINING_PAIRS),
    }
}
