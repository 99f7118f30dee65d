//! Rotary positions in rotate-half order, and the split of a fused query-key-value row.

use crate::config::ModelConfig;
use crate::error::Result;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::autograd;

/// Makes [`Rotation`]s for the positions of a batch.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// `[E / 2]`, fp32.
    inverse_frequencies: Tensor,
}

/// Cosine and sine of every angle of a flat row, each `[T, 1, E / 2]` in the compute kind; one for all layers.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    minus_sin: Tensor,
}

impl Rotary {
    /// For a config with rotary positions.
    pub(crate) fn new(config: &ModelConfig, device: Device) -> Option<Self> {
        let frequencies = config.rope?.inverse_frequencies(config.head_dim);
        Some(Self { inverse_frequencies: Tensor::from_slice(&frequencies).to_device(device) })
    }

    /// The angles of `positions [T]` (i64), in fp32 and then cast, as transformers does.
    pub(crate) fn rotation(&self, positions: &Tensor, kind: Kind) -> Rotation {
        no_grad(|| {
            let angles =
                positions.to_kind(Kind::Float).unsqueeze(1) * self.inverse_frequencies.unsqueeze(0);
            let angles = angles.unsqueeze(1);
            let sin = angles.sin().to_kind(kind);
            Rotation { cos: angles.cos().to_kind(kind), minus_sin: -&sin, sin }
        })
    }
}

impl Rotation {
    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            cos: self.cos.shallow_clone(),
            sin: self.sin.shallow_clone(),
            minus_sin: self.minus_sin.shallow_clone(),
        }
    }

    /// The rotation by the opposite angles: the inverse, and so what gradients go through.
    fn inverse(&self) -> Self {
        Self {
            cos: self.cos.shallow_clone(),
            sin: self.minus_sin.shallow_clone(),
            minus_sin: self.sin.shallow_clone(),
        }
    }

    /// Writes `x [T, N, E]` rotated into `out` of the same shape; the two may not overlap.
    fn rotate_into(&self, x: &Tensor, out: &Tensor) {
        let half = x.size()[2] / 2;
        let (first, second) = (x.narrow(2, 0, half), x.narrow(2, half, half));
        let (mut out_first, mut out_second) = (out.narrow(2, 0, half), out.narrow(2, half, half));
        let _ = first.mul_out(&out_first, &self.cos);
        let _ = out_first.addcmul_(&second, &self.minus_sin);
        let _ = second.mul_out(&out_second, &self.cos);
        let _ = out_second.addcmul_(&first, &self.sin);
    }

    /// Rotates `x [T, N, E]`; differentiable.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let out = no_grad(|| {
            let out = Tensor::empty(x.size(), (x.kind(), x.device()));
            self.rotate_into(x, &out);
            out
        });
        let inverse = self.inverse();
        let mut out = autograd::custom("rotate", &[x], &[out], move |grads| {
            let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
            let back = Tensor::empty(grad.size(), (grad.kind(), grad.device()));
            inverse.rotate_into(grad, &back);
            Ok(vec![Some(back)])
        })?;
        Ok(out.remove(0))
    }

    /// Splits `qkv [T, (H + 2 Hkv) E]` into query `[T, H, E]`, key and value `[T, Hkv, E]`, the first two rotated.
    ///
    /// One autograd node, so that backward fills the gradient of the fused row in place instead of adding three padded
    /// ones.
    pub(crate) fn split(
        &self,
        qkv: &Tensor,
        heads: i64,
        kv_heads: i64,
        size: i64,
    ) -> Result<[Tensor; 3]> {
        let tokens = qkv.size()[0];
        let rotated = heads + kv_heads;
        let outputs = no_grad(|| {
            let rows = qkv.detach().view([tokens, rotated + kv_heads, size]);
            let out = Tensor::empty([tokens, rotated, size], (qkv.kind(), qkv.device()));
            self.rotate_into(&rows.narrow(1, 0, rotated), &out);
            let value = rows.narrow(1, rotated, kv_heads);
            [out.narrow(1, 0, heads), out.narrow(1, heads, kv_heads), value]
        });
        let inverse = self.inverse();
        let like = (qkv.kind(), qkv.device());
        let outputs = autograd::custom("split_rotate", &[qkv], &outputs, move |grads| {
            let back = Tensor::empty([tokens, rotated + kv_heads, size], like);
            let parts = [(0, heads), (heads, kv_heads), (rotated, kv_heads)];
            for (i, (start, count)) in parts.into_iter().enumerate() {
                let mut slot = back.narrow(1, start, count);
                match &grads[i] {
                    None => {
                        let _ = slot.zero_();
                    }
                    Some(grad) if i < 2 => inverse.rotate_into(grad, &slot),
                    Some(grad) => slot.copy_(grad),
                }
            }
            Ok(vec![Some(back.view([tokens, (rotated + kv_heads) * size]))])
        })?;
        outputs.try_into().map_err(|_| crate::Error::Input("split_rotate lost an output".into()))
    }
}
