//! How the processes of a job find one another.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

use artifact::atomic;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::POLL;
use crate::error::Hint;
use crate::interrupt::Interrupt;
use crate::layout::Layout;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    /// No other process has it.
    name: String,
    pid: u32,
    /// Where `pid` means something; `None` where the system does not say.
    machine: Option<String>,
}

impl Card {
    fn own() -> Self {
        // Seeded by the system.
        let random = RandomState::new().hash_one(std::process::id());
        let machine = machine().ok();
        Self { name: format!("{random:016x}"), pid: std::process::id(), machine }
    }

    /// Whether this process is known to have died: false where it may live.
    pub(super) fn is_dead(&self) -> bool {
        if self.machine.is_none() || self.machine != machine().ok() {
            return false;
        }
        // `pid (command) state ...`, and a command may hold brackets. A zombie has ended too.
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// This machine since it was started, and the part of it that shares its numbers of processes.
pub(super) fn machine() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let numbers = fs::read_link("/proc/self/ns/pid")?;
    Ok(format!("{} {}", boot.trim(), numbers.display()))
}

/// Which job a folder is for.
fn job(layout: &Layout) -> String {
    let Layout { size, master: (host, port), attempt, .. } = layout;
    format!("{size} processes, {host}:{port}, attempt {attempt}")
}

const JOB: &str = "job";
const MEMBERS: &str = "members.json";

fn card_path(folder: &Path, rank: usize, name: &str) -> PathBuf {
    folder.join(format!("{rank}-{name}.card"))
}

/// Waits for all processes of the job; gives their folder in `place`, and their cards by rank.
///
/// # Errors
/// One does not come in time; a signal; those of the file system.
pub(super) fn meet(
    place: &Path,
    layout: &Layout,
    interrupt: &Interrupt,
) -> anyhow::Result<(PathBuf, Vec<Card>)> {
    let own = Card::own();
    let wait = |since: Instant| {
        interrupt.check()?;
        sleep(POLL);
        anyhow::Ok(since.elapsed() > layout.patience)
    };
    let since = Instant::now();
    if layout.is_first() {
        let folder = place.join(&own.name);
        atomic::write_bytes(folder.join(JOB), job(layout).as_bytes())?;
        let mut members = vec![own];
        while members.len() < layout.size {
            match find(&folder, members.len())? {
                Some(card) => members.push(card),
                None if wait(since)? => {
                    let (rank, seconds) = (members.len(), layout.patience.as_secs());
                    let what = format!("rank {rank} did not come within {seconds} seconds");
                    drop(atomic::remove_dir(&folder));
                    return Err(Hint::new(anyhow::anyhow!(what), SAME_PLACE).into());
                }
                None => {}
            }
        }
        atomic::write_bytes(folder.join(MEMBERS), &serde_json::to_vec(&members)?)?;
        return Ok((folder, members));
    }
    let mut asked = Vec::new();
    loop {
        for folder in open_folders(place, layout)? {
            if !asked.contains(&folder) {
                let card = card_path(&folder, layout.rank, &own.name);
                atomic::write_bytes(card, &serde_json::to_vec(&own)?)?;
                asked.push(folder);
            }
        }
        for folder in &asked {
            let Some(bytes) = super::read(&folder.join(MEMBERS))? else { continue };
            let members: Vec<Card> = serde_json::from_slice(&bytes)?;
            if members.get(layout.rank) == Some(&own) {
                return Ok((folder.clone(), members));
            }
        }
        if wait(since)? {
            let what = format!("rank 0 is not to be found in {}", place.display());
            return Err(Hint::new(anyhow::anyhow!(what), SAME_PLACE).into());
        }
    }
}

const SAME_PLACE: &str = "all processes need one WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and a run directory that all of them see";

/// A card that a process of this rank has left.
fn find(folder: &Path, rank: usize) -> anyhow::Result<Option<Card>> {
    let first = format!("{rank}-");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // One that is still being written has another end.
        let is_whole = Path::new(&name).extension().is_some_and(|end| end == "card");
        if is_whole && name.as_encoded_bytes().starts_with(first.as_bytes()) {
            return Ok(Some(serde_json::from_slice(&fs::read(entry.path())?)?));
        }
    }
    Ok(None)
}

/// The folders of this job that have not been closed. Those of killed jobs are among them, where nobody answers.
fn open_folders(place: &Path, layout: &Layout) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        // One that is being removed has such a name.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let folder = entry.path();
        let is_ours = super::read(&folder.join(JOB))? == Some(job(layout).into_bytes());
        if is_ours && !folder.join(MEMBERS).exists() {
            found.push(folder);
        }
    }
    Ok(found)
}
