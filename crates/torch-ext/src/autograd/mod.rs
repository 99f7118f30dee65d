//! Autograd nodes from Rust closures, and backward passes that return their errors.

mod hook;

use std::any::Any;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

pub use self::hook::{GradHook, on_grad};
use crate::ffi::{self, Ptr};
use crate::{Result, TorchError};

/// The gradients a closure returns, one an input of its node, in order; `None` for an input that
/// needs none.
pub type Gradients = Vec<Option<Tensor>>;

/// Makes `outputs`, computed from `inputs` without autograd, differentiable by `backward`.
///
/// Returns the outputs as the results of one autograd node. `backward` gets the gradient of each
/// output (`None` where nothing depends on that output) and returns the gradient of each input:
/// same shape, dtype and device as the input. It runs without autograd, once a backward pass, on
/// whatever thread libtorch picks (hence `Send`). Where no gradient is being recorded (grad mode
/// off, or no input requires one) the outputs come back as they are and `backward` is dropped.
///
/// What `backward` needs of the forward pass it owns: tensors go in as [`SavedTensor`]s, never as
/// shallow clones of tensors with a history, which would keep graphs alive. It is dropped when the
/// graph is released: after a backward pass that does not keep the graph, or with the last tensor
/// that depends on it.
///
/// An error or a panic in `backward` ends the backward pass: [`backward()`] and [`grad`] return it
/// as [`TorchError::Closure`]. The node is differentiable once: a backward pass that records its
/// own graph is refused.
///
/// # Errors
/// An output requires a gradient (it was computed with autograd on).
pub fn custom<F>(
    name: &'static str,
    inputs: &[&Tensor],
    outputs: &[Tensor],
    backward: F,
) -> Result<Vec<Tensor>>
where
    F: FnMut(&[Option<Tensor>]) -> anyhow::Result<Gradients> + Send + 'static,
{
    let c_name = CString::new(name).map_err(|e| TorchError::argument(name, e.to_string()))?;
    let closure: Box<Closure> = Box::new(Box::new(backward));
    let mut results = vec![std::ptr::null_mut(); outputs.len()];
    let (inputs, outputs) = (ffi::ptrs(inputs), ffi::ptrs(outputs));
    // SAFETY: the pointers are borrowed for the call, `results` has room for one tensor an output,
    // and the shim takes over the closure: it calls `drop_closure` on it exactly once.
    let message = unsafe {
        ffi::te_custom(
            c_name.as_ptr(),
            inputs.as_ptr(),
            inputs.len(),
            outputs.as_ptr(),
            outputs.len(),
            results.as_mut_ptr(),
            Box::into_raw(closure).cast(),
            apply_closure,
            drop_closure,
        )
    };
    ffi::check(name, message)?;
    Ok(results.into_iter().filter_map(ffi::take_opt).collect())
}

/// Back-propagates from `loss`, a scalar, into the `grad` of every leaf it depends on; the graph is
/// released.
///
/// # Errors
/// [`TorchError::Closure`] with the message of a [`custom`] node's closure that failed or panicked;
/// [`TorchError::Libtorch`] for libtorch's own (no graph, used twice, not a scalar, ...).
pub fn backward(loss: &Tensor) -> Result<()> {
    backward_from(&[loss], &[None], false)
}

/// [`backward()`] from several tensors, with the gradient of each (`None`: 1, scalars only).
///
/// # Errors
/// As [`backward()`].
pub fn backward_from(
    tensors: &[&Tensor],
    grads: &[Option<&Tensor>],
    retain_graph: bool,
) -> Result<()> {
    same_len("backward", tensors.len(), grads.len())?;
    let tensors = ffi::ptrs(tensors);
    let grads: Vec<Ptr> = grads.iter().map(|g| ffi::opt_ptr(*g)).collect();
    // SAFETY: equally long lists of borrowed tensors, null for no gradient.
    let message =
        unsafe { ffi::te_backward(tensors.as_ptr(), grads.as_ptr(), tensors.len(), retain_graph) };
    ffi::check("backward", message)
}

/// The gradients of `outputs`, weighted by `grad_outputs` (`None`: 1, scalars only), with respect to
/// `inputs`; `None` for an input the outputs do not depend on. No tensor's `grad` changes.
///
/// # Errors
/// As [`backward()`].
pub fn grad(
    outputs: &[&Tensor],
    grad_outputs: &[Option<&Tensor>],
    inputs: &[&Tensor],
    retain_graph: bool,
) -> Result<Gradients> {
    same_len("grad", outputs.len(), grad_outputs.len())?;
    let outputs = ffi::ptrs(outputs);
    let grad_outputs: Vec<Ptr> = grad_outputs.iter().map(|g| ffi::opt_ptr(*g)).collect();
    let inputs = ffi::ptrs(inputs);
    let mut results = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: borrowed tensors in lists of the lengths given; `results` has room for one an input.
    let message = unsafe {
        ffi::te_grad(
            outputs.as_ptr(),
            grad_outputs.as_ptr(),
            outputs.len(),
            inputs.as_ptr(),
            inputs.len(),
            retain_graph,
            results.as_mut_ptr(),
        )
    };
    ffi::check("grad", message)?;
    Ok(results.into_iter().map(ffi::take_opt).collect())
}

fn same_len(op: &'static str, tensors: usize, grads: usize) -> Result<()> {
    if tensors == grads {
        return Ok(());
    }
    Err(TorchError::argument(op, format!("{tensors} tensors but {grads} gradients")))
}

/// A tensor kept for the backward pass: its values without its history, and the promise that
/// nobody changed it in place since.
#[derive(Debug)]
pub struct SavedTensor {
    data: Tensor,
    version: u64,
}

impl SavedTensor {
    /// Saves `tensor`. Shares its memory; keeps no graph alive.
    ///
    /// # Errors
    /// `tensor` is undefined or an inference tensor.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let mut data = std::ptr::null_mut();
        // SAFETY: borrows `tensor`; `data` receives an owned tensor when the call succeeds.
        ffi::check(SAVED, unsafe { ffi::te_tensor_data(ffi::ptr(tensor), &raw mut data) })?;
        let [data] = ffi::take(SAVED, [data])?;
        let version = version(&data)?;
        Ok(Self { data, version })
    }

    /// The saved values; the result does not require a gradient.
    ///
    /// # Errors
    /// The tensor was changed in place since it was saved, so a gradient from it would be wrong.
    pub fn get(&self) -> Result<&Tensor> {
        let now = version(&self.data)?;
        if now == self.version {
            return Ok(&self.data);
        }
        let (shape, saved) = (self.data.size(), self.version);
        Err(TorchError::argument(
            SAVED,
            format!(
                "a tensor of shape {shape:?} needed by backward was changed in place \
                 (version {now}, saved at {saved})"
            ),
        ))
    }
}

const SAVED: &str = "saved tensor";

/// Takes the gradient that backward left on a leaf, so that the next backward pass leaves a new one instead of adding.
///
/// # Errors
/// libtorch reports one.
pub fn take_grad(leaf: &Tensor) -> Result<Option<Tensor>> {
    let mut result = std::ptr::null_mut();
    // SAFETY: borrows `leaf`; one result, null for none.
    let message = unsafe { ffi::te_take_grad(ffi::ptr(leaf), &raw mut result) };
    ffi::check("take_grad", message)?;
    Ok(ffi::take_opt(result))
}

/// How often this tensor, or another that shares its memory, has been changed in place.
///
/// # Errors
/// It is an inference tensor.
pub fn version(tensor: &Tensor) -> Result<u64> {
    let mut version = 0;
    // SAFETY: borrows `tensor` and writes one number.
    ffi::check(SAVED, unsafe { ffi::te_tensor_version(ffi::ptr(tensor), &raw mut version) })?;
    Ok(version)
}

/// Whether the backward pass that is running on this thread keeps its graph. If not, a closure runs
/// for the last time and may change what it owns in place.
pub fn keeps_graph() -> bool {
    // SAFETY: reads a thread-local.
    unsafe { ffi::te_keeps_graph() }
}

/// Whether operations on this thread record gradients.
pub fn grad_enabled() -> bool {
    // SAFETY: reads a thread-local.
    unsafe { ffi::te_grad_enabled() }
}

/// Sets this thread's grad mode until dropped, also when a panic unwinds.
#[derive(Debug)]
pub struct GradMode {
    before: bool,
    // Grad mode is per thread, so the guard must stay on its own.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl GradMode {
    /// Records gradients (`true`) or not (`false`) from now until the guard is dropped.
    #[must_use = "grad mode goes back when the guard is dropped"]
    pub fn set(enabled: bool) -> Self {
        let before = grad_enabled();
        // SAFETY: writes a thread-local.
        unsafe { ffi::te_set_grad_enabled(enabled) };
        Self { before, _not_send: std::marker::PhantomData }
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        // SAFETY: writes a thread-local.
        unsafe { ffi::te_set_grad_enabled(self.before) };
    }
}

#[cfg(test)]
mod tests;

type Closure = Box<dyn FnMut(&[Option<Tensor>]) -> anyhow::Result<Gradients> + Send>;

/// Called by the shim's node. Returns 0, or 1 with `message` set.
unsafe extern "C" fn apply_closure(
    closure: *mut c_void,
    grads: *const Ptr,
    n_grads: usize,
    outputs: *mut Ptr,
    n_outputs: usize,
    message: *mut *mut c_char,
) -> i32 {
    let run = || -> std::result::Result<(), String> {
        // SAFETY: the shim passes the closure that `custom` made, under the node's lock, and
        // `n_grads` owned tensors (null for none), which are taken over here.
        let (closure, grads) = unsafe {
            let grads = std::slice::from_raw_parts(grads, n_grads);
            (&mut *closure.cast::<Closure>(), grads.iter().map(|g| ffi::take_opt(*g)).collect())
        };
        let grads: Vec<Option<Tensor>> = grads;
        let results = closure(&grads).map_err(|error| format!("{error:#}"))?;
        if results.len() != n_outputs {
            let got = results.len();
            return Err(format!("backward returned {got} gradients for {n_outputs} inputs"));
        }
        for (index, tensor) in results.into_iter().enumerate() {
            let Some(tensor) = tensor else { continue };
            // SAFETY: `outputs` has room for `n_outputs`; the shim takes the tensor over.
            unsafe { *outputs.add(index) = ffi::ptr(&tensor) };
            std::mem::forget(tensor);
        }
        Ok(())
    };
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return 0,
        Ok(Err(text)) => text,
        Err(payload) => format!("panic: {}", panic_text(payload.as_ref())),
    };
    // SAFETY: the shim copies the text and frees its copy.
    unsafe { *message = ffi::te_text(failure.as_ptr().cast(), failure.len()) };
    1
}

unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    let run = || {
        // SAFETY: the pointer `custom` made, given back once.
        drop(unsafe { Box::from_raw(closure.cast::<Closure>()) });
    };
    // A panic while dropping has nobody to go to: the panic hook has reported it. Its payload could
    // panic again.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
        std::mem::forget(payload);
    }
}

/// The text of a panic's payload. Of tch's panics only what libtorch says, not its C++ backtrace.
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)");
    match text.strip_prefix("called `Result::unwrap()` on an `Err` value: Torch(\"") {
        Some(message) => message.split("\\nException raised").next().unwrap_or(message),
        None => text,
    }
    .to_owned()
}
