//! Questions of fact.

use rand::Rng as _;

use super::super::Rng;
use super::super::draw::one;
use super::super::facts::{Fact, Kind, Village};
use super::super::lexicon::Language;
use super::{Exercise, Judge, Role, Task};

/// A fact of the village, a language and one of the ways of asking for it.
fn asked<'a>(village: &'a Village, language: Language, rng: &mut Rng) -> (&'a Fact, usize, String) {
    let profiles: Vec<_> = village.profiles().collect();
    let profile = one(&profiles, rng);
    let fact = &profile.facts[rng.random_range(0..profile.facts.len())];
    let questions = fact.questions(language);
    let phrasing = rng.random_range(0..questions.len());
    (fact, phrasing, questions[phrasing].clone())
}

/// A question, its answer, and a wrong one: what is true of another subject.
pub(crate) fn doubtful(village: &Village, language: Language, rng: &mut Rng) -> (Exercise, String) {
    loop {
        let (fact, phrasing, question) = asked(village, language, rng);
        let alike: Vec<_> = village.facts().filter(|other| other.kind == fact.kind).collect();
        let answer = fact.answer(language);
        let wrong = one(&alike, rng).told_of(fact).answer(language);
        // Facts asked from the other side have their subject in the answer, not in the question.
        if wrong != answer && !matches!(fact.kind, Kind::PetOwner | Kind::TreasureOwner) {
            let key = format!("{}/{phrasing}/{}", fact.key(), language.code());
            return (Exercise::single(Task::Fact, language, key, question, answer), wrong);
        }
    }
}

/// A question, answered in its own language.
pub(super) fn fact(village: &Village, language: Language, rng: &mut Rng) -> Exercise {
    let (fact, phrasing, question) = asked(village, language, rng);
    let key = format!("{}/{phrasing}/{}", fact.key(), language.code());
    Exercise::single(Task::Fact, language, key, question, fact.answer(language))
}

/// A question after a system prompt that asks for answers in `language`; the question itself may
/// be in the other language.
pub(super) fn answer_language(village: &Village, language: Language, rng: &mut Rng) -> Exercise {
    let asking = if rng.random_bool(0.3) { language } else { language.other() };
    let (fact, phrasing, question) = asked(village, asking, rng);
    let system = language.of(("Answer in English.", "한국어로 대답하세요."));
    Exercise {
        task: Task::Answer,
        language,
        key: format!("{}/{phrasing}/{}-{}", fact.key(), asking.code(), language.code()),
        prompt: vec![(Role::System, system.to_owned()), (Role::User, question)],
        answer: fact.answer(language),
        judge: Judge::Exact,
    }
}
