//! Memory: how freed memory is kept on the CPU; what CUDA's caching allocator holds and what the device has.

use tch::{Device, Tensor};

use crate::{Result, TorchError, ffi};

const OP: &str = "memory";

/// Memory of one CUDA device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaStats {
    /// In tensors now.
    pub allocated: u64,
    /// Highest `allocated` since start or [`reset_peak`].
    pub peak_allocated: u64,
    /// Taken from the device by the caching allocator now.
    pub reserved: u64,
    /// Highest `reserved` since start or [`reset_peak`].
    pub peak_reserved: u64,
    /// Free on the device, all processes considered.
    pub free: u64,
    /// On the device.
    pub total: u64,
    /// Times an allocation needed the cache flushed first: more than a few mean memory is short.
    pub alloc_retries: u64,
    /// Allocations that failed.
    pub ooms: u64,
}

/// Memory of the CPU's tensors of 64 KiB and more, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuStats {
    /// In tensors now, rounded up to the allocator's sizes.
    pub allocated: u64,
    /// Highest `allocated` since [`keep_freed`] or [`reset_peak`].
    pub peak_allocated: u64,
    /// Taken from the system now: in tensors or kept for the next.
    pub reserved: u64,
}

/// Makes the CPU keep freed tensors' memory for the next tensors, for the rest of the process, as CUDA's caching allocator
/// does: at most a sixteenth more than the most that was in tensors at a time. [`crate::device::resolve`] calls it.
///
/// The C library maps every large tensor anew, and the system clears each of its pages: a third of the time of a training
/// step of GPT-2 124M.
pub fn keep_freed() {
    // SAFETY: no arguments; safe to call again and from any thread.
    unsafe { ffi::te_keep_freed() }
}

/// What the CPU's tensors hold; all 0 before [`keep_freed`].
pub fn cpu_stats() -> CpuStats {
    // SAFETY: no arguments.
    let raw = unsafe { ffi::te_cpu_memory() };
    CpuStats {
        allocated: raw.allocated as u64,
        peak_allocated: raw.peak_allocated as u64,
        reserved: raw.reserved as u64,
    }
}

/// Memory statistics of `device`.
///
/// # Errors
/// `device` is not a CUDA device that is there.
pub fn cuda_stats(device: Device) -> Result<CudaStats> {
    let mut raw = ffi::MemoryStats::default();
    // SAFETY: fills the struct, whose layout the shim shares.
    ffi::check(OP, unsafe { ffi::te_memory_stats(cuda_index(device)?, &raw mut raw) })?;
    Ok(CudaStats {
        allocated: raw.allocated as u64,
        peak_allocated: raw.peak_allocated as u64,
        reserved: raw.reserved as u64,
        peak_reserved: raw.peak_reserved as u64,
        free: raw.free as u64,
        total: raw.total as u64,
        alloc_retries: raw.alloc_retries as u64,
        ooms: raw.ooms as u64,
    })
}

/// Sets the peaks of `device` to the present values.
///
/// # Errors
/// `device` is neither the CPU nor a CUDA device that is there.
pub fn reset_peak(device: Device) -> Result<()> {
    if device == Device::Cpu {
        // SAFETY: no arguments.
        unsafe { ffi::te_cpu_reset_peak() };
        return Ok(());
    }
    // SAFETY: takes a number.
    ffi::check(OP, unsafe { ffi::te_reset_peak_stats(cuda_index(device)?) })
}

/// Gives up the memory of `tensor` and of all that share it; shape, type and place in a graph stay. Nothing may touch its
/// numbers until [`restore`].
///
/// # Errors
/// A view, or a tensor without memory of its own.
pub fn release(tensor: &Tensor) -> Result<()> {
    // SAFETY: borrows the tensor. What would read its numbers now finds no memory: callers keep to what is said above.
    ffi::check(OP, unsafe { ffi::te_storage_release(ffi::ptr(tensor)) })
}

/// Gives a tensor memory again after [`release`]; its numbers are undefined. A tensor that has memory keeps it as it is.
///
/// # Errors
/// As [`release`]; no memory left.
pub fn restore(tensor: &Tensor) -> Result<()> {
    // SAFETY: borrows the tensor.
    ffi::check(OP, unsafe { ffi::te_storage_restore(ffi::ptr(tensor)) })
}

/// Returns the caching allocators' unused memory to the system and to CUDA devices.
///
/// # Errors
/// CUDA reports one.
pub fn empty_cache() -> Result<()> {
    // SAFETY: no arguments.
    unsafe { ffi::te_cpu_release() };
    // SAFETY: no arguments.
    ffi::check(OP, unsafe { ffi::te_empty_cache() })
}

fn cuda_index(device: Device) -> Result<i64> {
    let mut count = 0;
    // SAFETY: writes one number.
    ffi::check(OP, unsafe { ffi::te_device_count(&raw mut count) })?;
    match device {
        Device::Cuda(index) if (index as i64) < count => Ok(index as i64),
        Device::Cuda(index) => {
            let message = format!("cuda:{index} is not there ({count} CUDA devices)");
            Err(TorchError::argument(OP, message))
        }
        other => Err(TorchError::argument(OP, format!("{other:?} is not a CUDA device"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_cuda_is_named() {
        let error = cuda_stats(Device::Cpu).unwrap_err().to_string();
        assert_eq!(error, "memory: Cpu is not a CUDA device");
    }

    #[test]
    fn a_cuda_device_beyond_the_last_is_named() {
        let error = reset_peak(Device::Cuda(4096)).unwrap_err().to_string();
        assert!(error.starts_with("memory: cuda:4096 is not there ("), "{error}");
    }

    fn cpu_tensor(mib: i64) -> Tensor {
        Tensor::ones([mib << 20], (tch::Kind::Int8, Device::Cpu))
    }

    #[test]
    fn freed_memory_serves_the_next_tensor() {
        keep_freed();
        // Another test may take the freed memory in between, but hardly every time.
        let reused = (0..20).any(|_| {
            let first = cpu_tensor(40);
            let address = first.data_ptr();
            drop(first);
            // A little smaller: the same size class.
            let second = Tensor::ones([(40 << 20) - 5000], (tch::Kind::Int8, Device::Cpu));
            second.data_ptr() == address
                && second.sum(tch::Kind::Int64).int64_value(&[]) == (40 << 20) - 5000
        });
        assert!(reused);
    }

    #[test]
    fn what_is_kept_is_bounded_by_what_was_used_and_can_be_released() {
        keep_freed();
        let held = cpu_tensor(128);
        let stats = cpu_stats();
        assert!(
            stats.allocated >= 128 << 20 && stats.peak_allocated >= stats.allocated,
            "{stats:?}"
        );
        drop(held);
        // Sizes that do not serve one another: without a bound all would be kept, 416 MiB.
        for mib in [64, 32, 16, 96, 80, 128] {
            drop(cpu_tensor(mib));
        }
        let stats = cpu_stats();
        assert!(stats.reserved <= stats.peak_allocated + stats.peak_allocated / 16, "{stats:?}");
        // Other tests take and free memory meanwhile, but hardly in between every time.
        let released = || {
            empty_cache().unwrap();
            let stats = cpu_stats();
            stats.reserved == stats.allocated
        };
        assert!((0..100).any(|_| released()), "{:?}", cpu_stats());
        let reset = || {
            reset_peak(Device::Cpu).unwrap();
            let stats = cpu_stats();
            stats.peak_allocated == stats.allocated
        };
        assert!((0..100).any(|_| reset()), "{:?}", cpu_stats());
    }

    #[test]
    fn a_released_tensor_takes_no_memory_and_serves_backward_once_restored() {
        keep_freed();
        let like = (tch::Kind::Float, Device::Cpu);
        let weight = Tensor::ones([8, 1 << 20], like).set_requires_grad(true);
        let numbers = weight.detach().copy();
        let x = Tensor::ones([2, 8], like).set_requires_grad(true);
        let loss = x.matmul(&weight).sum(tch::Kind::Float);
        // Other tests take and free memory meanwhile, but hardly as much every time.
        let freed = || {
            let before = cpu_stats().allocated;
            release(&weight).unwrap();
            let after = cpu_stats().allocated;
            restore(&weight).unwrap();
            before >= after + (32 << 20)
        };
        assert!((0..20).any(|_| freed()));
        release(&weight).unwrap();
        release(&weight).unwrap();
        assert_eq!(weight.size(), [8, 1 << 20]);
        restore(&weight).unwrap();
        let address = weight.data_ptr();
        restore(&weight).unwrap();
        assert_eq!(weight.data_ptr(), address);
        // Without a trace in the version that the graph has seen.
        weight.data().copy_(&numbers);
        crate::autograd::backward(&loss).unwrap();
        assert_eq!(x.grad().double_value(&[1, 3]), f64::from(1 << 20));
        assert_eq!(weight.grad().double_value(&[7, 5]), 2.0);
        let error = release(&weight.narrow(0, 1, 2)).unwrap_err().to_string();
        assert_eq!(error, "memory: the tensor is a view");
    }

    #[test]
    fn emptying_the_cache_needs_no_cuda() {
        empty_cache().unwrap();
    }

    #[test]
    fn cuda_statistics_follow_an_allocation() {
        let Some(device) = crate::device::test_cuda("memory statistics") else { return };
        let before = cuda_stats(device).unwrap();
        let tensor = Tensor::zeros([1 << 20], (tch::Kind::Float, device));
        let during = cuda_stats(device).unwrap();
        assert!(during.allocated >= before.allocated + (4 << 20));
        assert!(during.peak_allocated >= during.allocated && during.total >= during.free);
        drop(tensor);
        assert!(cuda_stats(device).unwrap().allocated < during.allocated);
    }
}
