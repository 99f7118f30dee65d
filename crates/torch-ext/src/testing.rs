//! What this crate's tests share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

/// Held by tests that use the default generator, which is the process's: tests run in parallel.
pub(crate) fn generator_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// About standard normal numbers that depend on nothing but the shape and the seed, as a leaf that
/// requires a gradient.
pub(crate) fn random(shape: &[i64], seed: u64, kind: Kind, device: Device) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let count: i64 = shape.iter().product();
    // The sum of four uniform numbers has variance 1/3.
    let values: Vec<f64> =
        (0..count).map(|_| ((0..4).map(|_| uniform()).sum::<f64>() - 2.0) * 3f64.sqrt()).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind).to_device(device).set_requires_grad(true)
}

/// The largest absolute difference; NaN anywhere gives infinity.
pub(crate) fn max_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    if a.numel() == 0 {
        return 0.0;
    }
    let difference = a.to_kind(Kind::Double) - b.to_kind(Kind::Double).to_device(a.device());
    let error = f64::try_from(difference.abs().max()).unwrap();
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The largest absolute difference over the largest absolute value of `want` (at least `floor`).
pub(crate) fn relative_error(got: &Tensor, want: &Tensor, floor: f64) -> f64 {
    if want.numel() == 0 {
        return max_error(got, want);
    }
    let largest = f64::try_from(want.abs().max().to_kind(Kind::Double)).unwrap();
    max_error(got, want) / largest.max(floor)
}
