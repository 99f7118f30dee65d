//! The bound: how many tokens a second the machine's matrix products alone would allow.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use model::ModelConfig;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::Target;
use crate::timing::Times;

/// How long each product is repeated.
const TIME: Duration = Duration::from_millis(150);

/// Rows of the output layer's product, which no one runs over all tokens at once.
const MOST_HEAD_ROWS: i64 = 1024;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A model directory: only its config.json is read.
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Tokens that go through the model at once in training.
    #[arg(long, default_value_t = 4096)]
    tokens: i64,
    /// Length of the sequences: attention costs grow with it.
    #[arg(long, default_value_t = 512)]
    seq: i64,
    /// Bound generation with so many rows instead of training.
    #[arg(long)]
    decode_rows: Option<i64>,
    /// Bound the training of an adapter: the model's own weights get no gradient.
    #[arg(long, conflicts_with = "decode_rows")]
    frozen: bool,
}

/// A linear layer and how often a forward pass runs it.
struct Linear {
    inputs: i64,
    outputs: i64,
    times: f64,
    rows: i64,
}

/// Measures `[rows, in] x [in, out]` for every linear layer of the model, in training also the two products of its
/// backward pass, one where weights are frozen, and takes attention's operations at the mean rate. Floating-point
/// operations are counted as in [`ModelConfig::forward_flops_per_token`], a token attending half a sequence on average;
/// an adapter's own are left out.
pub(crate) fn measure(options: &Options) -> Result<Value> {
    let config = ModelConfig::from_dir(&options.model)?;
    let device = options.target.device()?;
    let like = (options.target.precision.kind(), device);
    let training = options.decode_rows.is_none();
    let rows = options.decode_rows.unwrap_or(options.tokens);
    let (mut seconds, mut operations) = (0.0, 0.0);
    for linear in linears(&config, rows) {
        let Linear { inputs, outputs, times, rows } = linear;
        let mut products = vec![(rows, inputs, outputs)];
        if training {
            products.push((rows, outputs, inputs));
        }
        if training && !options.frozen {
            products.push((outputs, rows, inputs));
        }
        for (m, k, n) in products {
            let flops = 2.0 * (m * k * n) as f64;
            seconds += times * product(m, k, n, like)? / rows as f64;
            operations += times * flops / rows as f64;
        }
    }
    let rate = operations / seconds;
    let forward = config.forward_flops_per_token(options.seq as f64 / 2.0);
    let per_token = match (training, options.frozen) {
        (false, _) => forward,
        (true, false) => 3.0 * forward,
        // Attention has no weights.
        (true, true) => 3.0 * forward - config.forward_flops_per_token(0.0),
    };
    Ok(json!({
        "flops_per_token": per_token,
        "gflops": rate / 1e9,
        "tokens_per_s": rate / per_token,
    }))
}

fn linears(config: &ModelConfig, rows: i64) -> Vec<Linear> {
    let (width, heads) = (config.hidden_size, config.num_attention_heads * config.head_dim);
    let key_values = 2 * config.num_key_value_heads * config.head_dim;
    let gated = i64::from(config.architecture != model::Architecture::Gpt2) + 1;
    let inner = config.intermediate_size;
    let layers = config.num_hidden_layers as f64;
    let layer = |inputs, outputs| Linear { inputs, outputs, times: layers, rows };
    vec![
        layer(width, heads + key_values),
        layer(heads, width),
        layer(width, gated * inner),
        layer(inner, width),
        Linear {
            inputs: width,
            outputs: config.vocab_size,
            times: 1.0,
            rows: rows.min(MOST_HEAD_ROWS),
        },
    ]
}

/// Median seconds of one product.
fn product(m: i64, k: i64, n: i64, like: (Kind, Device)) -> Result<f64> {
    let (a, b) = (Tensor::randn([m, k], like), Tensor::randn([k, n], like));
    let out = Tensor::empty([m, n], like);
    let times = Times::of(like.1, TIME, || {
        let _ = a.f_mm_out(&out, &b)?;
        Ok(())
    })?;
    Ok(times.median())
}
