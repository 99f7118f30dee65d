//! The rounds: an answer, and critiques and revisions of it until no problem is found.

use std::ops::Range;

use data::constitution::{Demonstration, Language, Principle};
use data::format::Message;
use training::respond::{Response, sample_seed};

use super::config::{Generate, Plan};
use crate::shared::Asked;
use crate::speaker::{Speaker, Turn, assistant, user};

/// Who speaks.
pub(crate) struct Cast<'a> {
    pub(crate) policy: Speaker<'a>,
    pub(crate) critic: Speaker<'a>,
}

/// Why the rounds over an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The critique found none.
    NoProblem,
    /// All rounds were held.
    Rounds,
    /// The conversation no longer fits the model's context, or a text spells out a special token.
    NoRoom,
    /// The revision was blank.
    Blank,
}

impl Stopped {
    const ALL: [Self; 4] = [Self::NoProblem, Self::Rounds, Self::NoRoom, Self::Blank];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoProblem => "no problem found",
            Self::Rounds => "all rounds held",
            Self::NoRoom => "no room left",
            Self::Blank => "blank revision",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stopped| stopped.name() == name)
    }
}

/// One critique and revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    /// The principle's id.
    pub(crate) principle: String,
    /// Absent where the model revises at once.
    pub(crate) critique: Option<String>,
    /// Absent where no problem was found.
    pub(crate) revision: Option<String>,
    /// Whether the revision ended by itself.
    pub(crate) ended: bool,
}

/// A prompt with all that was said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Talk {
    /// Its position among all prompts.
    pub(crate) number: usize,
    /// The last message of the prompt.
    pub(crate) prompt: String,
    pub(crate) task: Option<String>,
    pub(crate) language: Language,
    pub(crate) initial: String,
    /// Whether the first answer ended by itself.
    pub(crate) initial_ended: bool,
    pub(crate) rounds: Vec<Round>,
    pub(crate) stopped: Stopped,
}

impl Talk {
    /// The answer after all rounds.
    pub(crate) fn final_text(&self) -> &str {
        self.rounds
            .iter()
            .rev()
            .find_map(|round| round.revision.as_deref())
            .unwrap_or(&self.initial)
    }

    /// Whether that ended by itself.
    pub(crate) fn final_ended(&self) -> bool {
        let last = self.rounds.iter().rev().find(|round| round.revision.is_some());
        last.map_or(self.initial_ended, |round| round.ended)
    }

    /// Turns that a model took.
    pub(crate) fn responses(&self) -> usize {
        let of = |round: &Round| {
            usize::from(round.critique.is_some()) + usize::from(round.revision.is_some())
        };
        1 + self.rounds.iter().map(of).sum::<usize>()
    }
}

/// A talk that goes on.
struct Open<'p> {
    asked: &'p Asked,
    talk: Talk,
    live: bool,
}

/// Lets the cast answer the prompts in `range`, criticise and revise. What is said to a prompt depends on the seed and its
/// position alone.
///
/// # Errors
/// The chat template's, the constitution's; logits that are not finite.
pub(crate) fn hold(
    cast: &mut Cast<'_>,
    plan: &Plan,
    range: Range<usize>,
    seed: u64,
) -> anyhow::Result<Vec<Talk>> {
    let settings = &plan.config.generate;
    let mut open = answer(cast, plan, range, seed)?;
    for round in 0..settings.rounds {
        let drawn: Vec<usize> =
            open.iter().map(|one| draw(plan, seed, one.talk.number, round)).collect();
        let critiques = if settings.critique {
            Some(criticise(cast, plan, &mut open, &drawn, round, seed)?)
        } else {
            None
        };
        revise(cast, plan, &mut open, &drawn, critiques, round, seed)?;
    }
    Ok(open.into_iter().map(|one| one.talk).collect())
}

/// The seed of a turn: 0 is the answer, then two of each round.
fn turn_seed(settings: &Generate, seed: u64, number: usize, turn: usize) -> u64 {
    sample_seed(seed, (number * (1 + 2 * settings.rounds) + turn) as u64)
}

/// The principle of a round, as a position in the constitution.
fn draw(plan: &Plan, seed: u64, number: usize, round: usize) -> usize {
    let chosen = &plan.principles.chosen;
    // Another stream than the turns'.
    let at = sample_seed(!seed, (number * plan.config.generate.rounds + round) as u64);
    chosen[(at % chosen.len() as u64) as usize]
}

fn answer<'p>(
    cast: &mut Cast<'_>,
    plan: &'p Plan,
    range: Range<usize>,
    seed: u64,
) -> anyhow::Result<Vec<Open<'p>>> {
    let settings = &plan.config.generate;
    let turns: Vec<Turn> = range
        .clone()
        .map(|number| Turn {
            messages: plan.prompts[number].messages.clone(),
            seed: turn_seed(settings, seed, number, 0),
        })
        .collect();
    let said = cast.policy.say(&turns, settings.initial)?;
    let open = range.zip(said).map(|(number, said)| {
        let asked = &plan.prompts[number];
        // The plan has seen that there is room; what is left out is a prompt that spells out a special token.
        let live = said.is_some();
        let Response { text, ended, .. } = said.unwrap_or_else(nothing);
        let talk = Talk {
            number,
            prompt: asked.text().to_owned(),
            task: asked.row.task.clone(),
            language: asked.language,
            initial: text.trim().to_owned(),
            initial_ended: ended,
            rounds: Vec::new(),
            stopped: if live { Stopped::Rounds } else { Stopped::NoRoom },
        };
        Open { asked, talk, live }
    });
    Ok(open.collect())
}

fn nothing() -> Response {
    Response { ids: Vec::new(), logprobs: Vec::new(), text: String::new(), ended: false }
}

/// The demonstrations that come first, in the conversation's language where there are some.
fn shown(plan: &Plan, language: Language) -> impl Iterator<Item = &Demonstration> {
    let examples = &plan.principles.constitution.examples;
    let own = examples.iter().filter(move |example| example.language == language);
    let others = examples.iter().filter(move |example| example.language != language);
    own.chain(others).take(plan.config.generate.examples)
}

/// Demonstrations, the prompt, and the answer that is to be judged.
fn beginning(plan: &Plan, one: &Open<'_>) -> Vec<Message> {
    let mut messages = Vec::new();
    for example in shown(plan, one.talk.language) {
        messages.extend([user(&example.prompt), assistant(&example.response)]);
        if plan.config.generate.critique {
            messages.extend([user(&example.critique_request), assistant(&example.critique)]);
        }
        messages.extend([user(&example.revision_request), assistant(&example.revision)]);
    }
    messages.extend(one.asked.messages.iter().cloned());
    messages.push(assistant(one.talk.final_text()));
    messages
}

/// A conversation up to the request of a critique, and the critique.
type Criticised = (Vec<Message>, String);

/// Has the live talks' answers criticised. A talk in which no problem is found, or no room is left, ends.
fn criticise(
    cast: &mut Cast<'_>,
    plan: &Plan,
    open: &mut [Open<'_>],
    drawn: &[usize],
    round: usize,
    seed: u64,
) -> anyhow::Result<Vec<Option<Criticised>>> {
    let settings = &plan.config.generate;
    let constitution = &plan.principles.constitution;
    let (mut turns, mut of) = (Vec::new(), Vec::new());
    for (index, one) in open.iter().enumerate().filter(|(_, one)| one.live) {
        let principle = &constitution.principles[drawn[index]];
        let (language, prompt) = (one.talk.language, &one.talk.prompt);
        let request =
            constitution.critique_turn(principle, language, prompt, one.talk.final_text())?;
        let mut messages = beginning(plan, one);
        messages.push(user(request));
        turns.push(Turn {
            messages,
            seed: turn_seed(settings, seed, one.talk.number, 1 + 2 * round),
        });
        of.push(index);
    }
    let said = cast.critic.say(&turns, settings.critiques)?;
    let mut critiques: Vec<Option<Criticised>> = open.iter().map(|_| None).collect();
    for ((index, turn), said) in of.into_iter().zip(turns).zip(said) {
        let one = &mut open[index];
        let Some(said) = said else {
            end(one, Stopped::NoRoom);
            continue;
        };
        let critique = said.text.trim().to_owned();
        if constitution.finds_no_problem(&critique) {
            one.talk.rounds.push(Round {
                principle: constitution.principles[drawn[index]].id.clone(),
                critique: Some(critique),
                revision: None,
                ended: said.ended,
            });
            end(one, Stopped::NoProblem);
        } else {
            critiques[index] = Some((turn.messages, critique));
        }
    }
    Ok(critiques)
}

fn end(one: &mut Open<'_>, why: Stopped) {
    one.live = false;
    one.talk.stopped = why;
}

/// Has the live talks' answers revised, after their critiques where there are some.
fn revise(
    cast: &mut Cast<'_>,
    plan: &Plan,
    open: &mut [Open<'_>],
    drawn: &[usize],
    critiques: Option<Vec<Option<Criticised>>>,
    round: usize,
    seed: u64,
) -> anyhow::Result<()> {
    let settings = &plan.config.generate;
    let constitution = &plan.principles.constitution;
    let mut critiques = critiques.unwrap_or_else(|| open.iter().map(|_| None).collect());
    let (mut turns, mut of) = (Vec::new(), Vec::new());
    for (index, one) in open.iter().enumerate().filter(|(_, one)| one.live) {
        let principle: &Principle = &constitution.principles[drawn[index]];
        let (language, prompt) = (one.talk.language, &one.talk.prompt);
        let (mut messages, critique) = match critiques[index].take() {
            Some((mut messages, critique)) => {
                messages.push(assistant(&critique));
                (messages, Some(critique))
            }
            None => (beginning(plan, one), None),
        };
        let answer = one.talk.final_text();
        let request =
            constitution.revision_turn(principle, language, prompt, answer, critique.as_deref())?;
        messages.push(user(request));
        turns.push(Turn {
            messages,
            seed: turn_seed(settings, seed, one.talk.number, 2 + 2 * round),
        });
        of.push((index, critique));
    }
    let said = cast.critic.say(&turns, settings.revisions)?;
    for ((index, critique), said) in of.into_iter().zip(said) {
        let one = &mut open[index];
        let (revision, ended) = match &said {
            Some(said) => (Some(stripped(&said.text, &settings.strip_prefixes)), said.ended),
            None => (None, false),
        };
        let revision = revision.filter(|revision| !revision.is_empty());
        if revision.is_none() {
            end(one, if said.is_none() { Stopped::NoRoom } else { Stopped::Blank });
        }
        let principle = constitution.principles[drawn[index]].id.clone();
        one.talk.rounds.push(Round { principle, critique, revision, ended });
    }
    Ok(())
}

/// A revision without what models put before it: "Sure, here is a revised response:".
pub(crate) fn stripped(text: &str, prefixes: &[String]) -> String {
    let text = text.trim();
    let begins = prefixes.iter().find_map(|prefix| {
        let head = text.get(..prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
    });
    begins.unwrap_or(text).trim().to_owned()
}
