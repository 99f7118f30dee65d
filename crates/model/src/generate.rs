//! Text generation with a key-value cache: ragged prompts without padding, rows that leave and enter as they go.

mod cache;
mod engine;
mod run;
mod sampling;
mod source;
#[cfg(test)]
mod tests;
mod text;

pub use engine::Engine;
pub use source::{Expected, Job, Limits, PromptToken, Report, Source};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// How the next token is chosen.
///
/// The logits pass through these steps in this order, as in Hugging Face transformers: repetition penalty,
/// temperature, top-k, top-p, min-p. `temperature` 0 means greedy: the highest logit after the repetition penalty, the
/// lowest id among equals; the other settings then have no effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits, from 1e-6 to 1e6; 0 is greedy.
    pub temperature: f64,
    /// Keep the k highest logits (and all equal to the k-th).
    pub top_k: Option<usize>,
    /// Keep the smallest set of most probable tokens whose mass reaches p, at least one.
    pub top_p: Option<f64>,
    /// Keep tokens at least this probable relative to the most probable one.
    pub min_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the response so far; 1 is off.
    pub repetition_penalty: f64,
    /// With the position in the response, decides every random number of this sequence, and nothing else does:
    /// neither the batch nor the order of requests.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The most probable token at each step.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the settings are in range.
    ///
    /// # Errors
    /// Names the first setting that is not, its value and its range.
    pub fn check(&self) -> Result<()> {
        let fail = |name: &str, value: String, range: &str| {
            Err(Error::Request(format!("`{name}` is {value}; it must be {range}")))
        };
        let (temperature, penalty) = (self.temperature, self.repetition_penalty);
        if temperature != 0.0 && !(1e-6..=1e6).contains(&temperature) {
            return fail("temperature", temperature.to_string(), "0 (greedy) or from 1e-6 to 1e6");
        }
        if self.top_k == Some(0) {
            return fail("top_k", "0".into(), "at least 1, or absent");
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return fail("top_p", p.to_string(), "above 0 and at most 1");
        }
        if let Some(p) = self.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return fail("min_p", p.to_string(), "from 0 to 1");
        }
        if !(penalty.is_finite() && penalty > 0.0) {
            return fail("repetition_penalty", penalty.to_string(), "above 0 (1 is off)");
        }
        Ok(())
    }
}

/// When a response ends, other than by length.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRules {
    /// The response ends with the first of these tokens, which is part of `ids` and not of `text`.
    pub ids: Vec<i64>,
    /// The response ends with the token that completes one of these strings; `text` ends before the string.
    /// Needs a [`TextDecoder`].
    pub strings: Vec<String>,
}

/// One prompt to continue.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub ids: Vec<i64>,
    /// At most this many tokens are generated; the engine's context may end the response earlier.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// By one of [`StopRules`].
    Stop,
    /// By `max_new_tokens` or the end of the context.
    Length,
    /// The caller's callback asked for it.
    Cancelled,
}

/// A finished response.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The sampled tokens, a stop token included.
    pub ids: Vec<i64>,
    /// The text, where a [`TextDecoder`] was given: without stop token and stop string.
    pub text: Option<String>,
    /// Natural-log probability of each token of `ids` under `softmax(logits / temperature)` in fp32: before the
    /// repetition penalty and before top-k, top-p and min-p take tokens away; at temperature 1 for greedy.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Turns the tokens of one response into text as they come.
pub trait TextDecoder {
    /// Takes the next token; returns the text that is complete now (never half a character).
    fn push(&mut self, id: i64) -> String;
    /// Returns what is left at the end.
    fn finish(&mut self) -> String;
}

/// Makes one [`TextDecoder`] for each response; the decoders may borrow what lives for `'t`.
pub type NewTextDecoder<'a, 't> = &'a dyn Fn() -> Box<dyn TextDecoder + 't>;

/// A token has been sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// Index of the request, or its [`Job::key`].
    pub request: usize,
    /// The token.
    pub id: i64,
    /// Its log-probability, as in [`Generated::logprobs`].
    pub logprob: f32,
    /// The most probable tokens at its place with their log-probabilities, the best first: as many as the job's [`Report`] asks
    /// for.
    pub top: &'a [(i64, f32)],
    /// New text, held back while it could be the start of a stop string; the last event carries the rest.
    pub text: &'a str,
    /// Set on the last event of a request.
    pub finish: Option<Finish>,
}

/// Called for every sampled token; `Break` ends that response.
pub type OnToken<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;
