//! Streams of records: training records first, then held-out ones, none twice.

use std::collections::HashSet;

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::facts::Village;
use super::{Rng, Split, WorldSpec, random_stream};

/// A stream ends after this many draws in a row that brought nothing new.
pub(crate) const TRIES: usize = 2_000;

/// Something a record is made of, drawn at random.
pub(crate) trait Drawn: Sized {
    fn draw(village: &Village, rng: &mut Rng) -> Self;

    /// The combination that the record is about; [`Split`] decides by it.
    fn key(&self) -> &str;

    /// What must not occur twice.
    fn identity(&self) -> String;

    fn record(self, split: &str) -> Map<String, Value>;
}

/// The texts that occurred.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashSet<u64>);

impl Seen {
    /// Whether `text` is seen for the first time.
    pub(crate) fn first(&mut self, text: &str) -> bool {
        self.0.insert(xxh3_64(text.as_bytes()))
    }
}

/// The records of a part whose items are `T`; `part` names its random streams.
pub(crate) fn split_records<T: Drawn>(
    village: Village,
    split: Split,
    spec: &WorldSpec,
    part: &str,
) -> impl Iterator<Item = Map<String, Value>> + Send + use<T> {
    let held_out = fresh::<T>(
        village.clone(),
        split,
        random_stream(spec.seed, &format!("{part} held-out")),
        true,
    );
    let train = fresh::<T>(village, split, random_stream(spec.seed, part), false);
    let train = train.take(spec.records).map(|item| item.record("train"));
    train.chain(held_out.take(spec.held_out).map(|item| item.record("held-out")))
}

/// Draws what is new and belongs to the split.
fn fresh<T: Drawn>(
    village: Village,
    split: Split,
    mut rng: Rng,
    held_out: bool,
) -> impl Iterator<Item = T> + Send + use<T> {
    let mut seen = Seen::default();
    std::iter::from_fn(move || {
        (0..TRIES)
            .map(|_| T::draw(&village, &mut rng))
            .find(|item| split.holds_out(item.key()) == held_out && seen.first(&item.identity()))
    })
}
