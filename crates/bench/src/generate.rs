//! The generation engine on a full batch of random prompts.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use model::generate::{Engine, Request, Sampling, StopRules};
use model::{Decoder, LoadOptions};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use torch_ext::memory;

use crate::Target;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A model directory.
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Sequences generated at once.
    #[arg(long, default_value_t = 32)]
    rows: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Tokens generated after each prompt.
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Timed rounds, after one that warms up.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Of the most probable tokens only so many may be sampled.
    #[arg(long)]
    top_k: Option<usize>,
}

/// New tokens a second of every round, sampled at temperature 1.
pub(crate) fn measure(options: &Options) -> Result<Value> {
    let Options { rows, prompt, new, .. } = *options;
    let load = LoadOptions {
        device: options.target.device()?,
        precision: options.target.precision,
        trainable: false,
    };
    let decoder = Decoder::load(&options.model, &load)?;
    let mut engine = Engine::new(&decoder, rows, prompt + new)?;
    let ids = Tensor::randint(
        decoder.config().vocab_size,
        [rows as i64, prompt as i64],
        (Kind::Int64, load.device),
    );
    let ids: Vec<Vec<i64>> = Vec::try_from(ids)?;
    let mut rates = Vec::new();
    for round in 0..=options.rounds {
        let requests: Vec<Request> = ids
            .iter()
            .enumerate()
            .map(|(row, ids)| {
                let seed = (round * rows + row) as u64;
                let sampling = Sampling { seed, top_k: options.top_k, ..Sampling::default() };
                Request { ids: ids.clone(), max_new_tokens: new, sampling }
            })
            .collect();
        let start = Instant::now();
        let results = engine.generate(&requests, &StopRules::default(), None, None)?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(results.iter().all(|result| result.ids.len() == new), "a response ended early");
        rates.push((rows * new) as f64 / seconds);
    }
    let peak = memory::cuda_stats(load.device).ok().map(|stats| stats.peak_allocated);
    Ok(json!({ "tokens_per_s": rates[1..], "peak_memory_bytes": peak }))
}
