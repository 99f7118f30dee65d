//! Gradients summed over the ranks, while the backward pass still makes others; and state divided among the ranks.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data::batch::Share;
use model::division::{Slot, slice};
use model::{Leaf, Master, Params, Trainable};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::autograd::{self, GradHook, on_grad, take_grad};

use super::{Pending, World};

/// The most bytes of gradients that so many ranks sum in one go, but for a larger leaf: 4 MiB, and where a sum is many messages,
/// one after another, as much more. Smaller ones begin earlier, larger ones cost fewer messages.
#[must_use]
pub fn bucket_bytes(ranks: usize) -> i64 {
    let most = 256 << 20;
    (ranks as i64).saturating_mul(512 << 10).clamp(4 << 20, most)
}

/// Sums a model's gradients over all ranks of a [`World`], and says which part of the parameters this rank updates.
///
/// Gradients are taken together in buckets, from the model's last parameters to its first: the order in which backward is
/// done with them. A bucket's sum begins when its last gradient is there.
///
/// From stage 1 of `ZeRO` on each rank updates a slice of every parameter, and [`publish`](Self::publish) brings the slices
/// together; at stage 2 it gets only that slice's gradient as well, after every micro-batch. At stage 3 the model itself is
/// divided ([`model::division`]) and nothing is brought together after the step; parameters that are not, such as an
/// adapter's, are treated as at stage 2.
///
/// Papers: Li et al. 2020, "`PyTorch` Distributed", arXiv:2006.15704, sections 3.2.2 and 3.2.3; Rajbhandari et al. 2020, "`ZeRO`",
/// arXiv:1910.02054, section 5.
///
/// # Deviations
/// 1. fp32 masters stay whole in every rank at stages 1 and 2: in fp32 they are what the model computes with.
/// 2. Slices are of each parameter and whole blocks of 256, not of one long row of all.
pub struct Reducer {
    state: Arc<Mutex<State>>,
    _hooks: Vec<GradHook>,
}

struct State {
    world: World,
    zero_stage: u8,
    device: Device,
    leaves: Vec<Leaf>,
    buckets: Vec<Bucket>,
    /// The bucket of each leaf.
    bucket_of: Vec<usize>,
    armed: bool,
    /// The bucket whose sum begins next. They begin in one order in every rank, whatever order gradients come in.
    next: usize,
}

/// Leaves whose gradients are summed in one go.
struct Bucket {
    leaves: Range<usize>,
    /// The parameters of each leaf: which each is, and where its slices lie in the bucket's table.
    slots: Vec<Vec<(usize, Slot)>>,
    /// Of the table.
    columns: i64,
    missing: usize,
    /// fp32 sums and the operation that makes them: of all leaves one after another, or from stage 2 on of this rank's slices.
    under_way: Option<(Tensor, Pending)>,
    /// From stage 2 on: this rank's slices, `[columns]`, summed over micro-batches.
    own: Option<Tensor>,
}

impl Reducer {
    /// For the parameters of `params` that train.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(world: &World, params: &Params, zero_stage: u8) -> anyhow::Result<Self> {
        let leaves = params.leaves();
        let bytes: Vec<i64> = leaves.iter().map(|leaf| leaf.compute.numel() as i64 * 4).collect();
        let ranges = ranges(&bytes, bucket_bytes(world.share().size));
        let mut bucket_of = vec![0; leaves.len()];
        for (bucket, range) in ranges.iter().enumerate() {
            bucket_of[range.clone()].fill(bucket);
        }
        let handles: Vec<Tensor> = leaves.iter().map(|leaf| leaf.compute.shallow_clone()).collect();
        let mut state = State {
            world: world.clone(),
            zero_stage: if world.is_shared() { zero_stage } else { 0 },
            device: params.device(),
            leaves,
            buckets: Vec::new(),
            bucket_of,
            armed: false,
            next: 0,
        };
        state.buckets = ranges.into_iter().map(|range| state.bucket(range)).collect();
        state.leaves.clear();
        let state = Arc::new(Mutex::new(state));
        let mut hooks = Vec::new();
        for (index, leaf) in handles.iter().enumerate().filter(|_| world.is_shared()) {
            let state = Arc::clone(&state);
            hooks.push(on_grad(leaf, move || lock(&state).ready(index))?);
        }
        Ok(Self { state, _hooks: hooks })
    }

    /// Back-propagates from a micro-batch's loss; after the `last` of a step every rank has the sum of all gradients.
    ///
    /// # Errors
    /// A closure's or libtorch's; a rank is gone, or does not take part in time.
    pub fn backward(&self, params: &mut Params, loss: &Tensor, last: bool) -> anyhow::Result<()> {
        let sums = {
            let mut state = lock(&self.state);
            let sums = state.world.is_shared() && (last || state.zero_stage > 1);
            if sums {
                state.prepare(params);
                state.armed = true;
            }
            sums
        };
        autograd::backward(loss)?;
        if sums { self.finish(params) } else { Ok(params.gather_grads()?) }
    }

    /// Sums gradients that have been gathered.
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    pub fn sum_gathered(&self, params: &mut Params) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        if !state.world.is_shared() {
            return Ok(());
        }
        state.prepare(params);
        drop(state);
        self.finish(params)
    }

    /// Waits for the sums, beginning those that have not begun.
    fn finish(&self, params: &mut Params) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        state.armed = false;
        while state.next < state.buckets.len() {
            state.begin_next()?;
        }
        let grads = state.take()?;
        drop(state);
        if let Some(division) = params.division() {
            division.release_all()?;
        }
        grads.map_or(Ok(()), |grads| Ok(params.put_grads(grads)?))
    }

    /// What this rank updates: all that trains, or its slices.
    pub fn trainable<'a>(&self, params: &'a mut Params) -> Vec<Trainable<'a>> {
        let state = lock(&self.state);
        match state.zero_stage {
            0 => params.trainable(),
            1 => {
                let share = state.world.share();
                let sliced = |weight: Trainable<'a>| {
                    let range = slice(weight.numel(), share.rank, share.size);
                    let of =
                        |t: &Tensor| t.view(-1).narrow(0, range.start, range.end - range.start);
                    let (master, grad) = (of(&weight.master), of(&weight.grad));
                    Trainable { master, grad, ..weight }
                };
                let all = params.trainable().into_iter().map(sliced);
                all.filter(|weight| weight.master.numel() > 0).collect()
            }
            _ => state.own_slices(params),
        }
    }

    /// The part of each parameter that this rank updates.
    pub fn share(&self) -> Share {
        let state = lock(&self.state);
        if state.zero_stage > 0 { state.world.share() } else { Share::default() }
    }

    /// Whether each rank updates a part only.
    pub fn divides(&self) -> bool {
        lock(&self.state).zero_stage > 0
    }

    /// After the update: brings the ranks' slices of the masters together, but for those of a divided model.
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    pub fn publish(&self, params: &Params) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        if state.zero_stage == 0 {
            return Ok(());
        }
        let masters = params.masters();
        let share = state.world.share();
        for bucket in &state.buckets {
            let whole = bucket.slots.iter().flatten();
            let whole: Vec<(&Master<'_>, &Slot)> = whole
                .map(|(param, slot)| (&masters[*param], slot))
                .filter(|(master, _)| !master.divided)
                .collect();
            if whole.is_empty() {
                continue;
            }
            let all = table(share.size, bucket.columns, state.device);
            let own = all.get(share.rank as i64).copy();
            for (master, slot) in &whole {
                let part = own_part(master, share);
                no_grad(|| slot.own(&own, share.rank, share.size).copy_(&part));
            }
            state.world.all_gather(&all, &own)?;
            for (master, slot) in whole {
                no_grad(|| slot.read(&all, &master.master.view(-1)));
            }
        }
        for bucket in &mut state.buckets {
            bucket.own = None;
        }
        Ok(())
    }

    /// Bytes of this rank's slices of the gradients.
    pub fn bytes(&self) -> usize {
        let state = lock(&self.state);
        state
            .buckets
            .iter()
            .filter_map(|bucket| bucket.own.as_ref())
            .map(|own| own.numel() * 4)
            .sum()
    }

    /// Forgets the gradients there are.
    pub fn clear(&self) {
        for bucket in &mut lock(&self.state).buckets {
            bucket.own = None;
        }
    }
}

/// Cuts leaves of so many bytes into ranges of at most `most`, but at least one leaf, from the last to the first.
fn ranges(bytes: &[i64], most: i64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut end, mut sum) = (bytes.len(), 0);
    for (index, own) in bytes.iter().enumerate().rev() {
        if sum > 0 && sum + own > most {
            ranges.push(index + 1..end);
            (end, sum) = (index + 1, 0);
        }
        sum += own;
    }
    ranges.extend((end > 0).then_some(0..end));
    ranges
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn bucket(&self, leaves: Range<usize>) -> Bucket {
        let mut param = self.leaves[..leaves.start].iter().map(|leaf| leaf.parts.len()).sum();
        let (mut slots, mut columns) = (Vec::new(), 0);
        for leaf in &self.leaves[leaves.clone()] {
            let mut of_leaf = Vec::new();
            for part in &leaf.parts {
                let slot = Slot::new(part.end - part.start, columns, self.world.share().size);
                columns += slot.width;
                of_leaf.push((param, slot));
                param += 1;
            }
            slots.push(of_leaf);
        }
        Bucket { leaves, slots, columns, missing: 0, under_way: None, own: None }
    }

    fn prepare(&mut self, params: &Params) {
        self.leaves = params.leaves();
        self.next = 0;
        for bucket in &mut self.buckets {
            bucket.missing = bucket.leaves.len();
            bucket.under_way = None;
        }
    }

    /// Takes note that backward is done with a leaf.
    fn ready(&mut self, leaf: usize) -> anyhow::Result<()> {
        if !self.armed {
            return Ok(());
        }
        let bucket = &mut self.buckets[self.bucket_of[leaf]];
        bucket.missing = bucket.missing.saturating_sub(1);
        while self.buckets.get(self.next).is_some_and(|bucket| bucket.missing == 0) {
            self.begin_next()?;
        }
        Ok(())
    }

    /// Begins the next bucket's sum with the gradients there are.
    fn begin_next(&mut self) -> anyhow::Result<()> {
        let _guard = autograd::GradMode::set(false);
        let index = self.next;
        self.next += 1;
        if self.zero_stage > 1 {
            // At most two buckets are whole at a time.
            if let Some(before) = index.checked_sub(2) {
                self.settle(before)?;
            }
            return self.begin_slices(index);
        }
        let bucket = &mut self.buckets[index];
        let leaves = &self.leaves[bucket.leaves.clone()];
        let count: i64 = leaves.iter().map(|leaf| leaf.compute.numel() as i64).sum();
        let sums = Tensor::zeros([count], (Kind::Float, self.device));
        let mut start = 0;
        for Leaf { compute, gathered, .. } in leaves {
            let numel = compute.numel() as i64;
            let mut own = sums.narrow(0, start, numel).view(compute.size().as_slice());
            start += numel;
            if let Some(grad) = take_grad(compute)? {
                own.copy_(&grad);
            }
            if let Some(gathered) = gathered {
                let _ = own.g_add_(gathered);
            }
        }
        let pending = self.world.begin_sum(&sums)?;
        bucket.under_way = Some((sums, pending));
        Ok(())
    }

    /// Begins the sum of every rank's slices of a bucket.
    fn begin_slices(&mut self, index: usize) -> anyhow::Result<()> {
        let bucket = &mut self.buckets[index];
        let all = table(self.world.share().size, bucket.columns, self.device);
        for (leaf, slots) in self.leaves[bucket.leaves.clone()].iter().zip(&bucket.slots) {
            let Some(grad) = take_grad(&leaf.compute)? else { continue };
            let grad = grad.to_kind(Kind::Float).view(-1);
            for ((_, slot), part) in slots.iter().zip(&leaf.parts) {
                slot.write(&all, &grad.narrow(0, part.start, slot.numel));
            }
        }
        let own = Tensor::zeros([bucket.columns], (Kind::Float, self.device));
        let pending = self.world.begin_sum_of_own(&own, &all)?;
        bucket.under_way = Some((own, pending));
        Ok(())
    }

    /// Waits for a bucket's slices and adds them to those of earlier micro-batches.
    fn settle(&mut self, index: usize) -> anyhow::Result<()> {
        let bucket = &mut self.buckets[index];
        let Some((mut sums, pending)) = bucket.under_way.take() else { return Ok(()) };
        self.world.finish(pending)?;
        if let Some(before) = &bucket.own {
            let _ = sums.g_add_(before);
        }
        bucket.own = Some(sums);
        Ok(())
    }

    /// Waits for all sums; those of whole leaves come back, one for each.
    fn take(&mut self) -> anyhow::Result<Option<Vec<Tensor>>> {
        let _guard = autograd::GradMode::set(false);
        if self.zero_stage > 1 {
            (0..self.buckets.len()).try_for_each(|index| self.settle(index))?;
            self.leaves.clear();
            return Ok(None);
        }
        let mut grads = Vec::with_capacity(self.leaves.len());
        // Buckets go from the last leaves to the first.
        for bucket in &mut self.buckets {
            let Some((sums, pending)) = bucket.under_way.take() else { continue };
            self.world.finish(pending)?;
            let mut end = sums.numel() as i64;
            for leaf in self.leaves[bucket.leaves.clone()].iter().rev() {
                let numel = leaf.compute.numel() as i64;
                end -= numel;
                grads.push(sums.narrow(0, end, numel).view(leaf.compute.size().as_slice()));
            }
        }
        grads.reverse();
        self.leaves.clear();
        Ok(Some(grads))
    }

    /// This rank's slices of the masters with their gradients; zeros before the first sum.
    fn own_slices<'a>(&self, params: &'a Params) -> Vec<Trainable<'a>> {
        let share = self.world.share();
        let mut grads: Vec<(usize, Tensor)> = Vec::new();
        for bucket in &self.buckets {
            let zeros = || Tensor::zeros([bucket.columns], (Kind::Float, self.device));
            let own = bucket.own.as_ref().map_or_else(zeros, Tensor::shallow_clone);
            grads.extend(
                bucket
                    .slots
                    .iter()
                    .flatten()
                    .map(|(param, slot)| (*param, slot.own(&own, share.rank, share.size))),
            );
        }
        grads.sort_by_key(|(param, _)| *param);
        let weight = |(master, (_, grad)): (Master<'a>, (usize, Tensor))| Trainable {
            name: master.name,
            shape: master.shape,
            master: own_part(&master, share),
            grad,
            rate: master.rate,
        };
        let all = params.masters().into_iter().zip(grads).map(weight);
        all.filter(|weight| weight.master.numel() > 0).collect()
    }
}

/// This rank's slice of a master: a view.
fn own_part(master: &Master<'_>, share: Share) -> Tensor {
    if master.divided {
        return master.master.shallow_clone();
    }
    let range = slice(master.shape.iter().product(), share.rank, share.size);
    master.master.view(-1).narrow(0, range.start, range.end - range.start)
}

/// A table of so many ranks and columns, fp32 zeros.
fn table(size: usize, columns: i64, device: Device) -> Tensor {
    Tensor::zeros([size as i64, columns], (Kind::Float, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_go_from_the_last_leaf_to_the_first_and_are_not_too_large() {
        let cut = |bytes: &[i64]| ranges(bytes, 400);
        assert!(cut(&[]).is_empty());
        assert_eq!(cut(&[4]), std::slice::from_ref(&(0..1)));
        assert_eq!(cut(&[100; 9]), [5..9, 1..5, 0..1]);
        // A leaf larger than a bucket is alone.
        assert_eq!(cut(&[100, 3600, 100, 100]), [2..4, 1..2, 0..1]);
    }

    #[test]
    fn buckets_grow_with_the_number_of_ranks() {
        let mebibytes = |ranks| bucket_bytes(ranks) >> 20;
        assert_eq!([1, 2, 8, 64, 1024, 9999].map(mebibytes), [4, 4, 4, 32, 256, 256]);
    }
}
