//! Operations of a transformer layer as one autograd node each: on the CPU one pass of the shim's kernels, in fp32
//! inside and rounded once; elsewhere, and in fp64, libtorch's operations.

mod activation;
mod norm;
mod rotary;
#[cfg(test)]
mod tests;

pub use activation::{gelu_tanh, swiglu};
pub use norm::{layer_norm, rms_norm};
pub use rotary::rotate_into;

use tch::{Device, Kind, Tensor};

use crate::autograd;

/// Whether the shim's kernels serve this tensor.
fn by_kernel(x: &Tensor) -> bool {
    x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::BFloat16 | Kind::Half)
}

/// Whether a node must be recorded for these inputs.
fn recorded(inputs: &[&Tensor]) -> bool {
    autograd::grad_enabled() && inputs.iter().any(|t| t.requires_grad())
}
