//! Conversations of several turns, to be continued.

use rand::Rng as _;

use super::super::Rng;
use super::super::draw::{one, two};
use super::super::facts::{Kind, Village};
use super::super::hangul::{capitalised, fill};
use super::super::lexicon::{ANIMALS, FOODS, HOBBIES, Language, PEOPLE, PLACES, Slots};
use super::{Exercise, Judge, Role, Task};

/// The turns of a conversation, user first, in English and Korean; the last turn is the answer.
type Script = (&'static [&'static str], &'static [&'static str]);

/// Conversations whose answer is found in them.
const REMEMBER: &[Script] = &[
    (
        &["Hello, my name is {who}.", "Hello, {who}!", "What is my name?", "Your name is {who}."],
        &[
            "안녕하세요, 제 이름은 {who:이에요}.",
            "안녕하세요, {who} 님!",
            "제 이름이 무엇이지요?",
            "이름은 {who:이에요}.",
        ],
    ),
    (
        &[
            "I am going to the {place} with {who}.",
            "Have a good time!",
            "Where am I going?",
            "You are going to the {place}.",
        ],
        &[
            "저는 {who:과} {place}에 가요.",
            "잘 다녀오세요!",
            "제가 어디에 가지요?",
            "{place}에 가지요.",
        ],
    ),
    (
        &[
            "I am going to the {place} with {who}.",
            "Have a good time!",
            "Who goes with me?",
            "{who} goes with you.",
        ],
        &[
            "저는 {who:과} {place}에 가요.",
            "잘 다녀오세요!",
            "누가 저와 가지요?",
            "{who:이} 함께 가지요.",
        ],
    ),
    (
        &["I like {food}, but not {other}.", "I see.", "What do I like?", "You like {food}."],
        &[
            "저는 {food:을} 좋아하지만 {other:은} 싫어해요.",
            "그렇군요.",
            "제가 무엇을 좋아하지요?",
            "{food:을} 좋아하지요.",
        ],
    ),
    (
        &[
            "My {animal} is called {who}.",
            "A good name for a {animal}!",
            "I like {hobby} with {who}.",
            "{who} must be a happy {animal}.",
        ],
        &[
            "제 {animal} 이름은 {who:이에요}.",
            "{animal}에게 어울리는 이름이네요!",
            "저는 {who:과} {hobby:을} 즐겨요.",
            "{who:은} 행복한 {animal:이에요}.",
        ],
    ),
    (
        &[
            "I want {food} and {other}.",
            "Here you are. Anything else?",
            "No, thank you. What did I take?",
            "You took {food} and {other}.",
        ],
        &[
            "{food:과} {other:을} 주세요.",
            "여기 있어요. 더 필요한 것이 있나요?",
            "아니요. 제가 무엇을 샀지요?",
            "{food:과} {other:을} 샀지요.",
        ],
    ),
];

/// Draws a conversation: half of them are about what was said, half about the village.
pub(super) fn draw(village: &Village, language: Language, rng: &mut Rng) -> Exercise {
    if rng.random_bool(0.6) { remember(language, rng) } else { follow_up(village, language, rng) }
}

fn remember(language: Language, rng: &mut Rng) -> Exercise {
    let (food, other) = two(FOODS, rng);
    let slots = Slots::new()
        .word("who", one(PEOPLE, rng))
        .word("place", one(PLACES, rng))
        .word("animal", one(ANIMALS, rng))
        .word("hobby", one(HOBBIES, rng))
        .word("food", food)
        .word("other", other);
    let script = one(REMEMBER, rng);
    let say = |template: &&str| capitalised(&fill(template, language, &slots));
    let turns: Vec<String> = language.of(script).iter().map(say).collect();
    exercise(language, turns)
}

/// The best friend's name, and then a question about that friend.
fn follow_up(village: &Village, language: Language, rng: &mut Rng) -> Exercise {
    let kinds: [(Kind, (&str, &str)); 4] = [
        (Kind::Job, ("And what does that friend do?", "그 친구는 무슨 일을 하나요?")),
        (Kind::Home, ("And where does that friend live?", "그 친구는 어디에 사나요?")),
        (Kind::Hobby, ("And what does that friend enjoy?", "그 친구는 무엇을 즐기나요?")),
        (Kind::Age, ("And how old is that friend?", "그 친구는 몇 살인가요?")),
    ];
    let (kind, question) = one(&kinds, rng);
    let who = one(PEOPLE, rng);
    let friendship = village.fact(Kind::Friend, who.en);
    let friend = friendship.and_then(|fact| fact.slots.get("friend", Language::En));
    let about = friend.and_then(|friend| village.fact(kind, friend));
    let turns = friendship.zip(about).map_or_else(Vec::new, |(friendship, about)| {
        let questions = friendship.questions(language);
        let first = questions[rng.random_range(0..questions.len())].clone();
        let answer = friendship.answer(language);
        vec![first, answer, language.of(question).to_owned(), about.answer(language)]
    });
    exercise(language, turns)
}

fn exercise(language: Language, mut turns: Vec<String>) -> Exercise {
    let key = turns.join("\n");
    let answer = turns.pop().unwrap_or_default();
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let prompt = roles.zip(turns).collect();
    Exercise { task: Task::Dialogue, language, key, prompt, answer, judge: Judge::Exact }
}
