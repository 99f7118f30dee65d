//! One operation over many tensors at once. None records gradients.

use std::borrow::Borrow;

use tch::{Device, Kind, Tensor};

use crate::{Result, TorchError, ffi};

/// The L2 norm of all elements of all tensors together: an fp32 scalar on their device.
///
/// Accumulated in fp64 on the CPU, in blocks that do not depend on the number of threads, and in
/// fp32 on CUDA, whatever the tensors' (floating) dtypes. Of no tensors: 0 on the CPU. Not finite
/// where an element is not.
///
/// # Errors
/// A tensor is not of a floating dtype.
pub fn norm<T: Borrow<Tensor>>(tensors: &[T]) -> Result<Tensor> {
    const OP: &str = "foreach::norm";
    let mut out = std::ptr::null_mut();
    let list = ffi::ptrs(tensors);
    // SAFETY: borrowed tensors; `out` receives an owned tensor when the call succeeds.
    ffi::check(OP, unsafe { ffi::te_norm(list.as_ptr(), list.len(), &raw mut out) })?;
    let [out] = ffi::take(OP, [out])?;
    Ok(out)
}

/// Multiplies every tensor by `factor` in place.
///
/// # Errors
/// A tensor's dtype cannot hold the product (an integer tensor).
pub fn mul_<T: Borrow<Tensor>>(tensors: &[T], factor: f64) -> Result<()> {
    let list = ffi::ptrs(tensors);
    // SAFETY: borrowed tensors.
    let message = unsafe { ffi::te_mul_scalar(list.as_ptr(), list.len(), factor) };
    ffi::check("foreach::mul_", message)
}

/// Multiplies every tensor in place by `factor`, a scalar tensor on their device: no value leaves
/// the device.
///
/// # Errors
/// `factor` has more than one element.
pub fn mul_tensor_<T: Borrow<Tensor>>(tensors: &[T], factor: &Tensor) -> Result<()> {
    const OP: &str = "foreach::mul_tensor_";
    if factor.numel() != 1 {
        let shape = factor.size();
        return Err(TorchError::argument(
            OP,
            format!("factor has shape {shape:?}, not one number"),
        ));
    }
    let list = ffi::ptrs(tensors);
    // SAFETY: borrowed tensors.
    let message = unsafe { ffi::te_mul_tensor(list.as_ptr(), list.len(), ffi::ptr(factor)) };
    ffi::check(OP, message)
}

/// Sets every tensor to zero.
///
/// # Errors
/// libtorch refuses a tensor.
pub fn zero_<T: Borrow<Tensor>>(tensors: &[T]) -> Result<()> {
    let list = ffi::ptrs(tensors);
    // SAFETY: borrowed tensors.
    ffi::check("foreach::zero_", unsafe { ffi::te_zero(list.as_ptr(), list.len()) })
}

/// `dst[i] += alpha * src[i]`, with `src[i]` of any floating dtype (converted to `dst[i]`'s).
///
/// # Errors
/// The lists or two shapes differ.
pub fn add_<D: Borrow<Tensor>, S: Borrow<Tensor>>(dst: &[D], src: &[S], alpha: f64) -> Result<()> {
    const OP: &str = "foreach::add_";
    same_shapes(OP, dst, src)?;
    let (dst, src) = (ffi::ptrs(dst), ffi::ptrs(src));
    // SAFETY: equally long lists of borrowed tensors.
    ffi::check(OP, unsafe { ffi::te_add(dst.as_ptr(), src.as_ptr(), dst.len(), alpha) })
}

/// `dst[i] = src[i]`, converted to `dst[i]`'s dtype and device.
///
/// # Errors
/// The lists or two shapes differ.
pub fn copy_<D: Borrow<Tensor>, S: Borrow<Tensor>>(dst: &[D], src: &[S]) -> Result<()> {
    const OP: &str = "foreach::copy_";
    same_shapes(OP, dst, src)?;
    let (dst, src) = (ffi::ptrs(dst), ffi::ptrs(src));
    // SAFETY: equally long lists of borrowed tensors.
    ffi::check(OP, unsafe { ffi::te_copy(dst.as_ptr(), src.as_ptr(), dst.len()) })
}

/// Multiplies the gradients in place by `inv_scale` (fp32 scalar tensor, on their device) and
/// returns an fp32 tensor of one element: 1 if any gradient element is infinite or NaN, else 0.
///
/// # Errors
/// A gradient is not of a floating dtype, or on another device than `inv_scale`.
pub fn unscale_<T: Borrow<Tensor>>(grads: &[T], inv_scale: &Tensor) -> Result<Tensor> {
    let device = grads.first().map_or(Device::Cpu, |g| g.borrow().device());
    let found_inf = Tensor::zeros([1], (Kind::Float, device));
    let list = ffi::ptrs(grads);
    let (scale, found) = (ffi::ptr(inv_scale), ffi::ptr(&found_inf));
    // SAFETY: borrowed tensors.
    let message = unsafe { ffi::te_unscale(list.as_ptr(), list.len(), scale, found) };
    ffi::check("foreach::unscale_", message)?;
    Ok(found_inf)
}

pub(crate) fn same_shapes<D: Borrow<Tensor>, S: Borrow<Tensor>>(
    op: &'static str,
    dst: &[D],
    src: &[S],
) -> Result<()> {
    if dst.len() != src.len() {
        let message = format!("{} tensors but {} others", dst.len(), src.len());
        return Err(TorchError::argument(op, message));
    }
    for (index, (d, s)) in dst.iter().zip(src).enumerate() {
        let (d, s) = (d.borrow().size(), s.borrow().size());
        if d != s {
            let message = format!("tensor {index}: shape {d:?} against {s:?}");
            return Err(TorchError::argument(op, message));
        }
    }
    Ok(())
}
