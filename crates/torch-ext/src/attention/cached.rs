//! Attention of one new token a row over a key-value cache, on the CPU.

use tch::{Device, Kind, Tensor};

use crate::{Result, TorchError, ffi};

const OP: &str = "attention::cached";

/// Keys and values of many sequences, [S, Hkv, L, D] each and contiguous; `slots[r]` is where row r's lie and
/// `lengths[r]` how many there are with the new one. No two rows share a slot.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    /// The keys.
    pub keys: &'a Tensor,
    /// The values.
    pub values: &'a Tensor,
    /// Each row's slot.
    pub slots: &'a [i64],
    /// Each row's number of entries, the new one included.
    pub lengths: &'a [i64],
}

/// Whether [`attend`] serves tensors of this dtype and device.
pub fn serves(kind: Kind, device: Device) -> bool {
    device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half)
}

/// Appends each row's new key and value, `k` and `v` [R, Hkv, D], to its slot, and attends from its query, `q` [R, H, D],
/// to all entries of the slot, or to the last `window` of them. Returns [R, H, D].
///
/// Rows may lie in any slots, in any order. Scores, softmax and sums are fp32; the scores are multiplied by `scale`. A
/// row's result depends on that row alone. Not recorded by autograd.
///
/// # Errors
/// Shapes or dtypes that do not fit or are not [served](serves), a slot or length out of range, a window below 1.
pub fn attend(
    [q, k, v]: [&Tensor; 3],
    cache: Cache<'_>,
    scale: f64,
    window: Option<i64>,
) -> Result<Tensor> {
    check([q, k, v], cache, scale, window)?;
    let tensors = [q, k, v, cache.keys, cache.values].map(ffi::ptr);
    let mut result = std::ptr::null_mut();
    // SAFETY: borrowed tensors and lists, checked above; one result.
    let message = unsafe {
        ffi::te_attend_cached(
            tensors.as_ptr(),
            cache.slots.as_ptr(),
            cache.lengths.as_ptr(),
            scale,
            window.unwrap_or(0),
            &raw mut result,
        )
    };
    ffi::check(OP, message)?;
    let [out] = ffi::take(OP, [result])?;
    Ok(out)
}

fn check(qkv: [&Tensor; 3], cache: Cache<'_>, scale: f64, window: Option<i64>) -> Result<()> {
    let fail = |message: String| Err(TorchError::argument(OP, message));
    let Cache { keys, values, slots, lengths } = cache;
    let [qs, new, vs] = qkv.map(Tensor::size);
    let ks = keys.size();
    if qs.len() != 3 || ks.len() != 4 || values.size() != ks || qs[2] != ks[3] || qs[2] == 0 {
        return fail(format!("q {qs:?} and a cache of {ks:?} are not [R, H, D], [S, Hkv, L, D]"));
    }
    if new != vs || new != [qs[0], ks[1], ks[3]] {
        return fail(format!("k {new:?}, v {vs:?} do not fit q {qs:?} and a cache of {ks:?}"));
    }
    if ks[1] == 0 || qs[1] == 0 || qs[1] % ks[1] != 0 {
        return fail(format!("{} query heads are no multiple of {} key heads", qs[1], ks[1]));
    }
    let (kind, device) = (qkv[0].kind(), qkv[0].device());
    let all = qkv.into_iter().chain([keys, values]);
    if !serves(kind, device) || all.into_iter().any(|t| t.kind() != kind || t.device() != device) {
        return fail(format!("q is {kind:?} on {device:?}, the cache {:?}", keys.kind()));
    }
    if slots.len() as i64 != qs[0] || lengths.len() as i64 != qs[0] {
        return fail(format!("{} rows, {} slots, {} lengths", qs[0], slots.len(), lengths.len()));
    }
    if let Some(slot) = slots.iter().find(|slot| !(0..ks[0]).contains(slot)) {
        return fail(format!("slot {slot} is none of {}", ks[0]));
    }
    if let Some(length) = lengths.iter().find(|length| !(1..=ks[2]).contains(length)) {
        return fail(format!("length {length} is not within 1 to {}", ks[2]));
    }
    if window.is_some_and(|w| w < 1) || !scale.is_finite() {
        return fail(format!("window {window:?}, scale {scale}"));
    }
    Ok(())
}
