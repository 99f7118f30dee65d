//! Signs of life.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fs_err as fs;

/// Between two signs.
pub(super) const BEAT: Duration = Duration::from_secs(1);

fn path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("{rank}.sign"))
}

/// Writes over what is there: through one and the same file a network file system shows what is new at once.
fn beat(path: &Path, count: u64) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(format!("{count:020}").as_bytes())
}

/// A thread that gives signs of life until it is stopped.
#[derive(Debug)]
pub(super) struct Pulse {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    pub(super) fn start(folder: &Path, rank: usize) -> io::Result<Self> {
        let path = path(folder, rank);
        beat(&path, 0)?;
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            for count in 1.. {
                if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                // Another job has removed the folder; any other trouble may pass.
                if beat(&path, count).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                    return;
                }
            }
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Returns when nothing more is written.
    pub(super) fn stop(&mut self) {
        self.stop = None;
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// When each process's sign was last another than before.
#[derive(Debug, Default)]
pub(super) struct Signs(HashMap<usize, (Vec<u8>, Instant)>);

impl Signs {
    /// For how long a process has given no new sign, since this was first asked.
    pub(super) fn silence(&mut self, folder: &Path, rank: usize) -> io::Result<Duration> {
        let sign = super::read(&path(folder, rank))?.unwrap_or_default();
        let last = self.0.entry(rank).or_insert_with(|| (sign.clone(), Instant::now()));
        if last.0 != sign {
            *last = (sign, Instant::now());
        }
        Ok(last.1.elapsed())
    }
}
