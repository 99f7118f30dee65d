//! What the fuzz targets share: a folder of their own, in memory where there is a place for it.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

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
