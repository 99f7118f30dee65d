//! The principal part of a weight as the start of a low-rank update: Meng et al. 2024, `PiSSA`, arXiv:2404.02948.

use crate::error::Result;
use tch::{Kind, Tensor};

/// A weight cut in two: `residual + scale · B A`.
pub(crate) struct Cut {
    /// `[r, in]`.
    pub(crate) a: Tensor,
    /// `[out, r]`.
    pub(crate) b: Tensor,
    /// `[out, in]`.
    pub(crate) residual: Tensor,
}

/// Cuts the `r` largest singular values off `weight [out, in]` (eq. 2 to 4): fp32, decomposed in fp64, so that kinds of CPU agree.
///
/// # Errors
/// libtorch's, where the decomposition does not converge.
pub(crate) fn cut(weight: &Tensor, r: i64, scale: f64) -> Result<Cut> {
    let weight = weight.to_kind(Kind::Double);
    let (u, s, v) = weight.f_svd(true, true)?;
    let root = (s.narrow(0, 0, r) / scale).sqrt();
    let a = root.unsqueeze(1) * v.narrow(1, 0, r).tr();
    let b = u.narrow(1, 0, r) * root.unsqueeze(0);
    let residual = &weight - b.f_mm(&a)? * scale;
    let [a, b, residual] = [a, b, residual].map(|part| part.to_kind(Kind::Float));
    Ok(Cut { a, b, residual })
}
