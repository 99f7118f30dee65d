//! Linear layers without gradients, their weights laid out once for oneDNN's kernels.

use tch::{Device, Kind, Tensor};

use crate::{Result, TorchError, ffi};

const OP: &str = "linear::Packed";

/// Rows that an fp32 weight is laid out for whatever their number. Measured: for fewer, oneDNN 3.8 leaves some shapes as
/// they are and is slower than MKL.
const FP32_ROWS: i64 = 512;

/// A weight on the CPU in the layout of oneDNN's kernels: a copy, which knows nothing of later changes.
#[derive(Debug)]
pub struct Packed {
    weight: Tensor,
    size: [i64; 2],
    kind: Kind,
}

impl Packed {
    /// Whether weights of this dtype and device can be packed.
    pub fn serves(kind: Kind, device: Device) -> bool {
        // SAFETY: no arguments.
        let packs = || unsafe { ffi::te_linear_packs() };
        device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16) && packs()
    }

    /// Packs `weight` [out, in] for inputs of about `rows` rows; other numbers of rows work too.
    ///
    /// # Errors
    /// The weight is no matrix or not [served](Self::serves).
    pub fn new(weight: &Tensor, rows: i64) -> Result<Self> {
        let (kind, size) = (weight.kind(), weight.size());
        let &[outputs, inputs] = size.as_slice() else {
            return Err(TorchError::argument(OP, format!("weight {size:?} is not [out, in]")));
        };
        if !Self::serves(kind, weight.device()) {
            let message = format!("a {kind:?} weight on {:?} cannot be packed", weight.device());
            return Err(TorchError::argument(OP, message));
        }
        let rows = if kind == Kind::Float { FP32_ROWS } else { rows.max(1) };
        let mut result = std::ptr::null_mut();
        // SAFETY: a borrowed matrix; one result.
        let message =
            unsafe { ffi::te_linear_pack(ffi::ptr(&weight.detach()), rows, &raw mut result) };
        ffi::check(OP, message)?;
        let [packed] = ffi::take(OP, [result])?;
        Ok(Self { weight: packed, size: [outputs, inputs], kind })
    }

    /// `x · weightᵀ + bias`: `x` [T, in], `bias` [out] to [T, out], one dtype. Not recorded by autograd.
    ///
    /// # Errors
    /// Shapes or dtypes that do not fit.
    pub fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let [outputs, inputs] = self.size;
        let size = x.size();
        if size.len() != 2 || size[1] != inputs || bias.is_some_and(|b| b.size() != [outputs]) {
            let bias = bias.map(Tensor::size);
            let message =
                format!("x {size:?}, bias {bias:?} do not fit a weight of [{outputs}, {inputs}]");
            return Err(TorchError::argument(OP, message));
        }
        if [Some(x), bias].iter().flatten().any(|t| t.kind() != self.kind) {
            let message = format!("x is {:?}, the weight {:?}", x.kind(), self.kind);
            return Err(TorchError::argument(OP, message));
        }
        let (x, bias) = (x.detach(), bias.map(Tensor::detach));
        let mut result = std::ptr::null_mut();
        // SAFETY: borrowed tensors, checked above; one result.
        let message = unsafe {
            let (x, packed) = (ffi::ptr(&x), ffi::ptr(&self.weight));
            ffi::te_linear_packed(x, packed, ffi::opt_ptr(bias.as_ref()), &raw mut result)
        };
        ffi::check(OP, message)?;
        let [out] = ffi::take(OP, [result])?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, relative_error};

    #[test]
    fn products_equal_those_in_fp64() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 5e-3)] {
            assert!(Packed::serves(kind, Device::Cpu));
            for (rows, inputs, outputs) in [(32, 64, 1024), (1, 5, 3), (7, 33, 50), (600, 16, 16)] {
                let of = |shape: &[i64], seed| random(shape, seed, kind, Device::Cpu).detach();
                let (x, w, b) =
                    (of(&[rows, inputs], 1), of(&[outputs, inputs], 2), of(&[outputs], 3));
                let packed = Packed::new(&w, 32).unwrap();
                let exact = |t: &Tensor| t.to_kind(Kind::Double);
                let product = exact(&x).mm(&exact(&w).tr());
                let error = relative_error(&packed.forward(&x, None).unwrap(), &product, 1.0);
                assert!(error < tolerance, "{kind:?} {rows}: {error:.1e}");
                let got = packed.forward(&x, Some(&b)).unwrap();
                let error = relative_error(&got, &(product + exact(&b)), 1.0);
                assert!(error < tolerance, "{kind:?} {rows} with bias: {error:.1e}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let of = |shape: &[i64], kind| random(shape, 1, kind, Device::Cpu).detach();
        let packed = Packed::new(&of(&[4, 3], Kind::Float), 8).unwrap();
        let message =
            |x: &Tensor, bias: Option<&Tensor>| packed.forward(x, bias).unwrap_err().to_string();
        assert_eq!(
            message(&of(&[2, 4], Kind::Float), None),
            "linear::Packed: x [2, 4], bias None do not fit a weight of [4, 3]"
        );
        assert!(
            message(&of(&[2, 3], Kind::Float), Some(&of(&[3], Kind::Float)))
                .contains("bias Some([3])")
        );
        assert_eq!(
            message(&of(&[2, 3], Kind::BFloat16), None),
            "linear::Packed: x is BFloat16, the weight Float"
        );
        let refused = |weight: &Tensor| Packed::new(weight, 8).unwrap_err().to_string();
        assert_eq!(
            refused(&of(&[4, 3], Kind::Double)),
            "linear::Packed: a Double weight on Cpu cannot be packed"
        );
        assert_eq!(refused(&of(&[4], Kind::Float)), "linear::Packed: weight [4] is not [out, in]");
    }
}
