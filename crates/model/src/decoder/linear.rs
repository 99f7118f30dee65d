//! A linear layer: the seam at which low-rank updates, factors and 4-bit weights attach.

use super::low_rank::{self, LowRank};
use super::rescale::Rescale;
use crate::error::Result;
use crate::layout::Affine;
use crate::params::{Params, Weight};
use tch::{Device, Kind, Tensor};
use torch_ext::four_bit::FourBit;
use torch_ext::linear::{self, Packed};

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightLayout {
    /// `[out, in]`, as `nn.Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// The weight of one or several Hugging Face layers side by side.
#[derive(Debug)]
pub(crate) enum Matrix {
    Dense {
        weight: Tensor,
        layout: WeightLayout,
    },
    /// Parts of `[out, in]` each, and the number type to compute in.
    FourBit {
        parts: Vec<FourBit>,
        kind: Kind,
        device: Device,
    },
}

impl Matrix {
    /// A handle on the same tensors.
    pub(super) fn share(&self) -> Self {
        match self {
            Self::Dense { weight, layout } => {
                Self::Dense { weight: weight.shallow_clone(), layout: *layout }
            }
            Self::FourBit { parts, kind, device } => {
                let parts = parts.iter().map(FourBit::shallow_clone).collect();
                Self::FourBit { parts, kind: *kind, device: *device }
            }
        }
    }

    /// The layer of this index among those side by side, whose outputs begin at `start`.
    pub(super) fn part(&self, index: usize, (start, count): (i64, i64)) -> Self {
        match self {
            Self::Dense { weight, layout } => {
                let dimension = i64::from(*layout == WeightLayout::InOut);
                Self::Dense { weight: weight.narrow(dimension, start, count), layout: *layout }
            }
            Self::FourBit { parts, kind, device } => {
                let parts = vec![parts[index].shallow_clone()];
                Self::FourBit { parts, kind: *kind, device: *device }
            }
        }
    }

    /// `[in, out]`: a view, or what 4 bits stand for.
    pub(super) fn in_out(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Dense { weight, layout: WeightLayout::OutIn } => weight.tr(),
            Self::Dense { weight, layout: WeightLayout::InOut } => weight.shallow_clone(),
            Self::FourBit { parts, kind, device } => {
                let rows = |part: &FourBit| part.shape()[0];
                let shape = [parts.iter().map(rows).sum(), parts[0].shape()[1]];
                let whole = Tensor::f_empty(shape, (*kind, *device))?;
                let mut start = 0;
                for part in parts {
                    part.dequantise_into(&whole.narrow(0, start, rows(part)))?;
                    start += rows(part);
                }
                whole.tr()
            }
        })
    }

    /// Whether gradients go to it.
    pub(super) fn trains(&self) -> bool {
        matches!(self, Self::Dense { weight, .. } if weight.requires_grad())
    }

    pub(super) fn leaf(&self) -> Option<&Tensor> {
        match self {
            Self::Dense { weight, .. } => Some(weight),
            Self::FourBit { .. } => None,
        }
    }
}

/// `x · weight [in, out] + bias`, by the faster of libtorch's kernels.
pub(super) fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match bias {
        bias if linear::serves(x) => linear::forward(x, &weight.tr(), bias)?,
        Some(bias) => bias.addmm(x, weight),
        None => x.mm(weight),
    })
}

/// What an adapter adds to a linear layer.
#[derive(Debug)]
pub(crate) enum Change {
    LowRank(LowRank),
    Rescale(Rescale),
}

impl Change {
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::LowRank(low_rank) => Self::LowRank(low_rank.share()),
            Self::Rescale(rescale) => Self::Rescale(rescale.share()),
        }
    }
}

/// `x W + b` over flat rows. The weight may serve several Hugging Face layers side by side.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(super) bias: Option<Tensor>,
    pub(crate) change: Option<Change>,
    /// A copy of the weight for the CPU's matrix kernels, used where it is: only where nothing trains.
    packed: Option<Packed>,
}

impl Linear {
    pub(crate) fn new(params: &Params, affine: Affine, layout: WeightLayout) -> Self {
        let matrix = match params.weight(affine.weight) {
            Weight::Dense(weight) => Matrix::Dense { weight, layout },
            Weight::FourBit(parts) => {
                let (kind, device) = (params.precision().kind(), params.device());
                Matrix::FourBit { parts, kind, device }
            }
        };
        let bias = affine.bias.map(|block| params.leaf(block));
        Self { matrix, bias, change: None, packed: None }
    }

    /// A handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        Self {
            matrix: self.matrix.share(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            change: self.change.as_ref().map(Change::share),
            packed: None,
        }
    }

    /// Packs the weight, with what an adapter makes of it, for inputs of about `rows` rows. A weight in 4 bits stays as it
    /// is: packed it would take the memory that it saves.
    pub(crate) fn pack(&mut self, rows: i64) -> Result<()> {
        if matches!(self.matrix, Matrix::FourBit { .. }) {
            return Ok(());
        }
        let (weight, bias) = tch::no_grad(|| self.merged())?;
        self.packed = Some(Packed::new(&weight.tr(), rows)?);
        (self.bias, self.change) = (bias, None);
        Ok(())
    }

    /// Weight `[in, out]` and bias of the plain layer that computes the same, in the compute precision: fp32 sums, rounded
    /// once.
    pub(crate) fn merged(&self) -> Result<(Tensor, Option<Tensor>)> {
        let weight = self.matrix.in_out()?;
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        let Some(change) = &self.change else { return Ok((weight, bias)) };
        let exact = weight.to_kind(Kind::Float);
        let (merged, bias) = match change {
            Change::LowRank(low_rank) => (low_rank.merged(&exact.tr())?.tr(), bias),
            Change::Rescale(rescale) => rescale.merged(&exact, bias)?,
        };
        Ok((merged.to_kind(weight.kind()), bias))
    }

    /// The leaves that gradients go to.
    pub(crate) fn leaves(&self) -> Vec<&Tensor> {
        let mut all: Vec<&Tensor> = self.matrix.leaf().into_iter().chain(&self.bias).collect();
        match &self.change {
            Some(Change::LowRank(low_rank)) => all.extend(low_rank.leaves()),
            Some(Change::Rescale(rescale)) => all.extend(rescale.leaves()),
            None => {}
        }
        all
    }

    /// `x [T, in]` to `[T, out]`. `training` switches an adapter's dropout on.
    pub(crate) fn forward(&self, x: &Tensor, training: bool) -> Result<Tensor> {
        if let Some(packed) = &self.packed {
            return Ok(packed.forward(x, self.bias.as_ref())?);
        }
        match &self.change {
            None => self.plain(x),
            Some(Change::LowRank(low_rank)) => low_rank.forward(self, x, training),
            Some(Change::Rescale(rescale)) => rescale.forward(self, x),
        }
    }

    /// The layer without what an adapter adds.
    pub(super) fn plain(&self, x: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Dense { .. } => product(x, &self.matrix.in_out()?, self.bias.as_ref()),
            Matrix::FourBit { .. } => low_rank::plain(&self.matrix, self.bias.as_ref(), x),
        }
    }

    /// `residual + forward(x)` in as few passes as the parts allow: without a bias the product accumulates onto the
    /// residual inside the matrix kernel.
    pub(crate) fn forward_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        training: bool,
    ) -> Result<Tensor> {
        let bare = self.packed.is_none() && self.change.is_none() && self.bias.is_none();
        Ok(match &self.matrix {
            Matrix::Dense { .. } if bare && !linear::serves(x) => {
                residual.addmm(x, &self.matrix.in_out()?)
            }
            // The fresh output is nobody's saved tensor, so it may take the sum in place.
            _ => self.forward(x, training)?.g_add_(residual),
        })
    }
}
