//! The loop: prompts enter free slots, every row gets a token a step, finished rows leave.

use super::cache::Cache;
use super::engine::Engine;
use super::sampling::{Chosen, Seen, Settings};
use super::source::{Job, Limits, PromptToken, Report, Source, nothing};
use super::text::Text;
use super::{Event, Finish, Generated, Sampling, StopRules};
use crate::decoder::{Decoder, Packed};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use torch_ext::attention::{Seqlens, Varlen, varlen};

/// Prompt tokens that enter in one forward pass, unless a single prompt has more.
const PREFILL_TOKENS: usize = 8192;

/// Fewer rows than this are not worth a second copy of the weights in the matrix kernels' layout.
const PACK_FROM_ROWS: usize = 8;

/// Positions of a prompt whose logits are held at a time.
const PROMPT_CHUNK: i64 = 256;

/// The cache's first length where nothing is known of the requests.
const FIRST_LEN: usize = 256;

/// A row being generated.
struct Row<'t> {
    key: usize,
    prompt: Rc<[i64]>,
    sampling: Sampling,
    stop: Arc<StopRules>,
    report: Report,
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
    error: Option<Error>,
}

/// One call of [`Engine::serve`].
pub(super) struct Run<'a, 's, 't> {
    decoder: &'a Decoder,
    source: &'s mut dyn Source<'t>,
    limits: Limits,
    max_rows: usize,
    like: (Kind, Device),
    cache: Cache,
    packed: Option<Packed>,
    /// Whether the packed weights are in use.
    packs: bool,
    seen: Option<Seen>,
    /// For the present rows; made anew when they change.
    settings: Option<Settings>,
    /// Slots without a row.
    free: Vec<usize>,
    /// A request that the last forward pass had no room for.
    held: Option<Job<'t>>,
    rows: Vec<Row<'t>>,
}

impl<'a, 's, 't> Run<'a, 's, 't> {
    pub(super) fn new(engine: &mut Engine<'a>, source: &'s mut dyn Source<'t>) -> Result<Self> {
        let decoder = engine.decoder;
        let expected = source.expected();
        let slots = expected.rows.min(engine.max_rows);
        let len = if expected.tokens == 0 { FIRST_LEN } else { expected.tokens };
        let len = len.min(engine.max_len);
        let like = (decoder.precision().kind(), decoder.device());
        let cache = match engine.cache.take() {
            Some(cache) if cache.fits(slots, len) => cache,
            _ => Cache::new(decoder.config(), slots.max(1), len, like, engine.kernels),
        };
        let mut run = Self {
            decoder,
            source,
            limits: engine.limits(),
            max_rows: engine.max_rows,
            like,
            packed: engine.packed.take(),
            packs: false,
            seen: None,
            settings: None,
            free: (0..cache.slots().min(engine.max_rows)).rev().collect(),
            cache,
            held: None,
            rows: Vec::new(),
        };
        if slots >= PACK_FROM_ROWS {
            run.pack(slots)?;
        }
        Ok(run)
    }

    pub(super) fn into_parts(self) -> (Cache, Option<Packed>) {
        (self.cache, self.packed)
    }

    fn pack(&mut self, rows: usize) -> Result<()> {
        let before = self.packed.take();
        self.packed = self.decoder.pack(rows as i64, before)?;
        self.packs = true;
        Ok(())
    }

    fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref().filter(|_| self.packs)
    }

    pub(super) fn run(&mut self) -> Result<()> {
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

    /// Lets new requests into free slots, as many as one forward pass takes. False if none entered.
    fn admit(&mut self) -> Result<bool> {
        let entered = self.rows.len();
        let mut prompts = Prompts::default();
        while self.rows.len() < self.max_rows {
            let idle = self.rows.is_empty();
            let Some(job) = self.held.take().or_else(|| self.source.next(idle)) else { break };
            let checked = self.limits.check(&job.request);
            if let Err(error) = checked.and_then(|()| job.stop.check(job.text.is_some())) {
                self.source.on_end(job.key, Err(error));
                continue;
            }
            if !prompts.admit(&job.request.ids) {
                self.held = Some(job);
                break;
            }
            if job.request.max_new_tokens == 0 && !job.report.prompt {
                self.source.on_end(job.key, Ok(nothing(job.text.is_some())));
                continue;
            }
            self.enter(job, &mut prompts);
        }
        if self.rows.len() == entered {
            return Ok(false);
        }
        self.settings = None;
        if !self.packs && self.rows.len() >= PACK_FROM_ROWS {
            self.pack(self.max_rows)?;
        }
        self.prefill(entered, &prompts)?;
        Ok(true)
    }

    /// Gives a request a row and a slot, for which the cache may have to grow.
    fn enter(&mut self, job: Job<'t>, prompts: &mut Prompts) {
        let Job { key, request, stop, text, report } = job;
        let (len, context) = (request.ids.len(), self.limits.context);
        let limit = request.max_new_tokens.min(context - len);
        let slot = self.slot(len + limit);
        let prompt: Rc<[i64]> = request.ids.into();
        prompts.add(&prompt, self.rows.len());
        if request.sampling.repetition_penalty != 1.0 && self.seen.is_none() {
            let vocab = self.limits.vocab;
            self.seen = Some(Seen::new(self.cache.slots(), vocab, self.like.1));
        }
        if let Some(seen) = &self.seen {
            seen.start(slot, &prompt);
        }
        self.rows.push(Row {
            key,
            cached: len,
            prompt,
            sampling: request.sampling,
            stop,
            report,
            slot,
            limit,
            ids: Vec::new(),
            logprobs: Vec::new(),
            text: text.map(Text::new),
            finish: None,
            error: None,
        });
    }

    /// A free slot for a row of `len` tokens.
    fn slot(&mut self, len: usize) -> usize {
        let (slots, held) = (self.cache.slots(), self.cache.len());
        let more_slots = if self.free.is_empty() { 2 * slots } else { slots }.min(self.max_rows);
        let more_len = if len > held { len.max(2 * held) } else { held };
        if more_slots > slots || more_len > held {
            self.cache.grow(more_slots.max(slots), more_len.min(self.limits.context));
            if let Some(seen) = &mut self.seen {
                seen.grow(self.cache.slots());
            }
            self.free.splice(0..0, (slots..self.cache.slots()).rev());
        }
        self.free.pop().expect("fewer rows than slots")
    }

    /// Brings the prompts of the rows from `entered` on into the cache, as one flat row, and samples their first tokens.
    fn prefill(&mut self, entered: usize, prompts: &Prompts) -> Result<()> {
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut cu = vec![0];
        for (prompt, row) in &prompts.different {
            let slot = self.rows[*row].slot;
            ids.extend_from_slice(prompt);
            positions.extend(0..prompt.len() as i64);
            slots.resize(ids.len(), slot as i64);
            cu.push(ids.len() as i64);
        }
        let last: Vec<i64> = cu[1..].iter().map(|end| end - 1).collect();
        let seqlens = Seqlens::new(cu.clone())?;
        let places = self.cache.places(&slots, &positions);
        let [ids, positions, last, of] = [ids, positions, last, prompts.of.clone()]
            .map(|list| Tensor::from_slice(&list).to_device(self.like.1));
        let attend = |layer, q: &Tensor, k: &Tensor, v: &Tensor, options: &Varlen| {
            self.cache.store(layer, &places, k, v);
            Ok(varlen(q, k, v, &seqlens, options)?)
        };
        let hidden = self.decoder.hidden_with(&ids, &positions, self.packed(), attend)?;
        for (row, &prompt) in self.rows[entered..].iter().zip(&prompts.of) {
            let source = self.rows[prompts.different[prompt as usize].1].slot;
            if source != row.slot {
                self.cache.copy_slot(source, row.slot, row.cached);
            }
        }
        self.report_prompts(entered, prompts, &cu, &hidden)?;
        let hidden = self.decoder.normalise(&hidden.index_select(0, &last))?;
        let logits = self.logits(&hidden)?.index_select(0, &of);
        let rows: Vec<usize> = (entered..self.rows.len()).collect();
        let settings = self.settings_of(&rows);
        self.choose(&rows, &logits, &settings)
    }

    /// Tells the log-probabilities of the prompts' tokens to the rows that want them. `hidden [T, D]` is of the prompts one
    /// after another, each from `cu[i]`.
    fn report_prompts(
        &mut self,
        entered: usize,
        prompts: &Prompts,
        cu: &[i64],
        hidden: &Tensor,
    ) -> Result<()> {
        let wanted: Vec<(usize, usize)> = (entered..self.rows.len())
            .filter(|&row| self.rows[row].report.prompt)
            .map(|row| (row, prompts.of[row - entered] as usize))
            .collect();
        for (row, prompt) in wanted {
            let (ids, top) = (Rc::clone(&self.rows[row].prompt), self.rows[row].report.top);
            let of_prompt = hidden.narrow(0, cu[prompt], ids.len() as i64 - 1);
            let told = self.prompt_tokens(&ids, &of_prompt, top)?;
            self.source.on_prompt(self.rows[row].key, told);
        }
        Ok(())
    }

    /// Of hidden states `[N - 1, D]` of a prompt of N tokens, all but the last.
    fn prompt_tokens(&self, ids: &[i64], hidden: &Tensor, top: usize) -> Result<Vec<PromptToken>> {
        let mut tokens = vec![PromptToken { id: ids[0], logprob: None, top: Vec::new() }];
        let count = hidden.size()[0];
        for start in (0..count).step_by(PROMPT_CHUNK as usize) {
            let len = PROMPT_CHUNK.min(count - start);
            let logits = self.logits(&self.decoder.normalise(&hidden.narrow(0, start, len))?)?;
            let all = logits.to_kind(Kind::Float).log_softmax(-1, Kind::Float);
            let next = &ids[start as usize + 1..=(start + len) as usize];
            let places = Tensor::from_slice(next).view([-1, 1]).to_device(self.like.1);
            let logprobs: Vec<f32> = Vec::try_from(all.gather(-1, &places, false).flatten(0, 1))?;
            let tops = Settings::most_probable(&all, top)?;
            let new = next.iter().zip(logprobs).zip(tops);
            tokens.extend(new.map(|((&id, logprob), top)| PromptToken {
                id,
                logprob: Some(logprob),
                top,
            }));
        }
        Ok(tokens)
    }

    fn settings_of(&self, rows: &[usize]) -> Settings {
        let sampling: Vec<_> = rows.iter().map(|&row| &self.rows[row].sampling).collect();
        Settings::new(&sampling, self.limits.vocab, self.like.1)
    }

    /// Samples a token for each of these rows from its row of `logits`.
    fn choose(&mut self, rows: &[usize], logits: &Tensor, settings: &Settings) -> Result<()> {
        let steps: Vec<usize> = rows.iter().map(|&row| self.rows[row].ids.len()).collect();
        let seen = self.seen.as_ref().map(|seen| seen.slots(&self.slots(rows)));
        let chosen = settings.choose(logits, seen.as_ref(), &steps)?;
        let tops: Vec<usize> = rows.iter().map(|&row| self.rows[row].report.top).collect();
        let tops = settings.top(logits, &tops)?;
        self.accept(rows, &chosen, &tops);
        Ok(())
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
        let hidden = self.decoder.hidden_with(&ids, &positions, self.packed(), attend)?;
        let hidden = self.decoder.normalise(&hidden)?;
        let logits = self.logits(&hidden)?;
        for row in &mut self.rows {
            row.cached += 1;
        }
        let settings = self.settings.take().unwrap_or_else(|| self.settings_of(&all));
        self.choose(&all, &logits, &settings)?;
        self.settings = Some(settings);
        Ok(())
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match self.packed() {
            Some(packed) => packed.logits(hidden),
            None => self.decoder.logits(hidden),
        }
    }

    /// Gives each row its token, and marks the rows that end with it.
    fn accept(&mut self, rows: &[usize], chosen: &Chosen, tops: &[Vec<(i64, f32)>]) {
        for (i, &row) in rows.iter().enumerate() {
            let (id, logprob) = (chosen.ids[i], chosen.logprobs[i]);
            let row = &mut self.rows[row];
            if row.limit == 0 {
                // It was here for its prompt.
                row.finish = Some(Finish::Length);
                continue;
            }
            if !logprob.is_finite() {
                row.error = Some(Error::Request(format!(
                    "the model's logits are not finite at response token {}; its weights are damaged or its precision \
                     is too low",
                    row.ids.len()
                )));
                row.finish = Some(Finish::Cancelled);
                continue;
            }
            row.take(id, logprob);
            let (request, finish) = (row.key, row.finish);
            let text = match &mut row.text {
                Some(text) => text.take_shown(&row.stop.strings, finish.is_some()),
                None => "",
            };
            let top = tops.get(i).map_or(&[][..], Vec::as_slice);
            let flow = self.source.on_token(Event { request, id, logprob, top, text, finish });
            if flow.is_break() && row.finish.is_none() {
                row.finish = Some(Finish::Cancelled);
            }
        }
    }

    /// Takes finished rows out.
    fn leave(&mut self) {
        for index in (0..self.rows.len()).rev() {
            if self.rows[index].finish.is_some() {
                let row = self.rows.swap_remove(index);
                self.free.push(row.slot);
                self.source.on_end(row.key, row.into_result());
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
struct Prompts {
    /// Those that differ, each with the first row that has it.
    different: Vec<(Rc<[i64]>, usize)>,
    /// For every entering row the index of its prompt among those.
    of: Vec<i64>,
    index: HashMap<Rc<[i64]>, i64>,
    tokens: usize,
}

impl Prompts {
    /// Whether one forward pass takes this prompt too.
    fn admit(&self, ids: &[i64]) -> bool {
        self.tokens == 0
            || self.index.contains_key(ids)
            || self.tokens + ids.len() <= PREFILL_TOKENS
    }

    fn add(&mut self, ids: &Rc<[i64]>, row: usize) {
        let next = self.different.len() as i64;
        let prompt = *self.index.entry(Rc::clone(ids)).or_insert(next);
        if prompt == next {
            self.different.push((Rc::clone(ids), row));
            self.tokens += ids.len();
        }
        self.of.push(prompt);
    }
}

impl Row<'_> {
    /// Appends a token and decides whether the row ends.
    fn take(&mut self, id: i64, logprob: f32) {
        let stop = &self.stop;
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

    fn into_result(self) -> Result<Generated> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let cancelled = self.finish == Some(Finish::Cancelled);
        let text = self.text.map(|mut text| {
            if cancelled {
                text.finish(&self.stop.strings);
            }
            text.into_string()
        });
        let finish = self.finish.unwrap_or(Finish::Length);
        Ok(Generated { ids: self.ids, text, logprobs: self.logprobs, finish })
    }
}
