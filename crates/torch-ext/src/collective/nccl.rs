//! NCCL: collectives from GPU to GPU.

use std::time::Duration;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use tch::Device;

use super::{Group, Store, millis, number};
use crate::ffi::{self, NcclFunctions};
use crate::{Result, TorchError};

const OP: &str = "nccl";

/// The library's name; the one that libtorch's CUDA library has loaded is found by it.
const LIBRARY: &str = "libnccl.so.2";

/// The first version whose operations need not block, as 2.14.0.
const OLDEST: i32 = 21_400;

/// NCCL's library, loaded for the rest of the process.
#[derive(Debug, Clone, Copy)]
pub struct Nccl {
    functions: NcclFunctions,
    version: i32,
}

impl Nccl {
    /// Loads it.
    ///
    /// # Errors
    /// It is not to be found, too old, or no NCCL.
    pub fn load() -> Result<Self> {
        let failed =
            |error: libloading::Error| TorchError::argument(OP, crate::device::reason(&error));
        // SAFETY: loading runs the library's initialisers, which touch nothing of ours.
        let library =
            unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) }.map_err(failed)?;
        // SAFETY: the names and types are those of nccl.h, the same in every version since 2.14.
        let nccl = unsafe { Self::find(&library) }.map_err(failed)?;
        // Its functions are to be there as long as the process.
        std::mem::forget(library);
        if nccl.version < OLDEST {
            let message = format!("NCCL is {}; 2.14 or later is needed", nccl.version());
            return Err(TorchError::argument(OP, message));
        }
        Ok(nccl)
    }

    /// # Safety
    /// `library` is NCCL and stays loaded.
    unsafe fn find(library: &Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: as the caller says; each field's type is that of the function of its name.
        unsafe {
            let functions = NcclFunctions {
                error_string: *library.get(b"ncclGetErrorString\0")?,
                last_error: *library.get(b"ncclGetLastError\0")?,
                unique_id: *library.get(b"ncclGetUniqueId\0")?,
                init: *library.get(b"ncclCommInitRankConfig\0")?,
                async_error: *library.get(b"ncclCommGetAsyncError\0")?,
                finalize: *library.get(b"ncclCommFinalize\0")?,
                destroy: *library.get(b"ncclCommDestroy\0")?,
                abort: *library.get(b"ncclCommAbort\0")?,
                all_reduce: *library.get(b"ncclAllReduce\0")?,
                broadcast: *library.get(b"ncclBroadcast\0")?,
                all_gather: *library.get(b"ncclAllGather\0")?,
                reduce_scatter: *library.get(b"ncclReduceScatter\0")?,
            };
            let get_version: Symbol<unsafe extern "C" fn(*mut i32) -> i32> =
                library.get(b"ncclGetVersion\0")?;
            let mut version = 0;
            get_version(&raw mut version);
            Ok(Self { functions, version })
        }
    }

    /// For instance `2.28.9`.
    #[must_use]
    pub fn version(&self) -> String {
        let (major, rest) = (self.version / 10_000, self.version % 10_000);
        format!("{major}.{}.{}", rest / 100, rest % 100)
    }
}

impl Group {
    /// Meets the other ranks at `store` and connects the GPUs, of which each rank has one of its own. An operation that takes
    /// longer than `timeout` fails, and with it the whole group. Its tensors are on `device`, in the integer types of 8, 32 and
    /// 64 bits, fp16, bf16, fp32 or fp64.
    ///
    /// Operations run on a stream beside the device's current one, after what is there when they begin; [`super::Work::wait`]
    /// waits for the device.
    ///
    /// # Errors
    /// `device` is not CUDA's; a rank does not come in time; two ranks have the same GPU.
    pub fn nccl(
        nccl: &Nccl,
        store: &Store,
        rank: usize,
        size: usize,
        device: Device,
        timeout: Duration,
    ) -> Result<Self> {
        let Device::Cuda(index) = device else {
            return Err(TorchError::argument(OP, format!("{device:?} is not a CUDA device")));
        };
        Self::with_functions(&nccl.functions, store, (rank, size), index as i64, timeout)
    }

    /// A negative `device` is the CPU, for functions that stand in for NCCL's.
    fn with_functions(
        functions: &NcclFunctions,
        store: &Store,
        (rank, size): (usize, usize),
        device: i64,
        timeout: Duration,
    ) -> Result<Self> {
        let (own, all) = (number(rank)?, number(size)?);
        Self::connect(rank, size, |raw| {
            // SAFETY: borrows the store; the functions are copied, and `raw` receives an owned group on success.
            unsafe {
                ffi::te_group_nccl(store.0, own, all, device, millis(timeout), functions, raw)
            }
        })
    }
}

#[cfg(test)]
mod tests;
