//! Sentences about what happens in the village, parallel in English and Korean.

use rand::Rng as _;

use super::Rng;
use super::clinic;
use super::draw::{one, two};
use super::hangul::{capitalised, fill};
use super::lexicon::{
    ANIMALS, COLOUR_NAMES, COLOURS, FOODS, Language, OBJECTS, PEOPLE, PLACES, Word,
};

const TIMES: &[Word] = &[
    Word { en: "in the morning", ko: "아침에" },
    Word { en: "at noon", ko: "낮에" },
    Word { en: "in the evening", ko: "저녁에" },
    Word { en: "at night", ko: "밤에" },
];

/// Templates in English and Korean; the translation of each is the other, both ways.
const TEMPLATES: &[(&str, &str)] = &[
    ("{who} eats {food} at the {place}.", "{who:은} {place}에서 {food:을} 먹어요."),
    ("{who} and {friend} walk to the {place}.", "{who:과} {friend:은} {place:으로} 걸어가요."),
    ("{who} gives {object:a} to {friend}.", "{who:은} {friend}에게 {object:을} 줘요."),
    (
        "{who} sees a {colour} {animal} at the {place}.",
        "{who:은} {place}에서 {colour} {animal:을} 봐요.",
    ),
    ("The {animal} plays at the {place}.", "{animal:은} {place}에서 놀아요."),
    ("The {colour} {animal} runs to the {place}.", "{colour} {animal:은} {place:으로} 달려가요."),
    ("{who} waits for {friend} at the {place}.", "{who:은} {place}에서 {friend:을} 기다려요."),
    ("{who} cooks {food} for {friend}.", "{who:은} {friend:을} 위해 {food:을} 요리해요."),
    ("{who} looks for a {colour} {object}.", "{who:은} {colour} {object:을} 찾아요."),
    ("{who} talks with {friend} about {food}.", "{who:은} {friend:과} {food} 이야기를 해요."),
    ("{who} suffers from {one} and {two}.", "{who:은} {one:과} {two:이} 있어요."),
    ("For {one}, {advice} and rest for {rest}.", "{one}에는 {advice} {days}일 쉬세요."),
    ("It sounds like {one} and {two}.", "{one:과} {two:이에요}."),
    ("The signs of {one} are {two} and {three}.", "{one}의 증상은 {two:과} {three:이에요}."),
];

/// One sentence in both languages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) en: String,
    pub(crate) ko: String,
}

impl Pair {
    /// Draws a sentence.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let (en, ko) = one(TEMPLATES, rng);
        let (who, friend) = two(PEOPLE, rng);
        let colour = rng.random_range(0..COLOURS.len());
        let slots = clinic::mixed_up(rng)
            .word("who", who)
            .word("friend", friend)
            .word("food", one(FOODS, rng))
            .word("place", one(PLACES, rng))
            .word("object", one(OBJECTS, rng))
            .word("animal", one(ANIMALS, rng))
            .word("colour", COLOURS[colour])
            .word("dye", COLOUR_NAMES[colour])
            .word("time", one(TIMES, rng));
        let say = |template, language| capitalised(&fill(template, language, &slots));
        Self { en: say(en, Language::En), ko: say(ko, Language::Ko) }
    }

    /// The sentence in `language`.
    pub(crate) fn in_(&self, language: Language) -> &str {
        language.of((self.en.as_str(), self.ko.as_str()))
    }
}
