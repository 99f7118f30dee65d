//! A linear layer: the seam at which low-rank, quantised and bottleneck adapters attach.

use crate::error::Result;
use crate::layout::Affine;
use crate::params::Params;
use tch::Tensor;
use torch_ext::linear::{self, Packed};

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
    /// A copy of the weight for the CPU's matrix kernels, used where it is: only where nothing trains.
    packed: Option<Packed>,
}

impl Linear {
    pub(crate) fn new(params: &Params, affine: Affine, layout: WeightLayout) -> Self {
        let bias = affine.bias.map(|block| params.leaf(block));
        Self { weight: params.leaf(affine.weight), bias, layout, packed: None }
    }

    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            layout: self.layout,
            packed: None,
        }
    }

    /// Packs the weight for inputs of about `rows` rows.
    pub(crate) fn pack(&mut self, rows: i64) -> Result<()> {
        self.packed = Some(Packed::new(&self.matrix().tr(), rows)?);
        Ok(())
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
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match (&self.packed, &self.bias) {
            (Some(packed), bias) => packed.forward(x, bias.as_ref())?,
            (None, bias) if linear::serves(x) => {
                linear::forward(x, &self.matrix().tr(), bias.as_ref())?
            }
            (None, Some(bias)) => bias.addmm(x, &self.matrix()),
            (None, None) => x.mm(&self.matrix()),
        })
    }

    /// `residual + forward(x)` in as few passes as the parts allow: without a bias the product accumulates onto the
    /// residual inside the matrix kernel.
    pub(crate) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(match (&self.packed, &self.bias) {
            (None, None) if !linear::serves(x) => residual.addmm(x, &self.matrix()),
            // The fresh output is nobody's saved tensor, so it may take the sum in place.
            _ => self.forward(x)?.g_add_(residual),
        })
    }
}
