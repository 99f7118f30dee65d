//! Prompts that models are asked, and their answers.

use std::path::PathBuf;

use artifact::prompts::{self, PromptRow};
use data::checker::Checker;
use data::constitution::Language;
use data::format::Message;
use model::Decoder;
use model::generate::{Request, Sampling};
use stage::{Context, Problems, Progress};
use training::prompts::{checker_of, messages_of};
use training::respond::{Responder, Response, Stop, sample_seed};

use crate::subject::Subject;

/// One prompt.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) row: PromptRow,
    /// The conversation that it renders, where it is one.
    pub(crate) messages: Option<Vec<Message>>,
    pub(crate) language: Language,
    pub(crate) checker: Option<Checker>,
    /// File and row, for messages.
    pub(crate) at: String,
}

impl Asked {
    /// What is asked, in words: the last turn, or the whole text where there are no turns.
    pub(crate) fn text(&self) -> &str {
        let last = self.messages.as_ref().and_then(|messages| messages.last());
        last.map_or(self.row.prompt.as_str(), |message| message.content.as_str())
    }
}

/// Which `most` of `all` things to take, evenly spread: whether the one at `place` is among them.
pub(crate) fn is_taken(place: usize, all: usize, most: Option<usize>) -> bool {
    let most = most.unwrap_or(all).min(all);
    (place + 1) * most / all.max(1) > place * most / all.max(1)
}

/// Reads the prompts of all files and takes at most `most`, evenly spread.
///
/// # Errors
/// A file that cannot be read; an empty prompt, a checker or messages that are none (file and row are named).
fn read(files: &[PathBuf], most: Option<usize>) -> anyhow::Result<Vec<Asked>> {
    let mut rows = Vec::new();
    for file in files {
        let own = prompts::read(file)?.into_iter().enumerate();
        rows.extend(own.map(|(row, prompt)| (format!("{}: row {row}", file.display()), prompt)));
    }
    let all = rows.len();
    let taken = rows.into_iter().enumerate().filter(|(place, _)| is_taken(*place, all, most));
    let asked = taken.map(|(_, (at, row))| {
        anyhow::ensure!(!row.prompt.is_empty(), "{at}: the prompt is empty");
        let checker = checker_of(&row, &at)?;
        let messages = messages_of(&row, &at)?;
        let last = messages.as_ref().and_then(|messages| messages.last());
        let language = Language::of(last.map_or(row.prompt.as_str(), |last| last.content.as_str()));
        Ok(Asked { row, messages, language, checker, at })
    });
    asked.collect()
}

/// Reads prompts and checks that each leaves room for an answer of a token in every taker; `key` names the test's table.
pub(crate) fn plan(
    key: &str,
    files: &[PathBuf],
    most: Option<usize>,
    takers: &[&Subject],
    problems: &mut Problems,
) -> Option<Vec<Asked>> {
    let key = format!("{key}.prompts");
    if !problems.check(!files.is_empty(), &key, "names no file") {
        return None;
    }
    let all = problems.take(&key, read(files, most))?;
    if !problems.check(!all.is_empty(), &key, "has no prompt") {
        return None;
    }
    for subject in takers {
        for asked in &all {
            let ids = problems.take(&key, subject.prompt_ids(asked))?;
            let (length, room) = (ids.len(), subject.positions());
            if length == 0 || length >= room {
                problems.push(
                    key,
                    format_args!(
                        "{}: a prompt of {length} tokens leaves no room for an answer in the {room} positions of `{}`",
                        asked.at, subject.name
                    ),
                );
                return None;
            }
        }
    }
    Some(all)
}

/// How answers are generated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) max_new_tokens: usize,
    /// 0 takes the most probable token.
    pub(crate) temperature: f64,
    pub(crate) batch_rows: usize,
}

impl Manner {
    /// Notes what is out of range; `key` names the test's table.
    pub(crate) fn check(self, key: &str, problems: &mut Problems) {
        let most = format!("{key}.max_new_tokens");
        problems.check(self.max_new_tokens > 0, &most, "must be at least 1");
        let sampling = Sampling { temperature: self.temperature, ..Sampling::default() };
        problems.take(&format!("{key}.temperature"), sampling.check());
    }
}

/// Answers all prompts, in their order. What is sampled depends on the seed and a prompt's place alone.
///
/// # Errors
/// libtorch's; a signal.
pub(crate) fn answer(
    ctx: &Context,
    subject: &Subject,
    decoder: &Decoder,
    asked: &[Asked],
    manner: Manner,
    progress: &Progress,
) -> anyhow::Result<Vec<Response>> {
    let mut responder =
        Responder::new(decoder, &subject.tokenizer, Stop::default(), manner.batch_rows)?;
    let request = |(place, asked): (usize, &Asked)| {
        let seed = sample_seed(ctx.seed, place as u64);
        let sampling = Sampling { temperature: manner.temperature, seed, ..Sampling::default() };
        let ids = subject.prompt_ids(asked)?;
        Ok(Request { ids, max_new_tokens: manner.max_new_tokens, sampling })
    };
    let requests: Vec<Request> =
        asked.iter().enumerate().map(request).collect::<anyhow::Result<_>>()?;
    responder.answer_all(ctx, &requests, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_spread_evenly() {
        let taken = |all: usize, most: Option<usize>| -> Vec<usize> {
            (0..all).filter(|place| is_taken(*place, all, most)).collect()
        };
        assert_eq!(taken(4, None), [0, 1, 2, 3]);
        assert_eq!(taken(4, Some(9)), [0, 1, 2, 3]);
        assert_eq!(taken(6, Some(3)), [1, 3, 5]);
        assert_eq!(taken(7, Some(2)), [3, 6]);
        assert_eq!(taken(3, Some(0)), [0_usize; 0]);
        for (all, most) in [(100, 7), (600, 300), (13, 12)] {
            assert_eq!(taken(all, Some(most)).len(), most);
        }
        assert!(taken(0, Some(3)).is_empty());
    }
}
