//! Streams of records: training records first, then held-out ones, none twice.

use std::collections::HashSet;

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::{Rng, Share, Split, WorldSpec, random_stream};

/// A stream ends after this many draws in a row that brought nothing new.
pub(crate) const TRIES: usize = 2_000;

/// Something a record is made of, drawn at random.
pub(crate) trait Drawn: Sized {
    /// What it is drawn from.
    type From: Clone + Send;

    fn draw(from: &Self::From, rng: &mut Rng) -> Self;

    /// The combination that the record is about; [`Split`] decides by it.
    fn key(&self) -> &str;

    /// What must not occur twice.
    fn identity(&self) -> String;

    /// The record; an error where a text of the user's cannot be filled in.
    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>>;
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

/// The records of a part whose items are `T`, trained on `share` of the combinations; the part's name is that of its random
/// streams.
pub(crate) fn split_records<T: Drawn>(
    from: T::From,
    share: Share,
    spec: &WorldSpec,
) -> impl Iterator<Item = anyhow::Result<Map<String, Value>>> + Send + use<T> {
    let part = spec.part.name();
    let split = Split { seed: spec.seed };
    let held_out = fresh::<T>(
        from.clone(),
        random_stream(spec.seed, &format!("{part} held-out")),
        move |key| split.holds_out(key),
    );
    let train =
        fresh::<T>(from, random_stream(spec.seed, part), move |key| split.is_in(share, key));
    let train = train.take(spec.records).map(|item| item.record("train"));
    train.chain(held_out.take(spec.held_out).map(|item| item.record("held-out")))
}

/// Draws what is new and wanted.
fn fresh<T: Drawn>(
    from: T::From,
    mut rng: Rng,
    wanted: impl Fn(&str) -> bool + Send,
) -> impl Iterator<Item = T> + Send {
    let mut seen = Seen::default();
    std::iter::from_fn(move || {
        (0..TRIES)
            .map(|_| T::draw(&from, &mut rng))
            .find(|item| wanted(item.key()) && seen.first(&item.identity()))
    })
}
