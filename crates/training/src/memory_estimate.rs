//! How much memory a training run will need, from its config alone.

use data::batch::BatchSize;
use model::{Architecture, Checkpointing, ModelConfig, Precision};

use crate::peft;
use crate::settings::Train;
use crate::world::bucket_bytes;

/// Bytes in each process by what they are for. An estimate: libtorch itself (about 300 MB) and allocator slack come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// fp32 masters, and the compute copies where they are apart; of a divided model what a pass has whole at a time.
    pub weights: u64,
    /// fp32 gradients, and those of the compute copies where several micro-batches make a step.
    pub gradients: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// What the backward pass needs of the forward pass of one micro-batch, and the output layer's chunk of logits.
    pub activations: u64,
}

impl MemoryEstimate {
    /// For training all parameters of a model, or an adapter, in so many processes; rows have at most `longest_row` tokens.
    pub fn new(
        config: &ModelConfig,
        train: &Train,
        peft: Option<&peft::Plan>,
        longest_row: u64,
        processes: usize,
    ) -> Self {
        let stage = if processes > 1 { train.zero_stage } else { 0 };
        let ranks = processes.max(1) as u64;
        // What a process has of something that is divided from this stage on.
        let share = |from: u8, bytes: u64| if stage < from { bytes } else { bytes.div_ceil(ranks) };
        let adapted = peft.map(|plan| plan.sizes(config, train.precision));
        let (parameters, frozen) = adapted.unwrap_or((config.num_parameters(), 0));
        let bytes = train.precision.size() as u64;
        let copies = if train.precision == Precision::Fp32 { 0 } else { bytes };
        let step = match train.batch_size {
            BatchSize::Tokens(tokens) => tokens as u64,
            // Of a prompt's pairs there is at least one.
            BatchSize::Sequences(rows) | BatchSize::Prompts(rows) => {
                (rows as u64).saturating_mul(longest_row)
            }
        }
        .div_ceil(ranks);
        let tokens = (train.micro_batch_tokens as u64).min(step).max(longest_row);
        // The copies' gradients go as the masters' come, and meet them from the second micro-batch on.
        let again = if tokens < step { copies } else { 0 };
        let buckets = (bucket_bytes(processes) as u64).saturating_mul(2);
        Self {
            weights: match (stage, peft) {
                (..3, _) => frozen + parameters * (4 + copies),
                (_, None) => share(3, parameters * 4) + config.num_gathered_parameters() * bytes,
                // Of the model below an adapter, what is in 4 bits is not divided.
                (_, Some(plan)) => {
                    let below = if plan.quantizes() { frozen } else { share(3, frozen) };
                    let gathered =
                        if plan.quantizes() { 0 } else { config.num_gathered_parameters() * bytes };
                    below + gathered + parameters * (4 + copies)
                }
            },
            gradients: if stage < 2 {
                parameters * (4 + again)
            } else {
                share(2, parameters * 4) + buckets.min(parameters * 4)
            },
            // In 8 bits, embeddings aside; vectors are too few to count.
            optimizer: share(
                1,
                if train.optimizer.optim_bits == 8 && peft.is_none() {
                    let looked_up = config.num_embedding_parameters();
                    (parameters - looked_up) * 2 + looked_up * 8
                } else {
                    parameters * 8
                },
            ),
            activations: activations(config, train, tokens),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }
}

/// Per token and layer the backward pass keeps: both norms' inputs and outputs, query, key and value before and after
/// the rotation, the attention's output, and the MLP's inner activations.
fn activations(config: &ModelConfig, train: &Train, tokens: u64) -> u64 {
    let size = |n: i64| n as u64;
    let width = size(config.hidden_size);
    let heads = size(config.num_attention_heads * config.head_dim);
    let keys = size(config.num_key_value_heads * config.head_dim);
    let inner = size(config.intermediate_size);
    let mlp = if config.architecture == Architecture::Gpt2 { 2 * inner } else { 3 * inner };
    let layer = 4 * width + 2 * (heads + 2 * keys) + heads + mlp;
    let layers = size(config.num_hidden_layers);
    let interval = train.checkpointing_interval.max(1) as u64;
    let (checkpointed, again) = match train.activation_checkpointing {
        Checkpointing::None => (layer, 0),
        Checkpointing::Mlp => (layer - mlp - width, mlp + width),
        Checkpointing::Layer => (width, layer),
    };
    let count = layers.div_ceil(interval);
    let kept = count * checkpointed + (layers - count) * layer + again;
    let bytes = train.precision.size() as u64;
    // The fused head holds one chunk of logits, of which it makes their gradient, and an fp32 gradient of its weight.
    let rows = size(torch_ext::head::chunk_rows(config.vocab_size)).min(tokens);
    let chunk = rows * size(config.vocab_size) * bytes;
    let head = size(config.vocab_size) * width * 4;
    tokens * (kept + 4 * width) * bytes + chunk + head
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn train(extra: &str) -> Train {
        let text = format!(
            "steps = 1\nbatch_size.tokens = 1024\nmicro_batch_tokens = 512\noptimizer.learning_rate = 1e-3\n\
             schedule.constant = {{}}\n{extra}"
        );
        toml::from_str(&text).unwrap()
    }

    fn llama() -> ModelConfig {
        ModelConfig::from_json(&json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64,
        }))
        .unwrap()
    }

    #[test]
    fn sixteen_bytes_a_parameter_in_fp32_and_twenty_in_bf16() {
        let config = llama();
        let n = config.num_parameters();
        let plain = MemoryEstimate::new(&config, &train(""), None, 64, 1);
        assert_eq!(plain.weights + plain.gradients + plain.optimizer, 16 * n);
        let half = MemoryEstimate::new(&config, &train("precision = \"bf16\""), None, 64, 1);
        assert_eq!(half.weights + half.gradients + half.optimizer, 20 * n);
        let mut whole = train("precision = \"bf16\"");
        whole.micro_batch_tokens = 1024;
        let whole = MemoryEstimate::new(&config, &whole, None, 64, 1);
        assert_eq!(whole.weights + whole.gradients + whole.optimizer, 18 * n);
        let eight = MemoryEstimate::new(&config, &train("optimizer.optim_bits = 8"), None, 64, 1);
        assert_eq!(eight.optimizer, 2 * (n - 800) + 8 * 800);
        assert!(half.activations < plain.activations);
        let frugal = MemoryEstimate::new(
            &config,
            &train("activation_checkpointing = \"layer\""),
            None,
            64,
            1,
        );
        assert!(frugal.activations < plain.activations);
        let part =
            MemoryEstimate::new(&config, &train("activation_checkpointing = \"mlp\""), None, 64, 1);
        assert!(frugal.activations < part.activations && part.activations < plain.activations);
        assert_eq!(plain.total(), 16 * n + plain.activations);
    }

    #[test]
    fn each_of_two_processes_has_half_of_what_is_divided() {
        let config = llama();
        let n = config.num_parameters();
        // Embedding, output layer and final norm, and two layers: 4 matrices of 8 by 8, 3 of 8 by 16, two norms.
        let whole = 2 * 800 + 8 + 2 * (4 * 64 + 3 * 128 + 16);
        assert_eq!(config.num_gathered_parameters(), whole);
        let at = |stage: u8| {
            let train = train(&format!("precision = \"bf16\"\nzero_stage = {stage}"));
            let one = MemoryEstimate::new(&config, &train, None, 64, 1);
            // 1,024 tokens a step: two micro-batches in one process, one in each of two.
            assert_eq!((one.weights, one.gradients, one.optimizer), (6 * n, 6 * n, 8 * n));
            let two = MemoryEstimate::new(&config, &train, None, 64, 2);
            assert_eq!(two.activations, one.activations);
            (two.weights, two.gradients, two.optimizer)
        };
        assert_eq!(at(0), (6 * n, 4 * n, 8 * n));
        assert_eq!(at(1), (6 * n, 4 * n, 4 * n));
        // Less than a bucket of gradients comes together at a time.
        assert_eq!(at(2), (6 * n, 2 * n + 4 * n, 4 * n));
        assert_eq!(at(3), (2 * n + 2 * whole, 2 * n + 4 * n, 4 * n));
    }
}
