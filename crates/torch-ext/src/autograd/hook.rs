//! Closures that run while a backward pass is still under way.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use super::panic_text;
use crate::{Result, ffi};

type Hook = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// Takes the closure away from its leaf when dropped.
#[derive(Debug)]
#[must_use = "the hook ends when this is dropped"]
pub struct GradHook(*mut c_void);

// SAFETY: the pointer is used once more, to take the hook away.
unsafe impl Send for GradHook {}

impl Drop for GradHook {
    fn drop(&mut self) {
        // SAFETY: owned, and dropped once.
        unsafe { ffi::te_grad_hook_free(self.0) }
    }
}

/// Runs `f` each time a backward pass has added all it has for `leaf` to its gradient, while the pass goes on with the rest.
///
/// An error or a panic of `f` ends the backward pass, which returns it as [`crate::TorchError::Closure`].
///
/// # Errors
/// `leaf` is no leaf, or requires no gradient.
pub fn on_grad<F>(leaf: &Tensor, f: F) -> Result<GradHook>
where
    F: FnMut() -> anyhow::Result<()> + Send + 'static,
{
    let hook: Box<Hook> = Box::new(Box::new(f));
    let mut out = std::ptr::null_mut();
    // SAFETY: borrows the leaf; the shim takes the closure over and calls `drop_hook` on it exactly once, also when it fails.
    let message = unsafe {
        ffi::te_on_grad(
            ffi::ptr(leaf),
            Box::into_raw(hook).cast(),
            call_hook,
            drop_hook,
            &raw mut out,
        )
    };
    ffi::check("on_grad", message)?;
    Ok(GradHook(out))
}

unsafe extern "C" fn call_hook(hook: *mut c_void, message: *mut *mut c_char) -> i32 {
    // SAFETY: the closure that `on_grad` made; a leaf's node runs on one thread at a time.
    let run = || unsafe { (*hook.cast::<Hook>())() };
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => format!("{error:#}"),
        Err(payload) => format!("panic: {}", panic_text(payload.as_ref())),
    };
    // SAFETY: the shim copies the text and frees its copy.
    unsafe { *message = ffi::te_text(failure.as_ptr().cast(), failure.len()) };
    1
}

unsafe extern "C" fn drop_hook(hook: *mut c_void) {
    // SAFETY: the pointer `on_grad` made, given back once.
    let run = || drop(unsafe { Box::from_raw(hook.cast::<Hook>()) });
    if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
        std::mem::forget(payload);
    }
}
