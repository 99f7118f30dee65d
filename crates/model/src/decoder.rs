//! The decoder: embeddings, layers, final norm, and the language-model head.

mod bottleneck;
mod documents;
mod layer;
mod linear;
mod load;
mod low_rank;
mod mlp;
mod norm;
mod packed;
mod rescale;
mod rotary;
mod save;
#[cfg(test)]
mod tests;

use crate::config::{Dropout, ModelConfig, SCORE};
use crate::division::{ROOT, Ranks};
use crate::error::{Error, Result};
use crate::layout::{Init, ModelLayout, PartSpec, layout};
use crate::params::{Keep, Params};
use crate::peft::{Adapter, Module};
use crate::precision::Precision;
use crate::random::{Philox, stream_of};
use documents::Documents;
pub(crate) use layer::Layer;
pub(crate) use linear::{Change, Linear, Matrix};
pub use load::Loading;
pub(crate) use low_rank::{LowRank, Part as LowRankPart, row_lengths};
use norm::Norm;
pub(crate) use packed::Packed;
pub(crate) use rescale::{Factors, Part as RescalePart, Rescale};
use rotary::{Rotary, Rotation};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use torch_ext::attention::Varlen;
use torch_ext::checkpoint::checkpoint;

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

/// What of a layer is computed again in the backward pass instead of being kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Nothing.
    #[default]
    None,
    /// The MLP with its norm: the larger part of the memory for the lesser part of the work.
    Mlp,
    /// Everything: the layer's input alone is kept.
    Layer,
}

/// A flat row of documents, checked against a model by [`Decoder::input`].
#[derive(Debug)]
pub struct Input {
    ids: Tensor,
    positions: Tensor,
    /// With the filler.
    documents: Documents,
    tokens: i64,
}

impl Input {
    /// Number of tokens `T`.
    pub fn num_tokens(&self) -> i64 {
        self.tokens
    }
}

/// Rows are filled up to a multiple of this many tokens with a document of its own that nothing reads: matrix kernels are
/// made for each number of rows they meet, and a run whose batches all differ would make and keep thousands of them.
const TILE: usize = torch_ext::head::TILE as usize;

/// A decoder-only transformer with its output layer.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    params: Params,
    embedding: Tensor,
    position_embedding: Option<Tensor>,
    rotary: Option<Rotary>,
    layers: Vec<Layer>,
    final_norm: Norm,
    /// `[V, D]`; the embedding where tied.
    head: Option<Tensor>,
    /// `[1, D]`.
    score: Option<Tensor>,
    training: bool,
    checkpointing: Checkpointing,
    /// Each so many layers are checkpointed.
    checkpointing_interval: usize,
    embedding_dropout: f64,
    pub(crate) attached: Option<Attached>,
}

/// The adapter that a decoder has.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) adapter: Adapter,
    /// The layers that it changes.
    pub(crate) modules: Vec<Module>,
    /// The model's own parameters that train beside it.
    pub(crate) trained: BTreeSet<String>,
    /// What was taken off the weights before training, by the parameters that started as it.
    pub(crate) starts: BTreeMap<String, Tensor>,
}

impl Decoder {
    /// A new model from its config alone: normal with `initializer_range`, biases 0, norms 1, and for GPT-2 the
    /// projections into the residual stream divided by `sqrt(2 * n_layer)`, as Hugging Face does.
    ///
    /// The weights depend on config and `seed` only, not on precision, device or number of threads.
    ///
    /// # Deviations
    /// Hugging Face zeroes the embedding of `pad_token_id` in the Llama family; no row of a padding-free batch is
    /// padding, so it starts as any other here.
    pub fn init(config: &ModelConfig, seed: u64, options: &LoadOptions) -> Result<Self> {
        Self::init_over(config, seed, options, None)
    }

    /// As [`init`](Self::init), divided among `ranks` where there are some.
    ///
    /// # Errors
    /// libtorch's.
    pub fn init_over(
        config: &ModelConfig,
        seed: u64,
        options: &LoadOptions,
        ranks: Option<&Arc<dyn Ranks>>,
    ) -> Result<Self> {
        let layout = layout(config);
        let keep = if options.trainable { Keep::Trained } else { Keep::Frozen };
        let like = (options.device, options.precision);
        let mut params = Params::allocate_for(&layout, ranks, like, |_| keep)?;
        for (b, block) in layout.blocks.iter().enumerate() {
            for (p, part) in block.parts.iter().enumerate() {
                params.fill(b, p, &start_of(part, seed)?)?;
            }
        }
        params.refresh_compute()?;
        Ok(Self::assemble(config.clone(), &layout, params))
    }

    pub(crate) fn assemble(config: ModelConfig, layout: &ModelLayout, params: Params) -> Self {
        let embedding = params.leaf(layout.embedding);
        let head = match layout.lm_head {
            Some(id) => Some(params.leaf(id)),
            None => config.head.has_language_model().then(|| embedding.shallow_clone()),
        };
        let score = layout.score.map(|id| params.leaf(id));
        let layers = layout
            .layers
            .iter()
            .enumerate()
            .map(|(index, blocks)| Layer::new(&params, &config, blocks, index))
            .collect();
        Self {
            position_embedding: layout.position_embedding.map(|id| params.leaf(id)),
            rotary: Rotary::new(&config, params.device()),
            final_norm: Norm::new(&params, layout.final_norm, config.norm_eps),
            embedding_dropout: config.dropout.embedding,
            embedding,
            head,
            score,
            layers,
            config,
            params,
            training: false,
            checkpointing: Checkpointing::None,
            checkpointing_interval: 1,
            attached: None,
        }
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sets the special token ids that [`save`](Self::save) writes, for a model trained with another template.
    pub fn set_token_ids(&mut self, bos: Option<i64>, eos: &[i64], pad: Option<i64>) {
        self.config.set_token_ids(bos, eos, pad);
    }

    /// Notes mean and standard deviation of the scores, for [`save`](Self::save).
    pub fn set_score_statistics(&mut self, mean: f64, deviation: f64) {
        self.config.set_score_statistics(mean, deviation);
    }

    /// Lets the score start at 0 everywhere, as a value function's does that has seen no return; does nothing without a score.
    ///
    /// # Errors
    /// libtorch's.
    pub fn zero_score(&mut self) -> Result<()> {
        if let Some(shape) = self.params.shape(SCORE) {
            let zeros = Tensor::zeros(shape, (Kind::Float, self.device()));
            self.params.put(SCORE, &zeros)?;
            self.params.refresh_compute()?;
        }
        Ok(())
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
        self.training = training;
    }

    /// Replaces the config's dropout probabilities in this run; `config.json` keeps the source's.
    pub fn set_dropout(&mut self, dropout: Dropout) {
        self.embedding_dropout = dropout.embedding;
        for layer in &mut self.layers {
            layer.set_dropout(dropout);
        }
    }

    /// Sets the activation checkpointing of each `interval`-th layer (0 counts as 1); none at first. Values and gradients
    /// stay the same.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing, interval: usize) {
        (self.checkpointing, self.checkpointing_interval) = (checkpointing, interval.max(1));
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
        check_total(cu_seqlens, ids.len(), "ids")?;
        let row = self.filled(ids, positions)?;
        let mut cu = cu_seqlens.to_vec();
        cu.extend(row.fillers.iter().map(|filler| filler.end));
        row.input(Documents::plain(cu)?, self.device())
    }

    /// As [`input`](Self::input), for prompts with several continuations each: a prompt's tokens are in `ids` once, a
    /// continuation's positions go on from it, and `expand` lists the tokens of all documents, each of which is a prompt
    /// with one of its continuations, as indices into `ids`. `cu_seqlens` holds the starts of these documents.
    ///
    /// What comes out for a token is what it would be in a row of whole documents, but for rounding: a token sees
    /// its own prompt and continuation, and of copies of a prompt the first speaks for all.
    ///
    /// # Errors
    /// As [`input`](Self::input); a token that is in no document.
    pub fn branched_input(
        &self,
        ids: &[i64],
        positions: &[i64],
        cu_seqlens: &[i64],
        expand: &[i64],
    ) -> Result<Input> {
        check_total(cu_seqlens, expand.len(), "places")?;
        let row = self.filled(ids, positions)?;
        let (mut cu, mut expand) = (cu_seqlens.to_vec(), expand.to_vec());
        for filler in &row.fillers {
            expand.extend(filler.clone());
            cu.push(expand.len() as i64);
        }
        let documents = Documents::spread(cu, &expand, row.ids.len(), self.device())?;
        row.input(documents, self.device())
    }

    /// The checked row with the documents that fill it up to whole tiles.
    fn filled(&self, ids: &[i64], positions: &[i64]) -> Result<FilledRow> {
        self.check(ids, positions)?;
        let tokens = ids.len();
        let mut row = FilledRow {
            ids: ids.to_vec(),
            positions: positions.to_vec(),
            fillers: Vec::new(),
            tokens: tokens as i64,
        };
        let room = self.config.max_position_embeddings as usize;
        while !row.ids.len().is_multiple_of(TILE) {
            let start = row.ids.len();
            let end = (start + room).min(tokens.next_multiple_of(TILE));
            row.ids.resize(end, 0);
            row.positions.extend(0..(end - start) as i64);
            row.fillers.push(start as i64..end as i64);
        }
        Ok(row)
    }

    pub(crate) fn check(&self, ids: &[i64], positions: &[i64]) -> Result<()> {
        let (vocab, max) = (self.config.vocab_size, self.config.max_position_embeddings);
        if ids.len() != positions.len() {
            let (ids, positions) = (ids.len(), positions.len());
            return Err(Error::Input(format!("{ids} token ids but {positions} positions")));
        }
        if let Some((at, id)) = ids.iter().enumerate().find(|&(_, id)| !(0..vocab).contains(id)) {
            return Err(Error::Input(format!(
                "token id {id} (at {at}) is outside the model's vocabulary of {vocab}; was the data tokenised with \
                 another tokenizer?"
            )));
        }
        if let Some(position) = positions.iter().find(|&position| !(0..max).contains(position)) {
            return Err(Error::Input(format!(
                "position {position} is beyond the model's max_position_embeddings of {max}; use shorter sequences"
            )));
        }
        Ok(())
    }

    /// Hidden states `[T, D]` after the final norm, in the compute precision.
    pub fn hidden(&self, input: &Input) -> Result<Tensor> {
        let rotation = self.rotation(&input.positions);
        let mut hidden = self.embed(&input.ids, &input.positions, self.training)?;
        for index in 0..self.layers.len() {
            hidden = self.with_layer(index, &hidden, |hidden| {
                self.layer(index, hidden, rotation.as_ref(), &input.documents)
            })?;
        }
        self.final_norm.forward(&hidden.narrow(0, 0, input.tokens))
    }

    /// Runs a layer with its parameters there.
    fn with_layer(
        &self,
        index: usize,
        hidden: &Tensor,
        run: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.params.division() {
            Some(division) => division.through(1 + index, hidden, run),
            None => run(hidden),
        }
    }

    /// One layer of [`hidden`](Self::hidden), with its activation checkpointing.
    fn layer(
        &self,
        index: usize,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        documents: &Documents,
    ) -> Result<Tensor> {
        let (layer, training) = (&self.layers[index], self.training);
        let chosen = index.is_multiple_of(self.checkpointing_interval);
        let checkpointing = if chosen { self.checkpointing } else { Checkpointing::None };
        if checkpointing == Checkpointing::Layer {
            return self.checkpointed(layer, hidden, rotation, documents);
        }
        let mut attend = |q: &Tensor, k: &Tensor, v: &Tensor, options: &Varlen| {
            documents.attend(q, k, v, options)
        };
        let hidden = layer.attention_half(hidden, rotation, training, &mut attend)?;
        if checkpointing == Checkpointing::Mlp {
            let inner = layer.share();
            let run = move |inputs: &[Tensor]| Ok(vec![inner.mlp_half(&inputs[0], training)?]);
            return Ok(checkpoint(&[&hidden], &layer.mlp_leaves(), run)?.remove(0));
        }
        layer.mlp_half(&hidden, training)
    }

    fn checkpointed(
        &self,
        layer: &Layer,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        documents: &Documents,
    ) -> Result<Tensor> {
        let (inner, training) = (layer.share(), self.training);
        let (rotation, documents) = (rotation.map(Rotation::share), documents.share());
        let run = move |inputs: &[Tensor]| {
            let mut attend = |q: &Tensor, k: &Tensor, v: &Tensor, options: &Varlen| {
                documents.attend(q, k, v, options)
            };
            Ok(vec![inner.forward(&inputs[0], rotation.as_ref(), training, &mut attend)?])
        };
        let mut outputs = checkpoint(&[hidden], &layer.leaves(), run)?;
        Ok(outputs.remove(0))
    }

    /// Hidden states `[T, D]` before the final norm, with attention given by the caller, for the key-value cache. No
    /// dropout.
    ///
    /// `attend` gets the layer's index and what [`Layer::forward`] hands to its own.
    pub(crate) fn hidden_with(
        &self,
        input_ids: &Tensor,
        positions: &Tensor,
        packed: Option<&Packed>,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor, &Varlen) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rotation = self.rotation(positions);
        let mut hidden = self.embed(input_ids, positions, false)?;
        let layers = packed.map_or(&self.layers, |packed| &packed.layers);
        for (index, layer) in layers.iter().enumerate() {
            let mut attend = |q: &Tensor, k: &Tensor, v: &Tensor, options: &Varlen| {
                attend(index, q, k, v, options)
            };
            hidden = self.with_layer(index, &hidden, |hidden| {
                layer.forward(hidden, rotation.as_ref(), false, &mut attend)
            })?;
        }
        Ok(hidden)
    }

    /// The final norm, for callers of [`hidden_with`](Self::hidden_with) that need few of its rows.
    pub(crate) fn normalise(&self, hidden: &Tensor) -> Result<Tensor> {
        self.final_norm.forward(hidden)
    }

    fn rotation(&self, positions: &Tensor) -> Option<Rotation> {
        let kind = self.precision().kind();
        self.rotary.as_ref().map(|rotary| rotary.rotation(positions, kind))
    }

    /// The first part of the forward pass. What is outside of the layers is there from here on.
    fn embed(&self, input_ids: &Tensor, positions: &Tensor, training: bool) -> Result<Tensor> {
        if let Some(division) = self.params.division() {
            division.acquire(ROOT, Some(ROOT + 1))?;
        }
        let look_up = |table: &Tensor, ids| Tensor::embedding(table, ids, -1, false, false);
        let mut hidden = look_up(&self.embedding, input_ids);
        if let Some(table) = &self.position_embedding {
            hidden += look_up(table, positions);
        }
        if training && self.embedding_dropout > 0.0 {
            hidden = hidden.dropout(self.embedding_dropout, true);
        }
        Ok(hidden)
    }

    /// Weight `[V, D]` and bias `[V]` of the language-model head, for a fused loss. The weight is the leaf that
    /// gradients go to (the embedding where tied).
    ///
    /// # Errors
    /// The model is a reward model.
    pub fn head(&self) -> Result<(Tensor, Option<Tensor>)> {
        let head = self.head.as_ref().ok_or(Error::NoLanguageModel)?;
        Ok((head.shallow_clone(), None))
    }

    /// Logits `[.., V]` of hidden states `[.., D]`, in the compute precision.
    ///
    /// # Errors
    /// The model is a reward model.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.linear(&self.head()?.0, None::<&Tensor>))
    }

    /// Scores `[N]` of hidden states `[N, D]`: fp32, whatever the compute precision.
    ///
    /// # Errors
    /// The model has no score.
    pub fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        let score = self.score.as_ref().ok_or(Error::NoScore)?;
        let product = hidden.to_kind(Kind::Float).f_matmul(&score.to_kind(Kind::Float).tr())?;
        Ok(product.squeeze_dim(-1))
    }
}

/// What [`Decoder::filled`] makes.
struct FilledRow {
    ids: Vec<i64>,
    positions: Vec<i64>,
    /// Index ranges of the documents that nothing reads.
    fillers: Vec<Range<i64>>,
    /// Without them.
    tokens: i64,
}

impl FilledRow {
    fn input(self, documents: Documents, device: Device) -> Result<Input> {
        Ok(Input {
            ids: Tensor::f_from_slice(&self.ids)?.to_device(device),
            positions: Tensor::f_from_slice(&self.positions)?.to_device(device),
            documents,
            tokens: self.tokens,
        })
    }
}

fn check_total(cu_seqlens: &[i64], count: usize, what: &str) -> Result<()> {
    let total = cu_seqlens.last().copied().unwrap_or(0);
    if total as usize == count {
        return Ok(());
    }
    Err(Error::Input(format!("cu_seqlens ends at {total} but there are {count} {what}")))
}

/// What a parameter is in a fresh model: of the parameter's name and `seed` alone.
pub(crate) fn start_of(part: &PartSpec, seed: u64) -> Result<Tensor> {
    let mut values = vec![0.0; part.shape.iter().product::<i64>() as usize];
    let (random, stream) = (Philox::new(seed), stream_of(&part.name));
    match part.init {
        Init::Ones => values.fill(1.0),
        Init::Zeros => {}
        Init::Normal(std) => random.fill_normal(stream, std, &mut values),
        Init::Uniform(bound) => random.fill_uniform(stream, bound, &mut values),
    }
    Ok(Tensor::f_from_slice(&values)?.view(part.shape.as_slice()))
}
