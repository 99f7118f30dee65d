//! What the fuzz targets share: a folder of their own, in memory where there is a place for it, and mutations of JSON.

pub mod mutate;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::Builder::new().prefix("temper-fuzz-").tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary folder")
});

/// The folder of this process.
pub fn folder() -> &'static Path {
    FOLDER.path()
}

/// Writes a file into the folder, under a path relative to it.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    let parent = path.parent().expect("a folder");
    std::fs::create_dir_all(parent).expect("a folder");
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// Checks that an error is one line or more for a reader, whatever the input was.
pub fn readable<T, E: std::fmt::Display>(outcome: Result<T, E>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.to_string().trim().is_empty(), "an error without words");
            None
        }
    }
}

/// To be called once before the inputs: a panic that the program makes an error of is none here either; each place of one is
/// named once. libFuzzer's own hook ends the process at every panic.
pub fn allow_guarded_panics() {
    static PLACES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !artifact::guard::is_guarded() {
            return hook(panic);
        }
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        if PLACES.lock().is_ok_and(|mut places| places.insert(place)) {
            eprintln!("an error is made of this: {panic}");
        }
    }));
}

/// Removes what an input may have left under a name in the folder.
pub fn remove(name: &str) {
    let path = folder().join(name);
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}
