//! A linear layer: the seam at which low-rank, quantised and bottleneck adapters attach.

use crate::layout::Affine;
use crate::params::Params;
use tch::Tensor;

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightLayout {
    /// `[out, in]`, as `nn.Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// `x W + b` over flat rows. The weight may serve several Hugging Face layers side by side.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) layout: WeightLayout,
}

impl Linear {
    pub(crate) fn new(params: &Params, affine: Affine, layout: WeightLayout) -> Self {
        let bias = affine.bias.map(|block| params.leaf(block));
        Self { weight: params.leaf(affine.weight), bias, layout }
    }

    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            layout: self.layout,
        }
    }

    /// The leaves that gradients go to.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    /// The weight as a matrix `[in, out]`, without a copy.
    fn matrix(&self) -> Tensor {
        match self.layout {
            WeightLayout::OutIn => self.weight.tr(),
            WeightLayout::InOut => self.weight.shallow_clone(),
        }
    }

    /// `x [T, in]` to `[T, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match &self.bias {
            Some(bias) => bias.addmm(x, &self.matrix()),
            None => x.mm(&self.matrix()),
        }
    }

    /// `residual + forward(x)` in as few passes as the parts allow: without a bias the product accumulates onto the
    /// residual inside the matrix kernel.
    pub(crate) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Tensor {
        match &self.bias {
            // The fresh output is nobody's saved tensor, so it may take the sum in place.
            Some(bias) => bias.addmm(x, &self.matrix()).g_add_(residual),
            None => residual.addmm(x, &self.matrix()),
        }
    }
}
