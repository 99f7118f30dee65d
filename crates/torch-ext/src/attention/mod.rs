//! Causal attention over a flat row of documents: no padding, no attention across documents.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::autograd::{self, SavedTensor};
use crate::ffi::{self, AttentionOptions};
use crate::{Result, TorchError, generator};

pub mod cached;
mod per_document;
#[cfg(test)]
mod tests;

const OP: &str = "attention::varlen";

/// Where the documents of a flat row begin and end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Seqlens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cu: Vec<i64>,
    max_len: i64,
    /// `cu` as an i32 tensor on the CUDA device that last asked for it.
    on_device: Mutex<Option<Tensor>>,
}

impl Seqlens {
    /// From cumulative lengths: document i is rows `cu[i]..cu[i + 1]`, so `cu` starts with 0, does
    /// not decrease, and ends with the number of rows. `[0]` is no document; empty documents are
    /// allowed.
    ///
    /// # Errors
    /// `cu` is empty, does not start with 0, or decreases.
    pub fn new(cu: Vec<i64>) -> Result<Self> {
        const OP: &str = "Seqlens";
        if cu.first() != Some(&0) {
            let first = cu.first();
            let message = format!("cumulative lengths start with {first:?}, not 0");
            return Err(TorchError::argument(OP, message));
        }
        if let Some(i) = cu.windows(2).position(|w| w[1] < w[0]) {
            let message =
                format!("document {i} ends at {} before it starts at {}", cu[i + 1], cu[i]);
            return Err(TorchError::argument(OP, message));
        }
        let max_len = cu.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        Ok(Self(Arc::new(Inner { cu, max_len, on_device: Mutex::new(None) })))
    }

    /// The cumulative lengths.
    pub fn cu(&self) -> &[i64] {
        &self.0.cu
    }

    /// The number of documents.
    pub fn num_documents(&self) -> usize {
        self.0.cu.len() - 1
    }

    /// The number of rows.
    pub fn total(&self) -> i64 {
        self.0.cu.last().copied().unwrap_or(0)
    }

    /// The longest document's length; 0 without documents.
    pub fn max_len(&self) -> i64 {
        self.0.max_len
    }

    /// The rows of each document, in order.
    pub fn documents(&self) -> impl Iterator<Item = Range<i64>> + '_ {
        self.0.cu.windows(2).map(|w| w[0]..w[1])
    }

    /// The cumulative lengths as an i32 tensor on `device`, kept for the next call.
    fn on_device(&self, device: Device) -> Tensor {
        let mut kept = self.0.on_device.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(tensor) if tensor.device() == device => tensor.shallow_clone(),
            _ => {
                let tensor = Tensor::from_slice(&self.0.cu).to_kind(Kind::Int).to_device(device);
                *kept = Some(tensor.shallow_clone());
                tensor
            }
        }
    }
}

/// How [`varlen`] attends, beside causally and within documents.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Varlen {
    /// Factor on the scores before the softmax; `None`: `1 / sqrt(D)`.
    pub scale: Option<f64>,
    /// Query i attends keys j with `i - j < window` only (Mistral); `None`: all earlier ones.
    pub sliding_window: Option<i64>,
    /// Probability with which each attention weight is dropped, the others scaled up; 0 in
    /// evaluation. Draws one seed a call from the default generator.
    pub dropout_p: f64,
}

/// Causal softmax attention inside each document: `q` [T, H, D], `k` and `v` [T, Hkv, D], one
/// floating dtype and device, T = `seqlens.total()`, H a multiple of Hkv (grouped-query attention:
/// query head h reads key head `h / (H / Hkv)`). Returns [T, H, D] in the same dtype.
///
/// Differentiable in `q`, `k` and `v`. Scores, softmax and sums are fp32 for half precision. On the
/// CPU (fp32, bf16, fp16) the result and the gradients are bitwise the same from run to run and for
/// any number of threads. On CUDA, fp16 and bf16 use flash attention, whose gradients may differ in
/// the last bits from run to run; fp32 uses memory-efficient attention. fp64, and on CUDA a window
/// in fp32 or D > 256, go through libtorch's attention one document at a time. The last dimension
/// should be contiguous (it is copied where not); rows and heads may be strided, as slices of a
/// fused projection are.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, a window below 1, a dropout outside [0, 1).
pub fn varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens: &Seqlens,
    options: &Varlen,
) -> Result<Tensor> {
    check_arguments(q, k, v, seqlens, options)?;
    let head_dim = q.size()[2];
    let half = matches!(q.kind(), Kind::BFloat16 | Kind::Half);
    let kernel = match q.device() {
        Device::Cpu if half || q.kind() == Kind::Float => Kernel::Cpu,
        Device::Cuda(_) if half && head_dim <= 256 => Kernel::Flash,
        Device::Cuda(_)
            if q.kind() == Kind::Float && options.sliding_window.is_none() && head_dim % 4 == 0 =>
        {
            Kernel::Efficient
        }
        _ => return per_document::attend(q, k, v, seqlens, options),
    };
    if seqlens.total() == 0 {
        // Nothing to attend to, but gradients (empty ones) flow.
        return Ok(q + k.sum(None::<Kind>) * 0.0 + v.sum(None::<Kind>) * 0.0);
    }
    fused(kernel, [q, k, v], seqlens, options)
}

/// The fused kernels: one autograd node each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Cpu,
    Flash,
    Efficient,
}

fn fused(kernel: Kernel, qkv: [&Tensor; 3], seqlens: &Seqlens, options: &Varlen) -> Result<Tensor> {
    let head_dim = qkv[0].size()[2];
    let raw = AttentionOptions {
        scale: options.scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt()),
        dropout_p: options.dropout_p,
        dropout_seed: if kernel == Kernel::Cpu && options.dropout_p > 0.0 {
            generator::draw()?
        } else {
            0
        },
        window: options.sliding_window.unwrap_or(0),
        max_len: seqlens.max_len(),
    };
    let (out, rest) = {
        let _guard = autograd::GradMode::set(false);
        kernel.forward(&qkv.map(Tensor::detach), seqlens, &raw)?
    };
    if !autograd::grad_enabled() || !qkv.iter().any(|t| t.requires_grad()) {
        return Ok(out);
    }
    // q, k, v, the output, then what the kernel adds (logsumexp, CUDA generator state).
    let saved = qkv
        .into_iter()
        .chain([&out])
        .chain(&rest)
        .map(SavedTensor::new)
        .collect::<Result<Vec<_>>>()?;
    let seqlens = seqlens.clone();
    let mut out = autograd::custom(OP, &qkv, &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { return Ok(vec![None, None, None]) };
        let saved = saved.iter().map(SavedTensor::get).collect::<Result<Vec<_>>>()?;
        Ok(kernel.backward(grad, &saved, &seqlens, &raw)?.map(Some).into())
    })?;
    out.pop().ok_or_else(|| TorchError::argument(OP, "no output"))
}

impl Kernel {
    /// The output, and what backward needs beside it and q, k, v.
    fn forward(
        self,
        qkv: &[Tensor; 3],
        seqlens: &Seqlens,
        raw: &AttentionOptions,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut tensors = ffi::ptrs(qkv);
        let mut results = [std::ptr::null_mut(); 4];
        let n_docs = seqlens.num_documents();
        let cu = (self != Self::Cpu).then(|| seqlens.on_device(qkv[0].device()));
        tensors.extend(cu.iter().map(ffi::ptr));
        // SAFETY: q, k, v (and on CUDA the cumulative lengths), checked by `check_arguments`; the
        // results have room for what each kernel returns: 2 on the CPU, 4 on CUDA.
        let message = unsafe {
            let (inputs, results) = (tensors.as_ptr(), results.as_mut_ptr());
            match self {
                Self::Cpu => {
                    let cu = seqlens.cu().as_ptr();
                    ffi::te_attention_forward(inputs, cu, n_docs, raw, results)
                }
                Self::Flash => ffi::te_flash_forward(inputs, raw, results),
                Self::Efficient => ffi::te_efficient_forward(inputs, raw, results),
            }
        };
        ffi::check(OP, message)?;
        let mut results: Vec<Tensor> = results.into_iter().filter_map(ffi::take_opt).collect();
        if results.is_empty() {
            return Err(TorchError::argument(OP, "the kernel returned nothing"));
        }
        let out = results.remove(0);
        Ok((out, results))
    }

    /// The gradients of q, k and v.
    fn backward(
        self,
        grad: &Tensor,
        saved: &[&Tensor],
        seqlens: &Seqlens,
        raw: &AttentionOptions,
    ) -> Result<[Tensor; 3]> {
        let mut tensors = vec![ffi::ptr(grad)];
        tensors.extend(saved.iter().map(|t| ffi::ptr(t)));
        let cu = (self != Self::Cpu).then(|| seqlens.on_device(grad.device()));
        tensors.extend(cu.iter().map(ffi::ptr));
        let mut results = [std::ptr::null_mut(); 3];
        // SAFETY: the gradient, then what `forward` took and returned, in its order.
        let message = unsafe {
            let (inputs, results) = (tensors.as_ptr(), results.as_mut_ptr());
            match self {
                Self::Cpu => {
                    let (cu, n_docs) = (seqlens.cu().as_ptr(), seqlens.num_documents());
                    ffi::te_attention_backward(inputs, cu, n_docs, raw, results)
                }
                Self::Flash => ffi::te_flash_backward(inputs, raw, results),
                Self::Efficient => ffi::te_efficient_backward(inputs, raw, results),
            }
        };
        ffi::check(OP, message)?;
        ffi::take(OP, results)
    }
}

fn check_arguments(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens: &Seqlens,
    options: &Varlen,
) -> Result<()> {
    let fail = |message: String| Err(TorchError::argument(OP, message));
    let (qs, ks, vs) = (q.size(), k.size(), v.size());
    if qs.len() != 3 || ks.len() != 3 || ks != vs {
        return fail(format!("q {qs:?}, k {ks:?}, v {vs:?} are not [T, H, D], [T, Hkv, D] twice"));
    }
    if qs[0] != ks[0] || qs[2] != ks[2] || qs[2] == 0 {
        return fail(format!("q {qs:?} and k {ks:?} differ in T or D"));
    }
    if ks[1] == 0 || qs[1] == 0 || qs[1] % ks[1] != 0 {
        return fail(format!("{} query heads are no multiple of {} key heads", qs[1], ks[1]));
    }
    if qs[0] != seqlens.total() {
        return fail(format!("{} rows but documents of {} rows", qs[0], seqlens.total()));
    }
    let (kind, device) = (q.kind(), q.device());
    if ![Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double].contains(&kind) {
        return fail(format!("q is {kind:?}, not a floating dtype"));
    }
    for (name, tensor) in [("k", k), ("v", v)] {
        if tensor.kind() != kind || tensor.device() != device {
            let (k, d) = (tensor.kind(), tensor.device());
            return fail(format!("{name} is {k:?} on {d:?}, q is {kind:?} on {device:?}"));
        }
    }
    if options.sliding_window.is_some_and(|w| w < 1) {
        return fail(format!("sliding window {:?} is below 1", options.sliding_window));
    }
    if !(0.0..1.0).contains(&options.dropout_p) {
        return fail(format!("dropout_p {} is not in [0, 1)", options.dropout_p));
    }
    if options.scale.is_some_and(|s| !s.is_finite()) {
        return fail(format!("scale {:?} is not finite", options.scale));
    }
    Ok(())
}
