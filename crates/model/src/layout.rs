//! Which tensors a model has: Hugging Face names, shapes, how each starts, and which are stored fused.
//!
//! Tensors that one matrix product can serve (`q_proj`, `k_proj`, `v_proj`; `gate_proj`, `up_proj`) lie in one block,
//! row ranges of which are the tensors that Hugging Face knows. Files, optimiser and PEFT see the parts by name; the
//! forward pass sees the block.

use crate::config::{Architecture, ModelConfig, SCORE};

/// How a tensor starts in a model made from a config alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    /// Normal with this standard deviation.
    Normal(f64),
    /// All ones: norm weights.
    Ones,
    /// All zeros: biases.
    Zeros,
    /// Uniform between minus and plus this.
    Uniform(f64),
}

/// One tensor with its Hugging Face name.
#[derive(Debug, Clone)]
pub(crate) struct PartSpec {
    /// Canonical Hugging Face name, as `save_pretrained` of the causal-LM class writes it.
    pub(crate) name: String,
    /// Shape as Hugging Face stores it.
    pub(crate) shape: Vec<i64>,
    /// Start value.
    pub(crate) init: Init,
    /// Its learning rate is so many times the others'.
    pub(crate) rate: f64,
}

impl PartSpec {
    pub(crate) fn new(name: String, shape: &[i64], init: Init) -> Self {
        Self { name, shape: shape.to_vec(), init, rate: 1.0 }
    }

    /// The module it is a parameter of: its name without the last word.
    pub(crate) fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }
}

/// Tensors stored one after another along dimension 0 of one allocation.
#[derive(Debug, Clone)]
pub(crate) struct BlockSpec {
    /// At least one part; all agree in every dimension but the first.
    pub(crate) parts: Vec<PartSpec>,
}

impl BlockSpec {
    /// Shape of the whole block.
    pub(crate) fn shape(&self) -> Vec<i64> {
        let mut shape = self.parts[0].shape.clone();
        shape[0] = self.parts.iter().map(|part| part.shape[0]).sum();
        shape
    }
}

/// Index of a block in the order of [`blocks`].
pub(crate) type BlockId = usize;

/// Weight and, where the architecture has one, bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) weight: BlockId,
    pub(crate) bias: Option<BlockId>,
}

/// The blocks of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerLayout {
    pub(crate) attention_norm: Affine,
    pub(crate) qkv: Affine,
    pub(crate) q_norm: Option<BlockId>,
    pub(crate) k_norm: Option<BlockId>,
    pub(crate) attention_out: Affine,
    pub(crate) mlp_norm: Affine,
    /// GPT-2: `c_fc`. Llama family: `gate_proj` and `up_proj` in one block.
    pub(crate) mlp_in: Affine,
    pub(crate) mlp_out: Affine,
}

impl LayerLayout {
    /// Its linear layers.
    pub(crate) fn linears(&self) -> [Affine; 4] {
        [self.qkv, self.attention_out, self.mlp_in, self.mlp_out]
    }
}

/// All blocks of a model.
#[derive(Debug, Clone)]
pub(crate) struct ModelLayout {
    pub(crate) blocks: Vec<BlockSpec>,
    pub(crate) embedding: BlockId,
    pub(crate) position_embedding: Option<BlockId>,
    pub(crate) layers: Vec<LayerLayout>,
    pub(crate) final_norm: Affine,
    /// The untied `lm_head`; `None` where the embedding serves.
    pub(crate) lm_head: Option<BlockId>,
    /// `score`, where the model has one.
    pub(crate) score: Option<BlockId>,
}

impl ModelLayout {
    /// Blocks that are used together: what is outside of the layers, then each layer's.
    pub(crate) fn units(&self) -> Vec<Vec<BlockId>> {
        let of_layer = |layer: &LayerLayout| {
            let norms = [layer.attention_norm, layer.mlp_norm];
            let affines = norms.into_iter().chain(layer.linears());
            let blocks = affines.flat_map(|affine| [Some(affine.weight), affine.bias]);
            let mut blocks: Vec<BlockId> =
                blocks.chain([layer.q_norm, layer.k_norm]).flatten().collect();
            blocks.sort_unstable();
            blocks
        };
        let layers: Vec<_> = self.layers.iter().map(of_layer).collect();
        let outside = (0..self.blocks.len()).filter(|id| !layers.iter().flatten().any(|b| b == id));
        std::iter::once(outside.collect()).chain(layers.iter().cloned()).collect()
    }
}

/// Collects blocks and hands out their ids.
struct Builder {
    blocks: Vec<BlockSpec>,
    std: f64,
}

impl Builder {
    fn block(&mut self, parts: Vec<PartSpec>) -> BlockId {
        self.blocks.push(BlockSpec { parts });
        self.blocks.len() - 1
    }

    fn single(&mut self, name: String, shape: &[i64], init: Init) -> BlockId {
        self.block(vec![PartSpec::new(name, shape, init)])
    }

    /// Linear layers `prefix.{name}` sharing an input, stored `[out, in]`.
    fn linears(&mut self, prefix: &str, names: &[(&str, i64)], width: i64, bias: bool) -> Affine {
        let init = Init::Normal(self.std);
        let part = |name: &str, suffix: &str, shape: &[i64], init| {
            PartSpec::new(format!("{prefix}.{name}.{suffix}"), shape, init)
        };
        let weights =
            names.iter().map(|&(n, out)| part(n, "weight", &[out, width], init)).collect();
        let weight = self.block(weights);
        let bias = bias.then(|| {
            let biases =
                names.iter().map(|&(n, out)| part(n, "bias", &[out], Init::Zeros)).collect();
            self.block(biases)
        });
        Affine { weight, bias }
    }

    /// GPT-2's `Conv1D`, stored `[in, out]`.
    fn conv1d(&mut self, name: &str, input: i64, output: i64, std: f64) -> Affine {
        let weight = self.single(format!("{name}.weight"), &[input, output], Init::Normal(std));
        let bias = Some(self.single(format!("{name}.bias"), &[output], Init::Zeros));
        Affine { weight, bias }
    }

    fn norm(&mut self, name: &str, width: i64, bias: bool) -> Affine {
        let weight = self.single(format!("{name}.weight"), &[width], Init::Ones);
        let bias = bias.then(|| self.single(format!("{name}.bias"), &[width], Init::Zeros));
        Affine { weight, bias }
    }
}

/// The blocks of the model that `config` describes.
pub(crate) fn layout(config: &ModelConfig) -> ModelLayout {
    let builder = Builder { blocks: Vec::new(), std: config.initializer_range };
    match config.architecture {
        Architecture::Gpt2 => gpt2(builder, config),
        Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 | Architecture::Qwen3 => {
            llama(builder, config)
        }
    }
}

fn gpt2(mut b: Builder, config: &ModelConfig) -> ModelLayout {
    let (width, std) = (config.hidden_size, config.initializer_range);
    let normal = Init::Normal(std);
    // As in the GPT-2 paper and Hugging Face: what is added to the residual stream starts smaller with depth.
    let residual_std = std / (2.0 * config.num_hidden_layers as f64).sqrt();
    let embedding = b.single("transformer.wte.weight".into(), &[config.vocab_size, width], normal);
    let positions = &[config.max_position_embeddings, width];
    let position_embedding = Some(b.single("transformer.wpe.weight".into(), positions, normal));
    let layers = (0..config.num_hidden_layers)
        .map(|i| {
            let at = format!("transformer.h.{i}");
            LayerLayout {
                attention_norm: b.norm(&format!("{at}.ln_1"), width, true),
                qkv: b.conv1d(&format!("{at}.attn.c_attn"), width, 3 * width, std),
                q_norm: None,
                k_norm: None,
                attention_out: b.conv1d(&format!("{at}.attn.c_proj"), width, width, residual_std),
                mlp_norm: b.norm(&format!("{at}.ln_2"), width, true),
                mlp_in: b.conv1d(&format!("{at}.mlp.c_fc"), width, config.intermediate_size, std),
                mlp_out: b.conv1d(
                    &format!("{at}.mlp.c_proj"),
                    config.intermediate_size,
                    width,
                    residual_std,
                ),
            }
        })
        .collect();
    let final_norm = b.norm("transformer.ln_f", width, true);
    let lm_head = lm_head(&mut b, config);
    let score = score(&mut b, config);
    ModelLayout {
        blocks: b.blocks,
        embedding,
        position_embedding,
        layers,
        final_norm,
        lm_head,
        score,
    }
}

fn llama(mut b: Builder, config: &ModelConfig) -> ModelLayout {
    let width = config.hidden_size;
    let inner = config.intermediate_size;
    let (q, kv) = (config.num_attention_heads, config.num_key_value_heads);
    let (q, kv) = (q * config.head_dim, kv * config.head_dim);
    let normal = Init::Normal(config.initializer_range);
    let embedding =
        b.single("model.embed_tokens.weight".into(), &[config.vocab_size, width], normal);
    let layers = (0..config.num_hidden_layers)
        .map(|i| {
            let at = format!("model.layers.{i}");
            let attn = format!("{at}.self_attn");
            let mlp = format!("{at}.mlp");
            let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
            let mut head_norm = |name: &str| {
                config.qk_norm.then(|| {
                    b.single(format!("{attn}.{name}.weight"), &[config.head_dim], Init::Ones)
                })
            };
            let (q_norm, k_norm) = (head_norm("q_norm"), head_norm("k_norm"));
            LayerLayout {
                attention_norm: b.norm(&format!("{at}.input_layernorm"), width, false),
                qkv: b.linears(&attn, &qkv, width, config.qkv_bias),
                q_norm,
                k_norm,
                attention_out: b.linears(&attn, &[("o_proj", width)], q, config.attention_out_bias),
                mlp_norm: b.norm(&format!("{at}.post_attention_layernorm"), width, false),
                mlp_in: b.linears(
                    &mlp,
                    &[("gate_proj", inner), ("up_proj", inner)],
                    width,
                    config.mlp_bias,
                ),
                mlp_out: b.linears(&mlp, &[("down_proj", width)], inner, config.mlp_bias),
            }
        })
        .collect();
    let final_norm = b.norm("model.norm", width, false);
    let lm_head = lm_head(&mut b, config);
    let score = score(&mut b, config);
    ModelLayout {
        blocks: b.blocks,
        embedding,
        position_embedding: None,
        layers,
        final_norm,
        lm_head,
        score,
    }
}

fn lm_head(b: &mut Builder, config: &ModelConfig) -> Option<BlockId> {
    let init = Init::Normal(config.initializer_range);
    let shape = [config.vocab_size, config.hidden_size];
    let own = config.head.has_language_model() && !config.tie_word_embeddings;
    own.then(|| b.single("lm_head.weight".into(), &shape, init))
}

/// Starts with a deviation of `1 / sqrt(D + 1)`: scores of about unit size (Stiennon et al. 2020, arXiv:2009.01325, and the
/// code of Ziegler et al. 2019, arXiv:1909.08593).
fn score(b: &mut Builder, config: &ModelConfig) -> Option<BlockId> {
    let init = Init::Normal(1.0 / ((config.hidden_size + 1) as f64).sqrt());
    let has = config.head.has_score();
    has.then(|| b.single(SCORE.into(), &[1, config.hidden_size], init))
}
