//! Fused optimiser steps.

use std::borrow::Borrow;

use tch::Tensor;

use crate::{Result, TorchError, ffi, foreach};

mod eight_bit;

pub use eight_bit::{Moments, adamw_8bit};

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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::testing::{max_error, random, relative_error};

    const OPTIONS: AdamWOptions =
        AdamWOptions { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    /// One parameter and its state.
    struct State {
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        step: Tensor,
    }

    impl State {
        fn new(shape: &[i64], seed: u64, device: Device) -> Self {
            let param = random(shape, seed, Kind::Float, device);
            let zeros = || param.detach().zeros_like();
            let step = Tensor::zeros([0; 0], (Kind::Float, device));
            Self { grad: zeros(), exp_avg: zeros(), exp_avg_sq: zeros(), step, param }
        }
    }

    fn step(states: &[State], options: &AdamWOptions, scaling: Scaling<'_>) -> Result<()> {
        fn list(s: &[State], f: fn(&State) -> &Tensor) -> Vec<&Tensor> {
            s.iter().map(f).collect()
        }
        let (p, g) = (list(states, |s| &s.param), list(states, |s| &s.grad));
        let (m, v) = (list(states, |s| &s.exp_avg), list(states, |s| &s.exp_avg_sq));
        fused_adamw_scaled(&p, &g, &m, &v, &list(states, |s| &s.step), options, scaling)
    }

    /// The algorithm by hand in fp64: returns the new parameter, m and v.
    fn by_hand(state: [Tensor; 3], grad: &Tensor, t: i32, o: &AdamWOptions) -> [Tensor; 3] {
        let [p, m, v] = state;
        let g = grad.to_kind(Kind::Double);
        let m = m * o.beta1 + &g * (1.0 - o.beta1);
        let v = v * o.beta2 + g.square() * (1.0 - o.beta2);
        let denominator = (&v / (1.0 - o.beta2.powi(t))).sqrt() + o.eps;
        let p =
            p * (1.0 - o.lr * o.weight_decay) - &m / denominator * (o.lr / (1.0 - o.beta1.powi(t)));
        [p, m, v]
    }

    fn equals_by_hand(device: Device) {
        let states: Vec<State> = [&[5, 7][..], &[3], &[], &[130, 61]]
            .iter()
            .enumerate()
            .map(|(i, shape)| State::new(shape, i as u64 + 1, device))
            .collect();
        let exact = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let mut want: Vec<[Tensor; 3]> = states
            .iter()
            .map(|s| [exact(&s.param), exact(&s.exp_avg), exact(&s.exp_avg_sq)])
            .collect();
        for t in 1..=20 {
            for (i, (state, want)) in states.iter().zip(&mut want).enumerate() {
                let seed = (t * 10 + i as i32) as u64;
                let grad = random(&state.grad.size(), seed, Kind::Float, device).detach();
                state.grad.shallow_clone().copy_(&grad);
                let old = want.each_ref().map(Tensor::shallow_clone);
                *want = by_hand(old, &grad, t, &OPTIONS);
            }
            step(&states, &OPTIONS, Scaling::default()).unwrap();
            for (state, [p, m, v]) in states.iter().zip(&want) {
                assert!(state.param.requires_grad() && state.param.is_leaf());
                // Each of up to 20 steps rounds the parameter once or twice.
                let rounding = 1.2e-7 * f64::from(t);
                assert!(relative_error(&state.param.detach(), p, 1.0) < rounding.max(1e-7));
                assert!(relative_error(&state.exp_avg, m, 1.0) < 1e-6);
                assert!(relative_error(&state.exp_avg_sq, v, 1.0) < 1e-6);
                assert_eq!(f64::try_from(&state.step).unwrap(), f64::from(t));
            }
        }
    }

    #[test]
    fn equals_the_algorithm_by_hand() {
        equals_by_hand(Device::Cpu);
        if let Some(device) = crate::device::test_cuda("fused AdamW") {
            equals_by_hand(device);
        }
    }

    #[test]
    fn one_step_is_within_1e7() {
        let states = [State::new(&[40, 50], 1, Device::Cpu)];
        let grad = random(&[40, 50], 2, Kind::Float, Device::Cpu).detach();
        states[0].grad.shallow_clone().copy_(&grad);
        let exact = states[0].param.detach().to_kind(Kind::Double);
        let zero = exact.zeros_like();
        let [want, ..] = by_hand([exact, zero.copy(), zero], &grad, 1, &OPTIONS);
        step(&states, &OPTIONS, Scaling::default()).unwrap();
        // Half a unit in the last place of numbers up to 4 is 1.2e-7.
        assert!(relative_error(&states[0].param.detach(), &want, 1.0) < 1e-7);
    }

    #[test]
    fn a_scaled_step_equals_a_plain_one_and_an_infinite_one_does_nothing() {
        let make = |scale: f64| {
            let states = [State::new(&[33, 5], 1, Device::Cpu), State::new(&[9], 2, Device::Cpu)];
            for (i, s) in states.iter().enumerate() {
                let grad = random(&s.grad.size(), 5 + i as u64, Kind::Float, Device::Cpu).detach();
                s.grad.shallow_clone().copy_(&(grad * scale));
            }
            states
        };
        let (plain, scaled) = (make(1.0), make(1024.0));
        let grad_scale = Tensor::from_slice(&[1024.0f32]);
        let found = |x: f32| Tensor::from_slice(&[x]);
        let with = |f: &Tensor| {
            step(&scaled, &OPTIONS, Scaling { grad_scale: Some(&grad_scale), found_inf: Some(f) })
                .unwrap();
        };
        with(&found(1.0));
        let untouched = make(1024.0);
        for (a, b) in scaled.iter().zip(&untouched) {
            assert!(
                a.param.equal(&b.param) && a.exp_avg.equal(&b.exp_avg) && a.step.equal(&b.step)
            );
        }
        with(&found(0.0));
        step(&plain, &OPTIONS, Scaling::default()).unwrap();
        for (a, b) in scaled.iter().zip(&plain) {
            assert!(max_error(&a.param.detach(), &b.param.detach()) < 1e-9);
            assert_eq!(f64::try_from(&a.step).unwrap(), 1.0);
        }
    }

    #[test]
    fn decay_shrinks_without_a_gradient() {
        let states = [State::new(&[8], 1, Device::Cpu)];
        let old = states[0].param.detach().copy();
        let options = AdamWOptions { lr: 0.5, weight_decay: 0.1, ..OPTIONS };
        step(&states, &options, Scaling::default()).unwrap();
        assert!(max_error(&states[0].param.detach(), &(old * 0.95)) < 1e-7);
    }

    #[test]
    fn a_change_after_saving_is_noticed() {
        let states = [State::new(&[8], 1, Device::Cpu)];
        let saved = crate::autograd::SavedTensor::new(&states[0].param).unwrap();
        step(&states, &OPTIONS, Scaling::default()).unwrap();
        assert!(saved.get().is_err());
    }

    #[test]
    fn lists_that_do_not_fit_are_named() {
        let states = [State::new(&[8], 1, Device::Cpu), State::new(&[2], 1, Device::Cpu)];
        let p = [&states[0].param];
        let other = [&states[1].grad];
        let options = &OPTIONS;
        let error = fused_adamw(&p, &other, &p, &p, &p, options).unwrap_err().to_string();
        assert_eq!(error, "fused_adamw: tensor 0: shape [8] against [2]");
        let none: [Tensor; 0] = [];
        let error = fused_adamw(&p, &none, &p, &p, &p, options).unwrap_err().to_string();
        assert_eq!(error, "fused_adamw: 1 tensors but 0 others");
        let error = fused_adamw(&p, &p, &p, &p, &none, options).unwrap_err().to_string();
        assert_eq!(error, "fused_adamw: 1 parameters but 0 step counters");
        fused_adamw(&none, &none, &none, &none, &none, options).unwrap();
    }
}
