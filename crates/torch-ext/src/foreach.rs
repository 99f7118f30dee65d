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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{max_error, random};

    const SHAPES: [&[i64]; 5] = [&[3, 4], &[], &[7], &[0, 2], &[300, 401]];

    fn tensors(seed: u64, kind: Kind, device: Device) -> Vec<Tensor> {
        let make = |(i, s): (usize, &&[i64])| random(s, seed + i as u64, kind, device);
        SHAPES.iter().enumerate().map(make).collect()
    }

    fn cpu(seed: u64, kind: Kind) -> Vec<Tensor> {
        tensors(seed, kind, Device::Cpu)
    }

    fn exact_norm(tensors: &[Tensor]) -> f64 {
        let square = |t: &Tensor| {
            let exact = t.detach().to_kind(Kind::Double);
            f64::try_from(exact.square().sum(Kind::Double)).unwrap()
        };
        tensors.iter().map(square).sum::<f64>().sqrt()
    }

    fn norm_of(tensors: &[Tensor]) -> f64 {
        let norm = norm(tensors).unwrap();
        assert_eq!((norm.kind(), norm.size()), (Kind::Float, vec![]));
        f64::try_from(norm).unwrap()
    }

    #[test]
    fn norm_is_exact_to_fp32() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            let all = cpu(1, kind);
            let (got, want) = (norm_of(&all), exact_norm(&all));
            assert!((got / want - 1.0).abs() < 2e-7, "{kind:?}: {got} against {want}");
        }
        let mixed =
            cpu(1, Kind::Float).into_iter().chain(cpu(2, Kind::BFloat16)).collect::<Vec<_>>();
        assert!((norm_of(&mixed) / exact_norm(&mixed) - 1.0).abs() < 2e-7);
        assert_eq!(norm_of(&[]), 0.0);
        // Many small squares: a running fp32 sum would stop growing.
        let many = Tensor::full([10_000_000], 1e-3, (Kind::Float, Device::Cpu));
        let want = 1e-3 * 1e7f64.sqrt();
        assert!((norm_of(&[many]) / want - 1.0).abs() < 2e-7);
    }

    fn version(tensor: &Tensor) -> u64 {
        let mut version = 0;
        // SAFETY: borrows the tensor and writes one number.
        ffi::check("", unsafe { ffi::te_tensor_version(ffi::ptr(tensor), &raw mut version) })
            .unwrap();
        version
    }

    #[test]
    fn norm_reads_views_and_does_not_depend_on_threads() {
        let big = random(&[500, 700], 3, Kind::Float, Device::Cpu).detach();
        let view = big.slice(1, 3, 600, 7);
        assert!((norm_of(&[view.shallow_clone()]) / exact_norm(&[view]) - 1.0).abs() < 2e-7);
        let before = crate::device::threads();
        let norms = [1, 2, 3, 7].map(|threads| {
            crate::device::set_threads(threads);
            norm_of(&[big.transpose(0, 1)])
        });
        crate::device::set_threads(before);
        assert!(norms.iter().all(|n| n.to_bits() == norms[0].to_bits()), "{norms:?}");
    }

    #[test]
    fn norm_shows_what_is_not_finite() {
        let all = cpu(1, Kind::Float);
        let _ = all[4].detach().get(299).get(400).fill_(f64::NAN);
        assert!(norm_of(&all).is_nan());
        let _ = all[4].detach().get(299).get(400).fill_(f64::INFINITY);
        assert!(norm_of(&all).is_infinite());
        let error =
            norm(&[Tensor::zeros([2], (Kind::Int64, Device::Cpu))]).unwrap_err().to_string();
        assert_eq!(error, "foreach::norm: a tensor is of dtype Long");
    }

    #[test]
    fn scaling_adding_copying_and_zeroing() {
        let (a, b) = (cpu(1, Kind::Float), cpu(11, Kind::BFloat16));
        let old: Vec<Tensor> = a.iter().map(|t| t.detach().copy()).collect();
        mul_(&a, 0.5).unwrap();
        mul_tensor_(&a, &Tensor::from_slice(&[3.0f32])).unwrap();
        add_(&a, &b, -2.0).unwrap();
        for ((a, old), b) in a.iter().zip(&old).zip(&b) {
            assert!(a.requires_grad() && a.is_leaf());
            assert!(version(a) >= 3, "autograd must see the changes");
            let want = old * 1.5 - b.detach().to_kind(Kind::Float) * 2.0;
            assert!(max_error(&a.detach(), &want) < 1e-6);
        }
        copy_(&b, &a).unwrap();
        copy_(&a, &old).unwrap();
        zero_(&old).unwrap();
        for ((a, b), old) in a.iter().zip(&b).zip(&old) {
            assert_eq!(b.kind(), Kind::BFloat16);
            assert_eq!(max_error(old, &a.detach().zeros_like()), 0.0);
        }
        assert!(max_error(&a[0].detach(), &cpu(1, Kind::Float)[0].detach()) < 1e-9);
    }

    #[test]
    fn nothing_to_do_is_fine() {
        let none: [Tensor; 0] = [];
        mul_(&none, 2.0).unwrap();
        mul_tensor_(&none, &Tensor::from(1.0)).unwrap();
        zero_(&none).unwrap();
        add_(&none, &none, 1.0).unwrap();
        copy_(&none, &none).unwrap();
        let found = unscale_(&none, &Tensor::from(1.0f32)).unwrap();
        assert_eq!(f64::try_from(found).unwrap(), 0.0);
    }

    #[test]
    fn unscaling_finds_what_is_not_finite() {
        let inv_scale = Tensor::from(0.25f32);
        let grads: Vec<Tensor> = cpu(1, Kind::Float).iter().map(Tensor::detach).collect();
        let old: Vec<Tensor> = grads.iter().map(Tensor::copy).collect();
        assert_eq!(f64::try_from(unscale_(&grads, &inv_scale).unwrap()).unwrap(), 0.0);
        for (new, old) in grads.iter().zip(&old) {
            assert!(new.equal(&(old * 0.25)));
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let _ = grads[4].get(150).get(7).fill_(bad);
            assert_eq!(f64::try_from(unscale_(&grads, &inv_scale).unwrap()).unwrap(), 1.0);
        }
    }

    #[test]
    fn lists_that_do_not_fit_are_named() {
        let (a, b) = (cpu(1, Kind::Float), cpu(2, Kind::Float));
        let error = add_(&a, &b[1..], 1.0).unwrap_err().to_string();
        assert_eq!(error, "foreach::add_: 5 tensors but 4 others");
        let error = copy_(&a[..1], &b[2..3]).unwrap_err().to_string();
        assert_eq!(error, "foreach::copy_: tensor 0: shape [3, 4] against [7]");
        let error = mul_tensor_(&a, &b[0]).unwrap_err().to_string();
        assert_eq!(error, "foreach::mul_tensor_: factor has shape [3, 4], not one number");
    }

    #[test]
    fn cuda_lists() {
        let Some(device) = crate::device::test_cuda("lists of tensors") else { return };
        let grads: Vec<Tensor> =
            tensors(1, Kind::Float, device).iter().map(Tensor::detach).collect();
        let want = exact_norm(&grads);
        assert!((norm_of(&grads) / want - 1.0).abs() < 1e-5);
        let inv_scale = Tensor::from(0.5f32).to_device(device);
        assert_eq!(f64::try_from(unscale_(&grads, &inv_scale).unwrap()).unwrap(), 0.0);
        assert!((norm_of(&grads) / want - 0.5).abs() < 1e-5);
    }
}
