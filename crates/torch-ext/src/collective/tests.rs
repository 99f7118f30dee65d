use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::*;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A port that nobody listens at.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) fn store(port: u16, serve: bool, timeout: Duration) -> Result<Store> {
    Store::connect(&StoreAddress { host: "127.0.0.1", port, serve, prefix: "test/" }, timeout)
}

/// Runs `f` in so many ranks, each a thread; their results in order.
fn in_ranks<T: Send + 'static>(size: usize, f: fn(&Group) -> T) -> Vec<T> {
    let port = free_port();
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            thread::spawn(move || {
                let store = store(port, rank == 0, 20 * SECOND).unwrap();
                let group = Group::gloo(&store, rank, size, 20 * SECOND).unwrap();
                assert_eq!((group.rank(), group.size()), (rank, size));
                let result = f(&group);
                // The store must serve until every rank is through.
                let _ = group.all_reduce(&Tensor::from(0.0), Reduction::Sum).unwrap().wait();
                result
            })
        })
        .collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

pub(super) fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

#[test]
fn a_key_is_there_for_all_once_it_is_set() {
    let port = free_port();
    let server = store(port, true, 5 * SECOND).unwrap();
    let client = store(port, false, 5 * SECOND).unwrap();
    assert_eq!(client.get("답").unwrap(), None);
    server.set("답", "마흔둘").unwrap();
    assert_eq!(client.get("답").unwrap().as_deref(), Some("마흔둘"));
    let other = client.reconnect().unwrap();
    other.set("답", "").unwrap();
    assert_eq!(server.get("답").unwrap().as_deref(), Some(""));
}

#[test]
fn nobody_at_the_address_is_an_error_within_the_time() {
    let error = store(free_port(), false, SECOND).unwrap_err().to_string();
    assert!(error.starts_with("store: "), "{error}");
    // A port that is taken.
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    assert!(store(port, true, SECOND).is_err());
}

#[test]
fn three_ranks_sum_gather_scatter_and_copy() {
    let results = in_ranks(3, |group| {
        let own = group.rank() as f64;
        let of = |values: &[f64]| Tensor::from_slice(values);
        let sum = of(&[own, 10.0 * own, -1.0]);
        group.all_reduce(&sum, Reduction::Sum).unwrap().wait().unwrap();
        let most = of(&[own, -own]);
        group.all_reduce(&most, Reduction::Max).unwrap().wait().unwrap();
        let copied = of(&[own + 7.0]).to_kind(Kind::Float);
        group.broadcast(&copied, 2).unwrap().wait().unwrap();
        let all = Tensor::zeros([6], (Kind::Double, Device::Cpu));
        group.all_gather(&all, &of(&[own, own + 0.5])).unwrap().wait().unwrap();
        let part = Tensor::zeros([2], (Kind::Double, Device::Cpu));
        let whole = of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * (own + 1.0);
        group.reduce_scatter(&part, &whole).unwrap().wait().unwrap();
        [sum, most, copied, all, part].map(|tensor| numbers(&tensor))
    });
    for (rank, [sum, most, copied, all, part]) in results.into_iter().enumerate() {
        assert_eq!(sum, [3.0, 30.0, -3.0]);
        assert_eq!(most, [2.0, 0.0]);
        assert_eq!(copied, [9.0]);
        assert_eq!(all, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        let first = 2.0 * rank as f64 + 1.0;
        assert_eq!(part, [6.0 * first, 6.0 * (first + 1.0)]);
    }
}

#[test]
fn every_rank_has_the_same_bits() {
    let results = in_ranks(3, |group| {
        let numbers = Tensor::arange(10_007, (Kind::Float, Device::Cpu));
        let own = (numbers * (0.1 + group.rank() as f64)).sin();
        group.all_reduce(&own, Reduction::Sum).unwrap().wait().unwrap();
        Vec::<f32>::try_from(own).unwrap()
    });
    assert!(results.iter().all(|bits| *bits == results[0]));
}

#[test]
fn a_rank_that_does_not_take_part_is_an_error_within_the_time() {
    let port = free_port();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let absent = thread::spawn(move || {
        let store = store(port, true, 20 * SECOND).unwrap();
        let group = Group::gloo(&store, 0, 2, 20 * SECOND).unwrap();
        // There, and silent, until the other has given up.
        let _ = wait.recv();
        drop(group);
    });
    let store = store(port, false, 20 * SECOND).unwrap();
    let group = Group::gloo(&store, 1, 2, SECOND).unwrap();
    let sum = Tensor::from_slice(&[1.0]);
    let error = group.all_reduce(&sum, Reduction::Sum).unwrap().wait().unwrap_err();
    let TorchError::Libtorch { op: "all_reduce", message } = &error else { panic!("{error:?}") };
    assert!(!message.contains(".cc:"), "{message}");
    drop(done);
    absent.join().unwrap();
}
