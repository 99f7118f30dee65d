//! The shim's C interface and the few helpers that make calling it safe.
//!
//! Convention: every shim function returns a null pointer on success, otherwise a message that
//! [`check`] takes over and frees. A message that starts with `RUST_ERROR` comes from a closure.

use std::borrow::Borrow;
use std::ffi::{CStr, c_char, c_int, c_void};

use tch::Tensor;

use crate::{Result, TorchError};

/// `at::Tensor*`, owned or borrowed as each function says.
pub(crate) type Ptr = *mut c_void;

/// Marks a message that a Rust closure produced; the shim's `kRustError` is the same text.
pub(crate) const RUST_ERROR: &str = "\u{1}rust\u{1}";

/// Calls a closure: `(closure, grads, n_grads, outputs, n_outputs, message)`.
pub(crate) type Apply =
    unsafe extern "C" fn(*mut c_void, *const Ptr, usize, *mut Ptr, usize, *mut *mut c_char) -> i32;
/// Drops a closure.
pub(crate) type DropClosure = unsafe extern "C" fn(*mut c_void);

/// What the attention kernels need to know beside their tensors; mirrored in `shim.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionOptions {
    pub scale: f64,
    pub dropout_p: f64,
    pub dropout_seed: u64,
    /// 0: no window.
    pub window: i64,
    pub max_len: i64,
}

/// What the CPU allocator holds; mirrored in `shim.h`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CpuMemory {
    pub allocated: i64,
    pub peak_allocated: i64,
    pub reserved: i64,
}

/// One row of `te_memory_stats`; mirrored in `shim.h`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MemoryStats {
    pub allocated: i64,
    pub peak_allocated: i64,
    pub reserved: i64,
    pub peak_reserved: i64,
    pub free: i64,
    pub total: i64,
    pub alloc_retries: i64,
    pub ooms: i64,
}

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct NcclId(pub [u8; 128]);

/// The part of `ncclConfig_t` that there has been since 2.14; mirrored in `nccl.cpp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct NcclConfig {
    pub size: usize,
    pub magic: u32,
    pub version: u32,
    pub blocking: i32,
}

type NcclReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    *mut c_void,
    *mut c_void,
) -> c_int;

/// Functions of `nccl.h`; mirrored in `nccl.cpp`. A communicator and a stream are opaque pointers.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct NcclFunctions {
    pub error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub last_error: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    pub unique_id: unsafe extern "C" fn(*mut NcclId) -> c_int,
    pub init:
        unsafe extern "C" fn(*mut *mut c_void, c_int, NcclId, c_int, *mut NcclConfig) -> c_int,
    pub async_error: unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int,
    pub finalize: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub destroy: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub abort: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// `(send, recv, count, dtype, operation, communicator, stream)`.
    pub all_reduce: NcclReduce,
    /// `(send, recv, count, dtype, root, communicator, stream)`.
    pub broadcast: NcclReduce,
    /// `(send, recv, count of send, dtype, communicator, stream)`.
    pub all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        *mut c_void,
        *mut c_void,
    ) -> c_int,
    /// `(send, recv, count of recv, dtype, operation, communicator, stream)`.
    pub reduce_scatter: NcclReduce,
}

unsafe extern "C" {
    pub(crate) fn te_free(text: *mut c_char);
    pub(crate) fn te_text(text: *const c_char, len: usize) -> *mut c_char;
    pub(crate) fn te_version() -> *const c_char;
    pub(crate) fn te_cpu_capability(out: *mut *mut c_char) -> *mut c_char;
    pub(crate) fn te_kernel_isa() -> *const c_char;
    pub(crate) fn te_set_device(device: i64) -> *mut c_char;
    pub(crate) fn te_device_count(out: *mut i64) -> *mut c_char;
    pub(crate) fn te_memory_stats(device: i64, out: *mut MemoryStats) -> *mut c_char;
    pub(crate) fn te_reset_peak_stats(device: i64) -> *mut c_char;
    pub(crate) fn te_keep_freed();
    pub(crate) fn te_storage_release(tensor: Ptr) -> *mut c_char;
    pub(crate) fn te_storage_restore(tensor: Ptr) -> *mut c_char;
    pub(crate) fn te_cpu_memory() -> CpuMemory;
    pub(crate) fn te_cpu_reset_peak();
    pub(crate) fn te_cpu_release();
    pub(crate) fn te_empty_cache() -> *mut c_char;
    pub(crate) fn te_generator_get(device: i64, out: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_generator_set(device: i64, state: Ptr) -> *mut c_char;
    pub(crate) fn te_generator_draw(device: i64, out: *mut u64) -> *mut c_char;
}

unsafe extern "C" {
    pub(crate) fn te_grad_enabled() -> bool;
    pub(crate) fn te_set_grad_enabled(enabled: bool);
    pub(crate) fn te_keeps_graph() -> bool;
    pub(crate) fn te_tensor_data(tensor: Ptr, out: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_take_grad(leaf: Ptr, result: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_tensor_version(tensor: Ptr, out: *mut u64) -> *mut c_char;
    pub(crate) fn te_custom(
        name: *const c_char,
        inputs: *const Ptr,
        n_inputs: usize,
        outputs: *const Ptr,
        n_outputs: usize,
        results: *mut Ptr,
        closure: *mut c_void,
        apply: Apply,
        drop: DropClosure,
    ) -> *mut c_char;
    pub(crate) fn te_backward(
        tensors: *const Ptr,
        grads: *const Ptr,
        n: usize,
        retain_graph: bool,
    ) -> *mut c_char;
    pub(crate) fn te_grad(
        outputs: *const Ptr,
        grad_outputs: *const Ptr,
        n_outputs: usize,
        inputs: *const Ptr,
        n_inputs: usize,
        retain_graph: bool,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_unlisted_leaf(
        outputs: *const Ptr,
        n_outputs: usize,
        listed: *const Ptr,
        n_listed: usize,
        out: *mut *mut c_char,
    ) -> *mut c_char;
}

unsafe extern "C" {
    pub(crate) fn te_norm(tensors: *const Ptr, n: usize, out: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_mul_scalar(tensors: *const Ptr, n: usize, factor: f64) -> *mut c_char;
    pub(crate) fn te_mul_tensor(tensors: *const Ptr, n: usize, factor: Ptr) -> *mut c_char;
    pub(crate) fn te_zero(tensors: *const Ptr, n: usize) -> *mut c_char;
    pub(crate) fn te_add(dst: *const Ptr, src: *const Ptr, n: usize, alpha: f64) -> *mut c_char;
    pub(crate) fn te_copy(dst: *const Ptr, src: *const Ptr, n: usize) -> *mut c_char;
    pub(crate) fn te_unscale(
        grads: *const Ptr,
        n: usize,
        inv_scale: Ptr,
        found_inf: Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_adamw(
        lists: *const *const Ptr,
        n: usize,
        hyper: *const f64,
        grad_scale: Ptr,
        found_inf: Ptr,
    ) -> *mut c_char;

    pub(crate) fn te_adamw_8bit(tensors: *const Ptr, hyper: *const f64) -> *mut c_char;
}

unsafe extern "C" {
    pub(crate) fn te_four_bit_quantise(
        numbers: Ptr,
        midpoints: *const f32,
        order: *const u8,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_four_bit_mean(numbers: Ptr, mean: *mut f32) -> *mut c_char;
    pub(crate) fn te_four_bit_dequantise(
        tensors: *const Ptr,
        values: *const f32,
        map: *const f32,
        offset: f64,
        out: Ptr,
    ) -> *mut c_char;
}

unsafe extern "C" {
    pub(crate) fn te_attention_forward(
        qkv: *const Ptr,
        cu_seqlens: *const i64,
        n_docs: usize,
        options: *const AttentionOptions,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_attention_backward(
        tensors: *const Ptr,
        cu_seqlens: *const i64,
        n_docs: usize,
        options: *const AttentionOptions,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_flash_forward(
        tensors: *const Ptr,
        options: *const AttentionOptions,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_flash_backward(
        tensors: *const Ptr,
        options: *const AttentionOptions,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_efficient_forward(
        tensors: *const Ptr,
        options: *const AttentionOptions,
        results: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_efficient_backward(
        tensors: *const Ptr,
        options: *const AttentionOptions,
        results: *mut Ptr,
    ) -> *mut c_char;
}

unsafe extern "C" {
    pub(crate) fn te_norm_forward(tensors: *const Ptr, eps: f64, results: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_norm_backward(tensors: *const Ptr, results: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_gelu_tanh(x: Ptr, grad: Ptr, result: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_swiglu(x: Ptr, grad: Ptr, result: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_rotate(x: Ptr, cos: Ptr, sin: Ptr, inverse: bool, out: Ptr) -> *mut c_char;
    pub(crate) fn te_attend_cached(
        tensors: *const Ptr,
        slots: *const i64,
        lengths: *const i64,
        scale: f64,
        window: i64,
        result: *mut Ptr,
    ) -> *mut c_char;
    pub(crate) fn te_sample(
        logits: Ptr,
        temperatures: *const f32,
        uniforms: *const f64,
        ids: *mut i64,
        logprobs: *mut f32,
    ) -> *mut c_char;
    pub(crate) fn te_linear_packs() -> bool;
    pub(crate) fn te_linear_pack(weight: Ptr, rows: i64, result: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_linear(x: Ptr, weight: Ptr, bias: Ptr, result: *mut Ptr) -> *mut c_char;
    pub(crate) fn te_head_stats(
        logits: Ptr,
        targets: Ptr,
        temperature: f64,
        stats: Ptr,
        write_grad: bool,
    ) -> *mut c_char;
    pub(crate) fn te_head_grad(
        logits: Ptr,
        targets: Ptr,
        temperature: f64,
        stats: Ptr,
        coefficients: Ptr,
    ) -> *mut c_char;
}

unsafe extern "C" {
    pub(crate) fn te_store_connect(
        host: *const c_char,
        port: u16,
        serve: bool,
        timeout: i64,
        prefix: *const c_char,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_store_clone(store: *mut c_void, out: *mut *mut c_void) -> *mut c_char;
    pub(crate) fn te_store_set(
        store: *mut c_void,
        key: *const c_char,
        value: *const c_char,
    ) -> *mut c_char;
    pub(crate) fn te_store_get(
        store: *mut c_void,
        key: *const c_char,
        out: *mut *mut c_char,
    ) -> *mut c_char;
    pub(crate) fn te_store_free(store: *mut c_void);
    pub(crate) fn te_group_gloo(
        store: *mut c_void,
        rank: i32,
        size: i32,
        timeout: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_group_nccl(
        store: *mut c_void,
        rank: i32,
        size: i32,
        device: i64,
        timeout: i64,
        nccl: *const NcclFunctions,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_group_abort(group: *mut c_void) -> *mut c_char;
    pub(crate) fn te_group_free(group: *mut c_void);
    pub(crate) fn te_group_all_reduce(
        group: *mut c_void,
        tensor: Ptr,
        op: i32,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_group_broadcast(
        group: *mut c_void,
        tensor: Ptr,
        root: i32,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_group_all_gather(
        group: *mut c_void,
        all: Ptr,
        own: Ptr,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_group_reduce_scatter(
        group: *mut c_void,
        own: Ptr,
        all: Ptr,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_work_wait(work: *mut c_void) -> *mut c_char;
    pub(crate) fn te_work_free(work: *mut c_void);
    pub(crate) fn te_on_grad(
        leaf: Ptr,
        closure: *mut c_void,
        call: unsafe extern "C" fn(*mut c_void, *mut *mut c_char) -> i32,
        drop: DropClosure,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn te_grad_hook_free(hook: *mut c_void);
}

/// Turns a shim function's return value into a result, freeing the message.
pub(crate) fn check(op: &'static str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    let message = take_text(message);
    Err(match message.strip_prefix(RUST_ERROR) {
        Some(inner) => TorchError::Closure { op, message: inner.to_owned() },
        None => TorchError::Libtorch { op, message },
    })
}

/// Copies and frees a text the shim allocated.
pub(crate) fn take_text(text: *mut c_char) -> String {
    // SAFETY: the shim returns NUL-terminated text from its own allocator, once.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        te_free(text);
        owned
    }
}

/// The borrowed `at::Tensor*` of a tensor.
pub(crate) fn ptr(tensor: &Tensor) -> Ptr {
    tensor.as_ptr().cast_mut().cast()
}

/// The borrowed `at::Tensor*` of an optional tensor, null for none.
pub(crate) fn opt_ptr(tensor: Option<&Tensor>) -> Ptr {
    tensor.map_or(std::ptr::null_mut(), ptr)
}

/// Borrowed pointers to many tensors.
pub(crate) fn ptrs<T: Borrow<Tensor>>(tensors: &[T]) -> Vec<Ptr> {
    tensors.iter().map(|t| ptr(t.borrow())).collect()
}

/// Takes over an `at::Tensor*` that the shim allocated; null is none.
pub(crate) fn take_opt(tensor: Ptr) -> Option<Tensor> {
    // SAFETY: the shim hands out ownership of a heap-allocated at::Tensor, as tch's own functions
    // do, and `Tensor` frees it.
    (!tensor.is_null()).then(|| unsafe { Tensor::from_ptr(tensor.cast()) })
}

/// Takes over `N` tensors that a successful shim call wrote.
pub(crate) fn take<const N: usize>(op: &'static str, tensors: [Ptr; N]) -> Result<[Tensor; N]> {
    take_some(op, tensors)
}

/// Takes over the tensors that a successful shim call wrote, which must be `N` of the `M` it could have written.
pub(crate) fn take_some<const M: usize, const N: usize>(
    op: &'static str,
    tensors: [Ptr; M],
) -> Result<[Tensor; N]> {
    let taken: Vec<Tensor> = tensors.into_iter().filter_map(take_opt).collect();
    taken.try_into().map_err(|_| TorchError::Libtorch { op, message: "missing result".into() })
}
