//! The processes that train together: where this one computes, and what it tells the others and hears from them.
//!
//! Each process (rank) has the whole model and a share of every step's rows. What a step needs of all rows (gradients, sums,
//! samples) goes through collectives, which every rank calls in the same order. A process on its own has a world of one, in
//! which all of this does nothing. A model may be divided among the ranks ([`model::division`]).
//!
//! Each rank tells the store once a second that it is alive and how many collectives it has begun. When one fails, that is how
//! the others know whose fault it is.

mod collectives;
mod divided;
mod pulse;
mod reduce;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use data::batch::Share;
use model::Params;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stage::{Backend, Context, ErrorExt as _, Hint, Layout};
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::collective::{Group, Nccl, Reduction, Store, StoreAddress, Work};

use self::collectives::{Collectives, Moving};
use self::pulse::Pulse;
pub use self::reduce::{Reducer, bucket_bytes};
use crate::stage_run::find_device;

/// See the module's text. Clones are the same world.
#[derive(Debug, Clone)]
pub struct World {
    device: Device,
    share: Share,
    together: Option<Arc<Together>>,
}

#[derive(Debug)]
struct Together {
    share: Share,
    collectives: Collectives,
    store: Store,
    pulse: Pulse,
    layout: Layout,
    /// Collectives begun.
    begun: Arc<AtomicU64>,
    /// Times that [`World::meet`] was called.
    meetings: AtomicU64,
    failed: AtomicBool,
    /// Whether the first rank works alone and tells the others what it needs of them.
    leads: AtomicBool,
}

/// A sum over all ranks under way; there is none in a world of one.
#[derive(Debug)]
#[must_use = "the sum is there after `World::finish`"]
pub struct Pending(Option<Moving>);

impl World {
    /// Finds this process's device and connects to the others of the job, if it has any.
    ///
    /// # Errors
    /// The device is not there: wrong usage. A rank does not come in time.
    pub fn join(ctx: &mut Context) -> anyhow::Result<Self> {
        let device = find_device(ctx)?;
        let layout = ctx.layout.clone();
        if !layout.is_shared() {
            return Ok(Self::alone(device));
        }
        tracing::info!("{} processes train together", layout.size);
        Self::connect(device, layout)
    }

    /// A process on its own.
    #[must_use]
    pub fn alone(device: Device) -> Self {
        Self { device, share: Share::default(), together: None }
    }

    fn connect(device: Device, layout: Layout) -> anyhow::Result<Self> {
        if layout.backend == Some(Backend::Nccl) && !device.is_cuda() {
            let what = "--ddp-backend nccl is for GPUs, and this process computes on the CPU";
            let hint = "leave it out: Gloo serves the CPU";
            return Err(Hint::new(anyhow::anyhow!(what), hint)).usage();
        }
        let (rank, size, patience) = (layout.rank, layout.size, layout.patience);
        let (host, port) = &layout.master;
        let prefix = format!("temper/{}/", layout.attempt);
        let serve = rank == 0 && !layout.served;
        let address = StoreAddress { host, port: *port, serve, prefix: &prefix };
        let store = Store::connect(&address, patience).with_context(|| {
            let what = if serve { "cannot listen at" } else { "rank 0 is not to be found at" };
            format!("{what} {host}:{port} (MASTER_ADDR, MASTER_PORT)")
        })?;
        let begun = Arc::new(AtomicU64::new(0));
        let share = Share { rank, size };
        let most = patience.min(LONGEST_SILENCE);
        let pulse = Pulse::start(store.reconnect()?, share, Arc::clone(&begun), most)?;
        let group = Group::gloo(&store, rank, size, patience);
        let host = group.with_context(|| absent(&store, size)).hint(START_AGAIN)?;
        let gpus = connect_gpus(&store, &host, device, &layout)?;
        if let Some(group) = &gpus {
            pulse.look_after(group.clone());
        }
        let gpus = gpus.map(|group| (device, group));
        let together = Together {
            share,
            collectives: Collectives { host, gpus },
            store,
            pulse,
            layout,
            begun,
            meetings: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            leads: AtomicBool::new(false),
        };
        Ok(Self { device, share, together: Some(Arc::new(together)) })
    }

    /// Where this process computes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Its part of every step.
    #[must_use]
    pub fn share(&self) -> Share {
        self.share
    }

    /// Whether this process writes the files.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.share.rank == 0
    }

    /// Whether there are other processes.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.together.is_some()
    }

    /// Begins what all ranks do in step: waits for them here, however long they take, as long as they are alive. From here to
    /// [`part`](Self::part) a signal stops all of them at the same step.
    ///
    /// # Errors
    /// A rank is gone; a signal.
    pub fn begin(&self, ctx: &mut Context) -> anyhow::Result<()> {
        self.meet(ctx)?;
        if self.is_shared() {
            ctx.interrupt.stop_together();
        }
        Ok(())
    }

    /// Ends it. The first rank goes on by itself, with no more collectives.
    pub fn part(&self, ctx: &mut Context) {
        ctx.interrupt.stop_alone();
    }

    /// Waits for all ranks to come here, as [`begin`](Self::begin) does.
    ///
    /// # Errors
    /// A rank is gone; a signal.
    pub fn meet(&self, ctx: &Context) -> anyhow::Result<()> {
        let Some(together) = &self.together else { return Ok(()) };
        let meeting = together.meetings.fetch_add(1, Ordering::Relaxed);
        let key = |rank: usize| format!("met/{meeting}/{rank}");
        let watch = |error| together.failed(error);
        together.store.set(&key(self.share.rank), "").map_err(watch)?;
        let mut signs = pulse::Signs::default();
        for rank in 0..self.share.size {
            while together.store.get(&key(rank)).map_err(watch)?.is_none() {
                ctx.check_interrupt()?;
                together.check_alive(&mut signs, rank)?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// Puts the sum of all ranks' `tensor` in its place.
    ///
    /// # Errors
    /// A rank is gone, or does not take part in time.
    pub fn sum(&self, tensor: &Tensor) -> anyhow::Result<()> {
        let pending = self.begin_sum(tensor)?;
        self.finish(pending)
    }

    /// Puts the largest of all ranks' numbers in the place of each number of `tensor`.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn max(&self, tensor: &Tensor) -> anyhow::Result<()> {
        let pending = self.start(|all| all.all_reduce(tensor, Reduction::Max))?;
        self.finish(pending)
    }

    /// Begins what [`sum`](Self::sum) does. `tensor` is not to be touched until [`finish`](Self::finish).
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn begin_sum(&self, tensor: &Tensor) -> anyhow::Result<Pending> {
        self.start(|all| all.all_reduce(tensor, Reduction::Sum))
    }

    fn start(
        &self,
        begin: impl FnOnce(&Collectives) -> torch_ext::Result<Moving>,
    ) -> anyhow::Result<Pending> {
        Ok(Pending(self.together.as_ref().map(|together| together.start(begin)).transpose()?))
    }

    /// Begins to put the sum of all ranks' `all`, `[ranks, n]`, into their `own`, `[n]`: each rank's row. Neither is to be touched
    /// until [`finish`](Self::finish).
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub(crate) fn begin_sum_of_own(&self, own: &Tensor, all: &Tensor) -> anyhow::Result<Pending> {
        if !self.is_shared() {
            tch::no_grad(|| own.shallow_clone().copy_(&all.get(0)));
        }
        self.start(|of_all| of_all.reduce_scatter(own, all))
    }

    /// Puts every rank's `own`, `[n]`, into its row of `all`, `[ranks, n]`, in every rank.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub(crate) fn all_gather(&self, all: &Tensor, own: &Tensor) -> anyhow::Result<()> {
        if !self.is_shared() {
            tch::no_grad(|| all.shallow_clone().copy_(&own.view_as(all)));
        }
        let pending = self.start(|of_all| of_all.all_gather(all, own))?;
        self.finish(pending)
    }

    /// Waits for a sum.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn finish(&self, pending: Pending) -> anyhow::Result<()> {
        match (&self.together, pending.0) {
            (Some(together), Some(moving)) => together.finish(moving),
            _ => Ok(()),
        }
    }

    /// What every rank gives, in the order of the ranks.
    ///
    /// # Errors
    /// As [`sum`](Self::sum); a value that has no form in JSON.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> anyhow::Result<Vec<T>> {
        if !self.is_shared() {
            return Ok(vec![own]);
        }
        let bytes = serde_json::to_vec(&own)?;
        let size = self.share.size;
        let lengths = self.gather_rows(&Tensor::from_slice(&[bytes.len() as i64]))?;
        let lengths: Vec<i64> = Vec::try_from(lengths)?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = Tensor::zeros([longest], (Kind::Uint8, Device::Cpu));
        padded.narrow(0, 0, bytes.len() as i64).copy_(&Tensor::from_slice(&bytes));
        let all = self.gather_rows(&padded)?.view([size as i64, longest]);
        let part = |(rank, length): (usize, &i64)| {
            let part = all.get(rank as i64).narrow(0, 0, *length).contiguous();
            Ok(serde_json::from_slice(&Vec::<u8>::try_from(part)?)?)
        };
        lengths.iter().enumerate().map(part).collect()
    }

    fn gather_rows(&self, own: &Tensor) -> anyhow::Result<Tensor> {
        let size = self.share.size as i64 * own.numel() as i64;
        let all = Tensor::zeros([size], (own.kind(), Device::Cpu));
        self.all_gather(&all, own)?;
        Ok(all)
    }

    /// Gives every rank the first one's masters of what trains, but for those that are divided, and casts the compute copies
    /// anew.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn share_weights(&self, params: &mut Params) -> anyhow::Result<()> {
        let Some(together) = &self.together else { return Ok(()) };
        for master in params.masters().into_iter().filter(|master| !master.divided) {
            together.broadcast(&master.master)?;
        }
        Ok(params.refresh_compute()?)
    }

    /// Lets all ranks know of a signal that one has received: to be called where all of them are between the same steps.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn agree(&self, ctx: &Context) -> anyhow::Result<()> {
        if !self.is_shared() {
            return Ok(());
        }
        ctx.interrupt.agree(|own| {
            let number = Tensor::from_slice(&[own as i64]);
            self.max(&number)?;
            anyhow::Ok(number.int64_value(&[0]) as usize)
        })
    }

    /// The seed of the random numbers of this rank's share of a step: with several ranks each has its own, and a resumed run
    /// has them again.
    #[must_use]
    pub fn seed(&self, seed: u64, step: u64) -> i64 {
        let mut mixed = seed ^ 0x9e37_79b9_7f4a_7c15;
        for number in [step, self.share.rank as u64] {
            mixed = (mixed ^ number).wrapping_mul(0xff51_afd7_ed55_8ccd);
            mixed ^= mixed >> 33;
        }
        mixed as i64
    }
}

/// No living rank is silent for so long.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

const START_AGAIN: &str = "its own output says why; start the job again and it goes on from the last checkpoint, \
                           also with another number of processes";

/// For a group that did not come about: who is not there.
fn absent(store: &Store, size: usize) -> String {
    let there = |rank: usize| matches!(store.get(&pulse::key(rank)), Ok(Some(_)));
    let missing: Vec<usize> = (0..size).filter(|rank| !there(*rank)).collect();
    match missing.as_slice() {
        [] => "the ranks cannot connect to one another".to_owned(),
        missing => format!("{} did not come", ranks(missing)),
    }
}

/// `rank 1`, `ranks 1, 3`.
fn ranks(list: &[usize]) -> String {
    let numbers: Vec<String> = list.iter().map(usize::to_string).collect();
    format!("rank{} {}", if list.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

/// The group of the ranks' GPUs, where they have any and the user has not asked for Gloo. All ranks come here.
fn connect_gpus(
    store: &Store,
    host: &Group,
    device: Device,
    layout: &Layout,
) -> anyhow::Result<Option<Group>> {
    let wanted = device.is_cuda() && layout.backend != Some(Backend::Gloo);
    if device.is_cuda() && !wanted {
        tracing::info!("sums over the processes go through the host's memory: --ddp-backend gloo");
    }
    let loaded = wanted.then(Nccl::load);
    // Who has none is not to be waited for: 0 without NCCL, 1 with it, 2 where it is missing.
    let own = loaded.as_ref().map_or(0, |loaded| if loaded.is_ok() { 1 } else { 2 });
    let codes = Tensor::from_slice(&[own, -own]);
    let agreed = host.all_reduce(&codes, Reduction::Max).and_then(Work::wait);
    agreed.context("a rank is gone").hint(START_AGAIN)?;
    let (most, least) = (codes.int64_value(&[0]), -codes.int64_value(&[1]));
    let connect = |loaded: torch_ext::Result<Nccl>| {
        let nccl = loaded?;
        anyhow::ensure!(most < 2, "another rank cannot load NCCL");
        anyhow::ensure!(least > 0, "another rank computes on the CPU or with --ddp-backend gloo");
        tracing::info!("NCCL {} connects the GPUs", nccl.version());
        Ok(Group::nccl(&nccl, store, layout.rank, layout.size, device, layout.patience)?)
    };
    let group = match loaded {
        Some(loaded) => connect(loaded).map(Some),
        None if most > 0 => Err(anyhow::anyhow!("another rank computes on a GPU with NCCL")),
        None => Ok(None),
    };
    let hint = "all processes need a GPU of their own each, and NCCL; with --ddp-backend gloo sums go through the host's memory, \
                which is slower";
    group.context("the GPUs cannot be connected").hint(hint)
}

impl Together {
    fn start(
        &self,
        begin: impl FnOnce(&Collectives) -> torch_ext::Result<Moving>,
    ) -> anyhow::Result<Moving> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        begin(&self.collectives).map_err(|error| self.failed(error))
    }

    fn finish(&self, moving: Moving) -> anyhow::Result<()> {
        moving.wait().map_err(|error| self.failed(error))
    }

    /// # Errors
    /// The rank has given no sign of life for long.
    fn check_alive(&self, signs: &mut pulse::Signs, rank: usize) -> anyhow::Result<()> {
        let silent = signs.silence(&self.store, rank).map_err(|error| self.failed(error))?;
        if silent > self.layout.patience.min(LONGEST_SILENCE) {
            self.failed.store(true, Ordering::Relaxed);
            return Err(anyhow::anyhow!("rank {rank} is gone")).hint(START_AGAIN);
        }
        Ok(())
    }

    /// Puts the first rank's `tensor` in every rank's place.
    fn broadcast(&self, tensor: &Tensor) -> anyhow::Result<()> {
        self.finish(self.start(|all| all.broadcast(tensor, 0))?)
    }

    /// What a collective's failure means: who is gone or does not take part.
    fn failed(&self, error: TorchError) -> anyhow::Error {
        self.failed.store(true, Ordering::Relaxed);
        let own = self.begun.load(Ordering::Relaxed);
        let culprits = pulse::find_culprits(&self.store, self.share.rank, self.share.size, own);
        let what = culprits.unwrap_or_else(|| "a rank is gone".to_owned());
        let error = anyhow::Error::new(error).context(what);
        Hint::new(error, START_AGAIN).into()
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        self.pulse.stop();
        if self.failed.load(Ordering::Relaxed) {
            if let Some((_, gpus)) = &self.collectives.gpus {
                gpus.abort();
            }
            // Its threads wait for a rank that does not come; the process ends without them.
            std::mem::forget(self.collectives.clone());
        }
    }
}
