//! Devices: CUDA loaded at run time, device names resolved, threads and versions.

use std::ffi::CStr;
use std::sync::OnceLock;

use tch::Device;

use crate::{ffi, memory};

/// Whether CUDA can be used in this process, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaStatus {
    /// The CUDA library is loaded and sees this many devices (at least one).
    Ready {
        /// Number of devices.
        devices: usize,
    },
    /// The CUDA library is loaded but sees no device.
    NoDevice,
    /// The CUDA library could not be loaded.
    NotLoaded {
        /// The dynamic linker's message, which names the file that is missing.
        reason: String,
    },
}

impl CudaStatus {
    /// The number of usable devices.
    pub fn devices(&self) -> usize {
        if let Self::Ready { devices } = self { *devices } else { 0 }
    }
}

impl std::fmt::Display for CudaStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready { devices: 1 } => write!(f, "1 device"),
            Self::Ready { devices } => write!(f, "{devices} devices"),
            Self::NoDevice => write!(f, "the CUDA library is loaded but sees no device"),
            Self::NotLoaded { reason } => write!(f, "not loaded: {reason}"),
        }
    }
}

/// Why a device could not be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// The text is no device name.
    #[error("unknown device {spec:?}; use auto, cpu, cuda or cuda:N")]
    Unknown {
        /// The text given.
        spec: String,
    },
    /// CUDA refuses the device.
    #[error("device {spec} cannot be used: {reason}")]
    Unusable {
        /// The device asked for.
        spec: String,
        /// CUDA's words.
        reason: String,
    },
    /// The device is not on this machine or not usable.
    #[error("device {spec} is not there: CUDA: {status}; use --device cpu or auto")]
    NotThere {
        /// The device asked for.
        spec: String,
        /// What CUDA said.
        status: CudaStatus,
    },
}

/// Loads `libtorch_cuda.so` where its dependencies are present; done once a process, kept loaded.
///
/// Call it (or [`resolve`]) before any other tensor work: libtorch settles at its first look at
/// CUDA whether there is any. Without CUDA nothing happens but the returned reason.
pub fn load_cuda() -> CudaStatus {
    static STATUS: OnceLock<CudaStatus> = OnceLock::new();
    STATUS.get_or_init(load_cuda_once).clone()
}

fn load_cuda_once() -> CudaStatus {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's initialisers, which register the CUDA backend with the
    // libtorch already in this process; both come from the same installation.
    match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        // The library registered functions with libtorch: it must never be unloaded.
        Ok(library) => std::mem::forget(library),
        Err(error) => return CudaStatus::NotLoaded { reason: reason(&error) },
    }
    match usize::try_from(tch::Cuda::device_count()) {
        Ok(devices) if devices > 0 => CudaStatus::Ready { devices },
        _ => CudaStatus::NoDevice,
    }
}

/// The message of the dynamic linker inside `error`.
pub(crate) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The device that `spec` names: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`
/// (the first) or `cuda:N`. Makes a CUDA device this thread's current one, and sets the CPU's allocator up: see
/// [`memory::keep_freed`].
///
/// # Errors
/// The name is unknown, or that device is not there (the error says what is) or not usable.
pub fn resolve(spec: &str) -> Result<Device, DeviceError> {
    memory::keep_freed();
    let cuda = |index: usize| {
        let status = load_cuda();
        if index < status.devices() {
            // SAFETY: takes a number.
            let message = unsafe { ffi::te_set_device(index as i64) };
            ffi::check("device", message).map_err(|error| DeviceError::Unusable {
                spec: spec.to_owned(),
                reason: error.to_string(),
            })?;
            Ok(Device::Cuda(index))
        } else {
            Err(DeviceError::NotThere { spec: spec.to_owned(), status })
        }
    };
    match spec {
        "auto" if load_cuda().devices() > 0 => cuda(0),
        "auto" | "cpu" => Ok(Device::Cpu),
        "cuda" => cuda(0),
        _ => match spec.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => cuda(index),
            _ => Err(DeviceError::Unknown { spec: spec.to_owned() }),
        },
    }
}

/// Threads that one CPU operation may use.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Sets [`threads`] for the whole process. Sums on the CPU may round differently with another
/// number, so a run that is to be repeated bit by bit keeps it.
///
/// # Panics
/// `threads` is 0.
pub fn set_threads(threads: usize) {
    assert!(threads > 0, "at least one thread is needed");
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// The libtorch version, such as `2.11.0`.
pub fn libtorch_version() -> String {
    // SAFETY: a static text.
    unsafe { CStr::from_ptr(ffi::te_version()) }.to_string_lossy().into_owned()
}

/// The instruction set libtorch's CPU kernels use: `DEFAULT`, `AVX2`, `AVX512`, ...
pub fn cpu_capability() -> String {
    let mut text = std::ptr::null_mut();
    // SAFETY: `text` receives an owned text when the call succeeds.
    match ffi::check("cpu_capability", unsafe { ffi::te_cpu_capability(&raw mut text) }) {
        Ok(()) => ffi::take_text(text),
        Err(error) => error.to_string(),
    }
}

/// The instruction set this crate's own CPU kernels use: `baseline`, `avx2` or `avx512`.
pub fn kernel_isa() -> String {
    // SAFETY: a static text.
    unsafe { CStr::from_ptr(ffi::te_kernel_isa()) }.to_string_lossy().into_owned()
}

/// How fast bf16 matrix products are on this CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuBf16 {
    /// Matrix tiles (AMX).
    Tiles,
    /// Dot-product instructions (AVX512-BF16): about three times fp32.
    DotProducts,
    /// Emulated: right, but slower than fp32.
    Emulated,
}

/// What this CPU offers for bf16.
pub fn cpu_bf16() -> CpuBf16 {
    #[cfg(target_arch = "x86_64")]
    {
        let info = std::arch::x86_64::__cpuid_count(7, 0);
        if info.edx & (1 << 22) != 0 {
            return CpuBf16::Tiles;
        }
        if info.eax >= 1 && std::arch::x86_64::__cpuid_count(7, 1).eax & (1 << 5) != 0 {
            return CpuBf16::DotProducts;
        }
    }
    CpuBf16::Emulated
}

/// The names of the CUDA devices, from the driver; empty without one.
pub fn cuda_device_names() -> Vec<String> {
    (0..load_cuda().devices()).map(|i| device_name(i).unwrap_or_else(|e| e.to_string())).collect()
}

fn device_name(index: usize) -> Result<String, libloading::Error> {
    type GetName = unsafe extern "C" fn(*mut std::ffi::c_char, i32, i32) -> i32;
    // SAFETY: the driver's documented C interface; libtorch has initialised it.
    unsafe {
        let driver = libloading::Library::new("libcuda.so.1")?;
        let get_name: libloading::Symbol<'_, GetName> = driver.get(b"cuDeviceGetName")?;
        let mut name = [0 as std::ffi::c_char; 256];
        let code = get_name(name.as_mut_ptr(), 256, i32::try_from(index).unwrap_or(-1));
        let text = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        Ok(if code == 0 { text } else { format!("unnamed (driver error {code})") })
    }
}

/// The first CUDA device for a test, or `None` after saying why `what` is not tested.
#[cfg(test)]
pub(crate) fn test_cuda(what: &str) -> Option<Device> {
    let status = load_cuda();
    if status.devices() == 0 {
        eprintln!("skipped on CUDA: {what}: {status}");
        return None;
    }
    Some(Device::Cuda(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve() {
        assert_eq!(resolve("cpu"), Ok(Device::Cpu));
        let auto = resolve("auto").unwrap();
        assert_eq!(auto.is_cuda(), load_cuda().devices() > 0);
        for spec in ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", ""] {
            let message = resolve(spec).unwrap_err().to_string();
            let expected = format!("unknown device {spec:?}; use auto, cpu, cuda or cuda:N");
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn a_missing_device_says_what_is_there() {
        let message = resolve("cuda:4096").unwrap_err().to_string();
        assert!(message.starts_with("device cuda:4096 is not there: CUDA: "), "{message}");
        assert!(message.ends_with("; use --device cpu or auto"), "{message}");
    }

    #[test]
    fn statuses_read_well() {
        assert_eq!(CudaStatus::Ready { devices: 1 }.to_string(), "1 device");
        assert_eq!(CudaStatus::Ready { devices: 2 }.to_string(), "2 devices");
        let reason = "libcudart.so.13: cannot open shared object file".to_owned();
        assert_eq!(
            CudaStatus::NotLoaded { reason }.to_string(),
            "not loaded: libcudart.so.13: cannot open shared object file"
        );
    }

    #[test]
    fn versions_are_known() {
        assert!(libtorch_version().starts_with("2.11."), "{}", libtorch_version());
        assert!(!cpu_capability().is_empty());
        assert!(["baseline", "avx2", "avx512"].contains(&kernel_isa().as_str()));
        assert!(threads() >= 1);
    }
}
