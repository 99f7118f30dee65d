//! Learned factors on a linear layer's inputs or outputs: Liu et al. 2022, `IA3`, arXiv:2205.05638, section 3.3.

#[cfg(test)]
mod tests;

use super::linear::Linear;
use super::low_rank::plain;
use crate::error::Result;
use tch::Tensor;

/// Factors for parts of a layer.
#[derive(Debug)]
pub(crate) struct Rescale {
    /// In the order of their outputs; every output is in one of them.
    pub(crate) parts: Vec<Part>,
}

/// One Hugging Face layer.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its first output and number of outputs.
    pub(crate) outputs: (i64, i64),
    pub(crate) factors: Factors,
}

/// What a layer is multiplied with.
#[derive(Debug)]
pub(crate) enum Factors {
    None,
    /// `[in]` numbers, in whatever shape.
    Inputs(Tensor),
    /// `[out]` numbers, on the bias too.
    Outputs(Tensor),
}

impl Factors {
    fn share(&self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Inputs(factors) => Self::Inputs(factors.shallow_clone()),
            Self::Outputs(factors) => Self::Outputs(factors.shallow_clone()),
        }
    }
}

impl Rescale {
    /// A handle on the same tensors.
    pub(super) fn share(&self) -> Self {
        let share = |part: &Part| Part { outputs: part.outputs, factors: part.factors.share() };
        Self { parts: self.parts.iter().map(share).collect() }
    }

    pub(super) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.parts.iter().filter_map(|part| match &part.factors {
            Factors::Inputs(factors) | Factors::Outputs(factors) => Some(factors),
            Factors::None => None,
        })
    }

    /// All factors, to be changed.
    pub(crate) fn factors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.parts.iter_mut().filter_map(|part| match &mut part.factors {
            Factors::Inputs(factors) | Factors::Outputs(factors) => Some(factors),
            Factors::None => None,
        })
    }

    /// The layer with the factors: `x [T, in]` to `[T, out]`.
    pub(super) fn forward(&self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        let on_inputs = |part: &Part| matches!(part.factors, Factors::Inputs(_));
        if let [Part { factors: Factors::Inputs(factors), .. }] = self.parts.as_slice() {
            return layer.plain(&(x * factors.flatten(0, -1)));
        }
        if !self.parts.iter().any(on_inputs) {
            return Ok(layer.plain(x)? * self.output_factors(x)?);
        }
        // Layers side by side whose inputs differ: one by one.
        let mut outputs = Vec::with_capacity(self.parts.len());
        for (index, part) in self.parts.iter().enumerate() {
            let (start, count) = part.outputs;
            let bias = layer.bias.as_ref().map(|bias| bias.narrow(0, start, count));
            let matrix = layer.matrix.part(index, part.outputs);
            let run = |x: &Tensor| plain(&matrix, bias.as_ref(), x);
            outputs.push(match &part.factors {
                Factors::None => run(x)?,
                Factors::Inputs(factors) => run(&(x * factors.flatten(0, -1)))?,
                Factors::Outputs(factors) => run(x)? * factors.flatten(0, -1),
            });
        }
        Ok(Tensor::f_cat(&outputs, 1)?)
    }

    /// `[out]`, 1 where an output has none.
    fn output_factors(&self, like: &Tensor) -> Result<Tensor> {
        let factors: Vec<Tensor> = self
            .parts
            .iter()
            .map(|part| match &part.factors {
                Factors::Outputs(factors) => factors.flatten(0, -1),
                _ => like.new_ones([part.outputs.1], (like.kind(), like.device())),
            })
            .collect();
        Ok(Tensor::f_cat(&factors, 0)?)
    }

    /// Weight `[in, out]` and bias of the plain layer that computes the same.
    pub(crate) fn merged(
        &self,
        weight: &Tensor,
        bias: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let weight = weight.copy();
        for part in &self.parts {
            if let Factors::Inputs(factors) = &part.factors {
                let (start, count) = part.outputs;
                let factors = factors.flatten(0, -1).to_kind(weight.kind()).unsqueeze(1);
                let _ = weight.narrow(1, start, count).f_mul_(&factors)?;
            }
        }
        let factors = self.output_factors(&weight)?.to_kind(weight.kind());
        let bias = bias.map(|bias| {
            let kind = bias.kind();
            (bias.to_kind(weight.kind()) * &factors).to_kind(kind)
        });
        Ok((weight * factors, bias))
    }
}
