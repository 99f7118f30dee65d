//! `manifest.json`: the record of a finished run, written last.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::run_dir::RunDir;

/// The version of the manifest and of the layout around it that this build writes and reads.
pub const FORMAT_VERSION: u64 = 1;

/// One thing a run read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it was read as: `model`, `train`, `validation`, `tokenizer`, ...
    pub role: String,
    /// Where it was, as given.
    pub path: PathBuf,
    /// The digest of its contents, of [`crate::chain::check_input`].
    pub digest: Digest,
}

/// The record of one finished run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the build that wrote it.
    pub format_version: u64,
    /// The name of the stage.
    pub stage: String,
    /// Everything the run read, in the order it was opened.
    pub inputs: Vec<Input>,
    /// The digest of every file of the products, by path relative to the run directory.
    pub outputs: BTreeMap<String, Digest>,
    /// The resolved configuration.
    pub config: serde_json::Value,
    /// The seed.
    pub seed: u64,
    /// Versions of what made it: `temper`, `libtorch`, ...
    pub versions: BTreeMap<String, String>,
    /// The device in words.
    pub device: String,
    /// When the process that finished the run started, RFC 3339 in UTC.
    pub started_at: String,
    /// When it finished, RFC 3339 in UTC.
    pub finished_at: String,
    /// Seconds between the two (of this process: a resumed run counts its last part only).
    pub wall_seconds: f64,
    /// The digest of the tokenizer that the products go with.
    pub tokenizer: Option<Digest>,
    /// The digest of the chat template that the products go with.
    pub chat_template: Option<Digest>,
    /// What the stage reports: final losses, counts, ...
    pub results: serde_json::Map<String, serde_json::Value>,
}

impl Manifest {
    /// Reads a manifest from the file, or from the run directory that holds it.
    ///
    /// # Errors
    /// If there is none ([`Error::Unfinished`] for a directory without one), if it is not a manifest,
    /// or if it is of another format version.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { RunDir::open(path)?.manifest_path() } else { path.into() };
        let bad = |what: String| Error::BadManifest { path: file.clone(), what };
        let text = fs_err::read_to_string(&file)?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let version = value.get("format_version").and_then(serde_json::Value::as_u64);
        let found = version.ok_or_else(|| bad("no `format_version`".to_owned()))?;
        if found != FORMAT_VERSION {
            return Err(Error::FormatVersion { path: file, found, supported: FORMAT_VERSION });
        }
        serde_json::from_value(value).map_err(|e| bad(e.to_string()))
    }

    /// Writes `manifest.json` into the run directory, which finishes the run.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, run: &RunDir) -> io::Result<()> {
        atomic::write(run.manifest_path(), |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            stage: "sft".to_owned(),
            inputs: vec![Input {
                role: "train".to_owned(),
                path: "runs/q/data-prep/data/instructions/train.parquet".into(),
                digest: crate::digest::bytes(b"abc"),
            }],
            outputs: BTreeMap::from([(
                "model/config.json".to_owned(),
                crate::digest::bytes(b"{}"),
            )]),
            config: serde_json::json!({"train": {"lr": 3e-5}, "out": "runs/q/sft"}),
            seed: 7,
            versions: BTreeMap::from([("temper".to_owned(), "0.1.0".to_owned())]),
            device: "cpu".to_owned(),
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            finished_at: "2026-01-01T00:01:00Z".to_owned(),
            wall_seconds: 60.0,
            tokenizer: Some(crate::digest::bytes(b"t")),
            chat_template: None,
            results: serde_json::Map::from_iter([("eval_loss".to_owned(), 1.25.into())]),
        }
    }

    #[test]
    fn what_is_written_is_read_from_file_and_directory() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path().join("sft")).unwrap();
        example().write(&run).unwrap();
        assert_eq!(Manifest::read(run.path()).unwrap(), example());
        assert_eq!(Manifest::read(run.manifest_path()).unwrap(), example());
    }

    #[test]
    fn every_bad_manifest_says_which_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path().join("sft")).unwrap();
        let at = run.manifest_path();
        let again = "run the stage that makes this directory again";
        let fails = |text: &str| {
            fs_err::write(&at, text).unwrap();
            Manifest::read(&at).unwrap_err().to_string()
        };
        let p = at.display();
        assert_eq!(
            fails("{\"format_version\": 1"),
            format!(
                "{p}: not a manifest (EOF while parsing an object at line 1 column 20); {again}"
            )
        );
        assert_eq!(fails("{}"), format!("{p}: not a manifest (no `format_version`); {again}"));
        assert_eq!(
            fails("{\"format_version\": 1}"),
            format!("{p}: not a manifest (missing field `stage`); {again}")
        );
        assert_eq!(
            fails("{\"format_version\": 2}"),
            format!(
                "{p}: format version 2, but this build reads version 1; \
                 run the stage again with this build, or use the build that made it"
            )
        );
        fs_err::remove_file(&at).unwrap();
        assert_eq!(
            Manifest::read(run.path()).unwrap_err().to_string(),
            format!(
                "{}: no manifest.json, so the run that makes it has not finished; \
                 run its stage to the end first",
                run.path().display()
            )
        );
        assert!(Manifest::read(&at).unwrap_err().to_string().contains("manifest.json"));
    }
}
