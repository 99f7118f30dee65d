//! Drawing from lists.

use rand::Rng as _;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use super::Rng;
use super::lexicon::Word;

/// One of `items`, which is not empty.
pub(crate) fn one<T: Copy>(items: &[T], rng: &mut Rng) -> T {
    items[rng.random_range(0..items.len())]
}

/// Two different ones of `words`.
pub(crate) fn two(words: &[Word], rng: &mut Rng) -> (Word, Word) {
    let first = rng.random_range(0..words.len());
    let step = rng.random_range(1..words.len());
    (words[first], words[(first + step) % words.len()])
}

/// `count` different ones of `items`, in random order.
pub(crate) fn some<T: Copy>(items: &[T], count: usize, rng: &mut Rng) -> Vec<T> {
    let mut chosen: Vec<T> = items.choose_multiple(rng, count).copied().collect();
    chosen.shuffle(rng);
    chosen
}
