//! Memory: how freed memory is kept on the CPU; what CUDA's caching allocator holds and what the device has.

use tch::Device;

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

/// Makes the C library's allocator keep freed memory for the next tensor instead of returning it to the system; returns
/// whether it did (glibc only). Done by [`crate::device::resolve`].
///
/// By default glibc maps every large tensor anew, and the system clears each of its pages: in training that took a third of
/// the time of GPT-2 124M. The process keeps its peak memory instead.
pub fn keep_freed() -> bool {
    // SAFETY: sets options of the allocator; no arguments.
    unsafe { ffi::te_keep_freed() }
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
/// `device` is not a CUDA device that is there.
pub fn reset_peak(device: Device) -> Result<()> {
    // SAFETY: takes a number.
    ffi::check(OP, unsafe { ffi::te_reset_peak_stats(cuda_index(device)?) })
}

/// Returns the caching allocator's unused memory to the devices. Does nothing without CUDA.
///
/// # Errors
/// CUDA reports one.
pub fn empty_cache() -> Result<()> {
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

    #[test]
    #[cfg(target_env = "gnu")]
    fn freed_memory_is_kept_for_the_next_tensor() {
        assert!(keep_freed());
        // 64 MiB of fresh memory are 16,384 pages, half of them or more touched by this thread. Another test may take the
        // freed piece in between, but hardly five times.
        let faults = || {
            let before = minor_faults();
            drop(tch::Tensor::ones([64 << 20], (tch::Kind::Int8, tch::Device::Cpu)));
            minor_faults() - before
        };
        faults();
        let fewest = (0..5).map(|_| faults()).min();
        assert!(fewest < Some(1024), "{fewest:?} page faults");
    }

    /// Page faults of this thread so far: field 10 of proc(5)'s stat.
    #[cfg(target_env = "gnu")]
    fn minor_faults() -> u64 {
        let stat = fs_err::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn emptying_the_cache_needs_no_cuda() {
        empty_cache().unwrap();
    }

    #[test]
    fn cuda_statistics_follow_an_allocation() {
        let Some(device) = crate::device::test_cuda("memory statistics") else { return };
        let before = cuda_stats(device).unwrap();
        let tensor = tch::Tensor::zeros([1 << 20], (tch::Kind::Float, device));
        let during = cuda_stats(device).unwrap();
        assert!(during.allocated >= before.allocated + (4 << 20));
        assert!(during.peak_allocated >= during.allocated && during.total >= during.free);
        drop(tensor);
        assert!(cuda_stats(device).unwrap().allocated < during.allocated);
    }
}
