//! The pre-training text: the village described, stories, parallel sentences, lists.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::clinic;
use super::draw::{one, two};
use super::exercise::{WordList, numbers_in_order};
use super::facts::{Profile, Village};
use super::hangul::{capitalised, fill};
use super::lexicon::{Language, PEOPLE, Slots};
use super::sentence::Pair;
use super::story::Story;
use super::{Rng, Split};

/// What a document is.
#[derive(Clone, Copy, Debug)]
enum Genre {
    /// What is true of a person or a thing.
    Profile,
    /// One kind of fact about several subjects.
    Survey,
    Story,
    /// Sentences in both languages.
    Parallel,
    /// Numbers and words put in order and counted.
    Lists,
    /// A song of a few words that come again.
    Song,
    /// The clinic's words, without what they have to do with each other.
    Play,
}

/// How many of a hundred documents are of each genre.
const SHARES: [(Genre, u32); 7] = [
    (Genre::Profile, 26),
    (Genre::Survey, 6),
    (Genre::Story, 18),
    (Genre::Parallel, 22),
    (Genre::Lists, 20),
    (Genre::Song, 4),
    (Genre::Play, 4),
];

/// Writes one document. What [`Split`] keeps for the held-out exercises does not occur in it, other than
/// the facts of the village.
pub(crate) fn document(village: &Village, split: Split, rng: &mut Rng) -> String {
    let language = one(&Language::ALL, rng);
    match genre(rng) {
        Genre::Profile => profile(village, language, rng),
        Genre::Survey => survey(village, language, rng),
        Genre::Story => {
            let story = split.trained(rng, |rng| Story::draw(village, rng), Story::key);
            let text = story.tell(language, rng);
            if rng.random_bool(0.25) {
                return text;
            }
            let lead =
                one(&language.of((["In short: ", "So: "], ["한마디로, ", "그러니까, "])), rng);
            format!("{text} {lead}{}", story.summary(language))
        }
        Genre::Parallel => lines(rng.random_range(2..=4), || parallel(language, split, rng)),
        Genre::Song => song(language, rng),
        Genre::Play => lines(rng.random_range(2..=4), || clinic::play(language, rng)),
        Genre::Lists => lines(rng.random_range(2..=4), || list(language, split, rng)),
    }
}

fn genre(rng: &mut Rng) -> Genre {
    let mut ticket = rng.random_range(0..SHARES.iter().map(|(_, share)| share).sum());
    for (genre, share) in SHARES {
        if ticket < share {
            return genre;
        }
        ticket -= share;
    }
    Genre::Profile
}

fn lines(count: usize, line: impl FnMut() -> String) -> String {
    let lines: Vec<String> = std::iter::repeat_with(line).take(count).collect();
    lines.join("\n")
}

/// Several facts about one or two subjects, in any order.
fn profile(village: &Village, language: Language, rng: &mut Rng) -> String {
    let people = rng.random_bool(0.65);
    let profiles = if people { &village.people } else { &village.things };
    let subjects = if people { 1 } else { 2 };
    let mut sentences = Vec::new();
    for _ in 0..subjects {
        let Profile { facts } = &profiles[rng.random_range(0..profiles.len())];
        let mut order: Vec<usize> = (0..facts.len()).collect();
        order.shuffle(rng);
        order.truncate(rng.random_range(4..=7));
        sentences.extend(order.into_iter().map(|i| facts[i].statement(language, rng)));
    }
    sentences.join(" ")
}

/// The same kind of fact about several subjects.
fn survey(village: &Village, language: Language, rng: &mut Rng) -> String {
    let facts: Vec<_> = village.facts().collect();
    let kind = one(&facts, rng).kind;
    let mut alike: Vec<_> = facts.into_iter().filter(|fact| fact.kind == kind).collect();
    alike.shuffle(rng);
    alike.truncate(rng.random_range(3..=5));
    let sentences: Vec<String> =
        alike.into_iter().map(|fact| fact.statement(language, rng)).collect();
    sentences.join(" ")
}

fn parallel(language: Language, split: Split, rng: &mut Rng) -> String {
    let pair = split.trained(rng, Pair::draw, |pair| pair.en.clone());
    format!("{} = {}", pair.in_(language), pair.in_(language.other()))
}

/// What one sings, another sings again.
fn song(language: Language, rng: &mut Rng) -> String {
    let (first, second) = two(PEOPLE, rng);
    let length = rng.random_range(4..=6);
    let words = WordList::mixed(length, rng).text(language);
    let slots = Slots::new().word("who", first).word("friend", second).text("song", &words, &words);
    let template = language.of((
        "{who} sings: {song}.\n{friend} sings: {song}.",
        "{who:이} 노래해요: {song}.\n{friend:이} 노래해요: {song}.",
    ));
    fill(template, language, &slots)
}

/// A list and what becomes of it.
fn list(language: Language, split: Split, rng: &mut Rng) -> String {
    let who = Slots::new().word("who", one(PEOPLE, rng));
    let say = |template: (&str, &str), slots: Slots| {
        capitalised(&fill(language.of(template), language, &slots))
    };
    match rng.random_range(0..6) {
        0 | 1 => {
            let (list, sorted) = split.trained(rng, numbers_in_order, |(_, sorted)| sorted.clone());
            let template = (
                "{who} put the numbers {list} in order: {sorted}.",
                "{who:이} {list:을} 작은 수부터 썼어요: {sorted}.",
            );
            say(template, who.text("list", &list, &list).text("sorted", &sorted, &sorted))
        }
        2 | 3 => {
            let draw = |rng: &mut Rng| WordList::sorted(language, rng);
            let (list, sorted) = split.trained(rng, draw, |(_, sorted)| sorted.text(language));
            let (list, sorted) = (list.text(language), sorted.text(language));
            let template = (
                "{who} put the words {list} in alphabetical order: {sorted}.",
                "{who:이} {list:을} 가나다순으로 썼어요: {sorted}.",
            );
            say(template, who.text("list", &list, &list).text("sorted", &sorted, &sorted))
        }
        _ => {
            let draw = |rng: &mut Rng| WordList::counted(language, rng);
            let key = |(list, kind, _): &(WordList, &str, String)| {
                format!("{kind}/{}", list.text(language))
            };
            let (list, kind, found) = split.trained(rng, draw, key);
            let template = (
                "{who} saw {list}. The {kind}: {found}.",
                "{who:이} {list:을} 보았어요. {kind}의 수: {found}.",
            );
            let list = list.text(language);
            let slots = who.text("list", &list, &list).text("kind", kind, kind);
            say(template, slots.text("found", &found, &found))
        }
    }
}
