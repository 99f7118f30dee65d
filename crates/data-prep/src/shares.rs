//! The records of a data set, shared among the processes of a job.
//!
//! What is dear and needs one record only (mapping, cleaning, fingerprints, tokenising) any process does for any chunk of
//! records; what it makes of a chunk becomes a part, a file of JSON. The first process merges the parts in the order of the
//! source, and decides there what depends on the records before, as a single process does: so the result is the same to
//! the byte, whoever made which part.
//!
//! A file that is small beside the whole set is read by one process alone. A larger one, and a generator, is read by all,
//! chunk after chunk, and whoever comes to a chunk first takes it. So a process that is slower, or merges, makes fewer.

use std::time::Instant;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stage::Team;

use crate::failure;
use crate::plan::DatasetPlan;
use crate::prepare::{Chunk, Outcome, Reader};

/// A file is one process's where there are at least this many of its size for each process in the set.
const FILES_PER_RANK: u64 = 4;

/// What is made of a chunk, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
enum Part<T> {
    Made(Vec<Outcome<T>>),
    /// The file ended before it.
    End,
    /// The file cannot be read on.
    #[serde(with = "failure")]
    Fail(anyhow::Error),
}

/// Makes a chunk's records into `T`s.
pub(crate) type Make<'a, T> = dyn Fn(Chunk) -> Vec<Outcome<T>> + Sync + 'a;
/// Takes what was made of the next chunk.
pub(crate) type Merge<'a, T> = dyn FnMut(Vec<Outcome<T>>) -> anyhow::Result<()> + Send + 'a;

/// Does this process's share of a set, and on the first process brings all shares together. `what` tells one use of a set
/// from another.
///
/// # Errors
/// Those of reading and of `merge`, as in one process; another process that fails; a signal.
pub(crate) fn merge<T: Serialize + DeserializeOwned + Send>(
    team: &Team,
    set: &DatasetPlan,
    what: &str,
    make: &Make<'_, T>,
    merge: &mut Merge<'_, T>,
) -> anyhow::Result<()> {
    let names = Names { set, what };
    let files = set.sizes().len();
    let mut merger = Merger { team, names, files, file: 0, chunk: 0, read: false, merge };
    work(team, names, make, &mut |own| {
        let (made, merged) = rayon::join(own, || merger.take_all());
        made?;
        merged.map(drop)
    })?;
    merger.wait_for_all()?;
    match &set.source {
        Some(source) if !merger.read => Err(source.empty().into()),
        _ => Ok(()),
    }
}

/// The share of a process that is not the first; see [`merge`].
///
/// # Errors
/// Another process that fails; a signal; those of the file system. What is wrong with a record is told by the first process.
pub(crate) fn make<T: Serialize + Send>(
    team: &Team,
    set: &DatasetPlan,
    what: &str,
    make: &Make<'_, T>,
) -> anyhow::Result<()> {
    work(team, Names { set, what }, make, &mut |own| own())
}

/// What claims and parts are called.
#[derive(Clone, Copy)]
struct Names<'a> {
    set: &'a DatasetPlan,
    what: &'a str,
}

impl Names<'_> {
    fn file(self, file: usize) -> String {
        format!("{}-{}-{file}", self.what, self.set.name)
    }

    fn chunk(self, file: usize, chunk: usize) -> String {
        format!("{}-{chunk}", self.file(file))
    }
}

/// Something to do now, beside which the first process merges.
type Own<'a> = dyn FnOnce() -> anyhow::Result<()> + Send + 'a;

/// Makes parts of all that nobody else has claimed.
fn work<T: Serialize + Send>(
    team: &Team,
    names: Names<'_>,
    make: &Make<'_, T>,
    beside: &mut dyn FnMut(Box<Own<'_>>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let sizes = names.set.sizes();
    let whole: u64 = sizes.iter().flatten().sum();
    for (file, size) in sizes.iter().enumerate() {
        let is_small = size.is_some_and(|size| {
            size.saturating_mul(FILES_PER_RANK).saturating_mul(team.size() as u64) <= whole
        });
        if is_small && !team.claim(&names.file(file))? {
            continue;
        }
        let mut reader = Reader::open_file(names.set, file)?;
        let mut next = Some(reader.next_chunk());
        for chunk in 0.. {
            team.check()?;
            let Some(read) = next.take().filter(|_| !team.is_over()) else { break };
            let is_last = !matches!(read, Ok(Some(_)));
            let name = names.chunk(file, chunk);
            let is_own = is_small || team.claim(&name)?;
            let mut ahead = || {
                if !is_last {
                    next = Some(reader.next_chunk());
                }
            };
            if is_own {
                beside(Box::new(|| rayon::join(|| put(team, &name, read, make), &mut ahead).0))?;
            } else {
                ahead();
            }
        }
    }
    Ok(())
}

fn put<T: Serialize>(
    team: &Team,
    name: &str,
    read: anyhow::Result<Option<Chunk>>,
    make: &Make<'_, T>,
) -> anyhow::Result<()> {
    let part = match read {
        Ok(Some(chunk)) => Part::Made(make(chunk)),
        Ok(None) => Part::End,
        Err(error) => Part::Fail(error),
    };
    team.put(name, &serde_json::to_vec(&part)?)
}

/// Where the first process has come to.
struct Merger<'a, T> {
    team: &'a Team,
    names: Names<'a>,
    files: usize,
    file: usize,
    chunk: usize,
    /// Whether there was a record.
    read: bool,
    merge: &'a mut Merge<'a, T>,
}

impl<T: DeserializeOwned> Merger<'_, T> {
    /// Merges the parts that are there, up to the first that is not; says whether those were all.
    fn take_all(&mut self) -> anyhow::Result<bool> {
        while self.file < self.files {
            let name = self.names.chunk(self.file, self.chunk);
            let Some(bytes) = self.team.take(&name)? else { return Ok(false) };
            let part = serde_json::from_slice(&bytes);
            match part.with_context(|| format!("internal error: part {name}"))? {
                Part::Made(outcomes) => {
                    self.read = true;
                    (self.merge)(outcomes)?;
                    self.chunk += 1;
                }
                Part::End => {
                    self.file += 1;
                    self.chunk = 0;
                }
                Part::Fail(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Merges what the others are still to make.
    fn wait_for_all(&mut self) -> anyhow::Result<()> {
        let mut since = (Instant::now(), self.file, self.chunk);
        while !self.take_all()? {
            if (self.file, self.chunk) != (since.1, since.2) {
                since = (Instant::now(), self.file, self.chunk);
            }
            if since.0.elapsed() > self.team.patience() {
                return Err(self.overdue());
            }
            self.team.rest()?;
        }
        Ok(())
    }

    fn overdue(&self) -> anyhow::Error {
        let Names { set, .. } = self.names;
        let names = [self.names.chunk(self.file, self.chunk), self.names.file(self.file)];
        let rank = names.iter().find_map(|name| self.team.claimant(name));
        let who = rank.map_or_else(|| "a rank".to_owned(), |rank| format!("rank {rank}"));
        let seconds = self.team.patience().as_secs();
        self.team.fault(format!(
            "{who} has not come on with data set `{}` for {seconds} seconds",
            set.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use data::encode::{Encoded, EncodedPair, TokenRow};

    use super::*;
    use crate::prepare::Split;
    use crate::tokenise::{Made, MadePair, Rows, Tokenised};

    fn arrives(part: &Part<Tokenised>) {
        let bytes = serde_json::to_vec(part).unwrap();
        let read: Part<Tokenised> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(format!("{part:?}"), format!("{read:?}"));
    }

    #[test]
    fn what_was_made_arrives_as_it_was() {
        let row = TokenRow { ids: vec![0, u32::MAX], mask: vec![false, true] };
        let rows = Rows::Tokens(Encoded { rows: vec![row], bytes: 7, ..Encoded::default() });
        let pair = Rows::Pair(MadePair {
            ids: EncodedPair { prompt: vec![1], chosen: vec![2], ..EncodedPair::default() },
            // Numbers whose decimal form is long.
            margin: Some(f32::from_bits(0x3eaa_aaab)),
            probability: Some(f32::MIN_POSITIVE),
            task: Some("말 \"\u{0}".to_owned()),
        });
        let made =
            |rows| Tokenised::Made(Box::new(Made { split: Split::Validation, rows, prompt: None }));
        let text = crate::dedup::Hasher::new(&crate::config::Dedup::default()).fingerprint("글");
        let kept = |rows| Ok(Box::new((made(rows), text.clone())));
        arrives(&Part::Made(vec![
            Outcome::Examples(vec![kept(rows), kept(pair), Err("empty".into())]),
            Outcome::Drop("invalid JSON".into()),
            Outcome::Examples(vec![Ok(Box::new((Tokenised::Drop("too long".into()), text)))]),
        ]));
        arrives(&Part::End);
    }
}
