//! A model's thread: it takes requests from the queue into the engine's free rows, and tells what becomes of them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Instant;

use data::tokenizer::Tokenizer;
use model::generate::{Event, Generated, Job, PromptToken, Source};
use training::respond::Streamed;

use super::mailbox::Sender;
use super::queue::{End, Failure, Queue, Telling, Token, Work};

/// An answer being generated.
struct Running {
    to: Sender,
    telling: Telling,
    deadline: Instant,
    tops: Vec<Vec<(i64, f32)>>,
    failure: Option<Failure>,
}

impl Running {
    /// Whether the answer is still wanted.
    fn goes_on(&mut self, queue: &Queue) -> ControlFlow<()> {
        if self.to.has_left() {
            return ControlFlow::Break(());
        }
        let now = Instant::now();
        self.failure = if now >= self.deadline {
            Some(Failure::Timeout)
        } else if self.to.waits_for(now, queue.patience) {
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
            if work.to.has_left() {
                continue;
            }
            let Work { request, stop, report, telling, to, deadline } = work;
            if Instant::now() >= deadline {
                to.end(Err(Failure::Timeout));
                continue;
            }
            let key = self.next_key;
            self.next_key += 1;
            let context: Vec<u32> = request.ids.iter().map(|id| *id as u32).collect();
            let text = Box::new(Streamed::new(self.tokenizer.stream_after(&context, true)));
            let running = Running { to, telling, deadline, tops: Vec::new(), failure: None };
            self.running.insert(key, running);
            return Some(Job { key, request, stop, text: Some(text), report });
        }
    }

    fn on_prompt(&mut self, key: usize, tokens: Vec<PromptToken>) {
        if let Some(running) = self.running.get(&key) {
            running.to.prompt(tokens);
        }
    }

    fn on_token(&mut self, event: Event<'_>) -> ControlFlow<()> {
        let Some(running) = self.running.get_mut(&event.request) else {
            return ControlFlow::Break(());
        };
        let Event { id, logprob, top, text, .. } = event;
        match running.telling {
            Telling::Nothing if top.is_empty() => {}
            Telling::Nothing => running.tops.push(top.to_vec()),
            Telling::Text if text.is_empty() => {}
            Telling::Text => running.to.token(text, None),
            Telling::Tokens => {
                running.to.token(text, Some(Token { id, logprob, top: top.to_vec() }));
            }
        }
        running.goes_on(self.queue)
    }

    fn on_end(&mut self, key: usize, result: model::Result<Generated>) {
        let Some(running) = self.running.remove(&key) else { return };
        let Running { to, telling, tops, failure, .. } = running;
        let end = match (failure, result) {
            (_, Err(error)) => Err(Failure::Model(error.to_string())),
            (Some(failure), Ok(_)) => Err(failure),
            (None, Ok(generated)) => Ok(End::new(generated, telling, tops)),
        };
        if let Err(Failure::Slow) = end {
            tracing::warn!("a client did not read its answer; it is broken off");
        }
        to.end(end);
    }
}
