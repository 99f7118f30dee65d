//! The feed-forward half of a layer.

use super::linear::Linear;
use crate::config::Activation;
use crate::error::Result;
use tch::Tensor;
use torch_ext::fused;

/// GPT-2's `c_fc -> activation -> c_proj`, or the Llama family's gated form.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) input: Linear,
    pub(crate) output: Linear,
    pub(crate) activation: Activation,
    /// The input layer gives gate and up side by side.
    pub(crate) gated: bool,
}

impl Mlp {
    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            input: self.input.share(),
            output: self.output.share(),
            activation: self.activation,
            gated: self.gated,
        }
    }

    /// `x [T, D]` to what the output layer takes, `[T, I]`.
    pub(crate) fn inner(&self, x: &Tensor, training: bool) -> Result<Tensor> {
        let inner = self.input.forward(x, training)?;
        match (self.gated, self.activation) {
            (false, activation) => activate(&inner, activation),
            (true, Activation::Silu) => Ok(fused::swiglu(&inner)?),
            (true, activation) => {
                // `chunk` and not `narrow`: its backward joins both gradients in one pass.
                let halves = inner.chunk(2, 1);
                Ok(activate(&halves[0], activation)? * &halves[1])
            }
        }
    }
}

/// A non-linearity, element by element.
pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::GeluTanh => fused::gelu_tanh(x)?,
        Activation::Gelu => x.gelu("none"),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::QuickGelu => x * (x * 1.702).sigmoid(),
    })
}
