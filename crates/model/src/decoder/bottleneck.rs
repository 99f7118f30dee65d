//! A small layer behind a sub-layer: Houlsby et al. 2019, arXiv:1902.00751, section 2.1.

use super::linear::{Linear, WeightLayout};
use super::mlp::activate;
use crate::config::Activation;
use crate::error::Result;
use crate::layout::{Affine, BlockId};
use crate::params::Params;
use crate::peft;
use tch::Tensor;

/// `x + up(activation(down(x)))`.
#[derive(Debug)]
pub(crate) struct Bottleneck {
    pub(crate) down: Linear,
    pub(crate) up: Linear,
    pub(crate) activation: Activation,
}

impl Bottleneck {
    /// Over the parameters `ids`; `[down, up]` are indices into these, weight and bias each.
    pub(super) fn new(
        params: &Params,
        ids: &[BlockId],
        [down, up]: [[usize; 2]; 2],
        spec: &peft::Bottleneck,
    ) -> Self {
        let linear = |[weight, bias]: [usize; 2]| {
            let affine = Affine { weight: ids[weight], bias: Some(ids[bias]) };
            Linear::new(params, affine, WeightLayout::OutIn)
        };
        Self { down: linear(down), up: linear(up), activation: spec.activation }
    }

    /// A handle on the same tensors.
    pub(super) fn share(&self) -> Self {
        Self { down: self.down.share(), up: self.up.share(), activation: self.activation }
    }

    pub(super) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.down.leaves().into_iter().chain(self.up.leaves())
    }

    /// `x [T, D]` to `[T, D]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = activate(&self.down.forward(x, false)?, self.activation)?;
        self.up.forward_onto(x, &inner, false)
    }
}
