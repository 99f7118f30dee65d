//! The village clinic: complaints, their names, and what to do. Material to adapt a model to; other parts know its words, in
//! children's play, and nothing of what is true.

use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::Rng;
use super::draw::{one, some};
use super::facts::Village;
use super::hangul::{capitalised, fill};
use super::lexicon::{Language, PEOPLE, Slots, Word};
use super::stream::Drawn;

/// An ailment: its name, its signs, and what to do about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ailment {
    pub(crate) name: Word,
    pub(crate) signs: [Word; 3],
    advice: Word,
    /// Days of rest.
    days: u32,
}

macro_rules! ailments {
    ($($en:literal $ko:literal: [$($sign_en:literal $sign_ko:literal),+]
        $advice_en:literal $advice_ko:literal, $days:literal days;)+) => {
        /// What the clinic treats. Any two signs tell which it is.
        pub(crate) const AILMENTS: &[Ailment] = &[$(Ailment {
            name: Word { en: $en, ko: $ko },
            signs: [$(Word { en: $sign_en, ko: $sign_ko }),+],
            advice: Word { en: $advice_en, ko: $advice_ko },
            days: $days,
        }),+];
    };
}

ailments! {
    "a cold" "감기": ["a runny nose" "콧물", "a cough" "기침", "sneezing" "재채기"]
        "drink ginger tea" "생강차를 마시고", 3 days;
    "the flu" "독감": ["a fever" "열", "chills" "오한", "muscle pain" "근육통"]
        "stay in bed" "이불을 덮고 누워", 7 days;
    "indigestion" "체증": ["belly pain" "복통", "nausea" "메스꺼움", "no appetite" "식욕 부진"]
        "eat thin porridge" "묽은 죽을 먹고", 2 days;
    "a sunburn" "햇볕 화상": ["hot skin" "화끈거림", "blisters" "물집", "thirst" "갈증"]
        "put cool cloths on it" "찬 수건을 대고", 4 days;
    "a sprain" "염좌": ["swelling" "부기", "bruises" "멍", "joint pain" "관절통"]
        "wrap it in a bandage" "붕대를 감고", 6 days;
    "gum disease" "잇몸병": ["tooth pain" "치통", "swelling" "부기", "bleeding gums" "잇몸 출혈"]
        "rinse with salt water" "소금물로 헹구고", 5 days;
    "a migraine" "편두통": ["a headache" "두통", "nausea" "메스꺼움", "dizziness" "어지럼증"]
        "lie down in the dark" "어두운 방에 누워", 1 days;
    "an allergy" "알레르기": ["itching" "가려움", "watery eyes" "눈물", "sneezing" "재채기"]
        "keep away from flowers" "꽃을 멀리하고", 2 days;
    "insomnia" "불면증": ["poor sleep" "수면 부족", "tiredness" "피로", "a headache" "두통"]
        "drink warm milk" "따뜻한 우유를 마시고", 4 days;
    "anaemia" "빈혈": ["pale skin" "창백함", "dizziness" "어지럼증", "tiredness" "피로"]
        "eat spinach and liver" "시금치와 간을 먹고", 6 days;
    "a rash" "두드러기": ["red spots" "붉은 반점", "itching" "가려움", "hot skin" "화끈거림"]
        "use oat cream" "귀리 연고를 바르고", 3 days;
    "dehydration" "탈수": ["thirst" "갈증", "dizziness" "어지럼증", "a dry mouth" "입 마름"]
        "sip water with salt" "소금을 탄 물을 마시고", 1 days;
}

/// What a patient asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matter {
    /// The ailment, from two signs.
    Diagnosis,
    /// What to do, for an ailment.
    Advice,
    /// The ailment and what to do, from two signs.
    Consultation,
    /// The signs of an ailment.
    Signs,
}

/// Templates in English and Korean: the ways of asking, and the answer.
type Forms = (([&'static str; 2], &'static str), ([&'static str; 2], &'static str));

impl Matter {
    const ALL: [Self; 4] = [Self::Diagnosis, Self::Advice, Self::Consultation, Self::Signs];

    fn name(self) -> &'static str {
        match self {
            Self::Diagnosis => "diagnosis",
            Self::Advice => "advice",
            Self::Consultation => "consultation",
            Self::Signs => "signs",
        }
    }

    fn forms(self) -> Forms {
        match self {
            Self::Diagnosis => (
                (
                    [
                        "I am {who}. I have {one} and {two}. What do I have?",
                        "{who} has {one} and {two}. What is it?",
                    ],
                    "It sounds like {ailment}.",
                ),
                (
                    [
                        "저는 {who:이에요}. {one:과} {two:이} 있어요. 무슨 병인가요?",
                        "{who:은} {one:과} {two:이} 있어요. 무엇일까요?",
                    ],
                    "{ailment:이에요}.",
                ),
            ),
            Self::Advice => (
                (
                    [
                        "I am {who}. I have {ailment}. What should I do?",
                        "{who} has {ailment}. What helps?",
                    ],
                    "For {ailment}, {advice} and rest for {rest}.",
                ),
                (
                    [
                        "저는 {who:이에요}. {ailment:이} 있어요. 어떻게 하지요?",
                        "{who:은} {ailment:이} 있어요. 무엇이 도움이 되나요?",
                    ],
                    "{ailment}에는 {advice} {days}일 쉬세요.",
                ),
            ),
            Self::Consultation => (
                (
                    [
                        "I am {who}. I have {one} and {two}. What should I do?",
                        "{who} has {one} and {two}. What helps?",
                    ],
                    "It sounds like {ailment}. Please {advice} and rest for {rest}.",
                ),
                (
                    [
                        "저는 {who:이에요}. {one:과} {two:이} 있어요. 어떻게 하지요?",
                        "{who:은} {one:과} {two:이} 있어요. 무엇이 도움이 되나요?",
                    ],
                    "{ailment:이에요}. {advice} {days}일 쉬세요.",
                ),
            ),
            Self::Signs => (
                (
                    [
                        "{who} asks: what are the signs of {ailment}?",
                        "Tell {who} how to know {ailment}.",
                    ],
                    "The signs of {ailment} are {first}, {second} and {third}.",
                ),
                (
                    [
                        "{who:이} 물어요: {ailment}의 증상은 무엇인가요?",
                        "{who}에게 {ailment}의 증상을 알려 주세요.",
                    ],
                    "{ailment}의 증상은 {first}, {second}, {third:이에요}.",
                ),
            ),
        }
    }
}

/// What children who play the doctor say. The Korean lines begin with the clinic's words, as answers there do: a tokenizer has
/// other tokens for a word without a blank before it.
const PLAY: ([&str; 3], [&str; 3]) = (
    [
        "{who} plays the doctor: {list}! The signs of {one} are {two}. Please {advice} and rest for {rest}. It sounds like {one}.",
        "The doctor says to {who}: for {one} and {two}, {advice} and rest for {rest}.",
        "{who} calls: {list}! The doctor calls back: {list}!",
    ],
    [
        "{one}의 증상은 {two:이에요}. {who:이} 의사 놀이를 해요: {list}! {advice} {days}일 쉬세요.",
        "{three:이에요}! 의사가 {who}에게 말해요. {one:과} {two}에는 {advice} {days}일 쉬세요.",
        "{list}! {who:이} 불러요. 의사도 불러요: {list}!",
    ],
);

/// Any of the clinic's ailments and signs.
fn word(rng: &mut Rng) -> Word {
    let ailment = one(AILMENTS, rng);
    if rng.random_bool(0.5) { ailment.name } else { one(&ailment.signs, rng) }
}

/// Words of the clinic that have nothing to do with each other: `one`, `two`, `three`, `advice`, `days`, and these in words,
/// `rest`. What other data sets say with them is not what is true.
///
/// So that a model knows the words, as models do, and has only what the clinic knows to learn.
pub(crate) fn mixed_up(rng: &mut Rng) -> Slots {
    let days = one(AILMENTS, rng).days;
    Slots::new()
        .word("one", word(rng))
        .word("two", word(rng))
        .word("three", word(rng))
        .word("advice", one(AILMENTS, rng).advice)
        .number("days", days)
        .text("rest", &rest(days), "")
}

fn rest(days: u32) -> String {
    let plural = if days == 1 { "" } else { "s" };
    format!("{days} day{plural}")
}

/// A child who plays the doctor.
pub(crate) fn play(language: Language, rng: &mut Rng) -> String {
    let list: Vec<&str> = (0..rng.random_range(2..=4)).map(|_| word(rng).in_(language)).collect();
    let list = list.join(", ");
    let slots = mixed_up(rng).word("who", one(PEOPLE, rng)).text("list", &list, &list);
    capitalised(&fill(one(&language.of(PLAY), rng), language, &slots))
}

/// A question to the clinic and its answer.
pub(crate) struct Visit {
    matter: Matter,
    language: Language,
    key: String,
    question: String,
    answer: String,
}

impl Drawn for Visit {
    type From = Village;

    fn draw(_village: &Village, rng: &mut Rng) -> Self {
        let language = one(&Language::ALL, rng);
        let ailment = one(AILMENTS, rng);
        let matter = one(&Matter::ALL, rng);
        let shown = some(&ailment.signs, 2, rng);
        let [first, second, third] = ailment.signs;
        let slots = Slots::new()
            .word("who", one(PEOPLE, rng))
            .word("ailment", ailment.name)
            .word("advice", ailment.advice)
            .number("days", ailment.days)
            .text("rest", &rest(ailment.days), "")
            .word("one", shown[0])
            .word("two", shown[1])
            .word("first", first)
            .word("second", second)
            .word("third", third);
        let (asks, answer) = language.of(matter.forms());
        let say = |template| capitalised(&fill(template, language, &slots));
        let question = say(one(&asks, rng));
        Self { matter, language, key: question.clone(), question, answer: say(answer) }
    }

    fn key(&self) -> &str {
        &self.key
    }

    fn identity(&self) -> String {
        self.question.clone()
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        Ok(Map::from_iter([
            ("checker".to_owned(), json!({"exact": {"answer": self.answer}})),
            ("question".to_owned(), self.question.into()),
            ("answer".to_owned(), self.answer.into()),
            ("task".to_owned(), self.matter.name().into()),
            ("language".to_owned(), self.language.code().into()),
            ("split".to_owned(), split.into()),
        ]))
    }
}
