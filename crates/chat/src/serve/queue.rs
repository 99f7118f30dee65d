//! Requests on their way to a model's worker.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::generate::{Finish, Generated, Report, Request, StopRules};

use super::mailbox::Sender;

/// One answer that a client waits for.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) request: Request,
    pub(crate) stop: Arc<StopRules>,
    pub(crate) report: Report,
    pub(crate) telling: Telling,
    /// To the client. It takes whatever it is given, so the worker never waits.
    pub(crate) to: Sender,
    pub(crate) deadline: Instant,
}

/// What a client is told before its answer is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    Nothing,
    /// The text as it comes.
    Text,
    /// Every token too.
    Tokens,
}

/// A token of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) id: i64,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(i64, f32)>,
}

/// A finished answer: with its tokens and text where they were not told as they came.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    /// How many tokens it has.
    pub(crate) count: usize,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// It took longer than a request may take.
    Timeout,
    /// The server shuts down.
    Stopping,
    /// The client does not read.
    Slow,
    /// The model.
    Model(String),
}

impl End {
    pub(crate) fn new(generated: Generated, told: Telling, tops: Vec<Vec<(i64, f32)>>) -> Self {
        let Generated { ids, text, logprobs, finish } = generated;
        let count = ids.len();
        if told != Telling::Nothing {
            return Self { finish, count, text: String::new(), tokens: Vec::new() };
        }
        let mut tops = tops.into_iter();
        let tokens = ids.into_iter().zip(logprobs);
        let tokens = tokens
            .map(|(id, logprob)| Token { id, logprob, top: tops.next().unwrap_or_default() })
            .collect();
        Self { finish, count, text: text.unwrap_or_default(), tokens }
    }
}

/// Why work is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// So many are waiting.
    Full(usize),
    /// No more is taken.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Work>,
    closed: bool,
    /// Since then what runs is broken off.
    broken_off: bool,
}

/// What waits for a model.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    max_waiting: usize,
    /// A client that takes nothing of what lies there for so long is given up.
    pub(crate) patience: Duration,
}

impl Queue {
    pub(crate) fn new(max_waiting: usize, patience: Duration) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { state, changed, max_waiting, patience }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all of it, or nothing. Answers whose client has left do not count as waiting.
    pub(crate) fn offer(&self, work: Vec<Work>) -> Result<(), NotTaken> {
        let mut state = self.lock();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        if state.waiting.len() + work.len() > self.max_waiting {
            state.waiting.retain(|work| !work.to.has_left());
            if state.waiting.len() + work.len() > self.max_waiting {
                return Err(NotTaken::Full(state.waiting.len()));
            }
        }
        state.waiting.extend(work);
        self.changed.notify_one();
        Ok(())
    }

    /// The next; with `wait` it waits for one, until the queue is closed and empty.
    pub(crate) fn take(&self, wait: bool) -> Option<Work> {
        let mut state = self.lock();
        loop {
            let next = state.waiting.pop_front();
            if next.is_some() || !wait || state.closed {
                return next;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more; what waits is still answered.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Breaks off what waits and what runs.
    pub(crate) fn break_off(&self) {
        let mut state = self.lock();
        (state.closed, state.broken_off) = (true, true);
        for work in state.waiting.drain(..) {
            work.to.end(Err(Failure::Stopping));
        }
        self.changed.notify_all();
    }

    pub(crate) fn is_broken_off(&self) -> bool {
        self.lock().broken_off
    }
}
