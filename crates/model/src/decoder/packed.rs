//! A decoder's linear layers laid out for the CPU's matrix kernels, to generate with.

use super::Decoder;
use super::layer::Layer;
use crate::error::Result;
use tch::Tensor;
use torch_ext::linear;

/// Copies of all weight matrices; stale once the decoder's weights change.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(super) layers: Vec<Layer>,
    head: linear::Packed,
    version: u64,
}

impl Decoder {
    /// The weights packed for products of about `rows` rows, `None` where this precision or device has no such layout.
    /// `before` is taken over where it has the present weights, for whatever number of rows it was made.
    pub(crate) fn pack(&self, rows: i64, before: Option<Packed>) -> Result<Option<Packed>> {
        // What is divided is there for a moment only.
        let apart = self.params.division().is_some();
        if apart || !linear::Packed::serves(self.precision().kind(), self.device()) {
            return Ok(None);
        }
        let version = self.params.version()?;
        if before.as_ref().is_some_and(|before| before.version == version) {
            return Ok(before);
        }
        drop(before);
        let layers = self.layers.iter().map(|layer| layer.pack(rows)).collect::<Result<_>>()?;
        let head = linear::Packed::new(&self.head()?.0, rows)?;
        Ok(Some(Packed { layers, head, version }))
    }
}

impl Packed {
    /// Logits `[R, V]` of hidden states `[R, D]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden, None)?)
    }
}
