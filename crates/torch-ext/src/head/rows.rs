//! Per-row softmax statistics of a chunk of logits, and gradients written over it: the shim's fused
//! kernels on the CPU, tensor operations elsewhere.

use tch::{Device, Kind, TchError, Tensor};

use super::OP;
use crate::ffi;

// The columns of the statistics; `Stat` in kernels.h. The maximum is of the logits themselves, the
// rest of the logits divided by the temperature.
const MAX: i64 = 0;
const LOG_SUM: i64 = 1;
pub(super) const ENTROPY: i64 = 2;
pub(super) const LOGPROB: i64 = 3;
pub(super) const CORRECT: i64 = 4;
pub(super) const COLUMNS: i64 = 5;

type TchResult<T> = Result<T, TchError>;

/// Writes `stats` [R, COLUMNS] of `logits` [R, V] against `targets` [R]; with `write_grad` the logits
/// become the gradient of minus the sum of the targets' log-probabilities.
pub(super) fn statistics(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
    stats: &Tensor,
    write_grad: bool,
) -> TchResult<()> {
    if fused(logits) {
        let (logits, targets, stats) = (ffi::ptr(logits), ffi::ptr(targets), ffi::ptr(stats));
        // SAFETY: borrowed tensors of the shapes above, which the shim checks; the targets are in
        // range, which `check_arguments` has checked.
        let message =
            unsafe { ffi::te_head_stats(logits, targets, temperature, stats, write_grad) };
        return check(message);
    }
    statistics_by_operations(logits, targets, temperature, stats, write_grad)
}

/// The logits become the gradient of `Σ coefficients[i, 0] · logprob[i] + coefficients[i, 1] ·
/// entropy[i]`.
pub(super) fn gradient(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
    stats: &Tensor,
    coefficients: &Tensor,
) -> TchResult<()> {
    if fused(logits) {
        let [logits, targets, stats, coefficients] =
            [logits, targets, stats, coefficients].map(ffi::ptr);
        // SAFETY: as in `statistics`.
        let message =
            unsafe { ffi::te_head_grad(logits, targets, temperature, stats, coefficients) };
        return check(message);
    }
    gradient_by_operations(logits, targets, temperature, stats, coefficients)
}

fn check(message: *mut std::ffi::c_char) -> TchResult<()> {
    ffi::check(OP, message).map_err(|e| TchError::Torch(e.to_string()))
}

fn fused(logits: &Tensor) -> bool {
    logits.device() == Device::Cpu && logits.kind() != Kind::Double
}

/// `(logits - max) / temperature` in the statistics' dtype.
fn shifted(logits: &Tensor, max: &Tensor, temperature: f64) -> TchResult<Tensor> {
    logits.f_to_kind(max.kind())?.f_sub(max)?.f_div_scalar(temperature)
}

/// `a * b`, 0 where `a` is 0 even if `b` is infinite.
fn product(a: &Tensor, b: &Tensor) -> TchResult<Tensor> {
    a.f_mul(b)?.f_masked_fill(&a.f_eq(0.0)?, 0.0)
}

pub(super) fn statistics_by_operations(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
    stats: &Tensor,
    write_grad: bool,
) -> TchResult<()> {
    let max = logits.f_amax(1, true)?.f_to_kind(stats.kind())?;
    let z = shifted(logits, &max, temperature)?;
    let e = z.f_exp()?;
    let sum = e.f_sum_dim_intlist(1, true, stats.kind())?;
    let log_sum = sum.f_log()?;
    let weighted = product(&e, &z)?.f_sum_dim_intlist(1, true, stats.kind())?;
    let entropy = log_sum.f_sub(&weighted.f_div(&sum)?)?;
    let column = targets.f_unsqueeze(1)?;
    let logprob = z.f_gather(1, &column, false)?.f_sub(&log_sum)?;
    let correct = logits.f_argmax(1, true)?.f_eq_tensor(&column)?.f_to_kind(stats.kind())?;
    let mut out = stats.shallow_clone();
    out.f_copy_(&Tensor::f_cat(&[max, log_sum, entropy, logprob, correct], 1)?)?;
    if write_grad {
        let rows = (targets.size()[0], stats.kind(), stats.device());
        let loss = Tensor::f_full([rows.0], -1.0, (rows.1, rows.2))?;
        let coefficients = Tensor::f_stack(&[&loss, &loss.f_zeros_like()?], 1)?;
        gradient_by_operations(logits, targets, temperature, stats, &coefficients)?;
    }
    Ok(())
}

pub(super) fn gradient_by_operations(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
    stats: &Tensor,
    coefficients: &Tensor,
) -> TchResult<()> {
    let stat = |c: i64| stats.f_narrow(1, c, 1);
    let (on_logprob, on_entropy) =
        (coefficients.f_narrow(1, 0, 1)?, coefficients.f_narrow(1, 1, 1)?);
    let logp = shifted(logits, &stat(MAX)?, temperature)?.f_sub(&stat(LOG_SUM)?)?;
    let p = logp.f_exp()?;
    let by_entropy = product(&p, &logp.f_add(&stat(ENTROPY)?)?)?.f_mul(&on_entropy)?;
    let mut grad = p.f_mul(&on_logprob)?.f_add(&by_entropy)?.f_neg()?;
    let grad = grad.f_scatter_add_(1, &targets.f_unsqueeze(1)?, &on_logprob)?;
    logits.shallow_clone().f_copy_(&grad.f_div_scalar(temperature)?)
}
