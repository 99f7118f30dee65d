//! The gradients of parameters, from the leaves that backward leaves them on to the fp32 sums.

use super::Params;
use super::block::{Block, Storage};
use crate::error::{Error, Result};
use crate::precision::Precision;
use std::ops::Range;
use tch::{Kind, Tensor};
use torch_ext::{autograd, foreach};

/// A tensor that backward leaves gradients on, which is a parameter or several in one allocation.
#[derive(Debug)]
pub struct Leaf {
    /// The leaf itself. Shares its storage.
    pub compute: Tensor,
    /// The fp32 gradient that [`Params::gather_grads`] has put aside; none in fp32, where it stays on the leaf.
    pub gathered: Option<Tensor>,
    /// Where each parameter that trains lies in it, in numbers, in the order of [`Params::masters`].
    pub parts: Vec<Range<i64>>,
}

impl Params {
    /// Adds the gradients that backward left on the compute copies into the fp32 gradients, and takes the former away. In
    /// fp32 the two are one, to which backward adds.
    ///
    /// Call once after the backward pass of every micro-batch.
    ///
    /// # Errors
    /// libtorch reports one.
    pub fn gather_grads(&mut self) -> Result<()> {
        let _guard = autograd::GradMode::set(false);
        for block in &mut self.blocks {
            let Storage::Dense { master: Some(_), compute } = &block.storage else { continue };
            if self.precision == Precision::Fp32 {
                let found = compute.grad();
                block.grad = found.defined().then_some(found);
                continue;
            }
            let Some(found) = autograd::take_grad(compute)? else { continue };
            match &mut block.grad {
                Some(grad) => foreach::add_(&[grad], &[found], 1.0)?,
                None => block.grad = Some(found.to_kind(Kind::Float)),
            }
        }
        Ok(())
    }

    /// The leaves that train, in the order of the model: for sums of gradients over several processes.
    pub fn leaves(&self) -> Vec<Leaf> {
        let apart = self.precision != Precision::Fp32;
        let trained = self.blocks.iter().filter(|block| block.trains());
        let leaf = |block: &Block| {
            let gathered = block.grad.as_ref().filter(|_| apart).map(Tensor::shallow_clone);
            let parts = block.parts.iter().filter(|part| part.trainable);
            let parts = parts.map(|part| {
                let row = part.shape[1..].iter().product::<i64>();
                part.start * row..(part.start + part.shape[0]) * row
            });
            let parts = parts.collect();
            Some(Leaf { compute: block.compute()?.shallow_clone(), gathered, parts })
        };
        trained.filter_map(leaf).collect()
    }

    /// Puts fp32 gradients, one for each of [`leaves`](Self::leaves) and of its shape, in the place of those there are.
    ///
    /// # Errors
    /// Another number of them; libtorch's.
    pub fn put_grads(&mut self, grads: Vec<Tensor>) -> Result<()> {
        let trained = self.blocks.iter_mut().filter(|block| block.trains());
        let trained: Vec<&mut Block> = trained.collect();
        if trained.len() != grads.len() {
            let (leaves, given) = (trained.len(), grads.len());
            return Err(Error::Input(format!("{given} gradients for {leaves} leaves")));
        }
        for (block, grad) in trained.into_iter().zip(grads) {
            if let Some(compute) = block.compute() {
                autograd::take_grad(compute)?;
            }
            block.grad = Some(grad);
        }
        Ok(())
    }

    /// Takes all gradients away; their memory serves the next forward pass.
    ///
    /// # Errors
    /// libtorch reports one.
    pub fn clear_grads(&mut self) -> Result<()> {
        for block in &mut self.blocks {
            block.grad = None;
            if let Some(compute) = block.compute() {
                autograd::take_grad(compute)?;
            }
        }
        Ok(())
    }
}
