//! `RMSNorm` and `LayerNorm`, computed in fp32 whatever the precision of their input.

use crate::error::Result;
use crate::layout::Affine;
use crate::params::Params;
use tch::{Tensor, no_grad};
use torch_ext::autograd::{self, SavedTensor};

/// A norm over the last dimension.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Tensor,
    /// Present: `LayerNorm`. Absent: `RMSNorm`.
    pub(crate) bias: Option<Tensor>,
    pub(crate) eps: f64,
}

impl Norm {
    pub(crate) fn new(params: &Params, affine: Affine, eps: f64) -> Self {
        let bias = affine.bias.map(|block| params.leaf(block));
        Self { weight: params.leaf(affine.weight), bias, eps }
    }

    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Self { weight: self.weight.shallow_clone(), bias, eps: self.eps }
    }

    /// The leaves that gradients go to.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    /// `x [.., D]` normalised over its last dimension.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.weight.size();
        match &self.bias {
            Some(bias) => Ok(x.layer_norm(width, Some(&self.weight), Some(bias), self.eps, true)),
            None => rms_norm(x, &self.weight, self.eps),
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, `x [.., D]`, `weight [D]`.
///
/// Paper: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
///
/// libtorch's kernel forward; backward as one node here, because libtorch's is a chain of a dozen passes that took twice
/// as long.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (out, scale) =
        no_grad(|| x.detach().internal_fused_rms_norm(weight.size(), Some(&weight.detach()), eps));
    if !autograd::grad_enabled() || !(x.requires_grad() || weight.requires_grad()) {
        return Ok(out);
    }
    let saved = [SavedTensor::new(x)?, SavedTensor::new(&scale)?, SavedTensor::new(weight)?];
    let needs_weight = weight.requires_grad();
    let mut out = autograd::custom("rms_norm", &[x, weight], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None, None]) };
        let [x, scale, weight] = [saved[0].get()?, saved[1].get()?, saved[2].get()?];
        let (to_x, to_weight) = rms_norm_backward(grad, x, scale, weight);
        Ok(vec![Some(to_x), needs_weight.then_some(to_weight)])
    })?;
    Ok(out.remove(0))
}

/// Numbers of a block of rows that backward works on at a time, so that its intermediates stay in the cache.
const BLOCK: i64 = 1 << 20;

/// Gradients of `x` and `weight`, in fp32 inside. With `n = x * scale` the normalised input and `g` the gradient:
/// to the weight `sum(g * n)`, to the input `scale * (g * w - n * mean(g * w * n))`.
fn rms_norm_backward(
    grad: &Tensor,
    x: &Tensor,
    scale: &Tensor,
    weight: &Tensor,
) -> (Tensor, Tensor) {
    let (width, kind, float) = (weight.size()[0], x.kind(), scale.kind());
    let [grad, rows] = [grad, x].map(|t| t.reshape([-1, width]));
    let scale = scale.reshape([-1, 1]);
    let weight_f = weight.to_kind(float);
    let to_x = rows.empty_like();
    let mut to_weight = weight_f.zeros_like();
    let count = rows.size()[0];
    let block = if x.device().is_cuda() { count } else { (BLOCK / width).max(1) };
    let mut start = 0;
    while start < count {
        let len = block.min(count - start);
        let [grad, rows, scale] =
            [&grad, &rows, &scale].map(|t| t.narrow(0, start, len).to_kind(float));
        let normed = rows * &scale;
        let product = &grad * &normed;
        let _ = to_weight.g_add_(&product.sum_dim_intlist(0, false, float));
        let minus_mean = product.mv(&weight_f).unsqueeze(1) / -(width as f64);
        let mut part = grad * &weight_f;
        let _ = part.addcmul_(&normed, &minus_mean);
        to_x.narrow(0, start, len).copy_(&part.g_mul_(&scale));
        start += len;
    }
    (to_x.to_kind(kind).view(x.size().as_slice()), to_weight.to_kind(weight.kind()))
}
