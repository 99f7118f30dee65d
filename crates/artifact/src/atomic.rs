//! Files and directories that appear whole or not at all.
//!
//! Everything is written under a temporary name beside its final one, flushed to the disk, renamed,
//! and the parent directory flushed. Whatever happens before the rename, a crash, `SIGKILL`, a full
//! disk, leaves what was there before untouched.
//!
//! A temporary holds an advisory lock for as long as its writer lives, so [`sweep`] can tell the
//! leftovers of dead runs from the work of live ones without trusting process ids.

use std::fs::TryLockError;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;

const SUFFIX: &str = ".temper.tmp";

/// Writes a file through a buffer; it replaces `path` only if `fill` and the disk both succeed.
///
/// # Errors
/// Those of `fill` and of the file system; `path` is then as it was before.
pub fn write(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = BufWriter::with_capacity(1 << 16, AtomicFile::create(path)?);
    fill(&mut buffer)?;
    buffer.into_inner().map_err(io::IntoInnerError::into_error)?.commit()
}

/// Writes bytes as a whole file; see [`write`].
///
/// # Errors
/// Those of the file system; `path` is then as it was before.
pub fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// A file that takes its name only at [`commit`](AtomicFile::commit). Dropped before that, it is gone.
///
/// Writes are not buffered; wrap it in a [`BufWriter`] for small ones.
#[derive(Debug)]
pub struct AtomicFile {
    file: fs::File,
    temp: Temp,
    target: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary beside `path`, making the parent folders that are missing.
    ///
    /// # Errors
    /// If a folder or the temporary cannot be made.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let target = path.as_ref().to_path_buf();
        fs::create_dir_all(parent(&target)).map_err(|e| explain(e, &target))?;
        loop {
            let temp = temporary_name(&target);
            let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&temp);
            let file = file.map_err(|e| explain(e, &target))?;
            let temp = Temp { path: Some(temp) };
            if claim(file.file())? {
                return Ok(Self { file, temp, target });
            }
        }
    }

    /// The name it will have.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Flushes to the disk and takes the final name, replacing a file that has it.
    ///
    /// # Errors
    /// Those of the file system; `path` is then as it was before.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all().map_err(|e| explain(e, &self.target))?;
        self.temp.rename(&self.target)?;
        sync_dir(parent(&self.target))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|e| explain(e, &self.target))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|e| explain(e, &self.target))
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A directory that takes its name only at [`commit`](AtomicDir::commit). Dropped before that, it is gone.
#[derive(Debug)]
pub struct AtomicDir {
    handle: fs::File,
    temp: Temp,
    target: PathBuf,
}

impl AtomicDir {
    /// Makes a temporary directory beside `path`, with the parent folders that are missing.
    ///
    /// # Errors
    /// If a folder cannot be made.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let target = path.as_ref().to_path_buf();
        fs::create_dir_all(parent(&target)).map_err(|e| explain(e, &target))?;
        loop {
            let path = temporary_name(&target);
            fs::create_dir(&path).map_err(|e| explain(e, &target))?;
            let temp = Temp { path: Some(path.clone()) };
            let handle = fs::File::open(path)?;
            if claim(handle.file())? {
                return Ok(Self { handle, temp, target });
            }
        }
    }

    /// Where to write the contents, until [`commit`](Self::commit).
    pub fn path(&self) -> &Path {
        self.temp.path.as_deref().unwrap_or(&self.target)
    }

    /// The name it will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes every file and folder in it to the disk and takes the final name.
    ///
    /// A directory of that name is replaced: in one exchange where the file system can do that,
    /// otherwise by two renames, between which the name is absent but never half there.
    ///
    /// # Errors
    /// Those of the file system; what had the name before is then still there.
    pub fn commit(mut self) -> io::Result<()> {
        sync_tree(self.path()).map_err(|e| explain(e, &self.target))?;
        self.handle.sync_all().or_else(ignore_unsupported)?;
        if self.target.symlink_metadata().is_ok() {
            self.replace()?;
        } else {
            self.temp.rename(&self.target)?;
        }
        sync_dir(parent(&self.target))
    }

    /// Swaps with what has the name now; dropping the temporary then removes the old contents.
    fn replace(&mut self) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let swapped = renameat_with(CWD, self.path(), CWD, &self.target, RenameFlags::EXCHANGE);
        if swapped.is_ok() {
            return Ok(());
        }
        let aside = temporary_name(&self.target);
        fs::rename(&self.target, &aside)?;
        let _removed_at_the_end = Temp { path: Some(aside.clone()) };
        self.temp.rename(&self.target).inspect_err(|_| {
            // Put the old one back; if that fails too, the first error says why.
            drop(fs::rename(&aside, &self.target));
        })
    }
}

/// Removes a directory so that it is never half there: it loses its name first. Absent: nothing to do.
///
/// # Errors
/// Those of the file system.
pub fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let aside = temporary_name(path);
    match fs::rename(path, &aside) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => remove(&aside),
    }
}

/// Removes what killed runs left under `dir` (at any depth), and returns the removed paths.
///
/// Temporaries of processes that still live, and everything without a temporary's name, stay.
/// A directory that does not exist has nothing to sweep.
///
/// # Errors
/// If the tree cannot be listed or a leftover cannot be removed.
pub fn sweep(dir: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    sweep_into(dir.as_ref(), &mut removed)?;
    removed.sort();
    Ok(removed)
}

fn sweep_into(dir: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_symlink() {
            continue;
        }
        if is_temporary(&entry.file_name().to_string_lossy()) {
            if abandoned(&path)? {
                remove(&path)?;
                removed.push(path);
            }
        } else if kind.is_dir() {
            sweep_into(&path, removed)?;
        }
    }
    Ok(())
}

/// Whether a file name is one that this module gives to unfinished files.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SUFFIX)
}

/// A temporary's path; removed when dropped, unless renamed.
#[derive(Debug)]
struct Temp {
    path: Option<PathBuf>,
}

impl Temp {
    fn rename(&mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, target).map_err(|e| explain(e, target))?;
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort: a leftover is removed by the next sweep.
            drop(remove(path));
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Locks a fresh temporary. False: a sweep took it in the moment between making and locking it.
fn claim(file: &std::fs::File) -> io::Result<bool> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(false),
        // Ok: locked. Error: no locks on this file system, and then `abandoned` never says yes.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    Ok(links(&file.metadata()?) > 0)
}

#[cfg(unix)]
fn links(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(meta)
}

/// Whether nobody holds the temporary's lock any more.
fn abandoned(path: &Path) -> io::Result<bool> {
    match fs::File::open(path) {
        Ok(file) => Ok(file.file().try_lock().is_ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn temporary_name(target: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(40).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    parent(target).join(format!(".{name}.{}-{now}-{count}{SUFFIX}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all().or_else(ignore_unsupported)
}

/// Some network file systems cannot flush a directory; their servers do it themselves.
fn ignore_unsupported(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Ok(()),
        _ => Err(error),
    }
}

/// Says of a full disk what to do, naming the file that was to be written.
fn explain(error: io::Error, target: &Path) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::StorageFull => "no space left on the disk",
        io::ErrorKind::QuotaExceeded => "the disk quota is used up",
        io::ErrorKind::ReadOnlyFilesystem => {
            let message = format!(
                "{}: the file system is read-only; choose another output directory",
                target.display()
            );
            return io::Error::new(error.kind(), message);
        }
        _ => return error,
    };
    let message = format!(
        "{}: {what}; free some and run again (what was there before is unchanged)",
        target.display()
    );
    io::Error::new(error.kind(), message)
}

#[cfg(test)]
#[path = "atomic/tests.rs"]
mod tests;
