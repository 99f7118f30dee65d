//! Rules about the repository itself, checked like everything else.
//!
//! - `graph`: which crate may use which, read from the manifests;
//! - `sources`: where `unsafe` and C++ may stand, how long files and functions may grow;
//! - `documents`: what README, ARCHITECTURE, PAPERS and the other documents say is there;
//! - `pipelines`: what `make` runs again and what it leaves alone, tried with stand-in binaries.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where the repository is not as it takes for granted"
)]

mod code;
mod documents;
mod graph;
mod pipelines;
mod sources;

use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The text of a file, by its path from the root.
fn text(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(root().join(path)).unwrap()
}

/// Every file under `folder` (a path from the root) whose name ends in one of `extensions`, as sorted paths from the
/// root. Build outputs and hidden folders are not entered.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !name.starts_with("target") && name != "__pycache__" {
                    folders.push(path);
                }
            } else if extensions.iter().any(|extension| name.ends_with(extension)) {
                found.push(path.strip_prefix(root()).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

/// Fails with every complaint at once, one a line.
#[track_caller]
fn none(what: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{what}:\n  {}", complaints.join("\n  "));
}
