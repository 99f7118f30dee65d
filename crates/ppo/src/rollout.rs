//! Sampling responses, and laying them out for the models.

use data::batch::{Branches, Share};
use data::dataset::shuffle;
use data::tokenizer::Tokenizer;
use model::Decoder;
use model::generate::{Request, Sampling};
use serde::{Deserialize, Serialize};
use training::prompts::Prompt;
use training::respond::{Responder, Response, Stop, sample_seed};
use training::world::World;

use crate::config::Rollout;

/// One sampled response.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
/// episode in the whole run: it decides the random numbers. Each rank of `world` answers some of the prompts, about as many
/// tokens as the others, and all get all responses.
///
/// # Errors
/// Logits that are not finite; a rank that is gone.
pub(crate) fn rollout(
    world: &World,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    chosen: &[usize],
    settings: &Rollout,
    (seed, first): (u64, u64),
) -> anyhow::Result<Vec<Episode>> {
    let samples = settings.samples_per_prompt;
    let lengths: Vec<usize> = chosen.iter().map(|&prompt| prompts[prompt].ids.len()).collect();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    // Responses are as long as the longest prompt until more is known.
    let costs: Vec<usize> = lengths.iter().map(|own| own + samples * longest).collect();
    let place = |&index: &usize| (0..samples).map(move |sample| index * samples + sample);
    let own: Vec<usize> = own_part(&costs, world.share()).iter().flat_map(place).collect();
    let asked: Vec<usize> = own.iter().map(|episode| chosen[episode / samples]).collect();
    let requests: Vec<Request> = asked
        .iter()
        .zip(own.iter().map(|&episode| first + episode as u64))
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
    let mine: Vec<(usize, Episode)> =
        own.into_iter().zip(asked.into_iter().zip(responses).map(episode)).collect();
    let mut all = world.gather(mine)?.concat();
    all.sort_by_key(|(episode, _)| *episode);
    Ok(all.into_iter().map(|(_, episode)| episode).collect())
}

/// Which of things of so many tokens a rank takes, in their order: the longest first, each by the rank that has the least.
fn own_part(tokens: &[usize], share: Share) -> Vec<usize> {
    let mut by_length: Vec<usize> = (0..tokens.len()).collect();
    by_length.sort_by_key(|&index| (std::cmp::Reverse(tokens[index]), index));
    let mut loads = vec![0; share.size];
    let mut own = Vec::new();
    for index in by_length {
        let rank = (0..share.size).min_by_key(|&rank| (loads[rank], rank)).unwrap_or(0);
        loads[rank] += tokens[index];
        own.extend((rank == share.rank).then_some(index));
    }
    own.sort_unstable();
    own
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
}

/// What one optimiser step learns from.
#[derive(Debug)]
pub(crate) struct Minibatch {
    /// This rank's micro-batches.
    pub(crate) own: Vec<MicroBatch>,
    /// Response tokens of all ranks.
    pub(crate) num_tokens: usize,
}

impl Minibatch {
    /// Lays `groups` out as [`MicroBatch::all`] does, enough micro-batches for all ranks, and keeps this rank's: about as many
    /// tokens as the others have.
    pub(crate) fn new(
        groups: &[std::ops::Range<usize>],
        episodes: &[Episode],
        prompts: &[Prompt],
        most: usize,
        share: Share,
    ) -> Self {
        let responses = |group: &std::ops::Range<usize>| {
            episodes[group.clone()].iter().map(|episode| episode.ids.len()).sum::<usize>()
        };
        let prompt =
            |group: &std::ops::Range<usize>| prompts[episodes[group.start].prompt].ids.len();
        let num_tokens: usize = groups.iter().map(responses).sum();
        let all_tokens = num_tokens + groups.iter().map(prompt).sum::<usize>();
        let most = if share.size > 1 { most.min(all_tokens.div_ceil(share.size)) } else { most };
        let all = MicroBatch::all(groups, episodes, prompts, most);
        let tokens: Vec<usize> = all.iter().map(|batch| batch.rows.num_tokens()).collect();
        let mine = own_part(&tokens, share);
        let own = all.into_iter().enumerate().filter(|(index, _)| mine.contains(index));
        Self { own: own.map(|(_, batch)| batch).collect(), num_tokens }
    }
}

/// The minibatches of each pass over a step's episodes: prompts with all of their responses, in another order each pass.
pub(crate) fn minibatches(
    episodes: &[Episode],
    prompts: &[Prompt],
    samples: usize,
    (passes, count, most): (usize, usize, usize),
    (seed, step): (u64, u64),
    share: Share,
) -> Vec<Vec<Minibatch>> {
    let pass = |pass: usize| {
        let mut groups: Vec<std::ops::Range<usize>> =
            (0..episodes.len()).step_by(samples).map(|start| start..start + samples).collect();
        shuffle(&mut groups, [seed, step, pass as u64, 4]);
        let size = groups.len().div_ceil(count);
        let minibatch = |chunk| Minibatch::new(chunk, episodes, prompts, most, share);
        groups.chunks(size).map(minibatch).collect()
    };
    (0..passes).map(pass).collect()
}
