//! The real binary on small data: what it writes, that it writes the same again, and what it says
//! when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod constitution;
mod determinism;
mod outputs;
mod preferences;
mod prompts;

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;
use serde_json::Value;
use tempfile::TempDir;

/// A folder with data and a config, and what a run in it gave.
struct Yard {
    folder: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Yard {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Runs `data-prep` in the folder with `config.toml`.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "2")
    }

    fn run_with(&self, arguments: &[&str], threads: &str) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_data-prep"))
            .args(["--config", "config.toml"])
            .args(arguments)
            .env("RAYON_NUM_THREADS", threads)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs with a config and expects success.
    fn prepare(&self, config: &str) -> Ran {
        self.write("config.toml", config);
        let ran = self.run(&[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }

    /// The `results` of the manifest.
    fn results(&self, out: &str) -> Value {
        let text = fs::read_to_string(self.path(out).join("manifest.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["results"].clone()
    }
}

/// Korean and English instructions in Alpaca's form.
fn alpaca(rows: usize) -> String {
    let record = |n: usize| {
        let (instruction, input, output) = if n.is_multiple_of(2) {
            (format!("{n}에 하나를 더하세요."), String::new(), format!("{}입니다.", n + 1))
        } else {
            ("Add one.".to_owned(), format!("{n}"), format!("That makes {}.", n + 1))
        };
        serde_json::json!({"instruction": instruction, "input": input, "output": output})
    };
    Value::Array((0..rows).map(record).collect()).to_string()
}

/// Every file below `root` with its bytes, but for the manifest, which tells the time.
fn snapshot(root: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if !path.ends_with("manifest.json") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}
