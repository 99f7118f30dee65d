//! Fused optimiser steps.

use std::borrow::Borrow;

use tch::Tensor;

use crate::{Result, TorchError, ffi, foreach};

/// Hyper-parameters of one [`fused_adamw`] call: one parameter group at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: the weights shrink by `lr * weight_decay` before the step.
    pub weight_decay: f64,
}

/// What [`fused_adamw_scaled`] needs of the loss scale; both on the parameters' device, fp32, one element.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scaling<'a> {
    /// The gradients are divided by this first (and left divided).
    pub grad_scale: Option<&'a Tensor>,
    /// Where this is 1 the step does nothing and the step counters stay.
    pub found_inf: Option<&'a Tensor>,
}

/// One AdamW step on every parameter, in place: Loshchilov & Hutter 2019 (arXiv 1711.05101),
/// algorithm 2, with schedule multiplier and learning rate as one `lr`.
///
/// For each i, with step counter t (raised by 1 first):
/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g²`,
/// `p = p (1 - lr weight_decay) - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)`.
///
/// `params`, `grads`, `exp_avgs` (m) and `exp_avg_sqs` (v) are equally long lists with equal shapes
/// at each place, of one floating dtype (fp32 for exact work); `steps` are fp32 scalar tensors
/// holding t, one a parameter, not shared. All on one device. No gradients are recorded.
///
/// # Errors
/// Lists or shapes differ, or libtorch refuses a dtype or device.
pub fn fused_adamw<P, G, M, V, S>(
    params: &[P],
    grads: &[G],
    exp_avgs: &[M],
    exp_avg_sqs: &[V],
    steps: &[S],
    options: &AdamWOptions,
) -> Result<()>
where
    P: Borrow<Tensor>,
    G: Borrow<Tensor>,
    M: Borrow<Tensor>,
    V: Borrow<Tensor>,
    S: Borrow<Tensor>,
{
    let scaling = Scaling::default();
    fused_adamw_scaled(params, grads, exp_avgs, exp_avg_sqs, steps, options, scaling)
}

/// [`fused_adamw`] on loss-scaled gradients, decided on the device: no value is read back.
///
/// # Errors
/// As [`fused_adamw`].
pub fn fused_adamw_scaled<P, G, M, V, S>(
    params: &[P],
    grads: &[G],
    exp_avgs: &[M],
    exp_avg_sqs: &[V],
    steps: &[S],
    options: &AdamWOptions,
    scaling: Scaling<'_>,
) -> Result<()>
where
    P: Borrow<Tensor>,
    G: Borrow<Tensor>,
    M: Borrow<Tensor>,
    V: Borrow<Tensor>,
    S: Borrow<Tensor>,
{
    const OP: &str = "fused_adamw";
    foreach::same_shapes(OP, params, grads)?;
    foreach::same_shapes(OP, params, exp_avgs)?;
    foreach::same_shapes(OP, params, exp_avg_sqs)?;
    if steps.len() != params.len() {
        let message = format!("{} parameters but {} step counters", params.len(), steps.len());
        return Err(TorchError::argument(OP, message));
    }
    if params.is_empty() {
        return Ok(());
    }
    let owned = [
        ffi::ptrs(params),
        ffi::ptrs(grads),
        ffi::ptrs(exp_avgs),
        ffi::ptrs(exp_avg_sqs),
        ffi::ptrs(steps),
    ];
    let lists = owned.each_ref().map(Vec::as_ptr);
    let hyper = [options.lr, options.beta1, options.beta2, options.weight_decay, options.eps];
    // SAFETY: five lists of borrowed tensors, each `params.len()` long, and five numbers.
    let message = unsafe {
        ffi::te_adamw(
            lists.as_ptr(),
            params.len(),
            hyper.as_ptr(),
            ffi::opt_ptr(scaling.grad_scale),
            ffi::opt_ptr(scaling.found_inf),
        )
    };
    ffi::check(OP, message)
}
