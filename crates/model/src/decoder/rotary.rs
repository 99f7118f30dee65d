//! Rotary positions in rotate-half order, and the split of a fused query-key-value row.

use crate::config::ModelConfig;
use crate::error::Result;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::autograd;
use torch_ext::fused::rotate_into;

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
            Rotation { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
        })
    }
}

impl Rotation {
    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Writes `x [T, N, E]` rotated into `out`, with `inverse` by the opposite angles: what gradients go through.
    fn rotate_into(&self, x: &Tensor, out: &Tensor, inverse: bool) -> Result<()> {
        Ok(rotate_into(x, &self.cos, &self.sin, inverse, out)?)
    }

    /// Rotates `x [T, N, E]`; differentiable.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let out = no_grad(|| Tensor::empty(x.size(), (x.kind(), x.device())));
        self.rotate_into(&x.detach(), &out, false)?;
        let rotation = self.share();
        let mut out = autograd::custom("rotate", &[x], &[out], move |grads| {
            let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
            let back = Tensor::empty(grad.size(), (grad.kind(), grad.device()));
            rotation.rotate_into(grad, &back, true)?;
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
        let outputs = no_grad(|| -> Result<[Tensor; 3]> {
            let rows = qkv.detach().view([tokens, rotated + kv_heads, size]);
            let out = Tensor::empty([tokens, rotated, size], (qkv.kind(), qkv.device()));
            self.rotate_into(&rows.narrow(1, 0, rotated), &out, false)?;
            let value = rows.narrow(1, rotated, kv_heads);
            Ok([out.narrow(1, 0, heads), out.narrow(1, heads, kv_heads), value])
        })?;
        let rotation = self.share();
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
                    Some(grad) if i < 2 => rotation.rotate_into(grad, &slot, true)?,
                    Some(grad) => slot.copy_(grad),
                }
            }
            Ok(vec![Some(back.view([tokens, (rotated + kv_heads) * size]))])
        })?;
        outputs.try_into().map_err(|_| crate::Error::Input("split_rotate lost an output".into()))
    }
}
