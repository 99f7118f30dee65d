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
    let mut taken = vec![false; ks[0] as usize];
    if let Some(slot) =
        slots.iter().find(|slot| std::mem::replace(&mut taken[**slot as usize], true))
    {
        return fail(format!("two rows share slot {slot}"));
    }
    if let Some(length) = lengths.iter().find(|length| !(1..=ks[2]).contains(length)) {
        return fail(format!("length {length} is not within 1 to {}", ks[2]));
    }
    if window.is_some_and(|w| w < 1) || !scale.is_finite() {
        return fail(format!("window {window:?}, scale {scale}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{max_error, random, relative_error};

    /// Softmax attention of one query by its definition, in fp64: `q` [H, D], keys and values [Hkv, n, D].
    fn plain(q: &Tensor, keys: &Tensor, values: &Tensor, scale: f64) -> Tensor {
        let [q, keys, values] = [q, keys, values].map(|t| t.to_kind(Kind::Double));
        let group = q.size()[0] / keys.size()[0];
        let spread = |t: &Tensor| t.repeat_interleave_self_int(group, 0, None);
        let scores = spread(&keys).matmul(&q.unsqueeze(2)).squeeze_dim(2) * scale;
        let weights = scores.softmax(1, Kind::Double).unsqueeze(1);
        weights.matmul(&spread(&values)).squeeze_dim(1)
    }

    #[test]
    fn every_row_attends_to_its_slot_alone() {
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 6e-3), (Kind::Half, 1e-3)] {
            for (heads, kv_heads, dim, window) in
                [(4, 2, 64, None), (3, 3, 7, Some(5)), (6, 1, 80, Some(1)), (1, 1, 130, None)]
            {
                let of = |shape: &[i64], seed| random(shape, seed, kind, Device::Cpu).detach();
                let (slots, lengths) = ([4, 0, 2], [37, 1, 64]);
                let (keys, values) =
                    (of(&[5, kv_heads, 64, dim], 1), of(&[5, kv_heads, 64, dim], 2));
                // Slices of a fused projection: rows are strided.
                let qkv = of(&[3, heads + 2 * kv_heads, dim], 3);
                let parts = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1);
                let untouched = keys.copy();
                let cache =
                    Cache { keys: &keys, values: &values, slots: &slots, lengths: &lengths };
                let out = attend([&parts[0], &parts[1], &parts[2]], cache, 0.3, window).unwrap();
                for row in 0..3_usize {
                    let (slot, length) = (slots[row], lengths[row]);
                    let at = row as i64;
                    let last = keys.get(slot).select(1, length - 1);
                    assert!(last.equal(&parts[1].get(at)), "the new key is appended");
                    assert!(values.get(slot).select(1, length - 1).equal(&parts[2].get(at)));
                    let first = window.map_or(0, |w: i64| (length - w).max(0));
                    let seen = |t: &Tensor| t.get(slot).narrow(1, first, length - first);
                    let want = plain(&parts[0].get(at), &seen(&keys), &seen(&values), 0.3);
                    let error = relative_error(&out.get(at), &want, 0.1);
                    assert!(error < tolerance, "{kind:?} {heads} {dim} row {row}: {error:.1e}");
                }
                assert_eq!(max_error(&keys.get(1), &untouched.get(1)), 0.0);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let of = |shape: &[i64]| random(shape, 1, Kind::Float, Device::Cpu).detach();
        let (q, k, keys) = (of(&[2, 4, 8]), of(&[2, 2, 8]), of(&[3, 2, 16, 8]));
        let message = |k: &Tensor, slots: &[i64], lengths: &[i64], window| {
            let cache = Cache { keys: &keys, values: &keys, slots, lengths };
            attend([&q, k, k], cache, 1.0, window).unwrap_err().to_string()
        };
        let all = [1, 1];
        assert!(message(&of(&[2, 3, 8]), &[0, 1], &all, None).contains("k [2, 3, 8], v [2, 3, 8]"));
        assert_eq!(message(&k, &[0, 3], &all, None), "attention::cached: slot 3 is none of 3");
        assert!(message(&k, &[1, 1], &all, None).ends_with("two rows share slot 1"));
        assert!(message(&k, &[0, 1], &[1, 17], None).ends_with("length 17 is not within 1 to 16"));
        assert!(message(&k, &[0, 1], &[0, 1], None).ends_with("length 0 is not within 1 to 16"));
        assert!(message(&k, &[0], &all, None).ends_with("2 rows, 1 slots, 2 lengths"));
        assert!(message(&k, &[0, 1], &all, Some(0)).contains("window Some(0)"));
        assert!(message(&k.to_kind(Kind::Half), &[0, 1], &all, None).contains("q is Float"));
    }
}
