//! Sorting and counting.

use rand::Rng as _;

use super::super::Rng;
use super::super::draw::{one, some};
use super::super::lexicon::{ANIMALS, FOODS, Language, OBJECTS, Word};
use super::{Exercise, Task};

/// Numbers in sorting exercises are below this.
const NUMBER_END: u32 = 21;

/// Entries of a list to sort.
const SORTED: usize = 3;

/// The fewest and the most entries of a list to count.
const COUNTED: std::ops::RangeInclusive<usize> = 3..=4;

fn joined(numbers: &[u32]) -> String {
    let digits: Vec<String> = numbers.iter().map(u32::to_string).collect();
    digits.join(", ")
}

/// A list of different numbers and the same in rising order, both as text.
pub(crate) fn numbers_in_order(rng: &mut Rng) -> (String, String) {
    let all: Vec<u32> = (1..NUMBER_END).collect();
    let numbers = some(&all, SORTED, rng);
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    (joined(&numbers), joined(&sorted))
}

pub(super) fn sort_numbers(language: Language, rng: &mut Rng) -> Exercise {
    let (numbers, sorted) = numbers_in_order(rng);
    let asks = language.of((
        ["Sort from small to large: ", "Put these numbers in order: "],
        ["작은 수부터 쓰세요: ", "수를 차례로 늘어놓으세요: "],
    ));
    let user = format!("{}{numbers}", one(&asks, rng));
    Exercise::single(Task::SortNumbers, language, sorted.clone(), user, sorted)
}

/// Words from the village, as they stand in a list.
#[derive(Clone, Debug)]
pub(crate) struct WordList(Vec<Word>);

/// The kinds of words a list holds, with their names.
const KINDS: [(&[Word], (&str, &str)); 3] =
    [(ANIMALS, ("animals", "동물")), (FOODS, ("foods", "음식")), (OBJECTS, ("things", "물건"))];

impl WordList {
    /// Draws `length` different words of all kinds.
    pub(crate) fn mixed(length: usize, rng: &mut Rng) -> Self {
        let all: Vec<Word> = KINDS.iter().flat_map(|(words, _)| words.iter().copied()).collect();
        Self(some(&all, length, rng))
    }

    /// Draws words and one of the kinds: the list, the kind's name, and those of the kind with their
    /// number.
    pub(crate) fn counted(language: Language, rng: &mut Rng) -> (Self, &'static str, String) {
        let length = rng.random_range(COUNTED);
        let list = Self::mixed(length, rng);
        let (words, name) = one(&KINDS, rng);
        let found: Vec<Word> = list.0.iter().copied().filter(|word| words.contains(word)).collect();
        let count = found.len();
        let found = match count {
            0 => language.of(("none", "없음")).to_owned(),
            _ => Self(found).text(language),
        };
        (list, language.of(name), format!("{found}: {count}"))
    }

    /// Draws words, and the same in the order of the alphabet of `language`.
    pub(crate) fn sorted(language: Language, rng: &mut Rng) -> (Self, Self) {
        let (words, _) = one(&KINDS[..2], rng);
        let list = Self(some(words, SORTED, rng));
        let mut sorted = list.clone();
        sorted.0.sort_unstable_by_key(|word| word.in_(language));
        (list, sorted)
    }

    /// The words with commas between them.
    pub(crate) fn text(&self, language: Language) -> String {
        let words: Vec<&str> = self.0.iter().map(|word| word.in_(language)).collect();
        words.join(", ")
    }
}

pub(super) fn sort_words(language: Language, rng: &mut Rng) -> Exercise {
    let (list, sorted) = WordList::sorted(language, rng);
    let asks = language.of((
        ["Sort by alphabet: ", "Put these words in alphabetical order: "],
        ["가나다순으로 쓰세요: ", "낱말을 가나다순으로 늘어놓으세요: "],
    ));
    let user = format!("{}{}", one(&asks, rng), list.text(language));
    let answer = sorted.text(language);
    Exercise::single(Task::SortWords, language, answer.clone(), user, answer)
}

pub(super) fn count(language: Language, rng: &mut Rng) -> Exercise {
    let (list, kind, found) = WordList::counted(language, rng);
    let words = list.text(language);
    let user = match language {
        Language::En => format!("Count the {kind}: {words}"),
        Language::Ko => format!("{kind}의 수를 세세요: {words}"),
    };
    let key = format!("{kind}/{words}");
    Exercise::single(Task::Count, language, key, user, found)
}
