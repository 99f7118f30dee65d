//! One transformer layer over flat rows.

use super::bottleneck::Bottleneck;
use super::linear::{Linear, WeightLayout};
use super::mlp::Mlp;
use super::norm::Norm;
use super::rotary::Rotation;
use crate::config::{Architecture, Dropout, ModelConfig};
use crate::error::Result;
use crate::layout::{Affine, LayerLayout};
use crate::params::Params;
use tch::Tensor;
use torch_ext::attention::Varlen;

/// What attends: from query `[T, H, E]`, key and value `[T, Hkv, E]` to `[T, H, E]`.
pub(crate) type Attend<'a> =
    &'a mut dyn FnMut(&Tensor, &Tensor, &Tensor, &Varlen) -> Result<Tensor>;

/// Attention and MLP, each behind a norm and added to the residual stream.
#[derive(Debug)]
pub(crate) struct Layer {
    attention_norm: Norm,
    qkv: Linear,
    /// Norms of each head's query and key (Qwen3).
    head_norms: Option<[Norm; 2]>,
    attention_out: Linear,
    /// What an adapter puts behind attention and MLP.
    pub(crate) bottlenecks: [Option<Bottleneck>; 2],
    mlp_norm: Norm,
    mlp: Mlp,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    attention: Varlen,
    residual_dropout: f64,
}

impl Layer {
    pub(crate) fn new(
        params: &Params,
        config: &ModelConfig,
        layout: &LayerLayout,
        index: usize,
    ) -> Self {
        let gpt2 = config.architecture == Architecture::Gpt2;
        let stored = if gpt2 { WeightLayout::InOut } else { WeightLayout::OutIn };
        let linear = |affine| Linear::new(params, affine, stored);
        let norm = |affine| Norm::new(params, affine, config.norm_eps);
        let head_norm = |block| norm(Affine { weight: block, bias: None });
        Self {
            attention_norm: norm(layout.attention_norm),
            qkv: linear(layout.qkv),
            head_norms: layout.q_norm.zip(layout.k_norm).map(|(q, k)| [head_norm(q), head_norm(k)]),
            attention_out: linear(layout.attention_out),
            bottlenecks: [None, None],
            mlp_norm: norm(layout.mlp_norm),
            mlp: Mlp {
                input: linear(layout.mlp_in),
                output: linear(layout.mlp_out),
                activation: config.activation,
                gated: !gpt2,
            },
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            attention: Varlen {
                scale: Some(config.attention_scales[index]),
                sliding_window: config.sliding_windows[index],
                dropout_p: config.dropout.attention,
            },
            residual_dropout: config.dropout.residual,
        }
    }

    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            attention_norm: self.attention_norm.share(),
            qkv: self.qkv.share(),
            head_norms: self.head_norms.as_ref().map(|[q, k]| [q.share(), k.share()]),
            attention_out: self.attention_out.share(),
            bottlenecks: self.bottlenecks.each_ref().map(|b| b.as_ref().map(Bottleneck::share)),
            mlp_norm: self.mlp_norm.share(),
            mlp: self.mlp.share(),
            ..*self
        }
    }

    /// A handle on the same tensors whose linear layers are packed for inputs of about `rows` rows, to run without
    /// gradients.
    pub(crate) fn pack(&self, rows: i64) -> Result<Self> {
        let mut layer = self.share();
        for linear in layer.linears_mut() {
            linear.pack(rows)?;
        }
        Ok(layer)
    }

    /// In the order of [`LayerLayout::linears`].
    pub(super) fn linear_mut(&mut self, slot: usize) -> &mut Linear {
        match slot {
            0 => &mut self.qkv,
            1 => &mut self.attention_out,
            2 => &mut self.mlp.input,
            _ => &mut self.mlp.output,
        }
    }

    /// In the order of [`LayerLayout::linears`].
    pub(crate) fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.attention_out, &self.mlp.input, &self.mlp.output]
    }

    /// In the order of [`LayerLayout::linears`].
    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.qkv, &mut self.attention_out, &mut self.mlp.input, &mut self.mlp.output]
    }

    pub(crate) fn set_dropout(&mut self, dropout: Dropout) {
        self.attention.dropout_p = dropout.attention;
        self.residual_dropout = dropout.residual;
    }

    /// The leaves that gradients go to.
    pub(crate) fn leaves(&self) -> Vec<&Tensor> {
        let mut all: Vec<&Tensor> = Vec::new();
        all.extend(self.attention_norm.leaves());
        all.extend(self.qkv.leaves());
        all.extend(self.head_norms.iter().flatten().flat_map(Norm::leaves));
        all.extend(self.attention_out.leaves());
        all.extend(self.bottlenecks[0].iter().flat_map(Bottleneck::leaves));
        all.extend(self.mlp_leaves());
        all
    }

    /// The leaves that the MLP's half uses.
    pub(crate) fn mlp_leaves(&self) -> Vec<&Tensor> {
        let linears = [&self.mlp.input, &self.mlp.output];
        let behind = self.bottlenecks[1].iter().flat_map(Bottleneck::leaves);
        let all = linears.into_iter().flat_map(Linear::leaves).chain(behind);
        self.mlp_norm.leaves().chain(all).collect()
    }

    /// `hidden [T, D]` to `[T, D]`. `training` switches dropout on.
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        training: bool,
        attend: Attend<'_>,
    ) -> Result<Tensor> {
        self.mlp_half(&self.attention_half(hidden, rotation, training, attend)?, training)
    }

    /// The first half: attention, added to `hidden`.
    pub(crate) fn attention_half(
        &self,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        training: bool,
        attend: Attend<'_>,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.forward(hidden)?;
        let [q, k, v] = self.query_key_value(&normed, rotation, training)?;
        let dropout_p = if training { self.attention.dropout_p } else { 0.0 };
        let attended = attend(&q, &k, &v, &Varlen { dropout_p, ..self.attention })?;
        let attended = attended.reshape([-1, self.heads * self.head_dim]);
        let behind = self.bottlenecks[0].as_ref();
        add_to(hidden, &self.attention_out, &attended, behind, self.dropout_p(training), training)
    }

    /// The second half: the MLP, added to `hidden`.
    pub(crate) fn mlp_half(&self, hidden: &Tensor, training: bool) -> Result<Tensor> {
        let inner = self.mlp.inner(&self.mlp_norm.forward(hidden)?, training)?;
        let behind = self.bottlenecks[1].as_ref();
        add_to(hidden, &self.mlp.output, &inner, behind, self.dropout_p(training), training)
    }

    fn dropout_p(&self, training: bool) -> f64 {
        if training { self.residual_dropout } else { 0.0 }
    }

    fn query_key_value(
        &self,
        normed: &Tensor,
        rotation: Option<&Rotation>,
        training: bool,
    ) -> Result<[Tensor; 3]> {
        let (heads, kv_heads, size) = (self.heads, self.kv_heads, self.head_dim);
        let qkv = self.qkv.forward(normed, training)?;
        if let (Some(rotation), None) = (rotation, &self.head_norms) {
            return rotation.split(&qkv, heads, kv_heads, size);
        }
        let tokens = qkv.size()[0];
        let parts = qkv
            .view([tokens, heads + 2 * kv_heads, size])
            .split_with_sizes([heads, kv_heads, kv_heads], 1);
        let [mut q, mut k, v]: [Tensor; 3] = parts
            .try_into()
            .map_err(|_| crate::Error::Input("split of query, key, value".into()))?;
        if let Some([q_norm, k_norm]) = &self.head_norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        if let Some(rotation) = rotation {
            (q, k) = (rotation.rotate(&q)?, rotation.rotate(&k)?);
        }
        Ok([q, k, v])
    }
}

/// `hidden` plus what a sub-layer's last linear layer makes of `x`, through the bottleneck behind it where there is one.
fn add_to(
    hidden: &Tensor,
    linear: &Linear,
    x: &Tensor,
    behind: Option<&Bottleneck>,
    dropout_p: f64,
    training: bool,
) -> Result<Tensor> {
    if behind.is_none() && dropout_p == 0.0 {
        return linear.forward_onto(hidden, x, training);
    }
    let mut out = linear.forward(x, training)?;
    if dropout_p > 0.0 {
        out = out.dropout(dropout_p, true);
    }
    Ok(match behind {
        Some(behind) => behind.forward(&out)? + hidden,
        None => out + hidden,
    })
}
