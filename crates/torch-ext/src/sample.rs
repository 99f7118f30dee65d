//! A token for each row of logits, on the CPU in one pass.

use tch::{Device, Kind, Tensor};

use crate::{Result, TorchError, ffi};

const OP: &str = "sample";

/// What [`rows`] chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token ids.
    pub ids: Vec<i64>,
    /// Their natural-log probabilities under `softmax(logits / temperature)`, at temperature 1 where it is 0. NaN where a
    /// row's logits are not finite.
    pub logprobs: Vec<f32>,
}

/// Chooses a token for each row of `logits` [R, V], fp32, bf16 or fp16 on the CPU: for `temperatures[i]` 0 the highest
/// logit (the first of equal ones), otherwise the first id whose cumulative probability exceeds `uniforms[i]` in [0, 1).
/// A row's choice depends on that row alone.
///
/// # Errors
/// Another shape, dtype or device; lists that are not one entry a row; a temperature below 0 or not finite.
pub fn rows(logits: &Tensor, temperatures: &[f32], uniforms: &[f64]) -> Result<Sampled> {
    let fail = |message: String| Err(TorchError::argument(OP, message));
    let size = logits.size();
    let half = matches!(logits.kind(), Kind::BFloat16 | Kind::Half);
    if logits.device() != Device::Cpu || !(half || logits.kind() == Kind::Float) {
        return fail(format!("logits are {:?} on {:?}", logits.kind(), logits.device()));
    }
    if size.len() != 2 || size[1] == 0 {
        return fail(format!("logits {size:?} are not [R, V]"));
    }
    let count = size[0] as usize;
    if temperatures.len() != count || uniforms.len() != count {
        let (t, u) = (temperatures.len(), uniforms.len());
        return fail(format!("{count} rows, {t} temperatures, {u} uniform numbers"));
    }
    if let Some(t) = temperatures.iter().find(|t| !(t.is_finite() && **t >= 0.0)) {
        return fail(format!("temperature {t} is not 0 or above"));
    }
    let mut sampled = Sampled { ids: vec![0; count], logprobs: vec![0.0; count] };
    let logits = logits.detach();
    // SAFETY: a borrowed matrix of R rows, and R entries in each list.
    let message = unsafe {
        let (ids, logprobs) = (sampled.ids.as_mut_ptr(), sampled.logprobs.as_mut_ptr());
        ffi::te_sample(ffi::ptr(&logits), temperatures.as_ptr(), uniforms.as_ptr(), ids, logprobs)
    };
    ffi::check(OP, message)?;
    Ok(sampled)
}
