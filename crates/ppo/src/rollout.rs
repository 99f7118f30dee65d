//! Sampling responses, and laying them out for the models.

use data::batch::Branches;
use data::dataset::shuffle;
use data::tokenizer::Tokenizer;
use model::Decoder;
use model::generate::{Request, Sampling};
use serde::{Deserialize, Serialize};
use training::prompts::Prompt;
use training::respond::{Responder, Response, Stop, sample_seed};

use crate::config::Rollout;

/// One sampled response.
#[derive(Debug, Clone)]
pub(crate) struct Episode {
    /// Index of its prompt.
    pub(crate) prompt: usize,
    /// Its tokens, a stop token included.
    pub(crate) ids: Vec<i64>,
    /// The log-probability of each when it was sampled.
    pub(crate) sampled: Vec<f32>,
    pub(crate) text: String,
    /// Whether it ended by itself, not by its length.
    pub(crate) ended: bool,
}

/// Which prompts come next: all of them in an order of their own, and then in another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PromptCursor {
    epoch: u64,
    next: usize,
}

impl PromptCursor {
    /// The next `count` of `total` prompts.
    pub(crate) fn take(&mut self, count: usize, total: usize, seed: u64) -> Vec<usize> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let mut order: Vec<usize> = (0..total).collect();
            shuffle(&mut order, [seed, self.epoch, 0, 3]);
            let end = (self.next + count - taken.len()).min(total);
            taken.extend_from_slice(&order[self.next..end]);
            self.next = end;
            if end == total {
                *self = Self { epoch: self.epoch + 1, next: 0 };
            }
        }
        taken
    }

    /// Passes over the prompts.
    pub(crate) fn epochs(&self, total: usize) -> f64 {
        self.epoch as f64 + self.next as f64 / total as f64
    }
}

/// Samples responses to `prompts[chosen]`, the samples of a prompt one after another. `first` is the number of the first
/// episode in the whole run: it decides the random numbers.
///
/// # Errors
/// Logits that are not finite.
pub(crate) fn rollout(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    chosen: &[usize],
    settings: &Rollout,
    (seed, first): (u64, u64),
) -> anyhow::Result<Vec<Episode>> {
    let samples = settings.samples_per_prompt;
    let of_prompt = |prompt| std::iter::repeat_n(prompt, samples);
    let asked: Vec<usize> = chosen.iter().copied().flat_map(of_prompt).collect();
    let requests: Vec<Request> = asked
        .iter()
        .zip(first..)
        .map(|(&prompt, episode)| Request {
            ids: prompts[prompt].ids.clone(),
            max_new_tokens: settings.max_new_tokens,
            sampling: Sampling {
                temperature: settings.temperature,
                seed: sample_seed(seed, episode),
                ..Sampling::default()
            },
        })
        .collect();
    let stop = Stop { strings: &settings.stop_strings, ignore_eos: settings.ignore_eos };
    let mut model = Responder::new(decoder, tokenizer, stop, settings.batch_rows)?;
    let responses = model.answer(&requests)?;
    let episode = |(prompt, Response { ids, logprobs, text, ended })| Episode {
        prompt,
        ids,
        sampled: logprobs,
        text,
        ended,
    };
    Ok(asked.into_iter().zip(responses).map(episode).collect())
}

/// Episodes that go through the models together, a prompt's tokens once for all of its responses.
#[derive(Debug)]
pub(crate) struct MicroBatch {
    pub(crate) rows: Branches,
    /// In the order of the rows' responses.
    pub(crate) episodes: Vec<usize>,
}

impl MicroBatch {
    /// Lays out `groups`, ranges of episodes that answer one prompt, as micro-batches of at most `most` tokens (more only for
    /// a single group).
    pub(crate) fn all(
        groups: &[std::ops::Range<usize>],
        episodes: &[Episode],
        prompts: &[Prompt],
        most: usize,
    ) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for group in groups {
            let prompt = &prompts[episodes[group.start].prompt].ids;
            let responses: Vec<&[i64]> =
                episodes[group.clone()].iter().map(|episode| episode.ids.as_slice()).collect();
            let tokens = prompt.len() + responses.iter().map(|ids| ids.len()).sum::<usize>();
            if all.last().is_none_or(|batch| batch.rows.num_tokens() + tokens > most) {
                all.push(Self { rows: Branches::new(), episodes: Vec::new() });
            }
            if let Some(batch) = all.last_mut() {
                batch.rows.push(prompt, &responses);
                batch.episodes.extend(group.clone());
            }
        }
        all
    }

    /// Response tokens.
    pub(crate) fn num_tokens(&self) -> usize {
        self.rows.responses.iter().map(ExactSizeIterator::len).sum()
    }
}

/// The minibatches of each pass over a step's episodes: prompts with all of their responses, in another order each pass.
pub(crate) fn minibatches(
    episodes: &[Episode],
    prompts: &[Prompt],
    samples: usize,
    (passes, count, most): (usize, usize, usize),
    (seed, step): (u64, u64),
) -> Vec<Vec<Vec<MicroBatch>>> {
    let pass = |pass: usize| {
        let mut groups: Vec<std::ops::Range<usize>> =
            (0..episodes.len()).step_by(samples).map(|start| start..start + samples).collect();
        shuffle(&mut groups, [seed, step, pass as u64, 4]);
        let size = groups.len().div_ceil(count);
        groups.chunks(size).map(|chunk| MicroBatch::all(chunk, episodes, prompts, most)).collect()
    };
    (0..passes).map(pass).collect()
}
