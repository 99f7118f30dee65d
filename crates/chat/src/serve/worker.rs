//! A model's thread: it takes requests from the queue into the engine's free rows, and tells what becomes of them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use data::tokenizer::Tokenizer;
use model::generate::{Event, Generated, Job, PromptToken, Source};
use tokio::sync::mpsc;
use training::respond::Streamed;

use super::queue::{End, Failure, Piece, Queue, Token, Work};

/// An answer being generated.
struct Running {
    choice: usize,
    to: mpsc::Sender<Piece>,
    stream: bool,
    deadline: Instant,
    tops: Vec<Vec<(i64, f32)>>,
    taken: Arc<AtomicUsize>,
    /// What the client had taken when it was last seen to take something, and when that was.
    seen: (usize, Instant),
    failure: Option<Failure>,
}

impl Running {
    /// Whether the answer is still wanted.
    fn goes_on(&mut self, queue: &Queue) -> ControlFlow<()> {
        if self.to.is_closed() {
            return ControlFlow::Break(());
        }
        let now = Instant::now();
        let taken = self.taken.load(Ordering::Relaxed);
        if taken != self.seen.0 || self.to.capacity() == self.to.max_capacity() {
            self.seen = (taken, now);
        }
        self.failure = if now >= self.deadline {
            Some(Failure::Timeout)
        } else if now - self.seen.1 >= queue.patience {
            Some(Failure::Slow)
        } else if queue.is_broken_off() {
            Some(Failure::Stopping)
        } else {
            return ControlFlow::Continue(());
        };
        ControlFlow::Break(())
    }
}

/// The queue as the engine's source.
pub(crate) struct Live<'t> {
    queue: &'t Queue,
    tokenizer: &'t Tokenizer,
    running: HashMap<usize, Running>,
    next_key: usize,
}

impl<'t> Live<'t> {
    pub(crate) fn new(queue: &'t Queue, tokenizer: &'t Tokenizer) -> Self {
        Self { queue, tokenizer, running: HashMap::new(), next_key: 0 }
    }
}

impl<'t> Source<'t> for Live<'t> {
    fn next(&mut self, idle: bool) -> Option<Job<'t>> {
        loop {
            let work = self.queue.take(idle)?;
            if work.to.is_closed() {
                continue;
            }
            let Work { choice, request, stop, report, stream, to, taken, deadline } = work;
            let now = Instant::now();
            if now >= deadline {
                let _ = to.try_send(Piece::End { choice, end: Err(Failure::Timeout) });
                continue;
            }
            let key = self.next_key;
            self.next_key += 1;
            let context: Vec<u32> = request.ids.iter().map(|id| *id as u32).collect();
            let text = Box::new(Streamed::new(self.tokenizer.stream_after(&context, true)));
            let seen = (taken.load(Ordering::Relaxed), now);
            let (tops, failure) = (Vec::new(), None);
            let running = Running { choice, to, stream, deadline, tops, taken, seen, failure };
            self.running.insert(key, running);
            return Some(Job { key, request, stop, text: Some(text), report });
        }
    }

    fn on_prompt(&mut self, key: usize, tokens: Vec<PromptToken>) {
        if let Some(Running { choice, to, .. }) = self.running.get(&key) {
            let _ = to.try_send(Piece::Prompt { choice: *choice, tokens });
        }
    }

    fn on_token(&mut self, event: Event<'_>) -> ControlFlow<()> {
        let Some(running) = self.running.get_mut(&event.request) else {
            return ControlFlow::Break(());
        };
        let Event { id, logprob, top, text, .. } = event;
        if running.stream {
            let token = Token { id, logprob, top: top.to_vec() };
            let (choice, text) = (running.choice, text.to_owned());
            let _ = running.to.try_send(Piece::Token { choice, token, text });
        } else if !top.is_empty() {
            running.tops.push(top.to_vec());
        }
        running.goes_on(self.queue)
    }

    fn on_end(&mut self, key: usize, result: model::Result<Generated>) {
        let Some(running) = self.running.remove(&key) else { return };
        let Running { choice, to, stream, tops, failure, .. } = running;
        let end = match (failure, result) {
            (_, Err(error)) => Err(Failure::Model(error.to_string())),
            (Some(failure), Ok(_)) => Err(failure),
            (None, Ok(generated)) => Ok(End::new(generated, stream, tops)),
        };
        if let Err(Failure::Slow) = end {
            tracing::warn!("a client did not read its answer; it is broken off");
        }
        let _ = to.try_send(Piece::End { choice, end });
    }
}
