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

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::testing::generator_lock;

    fn repeats(device: Device) {
        let _lock = generator_lock();
        tch::manual_seed(3);
        let _ = Tensor::randn([7], (Kind::Float, device));
        let state = get_state(device).unwrap();
        assert_eq!((state.kind(), state.device()), (Kind::Uint8, Device::Cpu));
        let draw = || draw_normal(device);
        let first = (draw(), draw());
        assert!(!first.0.equal(&first.1));
        set_state(device, &state).unwrap();
        assert!(first.0.equal(&draw()) && first.1.equal(&draw()));
    }

    fn draw_normal(device: Device) -> Tensor {
        // An odd count leaves half of a pair of normal numbers in the state.
        Tensor::randn([17], (Kind::Float, device))
    }

    #[test]
    fn a_state_set_back_repeats_the_draws() {
        repeats(Device::Cpu);
        if let Some(device) = crate::device::test_cuda("generator state") {
            repeats(device);
        }
    }

    #[test]
    fn drawing_bits_advances_the_generator() {
        let _lock = generator_lock();
        let state = get_state(Device::Cpu).unwrap();
        let (a, b) = (draw().unwrap(), draw().unwrap());
        assert_ne!(a, b);
        set_state(Device::Cpu, &state).unwrap();
        assert_eq!(draw().unwrap(), a);
    }

    #[test]
    fn wrong_states_are_refused() {
        let short = Tensor::zeros([3], (Kind::Uint8, Device::Cpu));
        let error = set_state(Device::Cpu, &short).unwrap_err().to_string();
        assert!(error.starts_with("generator: "), "{error}");
        let error = get_state(Device::Mps).unwrap_err().to_string();
        assert_eq!(error, "generator: no generator for Mps");
    }
}
