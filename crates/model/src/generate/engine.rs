//! The engine: what stays between runs, and a run over a list of requests.

use super::cache::Cache;
use super::run::Run;
use super::source::{Expected, Finite, Limits, Source};
use super::{Generated, NewTextDecoder, OnToken, Request, StopRules};
use crate::decoder::{Decoder, Packed};
use crate::error::{Error, Result};
use std::sync::Arc;
use tch::no_grad;

/// Generates for many prompts at once over one key-value cache.
///
/// New prompts go through the model as one flat row without padding, equal ones once; then every active row gets one token
/// a step. A row that ends leaves its slot of the cache to the next request, and no other row is copied (on CUDA the rows
/// behind it close the gap).
#[derive(Debug)]
pub struct Engine<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) max_rows: usize,
    pub(super) max_len: usize,
    pub(super) cache: Option<Cache>,
    pub(super) packed: Option<Packed>,
    /// Whether the CPU's own attention serves where it can; tests turn it off to take CUDA's way on the CPU.
    pub(super) kernels: bool,
}

impl<'a> Engine<'a> {
    /// An engine of at most `max_rows` rows at a time, each of at most `max_len` tokens of prompt and response.
    ///
    /// Memory for the cache is taken by the first [`generate`](Self::generate), as much as its requests need; by
    /// [`serve`](Self::serve) as they come.
    ///
    /// # Errors
    /// If either is 0 or `max_len` is beyond the model's `max_position_embeddings`; for a reward model.
    pub fn new(decoder: &'a Decoder, max_rows: usize, max_len: usize) -> Result<Self> {
        let _ = decoder.head()?;
        let positions = decoder.config().max_position_embeddings as usize;
        if max_rows == 0 || max_len == 0 {
            return Err(Error::Request("an engine needs at least one row and one token".into()));
        }
        if max_len > positions {
            return Err(Error::Request(format!(
                "a context of {max_len} tokens is beyond the model's max_position_embeddings of {positions}"
            )));
        }
        Ok(Self { decoder, max_rows, max_len, cache: None, packed: None, kernels: true })
    }

    #[cfg(test)]
    pub(super) fn without_kernels(mut self) -> Self {
        self.kernels = false;
        self
    }

    /// What a request to this engine may be.
    pub fn limits(&self) -> Limits {
        Limits { vocab: self.decoder.config().vocab_size, context: self.max_len }
    }

    /// Continues every request; the results are in the order of the requests.
    ///
    /// More requests than rows wait for a row to become free. The cache memory stays with the engine between calls; so does,
    /// on the CPU for 8 rows and more, a second copy of the weights in the layout of the matrix kernels, made anew when
    /// weights have changed.
    /// Runs without gradients and without dropout, whatever the decoder's mode.
    ///
    /// A response depends on its request and the weights. What shares its batch changes the logits by rounding only,
    /// and the random numbers not at all.
    ///
    /// # Errors
    /// Names the request for an empty prompt, a prompt that fills the context, a token outside the vocabulary or
    /// settings out of range; nothing has been generated then. Logits that are not finite end the run.
    pub fn generate(
        &mut self,
        requests: &[Request],
        stop: &StopRules,
        text: Option<NewTextDecoder<'_, '_>>,
        on_token: Option<OnToken<'_>>,
    ) -> Result<Vec<Generated>> {
        stop.check(text.is_some())?;
        let limits = self.limits();
        for (i, request) in requests.iter().enumerate() {
            limits
                .check(request)
                .map_err(|error| Error::Request(format!("request {i}: {error}")))?;
        }
        let total = |r: &Request| self.max_len.min(r.ids.len().saturating_add(r.max_new_tokens));
        let expected = Expected {
            rows: self.max_rows.min(requests.len()),
            tokens: requests.iter().map(total).max().unwrap_or(0),
        };
        let mut source = Finite {
            requests,
            expected,
            stop: Arc::new(stop.clone()),
            new_text: text,
            on_token,
            taken: 0,
            results: requests.iter().map(|_| None).collect(),
            error: None,
        };
        self.serve(&mut source)?;
        match source.error {
            Some(error) => Err(error),
            None => Ok(source.results.into_iter().flatten().collect()),
        }
    }

    /// Continues the requests that `source` gives for as long as it gives some: each enters between two steps as soon as a row
    /// is free, and leaves when its response ends. Otherwise as [`generate`](Self::generate), which is this over a list;
    /// the cache and the second copy of the weights grow and are made as the requests need them.
    ///
    /// # Errors
    /// libtorch's. What is wrong with one request goes to [`Source::on_end`] and ends no other.
    pub fn serve(&mut self, source: &mut dyn Source<'_>) -> Result<()> {
        let mut run = Run::new(self, source)?;
        let done = no_grad(|| run.run());
        let (cache, packed) = run.into_parts();
        (self.cache, self.packed) = (Some(cache), packed);
        done
    }
}
