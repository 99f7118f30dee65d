//! State of the default random generators, for exact resume and exact recomputation.

use tch::{Device, Tensor};

use crate::{Result, TorchError, ffi};

const OP: &str = "generator";

/// The state of `device`'s default generator: a u8 tensor on the CPU, opaque, of fixed length.
///
/// # Errors
/// The device is not there, or has no generator.
pub fn get_state(device: Device) -> Result<Tensor> {
    let mut state = std::ptr::null_mut();
    // SAFETY: `state` receives an owned tensor when the call succeeds.
    ffi::check(OP, unsafe { ffi::te_generator_get(index(device)?, &raw mut state) })?;
    let [state] = ffi::take(OP, [state])?;
    Ok(state)
}

/// Sets the state of `device`'s default generator to one that [`get_state`] returned.
///
/// # Errors
/// `state` is not such a tensor (a u8 CPU tensor of the right length), or the device is not there.
pub fn set_state(device: Device, state: &Tensor) -> Result<()> {
    // SAFETY: borrows `state` for the call.
    ffi::check(OP, unsafe { ffi::te_generator_set(index(device)?, ffi::ptr(state)) })
}

/// Draws 64 random bits from `device`'s default generator, advancing it (CPU generator only).
pub(crate) fn draw() -> Result<u64> {
    let mut bits = 0;
    // SAFETY: writes one u64.
    ffi::check(OP, unsafe { ffi::te_generator_draw(-1, &raw mut bits) })?;
    Ok(bits)
}

/// The shim's device number: -1 for the CPU.
pub(crate) fn index(device: Device) -> Result<i64> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(index) => Ok(index as i64),
        other => Err(TorchError::argument(OP, format!("no generator for {other:?}"))),
    }
}
