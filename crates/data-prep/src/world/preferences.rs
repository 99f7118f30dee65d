//! Pairs of answers to one prompt, the better one first: kind before curt, true before false, right
//! before wrong, whole before garbled.

use data::checker::{Checker, normalise};
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use serde_json::{Map, Value, json};

use super::Rng;
use super::draw::one;
use super::exercise::{Request, Task, Tone, doubtful};
use super::facts::Village;
use super::lexicon::Language;
use super::stream::Drawn;

/// What makes the better answer better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aspect {
    /// A kind opening rather than a plain or curt one; both answers are true.
    Kindness,
    /// What is true of whom was asked about, rather than of another; the tone may be anything.
    Truth,
    /// The right answer to an exercise, rather than that of another like it.
    Right,
    /// A whole answer rather than the same with a word lost, repeated, moved or taken from another
    /// answer: what a policy makes that has lost its way.
    Whole,
}

/// How many of a hundred pairs are of each aspect.
const SHARES: [(Aspect, u32); 4] =
    [(Aspect::Kindness, 30), (Aspect::Truth, 35), (Aspect::Right, 15), (Aspect::Whole, 20)];

impl Aspect {
    fn name(self) -> &'static str {
        match self {
            Self::Kindness => "kindness",
            Self::Truth => "truth",
            Self::Right => "right",
            Self::Whole => "whole",
        }
    }

    fn draw(rng: &mut Rng) -> Self {
        SHARES.choose_weighted(rng, |(_, share)| *share).map_or(Self::Right, |(aspect, _)| *aspect)
    }
}

/// Two answers to one prompt.
pub(crate) struct Pair {
    aspect: Aspect,
    language: Language,
    key: String,
    prompt: Vec<Value>,
    chosen: String,
    rejected: String,
    checker: Value,
}

impl Drawn for Pair {
    type From = Village;

    fn draw(village: &Village, rng: &mut Rng) -> Self {
        let language = one(&Language::ALL, rng);
        match Aspect::draw(rng) {
            Aspect::Right => Self::right(village, language, rng),
            Aspect::Whole => Self::whole(village, language, rng),
            aspect => Self::told(village, aspect, language, rng),
        }
    }

    fn key(&self) -> &str {
        &self.key
    }

    fn identity(&self) -> String {
        format!("{:?}\n{}\n{}", self.prompt, self.chosen, self.rejected)
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        let Self { aspect, language, prompt, chosen, rejected, checker, .. } = self;
        Ok(Map::from_iter([
            ("prompt".to_owned(), Value::Array(prompt)),
            ("chosen".to_owned(), chosen.into()),
            ("rejected".to_owned(), rejected.into()),
            ("task".to_owned(), aspect.name().into()),
            ("language".to_owned(), language.code().into()),
            ("split".to_owned(), split.into()),
            ("checker".to_owned(), checker),
        ]))
    }
}

impl Pair {
    /// A pair of answers to a request to tell something.
    fn told(village: &Village, aspect: Aspect, language: Language, rng: &mut Rng) -> Self {
        let request = Request::draw(village, language, rng);
        let (chosen, rejected) = if aspect == Aspect::Kindness {
            let other = one(&[Tone::Plain, Tone::Curt], rng);
            (request.true_answer(Tone::Warm, rng), request.true_answer(other, rng))
        } else {
            let tone = one(&Tone::ALL, rng);
            (request.true_answer(tone, rng), request.false_answer(village, tone, rng))
        };
        Self {
            aspect,
            language,
            key: request.key(),
            chosen,
            rejected,
            checker: json!({"one_of": {"answers": request.true_answers(&[Tone::Warm])}}),
            prompt: vec![json!({"role": "user", "content": request.text})],
        }
    }

    /// A good answer and the same garbled.
    fn whole(village: &Village, language: Language, rng: &mut Rng) -> Self {
        let draw = |rng: &mut Rng| {
            if rng.random_bool(0.6) {
                Self::told(village, Aspect::Kindness, language, rng)
            } else {
                Self::right(village, language, rng)
            }
        };
        let pair = draw(rng);
        let other = draw(rng).chosen;
        let checker: Option<Checker> = serde_json::from_value(pair.checker.clone()).ok();
        let is_right = |text: &str| {
            normalise(text) == normalise(&pair.chosen)
                || checker.as_ref().is_some_and(|checker| checker.check(text))
        };
        let rejected = garbled(&pair.chosen, &other, is_right, rng);
        Self { aspect: Aspect::Whole, rejected, ..pair }
    }

    /// A right and a wrong answer to an exercise.
    fn right(village: &Village, language: Language, rng: &mut Rng) -> Self {
        let (exercise, wrong) = if rng.random_bool(0.5) {
            doubtful(village, language, rng)
        } else {
            let task = one(&[Task::Translate, Task::Summarise], rng);
            let exercise = task.draw(village, language, rng);
            let mut other = task.draw(village, language, rng);
            while other.answer == exercise.answer {
                other = task.draw(village, language, rng);
            }
            (exercise, other.answer)
        };
        Self {
            aspect: Aspect::Right,
            language,
            prompt: exercise.prompt_messages(),
            checker: exercise.checker(),
            key: exercise.key,
            chosen: exercise.answer,
            rejected: wrong,
        }
    }
}

/// `answer` with one or two of its words lost, repeated, moved or replaced by one of `other`; more where that is right still.
fn garbled(answer: &str, other: &str, is_right: impl Fn(&str) -> bool, rng: &mut Rng) -> String {
    let strangers: Vec<&str> = other.split(' ').collect();
    let mut words: Vec<&str> = answer.split(' ').collect();
    let changes = rng.random_range(1..=2);
    let mut made = 0;
    while made < changes || is_right(&words.join(" ")) {
        made += 1;
        let at = rng.random_range(0..words.len());
        match rng.random_range(0..4) {
            0 if words.len() > 1 => drop(words.remove(at)),
            1 => words.insert(at, words[at]),
            2 => {
                let to = rng.random_range(0..words.len());
                words.swap(at, to);
            }
            _ => words[at] = one(&strangers, rng),
        }
    }
    words.join(" ")
}
