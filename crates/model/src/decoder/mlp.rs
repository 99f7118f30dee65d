//! The feed-forward half of a layer.

use super::linear::Linear;
use crate::config::Activation;
use crate::error::Result;
use tch::{Tensor, no_grad};
use torch_ext::autograd::{self, SavedTensor};

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
    pub(crate) fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.input.forward(x);
        match (self.gated, self.activation) {
            (false, activation) => Ok(activate(&inner, activation)),
            (true, Activation::Silu) => swiglu(&inner),
            (true, activation) => {
                // `chunk` and not `narrow`: its backward joins both gradients in one pass.
                let halves = inner.chunk(2, 1);
                Ok(activate(&halves[0], activation) * &halves[1])
            }
        }
    }
}

/// The two halves of the last dimension.
fn halves(x: &Tensor) -> [Tensor; 2] {
    let width = x.size()[1] / 2;
    [x.narrow(1, 0, width), x.narrow(1, width, width)]
}

fn activate(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::Gelu => x.gelu("none"),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::QuickGelu => x * (x * 1.702).sigmoid(),
    }
}

/// `silu(gate) * up` of `gate_up [T, 2 I]`, as one autograd node that keeps only its input.
///
/// Paper: Shazeer 2020, arXiv:2002.05202, eq. 6.
fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let out = no_grad(|| {
        let [gate, up] = halves(&gate_up.detach());
        gate.silu().g_mul_(&up)
    });
    if !autograd::grad_enabled() || !gate_up.requires_grad() {
        return Ok(out);
    }
    let saved = SavedTensor::new(gate_up)?;
    let mut out = autograd::custom("swiglu", &[gate_up], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
        let gate_up = saved.get()?;
        let [gate, up] = halves(gate_up);
        let back = Tensor::empty_like(gate_up);
        let [back_gate, mut back_up] = halves(&back);
        let _ = gate.silu_backward_grad_input(&back_gate, &(grad * up));
        let _ = gate.silu_out(&back_up);
        let _ = back_up.g_mul_(grad);
        Ok(vec![Some(back)])
    })?;
    Ok(out.remove(0))
}
