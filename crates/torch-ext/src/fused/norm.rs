//! `RMSNorm` and `LayerNorm`.

use tch::{Kind, Tensor, no_grad};

use super::{by_kernel, recorded};
use crate::autograd::{self, SavedTensor};
use crate::{Result, TorchError, ffi};

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension, `x` [.., D], `weight` [D], one dtype; computed in fp32.
///
/// Paper: Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4.
///
/// # Errors
/// `weight` does not fit `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    check_arguments(OP, x, weight, None)?;
    let kernel = by_kernel(x);
    let (out, scale) = if kernel {
        let [out, scale] = forward(OP, x, weight, None, eps)?;
        (out, scale)
    } else {
        no_grad(|| x.detach().internal_fused_rms_norm(weight.size(), Some(&weight.detach()), eps))
    };
    if !recorded(&[x, weight]) {
        return Ok(out);
    }
    let saved = [x, weight, &scale].map(SavedTensor::new);
    let [x_saved, weight_saved, scale] = saved;
    let (x_saved, weight_saved, scale) = (x_saved?, weight_saved?, scale?);
    let needs_weight = weight.requires_grad();
    let mut out = autograd::custom(OP, &[x, weight], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None, None]) };
        let (x, weight, scale) = (x_saved.get()?, weight_saved.get()?, scale.get()?);
        let (to_x, to_weight) = if kernel {
            let [to_x, to_weight] = backward(OP, [grad, x, weight, scale], None)?;
            (to_x, to_weight.to_kind(weight.kind()))
        } else {
            rms_norm_backward(grad, x, scale, weight)
        };
        Ok(vec![Some(to_x), needs_weight.then_some(to_weight)])
    })?;
    Ok(out.remove(0))
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias` over the last dimension, `x` [.., D], `weight` and `bias` [D], one
/// dtype; computed in fp32.
///
/// Paper: Ba, Kiros and Hinton 2016, arXiv 1607.06450, eq. 4.
///
/// # Errors
/// `weight` or `bias` does not fit `x`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    check_arguments(OP, x, weight, Some(bias))?;
    if !by_kernel(x) {
        return Ok(x.layer_norm(weight.size(), Some(weight), Some(bias), eps, true));
    }
    let [out, scale, mean] = forward(OP, x, weight, Some(bias), eps)?;
    if !recorded(&[x, weight, bias]) {
        return Ok(out);
    }
    let [x_saved, weight_saved, scale, mean] = [x, weight, &scale, &mean].map(SavedTensor::new);
    let (x_saved, weight_saved, scale, mean) = (x_saved?, weight_saved?, scale?, mean?);
    let needed = [weight.requires_grad(), bias.requires_grad()];
    let mut out = autograd::custom(OP, &[x, weight, bias], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None, None, None]) };
        let (x, weight) = (x_saved.get()?, weight_saved.get()?);
        let [to_x, to_weight, to_bias] =
            backward(OP, [grad, x, weight, scale.get()?], Some(mean.get()?))?;
        let cast = |needed: bool, grad: Tensor| needed.then(|| grad.to_kind(weight.kind()));
        Ok(vec![Some(to_x), cast(needed[0], to_weight), cast(needed[1], to_bias)])
    })?;
    Ok(out.remove(0))
}

fn check_arguments(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<()> {
    let width = x.size().last().copied();
    for (name, t) in std::iter::once(("weight", weight)).chain(bias.map(|b| ("bias", b))) {
        if t.dim() != 1 || Some(t.size()[0]) != width || t.size()[0] == 0 {
            let (size, x) = (t.size(), x.size());
            return Err(TorchError::argument(op, format!("{name} {size:?} does not fit x {x:?}")));
        }
        if t.kind() != x.kind() || t.device() != x.device() {
            let message = format!(
                "{name} is {:?} on {:?}, x is {:?} on {:?}",
                t.kind(),
                t.device(),
                x.kind(),
                x.device()
            );
            return Err(TorchError::argument(op, message));
        }
    }
    Ok(())
}

/// Output, 1 / deviation, and with a bias the mean.
fn forward<const N: usize>(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<[Tensor; N]> {
    let tensors = [ffi::ptr(x), ffi::ptr(weight), ffi::opt_ptr(bias)];
    let mut results = [std::ptr::null_mut(); 3];
    // SAFETY: borrowed tensors that `check_arguments` has checked; room for three results.
    let message = unsafe { ffi::te_norm_forward(tensors.as_ptr(), eps, results.as_mut_ptr()) };
    ffi::check(op, message)?;
    ffi::take_some(op, results)
}

/// Gradients of x, weight and with a mean bias, from `[gradient, x, weight, 1 / deviation]`.
fn backward<const N: usize>(
    op: &'static str,
    inputs: [&Tensor; 4],
    mean: Option<&Tensor>,
) -> Result<[Tensor; N]> {
    let mut tensors = ffi::ptrs(&inputs);
    tensors.push(ffi::opt_ptr(mean));
    let mut results = [std::ptr::null_mut(); 3];
    // SAFETY: the tensors that `forward` took and returned; room for three results.
    let message = unsafe { ffi::te_norm_backward(tensors.as_ptr(), results.as_mut_ptr()) };
    ffi::check(op, message)?;
    ffi::take_some(op, results)
}

/// Gradients of `x` and `weight`, in fp32 inside. With `n = x · scale` the normalised input and `g` the gradient: to the
/// weight `Σ g · n`, to the input `scale · (g · w - n · mean(g · w · n))`.
fn rms_norm_backward(
    grad: &Tensor,
    x: &Tensor,
    scale: &Tensor,
    weight: &Tensor,
) -> (Tensor, Tensor) {
    let (width, float) = (weight.size()[0], scale.kind());
    let [grad, rows] = [grad, x].map(|t| t.reshape([-1, width]).to_kind(float));
    let scale = scale.reshape([-1, 1]);
    let weight_f = weight.to_kind(float);
    let normed = rows * &scale;
    let product = &grad * &normed;
    let to_weight = product.sum_dim_intlist(0, false, None::<Kind>);
    let minus_mean = product.mv(&weight_f).unsqueeze(1) / -(width as f64);
    let mut to_x = grad * &weight_f;
    let _ = to_x.addcmul_(&normed, &minus_mean);
    let to_x = to_x.g_mul_(&scale).to_kind(x.kind());
    (to_x.view(x.size().as_slice()), to_weight.to_kind(weight.kind()))
}
