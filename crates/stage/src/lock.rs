//! One process at a time works in a run directory.
//!
//! The lock is the system's, on the directory itself, so it ends with its process however that ends. Beside it lies a note
//! for people that says whose it is; the note decides nothing.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::anyhow;
use artifact::{RunDir, atomic};
use serde::{Deserialize, Serialize};

use crate::error::{Hint, UsageError};

/// How often the note is looked for where another process has the lock: it writes the note right after taking that.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);

/// The lock on a run directory, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    directory: File,
    note: PathBuf,
}

/// Who holds a lock.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    /// RFC 3339 in UTC.
    since: String,
}

impl Lock {
    /// Takes the lock of a run directory.
    ///
    /// # Errors
    /// A usage error that names the process which has it; those of the file system.
    pub(crate) fn take(run_dir: &RunDir) -> anyhow::Result<Self> {
        let directory = fs_err::File::open(run_dir.path())?.into_parts().0;
        let note = run_dir.holder_path();
        if let Err(TryLockError::WouldBlock) = directory.try_lock() {
            let who = other(&note).map_or_else(
                || "another process is at work here".to_owned(),
                |Holder { pid, host, since }| {
                    format!("process {pid} on {host} has been at work here since {since}")
                },
            );
            let what = anyhow!("{}: {who}", run_dir.path().display());
            let hint = "wait for it, stop it, or choose another run directory with --out";
            return Err(UsageError::new(Hint::new(what, hint)).into());
        }
        // Locked, or on a file system without locks, where there is none to respect.
        let lock = Self { directory, note };
        let me = Holder { pid: std::process::id(), host: host(), since: crate::run::timestamp() };
        if let Err(error) = atomic::write_bytes(&lock.note, &serde_json::to_vec(&me)?) {
            // The first file of the run will meet the same, and names itself.
            tracing::debug!("no note of this process in the run directory: {error}");
        }
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The note first: the next one to take the lock writes its own.
        drop(fs_err::remove_file(&self.note));
        // Closing the file is not enough: a child between its fork and its exec holds it open too.
        drop(self.directory.unlock());
    }
}

/// What the note says, once it is not the one that a killed process left.
fn other(note: &Path) -> Option<Holder> {
    for _ in 0..LOOKS {
        let holder = fs_err::read(note).ok();
        let holder = holder.and_then(|text| serde_json::from_slice::<Holder>(&text).ok());
        if let Some(holder) = holder
            && (holder.host != host() || Path::new(&format!("/proc/{}", holder.pid)).exists())
        {
            return Some(holder);
        }
        sleep(BETWEEN_LOOKS);
    }
    None
}

/// The name of this machine, `localhost` where it has none.
pub(crate) fn host() -> String {
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| !c.is_control()).collect();
    if host.is_empty() { "localhost".to_owned() } else { host }
}
