//! Says what of this machine's libtorch, CPU and CUDA devices can be used.

use std::io::Write;

use torch_ext::{device, memory};

fn main() -> std::io::Result<()> {
    let cuda = device::load_cuda();
    let mut out = std::io::stdout().lock();
    writeln!(out, "libtorch        {}", device::libtorch_version())?;
    writeln!(out, "cpu kernels     {} (own: {})", device::cpu_capability(), device::kernel_isa())?;
    let bf16 = match device::cpu_bf16() {
        device::CpuBf16::Tiles => "fast (AMX tiles)",
        device::CpuBf16::DotProducts => "fast (AVX512-BF16)",
        device::CpuBf16::Emulated => "emulated: use precision = \"fp32\" on this CPU",
    };
    writeln!(out, "cpu bf16        {bf16}")?;
    writeln!(out, "cpu threads     {}", device::threads())?;
    writeln!(out, "cuda            {cuda}")?;
    for (index, name) in device::cuda_device_names().iter().enumerate() {
        let memory = match memory::cuda_stats(tch::Device::Cuda(index)) {
            Ok(stats) => format!("{} MiB free of {}", stats.free >> 20, stats.total >> 20),
            Err(error) => error.to_string(),
        };
        writeln!(out, "cuda:{index}          {name}, {memory}")?;
    }
    let auto = if cuda.devices() > 0 { "cuda:0" } else { "cpu" };
    writeln!(out, "--device auto   {auto}")
}
