//! Processes that train together: a key-value store to meet at, and sums and copies of tensors over all of them.
//!
//! The store is c10d's `TCPStore`, which `torchrun` serves as well; the collectives are Gloo's for CPU tensors and NCCL's for CUDA
//! tensors ([`Nccl`]). Every rank calls the same collectives in the same order with tensors of the same shape and kind. A sum adds in an order that depends on
//! the number of ranks and the tensor's size alone, and every rank gets the same bits.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use tch::Tensor;

use crate::{Result, TorchError, ffi};

mod nccl;

pub use nccl::Nccl;

const STORE: &str = "store";

/// Where the store is.
#[derive(Debug, Clone)]
pub struct StoreAddress<'a> {
    /// `MASTER_ADDR`.
    pub host: &'a str,
    /// `MASTER_PORT`.
    pub port: u16,
    /// Whether this process serves it, until the [`Store`] and its clones are dropped.
    pub serve: bool,
    /// Put before every key.
    pub prefix: &'a str,
}

/// A connection to a key-value store that all ranks share. Keys and values are texts.
#[derive(Debug)]
pub struct Store(*mut c_void);

// SAFETY: c10d's stores take a lock around every operation.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects, waiting up to `timeout` for the store to be there; later operations wait as long.
    ///
    /// # Errors
    /// Nothing answers at the address in time; to serve: the port is taken.
    pub fn connect(address: &StoreAddress<'_>, timeout: Duration) -> Result<Self> {
        let (host, prefix) = (c_text(address.host)?, c_text(address.prefix)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: NUL-terminated texts that outlive the call; `out` receives an owned store on success.
        let message = unsafe {
            ffi::te_store_connect(
                host.as_ptr(),
                address.port,
                address.serve,
                millis(timeout),
                prefix.as_ptr(),
                &raw mut out,
            )
        };
        ffi::check(STORE, message)?;
        Ok(Self(out))
    }

    /// Another connection to the same store, so that neither waits for the other's operations.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn reconnect(&self) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: borrows the store; `out` receives an owned one on success.
        ffi::check(STORE, unsafe { ffi::te_store_clone(self.0, &raw mut out) })?;
        Ok(Self(out))
    }

    /// Sets a key.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (c_text(key)?, c_text(value)?);
        // SAFETY: borrows the store and two NUL-terminated texts.
        ffi::check(STORE, unsafe { ffi::te_store_set(self.0, key.as_ptr(), value.as_ptr()) })
    }

    /// The value of a key, if it has been set. Does not wait for it.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let key = c_text(key)?;
        let mut out: *mut c_char = std::ptr::null_mut();
        // SAFETY: borrows the store and a text; `out` receives an owned text or null.
        ffi::check(STORE, unsafe { ffi::te_store_get(self.0, key.as_ptr(), &raw mut out) })?;
        Ok((!out.is_null()).then(|| ffi::take_text(out)))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: owned, and dropped once.
        unsafe { ffi::te_store_free(self.0) }
    }
}

/// How the ranks' numbers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
}

/// The ranks `0..size`, of which this process is one. Clones are the same group.
#[derive(Debug, Clone)]
pub struct Group {
    raw: Arc<RawGroup>,
    rank: usize,
    size: usize,
}

#[derive(Debug)]
struct RawGroup(*mut c_void);

// SAFETY: Gloo's group runs operations on threads of its own and takes locks to start them; NCCL's is behind a lock.
unsafe impl Send for RawGroup {}
// SAFETY: as above; that all ranks begin operations in one order is the callers' part and no matter of memory.
unsafe impl Sync for RawGroup {}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: owned, and dropped once.
        unsafe { ffi::te_group_free(self.0) }
    }
}

impl Group {
    /// Meets the other ranks at `store` and connects to each. An operation that takes longer than `timeout` fails.
    ///
    /// # Errors
    /// A rank does not come in time; no connection to it.
    pub fn gloo(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        let (own, all) = (number(rank)?, number(size)?);
        // SAFETY: borrows the store; `raw` receives an owned group on success.
        Self::connect(rank, size, |raw| unsafe {
            ffi::te_group_gloo(store.0, own, all, millis(timeout), raw)
        })
    }

    fn connect(
        rank: usize,
        size: usize,
        start: impl FnOnce(*mut *mut c_void) -> *mut c_char,
    ) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        ffi::check("group", start(&raw mut raw))?;
        Ok(Self { raw: Arc::new(RawGroup(raw)), rank, size })
    }

    /// Ends what is under way on NCCL, from any thread: it fails, as all operations after it do. Gloo's go on, which notice by
    /// themselves when a rank is gone.
    pub fn abort(&self) {
        // SAFETY: borrows the group, which takes a lock.
        let message = unsafe { ffi::te_group_abort(self.raw.0) };
        // Nothing is left to be done where this fails.
        let _ = ffi::check("abort", message);
    }

    /// This process's number.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Begins to put the reduction of all ranks' `tensor` (contiguous, where the group's are) in its place, in every rank.
    ///
    /// # Errors
    /// A tensor that the group does not take.
    pub fn all_reduce(&self, tensor: &Tensor, how: Reduction) -> Result<Work> {
        let op = match how {
            Reduction::Sum => 0,
            Reduction::Max => 1,
        };
        // SAFETY: borrows group and tensor; the operation keeps its own reference to the tensor.
        self.begin("all_reduce", |out| unsafe {
            ffi::te_group_all_reduce(self.raw.0, ffi::ptr(tensor), op, out)
        })
    }

    /// Begins to put rank `root`'s `tensor` (contiguous, where the group's are) in the place of every other rank's.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        // SAFETY: as in `all_reduce`; a rank fits, or the group would not be there.
        self.begin("broadcast", |out| unsafe {
            ffi::te_group_broadcast(self.raw.0, ffi::ptr(tensor), root as i32, out)
        })
    }

    /// Begins to lay every rank's `own` `[k]` one after another in `all` `[size * k]`, in every rank.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); sizes that do not fit.
    pub fn all_gather(&self, all: &Tensor, own: &Tensor) -> Result<Work> {
        // SAFETY: as in `all_reduce`.
        self.begin("all_gather", |out| unsafe {
            ffi::te_group_all_gather(self.raw.0, ffi::ptr(all), ffi::ptr(own), out)
        })
    }

    /// Begins to put the sum of all ranks' `all` `[size * k]` into their `own` `[k]`: the first `k` numbers into rank 0's, and so on.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn reduce_scatter(&self, own: &Tensor, all: &Tensor) -> Result<Work> {
        // SAFETY: as in `all_reduce`.
        self.begin("reduce_scatter", |out| unsafe {
            ffi::te_group_reduce_scatter(self.raw.0, ffi::ptr(own), ffi::ptr(all), out)
        })
    }

    fn begin(
        &self,
        op: &'static str,
        start: impl FnOnce(*mut *mut c_void) -> *mut c_char,
    ) -> Result<Work> {
        let mut raw = std::ptr::null_mut();
        ffi::check(op, start(&raw mut raw))?;
        Ok(Work { raw, op, _group: Arc::clone(&self.raw) })
    }
}

/// An operation under way. Its tensors are not to be touched until [`wait`](Self::wait) has returned.
#[derive(Debug)]
#[must_use = "the operation may still be under way"]
pub struct Work {
    raw: *mut c_void,
    op: &'static str,
    /// Its threads do the work.
    _group: Arc<RawGroup>,
}

// SAFETY: c10d's work objects take locks; any thread may wait.
unsafe impl Send for Work {}

impl Work {
    /// Waits until the tensors are there.
    ///
    /// # Errors
    /// A rank is gone, or did not take part in time.
    pub fn wait(self) -> Result<()> {
        // SAFETY: borrows the work, which drops at the end of this function.
        ffi::check(self.op, unsafe { ffi::te_work_wait(self.raw) }).map_err(without_place)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: owned, and dropped once.
        unsafe { ffi::te_work_free(self.raw) }
    }
}

/// Gloo's messages begin with the place in its source, which tells a user nothing.
fn without_place(error: TorchError) -> TorchError {
    match error {
        TorchError::Libtorch { op, message } => {
            let place = message.split_once("] ").filter(|(place, _)| place.starts_with("[/"));
            let message = place.map_or(message.as_str(), |(_, words)| words).to_owned();
            TorchError::Libtorch { op, message }
        }
        other => other,
    }
}

fn number(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| TorchError::argument("group", "too many ranks"))
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|e| TorchError::argument(STORE, e.to_string()))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests;
