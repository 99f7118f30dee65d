//! `RMSNorm` and `LayerNorm`, computed in fp32 whatever the precision of their input.

use crate::error::Result;
use crate::layout::Affine;
use crate::params::Params;
use tch::Tensor;
use torch_ext::fused;

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
        Ok(match &self.bias {
            Some(bias) => fused::layer_norm(x, &self.weight, bias, self.eps)?,
            None => fused::rms_norm(x, &self.weight, self.eps)?,
        })
    }
}
