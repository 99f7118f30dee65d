//! Checking what a run is given against what its producer recorded.
//!
//! A file or folder inside a run directory must be what the producer's manifest says, digest for
//! digest; and data must have been made with the tokenizer of the model it meets. Paths outside any
//! run directory (a downloaded model, raw text) are simply digested.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::run_dir::RunDir;

/// How far above an input its run directory may lie: `data/<set>/<split>.parquet` is three deep.
const MAX_DEPTH: usize = 4;

/// An input that is what its producer wrote.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The digest of the contents: of the file, of the directory ([`digest::dir`]), or for a whole
    /// run directory of the list of its products.
    pub digest: Digest,
    /// The run that made it, if it lies in a run directory.
    pub producer: Option<Producer>,
}

/// The run that made an input.
#[derive(Debug, Clone)]
pub struct Producer {
    /// Its run directory.
    pub run_dir: PathBuf,
    /// Its record.
    pub manifest: Manifest,
}

/// The state of a file, or of every file of a directory, as the file system tells it without reading: a quick way to see that
/// nothing was written since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, FileState)>);

/// Device, inode, length, and the time of the last change of contents or names.
type FileState = (u64, u64, u64, (i64, i64), (i64, i64));

impl Stamp {
    /// Takes the stamp of a file or directory. Of a run directory only the products count, and the manifest.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let files = if !fs_err::metadata(path)?.is_dir() {
            vec![path.to_path_buf()]
        } else if let Some(run) = RunDir::look(path) {
            run.product_files()?
        } else {
            digest::names(path)?.into_iter().map(|(_, path)| path).collect()
        };
        let state = |path: PathBuf| {
            let meta = fs_err::metadata(&path)?;
            let (changed, renamed) =
                ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
            Ok((path, (meta.dev(), meta.ino(), meta.len(), changed, renamed)))
        };
        files.into_iter().map(state).collect::<std::io::Result<_>>().map(Self)
    }
}

/// Digests a file or directory that a run is about to read and, if it lies in a run directory,
/// checks that it is what the producer wrote.
///
/// # Errors
/// If it does not exist or cannot be read, if its run has not finished ([`Error::Unfinished`]), or
/// if it is not what the producer recorded ([`Error::Changed`]).
pub fn check_input(path: impl AsRef<Path>) -> Result<Checked> {
    let path = path.as_ref();
    let is_dir = fs_err::metadata(path)?.is_dir();
    let producer = find_producer(path)?;
    if !is_dir {
        let digest = digest::file(path)?;
        if let Some((producer, relative)) = &producer
            && let Some(recorded) = producer.manifest.outputs.get(relative)
        {
            same(path, producer, recorded, Some(&digest))?;
        }
        return Ok(Checked { digest, producer: producer.map(|(p, _)| p) });
    }
    let Some((producer, relative)) = producer else {
        return Ok(Checked { digest: digest::dir(path)?, producer: None });
    };
    let found = if relative.is_empty() {
        RunDir::open(path)?.outputs()?.into_iter().collect()
    } else {
        digest::dir_files(path)?
    };
    let prefix = if relative.is_empty() { String::new() } else { format!("{relative}/") };
    for (name, recorded) in &producer.manifest.outputs {
        if let Some(inside) = name.strip_prefix(&prefix) {
            let here = found.iter().find(|(found, _)| found == inside).map(|(_, digest)| digest);
            same(&path.join(inside), &producer, recorded, here)?;
        }
    }
    Ok(Checked { digest: digest::listing(&found), producer: Some(producer) })
}

/// The finished run in whose directory a file or folder lies, if it lies in one. Nothing is digested.
///
/// # Errors
/// If the path does not exist, or its run has not finished ([`Error::Unfinished`]).
pub fn producer(path: impl AsRef<Path>) -> Result<Option<Producer>> {
    Ok(find_producer(path.as_ref())?.map(|(producer, _)| producer))
}

/// Checks that data was made with the tokenizer of the model it is to meet.
///
/// `recorded` is the digest in the data's footer ([`crate::tokens::TokenMeta`]), `found` that of the
/// tokenizer in the model directory.
///
/// # Errors
/// [`Error::Tokenizer`], naming both.
pub fn verify_chain(data: &Path, recorded: &Digest, model: &Path, found: &Digest) -> Result<()> {
    if recorded == found {
        return Ok(());
    }
    Err(Error::Tokenizer {
        data: data.to_path_buf(),
        recorded: recorded.clone(),
        model: model.to_path_buf(),
        found: found.clone(),
    })
}

fn same(path: &Path, by: &Producer, recorded: &Digest, found: Option<&Digest>) -> Result<()> {
    if found == Some(recorded) {
        return Ok(());
    }
    Err(Error::Changed {
        path: path.to_path_buf(),
        stage: by.manifest.stage.clone(),
        recorded: recorded.clone(),
        found: found.map_or("missing", Digest::short).to_owned(),
    })
}

/// The run directory around `path`, and `path` relative to it with `/`.
fn find_producer(path: &Path) -> Result<Option<(Producer, String)>> {
    let whole = fs_err::canonicalize(path)?;
    for dir in whole.ancestors().take(MAX_DEPTH) {
        if !dir.is_dir() {
            continue;
        }
        let Ok(run) = RunDir::open(dir) else {
            // A checkpoint is whole in itself, whatever becomes of its run.
            let checkpoint = RunDir::checkpoints_of(dir);
            if whole.starts_with(&checkpoint) && whole != checkpoint {
                return Ok(None);
            }
            if crate::run_dir::is_config(&dir.join("config.toml")) {
                return Err(Error::Unfinished { path: as_given(path, &whole, dir) });
            }
            continue;
        };
        if !run.is_marked() {
            // Another program's manifest.json; a newer temper's says so when it is read.
            if let Err(e @ Error::FormatVersion { .. }) = Manifest::read(run.manifest_path()) {
                return Err(e);
            }
            continue;
        }
        let manifest = Manifest::read(run.manifest_path())?;
        let relative = whole.strip_prefix(dir).unwrap_or(Path::new(""));
        let relative = relative.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
        let run_dir = as_given(path, &whole, dir);
        return Ok(Some((Producer { run_dir, manifest }, relative)));
    }
    Ok(None)
}

/// `dir`, an ancestor of the canonical `whole`, in the words of `path` where they reach that far.
fn as_given(path: &Path, whole: &Path, dir: &Path) -> PathBuf {
    let up = whole.components().count() - dir.components().count();
    match path.ancestors().nth(up) {
        Some(given) if !given.as_os_str().is_empty() => given.to_path_buf(),
        _ => dir.to_path_buf(),
    }
}

#[cfg(test)]
#[path = "chain/tests.rs"]
mod tests;
