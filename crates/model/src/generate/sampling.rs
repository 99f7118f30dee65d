//! Choosing the next token of every row in one pass over `[R, V]` logits.

use super::Sampling;
use crate::error::Result;
use crate::random::Philox;
use tch::{Device, Kind, Tensor};
use torch_ext::sample::{self, Sampled};

/// The settings of all rows, as tensors beside the logits.
#[derive(Debug)]
pub(super) struct Settings {
    seeds: Vec<u64>,
    /// 0 for greedy rows.
    temperatures: Vec<f32>,
    /// `[R, 1]`; 1 for greedy rows.
    temperature: Tensor,
    /// `[R]` bool, true for greedy rows; `None` where no row is.
    greedy: Option<Tensor>,
    all_greedy: bool,
    /// The largest k of any row, and each row's: `[R, 1]` i64, 0 for none.
    top_k: Option<(i64, Tensor)>,
    /// `[R, 1]`, above 1 for none.
    top_p: Option<Tensor>,
    /// Natural logarithm of each row's, `[R, 1]`, minus infinity for none.
    log_min_p: Option<Tensor>,
    /// `[R, 1]`, 1 for none.
    penalty: Option<Tensor>,
}

/// The chosen tokens.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) ids: Vec<i64>,
    pub(super) logprobs: Vec<f32>,
}

impl Settings {
    /// For rows with these settings, over a vocabulary of `vocab`.
    pub(super) fn new(rows: &[&Sampling], vocab: i64, device: Device) -> Self {
        let count = rows.len() as i64;
        let column = |of: &dyn Fn(&Sampling) -> f32| {
            let values: Vec<f32> = rows.iter().map(|row| of(row)).collect();
            Tensor::from_slice(&values).view([count, 1]).to_device(device)
        };
        let is_greedy = |row: &&Sampling| row.temperature == 0.0;
        let sampled = || rows.iter().filter(|row| !is_greedy(row));
        let greedy: Vec<bool> = rows.iter().map(is_greedy).collect();
        let k = |row: &Sampling| row.top_k.map_or(0, |k| (k as i64).min(vocab));
        let top_k = sampled().any(|row| row.top_k.is_some()).then(|| {
            let ks: Vec<i64> = rows.iter().map(|row| k(row)).collect();
            let most = ks.iter().copied().max().unwrap_or(1);
            (most, Tensor::from_slice(&ks).view([count, 1]).to_device(device))
        });
        Self {
            seeds: rows.iter().map(|row| row.seed).collect(),
            temperatures: rows.iter().map(|row| row.temperature as f32).collect(),
            temperature: column(&|row| {
                if is_greedy(&row) { 1.0 } else { row.temperature as f32 }
            }),
            all_greedy: greedy.iter().all(|&g| g),
            greedy: greedy
                .iter()
                .any(|&g| g)
                .then(|| Tensor::from_slice(&greedy).to_device(device)),
            top_k,
            top_p: sampled()
                .any(|row| row.top_p.is_some_and(|p| p < 1.0))
                .then(|| column(&|row| row.top_p.filter(|p| *p < 1.0).unwrap_or(2.0) as f32)),
            log_min_p: sampled()
                .any(|row| row.min_p.is_some_and(|p| p > 0.0))
                .then(|| column(&|row| row.min_p.unwrap_or(0.0).ln() as f32)),
            penalty: rows
                .iter()
                .any(|row| row.repetition_penalty != 1.0)
                .then(|| column(&|row| row.repetition_penalty as f32)),
        }
    }

    /// Chooses one token a row.
    ///
    /// `logits [R, V]` of any float kind; `seen [R, V]` bool marks tokens for the repetition penalty, needed only where a
    /// row has one; `steps` is each row's number of tokens sampled before.
    pub(super) fn choose(
        &self,
        logits: &Tensor,
        seen: Option<&Tensor>,
        steps: &[usize],
    ) -> Result<Chosen> {
        if logits.device() == Device::Cpu && self.takes_all_as_they_are() {
            let Sampled { ids, logprobs } =
                sample::rows(logits, &self.temperatures, &self.uniforms(steps))?;
            return Ok(Chosen { ids, logprobs });
        }
        let raw = logits.to_kind(Kind::Float);
        let penalised = match (&self.penalty, seen) {
            (Some(penalty), Some(seen)) => penalise(&raw, penalty, seen),
            _ => raw.shallow_clone(),
        };
        let ids = if self.all_greedy {
            penalised.argmax(-1, false)
        } else {
            let sampled = self.sample(&penalised, steps);
            match &self.greedy {
                Some(greedy) => penalised.argmax(-1, false).where_self(greedy, &sampled),
                None => sampled,
            }
        };
        let scaled = &raw / &self.temperature;
        let chosen = scaled.gather(-1, &ids.unsqueeze(-1), false).squeeze_dim(-1);
        let logprobs = chosen - scaled.logsumexp(-1, false);
        Ok(Chosen { ids: Vec::try_from(&ids)?, logprobs: Vec::try_from(&logprobs)? })
    }

    /// The most probable tokens of rows of `logits [R, V]` at the row's temperature, as many as `counts` says for each; no list
    /// at all where no row wants any.
    pub(super) fn top(&self, logits: &Tensor, counts: &[usize]) -> Result<Vec<Vec<(i64, f32)>>> {
        let Some(&most) = counts.iter().max().filter(|&&most| most > 0) else {
            return Ok(Vec::new());
        };
        let wanted: Vec<i64> =
            (0..counts.len() as i64).filter(|&row| counts[row as usize] > 0).collect();
        let rows = Tensor::from_slice(&wanted).to_device(logits.device());
        let scaled = logits.index_select(0, &rows).to_kind(Kind::Float)
            / self.temperature.index_select(0, &rows);
        let of_wanted = Self::most_probable(&scaled.log_softmax(-1, Kind::Float), most)?;
        let mut tops = vec![Vec::new(); counts.len()];
        for (row, mut top) in wanted.into_iter().zip(of_wanted) {
            top.truncate(counts[row as usize]);
            tops[row as usize] = top;
        }
        Ok(tops)
    }

    /// The `count` highest of each row of `logprobs [N, V]`, the highest first.
    pub(super) fn most_probable(logprobs: &Tensor, count: usize) -> Result<Vec<Vec<(i64, f32)>>> {
        let (rows, vocab) = logprobs.size2()?;
        let count = (count as i64).min(vocab);
        if count == 0 {
            return Ok(vec![Vec::new(); rows as usize]);
        }
        let (values, ids) = logprobs.topk(count, -1, true, true);
        let values: Vec<f32> = Vec::try_from(values.flatten(0, -1))?;
        let ids: Vec<i64> = Vec::try_from(ids.flatten(0, -1))?;
        let pairs: Vec<(i64, f32)> = ids.into_iter().zip(values).collect();
        Ok(pairs.chunks(count as usize).map(<[_]>::to_vec).collect())
    }

    /// Whether no setting but the temperature changes what may be sampled.
    fn takes_all_as_they_are(&self) -> bool {
        self.top_k.is_none()
            && self.top_p.is_none()
            && self.log_min_p.is_none()
            && self.penalty.is_none()
    }

    /// A number in [0, 1) for each row's next token.
    fn uniforms(&self, steps: &[usize]) -> Vec<f64> {
        let numbers = self.seeds.iter().zip(steps);
        numbers.map(|(&seed, &step)| Philox::new(seed).uniform(0, step as u64)).collect()
    }

    fn sample(&self, logits: &Tensor, steps: &[usize]) -> Tensor {
        let scores = self.keep(logits / &self.temperature);
        // Inverse of the cumulative distribution in the order of ids: the same for a row in any batch.
        let cumulative = scores.softmax(-1, Kind::Float).cumsum(-1, Kind::Double);
        let uniforms =
            Tensor::from_slice(&self.uniforms(steps)).view([-1, 1]).to_device(scores.device());
        let target = uniforms * cumulative.slice(-1, -1, None, 1);
        let last = scores.size()[1] - 1;
        target
            .searchsorted(&cumulative, false, true, "right", None::<Tensor>)
            .clamp_max(last)
            .squeeze_dim(-1)
    }

    /// Sets the scores of tokens that top-k, top-p and min-p take away to minus infinity.
    fn keep(&self, mut scores: Tensor) -> Tensor {
        if let Some((most, k)) = &self.top_k {
            let (highest, _) = scores.topk(*most, -1, true, true);
            let kth = highest.gather(-1, &(k - 1).clamp_min(0), false);
            let kth = kth.masked_fill(&k.eq(0), f64::NEG_INFINITY);
            let _ = scores.masked_fill_(&scores.lt_tensor(&kth), f64::NEG_INFINITY);
        }
        if let Some(p) = &self.top_p {
            let (sorted, ids) = scores.sort_stable(true, -1, true);
            let probabilities = sorted.softmax(-1, Kind::Float);
            // Mass of all more probable tokens: a token goes if they have reached p without it.
            let above = probabilities.cumsum(-1, Kind::Float) - &probabilities;
            let gone = above.ge_tensor(p);
            let gone = gone.zeros_like().scatter(-1, &ids, &gone);
            let _ = scores.masked_fill_(&gone, f64::NEG_INFINITY);
        }
        if let Some(log_min_p) = &self.log_min_p {
            let least = scores.amax([-1], true) + log_min_p;
            let _ = scores.masked_fill_(&scores.lt_tensor(&least), f64::NEG_INFINITY);
        }
        scores
    }
}

/// Paper: Keskar et al. 2019, arXiv:1909.05858, section 4.1, with the sign rule of Hugging Face: negative logits are
/// multiplied, positive ones divided.
fn penalise(logits: &Tensor, penalty: &Tensor, seen: &Tensor) -> Tensor {
    let lowered = (logits * penalty).where_self(&logits.lt(0.0), &(logits / penalty));
    lowered.where_self(seen, logits)
}

/// Which tokens each slot has seen, for the repetition penalty.
#[derive(Debug)]
pub(super) struct Seen(Tensor);

impl Seen {
    pub(super) fn new(slots: usize, vocab: i64, device: Device) -> Self {
        Self(Tensor::zeros([slots as i64, vocab], (Kind::Bool, device)))
    }

    /// Makes room for `slots`.
    pub(super) fn grow(&mut self, slots: usize) {
        let (held, vocab) = (self.0.size()[0], self.0.size()[1]);
        if slots as i64 > held {
            let more = Tensor::zeros([slots as i64 - held, vocab], (Kind::Bool, self.0.device()));
            self.0 = Tensor::cat(&[&self.0, &more], 0);
        }
    }

    /// Starts a slot with a prompt.
    pub(super) fn start(&self, slot: usize, prompt: &[i64]) {
        let mut row = self.0.get(slot as i64);
        let _ = row.zero_();
        let ids = Tensor::from_slice(prompt).to_device(row.device());
        let _ = row.index_fill_(0, &ids, 1);
    }

    /// Adds one token to each of these slots.
    pub(super) fn add(&self, slots: &[i64], ids: &[i64]) {
        let [slots, ids] =
            [slots, ids].map(|list| Some(Tensor::from_slice(list).to_device(self.0.device())));
        let seen = Tensor::ones([1], (Kind::Bool, self.0.device()));
        let _ = self.0.shallow_clone().index_put_(&[slots, ids], &seen, false);
    }

    pub(super) fn copy_slot(&self, from: usize, to: usize) {
        self.0.get(to as i64).copy_(&self.0.get(from as i64));
    }

    /// Some slots.
    pub(super) fn slots(&self, slots: &[i64]) -> Tensor {
        self.0.index_select(0, &Tensor::from_slice(slots).to_device(self.0.device()))
    }
}
