//! Processes that share a stage's work by files, where the stage links no libtorch and so has no store to meet at.
//!
//! They meet in `.ranks/` of the run directory, which all of them see. Rank 0 opens a folder there under a name that no other
//! has; every process of the job that sees the open folder leaves its card in it; once there is one of each rank, rank 0
//! closes the folder with the list of those it has taken in. So neither what a killed job left nor a process of it that
//! still lives is taken for one of this job.
//!
//! From there on each gives a sign of life once a second, and says at its end how it ended. Rank 0 looks at all others; they
//! look at rank 0, which passes on what it has found.

mod card;
mod signs;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io::{self, ErrorKind, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use artifact::atomic;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use self::card::Card;
use self::signs::{Pulse, Signs};
use crate::context::Context;
use crate::error::{Hint, signal_of};
use crate::interrupt::{Interrupt, Interrupted, Signal};

/// How often the other processes are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// How often a file is looked for that another process is to write.
const POLL: Duration = Duration::from_millis(20);
/// No living process is silent for so long.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// How long a process that failed stays to clear up.
const FAREWELL: Duration = Duration::from_secs(3);

const START_AGAIN: &str =
    "its own output says why; start the job again, with any number of processes";

/// The processes of a job, as one of them sees the others; see the module's text.
#[derive(Debug)]
pub struct Team {
    folder: PathBuf,
    rank: usize,
    patience: Duration,
    interrupt: Interrupt,
    /// The processes by rank.
    members: Vec<Card>,
    pulse: Pulse,
    watch: Mutex<Watch>,
}

/// What is known of the others.
#[derive(Debug, Default)]
struct Watch {
    looked: Option<Instant>,
    signs: Signs,
    /// Those that have ended well.
    through: HashSet<usize>,
    /// What was found wrong with one of them.
    verdict: Option<String>,
}

impl Watch {
    fn blame(&mut self, what: String) -> anyhow::Error {
        self.verdict = Some(what.clone());
        Hint::new(anyhow::Error::msg(what), START_AGAIN).into()
    }
}

/// How a process ended, for the others.
#[derive(Debug, Serialize, Deserialize)]
enum End {
    Through,
    Failed(String),
    /// By a signal, whose number it is.
    Stopped(Signal),
}

/// Does a stage's work with the other processes of the job, or with nobody (`None`) where this one is on its own. The work calls
/// [`Context::start`] once it has found its inputs good. Where it fails in one process, it fails in all.
///
/// # Errors
/// Those of the work; another process that does not come, fails or dies, by its rank; a signal to any of them.
pub fn together<T>(
    ctx: &mut Context,
    work: impl FnOnce(&mut Context, Option<&Team>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if !ctx.layout.is_shared() {
        return work(ctx, None);
    }
    let team = Team::join(ctx)?;
    let result = work(ctx, Some(&team));
    let ended = team.end(&result);
    let value = result.inspect_err(|_| team.leave())?;
    ended?;
    if team.is_first() {
        team.part()?;
        ctx.run_dir.remove_ranks(None)?;
    }
    Ok(value)
}

impl Team {
    fn join(ctx: &mut Context) -> anyhow::Result<Self> {
        let place = ctx.run_dir.ranks_dir();
        let (folder, members) = card::meet(&place, &ctx.layout, &ctx.interrupt)?;
        ctx.team = Some(folder.clone());
        let rank = ctx.layout.rank;
        tracing::info!("{} processes share the work", members.len());
        Ok(Self {
            pulse: Pulse::start(&folder, rank)?,
            folder,
            rank,
            patience: ctx.layout.patience,
            interrupt: ctx.interrupt.clone(),
            members,
            watch: Mutex::default(),
        })
    }

    /// Whether this process decides what depends on the work of all, and writes the files.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// How many processes there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// How long a process may do nothing.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// An error if this process is to stop; to be called often.
    ///
    /// # Errors
    /// A signal, to this process or another; a process that failed or is gone.
    pub fn check(&self) -> anyhow::Result<()> {
        self.interrupt.check()?;
        let mut watch = self.watch();
        if watch.looked.is_some_and(|last| last.elapsed() < BETWEEN_LOOKS) {
            return Ok(());
        }
        watch.looked = Some(Instant::now());
        self.others().try_for_each(|rank| self.look(rank, &mut watch))
    }

    /// Whether the first process has all it needs, so that there is nothing left to do: as [`check`](Self::check) last saw it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.is_first() && self.watch().through.contains(&0)
    }

    /// Takes a piece of work for this process; false where another has it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn claim(&self, piece: &str) -> anyhow::Result<bool> {
        let path = self.claim_path(piece);
        match fs::OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(mut file) => {
                file.write_all(self.rank.to_string().as_bytes())?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The process that has claimed a piece, if one has.
    #[must_use]
    pub fn claimant(&self, piece: &str) -> Option<usize> {
        fs::read_to_string(self.claim_path(piece)).ok()?.parse().ok()
    }

    fn claim_path(&self, piece: &str) -> PathBuf {
        self.folder.join(format!("{piece}.claim"))
    }

    fn part_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.part"))
    }

    /// Gives the others something under a name of its own. It is there whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn put(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        // Writing would make a folder anew that another job has removed.
        fs::metadata(&self.folder)?;
        Ok(atomic::write_bytes(self.part_path(name), bytes)?)
    }

    /// What has been [`put`](Self::put) under a name, once it is there, and removes it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn take(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.part_path(name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        fs::remove_file(path)?;
        Ok(Some(bytes))
    }

    /// Waits until something has been [`put`](Self::put) under a name, however long it takes.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn wait_for(&self, name: &str) -> anyhow::Result<()> {
        let path = self.part_path(name);
        while !path.exists() {
            self.rest()?;
        }
        Ok(())
    }

    /// Waits a moment for another process.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn rest(&self) -> anyhow::Result<()> {
        self.check()?;
        sleep(POLL);
        Ok(())
    }

    /// An error that says what is wrong with another process, in this one and in all others.
    #[must_use]
    pub fn fault(&self, what: String) -> anyhow::Error {
        self.watch().blame(what)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes that this one looks at.
    fn others(&self) -> Range<usize> {
        if self.is_first() { 1..self.size() } else { 0..1 }
    }

    fn look(&self, rank: usize, watch: &mut Watch) -> anyhow::Result<()> {
        if watch.through.contains(&rank) {
            return Ok(());
        }
        let limit = self.patience.clamp(3 * signs::BEAT, LONGEST_SILENCE);
        let dead = self.members[rank].is_dead();
        let silent = watch.signs.silence(&self.folder, rank)? > limit;
        // Looked for last: it is what a process does before it dies.
        match read(&end_path(&self.folder, rank))? {
            None if dead || silent => {
                Err(watch.blame(format!("rank {rank} gives no sign of life")))
            }
            None => Ok(()),
            Some(bytes) => match serde_json::from_slice(&bytes)? {
                End::Through => {
                    watch.through.insert(rank);
                    Ok(())
                }
                End::Failed(what) => Err(watch.blame(what)),
                End::Stopped(signal) => Err(Interrupted(signal).into()),
            },
        }
    }

    /// Tells the others how the work ended here.
    fn end<T>(&self, result: &anyhow::Result<T>) -> anyhow::Result<()> {
        let end = match result {
            Ok(_) => End::Through,
            Err(error) => match (signal_of(error), self.watch().verdict.take()) {
                (Some(signal), _) => End::Stopped(signal),
                (None, Some(verdict)) => End::Failed(verdict),
                (None, None) => End::Failed(format!("rank {} failed: {error}", self.rank)),
            },
        };
        fs::metadata(&self.folder)?;
        Ok(atomic::write_bytes(end_path(&self.folder, self.rank), &serde_json::to_vec(&end)?)?)
    }

    /// Waits for the others to end: of the first process's work nothing is left for them.
    fn part(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        while let Some(rank) = self.others().find(|rank| !self.watch().through.contains(rank)) {
            if since.elapsed() > self.patience {
                return Err(self.fault(format!("rank {rank} does not end")));
            }
            self.rest()?;
        }
        Ok(())
    }

    /// Takes the folder of a failed job away where the others end soon; else the next start does.
    fn leave(&self) {
        let since = Instant::now();
        while self.is_first() && since.elapsed() < FAREWELL {
            let is_gone =
                |rank: usize| self.members[rank].is_dead() || end_path(&self.folder, rank).exists();
            if self.others().all(is_gone) {
                drop(atomic::remove_dir(&self.folder));
                // Where another job meets too, it stays.
                drop(self.folder.parent().map(fs::remove_dir));
                return;
            }
            sleep(POLL);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = format!("rank {} failed: internal error", self.rank);
            drop(self.end::<()>(&Err(self.fault(what))));
        }
        self.pulse.stop();
    }
}

fn end_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("{rank}.end"))
}

/// A file's content; `None` where there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
