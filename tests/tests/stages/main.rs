//! The real binaries, stage after stage, on a tiny corpus: what they leave, that it comes out the same again, that kills
//! and signals lose nothing, and what is said when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adapter_refusals;
mod adapter_stages;
mod adapters;
mod bad_input;
mod cai;
mod chat;
mod configs;
mod data_ranks;
mod evaluate;
mod fine_tuning;
mod interruption;
mod pipeline;
mod pipelines;
mod ppo;
mod ranks;
mod refusals;
mod reward;
mod sharing;
mod stand_ins;
mod torture;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use artifact::rows::{Cell, Column, TableReader};
use serde_json::Value;
use temper_tests::binaries::Stage;
use temper_tests::corpus;

pub(crate) use configs::*;

/// Pairs that there are to learn from.
const PREFERENCES: usize = 150;

/// Every stage finished, made once; tests that change something work on a copy.
static FINISHED: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stages");
    let _ = fs_err::remove_dir_all(&dir);
    fs_err::create_dir_all(&dir).unwrap();
    let mut conversations = corpus::conversations(200);
    for (row, record) in conversations.iter_mut().enumerate() {
        let answer = record["messages"][1]["content"].clone();
        record["checker"] = serde_json::json!({"exact": {"answer": answer}});
        record["task"] = if row % 2 == 0 { "en" } else { "ko" }.into();
    }
    corpus::write_jsonl(&dir.join("texts.jsonl"), &corpus::texts(600)).unwrap();
    corpus::write_jsonl(&dir.join("conversations.jsonl"), &conversations).unwrap();
    let mut preferences = corpus::preferences(PREFERENCES);
    // Two that prefer nothing.
    for (chosen, rejected) in [("Minsu.", "Minsu."), ("민수.", " ")] {
        let pair = serde_json::json!({"prompt": "Who?", "chosen": chosen, "rejected": rejected});
        preferences.push(pair);
    }
    corpus::write_jsonl(&dir.join("preferences.jsonl"), &preferences).unwrap();
    corpus::write_jsonl(&dir.join("requests.jsonl"), &requests()).unwrap();
    corpus::write_jsonl(&dir.join("things.jsonl"), &things()).unwrap();
    let peft = FINETUNE.replace("\"finetune\"", "\"peft\"").replace("5e-3", "2e-2") + LORA;
    fs_err::write(dir.join("constitution.toml"), CONSTITUTION).unwrap();
    for (name, config) in [
        ("data-prep", DATA_PREP),
        ("pretrain", PRETRAIN),
        ("sft", SFT),
        ("reward", REWARD),
        ("ppo", PPO),
        ("cai generate", CAI_GENERATE),
        ("cai train", CAI_TRAIN),
        ("cai label", CAI_LABEL),
        ("finetune", FINETUNE),
        ("peft", &peft),
        ("evaluate", EVALUATE),
    ] {
        fs_err::write(dir.join(config_of(name)), config).unwrap();
        stage(name, &dir).succeed().unwrap();
    }
    dir
});

/// Requests to answer: every third unsafe, both languages, with checkers.
fn requests() -> Vec<Value> {
    let one = |row: usize| {
        let english = row.is_multiple_of(2);
        let prompt = if english {
            format!("Who was at place {row}?")
        } else {
            format!("{row}번 자리에 누가 있었어요?")
        };
        let (task, checker) = if row.is_multiple_of(3) {
            (
                "unsafe",
                serde_json::json!({"refusal": {"any": ["I will not", "안 돼요"], "none": ["Minsu", "민수"]}}),
            )
        } else {
            ("harmless", serde_json::json!({"contains": {"all": ["Minsu"]}}))
        };
        serde_json::json!({"prompt": prompt, "task": task, "checker": checker})
    };
    (0..100).map(one).collect()
}

/// A task: which of two things was at a place.
fn things() -> Vec<Value> {
    let one = |place: usize| {
        let thing = if place % 4 < 2 { "apple" } else { "pear" };
        let (language, story) = if place.is_multiple_of(2) {
            ("en", format!("Minsu found the {thing} at place {place}."))
        } else {
            ("ko", format!("민수는 {place}번 자리에서 {thing}을 찾았어요."))
        };
        let checker = serde_json::json!({"exact": {"answer": thing}});
        serde_json::json!({
            "story": story, "language": language, "thing": thing, "task": language, "checker": checker,
        })
    };
    (0..160).map(one).collect()
}

/// The name of a stage's config.
pub(crate) fn config_of(name: &str) -> String {
    format!("{}.toml", name.replace(' ', "-"))
}

/// A stage with its config in `dir`; the name is that of the program, and of its command where it has some.
pub(crate) fn stage<'a>(name: &'a str, dir: &'a Path) -> Stage<'a> {
    let (program, command) = name.split_once(' ').unwrap_or((name, ""));
    Stage::new(program, dir).args(command.split_whitespace()).args([
        "--config",
        &config_of(name),
        "--device",
        "cpu",
    ])
}

/// `--set` before each setting.
pub(crate) fn sets<'a>(settings: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    settings.iter().flat_map(|setting| ["--set", *setting])
}

/// A folder with copies of the configs and of some of the finished runs.
pub(crate) fn yard(runs: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(&*FINISHED).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_config = entry.path().extension().is_some_and(|extension| extension == "toml");
        if is_config || runs.contains(&name.as_str()) {
            copy(&entry.path(), &dir.path().join(&name));
        }
    }
    dir
}

pub(crate) fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        fs_err::copy(from, to).unwrap();
        return;
    }
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

/// The `results` of a run's manifest.
pub(crate) fn results(run: &Path) -> Value {
    json(&run.join("manifest.json"))["results"].clone()
}

/// The same without what the clock and the machine decide.
pub(crate) fn timeless_results(run: &Path) -> Value {
    let mut all = results(run);
    let of_clock = |key: &str| {
        ["tokens_per_second", "responses_per_second", "peak_memory_bytes", "memory"].contains(&key)
    };
    all.as_object_mut().unwrap().retain(|key, _| !of_clock(key));
    all
}

/// What a run read, in order: the roles in its manifest.
pub(crate) fn roles(run: &Path) -> Vec<String> {
    let manifest = json(&run.join("manifest.json"));
    let inputs = manifest["inputs"].as_array().unwrap();
    inputs.iter().map(|input| input["role"].as_str().unwrap().to_owned()).collect()
}

/// The rows of a Parquet table.
pub(crate) fn rows(path: &Path, columns: &[Column]) -> Vec<Vec<Cell>> {
    TableReader::open(path, columns, "").unwrap().map(Result::unwrap).collect()
}

/// The lines of `metrics.jsonl` without what the clock and the machine decide.
pub(crate) fn metrics(run: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(run.join("metrics.jsonl")).unwrap();
    let of_clock = |key: &str| {
        ["time", "tokens_per_second", "memory_bytes", "eps"].contains(&key)
            || key.starts_with("time/")
    };
    let timeless = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().retain(|key, _| !of_clock(key));
        line
    };
    text.lines().map(timeless).collect()
}

/// How many whole checkpoints a run has.
pub(crate) fn checkpoints(run: &Path) -> usize {
    let Ok(entries) = fs_err::read_dir(run.join("checkpoints")) else { return 0 };
    let hidden = |name: std::ffi::OsString| name.to_string_lossy().starts_with('.');
    entries.filter(|entry| !hidden(entry.as_ref().unwrap().file_name())).count()
}

/// Every file below `folder` with its bytes.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs_err::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.push((name, fs_err::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Fails with the names of the files that differ, not with their bytes. A model card names the run's own directory, so it does
/// not count.
#[track_caller]
pub(crate) fn assert_same_files(a: &Path, b: &Path) {
    let products = |folder| {
        let mut list = files(folder);
        list.retain(|(name, _)| !name.ends_with("README.md"));
        list
    };
    let (a, b) = (products(a), products(b));
    let names =
        |list: &[(PathBuf, Vec<u8>)]| list.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    let differing: Vec<_> =
        a.iter().zip(&b).filter(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
}
