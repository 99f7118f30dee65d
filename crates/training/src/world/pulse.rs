//! Signs of life, by which the ranks know which of them is at fault.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use data::batch::Share;
use torch_ext::TorchError;
use torch_ext::collective::{Group, Store};

const BEAT: Duration = Duration::from_secs(1);

/// Beats from one look at the others to the next.
const LOOK_EVERY: u64 = 5;

/// The key of a rank's signs: a count that goes up with every beat, and the collectives it has begun.
pub(super) fn key(rank: usize) -> String {
    format!("alive/{rank}")
}

/// Where a rank that gives up says whom it found at fault, so that the others do not take it for the one.
fn verdict_key(rank: usize) -> String {
    format!("verdict/{rank}")
}

/// A thread that gives signs of life until it is stopped, and looks after the group of the ranks' GPUs, which does not notice by
/// itself when one is gone.
#[derive(Debug)]
pub(super) struct Pulse {
    stop: Arc<AtomicBool>,
    gpus: Arc<Mutex<Option<Group>>>,
}

impl Pulse {
    /// A rank that is silent for longer than `most` is gone.
    pub(super) fn start(
        store: Store,
        share: Share,
        begun: Arc<AtomicU64>,
        most: Duration,
    ) -> Result<Self, TorchError> {
        let stop = Arc::new(AtomicBool::new(false));
        let gpus: Arc<Mutex<Option<Group>>> = Arc::default();
        let (stopped, guarded) = (Arc::clone(&stop), Arc::clone(&gpus));
        let sign = move |store: &Store, count: u64| {
            store.set(&key(share.rank), &format!("{count} {}", begun.load(Ordering::Relaxed)))
        };
        sign(&store, 0)?;
        // Not waited for at the end: the store may be gone and keep it waiting.
        thread::spawn(move || {
            let mut signs = Signs::default();
            for count in 1.. {
                thread::sleep(BEAT);
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let beat = sign(&store, count);
                let group = lock(&guarded).clone();
                if let Some(group) = group.filter(|_| beat.is_err() || count % LOOK_EVERY == 0)
                    && (beat.is_err() || signs.any_longer_than(most, &store, share))
                {
                    group.abort();
                }
                if beat.is_err() {
                    return;
                }
            }
        });
        Ok(Self { stop, gpus })
    }

    /// Ends the operations of `group` when a rank is gone.
    pub(super) fn look_after(&self, group: Group) {
        *lock(&self.gpus) = Some(group);
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        *lock(&self.gpus) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When each rank's sign was last another than before.
#[derive(Debug, Default)]
pub(super) struct Signs(HashMap<usize, (String, Instant)>);

impl Signs {
    /// For how long a rank has given no new sign, since this was first asked.
    pub(super) fn silence(&mut self, store: &Store, rank: usize) -> Result<Duration, TorchError> {
        let sign = store.get(&key(rank))?.unwrap_or_default();
        let last = self.0.entry(rank).or_insert_with(|| (sign.clone(), Instant::now()));
        if last.0 != sign {
            *last = (sign, Instant::now());
        }
        Ok(last.1.elapsed())
    }

    /// Whether a rank that this one looks after is silent for too long. The first rank looks after all others and they after it:
    /// its store bears no more, and with it gone they end.
    fn any_longer_than(&mut self, most: Duration, store: &Store, share: Share) -> bool {
        let mut ranks = if share.rank == 0 { 1..share.size } else { 0..1 };
        ranks.any(|rank| self.silence(store, rank).is_ok_and(|silent| silent > most))
    }
}

/// After a collective failed: which of the other ranks are gone, or else behind in the collectives they have begun. `None`
/// where nothing can be said.
pub(super) fn find_culprits(store: &Store, rank: usize, size: usize, own: u64) -> Option<String> {
    const KEEPER: &str = "rank 0, which keeps the store,";
    let Ok(store) = store.reconnect() else { return Some(format!("{KEEPER} is gone")) };
    // On a thread of its own: a store that hangs answers nothing, and says nothing either.
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let found = look(&store, rank, size, own);
        let _ = tell.send(found);
    });
    match told.recv_timeout(10 * BEAT) {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Some(format!("{KEEPER} is gone")),
        Err(_) => Some(format!("{KEEPER} does not answer")),
    }
}

fn look(store: &Store, rank: usize, size: usize, own: u64) -> Result<Option<String>, TorchError> {
    let others: Vec<usize> = (0..size).filter(|other| *other != rank).collect();
    let sign = |other: &usize| store.get(&key(*other)).map(Option::unwrap_or_default);
    let before = others.iter().map(sign).collect::<Result<Vec<_>, _>>()?;
    thread::sleep(BEAT * 5 / 2);
    let after = others.iter().map(sign).collect::<Result<Vec<_>, _>>()?;
    let (mut gone, mut behind) = (Vec::new(), Vec::new());
    for ((other, before), after) in others.iter().zip(before).zip(after) {
        // One that gave up before this one has said whose fault it was.
        if let Some(verdict) = store.get(&verdict_key(*other))? {
            return Ok(Some(verdict));
        }
        let begun = |sign: &str| sign.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
        if before == after {
            gone.push(*other);
        } else if begun(&after).is_some_and(|begun| begun < own) {
            behind.push(*other);
        }
    }
    let found = match (gone.as_slice(), behind.as_slice()) {
        ([], []) => return Ok(None),
        ([], behind) => format!("{} did not take part in time", super::ranks(behind)),
        (gone, _) => format!("{} gives no sign of life", super::ranks(gone)),
    };
    store.set(&verdict_key(rank), &found)?;
    Ok(Some(found))
}
