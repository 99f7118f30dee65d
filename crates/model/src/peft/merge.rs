//! Adapters made part of the weights, and taken off again.

use crate::decoder::{Change, Decoder, Layer, Matrix};
use crate::error::{Error, Result};
use crate::layout::layout;
use tch::Tensor;

impl Decoder {
    /// Makes the adapter part of the weights: fp32 sums, rounded once to what the model holds.
    ///
    /// # Errors
    /// Bottleneck layers, which no weight can take in; weights in 4 bits, which would be rounded to 4 bits again; a model
    /// without an adapter.
    pub fn merge_adapter(&mut self) -> Result<()> {
        self.fold(|change| Ok(change.share()))
    }

    /// Takes a merged adapter off the weights again: what is left is the base but for rounding.
    ///
    /// # Errors
    /// As [`merge_adapter`](Self::merge_adapter); `DoRA`, whose base has lengths that the merged weights do not tell;
    /// what was trained whole.
    pub fn unmerge_adapter(&mut self) -> Result<()> {
        let trained = self.attached.iter().flat_map(|attached| &attached.trained);
        if let Some(first) = trained.into_iter().next() {
            return Err(Error::Adapter(format!(
                "{first} and maybe others were trained whole, so that nothing tells what they were; keep the base"
            )));
        }
        self.fold(Change::inverse)
    }

    fn fold(&mut self, of: impl Fn(&Change) -> Result<Change>) -> Result<()> {
        if self.attached.is_none() {
            return Err(Error::NoAdapter);
        }
        if self.layers().iter().any(|layer| layer.bottlenecks.iter().any(Option::is_some)) {
            return Err(Error::Adapter(
                "a bottleneck adapter has layers of its own, which the model's weights cannot take in; use it as it is"
                    .into(),
            ));
        }
        let layout = layout(self.config());
        let conv1d = self.config().is_conv1d();
        // Before anything changes.
        for linear in self.layers().iter().flat_map(Layer::linears) {
            let Some(change) = &linear.change else { continue };
            if matches!(linear.matrix, Matrix::FourBit { .. }) {
                return Err(Error::Adapter(
                    "the base is in 4 bits, in which a merged weight would be rounded again; merge into the base in full \
                     precision"
                        .into(),
                ));
            }
            of(change)?;
        }
        for (index, blocks) in layout.layers.iter().enumerate() {
            for (slot, affine) in blocks.linears().into_iter().enumerate() {
                let (params, linear) = self.params_and_linear(index, slot);
                let Some(change) = &linear.change else { continue };
                linear.change = Some(of(change)?);
                let (weight, bias) = tch::no_grad(|| linear.merged())?;
                let weight = if conv1d { weight } else { weight.tr() };
                params.set(affine.weight, &weight)?;
                if let (Some(block), Some(bias)) = (affine.bias, bias) {
                    params.set(block, &bias)?;
                }
                linear.change = None;
            }
        }
        self.forget_adapter()
    }
}

impl Change {
    /// What undoes it once it is part of a weight.
    fn inverse(&self) -> Result<Self> {
        let mut change = self.share();
        match &mut change {
            Self::LowRank(low_rank) => {
                for part in &mut low_rank.parts {
                    if part.magnitude.is_some() {
                        return Err(Error::Adapter(
                            "a DoRA cannot be taken off: the merged weights do not tell how long the base's rows were; \
                             keep the base"
                                .into(),
                        ));
                    }
                    part.scale = -part.scale;
                }
            }
            Self::Rescale(rescale) => rescale.factors_mut().for_each(|factors: &mut Tensor| {
                *factors = factors.reciprocal();
            }),
        }
        Ok(change)
    }
}
