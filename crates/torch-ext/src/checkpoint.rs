//! Activation checkpointing: keep a block's inputs, compute its activations again in backward.

use tch::{Device, Tensor};

use crate::autograd::{self, GradMode, Gradients, SavedTensor};
use crate::{Result, TorchError, ffi, generator};

const OP: &str = "checkpoint";

/// `f(inputs)` without keeping its activations: backward runs `f` again (Chen et al. 2016, arXiv
/// 1604.06174).
///
/// `f` gets `inputs` (in forward as given, in backward as detached leaves) and may use other
/// tensors it owns shallow clones of. Those that require a gradient must be listed in `params`;
/// listed ones that do not are fine. Gradients go to `inputs` and `params` as one node's, exactly as
/// if `f` had run with autograd on, and bit for bit the same where `f` is deterministic: the random
/// generators of the CPU and of the inputs' CUDA device are set back for the second run of `f`, and
/// forward again after it. Works when only `params` require gradients. With grad mode off it is just
/// `f(inputs)`.
///
/// `f` must not change tensors in place that it did not make, and must not have other lasting
/// effects: it runs twice, the second time on autograd's thread (hence `Send`).
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
