//! Parameters: fp32 masters, the copies that compute runs on, and their gradients.

use crate::config::is_embedding;
use crate::error::Result;
use crate::layout::{BlockId, BlockSpec};
use crate::precision::Precision;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{autograd, foreach};

/// One trainable parameter as an optimiser sees it.
#[derive(Debug)]
pub struct Trainable<'a> {
    /// Hugging Face name.
    pub name: &'a str,
    /// The fp32 master weight. Updating it in place updates the model (after [`Params::refresh_compute`]).
    pub master: Tensor,
    /// The fp32 gradient, of the master's shape. Updating it in place is allowed (clipping).
    pub grad: Tensor,
}

impl Trainable<'_> {
    /// Whether it is looked up rather than multiplied with.
    pub fn is_embedding(&self) -> bool {
        is_embedding(self.name)
    }
}

/// The parameters of a model, in a fixed order, by their Hugging Face names.
///
/// A trainable parameter has an fp32 `master`. The forward pass uses its `compute` copy: the master itself in fp32,
/// a bf16 or fp16 leaf otherwise, cast once per optimiser step by [`refresh_compute`](Self::refresh_compute). Backward
/// leaves gradients on the compute copies; [`gather_grads`](Self::gather_grads) adds them into fp32 gradients after
/// every micro-batch, so that accumulation is in fp32. A frozen model has no masters: it holds compute copies only.
///
/// Some parameters share one allocation (query, key and value; gate and up) so that one matrix product serves them. The
/// tensors handed out here are then views of it: contiguous, of the Hugging Face shape, and safe to update in place.
#[derive(Debug)]
pub struct Params {
    blocks: Vec<Block>,
    index: HashMap<String, (usize, usize)>,
    precision: Precision,
    device: Device,
}

#[derive(Debug)]
struct Block {
    /// fp32, without autograd; `None` for a frozen model.
    master: Option<Tensor>,
    /// The leaf that the forward pass uses.
    compute: Tensor,
    /// fp32 gradient of the master once there is one.
    grad: Option<Tensor>,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    name: String,
    start: i64,
    rows: i64,
    trainable: bool,
}

impl Part {
    fn view(&self, block: &Tensor) -> Tensor {
        block.narrow(0, self.start, self.rows)
    }
}

impl Params {
    /// Allocates the blocks; their values are undefined until [`Self::fill`] has set every part.
    pub(crate) fn allocate(
        specs: &[BlockSpec],
        device: Device,
        precision: Precision,
        trainable: bool,
    ) -> Self {
        let mut index = HashMap::new();
        let blocks = specs
            .iter()
            .enumerate()
            .map(|(b, spec)| {
                let shape = spec.shape();
                let master = trainable.then(|| Tensor::empty(&shape, (Kind::Float, device)));
                let compute = match &master {
                    Some(master) if precision == Precision::Fp32 => master.detach(),
                    _ => Tensor::empty(&shape, (precision.kind(), device)),
                };
                let mut start = 0;
                let mut parts = Vec::with_capacity(spec.parts.len());
                for (p, part) in spec.parts.iter().enumerate() {
                    index.insert(part.name.clone(), (b, p));
                    let rows = part.shape[0];
                    parts.push(Part { name: part.name.clone(), start, rows, trainable });
                    start += rows;
                }
                Block { master, compute: compute.set_requires_grad(trainable), grad: None, parts }
            })
            .collect();
        Self { blocks, index, precision, device }
    }

    /// Sets one part from a tensor of any float kind on any device.
    pub(crate) fn fill(&mut self, block: BlockId, part: usize, value: &Tensor) {
        no_grad(|| {
            let block = &self.blocks[block];
            let whole = block.master.as_ref().unwrap_or(&block.compute);
            block.parts[part].view(whole).copy_(value);
        });
    }

    /// The leaf of a block. Shares its storage, so that it follows every later update.
    pub(crate) fn leaf(&self, block: BlockId) -> Tensor {
        self.blocks[block].compute.shallow_clone()
    }

    /// Number of named parameters.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.parts.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of numbers in all parameters; a tied tensor counts once.
    pub fn num_elements(&self) -> usize {
        self.blocks.iter().map(|block| block.compute.numel()).sum()
    }

    /// The compute precision.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A number that grows with every change of the compute weights.
    pub(crate) fn version(&self) -> Result<u64> {
        self.blocks.iter().map(|block| Ok(autograd::version(&block.compute)?)).sum()
    }

    /// All names, in the order of the model.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().flat_map(|block| block.parts.iter().map(|part| part.name.as_str()))
    }

    /// Names and weights in the order of the model: fp32 masters, or compute copies of a frozen model.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.blocks.iter().flat_map(|block| {
            let whole = block.master.as_ref().unwrap_or(&block.compute);
            block.parts.iter().map(move |part| (part.name.as_str(), part.view(&whole.detach())))
        })
    }

    /// The weight of this name: the fp32 master, or the compute copy of a frozen model. A view: in-place updates count.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let &(block, part) = self.index.get(name)?;
        let block = &self.blocks[block];
        let whole = block.master.as_ref().unwrap_or(&block.compute);
        Some(block.parts[part].view(&whole.detach()))
    }

    /// The fp32 gradient of this name as of the last [`gather_grads`](Self::gather_grads), if it has one.
    pub fn grad(&self, name: &str) -> Option<Tensor> {
        let &(block, part) = self.index.get(name)?;
        let block = &self.blocks[block];
        Some(block.parts[part].view(block.grad.as_ref()?))
    }

    /// Chooses which parameters train, by name. Freezes all others. Has no effect on a frozen model.
    pub fn set_trainable(&mut self, choose: impl Fn(&str) -> bool) {
        for block in &mut self.blocks {
            for part in &mut block.parts {
                part.trainable = block.master.is_some() && choose(&part.name);
            }
            let any = block.parts.iter().any(|part| part.trainable);
            block.compute = block.compute.set_requires_grad(any);
        }
    }

    /// The trainable parameters with their masters and gradients, in the order of the model.
    ///
    /// Call after [`gather_grads`](Self::gather_grads). A parameter that no backward pass has reached has zero gradient.
    pub fn trainable(&mut self) -> Vec<Trainable<'_>> {
        let mut all = Vec::new();
        for block in &mut self.blocks {
            let Some(master) = &block.master else { continue };
            if !block.parts.iter().any(|part| part.trainable) {
                continue;
            }
            let grad = &*block.grad.get_or_insert_with(|| master.zeros_like());
            for part in block.parts.iter().filter(|part| part.trainable) {
                let (master, grad) = (part.view(master), part.view(grad));
                all.push(Trainable { name: &part.name, master, grad });
            }
        }
        all
    }

    /// Copies the masters into the compute copies, casting once. Call after every change of the masters.
    pub fn refresh_compute(&mut self) {
        if self.precision == Precision::Fp32 {
            return;
        }
        no_grad(|| {
            for block in &mut self.blocks {
                if let Some(master) = &block.master {
                    block.compute.copy_(master);
                }
            }
        });
    }

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
            if self.precision == Precision::Fp32 {
                let found = block.compute.grad();
                block.grad = found.defined().then_some(found);
                continue;
            }
            let Some(found) = autograd::take_grad(&block.compute)? else { continue };
            match &mut block.grad {
                Some(grad) => foreach::add_(&[grad], &[found], 1.0)?,
                None => block.grad = Some(found.to_kind(Kind::Float)),
            }
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
            autograd::take_grad(&block.compute)?;
        }
        Ok(())
    }
}
