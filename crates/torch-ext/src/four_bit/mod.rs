//! Weights in 4 bits, as bitsandbytes makes them, to the bit: Dettmers et al. 2023, arXiv 2305.14314, section 3.
//!
//! A matrix is flattened row by row and cut into blocks of 64, which may cross rows. A number is stored as the nearest
//! of 16 values ([`Code`]) to the number over its block's largest absolute value, the scale. Scales are fp32, or with
//! double quantisation 8 bits each: a weight then takes 4.127 bits a number.
//!
//! On the CPU kernels of the shim do the work; elsewhere libtorch's operations.

mod code;
mod nested;
#[cfg(test)]
mod tests;

pub use code::Code;
pub use nested::nested_map;

use tch::{Device, Kind, Tensor, no_grad};

use crate::{Result, TorchError, blockwise, ffi};

/// Numbers that share a scale.
pub const BLOCK: i64 = 64;

/// The least divisor, and the least scale of a last block that is not full.
const LEAST_SCALE: f64 = 1e-38;

/// The scales of a [`FourBit`]'s blocks.
#[derive(Debug)]
pub enum Scales {
    /// As they are.
    Plain {
        /// fp32 `[blocks]`.
        absmax: Tensor,
    },
    /// In 8 bits: the scale of block `b` is `nested_map()[codes[b]] · absmax[b / 256] + offset`.
    Nested {
        /// u8 `[blocks]`.
        codes: Tensor,
        /// fp32 `[blocks / 256]`, rounded up.
        absmax: Tensor,
        /// The mean of the scales.
        offset: f32,
    },
}

impl Scales {
    /// The tensors: of the blocks, and of the blocks of these.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (first, second) = match self {
            Self::Plain { absmax } => (absmax, None),
            Self::Nested { codes, absmax, .. } => (codes, Some(absmax)),
        };
        std::iter::once(first).chain(second)
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        match self {
            Self::Plain { absmax } => Self::Plain { absmax: f(absmax) },
            Self::Nested { codes, absmax, offset } => {
                Self::Nested { codes: f(codes), absmax: f(absmax), offset: *offset }
            }
        }
    }
}

/// A tensor in 4 bits.
#[derive(Debug)]
pub struct FourBit {
    packed: Tensor,
    scales: Scales,
    code: Code,
    shape: Vec<i64>,
}

impl FourBit {
    /// Rounds `weight`, of any shape and float type; its scales too with `double_quantisation`.
    ///
    /// # Deviations
    /// bitsandbytes lets NaN and infinity pass, and its mean of no scales is NaN; here it is 0. Scales are rounded to 8
    /// bits as it does on the CPU; its CUDA kernels search for the nearest value, and a few codes are others.
    ///
    /// # Errors
    /// `weight` is not of floats, or holds NaN, infinity, or a number that fp32 has not.
    pub fn quantise(weight: &Tensor, code: Code, double_quantisation: bool) -> Result<Self> {
        const OP: &str = "FourBit::quantise";
        let (kind, shape, device) = (weight.kind(), weight.size(), weight.device());
        let numbers = match kind {
            Kind::Float | Kind::BFloat16 | Kind::Half => weight.detach(),
            Kind::Double => weight.detach().to_kind(Kind::Float),
            _ => {
                let message = format!("a weight of {kind:?} is not of floats");
                return Err(TorchError::argument(OP, message));
            }
        };
        let (packed, absmax) = if device == Device::Cpu {
            quantise_by_kernel(OP, &numbers, code)?
        } else {
            no_grad(|| quantise_by_operations(&numbers, code))
        };
        if absmax.isfinite().all().int64_value(&[]) == 0 {
            let message = format!("a weight of {shape:?} holds NaN or infinity");
            return Err(TorchError::argument(OP, message));
        }
        let scales = if double_quantisation {
            let (codes, absmax, offset) = nested::nest(OP, &absmax.to_device(Device::Cpu))?;
            Scales::Nested { codes, absmax, offset }.map(|t| t.to_device(device))
        } else {
            Scales::Plain { absmax }
        };
        Ok(Self { packed, scales, code, shape })
    }

    /// A tensor of `shape` from its parts: `packed` u8 with a byte for each two numbers, of any shape, and its scales.
    ///
    /// # Errors
    /// Sizes, types or devices that do not fit.
    pub fn from_parts(packed: &Tensor, scales: &Scales, code: Code, shape: &[i64]) -> Result<Self> {
        const OP: &str = "FourBit::from_parts";
        let product = |numbers: i64, &size: &i64| numbers.checked_mul(size).filter(|_| size >= 0);
        let Some(numbers) = shape.iter().try_fold(1, product) else {
            return Err(TorchError::argument(OP, format!("no tensor has the shape {shape:?}")));
        };
        let blocks = blocks_of(numbers, BLOCK);
        let check = |name: &str, tensor: &Tensor, kind: Kind, count: i64| {
            let (size, found) = (tensor.numel() as i64, tensor.kind());
            if size != count || found != kind || tensor.device() != packed.device() {
                let message = format!(
                    "{name} is {size} of {found:?} on {:?}; a weight of {shape:?} takes {count} of {kind:?} on {:?}",
                    tensor.device(),
                    packed.device()
                );
                return Err(TorchError::argument(OP, message));
            }
            Ok(())
        };
        check("packed", packed, Kind::Uint8, blocks_of(numbers, 2))?;
        match scales {
            Scales::Plain { absmax } => check("absmax", absmax, Kind::Float, blocks)?,
            Scales::Nested { codes, absmax, .. } => {
                check("codes", codes, Kind::Uint8, blocks)?;
                check("absmax", absmax, Kind::Float, blocks_of(blocks, blockwise::BLOCK))?;
            }
        }
        let flat = |tensor: &Tensor| tensor.detach().contiguous().view(-1);
        Ok(Self { packed: flat(packed), scales: scales.map(flat), code, shape: shape.to_vec() })
    }

    /// The codes, u8 `[numbers / 2]` (rounded up): two a byte, the first in the high half.
    pub fn packed(&self) -> &Tensor {
        &self.packed
    }

    /// The scales of the blocks.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Which 16 values.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The shape of the tensor.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Bytes of codes and scales.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        bytes(&self.packed) + self.scales.tensors().map(bytes).sum::<usize>()
    }

    /// The same tensor over the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    /// The same tensor on `device`.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        self.map(|tensor| tensor.to_device(device))
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            packed: f(&self.packed),
            scales: self.scales.map(&f),
            code: self.code,
            shape: self.shape.clone(),
        }
    }

    /// The numbers, of [`Self::shape`], in fp32, bf16 or fp16: computed in fp32 and rounded once.
    ///
    /// # Deviations
    /// bitsandbytes 0.50 on a CPU with AVX-512 takes scales of other blocks where rows are a multiple of 16 numbers long
    /// but not of 64. Some of its kernels give FP4's second zero a sign.
    ///
    /// # Errors
    /// Another `kind`.
    pub fn dequantise(&self, kind: Kind) -> Result<Tensor> {
        let out = Tensor::empty(self.shape.as_slice(), (kind, self.packed.device()));
        self.dequantise_into(&out)?;
        Ok(out)
    }

    /// Writes the numbers into `out`: as many, in fp32, bf16 or fp16, contiguous, such as a range of rows of a larger
    /// tensor. Not recorded by autograd.
    ///
    /// # Errors
    /// `out` does not fit.
    pub fn dequantise_into(&self, out: &Tensor) -> Result<()> {
        const OP: &str = "FourBit::dequantise";
        let kind = out.kind();
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half) {
            let message = format!("to {kind:?}; use Float, BFloat16 or Half");
            return Err(TorchError::argument(OP, message));
        }
        let numbers = self.shape.iter().product::<i64>();
        if out.numel() as i64 != numbers || !out.is_contiguous() {
            let message = format!(
                "out {:?} (strides {:?}) is not {numbers} contiguous numbers",
                out.size(),
                out.stride()
            );
            return Err(TorchError::argument(OP, message));
        }
        let device = self.packed.device();
        if out.device() != device {
            let message = format!("out is on {:?}, the weight on {device:?}", out.device());
            return Err(TorchError::argument(OP, message));
        }
        if device == Device::Cpu {
            return self.dequantise_by_kernel(OP, out);
        }
        no_grad(|| self.dequantise_by_operations(&out.detach()));
        Ok(())
    }

    fn dequantise_by_kernel(&self, op: &'static str, out: &Tensor) -> Result<()> {
        let (absmax, codes, offset) = match &self.scales {
            Scales::Plain { absmax } => (absmax, None, 0.0),
            Scales::Nested { codes, absmax, offset } => (absmax, Some(codes), *offset),
        };
        let tensors = [ffi::ptr(&self.packed), ffi::ptr(absmax), ffi::opt_ptr(codes)];
        let (values, map) = (self.code.values(), nested_map().as_ptr());
        // SAFETY: tensors on the CPU whose types and sizes were checked when `self` was made and by the caller; 16 and
        // 256 values.
        let message = unsafe {
            ffi::te_four_bit_dequantise(
                tensors.as_ptr(),
                values.as_ptr(),
                map,
                f64::from(offset),
                ffi::ptr(out),
            )
        };
        ffi::check(op, message)
    }

    fn dequantise_by_operations(&self, out: &Tensor) {
        let device = self.packed.device();
        let values = self.code.values();
        let pairs: Vec<f32> =
            (0..256).flat_map(|byte| [values[byte >> 4], values[byte & 15]]).collect();
        let pairs = Tensor::from_slice(&pairs).view([256, 2]).to_device(device);
        let absmax = match &self.scales {
            Scales::Plain { absmax } => absmax.shallow_clone(),
            Scales::Nested { codes, absmax, offset } => {
                let map = Tensor::from_slice(nested_map()).to_device(device);
                let codes = map.index_select(0, &codes.to_kind(Kind::Int));
                scale_blocks(&codes, absmax, blockwise::BLOCK);
                codes + f64::from(*offset)
            }
        };
        let numbers = pairs.index_select(0, &self.packed.to_kind(Kind::Int)).view(-1);
        let numbers = numbers.narrow(0, 0, out.numel() as i64);
        scale_blocks(&numbers, &absmax, BLOCK);
        out.view(-1).copy_(&numbers);
    }
}

/// Multiplies `numbers` [n] block by block with `absmax`, in place.
fn scale_blocks(numbers: &Tensor, absmax: &Tensor, block: i64) {
    let n = numbers.size()[0];
    let whole = n / block;
    let _ = numbers
        .narrow(0, 0, whole * block)
        .view([whole, block])
        .g_mul_(&absmax.narrow(0, 0, whole).unsqueeze(1));
    if whole * block < n {
        let _ =
            numbers.narrow(0, whole * block, n - whole * block).g_mul_(&absmax.narrow(0, whole, 1));
    }
}

fn blocks_of(numbers: i64, block: i64) -> i64 {
    (numbers + block - 1) / block
}

/// Codes and scales; the scale of a block with a number that is not finite is NaN.
fn quantise_by_kernel(op: &'static str, numbers: &Tensor, code: Code) -> Result<(Tensor, Tensor)> {
    let (midpoints, order) = (code.midpoints(), code.order());
    let mut results = [std::ptr::null_mut(); 2];
    // SAFETY: a borrowed tensor of fp32, bf16 or fp16; 15 midpoints and 16 codes; room for two results.
    let message = unsafe {
        let (midpoints, order) = (midpoints.as_ptr(), order.as_ptr());
        ffi::te_four_bit_quantise(ffi::ptr(numbers), midpoints, order, results.as_mut_ptr())
    };
    ffi::check(op, message)?;
    let [packed, absmax] = ffi::take(op, results)?;
    Ok((packed, absmax))
}

/// As [`quantise_by_kernel`].
fn quantise_by_operations(numbers: &Tensor, code: Code) -> (Tensor, Tensor) {
    let device = numbers.device();
    let flat = numbers.flatten(0, -1).to_kind(Kind::Float);
    let n = flat.size()[0];
    let (blocks, whole) = (blocks_of(n, BLOCK), n / BLOCK);
    let padded = flat.constant_pad_nd([0, blocks * BLOCK - n]).view([blocks, BLOCK]);
    let absmax = if n > 0 {
        padded.abs().amax([1], true)
    } else {
        Tensor::zeros([0, 1], (Kind::Float, device))
    };
    let divisor = absmax.clamp_min(LEAST_SCALE);
    let scaled = &padded * divisor.reciprocal();
    // A last block that is not full is divided by its scale, which is the divisor.
    let rest = blocks - whole;
    scaled
        .narrow(0, whole, rest)
        .copy_(&(padded.narrow(0, whole, rest) / divisor.narrow(0, whole, rest)));
    absmax.narrow(0, whole, rest).copy_(&divisor.narrow(0, whole, rest));
    let midpoints = Tensor::from_slice(&code.midpoints()).to_device(device);
    let order = Tensor::from_slice(&code.order()).to_device(device);
    let ranks = scaled.view(-1).narrow(0, 0, n + n % 2).bucketize(&midpoints, true, false);
    let codes = order.index_select(0, &ranks).view([-1, 2]);
    let packed = codes.select(1, 0) * 16 + codes.select(1, 1);
    (packed, absmax.view(-1))
}
