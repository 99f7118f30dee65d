//! Activations of the feed-forward layer.

use tch::{Tensor, no_grad};

use super::{by_kernel, recorded};
use crate::autograd::{self, SavedTensor};
use crate::{Result, TorchError, ffi};

/// GELU in its tanh form, of any shape.
///
/// Paper: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
///
/// # Errors
/// libtorch reports one.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "gelu_tanh";
    if !by_kernel(x) {
        return Ok(x.gelu("tanh"));
    }
    let run = |x: &Tensor, grad: Option<&Tensor>| {
        let mut result = std::ptr::null_mut();
        // SAFETY: borrowed tensors, the gradient of x's shape and dtype; one result.
        let message =
            unsafe { ffi::te_gelu_tanh(ffi::ptr(x), ffi::opt_ptr(grad), &raw mut result) };
        one(OP, message, result)
    };
    let out = run(x, None)?;
    if !recorded(&[x]) {
        return Ok(out);
    }
    let saved = SavedTensor::new(x)?;
    let mut out = autograd::custom(OP, &[x], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
        Ok(vec![Some(run(saved.get()?, Some(grad))?)])
    })?;
    Ok(out.remove(0))
}

/// `silu(gate) · up` of `gate_up` [T, 2 I]: its first I columns are the gate. Returns [T, I].
///
/// Paper: Shazeer 2020, arXiv 2002.05202, eq. 6.
///
/// # Errors
/// `gate_up` is not a matrix with an even number of columns.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    const OP: &str = "swiglu";
    let size = gate_up.size();
    if size.len() != 2 || size[1] % 2 != 0 {
        return Err(TorchError::argument(OP, format!("gate_up {size:?} is not [T, 2 I]")));
    }
    let kernel = by_kernel(gate_up);
    let out = if kernel {
        swiglu_kernel(OP, gate_up, None)?
    } else {
        no_grad(|| {
            let [gate, up] = halves(&gate_up.detach());
            gate.silu().g_mul_(&up)
        })
    };
    if !recorded(&[gate_up]) {
        return Ok(out);
    }
    let saved = SavedTensor::new(gate_up)?;
    let mut out = autograd::custom(OP, &[gate_up], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
        let gate_up = saved.get()?;
        Ok(vec![Some(if kernel {
            swiglu_kernel(OP, gate_up, Some(grad))?
        } else {
            swiglu_backward(gate_up, grad)
        })])
    })?;
    Ok(out.remove(0))
}

fn swiglu_kernel(op: &'static str, gate_up: &Tensor, grad: Option<&Tensor>) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: borrowed tensors, gate_up [T, 2 I] and the gradient [T, I] of one dtype; one result.
    let message = unsafe { ffi::te_swiglu(ffi::ptr(gate_up), ffi::opt_ptr(grad), &raw mut result) };
    one(op, message, result)
}

fn swiglu_backward(gate_up: &Tensor, grad: &Tensor) -> Tensor {
    let [gate, up] = halves(gate_up);
    let back = Tensor::empty_like(gate_up);
    let [back_gate, mut back_up] = halves(&back);
    let _ = gate.silu_backward_grad_input(&back_gate, &(grad * up));
    let _ = gate.silu_out(&back_up);
    let _ = back_up.g_mul_(grad);
    back
}

/// The two halves of the last dimension.
fn halves(x: &Tensor) -> [Tensor; 2] {
    let width = x.size()[1] / 2;
    [x.narrow(1, 0, width), x.narrow(1, width, width)]
}

fn one(op: &'static str, message: *mut std::ffi::c_char, result: ffi::Ptr) -> Result<Tensor> {
    ffi::check(op, message)?;
    let [tensor] = ffi::take(op, [result])?;
    Ok(tensor)
}
