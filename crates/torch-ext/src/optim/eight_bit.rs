//! `AdamW` whose moments take a byte each.

use tch::{Device, Kind, Tensor, no_grad};

use super::AdamWOptions;
use crate::blockwise::{Blockwise, Map};
use crate::{Result, TorchError, ffi};

const OP: &str = "adamw_8bit";

/// Both moments of one parameter.
#[derive(Debug)]
pub struct Moments {
    /// The running mean of the gradient, by [`Map::Signed`].
    pub exp_avg: Blockwise,
    /// The running mean of its square, by [`Map::Unsigned`].
    pub exp_avg_sq: Blockwise,
    maps: [Tensor; 4],
}

impl Moments {
    /// Zeros for a parameter of `n` numbers.
    pub fn zeros(n: i64, device: Device) -> Self {
        let on_device = |list: Vec<f32>| Tensor::from_slice(&list).to_device(device);
        Self {
            exp_avg: Blockwise::zeros(n, device),
            exp_avg_sq: Blockwise::zeros(n, device),
            maps: [
                on_device(Map::Signed.values()),
                on_device(Map::Signed.midpoints()),
                on_device(Map::Unsigned.values()),
                on_device(Map::Unsigned.midpoints()),
            ],
        }
    }
}

/// The step of [`super::fused_adamw`] on one fp32 parameter with moments of 8 bits: they are widened to fp32, updated, used
/// as they then are, and rounded again. `step` is the number of this step, from 1 on. Updates parameter and moments.
///
/// Paper: Dettmers et al. 2022, arXiv 2110.02861, section 2.
///
/// # Deviations
/// A positive second moment is never rounded to 0, so that no step is divided by `eps` alone.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit.
pub fn adamw_8bit(
    param: &Tensor,
    grad: &Tensor,
    moments: &mut Moments,
    step: i64,
    options: &AdamWOptions,
) -> Result<()> {
    let n = moments.exp_avg.codes.numel() as i64;
    let whole = [&moments.exp_avg, &moments.exp_avg_sq].iter().all(|m| m.holds(n, param.device()));
    if param.numel() as i64 != n || grad.size() != param.size() || !whole {
        let message =
            format!("parameter {:?}, gradient {:?}, moments of {n}", param.size(), grad.size());
        return Err(TorchError::argument(OP, message));
    }
    let all_float = [param, grad].iter().all(|t| t.kind() == Kind::Float && t.is_contiguous());
    if !all_float || grad.device() != param.device() || step < 1 {
        let message = format!("parameter {:?} on {:?}, step {step}", param.kind(), param.device());
        return Err(TorchError::argument(OP, message));
    }
    if param.device() != Device::Cpu {
        no_grad(|| by_operations(param, grad, moments, step, options));
        return Ok(());
    }
    let Moments { exp_avg, exp_avg_sq, maps } = moments;
    let mut tensors = ffi::ptrs(&[param, grad]);
    tensors.extend(
        [&exp_avg.codes, &exp_avg.absmax, &exp_avg_sq.codes, &exp_avg_sq.absmax].map(ffi::ptr),
    );
    tensors.extend(maps.iter().map(ffi::ptr));
    let AdamWOptions { lr, beta1, beta2, eps, weight_decay } = *options;
    let hyper = [lr, beta1, beta2, weight_decay, eps, step as f64];
    // SAFETY: ten borrowed tensors of the sizes checked above, and six numbers.
    ffi::check(OP, unsafe { ffi::te_adamw_8bit(tensors.as_ptr(), hyper.as_ptr()) })
}

fn by_operations(
    param: &Tensor,
    grad: &Tensor,
    moments: &mut Moments,
    step: i64,
    options: &AdamWOptions,
) {
    let AdamWOptions { lr, beta1, beta2, eps, weight_decay } = *options;
    let grad = grad.detach().view(-1);
    let mut param = param.detach().view(-1);
    let [signed, signed_midpoints, unsigned, unsigned_midpoints] = &moments.maps;
    let first = moments.exp_avg.numbers_of(signed).g_mul_scalar_(beta1) + &grad * (1.0 - beta1);
    let second = moments.exp_avg_sq.numbers_of(unsigned).g_mul_scalar_(beta2)
        + grad.square() * (1.0 - beta2);
    let exponent = step as f64;
    let denominator = second.sqrt() / (1.0 - beta2.powf(exponent)).sqrt() + eps;
    let _ = param.g_mul_scalar_(1.0 - lr * weight_decay);
    let _ = param.g_sub_(&(&first / denominator * (lr / (1.0 - beta1.powf(exponent)))));
    moments.exp_avg.set(&first, signed_midpoints, false);
    moments.exp_avg_sq.set(&second, unsigned_midpoints, true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{max_error, random, relative_error};

    const OPTIONS: AdamWOptions =
        AdamWOptions { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    fn float(shape: &[i64], seed: u64) -> Tensor {
        random(shape, seed, Kind::Float, Device::Cpu).detach()
    }

    /// The first step knows no rounding yet: it is AdamW's to the last bits.
    #[test]
    fn the_first_step_is_that_of_full_moments() {
        let (param, grad) = (float(&[30, 41], 1), float(&[30, 41], 2));
        let full = param.copy();
        let (m, v) = (full.zeros_like(), full.zeros_like());
        let counter = Tensor::zeros([0; 0], (Kind::Float, Device::Cpu));
        super::super::fused_adamw(&[&full], &[&grad], &[&m], &[&v], &[&counter], &OPTIONS).unwrap();
        let mut moments = Moments::zeros(param.numel() as i64, Device::Cpu);
        adamw_8bit(&param, &grad, &mut moments, 1, &OPTIONS).unwrap();
        assert!(relative_error(&param, &full, 1.0) < 2e-7);
        // Then the moments are rounded: to within half a step of the map, 0.7 % of the block's largest.
        let first = moments.exp_avg.numbers(Map::Signed);
        assert!(relative_error(&first, &m.view(-1), 1e-9) < 0.0075);
        let second = moments.exp_avg_sq.numbers(Map::Unsigned);
        assert!(relative_error(&second, &v.view(-1), 1e-9) < 0.0037);
        assert!(second.min().double_value(&[]) > 0.0, "no positive second moment becomes 0");
    }

    #[test]
    fn the_kernel_and_the_operations_take_the_same_steps() {
        let start = float(&[9, 111], 1);
        let (param, other) = (start.copy(), start.copy());
        let n = start.numel() as i64;
        let [mut moments, mut others] = [(); 2].map(|()| Moments::zeros(n, Device::Cpu));
        for step in 1..=5 {
            let grad = float(&[9, 111], 10 + step as u64) * 10_f64.powi(step as i32 - 3);
            adamw_8bit(&param, &grad, &mut moments, step, &OPTIONS).unwrap();
            by_operations(&other, &grad, &mut others, step, &OPTIONS);
            // A number halfway between two values may go either way: few codes differ, and by one.
            let codes = |m: &Moments| m.exp_avg_sq.codes.to_kind(Kind::Int);
            let differences = (codes(&moments) - codes(&others)).abs();
            assert!(differences.max().int64_value(&[]) <= 1);
            assert!(differences.sum(Kind::Int64).int64_value(&[]) < 8);
        }
        assert!(max_error(&param, &other) < 1e-4);
        assert!(max_error(&param, &start) > 5e-3);
    }

    #[test]
    fn zero_gradients_leave_zero_moments() {
        let param = float(&[300], 1);
        let before = param.copy();
        let mut moments = Moments::zeros(300, Device::Cpu);
        let options = AdamWOptions { weight_decay: 0.0, ..OPTIONS };
        adamw_8bit(&param, &param.zeros_like(), &mut moments, 1, &options).unwrap();
        assert!(param.equal(&before));
        assert_eq!(moments.exp_avg_sq.absmax.max().double_value(&[]), 0.0);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (param, mut moments) = (float(&[8], 1), Moments::zeros(9, Device::Cpu));
        let error = adamw_8bit(&param, &param, &mut moments, 1, &OPTIONS).unwrap_err().to_string();
        assert_eq!(error, "adamw_8bit: parameter [8], gradient [8], moments of 9");
        let mut moments = Moments::zeros(8, Device::Cpu);
        let error = adamw_8bit(&param, &param, &mut moments, 0, &OPTIONS).unwrap_err().to_string();
        assert_eq!(error, "adamw_8bit: parameter Float on Cpu, step 0");
    }
}
