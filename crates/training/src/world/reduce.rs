//! Gradients summed over the ranks, while the backward pass still makes others.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Leaf, Params};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::autograd::{GradHook, on_grad, take_grad};

use super::{Pending, World};

/// The most bytes of gradients that are summed in one go, but for a larger leaf. Smaller ones begin earlier, larger ones cost less.
const BUCKET_BYTES: usize = 4 << 20;

/// Sums a model's gradients over all ranks of a [`World`].
///
/// Gradients are taken together in buckets, from the model's last parameters to its first: the order in which backward is
/// done with them. In a backward pass for which this is [armed](Self::arm), a bucket's sum begins when its last gradient is
/// there.
///
/// Paper: Li et al. 2020, "`PyTorch` Distributed", arXiv:2006.15704, sections 3.2.2 and 3.2.3.
pub struct Reducer {
    state: Arc<Mutex<State>>,
    _hooks: Vec<GradHook>,
}

struct State {
    world: World,
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
    missing: usize,
    /// fp32 sums, one leaf after another, and the operation.
    under_way: Option<(Tensor, Pending)>,
}

impl Reducer {
    /// For the parameters of `params` that train.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(world: &World, params: &Params) -> anyhow::Result<Self> {
        let leaves = params.leaves();
        let bytes: Vec<usize> = leaves.iter().map(|leaf| leaf.compute.numel() * 4).collect();
        let ranges = buckets(&bytes);
        let mut bucket_of = vec![0; leaves.len()];
        for (bucket, range) in ranges.iter().enumerate() {
            bucket_of[range.clone()].fill(bucket);
        }
        let bucket = |leaves| Bucket { leaves, missing: 0, under_way: None };
        let handles: Vec<Tensor> = leaves.iter().map(|leaf| leaf.compute.shallow_clone()).collect();
        let state = Arc::new(Mutex::new(State {
            world: world.clone(),
            device: params.device(),
            leaves: Vec::new(),
            buckets: ranges.into_iter().map(bucket).collect(),
            bucket_of,
            armed: false,
            next: 0,
        }));
        let mut hooks = Vec::new();
        for (index, leaf) in handles.iter().enumerate().filter(|_| world.is_shared()) {
            let state = Arc::clone(&state);
            hooks.push(on_grad(leaf, move || lock(&state).ready(index))?);
        }
        Ok(Self { state, _hooks: hooks })
    }

    /// Before the backward pass of a step's last micro-batch: its gradients, and those gathered before, are summed as they come.
    pub fn arm(&self, params: &Params) {
        let mut state = lock(&self.state);
        if state.world.is_shared() {
            state.prepare(params);
            state.armed = true;
        }
    }

    /// Waits for the sums, beginning those that have not begun, and puts them into `params` as their gradients. A process on
    /// its own gathers its gradients.
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    pub fn finish(&self, params: &mut Params) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        if !state.world.is_shared() {
            return Ok(params.gather_grads()?);
        }
        if !state.armed {
            state.prepare(params);
        }
        state.armed = false;
        while state.next < state.buckets.len() {
            state.begin_next()?;
        }
        let grads = state.take()?;
        drop(state);
        Ok(params.put_grads(grads)?)
    }
}

/// Cuts leaves of so many bytes into ranges of at most [`BUCKET_BYTES`], but at least one leaf, from the last to the first.
fn buckets(bytes: &[usize]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut end, mut sum) = (bytes.len(), 0);
    for (index, own) in bytes.iter().enumerate().rev() {
        if sum > 0 && sum + own > BUCKET_BYTES {
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
        let bucket = &mut self.buckets[self.next];
        let leaves = &self.leaves[bucket.leaves.clone()];
        let count: usize = leaves.iter().map(|leaf| leaf.compute.numel()).sum();
        let sums = Tensor::zeros([count as i64], (Kind::Float, self.device));
        let mut start = 0;
        for Leaf { compute, gathered } in leaves {
            let numel = compute.numel() as i64;
            let mut own = sums.narrow(0, start, numel).view(compute.size().as_slice());
            start += numel;
            no_grad(|| -> anyhow::Result<()> {
                if let Some(grad) = take_grad(compute)? {
                    own.copy_(&grad);
                }
                if let Some(gathered) = gathered {
                    let _ = own.g_add_(gathered);
                }
                Ok(())
            })?;
        }
        let pending = self.world.begin_sum(&sums)?;
        bucket.under_way = Some((sums, pending));
        self.next += 1;
        Ok(())
    }

    /// The sums, one for each leaf.
    fn take(&mut self) -> anyhow::Result<Vec<Tensor>> {
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
        Ok(grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_go_from_the_last_leaf_to_the_first_and_are_not_too_large() {
        let quarter = BUCKET_BYTES / 4;
        assert!(buckets(&[]).is_empty());
        assert_eq!(buckets(&[4]), [0..1]);
        assert_eq!(buckets(&[quarter; 9]), [5..9, 1..5, 0..1]);
        // A leaf larger than a bucket is alone.
        assert_eq!(buckets(&[quarter, 9 * BUCKET_BYTES, quarter, quarter]), [2..4, 1..2, 0..1]);
    }
}
