//! Where an engine's work comes from, and where its results go.

use super::{Event, Finish, Generated, NewTextDecoder, OnToken, Request, StopRules, TextDecoder};
use crate::error::{Error, Result};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A request with all that is its own.
pub struct Job<'t> {
    /// What the source calls it: [`Event::request`].
    pub key: usize,
    /// The prompt and how to continue it.
    pub request: Request,
    /// When its response ends, other than by length.
    pub stop: Arc<StopRules>,
    /// Makes its tokens text; needed for stop strings.
    pub text: Option<Box<dyn TextDecoder + 't>>,
    /// What is told beside the tokens.
    pub report: Report,
}

/// What is told of a request beside the tokens of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// So many of the most probable tokens at every place, with their log-probabilities.
    pub top: usize,
    /// The log-probabilities of the prompt's tokens. A request of 0 new tokens goes through the model for them.
    pub prompt: bool,
}

/// How probable a token of a prompt was.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// The token.
    pub id: i64,
    /// Natural logarithm of its probability under `softmax(logits)` in fp32, whatever the request's temperature; `None` for
    /// the first token, which nothing predicts.
    pub logprob: Option<f32>,
    /// The most probable tokens at its place, the best first.
    pub top: Vec<(i64, f32)>,
}

/// How much room a run will need, as far as it is known: the cache's first size, which grows where it does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    /// Rows at a time.
    pub rows: usize,
    /// Tokens of prompt and response.
    pub tokens: usize,
}

/// Gives requests to [`Engine::serve`](super::Engine::serve) and takes what becomes of them, all on the engine's thread.
pub trait Source<'t> {
    /// What is known of the requests to come.
    fn expected(&self) -> Expected {
        Expected::default()
    }

    /// The next request. Asked for between steps as long as a row is free, so without waiting; but with `idle` no row is being
    /// generated, and the source may wait for a request. `None` with `idle` ends the run.
    fn next(&mut self, idle: bool) -> Option<Job<'t>>;

    /// Takes the log-probabilities of a prompt, where the job's [`Report`] asks for them: before its first token.
    fn on_prompt(&mut self, _key: usize, _prompt: Vec<PromptToken>) {}

    /// Takes a token; `Break` ends that response, and its row is free before the next step.
    fn on_token(&mut self, event: Event<'_>) -> ControlFlow<()>;

    /// Takes a finished response, or why there is none; the last that is told of a job.
    fn on_end(&mut self, key: usize, result: Result<Generated>);
}

/// What a request may be, in a model and a context of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of the vocabulary.
    pub vocab: i64,
    /// Tokens of prompt and response together.
    pub context: usize,
}

impl Limits {
    /// Whether a request can be answered.
    ///
    /// # Errors
    /// Says what is wrong: an empty prompt, one that fills the context, a token outside the vocabulary, settings out of
    /// range.
    pub fn check(&self, request: &Request) -> Result<()> {
        let fail = |problem: String| Err(Error::Request(problem));
        request.sampling.check()?;
        let (len, context, vocab) = (request.ids.len(), self.context, self.vocab);
        if len == 0 {
            return fail("the prompt is empty; give it at least one token".into());
        }
        if len >= context {
            return fail(format!(
                "the prompt of {len} tokens leaves no room for a response in a context of {context} tokens"
            ));
        }
        if let Some(id) = request.ids.iter().find(|id| !(0..vocab).contains(*id)) {
            return fail(format!(
                "token id {id} is outside the model's vocabulary of {vocab}; is this the model's tokenizer?"
            ));
        }
        Ok(())
    }
}

impl StopRules {
    /// Whether they can be followed; `has_text` where a [`TextDecoder`] is there.
    ///
    /// # Errors
    /// An empty string, or strings without text.
    pub fn check(&self, has_text: bool) -> Result<()> {
        if self.strings.iter().any(String::is_empty) {
            return Err(Error::Request("a stop string is empty; leave it out".into()));
        }
        if !self.strings.is_empty() && !has_text {
            return Err(Error::Request("stop strings need a text decoder".into()));
        }
        Ok(())
    }
}

/// A list of requests, and their results.
pub(super) struct Finite<'a, 'b, 't> {
    pub(super) requests: &'a [Request],
    pub(super) expected: Expected,
    pub(super) stop: Arc<StopRules>,
    pub(super) new_text: Option<NewTextDecoder<'a, 't>>,
    pub(super) on_token: Option<OnToken<'b>>,
    pub(super) taken: usize,
    pub(super) results: Vec<Option<Generated>>,
    /// The first that went wrong; it ends the run.
    pub(super) error: Option<Error>,
}

impl<'t> Source<'t> for Finite<'_, '_, 't> {
    fn expected(&self) -> Expected {
        self.expected
    }

    fn next(&mut self, _idle: bool) -> Option<Job<'t>> {
        let request = self.requests.get(self.taken).filter(|_| self.error.is_none())?;
        let key = self.taken;
        self.taken += 1;
        Some(Job {
            key,
            request: request.clone(),
            stop: Arc::clone(&self.stop),
            text: self.new_text.map(|new| new()),
            report: Report::default(),
        })
    }

    fn on_token(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match &mut self.on_token {
            _ if self.error.is_some() => ControlFlow::Break(()),
            Some(on_token) => on_token(event),
            None => ControlFlow::Continue(()),
        }
    }

    fn on_end(&mut self, key: usize, result: Result<Generated>) {
        match result {
            Ok(generated) => self.results[key] = Some(generated),
            Err(error) => {
                let error = Error::Request(format!("request {key}: {error}"));
                self.error.get_or_insert(error);
            }
        }
    }
}

/// A response that has no tokens.
pub(super) fn nothing(text: bool) -> Generated {
    let text = text.then(String::new);
    Generated { ids: Vec::new(), text, logprobs: Vec::new(), finish: Finish::Length }
}
