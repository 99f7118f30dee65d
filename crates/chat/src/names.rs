//! Models and adapters by name, as the command line gives them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// `NAME=DIR`, or a directory alone, which may have a `=` in its name.
pub(crate) fn name_and_dir(text: &str) -> (Option<String>, PathBuf) {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !Path::new(text).exists() => {
            (Some(name.to_owned()), dir.into())
        }
        _ => (None, text.into()),
    }
}

/// The last part of a path.
pub(crate) fn name_of(dir: &Path) -> anyhow::Result<String> {
    let whole = fs_err::canonicalize(dir)?;
    let name = whole.file_name().context("the root of the file system has no name")?;
    Ok(name.to_string_lossy().into_owned())
}
