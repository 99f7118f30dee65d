//! Linear layers through oneDNN: in fp32 with gradients, and without them over weights laid out once for its kernels.
//!
//! libtorch takes MKL for fp32, which on AMD processors is slower; in bf16 it takes oneDNN itself.

use tch::{Device, Kind, Tensor};

use crate::autograd::{self, SavedTensor};
use crate::{Result, TorchError, ffi};

const OP: &str = "linear::Packed";

/// Rows from which oneDNN is faster than MKL in fp32 over a weight that is not packed. Measured at 32, 64 and 960 rows.
pub(crate) const DENSE_FROM_ROWS: i64 = 256;

/// Whether [`forward`] is the faster way to `x · weightᵀ`.
pub fn serves(x: &Tensor) -> bool {
    x.device() == Device::Cpu
        && x.kind() == Kind::Float
        && x.size()[0] >= DENSE_FROM_ROWS
        && packs()
}

/// Whether this libtorch has oneDNN's operators.
fn packs() -> bool {
    // SAFETY: no arguments.
    unsafe { ffi::te_linear_packs() }
}

/// `x · weightᵀ + bias` in fp32 on the CPU: `x` [T, in], `weight` [out, in] (a transposed view is fine), `bias` [out] to
/// [T, out]. Differentiable in all three; the gradient of `weight` has its strides.
///
/// # Errors
/// Shapes or dtypes that do not fit, or tensors elsewhere.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear::forward";
    let (xs, ws) = (x.size(), weight.size());
    let fits = xs.len() == 2 && ws.len() == 2 && xs[1] == ws[1];
    if !fits || bias.is_some_and(|b| b.size() != ws[..1]) {
        let bias = bias.map(Tensor::size);
        return Err(TorchError::argument(OP, format!("x {xs:?}, weight {ws:?}, bias {bias:?}")));
    }
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    if inputs.iter().any(|t| t.kind() != Kind::Float || t.device() != Device::Cpu) || !packs() {
        let message =
            format!("x is {:?} on {:?}, weight {:?}", x.kind(), x.device(), weight.kind());
        return Err(TorchError::argument(OP, message));
    }
    let out = product(OP, x, weight, bias)?;
    let needed: Vec<bool> = inputs.iter().map(|t| t.requires_grad()).collect();
    if !autograd::grad_enabled() || !needed.contains(&true) {
        return Ok(out);
    }
    let (saved_x, saved_weight) = (SavedTensor::new(x)?, SavedTensor::new(weight)?);
    let mut out = autograd::custom(OP, &inputs, &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else {
            return Ok(needed.iter().map(|_| None).collect());
        };
        let (x, weight) = (saved_x.get()?, saved_weight.get()?);
        let of_weight = || {
            if weight.is_contiguous() { grad.tr().mm(x) } else { x.tr().mm(grad).tr() }
        };
        let mut all = vec![
            needed[0].then(|| product(OP, grad, &weight.tr(), None)).transpose()?,
            needed[1].then(of_weight),
        ];
        if let Some(&needed) = needed.get(2) {
            all.push(needed.then(|| grad.sum_dim_intlist(0, false, None::<Kind>)));
        }
        Ok(all)
    })?;
    Ok(out.remove(0))
}

/// `x · weightᵀ + bias`, not recorded.
fn product(op: &'static str, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, weight, bias) = (x.detach(), weight.detach(), bias.map(Tensor::detach));
    let mut result = std::ptr::null_mut();
    // SAFETY: borrowed tensors that the caller has checked; one result.
    let message = unsafe {
        let (x, weight) = (ffi::ptr(&x), ffi::ptr(&weight));
        ffi::te_linear(x, weight, ffi::opt_ptr(bias.as_ref()), &raw mut result)
    };
    ffi::check(op, message)?;
    let [out] = ffi::take(op, [result])?;
    Ok(out)
}

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
        product(OP, x, &self.weight, bias)
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
    fn dense_products_and_their_gradients_equal_those_in_fp64() {
        for (rows, inputs, outputs, transposed, with_bias) in
            [(300, 64, 128, false, true), (256, 7, 33, true, true), (5, 16, 8, true, false)]
        {
            let leaf = |shape: &[i64], seed| random(shape, seed, Kind::Float, Device::Cpu);
            let stored = if transposed { [inputs, outputs] } else { [outputs, inputs] };
            let (x, stored) = (leaf(&[rows, inputs], 1), leaf(&stored, 2));
            let bias = with_bias.then(|| leaf(&[outputs], 3));
            let weight = if transposed { stored.tr() } else { stored.shallow_clone() };
            let got = forward(&x, &weight, bias.as_ref()).unwrap();
            let inputs: Vec<&Tensor> = [&x, &stored].into_iter().chain(&bias).collect();
            let exact: Vec<Tensor> = inputs
                .iter()
                .map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true))
                .collect();
            let weight = if transposed { exact[1].tr() } else { exact[1].shallow_clone() };
            let want = exact[0].linear(&weight, exact.get(2));
            assert!(relative_error(&got.detach(), &want.detach(), 1.0) < 1e-6);
            let probe = random(&want.size(), 9, Kind::Float, Device::Cpu).detach();
            let gradients = |out: &Tensor, of: &[&Tensor]| {
                let product = out * probe.to_kind(out.kind());
                autograd::grad(&[&product.sum(Kind::Double)], &[None], of, false).unwrap()
            };
            let exact: Vec<&Tensor> = exact.iter().collect();
            for (got, want) in gradients(&got, &inputs).iter().zip(gradients(&want, &exact)) {
                let (got, want) = (got.as_ref().unwrap(), want.unwrap());
                assert!(got.is_contiguous());
                assert!(relative_error(got, &want, 1.0) < 2e-6);
            }
        }
    }

    #[test]
    fn dense_products_that_do_not_fit_are_named() {
        let of = |shape: &[i64], kind| random(shape, 1, kind, Device::Cpu).detach();
        let (x, weight) = (of(&[300, 4], Kind::Float), of(&[3, 5], Kind::Float));
        assert_eq!(
            forward(&x, &weight, None).unwrap_err().to_string(),
            "linear::forward: x [300, 4], weight [3, 5], bias None"
        );
        let half = of(&[3, 4], Kind::BFloat16);
        assert_eq!(
            forward(&x, &half, None).unwrap_err().to_string(),
            "linear::forward: x is Float on Cpu, weight BFloat16"
        );
        assert!(serves(&x) && !serves(&x.narrow(0, 0, 9)) && !serves(&x.to_kind(Kind::BFloat16)));
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
