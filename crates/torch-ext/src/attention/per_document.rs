//! Attention through libtorch's own operator, one document at a time, for the dtypes and devices
//! the fused kernels do not cover.

use tch::{Kind, Tensor};

use super::{OP, Seqlens, Varlen};
use crate::{Result, TorchError};

pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens: &Seqlens,
    options: &Varlen,
) -> Result<Tensor> {
    let documents = seqlens
        .documents()
        .filter(|rows| !rows.is_empty())
        .map(|rows| one(q, k, v, &rows, options))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| TorchError::from_tch(OP, &e))?;
    if documents.is_empty() {
        return Ok(q + k.sum(None::<Kind>) * 0.0 + v.sum(None::<Kind>) * 0.0);
    }
    Tensor::f_cat(&documents, 0).map_err(|e| TorchError::from_tch(OP, &e))
}

fn one(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &std::ops::Range<i64>,
    options: &Varlen,
) -> std::result::Result<Tensor, tch::TchError> {
    let len = rows.end - rows.start;
    // [T, H, D] to [1, H, len, D].
    let head_first = |t: &Tensor| t.f_narrow(0, rows.start, len)?.f_transpose(0, 1)?.f_unsqueeze(0);
    let (q, k, v) = (head_first(q)?, head_first(k)?, head_first(v)?);
    let mask = match options.sliding_window {
        Some(window) if window < len => Some(window_mask(len, window, &q)?),
        _ => None,
    };
    let (causal, grouped) = (mask.is_none(), q.size()[1] != k.size()[1]);
    let (p, scale) = (options.dropout_p, options.scale);
    let out = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, p, causal, scale, grouped)?;
    out.f_squeeze_dim(0)?.f_transpose(0, 1)
}

/// `[len, len]`, true where query i may attend key j: `0 <= i - j < window`.
fn window_mask(len: i64, window: i64, like: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
    let ones = Tensor::f_ones([len, len], (Kind::Bool, like.device()))?;
    ones.f_tril(0)?.f_triu(1 - window)
}
