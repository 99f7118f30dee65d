//! Compiles the C++ shim against the libtorch that `LIBTORCH` names.

#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

use std::env;
use std::path::{Path, PathBuf};

/// The version whose headers and binary interface the shim is written for.
const LIBTORCH_VERSION: &str = "2.11.";

const SHIM: &str = "src/shim";

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed={SHIM}");
    match libtorch() {
        Ok(libtorch) => build(&libtorch),
        Err(problem) => {
            println!("cargo::error={problem}");
            println!("cargo::error=run `make setup` to install libtorch into the checkout");
        }
    }
}

fn build(libtorch: &Path) {
    let mut shim = cpp();
    shim.std("c++20")
        // `at::parallel_for` is a template over OpenMP: without this flag it runs on one thread, silently.
        .flag("-fopenmp")
        // System includes: libtorch's headers are not ours to keep free of warnings.
        .flag("-isystem")
        .flag(libtorch.join("include"))
        .flag("-isystem")
        .flag(libtorch.join("include/torch/csrc/api/include"))
        // Declarations of Gloo's types, whose headers libtorch leaves out.
        .include(SHIM)
        .define("GLOG_USE_GLOG_EXPORT", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1");
    for file in [
        "support",
        "allocator",
        "autograd",
        "foreach",
        "attention",
        "head",
        "fused",
        "linear",
        "four_bit",
        "collective",
        "nccl",
    ] {
        shim.file(format!("{SHIM}/{file}.cpp"));
    }
    shim.compile("torch_ext_shim");

    kernels("baseline", &[]);
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        kernels("avx2", &["-mavx2", "-mfma", "-mf16c"]);
        let avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"];
        kernels("avx512", &avx512);
    }

    println!("cargo::rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
    // The OpenMP runtime that libtorch brings, so that there is one pool of threads.
    println!("cargo::rustc-link-lib=dylib:+verbatim=libgomp.so.1");
}

/// Compiles the CPU kernels for one instruction set; the shim picks one at run time.
fn kernels(isa: &str, flags: &[&str]) {
    let mut build = cpp();
    build.std("c++20").flag("-O3").flag("-fno-math-errno").flag("-fno-trapping-math");
    // ISO mode turns the fusing of a multiplication and an addition off.
    build.flag("-ffp-contract=fast");
    for flag in flags {
        build.flag(flag);
    }
    build.file(format!("{SHIM}/kernels_{isa}.cpp")).compile(&format!("torch_ext_kernels_{isa}"));
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).pic(true).opt_level(2).warnings(true).extra_warnings(true);
    build
}

/// The libtorch directory, checked to be there and of the right version.
fn libtorch() -> Result<PathBuf, String> {
    let dir = env::var_os("LIBTORCH").map(PathBuf::from).ok_or("LIBTORCH is not set")?;
    let header = dir.join("include/torch/headeronly/version.h");
    let text = fs_err::read_to_string(&header)
        .map_err(|e| format!("libtorch is not at {}: {e}", dir.display()))?;
    let version = text
        .split('"')
        .find(|part| part.starts_with(|c: char| c.is_ascii_digit()))
        .ok_or_else(|| format!("{}: no version string in it", header.display()))?;
    if !version.starts_with(LIBTORCH_VERSION) {
        let at = dir.display();
        return Err(format!("libtorch at {at} is {version}; {LIBTORCH_VERSION}x is needed"));
    }
    check_library(&dir)?;
    Ok(dir)
}

fn check_library(dir: &Path) -> Result<(), String> {
    let library = dir.join("lib/libtorch_cpu.so");
    if library.exists() { Ok(()) } else { Err(format!("{} is missing", library.display())) }
}
