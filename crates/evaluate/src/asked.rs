//! Prompts that models are asked, and their answers.

use std::path::PathBuf;

use artifact::evaluation::is_spread;
use artifact::prompts::{self, PromptRow};
use data::checker::Checker;
use data::constitution::Language;
use data::format::Message;
use model::generate::{Request, Sampling};
use stage::Problems;
use training::prompts::{checker_of, messages_of};
use training::respond::{Responder, Stop, sample_seed};

use crate::exam::Sitting;
use crate::outcome::Outcome;
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

/// Of `all` items, at most `most` where it is given, evenly spread: whether the one at `place` is among them.
pub(crate) fn is_taken(place: usize, all: usize, most: Option<usize>) -> bool {
    is_spread(place, all, most.unwrap_or(all))
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
    let has_most = check_most(key, most, problems);
    let key = format!("{key}.prompts");
    if !problems.check(!files.is_empty(), &key, "names no file") || !has_most {
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

/// Notes a `max_items` of 0; `key` names the test's table.
pub(crate) fn check_most(key: &str, most: Option<usize>, problems: &mut Problems) -> bool {
    problems.check(most != Some(0), &format!("{key}.max_items"), "must be at least 1")
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
    fn check(self, key: &str, problems: &mut Problems) {
        let most = format!("{key}.max_new_tokens");
        problems.check(self.max_new_tokens > 0, &most, "must be at least 1");
        let sampling = Sampling { temperature: self.temperature, ..Sampling::default() };
        problems.take(&format!("{key}.temperature"), sampling.check());
    }
}

/// The prompts of a test that generates, and how they are answered.
#[derive(Debug)]
pub(crate) struct Prompts {
    files: Vec<PathBuf>,
    pub(crate) asked: Vec<Asked>,
    manner: Manner,
}

impl Prompts {
    /// As [`plan`]; notes what is out of range in `manner`, too.
    pub(crate) fn plan(
        key: &str,
        (files, most): (Vec<PathBuf>, Option<usize>),
        manner: Manner,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        manner.check(key, problems);
        let asked = plan(key, &files, most, takers, problems)?;
        Some(Self { files, asked, manner })
    }

    /// The files.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    /// Answers all prompts, in their order. What is sampled depends on the seed and a prompt's place alone.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn answer(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let Sitting { ctx, subject, decoder, progress, .. } = *sitting;
        let Manner { max_new_tokens, temperature, batch_rows } = self.manner;
        let mut responder =
            Responder::new(decoder, &subject.tokenizer, Stop::default(), batch_rows)?;
        let request = |(place, asked): (usize, &Asked)| {
            let seed = sample_seed(ctx.seed, place as u64);
            let sampling = Sampling { temperature, seed, ..Sampling::default() };
            anyhow::Ok(Request { ids: subject.prompt_ids(asked)?, max_new_tokens, sampling })
        };
        let requests = self.asked.iter().enumerate().map(request);
        let requests = requests.collect::<anyhow::Result<Vec<Request>>>()?;
        Ok(Outcome::of_responses(&responder.answer_all(ctx, &requests, progress)?))
    }
}
