//! Activation checkpointing: keep a block's inputs, compute its activations again in backward.

use tch::{Device, Tensor};

use crate::autograd::{self, GradMode, Gradients, SavedTensor};
use crate::{Result, TorchError, ffi, generator};

const OP: &str = "checkpoint";

/// `f(inputs)` without keeping its activations: backward runs `f` again (Chen et al. 2016,
/// arXiv:1604.06174, section 3).
///
/// `f` gets `inputs` (in forward as given, in backward as detached leaves) and may use other
/// tensors it owns shallow clones of. Those that require a gradient must be listed in `params`;
/// listed ones that do not are fine. Gradients go to `inputs` and `params` as one node's, exactly as
/// if `f` had run with autograd on: the random generators of the CPU and of the inputs' CUDA device are
/// set back for the second run of `f`, and forward again after it. Bit for bit the same where `f` is
/// deterministic (but a tensor that is used several times in one checkpoint and again in another has
/// its gradients added in another order). Works when only `params` require gradients. With grad mode off it is just
/// `f(inputs)`.
///
/// `f` must not change tensors in place that it did not make, and must not have other lasting
/// effects: it runs twice, the second time on autograd's thread (hence `Send`). The generators are the
/// process's: another thread that draws from them during backward would disturb both.
///
/// # Errors
/// What `f` returns in forward, as [`TorchError::Closure`]. In backward (returned by
/// [`autograd::backward()`]): what `f` returns or its panic; an input or parameter changed in place
/// since; a tensor that requires a gradient, used by `f` and not listed, which would silently get none; another number of
/// outputs than in forward.
pub fn checkpoint<F>(inputs: &[&Tensor], params: &[&Tensor], f: F) -> Result<Vec<Tensor>>
where
    F: Fn(&[Tensor]) -> anyhow::Result<Vec<Tensor>> + Send + 'static,
{
    let run = |f: &F, inputs: &[Tensor]| {
        let message = |e: anyhow::Error| TorchError::Closure { op: OP, message: format!("{e:#}") };
        f(inputs).map_err(message)
    };
    let owned: Vec<Tensor> = inputs.iter().map(|t| t.shallow_clone()).collect();
    let records = inputs.iter().chain(params).any(|t| t.requires_grad());
    if !autograd::grad_enabled() || !records {
        return run(&f, &owned);
    }
    let random = RandomState::take(inputs.iter().chain(params).map(|t| t.device()))?;
    let outputs = {
        let _guard = GradMode::set(false);
        run(&f, &owned)?
    };
    let saved = inputs.iter().map(|t| SavedTensor::new(t)).collect::<Result<Vec<_>>>()?;
    let again = Recompute {
        f,
        saved,
        requires_grad: inputs.iter().map(|t| t.requires_grad()).collect(),
        params: params.iter().map(|t| t.shallow_clone()).collect(),
        saved_params: params.iter().map(|t| SavedTensor::new(t)).collect::<Result<Vec<_>>>()?,
        n_outputs: outputs.len(),
        random,
    };
    let edges: Vec<&Tensor> = inputs.iter().chain(params).copied().collect();
    autograd::custom(OP, &edges, &outputs, move |grads| again.backward(grads))
}

/// What backward needs to run the closure again.
struct Recompute<F> {
    f: F,
    saved: Vec<SavedTensor>,
    requires_grad: Vec<bool>,
    params: Vec<Tensor>,
    saved_params: Vec<SavedTensor>,
    n_outputs: usize,
    random: RandomState,
}

impl<F: Fn(&[Tensor]) -> anyhow::Result<Vec<Tensor>>> Recompute<F> {
    fn backward(&self, grads: &[Option<Tensor>]) -> anyhow::Result<Gradients> {
        let inputs = self
            .saved
            .iter()
            .zip(&self.requires_grad)
            .map(|(saved, needed)| Ok(saved.get()?.detach().set_requires_grad(*needed)))
            .collect::<Result<Vec<_>>>()?;
        self.saved_params.iter().try_for_each(|saved| saved.get().map(drop))?;
        let outputs = {
            let _restored = self.random.replay()?;
            let _guard = GradMode::set(true);
            (self.f)(&inputs)?
        };
        if outputs.len() != self.n_outputs {
            let (now, before) = (outputs.len(), self.n_outputs);
            anyhow::bail!("the closure returned {now} outputs in backward, {before} in forward");
        }
        let listed: Vec<&Tensor> = inputs.iter().chain(&self.params).collect();
        check_listed(&outputs, &listed)?;
        let (mut from, mut weights) = (Vec::new(), Vec::new());
        for (output, grad) in outputs.iter().zip(grads) {
            if let Some(grad) = grad.as_ref().filter(|_| output.requires_grad()) {
                from.push(output);
                weights.push(Some(grad));
            }
        }
        let wanted: Vec<&Tensor> = listed.iter().copied().filter(|t| t.requires_grad()).collect();
        let mut found = if from.is_empty() || wanted.is_empty() {
            wanted.iter().map(|_| None).collect()
        } else {
            autograd::grad(&from, &weights, &wanted, false)?
        }
        .into_iter();
        Ok(listed.iter().map(|t| if t.requires_grad() { found.next()? } else { None }).collect())
    }
}

/// Errors if `outputs` depend on a leaf that requires a gradient and is not in `listed`.
fn check_listed(outputs: &[Tensor], listed: &[&Tensor]) -> Result<()> {
    let (outputs, listed) = (ffi::ptrs(outputs), ffi::ptrs(listed));
    let mut leaf = std::ptr::null_mut();
    // SAFETY: lists of borrowed tensors; `leaf` receives an owned text or null.
    ffi::check(OP, unsafe {
        ffi::te_unlisted_leaf(
            outputs.as_ptr(),
            outputs.len(),
            listed.as_ptr(),
            listed.len(),
            &raw mut leaf,
        )
    })?;
    if leaf.is_null() {
        return Ok(());
    }
    let leaf = ffi::take_text(leaf);
    let message = format!(
        "the closure uses a tensor of shape {leaf} that requires a gradient and is neither an \
         input nor in `params`; list it there"
    );
    Err(TorchError::argument(OP, message))
}

/// The states of the generators a closure may draw from.
struct RandomState(Vec<(Device, Tensor)>);

impl RandomState {
    /// The present states of the CPU's generator and those of the CUDA devices among `devices`.
    fn take(devices: impl Iterator<Item = Device>) -> Result<Self> {
        let mut all = vec![Device::Cpu];
        for device in devices {
            if device.is_cuda() && !all.contains(&device) {
                all.push(device);
            }
        }
        Self::of(all.into_iter())
    }

    fn of(devices: impl Iterator<Item = Device>) -> Result<Self> {
        devices.map(|d| Ok((d, generator::get_state(d)?))).collect::<Result<_>>().map(Self)
    }

    /// Sets these states; the present ones come back when the guard is dropped.
    fn replay(&self) -> Result<Restore> {
        let guard = Restore(Self::of(self.0.iter().map(|(d, _)| *d))?);
        self.set()?;
        Ok(guard)
    }

    fn set(&self) -> Result<()> {
        self.0.iter().try_for_each(|(device, state)| generator::set_state(*device, state))
    }
}

/// Sets generator states when dropped.
struct Restore(RandomState);

impl Drop for Restore {
    fn drop(&mut self) {
        // The states were read from these generators, so setting them cannot fail.
        let set = self.0.set();
        debug_assert!(set.is_ok(), "{set:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::{generator_lock, random};
    use tch::Kind;

    const CPU: Device = Device::Cpu;

    fn leaf(shape: &[i64], seed: u64, device: Device) -> Tensor {
        random(shape, seed, Kind::Float, device)
    }

    /// An MLP with dropout on `x`; `w` and `b` may be leaves or not.
    fn block(x: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
        (x.matmul(w) + b).gelu("none").dropout(0.3, true) + x
    }

    fn owned(tensors: &[&Tensor]) -> Vec<Tensor> {
        tensors.iter().map(|t| t.shallow_clone()).collect()
    }

    /// Two blocks that share their weights, checkpointed or not.
    fn two_blocks(x: &Tensor, w: &Tensor, b: &Tensor, checkpointed: bool) -> Tensor {
        let mut h = x.shallow_clone();
        for _ in 0..2 {
            h = if checkpointed {
                let kept = owned(&[w, b]);
                let f = move |x: &[Tensor]| Ok(vec![block(&x[0], &kept[0], &kept[1])]);
                checkpoint(&[&h], &[w, b], f).unwrap().remove(0)
            } else {
                block(&h, w, b)
            };
        }
        h.square().sum(Kind::Float)
    }

    /// Loss, gradients and the generator's state after a step, from a fixed seed.
    fn step(device: Device, x_needs_grad: bool, checkpointed: bool) -> Vec<Tensor> {
        tch::manual_seed(5);
        let x = leaf(&[6, 8], 1, device).detach().set_requires_grad(x_needs_grad);
        let (w, b) = (leaf(&[8, 8], 2, device), leaf(&[8], 3, device));
        let mut loss = Tensor::new();
        // The second micro-batch adds to the gradients of the first.
        for _ in 0..2 {
            loss = two_blocks(&x, &w, &b, checkpointed);
            autograd::backward(&loss).unwrap();
        }
        let mut all = vec![loss.detach(), w.grad(), b.grad()];
        if x_needs_grad {
            all.push(x.grad());
        }
        all.push(generator::get_state(device).unwrap());
        all
    }

    fn equals_no_checkpoint(device: Device) {
        let _lock = generator_lock();
        for x_needs_grad in [true, false] {
            let plain = step(device, x_needs_grad, false);
            let checkpointed = step(device, x_needs_grad, true);
            let same: Vec<bool> =
                plain.iter().zip(&checkpointed).map(|(a, b)| a.equal(b)).collect();
            assert!(!same.contains(&false), "loss, w, b, [x,] generator: {same:?}");
            assert!(plain[1].abs().sum(Kind::Float).double_value(&[]) > 0.0);
        }
    }

    #[test]
    fn gradients_are_bit_identical_and_the_generator_goes_on() {
        equals_no_checkpoint(CPU);
        if let Some(device) = crate::device::test_cuda("checkpointing") {
            equals_no_checkpoint(device);
        }
    }

    #[test]
    fn the_generator_is_as_if_there_was_no_backward() {
        let _lock = generator_lock();
        let x = leaf(&[100], 1, CPU);
        let out = checkpoint(&[&x], &[], |x| Ok(vec![x[0].dropout(0.5, true)])).unwrap();
        let state = generator::get_state(CPU).unwrap();
        autograd::backward(&out[0].sum(Kind::Float)).unwrap();
        assert!(generator::get_state(CPU).unwrap().equal(&state));
        // The mask was the same both times.
        assert!((x.grad() * x.detach()).equal(&out[0].detach()));
    }

    #[test]
    fn parameters_with_a_history_and_grad_work() {
        let _lock = generator_lock();
        let run = |checkpointed: bool| {
            let (x, master, b) = (leaf(&[4, 8], 1, CPU), leaf(&[8, 8], 2, CPU), leaf(&[8], 3, CPU));
            let w = &master * 2.0;
            tch::manual_seed(1);
            let loss = two_blocks(&x, &w, &b, checkpointed);
            let grads = autograd::grad(&[&loss], &[None], &[&x, &master, &b], false).unwrap();
            assert!(!master.grad().defined());
            grads.into_iter().map(Option::unwrap).collect::<Vec<_>>()
        };
        assert!(run(true).iter().zip(&run(false)).all(|(a, b)| a.equal(b)));
    }

    #[test]
    fn nested_checkpoints_and_several_outputs_work() {
        let _lock = generator_lock();
        let run = |checkpointed: bool| {
            let (x, y, w) = (leaf(&[3, 3], 1, CPU), leaf(&[3, 3], 2, CPU), leaf(&[3, 3], 3, CPU));
            let inner = move |x: &Tensor, w: &Tensor| -> anyhow::Result<Tensor> {
                let kept = w.shallow_clone();
                let f = move |x: &[Tensor]| Ok(vec![x[0].matmul(&kept).tanh()]);
                Ok(checkpoint(&[x], &[w], f)?.remove(0))
            };
            let kept = w.shallow_clone();
            let outer = move |t: &[Tensor]| {
                let first = inner(&t[0], &kept)?;
                let second = &first * &t[1];
                Ok(vec![first, second, t[1].detach()])
            };
            let outputs = if checkpointed {
                checkpoint(&[&x, &y], &[&w], outer).unwrap()
            } else {
                let h = x.matmul(&w).tanh();
                vec![h.shallow_clone(), h * &y, y.detach()]
            };
            // The first output matters in neither case; the third has no gradient of its own.
            autograd::backward(&(&outputs[1] * &outputs[2]).sum(Kind::Float)).unwrap();
            [x.grad(), y.grad(), w.grad()]
        };
        assert!(run(true).iter().zip(&run(false)).all(|(a, b)| a.equal(b)));
    }

    #[test]
    fn it_runs_once_forward_and_once_backward_and_lets_go() {
        struct Count(Arc<AtomicUsize>, Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.1.fetch_add(1, Ordering::SeqCst);
            }
        }
        let _lock = generator_lock();
        let (runs, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let make = |x: &Tensor| {
            let count = Count(runs.clone(), drops.clone());
            let f = move |x: &[Tensor]| {
                count.0.fetch_add(1, Ordering::SeqCst);
                Ok(vec![&x[0] * 2.0])
            };
            checkpoint(&[x], &[], f).unwrap().remove(0)
        };
        let counts = || (runs.load(Ordering::SeqCst), drops.load(Ordering::SeqCst));
        let x = leaf(&[4], 1, CPU);
        let out = make(&x);
        assert_eq!(counts(), (1, 0));
        autograd::backward(&out.sum(Kind::Float)).unwrap();
        assert_eq!(counts(), (2, 1));
        drop(make(&x));
        assert_eq!(counts(), (3, 2));
        // Nothing to record: no second run, nothing kept.
        let _ = make(&x.detach());
        let _guard = GradMode::set(false);
        assert!(!make(&x).requires_grad());
        assert_eq!(counts(), (5, 4));
    }

    #[test]
    fn a_parameter_that_is_not_listed_is_an_error() {
        let _lock = generator_lock();
        let (x, w) = (leaf(&[2, 3], 1, CPU), leaf(&[3, 5], 2, CPU));
        let kept = w.shallow_clone();
        let out = checkpoint(&[&x], &[], move |x| Ok(vec![x[0].matmul(&(&kept * 2.0))])).unwrap();
        let error = autograd::backward(&out[0].sum(Kind::Float)).unwrap_err().to_string();
        let want = "backward: checkpoint: the closure uses a tensor of shape [3, 5] that requires a \
                    gradient and is neither an input nor in `params`; list it there";
        assert_eq!(error, want);
        assert!(!w.grad().defined());
    }

    #[test]
    fn changes_between_forward_and_backward_are_errors() {
        let _lock = generator_lock();
        let (x, w) = (leaf(&[2, 3], 1, CPU), leaf(&[3, 5], 2, CPU));
        let kept = w.shallow_clone();
        let out = checkpoint(&[&x], &[&w], move |x| Ok(vec![x[0].matmul(&kept)])).unwrap();
        let _ = tch::no_grad(|| w.shallow_clone().fill_(0.0));
        let error = autograd::backward(&out[0].sum(Kind::Float)).unwrap_err().to_string();
        assert!(
            error.contains("a tensor of shape [3, 5] needed by backward was changed"),
            "{error}"
        );
    }

    #[test]
    fn errors_and_panics_of_the_closure_come_out() {
        let _lock = generator_lock();
        let x = leaf(&[2], 1, CPU);
        let error = checkpoint(&[&x], &[], |_| anyhow::bail!("no such layer")).unwrap_err();
        assert_eq!(error.to_string(), "checkpoint: no such layer");
        let second_run = |on_second: fn() -> anyhow::Result<Vec<Tensor>>| {
            let runs = AtomicUsize::new(0);
            let f = move |x: &[Tensor]| {
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    Ok(vec![&x[0] * 2.0])
                } else {
                    on_second()
                }
            };
            let out = checkpoint(&[&x], &[], f).unwrap();
            autograd::backward(&out[0].sum(Kind::Float)).unwrap_err().to_string()
        };
        assert_eq!(second_run(|| anyhow::bail!("later")), "backward: later");
        assert_eq!(second_run(|| panic!("later still")), "backward: panic: later still");
        let error = second_run(|| Ok(vec![]));
        assert_eq!(error, "backward: the closure returned 0 outputs in backward, 1 in forward");
        assert!(autograd::grad_enabled());
    }
}
