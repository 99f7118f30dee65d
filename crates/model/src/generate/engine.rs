//! The loop: prompts enter free slots, every row gets a token a step, finished rows leave.

use super::cache::Cache;
use super::sampling::{Chosen, Seen, Settings};
use super::text::Text;
use super::{Event, Finish, Generated, NewTextDecoder, OnToken, Request, StopRules};
use crate::decoder::{Decoder, Packed};
use crate::error::{Error, Result};
use std::collections::{HashMap, VecDeque};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::attention::{Seqlens, Varlen, varlen};

/// Prompt tokens that enter in one forward pass, unless a single prompt has more.
const PREFILL_TOKENS: usize = 8192;

/// Generates for many prompts at once over one preallocated key-value cache.
///
/// New prompts go through the model as one flat row without padding, equal ones once; then every active row gets one token
/// a step. A row that ends leaves its slot of the cache to the next request, and no other row is copied (on CUDA the rows
/// behind it close the gap).
#[derive(Debug)]
pub struct Engine<'a> {
    decoder: &'a Decoder,
    max_rows: usize,
    max_len: usize,
    cache: Option<Cache>,
    packed: Option<Packed>,
    /// Whether the CPU's own attention serves where it can; tests turn it off to take CUDA's way on the CPU.
    kernels: bool,
}

/// Fewer rows than this are not worth a second copy of the weights in the matrix kernels' layout.
const PACK_FROM_ROWS: usize = 8;

impl<'a> Engine<'a> {
    /// An engine of at most `max_rows` rows at a time, each of at most `max_len` tokens of prompt and response.
    ///
    /// Memory for the cache is taken by the first [`generate`](Self::generate), as much as its requests need.
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
        self.check(requests, stop, text.is_some())?;
        let total = |r: &Request| self.max_len.min(r.ids.len().saturating_add(r.max_new_tokens));
        let longest = requests.iter().map(total).max().unwrap_or(0);
        let slots = self.max_rows.min(requests.len());
        let config = self.decoder.config();
        let like = (self.decoder.precision().kind(), self.decoder.device());
        let cache = match self.cache.take() {
            Some(cache) if cache.fits(slots, longest) => cache,
            _ => Cache::new(config, slots, longest, like, self.kernels),
        };
        let packs = slots >= PACK_FROM_ROWS;
        if packs {
            self.packed = self.decoder.pack(slots as i64, self.packed.take())?;
        }
        let penalised = requests.iter().any(|r| r.sampling.repetition_penalty != 1.0);
        let mut run = Run {
            decoder: self.decoder,
            packed: self.packed.as_ref().filter(|_| packs),
            max_len: self.max_len,
            like,
            requests,
            stop,
            new_text: text,
            on_token,
            cache,
            seen: penalised.then(|| Seen::new(slots, config.vocab_size, like.1)),
            settings: None,
            free: (0..slots).rev().collect(),
            waiting: (0..requests.len()).collect(),
            rows: Vec::new(),
            results: requests.iter().map(|_| None).collect(),
        };
        no_grad(|| run.run())?;
        let Run { results, cache, .. } = run;
        self.cache = Some(cache);
        Ok(results.into_iter().flatten().collect())
    }

    fn check(&self, requests: &[Request], stop: &StopRules, has_text: bool) -> Result<()> {
        if stop.strings.iter().any(String::is_empty) {
            return Err(Error::Request("a stop string is empty; leave it out".into()));
        }
        if !stop.strings.is_empty() && !has_text {
            return Err(Error::Request("stop strings need a text decoder".into()));
        }
        let vocab = self.decoder.config().vocab_size;
        for (i, request) in requests.iter().enumerate() {
            let fail = |problem: String| Err(Error::Request(format!("request {i}: {problem}")));
            if let Err(error) = request.sampling.check() {
                return fail(error.to_string());
            }
            let (len, max) = (request.ids.len(), self.max_len);
            if len == 0 {
                return fail("the prompt is empty; give it at least one token".into());
            }
            if len >= max {
                return fail(format!(
                    "the prompt of {len} tokens leaves no room for a response in a context of {max} tokens"
                ));
            }
            if let Some(id) = request.ids.iter().find(|id| !(0..vocab).contains(*id)) {
                return fail(format!(
                    "token id {id} is outside the model's vocabulary of {vocab}; is this the model's tokenizer?"
                ));
            }
        }
        Ok(())
    }
}

/// A row being generated.
struct Row<'t> {
    request: usize,
    /// Where it lies in the cache.
    slot: usize,
    /// Tokens in the cache.
    cached: usize,
    /// At most so many response tokens.
    limit: usize,
    ids: Vec<i64>,
    logprobs: Vec<f32>,
    text: Option<Text<'t>>,
    finish: Option<Finish>,
}

/// One call of [`Engine::generate`].
struct Run<'a, 'b, 't> {
    decoder: &'a Decoder,
    packed: Option<&'a Packed>,
    max_len: usize,
    like: (Kind, Device),
    requests: &'a [Request],
    stop: &'a StopRules,
    new_text: Option<NewTextDecoder<'a, 't>>,
    on_token: Option<OnToken<'b>>,
    cache: Cache,
    seen: Option<Seen>,
    /// For the present rows; made anew when they change.
    settings: Option<Settings>,
    /// Slots without a row.
    free: Vec<usize>,
    waiting: VecDeque<usize>,
    rows: Vec<Row<'t>>,
    results: Vec<Option<Generated>>,
}

impl<'t> Run<'_, '_, 't> {
    fn run(&mut self) -> Result<()> {
        loop {
            while self.admit()? {
                self.leave();
            }
            if self.rows.is_empty() {
                return Ok(());
            }
            self.line_up();
            self.step()?;
            self.leave();
        }
    }

    /// Lets waiting requests into free slots, as many as one forward pass takes. False if none entered.
    fn admit(&mut self) -> Result<bool> {
        let entered = self.rows.len();
        let mut prompts = Prompts::default();
        while let (Some(&slot), Some(&request)) = (self.free.last(), self.waiting.front()) {
            let ids = &self.requests[request].ids;
            if !prompts.admit(ids) {
                break;
            }
            self.waiting.pop_front();
            let row = self.new_row(request, slot);
            if row.limit == 0 {
                self.results[request] = Some(row.into_result(self.stop));
                continue;
            }
            self.free.pop();
            prompts.add(ids, self.rows.len());
            if let Some(seen) = &self.seen {
                seen.start(slot, ids);
            }
            self.rows.push(row);
        }
        if self.rows.len() == entered {
            return Ok(false);
        }
        self.settings = None;
        self.prefill(entered, &prompts)?;
        Ok(true)
    }

    fn new_row(&self, request: usize, slot: usize) -> Row<'t> {
        let Request { ids, max_new_tokens, .. } = &self.requests[request];
        Row {
            request,
            slot,
            cached: ids.len(),
            limit: (*max_new_tokens).min(self.max_len - ids.len()),
            ids: Vec::new(),
            logprobs: Vec::new(),
            text: self.new_text.map(|new| Text::new(new())),
            finish: None,
        }
    }

    /// Brings the prompts of the rows from `entered` on into the cache, as one flat row, and samples their first tokens.
    fn prefill(&mut self, entered: usize, prompts: &Prompts<'_>) -> Result<()> {
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut cu = vec![0];
        for &(prompt, row) in &prompts.different {
            let slot = self.rows[row].slot;
            ids.extend_from_slice(prompt);
            positions.extend(0..prompt.len() as i64);
            slots.resize(ids.len(), slot as i64);
            cu.push(ids.len() as i64);
        }
        let last: Vec<i64> = cu[1..].iter().map(|end| end - 1).collect();
        let seqlens = Seqlens::new(cu)?;
        let places = self.cache.places(&slots, &positions);
        let [ids, positions, last, of] = [ids, positions, last, prompts.of.clone()]
            .map(|list| Tensor::from_slice(&list).to_device(self.like.1));
        let attend = |layer, q: &Tensor, k: &Tensor, v: &Tensor, options: &Varlen| {
            self.cache.store(layer, &places, k, v);
            Ok(varlen(q, k, v, &seqlens, options)?)
        };
        let hidden = self.decoder.hidden_with(&ids, &positions, self.packed, attend)?;
        for (row, &prompt) in self.rows[entered..].iter().zip(&prompts.of) {
            let source = self.rows[prompts.different[prompt as usize].1].slot;
            if source != row.slot {
                self.cache.copy_slot(source, row.slot, row.cached);
            }
        }
        let hidden = self.decoder.normalise(&hidden.index_select(0, &last))?;
        let logits = self.logits(&hidden)?.index_select(0, &of);
        let rows: Vec<usize> = (entered..self.rows.len()).collect();
        let settings = self.settings_of(&rows, logits.size()[1]);
        self.choose(&rows, &logits, &settings)
    }

    fn settings_of(&self, rows: &[usize], vocab: i64) -> Settings {
        let sampling: Vec<_> =
            rows.iter().map(|&row| &self.requests[self.rows[row].request].sampling).collect();
        Settings::new(&sampling, vocab, self.like.1)
    }

    /// Samples a token for each of these rows from its row of `logits`.
    fn choose(&mut self, rows: &[usize], logits: &Tensor, settings: &Settings) -> Result<()> {
        let steps: Vec<usize> = rows.iter().map(|&row| self.rows[row].ids.len()).collect();
        let seen = self.seen.as_ref().map(|seen| seen.slots(&self.slots(rows)));
        let chosen = settings.choose(logits, seen.as_ref(), &steps)?;
        self.accept(rows, &chosen)
    }

    fn slots(&self, rows: &[usize]) -> Vec<i64> {
        rows.iter().map(|&row| self.rows[row].slot as i64).collect()
    }

    /// One token for every row.
    fn step(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let slots: Vec<usize> = self.rows.iter().map(|row| row.slot).collect();
        let cached: Vec<usize> = self.rows.iter().map(|row| row.cached).collect();
        let newest: Vec<i64> = self.rows.iter().filter_map(|row| row.ids.last().copied()).collect();
        if let Some(seen) = &self.seen {
            seen.add(&self.slots(&all), &newest);
        }
        let positions: Vec<i64> = cached.iter().map(|&len| len as i64).collect();
        let [ids, positions] =
            [newest, positions].map(|list| Tensor::from_slice(&list).to_device(self.like.1));
        let reach = self.cache.reach(self.decoder.config(), &slots, &cached);
        let attend = |layer, q: &Tensor, k: &Tensor, v: &Tensor, options: &Varlen| {
            self.cache.attend(layer, &reach, [q, k, v], options)
        };
        let hidden = self.decoder.hidden_with(&ids, &positions, self.packed, attend)?;
        let hidden = self.decoder.normalise(&hidden)?;
        let logits = self.logits(&hidden)?;
        for row in &mut self.rows {
            row.cached += 1;
        }
        let settings =
            self.settings.take().unwrap_or_else(|| self.settings_of(&all, logits.size()[1]));
        self.choose(&all, &logits, &settings)?;
        self.settings = Some(settings);
        Ok(())
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match self.packed {
            Some(packed) => packed.logits(hidden),
            None => self.decoder.logits(hidden),
        }
    }

    /// Gives each row its token, and marks the rows that end with it.
    fn accept(&mut self, rows: &[usize], chosen: &Chosen) -> Result<()> {
        for (i, &row) in rows.iter().enumerate() {
            let (id, logprob) = (chosen.ids[i], chosen.logprobs[i]);
            let row = &mut self.rows[row];
            if !logprob.is_finite() {
                return Err(Error::Request(format!(
                    "request {}: the model's logits are not finite at response token {}; its weights are damaged or \
                     its precision is too low",
                    row.request,
                    row.ids.len()
                )));
            }
            row.take(id, logprob, self.stop);
            if let Some(on_token) = &mut self.on_token {
                let (request, finish) = (row.request, row.finish);
                let text = match &mut row.text {
                    Some(text) => text.take_shown(&self.stop.strings, finish.is_some()),
                    None => "",
                };
                let flow = on_token(Event { request, id, logprob, text, finish });
                if flow.is_break() && row.finish.is_none() {
                    row.finish = Some(Finish::Cancelled);
                }
            }
        }
        Ok(())
    }

    /// Takes finished rows out.
    fn leave(&mut self) {
        for index in (0..self.rows.len()).rev() {
            if self.rows[index].finish.is_some() {
                let row = self.rows.swap_remove(index);
                self.free.push(row.slot);
                let request = row.request;
                self.results[request] = Some(row.into_result(self.stop));
                self.settings = None;
            }
        }
    }

    /// Moves rows so that row i lies in slot i, where the cache needs that.
    fn line_up(&mut self) {
        if self.cache.takes_any_slot() {
            return;
        }
        let count = self.rows.len();
        for row in &mut self.rows {
            if row.slot >= count
                && let Some(free) = self.free.iter_mut().find(|free| **free < count)
            {
                self.cache.copy_slot(row.slot, *free, row.cached);
                if let Some(seen) = &self.seen {
                    seen.copy_slot(row.slot, *free);
                }
                std::mem::swap(&mut row.slot, free);
                self.settings = None;
            }
        }
        if !self.rows.is_sorted_by_key(|row| row.slot) {
            self.rows.sort_by_key(|row| row.slot);
            self.settings = None;
        }
    }
}

/// The prompts that enter together.
#[derive(Default)]
struct Prompts<'a> {
    /// Those that differ, each with the first row that has it.
    different: Vec<(&'a [i64], usize)>,
    /// For every entering row the index of its prompt among those.
    of: Vec<i64>,
    index: HashMap<&'a [i64], i64>,
    tokens: usize,
}

impl<'a> Prompts<'a> {
    /// Whether one forward pass takes this prompt too.
    fn admit(&self, ids: &[i64]) -> bool {
        self.tokens == 0
            || self.index.contains_key(ids)
            || self.tokens + ids.len() <= PREFILL_TOKENS
    }

    fn add(&mut self, ids: &'a [i64], row: usize) {
        let next = self.different.len() as i64;
        let prompt = *self.index.entry(ids).or_insert(next);
        if prompt == next {
            self.different.push((ids, row));
            self.tokens += ids.len();
        }
        self.of.push(prompt);
    }
}

impl Row<'_> {
    /// Appends a token and decides whether the row ends.
    fn take(&mut self, id: i64, logprob: f32, stop: &StopRules) {
        self.ids.push(id);
        self.logprobs.push(logprob);
        let by_id = stop.ids.contains(&id);
        let by_string = match &mut self.text {
            Some(text) if !by_id => text.push(id, &stop.strings),
            _ => false,
        };
        if by_id || by_string {
            self.finish = Some(Finish::Stop);
        } else if self.ids.len() == self.limit {
            self.finish = Some(Finish::Length);
        }
        // What the decoder held back may be text; after a stop string it is not wanted.
        if self.finish.is_some()
            && !by_string
            && let Some(text) = &mut self.text
            && text.finish(&stop.strings)
        {
            self.finish = Some(Finish::Stop);
        }
    }

    fn into_result(self, stop: &StopRules) -> Generated {
        let cancelled = self.finish == Some(Finish::Cancelled);
        let text = self.text.map(|mut text| {
            if cancelled {
                text.finish(&stop.strings);
            }
            text.into_string()
        });
        let finish = self.finish.unwrap_or(Finish::Length);
        Generated { ids: self.ids, text, logprobs: self.logprobs, finish }
    }
}
