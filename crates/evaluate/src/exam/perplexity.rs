//! How well a model predicts text: nats a token, perplexity, bits a byte.
//!
//! Sums are over all documents, so that every token counts alike; a mean of means is nowhere. A document that is longer than
//! a model's window is read in steps of `stride`: a window takes in `window` tokens and counts those that the windows
//! before have not, so every token counts once, and behind the first window with at least `window - stride` tokens
//! before it. This is the convention of the transformers documentation ("Perplexity of fixed-length models").
//!
//! Texts begin with the tokenizer's token for the beginning (or the end, where it has none for that), so that their first
//! token is predicted too; no token for the end is added. Bits per byte divide by the UTF-8 bytes of the text, and of token
//! rows by the bytes behind the tokens that count; special tokens are none.

use std::path::{Path, PathBuf};

use artifact::evaluation::{Better, Unit};
use artifact::tokens::TokenReader;
use data::batch::Branches;
use data::dataset::TokenDataset;
use data::records::{Record, Source};
use model::Decoder;
use objectives::{bits_per_byte, perplexity};
use stage::Problems;
use training::branches;

use super::{Sitting, check_either, check_tokenizer};
use crate::asked::{check_most, is_taken};
use crate::config::Perplexity;
use crate::outcome::{Metric, Outcome};
use crate::subject::{Subject, widen};

/// What is read.
#[derive(Debug)]
pub(crate) struct Work {
    table: Perplexity,
    texts: Texts,
    /// Documents in all of it.
    all: usize,
}

#[derive(Debug)]
enum Texts {
    Rows(Vec<PathBuf>),
    Sources(Source, String),
}

/// One document for one model.
struct Document {
    ids: Vec<i64>,
    /// Which tokens count; the first never does.
    counts: Vec<bool>,
    bytes: f64,
}

impl Work {
    /// Reads the data once, to know that it can be read.
    pub(crate) fn plan(
        key: &str,
        table: Perplexity,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        let of = |part: &str| format!("{key}.{part}");
        let lists = [
            ("rows", table.rows.is_empty(), "token rows of data-prep"),
            ("sources", table.sources.is_empty(), "text"),
        ];
        if !check_either(key, lists, problems) {
            return None;
        }
        check_most(key, table.max_items, problems);
        let windows = takers.iter().map(|subject| window(&table, subject.positions()));
        let least = windows.min().unwrap_or(usize::MAX);
        problems.check(least >= 2, &of("window"), "must be at least 2");
        problems.check(
            table.stride.is_none_or(|stride| (1..least).contains(&stride)),
            &of("stride"),
            format_args!("must be at least 1 and below the window, which is {least} tokens"),
        );
        if !table.rows.is_empty() {
            let mut all = 0;
            for file in &table.rows {
                let reader = problems.take(&of("rows"), TokenReader::open(file))?;
                let made_with = (file.as_path(), &reader.meta().tokenizer);
                if !check_tokenizer(&of("rows"), made_with, takers, problems) {
                    return None;
                }
                all += reader.num_rows() as usize;
            }
            problems.check(all > 0, &of("rows"), "has no row");
            let texts = Texts::Rows(table.rows.clone());
            return Some(Self { table, texts, all });
        }
        let source = problems.take(&of("sources"), Source::open(&table.sources, &table.read))?;
        let column = table.column.clone().unwrap_or_else(|| artifact::columns::TEXT.to_owned());
        let mut all = 0;
        for record in source.records() {
            let record = problems.take(&of("sources"), record)?;
            problems.take(&of("column"), text_of(&record, &column))?;
            all += 1;
        }
        problems.check(all > 0, &of("sources"), "has no text");
        Some(Self { table, texts: Texts::Sources(source, column), all })
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        match &self.texts {
            Texts::Rows(files) => files.clone(),
            Texts::Sources(source, _) => {
                source.inputs().into_iter().map(Path::to_path_buf).collect()
            }
        }
    }

    pub(crate) fn items(&self) -> usize {
        self.table.max_items.unwrap_or(self.all).min(self.all)
    }

    /// `nats`, `tokens` and `bytes` of each document.
    ///
    /// # Errors
    /// Data that cannot be read any more; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let Sitting { ctx, subject, decoder, batch_tokens, progress } = *sitting;
        let window = window(&self.table, subject.positions());
        let stride = self.table.stride.unwrap_or(window / 2).clamp(1, window - 1);
        let mut sums = Sums { nats: Vec::new(), rows: Branches::new(), members: Vec::new() };
        let mut outcome = Outcome::default();
        let mut take = |document: Document| -> anyhow::Result<()> {
            let index = sums.nats.len();
            sums.nats.push(0.0);
            let tokens = document.counts.iter().filter(|counts| **counts).count();
            outcome.push("tokens", Some(tokens as f64));
            outcome.push("bytes", Some(document.bytes));
            for (begin, from, end) in windows(document.ids.len(), window, stride) {
                let ids = &document.ids;
                sums.rows.push(&ids[begin..from], &[&ids[from..end]]);
                sums.members.push((index, document.counts[from..end].to_vec()));
                if sums.rows.num_tokens() >= batch_tokens {
                    ctx.check_interrupt()?;
                    sums.flush(decoder)?;
                }
            }
            progress.inc(1);
            Ok(())
        };
        self.documents(subject, &mut take)?;
        sums.flush(decoder)?;
        for nats in sums.nats {
            anyhow::ensure!(nats.is_finite(), "the loss is not finite");
            outcome.push("nats", Some(nats));
        }
        Ok(outcome)
    }

    /// Hands on the documents that are taken, in order.
    fn documents(
        &self,
        subject: &Subject,
        take: &mut dyn FnMut(Document) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let taken = |place: usize| is_taken(place, self.all, self.table.max_items);
        match &self.texts {
            Texts::Rows(files) => {
                let lengths = subject.tokenizer.byte_lengths();
                let mut rows = TokenDataset::sequential(files)?;
                let mut place = 0;
                while let Some(row) = rows.next_row()? {
                    if taken(place) {
                        let ids: Vec<i64> = row.ids.iter().map(|&id| i64::from(id)).collect();
                        let mut counts = row.mask;
                        counts.iter_mut().take(1).for_each(|first| *first = false);
                        let counted = ids.iter().zip(&counts).filter(|(_, counts)| **counts);
                        let bytes = counted.map(|(id, _)| f64::from(lengths[*id as usize])).sum();
                        take(Document { ids, counts, bytes })?;
                    }
                    place += 1;
                }
            }
            Texts::Sources(source, column) => {
                for (place, record) in source.records().enumerate() {
                    let record = record?;
                    if taken(place) {
                        take(document(subject, text_of(&record, column)?)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn metrics() -> Vec<Metric> {
        let of = |name: &str, unit, columns: [&str; 2], of: fn(&[f64]) -> f64| Metric {
            columns: columns.map(str::to_owned).to_vec(),
            of,
            any_tokenizer: unit == Unit::BitsPerByte,
            ..Metric::mean(name, "", unit, Better::Lower)
        };
        vec![
            of("bits_per_byte", Unit::BitsPerByte, ["nats", "bytes"], |sums| {
                bits_per_byte(sums[0], sums[1] as u64).unwrap_or(f64::NAN)
            }),
            of("perplexity", Unit::Perplexity, ["nats", "tokens"], |sums| {
                perplexity(sums[0] / sums[1])
            }),
            of("loss", Unit::NatsPerToken, ["nats", "tokens"], |sums| sums[0] / sums[1]),
        ]
    }
}

/// Windows on their way through the model.
struct Sums {
    nats: Vec<f64>,
    rows: Branches,
    /// For each continuation its document, and which of its tokens count.
    members: Vec<(usize, Vec<bool>)>,
}

impl Sums {
    fn flush(&mut self, decoder: &Decoder) -> anyhow::Result<()> {
        let (rows, members) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.members));
        if members.is_empty() {
            return Ok(());
        }
        for ((document, counts), own) in
            members.into_iter().zip(branches::logprobs(decoder, &rows)?)
        {
            let counted = own.iter().zip(&counts).filter(|(_, counts)| **counts);
            self.nats[document] -= counted.map(|(logprob, _)| f64::from(*logprob)).sum::<f64>();
        }
        Ok(())
    }
}

fn window(table: &Perplexity, positions: usize) -> usize {
    table.window.unwrap_or(positions).min(positions)
}

fn text_of<'a>(record: &'a Record, column: &str) -> anyhow::Result<&'a str> {
    let text = record.fields.get(column).and_then(serde_json::Value::as_str);
    text.ok_or_else(|| {
        let names: Vec<&str> = record.fields.keys().map(String::as_str).collect();
        anyhow::anyhow!(
            "{}: no text in a column `{column}`; it has {}; name the column with `column`",
            record.origin,
            names.join(", ")
        )
    })
}

/// A text as the model reads it.
fn document(subject: &Subject, text: &str) -> anyhow::Result<Document> {
    let mut ids = widen(&subject.tokenizer.ids_plain(text, true)?);
    let beginning = subject.beginning();
    if beginning.is_some() && ids.first() != beginning.as_ref() {
        ids.splice(0..0, beginning);
    }
    let mut bytes = text.len();
    if beginning.is_none()
        && let Some(first) = ids.first()
    {
        // Nothing predicts it.
        bytes -= usize::from(subject.tokenizer.byte_lengths()[*first as usize]).min(bytes);
    }
    let counts = (0..ids.len()).map(|place| place > 0).collect();
    Ok(Document { ids, counts, bytes: bytes as f64 })
}

/// For each window of a document of `length` tokens where it begins, from where its tokens count, and where it ends.
fn windows(length: usize, window: usize, stride: usize) -> Vec<(usize, usize, usize)> {
    let mut found = Vec::new();
    let (mut begin, mut from) = (0, 1);
    while from < length {
        let end = (begin + window).min(length);
        found.push((begin, from, end));
        from = end;
        begin += stride;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_counts_once() {
        assert!(windows(0, 4, 2).is_empty() && windows(1, 4, 2).is_empty());
        assert_eq!(windows(3, 4, 2), [(0, 1, 3)]);
        assert_eq!(windows(4, 4, 2), [(0, 1, 4)]);
        // transformers: begin 0, 2, 4, ...; targets of a window are what the one before did not reach.
        assert_eq!(windows(7, 4, 2), [(0, 1, 4), (2, 4, 6), (4, 6, 7)]);
        assert_eq!(windows(6, 4, 3), [(0, 1, 4), (3, 4, 6)]);
        assert_eq!(windows(4, 3, 1), [(0, 1, 3), (1, 3, 4)]);
        for (length, window, stride) in [(100, 7, 6), (101, 16, 5), (64, 64, 1), (65, 64, 63)] {
            let mut next = 1;
            for (begin, from, end) in windows(length, window, stride) {
                assert!(begin < from && from == next && from < end && end - begin <= window);
                next = end;
            }
            assert_eq!(next, length);
        }
    }

    #[test]
    fn numbers_are_made_of_sums() {
        // 4 tokens at ln 2 nats each, of 2 bytes: 2 bits a byte.
        let nats = 4.0 * std::f64::consts::LN_2;
        let value = |name: &str, sums: &[f64]| {
            let metrics = Work::metrics();
            let metric = metrics.iter().find(|metric| metric.name == name).unwrap();
            (metric.of)(sums)
        };
        assert!((value("bits_per_byte", &[nats, 2.0, 1.0]) - 2.0).abs() < 1e-12);
        assert!((value("perplexity", &[nats, 4.0, 1.0]) - 2.0).abs() < 1e-12);
        assert!((value("loss", &[nats, 4.0, 1.0]) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!(value("bits_per_byte", &[nats, 0.0, 1.0]).is_nan());
    }
}
