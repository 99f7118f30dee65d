//! Parameters: fp32 masters, the copies that compute runs on, and their gradients.

mod block;
mod gradients;

use crate::config::is_embedding;
use crate::division::{Division, Held, Ranks, slice};
use crate::error::{Error, Result};
use crate::layout::{BlockId, BlockSpec, ModelLayout};
use crate::precision::Precision;
use block::{Block, Part, Storage};
pub(crate) use block::{Keep, Stored, Weight};
pub use gradients::Leaf;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tch::{Device, Tensor, no_grad};
use torch_ext::autograd;
use torch_ext::four_bit::FourBit;

/// One trainable parameter as an optimiser sees it.
#[derive(Debug)]
pub struct Trainable<'a> {
    /// Hugging Face name.
    pub name: &'a str,
    /// Its shape, also where `master` and `grad` are a slice of it.
    pub shape: &'a [i64],
    /// The fp32 master weight. Updating it in place updates the model (after [`Params::refresh_compute`]).
    pub master: Tensor,
    /// The fp32 gradient, of the master's shape. Updating it in place is allowed (clipping).
    pub grad: Tensor,
    /// Its learning rate is so many times the others'.
    pub rate: f64,
}

impl Trainable<'_> {
    /// Numbers in the whole parameter.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Whether it is looked up rather than multiplied with.
    pub fn is_embedding(&self) -> bool {
        is_embedding(self.name)
    }
}

/// The fp32 master of a parameter that trains; see [`Trainable`].
#[derive(Debug)]
pub struct Master<'a> {
    /// Hugging Face name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [i64],
    /// The weight itself, or where it is divided this rank's slice of it, `[numbers]`.
    pub master: Tensor,
    /// Whether it is divided.
    pub divided: bool,
    /// Its learning rate is so many times the others'.
    pub rate: f64,
}

/// The parameters of a model, in a fixed order, by their Hugging Face names.
///
/// A trainable parameter has an fp32 `master`. The forward pass uses its `compute` copy: the master itself in fp32,
/// a bf16 or fp16 leaf otherwise, cast once per optimiser step by [`refresh_compute`](Self::refresh_compute). Backward
/// leaves gradients on the compute copies; [`gather_grads`](Self::gather_grads) adds them into fp32 gradients after
/// every micro-batch, so that accumulation is in fp32. A frozen parameter has no master: its compute copy is all there is,
/// or its 4-bit form, of which compute copies are made as they are needed. Beside a model's own parameters there may be an
/// adapter's.
///
/// Some parameters share one allocation (query, key and value; gate and up) so that one matrix product serves them. The
/// tensors handed out here are then views of it: contiguous, of the Hugging Face shape, and safe to update in place.
///
/// Several processes may hold a model together ([`division`](Self::division)): each has slices of the model's own parameters,
/// but for those in 4 bits, and [`whole`](Self::whole) brings one together. What hands out whole tensors at once ([`iter`](Self::iter),
/// [`get`](Self::get) and the like) is for models that are not divided.
#[derive(Debug)]
pub struct Params {
    blocks: Vec<Block>,
    /// So many blocks are the model's own; an adapter's follow.
    own: usize,
    index: HashMap<String, (usize, usize)>,
    precision: Precision,
    device: Device,
    division: Option<Division>,
    /// Of masters that are divided.
    refreshed: u64,
}

impl Params {
    /// Allocates blocks; their values are undefined until [`Self::fill`] has set every part.
    #[cfg(test)]
    pub(crate) fn allocate(
        specs: &[BlockSpec],
        device: Device,
        precision: Precision,
        keep: impl Fn(BlockId) -> Keep,
    ) -> Result<Self> {
        Self::allocate_over(specs, None, (device, precision), keep)
    }

    /// Allocates the blocks of a model, divided where there are `ranks`.
    pub(crate) fn allocate_for(
        layout: &ModelLayout,
        ranks: Option<&Arc<dyn Ranks>>,
        like: (Device, Precision),
        keep: impl Fn(BlockId) -> Keep,
    ) -> Result<Self> {
        let mut params = Self::allocate_over(&layout.blocks, ranks, like, keep)?;
        params.division = ranks.map(|ranks| {
            let held = |blocks: Vec<BlockId>| blocks.into_iter().filter_map(|id| params.held(id));
            let units = layout.units().into_iter().map(|blocks| held(blocks).collect());
            Division::new(Arc::clone(ranks), (like.1.kind(), like.0), units.collect())
        });
        Ok(params)
    }

    fn allocate_over(
        specs: &[BlockSpec],
        ranks: Option<&Arc<dyn Ranks>>,
        (device, precision): (Device, Precision),
        keep: impl Fn(BlockId) -> Keep,
    ) -> Result<Self> {
        let mut params = Self {
            blocks: Vec::new(),
            own: specs.len(),
            index: HashMap::new(),
            precision,
            device,
            division: None,
            refreshed: 0,
        };
        for (id, spec) in specs.iter().enumerate() {
            params.push(spec, keep(id), ranks.map(|ranks| ranks.size()))?;
        }
        Ok(params)
    }

    fn held(&self, id: BlockId) -> Option<Held> {
        let Storage::Divided { own, slots, compute, .. } = &self.blocks[id].storage else {
            return None;
        };
        let (own, compute) = (own.shallow_clone(), compute.shallow_clone());
        Some(Held { id, own, compute, slots: slots.clone() })
    }

    /// What other ranks have of this model, where it is divided.
    pub fn division(&self) -> Option<&Division> {
        self.division.as_ref()
    }

    /// Adds a block of an adapter.
    pub(crate) fn add(&mut self, spec: &BlockSpec, trained: bool) -> Result<BlockId> {
        self.push(spec, if trained { Keep::Trained } else { Keep::Frozen }, None)?;
        Ok(self.blocks.len() - 1)
    }

    /// Takes an adapter's blocks away.
    pub(crate) fn drop_added(&mut self) {
        self.blocks.truncate(self.own);
        self.index.retain(|_, place| place.0 < self.own);
    }

    fn push(&mut self, spec: &BlockSpec, keep: Keep, ranks: Option<usize>) -> Result<()> {
        let id = self.blocks.len();
        for (p, part) in spec.parts.iter().enumerate() {
            self.index.insert(part.name.clone(), (id, p));
        }
        self.blocks.push(Block::new(spec, keep, (self.device, self.precision), ranks)?);
        Ok(())
    }

    /// Sets one part from a tensor of any float kind on any device, shaped as Hugging Face has it.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn fill(&mut self, block: BlockId, part: usize, value: &Tensor) -> Result<()> {
        let device = self.device;
        let place = self.division.as_ref().map(Division::place);
        let Block { storage, parts, .. } = &mut self.blocks[block];
        match storage {
            Storage::Divided { own, slots, .. } => {
                let (rank, size) = place.unwrap_or((0, 1));
                let range = slice(slots[part].numel, rank, size);
                let part = slots[part].own(own, rank, size);
                let numbers = value.f_reshape([-1])?;
                let numbers = numbers.f_narrow(0, range.start, range.end - range.start)?;
                no_grad(|| part.shallow_clone().f_copy_(&numbers))?;
            }
            Storage::Dense { master, compute } => {
                let mut view = parts[part].view(&master.as_ref().unwrap_or(compute).detach());
                no_grad(|| view.f_copy_(value))?;
            }
            Storage::FourBit { code, double_quant, transposed, parts } => {
                // On the device, where quantising a large model belongs.
                let value = value.to_device(device);
                let value = if *transposed { value.tr() } else { value };
                parts[part] = Some(FourBit::quantise(&value, *code, *double_quant)?);
            }
        }
        Ok(())
    }

    /// Sets a parameter by name from a tensor of any float kind on any device, shaped as Hugging Face has it. To be followed by
    /// [`refresh_compute`](Self::refresh_compute).
    ///
    /// # Errors
    /// No parameter of this name; libtorch's.
    pub fn put(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let &(block, part) = self
            .index
            .get(name)
            .ok_or_else(|| Error::Input(format!("the model has no parameter {name}")))?;
        self.fill(block, part, value)
    }

    /// Sets a whole dense block.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn set(&mut self, block: BlockId, value: &Tensor) -> Result<()> {
        let mut start = 0;
        for part in 0..self.blocks[block].parts.len() {
            let rows = self.blocks[block].parts[part].shape[0];
            self.fill(block, part, &value.narrow(0, start, rows))?;
            start += rows;
        }
        Ok(())
    }

    /// Whether a block is held in 4 bits.
    pub(crate) fn is_four_bit(&self, block: BlockId) -> bool {
        matches!(self.blocks[block].storage, Storage::FourBit { .. })
    }

    /// Sets one part of a 4-bit block from what files have in 4 bits.
    pub(crate) fn fill_four_bit(&mut self, block: BlockId, part: usize, value: &FourBit) {
        if let Storage::FourBit { parts, .. } = &mut self.blocks[block].storage {
            parts[part] = Some(value.to_device(self.device));
        }
    }

    /// The model's own parameters by name, in order, as they are held.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, Stored<'_>)> {
        self.blocks[..self.own].iter().flat_map(|block| {
            block.parts.iter().enumerate().map(move |(p, part)| {
                let stored = match &block.storage {
                    Storage::FourBit { parts, .. } => parts[p].as_ref().map(Stored::FourBit),
                    Storage::Divided { .. } => Some(Stored::Divided(&part.shape)),
                    Storage::Dense { .. } => None,
                };
                let whole = || Stored::Whole(block.weight(p));
                (part.name.as_str(), stored.unwrap_or_else(whole))
            })
        })
    }

    /// The leaf of a dense block. Shares its storage, so that it follows every later update.
    ///
    /// # Panics
    /// For a block in 4 bits: only weights of linear layers are, which [`Self::weight`] gives.
    pub(crate) fn leaf(&self, block: BlockId) -> Tensor {
        match &self.blocks[block].storage {
            Storage::Dense { compute, .. } | Storage::Divided { compute, .. } => {
                compute.shallow_clone()
            }
            Storage::FourBit { .. } => unreachable!("only linear layers have weights in 4 bits"),
        }
    }

    /// The weight of a block as the forward pass uses it.
    pub(crate) fn weight(&self, block: BlockId) -> Weight {
        match &self.blocks[block].storage {
            Storage::Dense { compute, .. } | Storage::Divided { compute, .. } => {
                Weight::Dense(compute.shallow_clone())
            }
            Storage::FourBit { parts, .. } => {
                Weight::FourBit(parts.iter().flatten().map(FourBit::shallow_clone).collect())
            }
        }
    }

    /// A frozen handle on the model's own parameters: what does not train is shared, what trains is copied as it is now, and so
    /// is the memory that holds a parameter of these names.
    ///
    /// # Errors
    /// The model is divided.
    pub(crate) fn frozen(&self, apart: &BTreeSet<String>) -> Result<Self> {
        if self.division.is_some() {
            let message = "a model that is divided among processes cannot share its weights";
            return Err(Error::Input(message.into()));
        }
        let blocks: Vec<Block> = self.blocks[..self.own]
            .iter()
            .map(|block| {
                let storage = match &block.storage {
                    Storage::Divided { .. } => unreachable!("of a model that is not divided"),
                    Storage::Dense { master, compute } => {
                        let compute = compute.detach();
                        let named = block.parts.iter().any(|part| apart.contains(&part.name));
                        let apart = master.is_some() || named;
                        Storage::Dense {
                            master: None,
                            compute: if apart { compute.copy() } else { compute },
                        }
                    }
                    Storage::FourBit { code, double_quant, transposed, parts } => {
                        Storage::FourBit {
                            code: *code,
                            double_quant: *double_quant,
                            transposed: *transposed,
                            parts: parts
                                .iter()
                                .map(|part| part.as_ref().map(FourBit::shallow_clone))
                                .collect(),
                        }
                    }
                };
                let parts = block.parts.iter().map(|part| Part {
                    name: part.name.clone(),
                    shape: part.shape.clone(),
                    trainable: false,
                    ..*part
                });
                Block { storage, grad: None, parts: parts.collect() }
            })
            .collect();
        let index = self.index.iter().filter(|(_, place)| place.0 < self.own);
        Ok(Self {
            blocks,
            own: self.own,
            index: index.map(|(name, place)| (name.clone(), *place)).collect(),
            division: None,
            ..*self
        })
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
        self.blocks.iter().map(Block::numel).sum()
    }

    /// Number of numbers in the parameters that train.
    pub fn num_trainable(&self) -> usize {
        let parts = self.blocks.iter().flat_map(|block| &block.parts);
        let trained = parts.filter(|part| part.trainable);
        trained.map(|part| part.shape.iter().product::<i64>() as usize).sum()
    }

    /// Bytes of the model's own parameters, and of an adapter's: masters and compute copies.
    pub fn bytes(&self) -> [usize; 2] {
        let (own, adapters) = self.blocks.split_at(self.own);
        [own, adapters].map(|blocks| blocks.iter().map(Block::bytes).sum())
    }

    /// Bytes of the gradients there are.
    pub fn grad_bytes(&self) -> usize {
        let grads = self.blocks.iter().filter_map(|block| block.grad.as_ref());
        grads.map(|grad| grad.numel() * grad.kind().elt_size_in_bytes()).sum()
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
        let versions = self.blocks.iter().filter_map(Block::compute);
        let versions: Result<u64> = versions.map(|t| Ok(autograd::version(t)?)).sum();
        Ok(versions? + self.refreshed)
    }

    /// All names, in the order of the model.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().flat_map(|block| block.parts.iter().map(|part| part.name.as_str()))
    }

    /// Names and weights in the order of the model: fp32 masters, or what a frozen parameter holds (of 4 bits the fp32
    /// numbers they stand for). An adapter's come last.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor)> {
        Self::weights_of(&self.blocks)
    }

    /// [`iter`](Self::iter) over the model's own parameters.
    pub fn own(&self) -> impl Iterator<Item = (&str, Tensor)> {
        Self::weights_of(&self.blocks[..self.own])
    }

    /// [`iter`](Self::iter) over what an adapter has added.
    pub(crate) fn added(&self) -> impl Iterator<Item = (&str, Tensor)> {
        Self::weights_of(&self.blocks[self.own..])
    }

    /// The names of the parameters that train.
    pub fn trained_names(&self) -> impl Iterator<Item = &str> {
        let parts = self.blocks.iter().flat_map(|block| &block.parts);
        parts.filter(|part| part.trainable).map(|part| part.name.as_str())
    }

    /// The shape of the parameter of this name.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        let &(block, part) = self.index.get(name)?;
        Some(&self.blocks[block].parts[part].shape)
    }

    /// [`iter`](Self::iter) over the parameters that train: all that a run changes.
    pub fn trained(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.blocks.iter().flat_map(|block| {
            let parts = block.parts.iter().enumerate().filter(|(_, part)| part.trainable);
            parts.map(move |(p, part)| (part.name.as_str(), block.weight(p)))
        })
    }

    fn weights_of(blocks: &[Block]) -> impl Iterator<Item = (&str, Tensor)> {
        blocks.iter().flat_map(|block| {
            let parts = block.parts.iter().enumerate();
            parts.map(move |(p, part)| (part.name.as_str(), block.weight(p)))
        })
    }

    /// The weight of this name: the fp32 master, or the compute copy of a frozen one. A view: in-place updates count (but
    /// not those of a weight in 4 bits).
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let &(block, part) = self.index.get(name)?;
        Some(self.blocks[block].weight(part))
    }

    /// As [`get`](Self::get), but brought together from the ranks where it is divided. All of them take part, by the same
    /// call or by [`Division::answer`].
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    pub fn whole(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(&(block, part)) = self.index.get(name) else { return Ok(None) };
        let own = &self.blocks[block];
        match (&own.storage, &self.division) {
            (Storage::Divided { .. }, Some(division)) => {
                let numbers = division.whole(block, part)?;
                Ok(Some(numbers.view(own.parts[part].shape.as_slice())))
            }
            _ => Ok(Some(own.weight(part))),
        }
    }

    /// The fp32 gradient of this name as of the last [`gather_grads`](Self::gather_grads), if it has one.
    pub fn grad(&self, name: &str) -> Option<Tensor> {
        let &(block, part) = self.index.get(name)?;
        let block = &self.blocks[block];
        Some(block.parts[part].view(block.grad.as_ref()?))
    }

    /// Chooses which parameters train, by name. Freezes all others. Those without masters stay frozen.
    pub fn set_trainable(&mut self, choose: impl Fn(&str) -> bool) {
        for block in &mut self.blocks {
            let may = block.may_train();
            for part in &mut block.parts {
                part.trainable = may && choose(&part.name);
            }
            let any = block.parts.iter().any(|part| part.trainable);
            if let Storage::Dense { compute, .. } | Storage::Divided { compute, .. } =
                &mut block.storage
            {
                *compute = compute.set_requires_grad(any);
            }
        }
    }

    /// The trainable parameters with their masters and gradients, in the order of the model.
    ///
    /// Call after [`gather_grads`](Self::gather_grads). A parameter that no backward pass has reached has zero gradient.
    pub fn trainable(&mut self) -> Vec<Trainable<'_>> {
        let mut all = Vec::new();
        for block in &mut self.blocks {
            if !block.trains() {
                continue;
            }
            let Storage::Dense { master: Some(master), .. } = &block.storage else { continue };
            let grad = &*block.grad.get_or_insert_with(|| master.zeros_like());
            for part in block.parts.iter().filter(|part| part.trainable) {
                let (master, grad) = (part.view(master), part.view(grad));
                let (name, shape) = (part.name.as_str(), part.shape.as_slice());
                all.push(Trainable { name, shape, master, grad, rate: part.rate });
            }
        }
        all
    }

    /// The masters of the parameters that train, in the order of the model.
    pub fn masters(&self) -> Vec<Master<'_>> {
        let (rank, size) = self.division.as_ref().map_or((0, 1), Division::place);
        let trained = self.blocks.iter().filter(|block| block.trains());
        let parts = trained.flat_map(|block| {
            let parts = block.parts.iter().enumerate().filter(|(_, part)| part.trainable);
            parts.map(move |(p, part)| {
                let (master, divided) = match &block.storage {
                    Storage::Divided { own, slots, .. } => (slots[p].own(own, rank, size), true),
                    _ => (block.weight(p), false),
                };
                Master { name: &part.name, shape: &part.shape, master, divided, rate: part.rate }
            })
        });
        parts.collect()
    }

    /// Copies the masters into the compute copies, casting once; where they are divided, gives those up. Call after every change
    /// of the masters.
    ///
    /// # Errors
    /// libtorch's.
    pub fn refresh_compute(&mut self) -> Result<()> {
        if let Some(division) = &self.division {
            self.refreshed += 1;
            division.release_all()?;
        }
        if self.precision == Precision::Fp32 {
            return Ok(());
        }
        no_grad(|| {
            for block in &mut self.blocks {
                if let Storage::Dense { master: Some(master), compute } = &mut block.storage {
                    compute.copy_(master);
                }
            }
        });
        Ok(())
    }
}
