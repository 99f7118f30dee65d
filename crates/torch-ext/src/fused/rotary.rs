//! Rotary positions in rotate-half order.

use tch::Tensor;

use super::by_kernel;
use crate::{Result, TorchError, ffi};

const OP: &str = "rotate_into";

/// Writes `x` [T, N, E] rotated by each row's angles into `out` of the same shape: the pair `(j, j + E / 2)` turns by the
/// angle whose cosine and sine are `cos` and `sin` [T, 1, E / 2], or by its opposite where `inverse`. One dtype; `x` and
/// `out` may not overlap. Not recorded by autograd.
///
/// Paper: Su et al. 2021, arXiv 2104.09864, eq. 34, with pairs half a head apart.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn rotate_into(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    inverse: bool,
    out: &Tensor,
) -> Result<()> {
    let size = x.size();
    let angles = size.len() == 3 && size[2] % 2 == 0 && cos.size() == [size[0], 1, size[2] / 2];
    if !angles || cos.size() != sin.size() || out.size() != size {
        let message = format!("x {size:?}, angles {:?}, out {:?}", cos.size(), out.size());
        return Err(TorchError::argument(OP, message));
    }
    if [cos, sin, out].iter().any(|t| t.kind() != x.kind() || t.device() != x.device()) {
        return Err(TorchError::argument(OP, "dtypes or devices differ"));
    }
    if by_kernel(x) {
        let [x, cos, sin, out] = [x, cos, sin, out].map(ffi::ptr);
        // SAFETY: borrowed tensors of the shapes and dtype checked above.
        return ffi::check(OP, unsafe { ffi::te_rotate(x, cos, sin, inverse, out) });
    }
    let half = size[2] / 2;
    let (first, second) = (x.narrow(2, 0, half), x.narrow(2, half, half));
    let (mut out_first, mut out_second) = (out.narrow(2, 0, half), out.narrow(2, half, half));
    let minus_sin = -sin;
    let (to_first, to_second) = if inverse { (sin, &minus_sin) } else { (&minus_sin, sin) };
    let _ = first.mul_out(&out_first, cos);
    let _ = out_first.addcmul_(&second, to_first);
    let _ = second.mul_out(&out_second, cos);
    let _ = out_second.addcmul_(&first, to_second);
    Ok(())
}
