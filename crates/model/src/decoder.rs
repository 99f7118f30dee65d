//! The decoder: embeddings, layers, final norm, and the language-model head.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::params::Params;
use crate::precision::Precision;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// How a model is brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where its tensors live.
    pub device: Device,
    /// What its matrix products run in.
    pub precision: Precision,
    /// Keeps fp32 masters and gradients; without, the model is frozen and holds compute copies only.
    pub trainable: bool,
}

impl Default for LoadOptions {
    /// Frozen fp32 on the CPU.
    fn default() -> Self {
        Self { device: Device::Cpu, precision: Precision::Fp32, trainable: false }
    }
}

/// A flat row of documents, checked against a model by [`Decoder::input`].
#[derive(Debug)]
pub struct Input {
    input_ids: Tensor,
    positions: Tensor,
}

/// A decoder-only transformer with its language-model head.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    params: Params,
}

impl Decoder {
    /// A new model from its config alone: normal with `initializer_range`, biases 0, norms 1, and for GPT-2 the
    /// projections into the residual stream divided by `sqrt(2 * n_layer)`, as Hugging Face does.
    ///
    /// The weights depend on config and `seed` only, not on precision or device.
    ///
    /// # Deviations
    /// Hugging Face zeroes the embedding of `pad_token_id`; no row of a padding-free batch is padding, so it starts
    /// as any other here.
    pub fn init(config: &ModelConfig, seed: u64, options: &LoadOptions) -> Result<Self> {
        let _ = (config, seed, options);
        unimplemented!()
    }

    /// Reads `config.json` and the safetensors files of a Hugging Face directory.
    ///
    /// # Errors
    /// All problems of the config at once; all tensors that are missing, unexpected or of another shape at once;
    /// damaged files by name.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        let _ = (dir, options);
        unimplemented!()
    }

    /// Writes `config.json` and the weights in Hugging Face layout into `dir` (made where absent): `model.safetensors`,
    /// or shards of at most `max_shard_bytes` with an index. Returns the files written.
    pub fn save(&self, dir: &Path, dtype: Precision, max_shard_bytes: u64) -> Result<Vec<PathBuf>> {
        let _ = (dir, dtype, max_shard_bytes);
        unimplemented!()
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters, to train them.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// Where the model is.
    pub fn device(&self) -> Device {
        self.params.device()
    }

    /// Its compute precision.
    pub fn precision(&self) -> Precision {
        self.params.precision()
    }

    /// Switches dropout on (if the config has any) or off; off at first.
    pub fn set_training(&mut self, training: bool) {
        let _ = training;
        unimplemented!()
    }

    /// Switches activation checkpointing of each layer on or off; off at first.
    pub fn set_checkpointing(&mut self, checkpointing: bool) {
        let _ = checkpointing;
        unimplemented!()
    }

    /// Checks a flat row of documents and brings it to the model's device.
    ///
    /// `ids` and `positions` have one entry a token; `cu_seqlens` holds the start of every document and the total
    /// length, so `[0, ..., T]`.
    ///
    /// # Errors
    /// A token id outside the vocabulary, a position beyond `max_position_embeddings` (both numbers named), lengths that
    /// disagree.
    pub fn input(&self, ids: &[i64], positions: &[i64], cu_seqlens: &[i64]) -> Result<Input> {
        let _ = (ids, positions, cu_seqlens);
        unimplemented!()
    }

    /// Hidden states `[T, D]` after the final norm, in the compute precision.
    pub fn hidden(&self, input: &Input) -> Result<Tensor> {
        let _ = (&input.input_ids, &input.positions);
        unimplemented!()
    }

    /// Weight `[V, D]` and bias `[V]` of the language-model head, for a fused loss. The weight is the leaf that
    /// gradients go to (the embedding where tied).
    pub fn head(&self) -> (Tensor, Option<Tensor>) {
        unimplemented!()
    }

    /// Logits `[.., V]` of hidden states `[.., D]`, in the compute precision.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let _ = hidden;
        unimplemented!()
    }
}
