//! The group over functions that stand in for NCCL's, in the CPU's memory; and over NCCL where there are GPUs.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tch::{Kind, Tensor};

use super::*;
use crate::collective::tests::{SECOND, free_port, numbers, store};
use crate::collective::{Reduction, Work};
use crate::ffi::{NcclConfig, NcclId};

const SUCCESS: c_int = 0;
const INVALID_USAGE: c_int = 5;
const REMOTE_ERROR: c_int = 6;
const IN_PROGRESS: c_int = 7;

/// The rank that is said to be gone when the first number of a sum is this.
const FATAL: f32 = 666.0;

/// What the ranks of one communicator have given to each operation, and how many ranks have come.
#[derive(Default)]
struct Meeting {
    came: usize,
    given: HashMap<usize, Vec<Option<Vec<u8>>>>,
}

/// A communicator of one rank.
struct Comm {
    meeting: Arc<Mutex<Meeting>>,
    rank: usize,
    size: usize,
    operations: usize,
    pending: Option<Pending>,
}

#[derive(Clone, Copy)]
struct Pending {
    kind: Kind,
    op: Op,
    recv: *mut u8,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Reduce(c_int),
    Broadcast(usize),
    Gather,
    Scatter,
}

/// By id.
type Meetings = HashMap<[u8; 128], Arc<Mutex<Meeting>>>;

static MEETINGS: Mutex<Option<Meetings>> = Mutex::new(None);
static IDS: AtomicU64 = AtomicU64::new(1);
static DESTROYED: AtomicUsize = AtomicUsize::new(0);
static ABORTED: AtomicUsize = AtomicUsize::new(0);
/// Whether `abort` waits, as NCCL's does for the machine's other ranks.
static WAITS: AtomicBool = AtomicBool::new(false);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kind(dtype: c_int) -> Kind {
    let kinds = [(1, Kind::Uint8), (4, Kind::Int64), (7, Kind::Float), (9, Kind::BFloat16)];
    kinds.into_iter().find(|(own, _)| *own == dtype).unwrap().1
}

extern "C" fn error_string(result: c_int) -> *const c_char {
    let text: &CStr = match result {
        INVALID_USAGE => c"invalid usage",
        REMOTE_ERROR => c"remote process exited or there was a network error",
        _ => c"another error",
    };
    text.as_ptr()
}

extern "C" fn last_error(comm: *mut c_void) -> *const c_char {
    let text: &CStr =
        if comm.is_null() { c"" } else { c"socketProgress: connection closed by peer" };
    text.as_ptr()
}

unsafe extern "C" fn unique_id(id: *mut NcclId) -> c_int {
    let number = IDS.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    // Texts would end at the zeros.
    let bytes = std::array::from_fn(|at| number.get(at).copied().unwrap_or(at as u8));
    // SAFETY: the caller's place for an id.
    unsafe { *id = NcclId(bytes) };
    SUCCESS
}

unsafe extern "C" fn init(
    comm: *mut *mut c_void,
    size: c_int,
    id: NcclId,
    rank: c_int,
    config: *mut NcclConfig,
) -> c_int {
    // SAFETY: the caller's options.
    let config = unsafe { *config };
    if (config.size, config.magic, config.blocking) != (24, 0xcafe_beef, 0) {
        return INVALID_USAGE;
    }
    let meeting = Arc::clone(lock(&MEETINGS).get_or_insert_default().entry(id.0).or_default());
    lock(&meeting).came += 1;
    let own =
        Comm { meeting, rank: rank as usize, size: size as usize, operations: 0, pending: None };
    // SAFETY: the caller's place for a communicator.
    unsafe { *comm = Box::into_raw(Box::new(own)).cast() };
    IN_PROGRESS
}

unsafe extern "C" fn async_error(comm: *mut c_void, result: *mut c_int) -> c_int {
    // SAFETY: made by `init` and not yet destroyed; the group calls one function at a time.
    let comm = unsafe { &mut *comm.cast::<Comm>() };
    // SAFETY: the caller's place for a result.
    unsafe { *result = comm.progress() };
    SUCCESS
}

extern "C" fn finalize(_: *mut c_void) -> c_int {
    IN_PROGRESS
}

unsafe extern "C" fn destroy(comm: *mut c_void) -> c_int {
    // SAFETY: made by `init`, destroyed once.
    drop(unsafe { Box::from_raw(comm.cast::<Comm>()) });
    DESTROYED.fetch_add(1, Ordering::Relaxed);
    SUCCESS
}

unsafe extern "C" fn abort(comm: *mut c_void) -> c_int {
    while WAITS.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: as in `destroy`.
    drop(unsafe { Box::from_raw(comm.cast::<Comm>()) });
    ABORTED.fetch_add(1, Ordering::Relaxed);
    SUCCESS
}

unsafe extern "C" fn all_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: of `count` numbers each, as is asked of the caller.
    unsafe { begin(Op::Reduce(op), send, recv, count, dtype, comm, 1) }
}

unsafe extern "C" fn broadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    root: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: of `count` numbers each.
    unsafe { begin(Op::Broadcast(root as usize), send, recv, count, dtype, comm, 1) }
}

unsafe extern "C" fn all_gather(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: `send` of `count` numbers, `recv` of as many for each rank.
    unsafe { begin(Op::Gather, send, recv, count, dtype, comm, 1) }
}

unsafe extern "C" fn reduce_scatter(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    assert_eq!(op, 0);
    // SAFETY: `recv` of `count` numbers, `send` of as many for each rank.
    unsafe { begin(Op::Scatter, send, recv, count, dtype, comm, (*comm.cast::<Comm>()).size) }
}

/// # Safety
/// `comm` is one of `init`'s, `send` has `count * parts` numbers and `recv` what the operation gives.
unsafe fn begin(
    op: Op,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    comm: *mut c_void,
    parts: usize,
) -> c_int {
    let kind = kind(dtype);
    // SAFETY: as the caller says.
    let (comm, bytes) = unsafe {
        let bytes = count * parts * kind.elt_size_in_bytes();
        (&mut *comm.cast::<Comm>(), std::slice::from_raw_parts(send.cast::<u8>(), bytes).to_vec())
    };
    let (rank, size) = (comm.rank, comm.size);
    let mut meeting = lock(&comm.meeting);
    meeting.given.entry(comm.operations).or_insert_with(|| vec![None; size])[rank] = Some(bytes);
    drop(meeting);
    comm.operations += 1;
    comm.pending = Some(Pending { kind, op, recv: recv.cast(), count });
    IN_PROGRESS
}

impl Comm {
    /// Does what is under way if every rank has come to it.
    fn progress(&mut self) -> c_int {
        let meeting = lock(&self.meeting);
        if meeting.came < self.size {
            return IN_PROGRESS;
        }
        let Some(Pending { kind, op, recv, count }) = self.pending else { return SUCCESS };
        let given = &meeting.given[&(self.operations - 1)];
        let Some(given) = given.iter().map(Option::as_deref).collect::<Option<Vec<&[u8]>>>() else {
            return IN_PROGRESS;
        };
        let of = |bytes: &[u8]| {
            Tensor::from_data_size(bytes, &[(bytes.len() / kind.elt_size_in_bytes()) as i64], kind)
        };
        let all: Vec<Tensor> = given.iter().map(|bytes| of(bytes)).collect();
        let sum = || all[1..].iter().fold(all[0].shallow_clone(), |sum, next| sum + next);
        let result = match op {
            Op::Reduce(0) => sum(),
            Op::Reduce(2) => Tensor::stack(&all, 0).amax([0], false),
            Op::Reduce(_) => return INVALID_USAGE,
            Op::Broadcast(root) => all[root].shallow_clone(),
            Op::Gather => Tensor::cat(&all, 0),
            Op::Scatter => sum().narrow(0, (self.rank * count) as i64, count as i64),
        };
        if kind == Kind::Float && result.double_value(&[0]) == f64::from(FATAL) {
            return REMOTE_ERROR;
        }
        let result = result.contiguous();
        let bytes = result.numel() * kind.elt_size_in_bytes();
        // SAFETY: as many bytes as the caller of the operation has room for.
        unsafe { std::ptr::copy_nonoverlapping(result.data_ptr().cast(), recv, bytes) };
        self.pending = None;
        SUCCESS
    }
}

const STAND_IN: NcclFunctions = NcclFunctions {
    error_string,
    last_error,
    unique_id,
    init,
    async_error,
    finalize,
    destroy,
    abort,
    all_reduce,
    broadcast,
    all_gather,
    reduce_scatter,
};

/// The tests count what becomes of communicators, so they take turns.
static ONE_TEST: Mutex<()> = Mutex::new(());

/// Runs `f` in so many ranks, each a thread; their results in order.
fn in_ranks<T: Send + 'static>(
    size: usize,
    timeout: Duration,
    f: impl Fn(usize, &Group) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let port = free_port();
    let rank = |rank| {
        let f = f.clone();
        thread::spawn(move || {
            let store = store(port, rank == 0, 20 * SECOND).unwrap();
            let group =
                Group::with_functions(&STAND_IN, &store, (rank, size), -1, timeout).unwrap();
            let result = f(rank, &group);
            drop(group);
            // The store must serve until every rank is through.
            store.set(&format!("through/{rank}"), "").unwrap();
            while (0..size).any(|rank| store.get(&format!("through/{rank}")).unwrap().is_none()) {
                thread::sleep(Duration::from_millis(5));
            }
            store.set(&format!("left/{rank}"), "").unwrap();
            while rank == 0
                && (0..size).any(|rank| store.get(&format!("left/{rank}")).unwrap().is_none())
            {
                thread::sleep(Duration::from_millis(5));
            }
            result
        })
    };
    let ranks: Vec<_> = (0..size).map(rank).collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

fn ends() -> (usize, usize) {
    (DESTROYED.load(Ordering::Relaxed), ABORTED.load(Ordering::Relaxed))
}

fn done(work: Result<Work>) {
    work.unwrap().wait().unwrap();
}

/// Every operation, with what each rank must have of it.
fn every_operation(rank: usize, size: usize, group: &Group, device: Device) {
    let of = |values: &[f32]| Tensor::from_slice(values).to_device(device);
    let (own, last) = (rank as f32, size as f64 - 1.0);
    let total = last * (last + 1.0) / 2.0;
    let sum = of(&[own, 10.0 * own, -1.0]);
    done(group.all_reduce(&sum, Reduction::Sum));
    assert_eq!(numbers(&sum), [total, 10.0 * total, -last - 1.0]);
    let most = of(&[own, -own]).to_kind(Kind::Int64);
    done(group.all_reduce(&most, Reduction::Max));
    assert_eq!(numbers(&most), [last, 0.0]);
    let copied = of(&[own + 0.5]).to_kind(Kind::BFloat16);
    done(group.broadcast(&copied, size - 1));
    assert_eq!(numbers(&copied), [last + 0.5]);
    let all = Tensor::zeros([2 * size as i64], (Kind::Uint8, device));
    done(group.all_gather(&all, &of(&[own, own + 100.0]).to_kind(Kind::Uint8)));
    let gathered: Vec<f64> =
        (0..size).flat_map(|rank| [rank as f64, rank as f64 + 100.0]).collect();
    assert_eq!(numbers(&all), gathered);
    let part = Tensor::zeros([2], (Kind::Float, device));
    let whole = Tensor::arange(2 * size as i64, (Kind::Float, device)) * (f64::from(own) + 1.0);
    done(group.reduce_scatter(&part, &whole));
    let first = 2.0 * f64::from(own);
    assert_eq!(
        numbers(&part),
        [first * (total + last + 1.0), (first + 1.0) * (total + last + 1.0)]
    );
    // Two under way at a time, the first of them longer.
    let (long, short) = (of(&vec![own; 100_000]), of(&[own]));
    let works = [&long, &short].map(|t| group.all_reduce(t, Reduction::Sum).unwrap());
    for work in works {
        work.wait().unwrap();
    }
    assert_eq!(numbers(&long), vec![total; 100_000]);
    assert_eq!(numbers(&short), [total]);
}

#[test]
fn every_operation_gives_what_it_says() {
    let _turn = lock(&ONE_TEST);
    let before = ends();
    in_ranks(3, 20 * SECOND, |rank, group| {
        assert_eq!((group.rank(), group.size()), (rank, 3));
        every_operation(rank, 3, group, Device::Cpu);
    });
    assert_eq!(ends(), (before.0 + 3, before.1), "each communicator is destroyed");
}

#[test]
fn what_nccl_does_not_take_is_refused_and_the_group_goes_on() {
    let _turn = lock(&ONE_TEST);
    in_ranks(2, 20 * SECOND, |_, group| {
        let message = |work: Result<Work>| work.err().unwrap().to_string();
        let truths = Tensor::from_slice(&[true]);
        let error = message(group.all_reduce(&truths, Reduction::Sum));
        assert_eq!(error, "all_reduce: NCCL takes no Bool");
        let square = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let error = message(group.broadcast(&square.tr(), 0));
        assert_eq!(error, "broadcast: NCCL takes contiguous tensors on cpu");
        let error = message(group.all_gather(&square, &square));
        assert_eq!(
            error,
            "all_gather: [2, 3] in Float is not what 2 ranks have of [2, 3] in Float"
        );
        let error = message(group.reduce_scatter(&square, &square));
        assert!(error.starts_with("reduce_scatter: [2, 3] in Float is not"), "{error}");
        done(group.all_reduce(&square, Reduction::Sum));
    });
}

#[test]
fn an_error_of_nccl_is_told_and_ends_the_group() {
    let _turn = lock(&ONE_TEST);
    let before = ends();
    in_ranks(2, 20 * SECOND, |_, group| {
        let sum = Tensor::from_slice(&[FATAL / 2.0]);
        let error = group.all_reduce(&sum, Reduction::Sum).err().unwrap().to_string();
        let expected = "all_reduce: NCCL: remote process exited or there was a network error: socketProgress: \
                        connection closed by peer";
        assert_eq!(error, expected);
        let error = group.all_reduce(&sum, Reduction::Sum).err().unwrap().to_string();
        assert_eq!(error, "all_reduce: NCCL was given up after an error");
    });
    assert_eq!(ends(), (before.0, before.1 + 2), "each communicator is aborted, once");
}

#[test]
fn a_rank_that_does_not_take_part_is_an_error_within_the_time() {
    let _turn = lock(&ONE_TEST);
    let before = ends();
    let errors = in_ranks(2, SECOND / 2, |rank, group| {
        let sum = Tensor::from_slice(&[1.0_f32]);
        (rank == 1).then(|| group.all_reduce(&sum, Reduction::Sum).err().unwrap().to_string())
    });
    assert_eq!(errors, [None, Some("all_reduce: NCCL timed out after 500 ms".to_owned())]);
    assert_eq!(ends(), (before.0 + 1, before.1 + 1));
}

#[test]
fn another_thread_ends_what_a_rank_waits_for_though_nccl_does_not_come_back() {
    let _turn = lock(&ONE_TEST);
    let before = ends();
    WAITS.store(true, Ordering::Relaxed);
    let started = Instant::now();
    let errors = in_ranks(2, 60 * SECOND, |rank, group| {
        if rank == 0 {
            return None;
        }
        let other = group.clone();
        let ends = thread::spawn(move || {
            thread::sleep(SECOND / 5);
            other.abort();
            other.abort();
        });
        let sum = Tensor::from_slice(&[1.0_f32]);
        let error = group.all_reduce(&sum, Reduction::Sum).err().unwrap().to_string();
        ends.join().unwrap();
        Some(error)
    });
    assert!(started.elapsed() < 30 * SECOND, "{:?}", started.elapsed());
    assert_eq!(errors, [None, Some("all_reduce: NCCL was given up after an error".to_owned())]);
    assert_eq!(ends(), (before.0 + 1, before.1));
    WAITS.store(false, Ordering::Relaxed);
    while ends().1 == before.1 {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_rank_that_does_not_come_is_an_error_within_the_time() {
    let _turn = lock(&ONE_TEST);
    let before = ends();
    let port = free_port();
    let server = store(port, true, 20 * SECOND).unwrap();
    let error = Group::with_functions(&STAND_IN, &server, (0, 2), -1, SECOND / 2);
    assert_eq!(error.unwrap_err().to_string(), "group: NCCL timed out after 500 ms");
    assert_eq!(ends(), (before.0, before.1 + 1));
    // The other way round: nobody has said where to meet.
    let port = free_port();
    let _server = store(port, true, 20 * SECOND).unwrap();
    let client = store(port, false, SECOND).unwrap();
    let error = Group::with_functions(&STAND_IN, &client, (1, 2), -1, SECOND);
    assert!(error.unwrap_err().to_string().starts_with("group: "));
    assert_eq!(ends(), (before.0, before.1 + 1));
}

#[test]
fn only_cuda_devices_are_taken() {
    let nccl = Nccl { functions: STAND_IN, version: 22_809 };
    assert_eq!(nccl.version(), "2.28.9");
    let server = store(free_port(), true, SECOND).unwrap();
    let error = Group::nccl(&nccl, &server, 0, 1, Device::Cpu, SECOND).unwrap_err();
    assert_eq!(error.to_string(), "nccl: Cpu is not a CUDA device");
}

#[test]
fn where_there_is_no_nccl_the_file_is_named() {
    match Nccl::load() {
        Ok(nccl) => assert!(nccl.version >= OLDEST, "{}", nccl.version()),
        Err(error) => assert!(error.to_string().contains(LIBRARY), "{error}"),
    }
}

#[test]
fn gpus_sum_and_copy_without_the_host() {
    if crate::device::test_cuda("NCCL").is_none() {
        return;
    }
    let size = crate::device::load_cuda().devices();
    let port = free_port();
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            thread::spawn(move || {
                let nccl = Nccl::load().unwrap();
                let store = store(port, rank == 0, 60 * SECOND).unwrap();
                let device = Device::Cuda(rank);
                let group = Group::nccl(&nccl, &store, rank, size, device, 60 * SECOND).unwrap();
                every_operation(rank, size, &group, device);
            })
        })
        .collect();
    for rank in ranks {
        rank.join().unwrap();
    }
}
