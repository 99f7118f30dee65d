//! Telling something true, in a tone that is free: the exercise with many right answers, which later
//! stages teach to prefer one.

use rand::Rng as _;

use super::super::Rng;
use super::super::draw::one;
use super::super::facts::{Fact, Profile, Village};
use super::super::hangul::fill;
use super::super::lexicon::{Language, PEOPLE, Slots};
use super::{Exercise, Judge, Role, Task};

/// How an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tone {
    /// With a kind word and the name of who asks.
    Warm,
    /// With nothing.
    Plain,
    /// With a grumble.
    Curt,
}

impl Tone {
    pub(crate) const ALL: [Self; 3] = [Self::Warm, Self::Plain, Self::Curt];

    /// The openings of the tone; `{asker}` is who asks.
    fn openings(self, language: Language) -> &'static [&'static str] {
        match self {
            Self::Warm => language.of((
                &["Gladly, {asker}! ", "Of course, {asker}! "],
                &["{asker} 님, 기꺼이요! ", "물론이지요, {asker} 님! "],
            )),
            Self::Plain => &[""],
            Self::Curt => language.of((&["Fine. ", "If I must. "], &["알았어요. ", "귀찮네요. "])),
        }
    }
}

/// A request to tell something about someone, and who makes it.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    language: Language,
    slots: Slots,
    about: &'a Profile,
    /// What is asked.
    pub(crate) text: String,
}

impl<'a> Request<'a> {
    pub(crate) fn draw(village: &'a Village, language: Language, rng: &mut Rng) -> Self {
        let asker = rng.random_range(0..PEOPLE.len());
        let who = (asker + rng.random_range(1..PEOPLE.len())) % PEOPLE.len();
        let slots = Slots::new().word("asker", PEOPLE[asker]).word("who", PEOPLE[who]);
        let asks = language.of((
            [
                "I am {asker}. Tell me something about {who}.",
                "{asker} here. What do you know about {who}?",
            ],
            [
                "저는 {asker:이에요}. {who} 이야기를 해 주세요.",
                "{asker:이에요}. {who:은} 어떤 사람인가요?",
            ],
        ));
        let text = fill(one(&asks, rng), language, &slots);
        Self { language, slots, about: &village.people[who], text }
    }

    /// Who asks about whom.
    pub(crate) fn key(&self) -> String {
        let name = |slot| self.slots.get(slot, Language::En).unwrap_or_default();
        format!("tell/{}/{}", name("asker"), name("who"))
    }

    /// One true answer in `tone`.
    pub(crate) fn true_answer(&self, tone: Tone, rng: &mut Rng) -> String {
        let opening = fill(one(tone.openings(self.language), rng), self.language, &self.slots);
        let fact = one_of(self.about, rng);
        format!("{opening}{}", fact.statement(self.language, rng))
    }

    /// One answer in `tone` that is true of another person, and not of the one asked about.
    pub(crate) fn false_answer(&self, village: &Village, tone: Tone, rng: &mut Rng) -> String {
        let opening = fill(one(tone.openings(self.language), rng), self.language, &self.slots);
        let truths = self.about.statements(self.language);
        loop {
            let other = &village.people[rng.random_range(0..village.people.len())];
            let fact = one_of(other, rng).told_of(&self.about.facts[0]);
            let said = fact.statement(self.language, rng);
            if !truths.contains(&said) {
                return format!("{opening}{said}");
            }
        }
    }

    /// All true answers in the given tones.
    pub(crate) fn true_answers(&self, tones: &[Tone]) -> Vec<String> {
        let openings = tones.iter().flat_map(|tone| tone.openings(self.language));
        let openings: Vec<String> =
            openings.map(|opening| fill(opening, self.language, &self.slots)).collect();
        let statements = self.about.statements(self.language).into_iter();
        statements
            .flat_map(|said| openings.iter().map(move |opening| format!("{opening}{said}")))
            .collect()
    }
}

fn one_of<'a>(profile: &'a Profile, rng: &mut Rng) -> &'a Fact {
    &profile.facts[rng.random_range(0..profile.facts.len())]
}

pub(super) fn draw(village: &Village, language: Language, rng: &mut Rng) -> Exercise {
    let request = Request::draw(village, language, rng);
    let answer = request.true_answer(one(&Tone::ALL, rng), rng);
    Exercise {
        task: Task::Tell,
        language,
        key: request.key(),
        answer,
        judge: Judge::OneOf(request.true_answers(&Tone::ALL)),
        prompt: vec![(Role::User, request.text)],
    }
}
