//! A model that several processes hold together: each has a slice of every parameter, and the whole of one only while a pass
//! needs it.
//!
//! Parameters are brought together unit by unit: a layer's for its part of the forward pass and again for its part of the
//! backward pass, those outside of the layers for as long as the pass goes on. In between their memory is given up.
//!
//! Papers: Rajbhandari et al. 2020, "`ZeRO`", arXiv:1910.02054, section 5.3; Zhao et al. 2023, "`PyTorch` FSDP", arXiv:2304.11277,
//! sections 3.2 and 4.
//!
//! # Deviations
//! 1. Slices are of each parameter and whole blocks of 256, not of one long row of a unit, so that state in 8 bits is cut between
//!    its scales.
//! 2. The next unit alone is fetched ahead, while a pass computes with one.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::blockwise::BLOCK;
use torch_ext::{autograd, memory};

use crate::error::{Error, Result};

/// The processes (ranks) that hold a model together.
pub trait Ranks: Debug + Send + Sync {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Begins to put every rank's `own`, `[n]`, into its row of `all`, `[ranks, n]`, in every rank. All of them call it with the
    /// same `request` in the same order.
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    fn all_gather(
        &self,
        request: Request,
        all: &Tensor,
        own: &Tensor,
    ) -> anyhow::Result<Box<dyn Gathering>>;
}

/// Numbers on their way to all ranks.
pub trait Gathering: Debug + Send {
    /// Waits until they are there.
    ///
    /// # Errors
    /// As [`Ranks::all_gather`].
    fn wait(self: Box<Self>) -> anyhow::Result<()>;
}

/// Which numbers the ranks bring together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The parameters that are used together, by the index of the unit.
    Unit(usize),
    /// One parameter as it is held: which of the `block`'s parameters.
    Part {
        /// Index of the block.
        block: usize,
        /// Index of the parameter in it.
        part: usize,
    },
}

/// Numbers in a slice of a parameter of `numel`: whole blocks of 256. The last ranks' slices may be shorter or empty.
pub fn slice_len(numel: i64, size: usize) -> i64 {
    let blocks = (numel + BLOCK - 1) / BLOCK;
    let size = size as i64;
    (blocks + size - 1) / size * BLOCK
}

/// The slice that the rank `rank` of `size` has of a parameter of `numel` numbers.
pub fn slice(numel: i64, rank: usize, size: usize) -> Range<i64> {
    let length = slice_len(numel, size);
    let start = (rank as i64 * length).min(numel);
    start..(start + length).min(numel)
}

/// Where a parameter's slices lie in a table with a row for each rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The parameter's numbers in all.
    pub numel: i64,
    /// The first column.
    pub column: i64,
    /// Columns.
    pub width: i64,
}

impl Slot {
    /// For a parameter of `numel` numbers, from this column on.
    pub fn new(numel: i64, column: i64, size: usize) -> Self {
        Self { numel, column, width: slice_len(numel, size) }
    }

    /// Puts all numbers of the parameter, `[numel]`, into `table`, `[ranks, columns]`.
    pub fn write(&self, table: &Tensor, numbers: &Tensor) {
        let own = table.narrow(1, self.column, self.width);
        self.rows(numbers, &mut |row, count, part| {
            own.narrow(0, row, count).narrow(1, 0, part.size()[1]).copy_(part);
        });
    }

    /// The reverse of [`write`](Self::write).
    pub fn read(&self, table: &Tensor, numbers: &Tensor) {
        let own = table.narrow(1, self.column, self.width);
        self.rows(numbers, &mut |row, count, part| {
            part.shallow_clone().copy_(&own.narrow(0, row, count).narrow(1, 0, part.size()[1]));
        });
    }

    /// Calls `f` with views of `numbers` that fill rows of the table: from this row on, so many, `[rows, numbers of a row]`.
    fn rows(&self, numbers: &Tensor, f: &mut dyn FnMut(i64, i64, &Tensor)) {
        let (full, rest) = (self.numel / self.width, self.numel % self.width);
        if full > 0 {
            f(0, full, &numbers.narrow(0, 0, full * self.width).view([full, self.width]));
        }
        if rest > 0 {
            f(full, 1, &numbers.narrow(0, full * self.width, rest).view([1, rest]));
        }
    }

    /// A rank's numbers in its row, `[columns]`, of the table: a view. Empty where the slice is.
    pub fn own(&self, row: &Tensor, rank: usize, size: usize) -> Tensor {
        let slice = slice(self.numel, rank, size);
        row.narrow(0, self.column, slice.end - slice.start)
    }
}

/// The unit of what is outside of the layers; that of layer `i` is `1 + i`.
pub(crate) const ROOT: usize = 0;

/// What the ranks hold of a model. Clones are the same.
#[derive(Debug, Clone)]
pub struct Division(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ranks: Arc<dyn Ranks>,
    /// What passes compute with, and where.
    like: (Kind, Device),
    units: Mutex<Vec<Unit>>,
    /// Unit and place in it of a block.
    places: HashMap<usize, (usize, usize)>,
}

#[derive(Debug, Default)]
struct Unit {
    blocks: Vec<Held>,
    /// Whether the whole of it is there.
    there: bool,
    /// Its numbers in all ranks, `[ranks, columns]`, on their way.
    coming: Option<(Tensor, Box<dyn Gathering>)>,
}

impl Unit {
    fn needs_gathering(&self) -> bool {
        !self.there && !self.blocks.is_empty()
    }
}

/// What a rank holds of a block; shares its tensors.
#[derive(Debug)]
pub(crate) struct Held {
    /// Index of the block.
    pub(crate) id: usize,
    /// The slices of its parameters one after another, each in the columns of its slot: `[columns]`.
    pub(crate) own: Tensor,
    /// The leaf of the whole block, without memory unless the unit is there.
    pub(crate) compute: Tensor,
    /// Of each parameter.
    pub(crate) slots: Vec<Slot>,
}

impl Held {
    fn columns(&self) -> i64 {
        self.own.size()[0]
    }

    /// Takes all parameters from a table of which the block's columns begin at `column`.
    fn take(&self, table: &Tensor, column: i64) -> Result<()> {
        memory::restore(&self.compute)?;
        // A graph that has seen the leaf is to see no change.
        let whole = self.compute.data().view(-1);
        let table = table.narrow(1, column, self.columns());
        let mut start = 0;
        for slot in &self.slots {
            slot.read(&table, &whole.narrow(0, start, slot.numel));
            start += slot.numel;
        }
        Ok(())
    }
}

impl Division {
    /// Of `units`, each a list of blocks.
    pub(crate) fn new(ranks: Arc<dyn Ranks>, like: (Kind, Device), units: Vec<Vec<Held>>) -> Self {
        let mut places = HashMap::new();
        for (unit, blocks) in units.iter().enumerate() {
            places.extend(blocks.iter().enumerate().map(|(index, held)| (held.id, (unit, index))));
        }
        let units = units.into_iter().map(|blocks| Unit { blocks, ..Unit::default() }).collect();
        Self(Arc::new(Shared { ranks, like, units: Mutex::new(units), places }))
    }

    /// Which rank this is, of how many.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.0.ranks.rank(), self.0.ranks.size())
    }

    fn units(&self) -> MutexGuard<'_, Vec<Unit>> {
        self.0.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a unit's parameters together, if they are not, and begins to fetch those of the `next`.
    ///
    /// # Errors
    /// A rank is gone; no memory.
    pub(crate) fn acquire(&self, unit: usize, next: Option<usize>) -> Result<()> {
        let mut units = self.units();
        if units[unit].needs_gathering() {
            let coming = units[unit].coming.take();
            let begin = || self.begin(unit, &units[unit].blocks);
            let (table, gathering) = coming.map_or_else(begin, Ok)?;
            gathering.wait().map_err(Error::Ranks)?;
            let mut column = 0;
            for held in &units[unit].blocks {
                no_grad(|| held.take(&table, column))?;
                column += held.columns();
            }
            units[unit].there = true;
        }
        if let Some(next) = next.and_then(|next| units.get_mut(next).map(|unit| (next, unit)))
            && next.1.needs_gathering()
            && next.1.coming.is_none()
        {
            next.1.coming = Some(self.begin(next.0, &next.1.blocks)?);
        }
        Ok(())
    }

    /// Gives up the memory of a unit's parameters.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn release(&self, unit: usize) -> Result<()> {
        let mut units = self.units();
        units[unit].there = false;
        units[unit].blocks.iter().try_for_each(|held| Ok(memory::release(&held.compute)?))
    }

    /// Gives up the memory of all whole parameters, and what is on its way.
    ///
    /// # Errors
    /// A rank is gone; libtorch's.
    pub fn release_all(&self) -> Result<()> {
        let count = self.units().len();
        for unit in 0..count {
            let coming = self.units()[unit].coming.take();
            if let Some((_, gathering)) = coming {
                gathering.wait().map_err(Error::Ranks)?;
            }
            self.release(unit)?;
        }
        Ok(())
    }

    /// Begins to bring a unit's numbers in all ranks together, `[ranks, columns]`, in the compute type.
    fn begin(&self, unit: usize, blocks: &[Held]) -> Result<(Tensor, Box<dyn Gathering>)> {
        let Shared { ranks, like: (kind, device), .. } = &*self.0;
        let rows: Vec<Tensor> = blocks.iter().map(|held| held.own.to_kind(*kind)).collect();
        let own = no_grad(|| Tensor::cat(&rows, 0));
        let all = Tensor::empty([ranks.size() as i64, own.size()[0]], (*kind, *device));
        let gathering = ranks.all_gather(Request::Unit(unit), &all, &own).map_err(Error::Ranks)?;
        Ok((all, gathering))
    }

    /// All numbers of one parameter, `[numel]`, in the type in which they are held.
    pub(crate) fn whole(&self, block: usize, part: usize) -> Result<Tensor> {
        let Shared { ranks, places, .. } = &*self.0;
        let Some((unit, index)) = places.get(&block) else {
            return Err(Error::Input(format!("block {block} is not divided")));
        };
        let units = self.units();
        let Held { own, slots, .. } = &units[*unit].blocks[*index];
        let slot = Slot { column: 0, ..slots[part].clone() };
        let own = own.narrow(0, slots[part].column, slot.width);
        let like = (own.kind(), own.device());
        let all = Tensor::empty([ranks.size() as i64, slot.width], like);
        let gathering = ranks.all_gather(Request::Part { block, part }, &all, &own);
        gathering.and_then(Gathering::wait).map_err(Error::Ranks)?;
        let numbers = Tensor::empty([slot.numel], like);
        no_grad(|| slot.read(&all, &numbers));
        Ok(numbers)
    }

    /// Gives what this rank holds to another that has made this request, and keeps nothing of what comes.
    ///
    /// # Errors
    /// A rank is gone; another model's request.
    pub fn answer(&self, request: Request) -> Result<()> {
        match request {
            Request::Part { block, part } => self.whole(block, part).map(drop),
            Request::Unit(unit) => {
                let units = self.units();
                let unknown = || Error::Input(format!("there is no unit {unit}"));
                let (_, gathering) =
                    self.begin(unit, &units.get(unit).ok_or_else(unknown)?.blocks)?;
                gathering.wait().map_err(Error::Ranks)
            }
        }
    }

    /// Runs a unit's part of the forward pass with its parameters there, and sees to it that they are there again for its part
    /// of the backward pass.
    ///
    /// # Errors
    /// Those of `run`; a rank is gone.
    pub(crate) fn through(
        &self,
        unit: usize,
        input: &Tensor,
        run: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let leaving = self.clone();
        let input = at_gradient(input, move || leaving.release(unit))?;
        self.acquire(unit, Some(unit + 1))?;
        let output = run(&input);
        self.release(unit)?;
        let entering = self.clone();
        // The units of a backward pass come in the reverse order; what is outside of the layers is there.
        let before = unit.checked_sub(1).filter(|before| *before > ROOT);
        at_gradient(&output?, move || entering.acquire(unit, before))
    }
}

/// The same numbers; in a backward pass `f` runs when their gradient is known and before it is used.
fn at_gradient(tensor: &Tensor, f: impl Fn() -> Result<()> + Send + 'static) -> Result<Tensor> {
    let backward = move |grads: &[Option<Tensor>]| {
        f()?;
        Ok(grads.iter().map(|grad| grad.as_ref().map(Tensor::shallow_clone)).collect())
    };
    Ok(autograd::custom("divided", &[tensor], &[tensor.detach()], backward)?.remove(0))
}

#[cfg(test)]
mod tests;
