//! Several processes that prepare data together: the bytes of one, and what becomes of a rank that dies, hangs or is told to stop.

use serde_json::json;
use temper_tests::binaries::{Outcome, Running};

use super::*;

/// Text in many files and in one large file, conversations, pairs, prompts, a set of one record, and generated records;
/// exact and near repeats within files, between files, and between what different ranks make.
const CONFIG: &str = r#"
seed = 3
out = "run"
preview_rows = 2
[tokenizer.train]
vocab_size = 420
max_train_mb = 1
datasets = ["few", "many", "large", "chat"]
[datasets.many]
kind = "text"
sources = ["many"]
max_length = 24
validation_fraction = 0.1
dedup.near = { threshold = 0.9, num_hashes = 64, bands = 16, shingle_chars = 4 }
[datasets.large]
kind = "text"
sources = ["large.jsonl"]
max_length = 48
validation_fraction = 0.1
bad_records = "skip"
[datasets.chat]
kind = "chat"
sources = ["chat.jsonl"]
max_length = 96
validation_fraction = 0.2
train_prompts = true
[datasets.pairs]
kind = "preference"
sources = ["pairs.jsonl"]
max_length = 96
validation_fraction = 0.2
dedup.near.threshold = 0.95
[datasets.prompts]
kind = "prompt"
sources = ["pairs.jsonl"]
max_length = 96
validation_fraction = 0.3
[datasets.few]
kind = "text"
sources = ["few.txt"]
max_length = 48
[datasets.village]
kind = "text"
max_length = 64
[datasets.village.world]
seed = 2
part = "pretrain"
records = 300
"#;

/// Parts of the large file, of which the reader makes chunks of 2048 records.
const LARGE: usize = 9000;

fn data_yard() -> tempfile::TempDir {
    let yard = tempfile::tempdir().unwrap();
    let dir = yard.path();
    let texts = corpus::texts(LARGE);
    for file in 0..12 {
        // Each has some of its own, some of the one before, and some of the first.
        let own = texts[file * 40..file * 40 + 60].iter().chain(&texts[..5]);
        let path = dir.join(format!("many/{file:02}.jsonl"));
        corpus::write_jsonl(&path, &own.cloned().collect::<Vec<_>>()).unwrap();
    }
    fs_err::write(dir.join("many/05-empty.jsonl"), "").unwrap();
    let mut large = texts.clone();
    for place in (10..LARGE).step_by(7) {
        large[place] = texts[place * 31 % LARGE].clone();
    }
    large[5000] = json!(["no record"]);
    large[5001] = json!({"text": "  \u{0} "});
    corpus::write_jsonl(&dir.join("large.jsonl"), &large).unwrap();
    corpus::write_jsonl(&dir.join("chat.jsonl"), &corpus::conversations(2500)).unwrap();
    let mut pairs = corpus::preferences(2300);
    pairs.extend_from_within(100..300);
    corpus::write_jsonl(&dir.join("pairs.jsonl"), &pairs).unwrap();
    fs_err::write(dir.join("few.txt"), "한 줄뿐입니다.\n").unwrap();
    fs_err::write(dir.join("data-prep.toml"), CONFIG).unwrap();
    yard
}

fn command(dir: &Path) -> Stage<'_> {
    stage("data-prep", dir)
}

fn finish(ranks: Vec<Running>) -> Vec<Outcome> {
    ranks.into_iter().map(|rank| rank.finish().unwrap()).collect()
}

/// Every file of a run with its bytes, hidden ones too; of the manifest all but the time.
fn everything(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = files(run);
    for (name, bytes) in &mut found {
        if name.ends_with("manifest.json") {
            let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
            for time in ["started_at", "finished_at", "wall_seconds"] {
                assert!(manifest.as_object_mut().unwrap().remove(time).is_some(), "{time}");
            }
            *bytes = manifest.to_string().into_bytes();
        }
    }
    found
}

#[track_caller]
fn assert_same(expected: &[(PathBuf, Vec<u8>)], run: &Path) {
    let now = everything(run);
    let names =
        |list: &[(PathBuf, Vec<u8>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(expected), names(&now));
    let both = expected.iter().zip(&now);
    let differing: Vec<_> = both.filter(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
}

/// Runs as one process; gives what it left and said, and takes it away.
fn one(dir: &Path) -> (Vec<(PathBuf, Vec<u8>)>, String) {
    let alone = command(dir).succeed().unwrap();
    let left = everything(&dir.join("run"));
    fs_err::remove_dir_all(dir.join("run")).unwrap();
    (left, alone.stdout)
}

/// Whether a rank has begun to make something.
fn has_claimed(run: &Path, rank: usize) -> bool {
    let found = |folder: &Path| {
        let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let claims = found(&run.join(".ranks")).into_iter().flat_map(|folder| found(&folder));
    claims
        .filter(|path| path.extension().is_some_and(|kind| kind == "claim"))
        .any(|path| fs_err::read_to_string(path).is_ok_and(|who| who == rank.to_string()))
}

#[test]
fn two_and_three_processes_leave_the_bytes_of_one() {
    let yard = data_yard();
    let dir = yard.path();
    let (expected, said) = one(dir);
    let dropped = |set: &str, why: &str| {
        let manifest = expected.iter().find(|(name, _)| name.ends_with("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest.1).unwrap();
        manifest["results"]["datasets"][set]["dropped"][why].as_u64().unwrap_or_default()
    };
    // The case must not be trivial.
    assert!(dropped("many", "exact duplicate") > 200 && dropped("many", "near duplicate") > 20);
    assert!(dropped("large", "exact duplicate") > 1000 && dropped("large", "not an object") == 1);
    assert!(dropped("pairs", "exact duplicate") >= 200);
    for size in [2, 3] {
        let ranks = finish(command(dir).start_ranks(size).unwrap());
        for outcome in &ranks {
            assert_eq!(outcome.code(), Some(0), "{outcome}");
        }
        assert_eq!(ranks[0].stdout, said);
        assert!(ranks[1..].iter().all(|rank| rank.stdout.is_empty() && rank.stderr.is_empty()));
        assert_same(&expected, &dir.join("run"));
        // The last of these is written over by the next.
        if size == 2 {
            fs_err::remove_dir_all(dir.join("run")).unwrap();
        }
    }
}

/// Two processes take a tokenizer that exists without one having to wait for the other.
#[test]
fn two_processes_take_over_a_tokenizer_and_leave_the_bytes_of_one() {
    let yard = data_yard();
    let dir = yard.path();
    command(dir).args(["--out", "first"]).succeed().unwrap();
    let (_, sets) = CONFIG.split_once("[datasets.many]").unwrap();
    let existing = format!(
        "seed = 4\nout = \"run\"\n[tokenizer.existing]\npath = \"first\"\n[datasets.many]{sets}"
    );
    fs_err::write(dir.join("data-prep.toml"), existing).unwrap();
    let (expected, _) = one(dir);
    for outcome in finish(command(dir).start_ranks(2).unwrap()) {
        assert_eq!(outcome.code(), Some(0), "{outcome}");
    }
    assert_same(&expected, &dir.join("run"));
}

#[test]
fn a_rank_that_is_killed_is_named_and_the_next_start_has_the_bytes_of_one() {
    let yard = data_yard();
    let dir = yard.path();
    let run = dir.join("run");
    let (expected, _) = one(dir);
    for killed in [1, 0] {
        let mut ranks = command(dir).start_ranks(2).unwrap();
        assert!(ranks[killed].wait_until(|| has_claimed(&run, killed)).unwrap());
        ranks.remove(killed).kill().unwrap();
        let other = finish(ranks).remove(0);
        assert_eq!(other.code(), Some(1), "{other}");
        let named = format!("rank {killed} gives no sign of life");
        other.expect_error(&[&named, "hint: its own output says why"]).unwrap();
        assert!(!run.join("manifest.json").exists());
    }
    assert!(run.join(".ranks").exists(), "the killed first rank cannot have cleared up");
    for outcome in finish(command(dir).start_ranks(3).unwrap()) {
        assert_eq!(outcome.code(), Some(0), "{outcome}");
    }
    assert_same(&expected, &run);
}

#[test]
fn a_killed_job_is_begun_anew_by_one_process() {
    let yard = data_yard();
    let dir = yard.path();
    let run = dir.join("run");
    let (expected, _) = one(dir);
    let mut ranks = command(dir).start_ranks(2).unwrap();
    assert!(ranks[1].wait_until(|| has_claimed(&run, 1)).unwrap());
    for rank in ranks {
        rank.kill().unwrap();
    }
    assert!(run.join(".ranks").exists());
    command(dir).succeed().unwrap();
    assert_same(&expected, &run);
}

#[test]
fn a_rank_that_hangs_ends_the_others() {
    let yard = data_yard();
    let run = yard.path().join("run");
    let stage = command(yard.path()).args(["--rank-timeout", "3"]);
    let mut ranks = stage.start_ranks(3).unwrap();
    assert!(ranks[2].wait_until(|| has_claimed(&run, 2)).unwrap());
    ranks[2].signal("STOP").unwrap();
    let hung = ranks.pop().unwrap();
    for other in finish(ranks) {
        assert_eq!(other.code(), Some(1), "{other}");
        other.expect_error(&["rank 2 "]).unwrap();
    }
    drop(hung);
}

#[test]
fn a_signal_to_one_rank_stops_all() {
    let yard = data_yard();
    let run = yard.path().join("run");
    for told in [0, 1] {
        let mut ranks = command(yard.path()).start_ranks(2).unwrap();
        assert!(ranks[told].wait_until(|| has_claimed(&run, told)).unwrap());
        ranks[told].signal("TERM").unwrap();
        for outcome in finish(ranks) {
            assert_eq!(outcome.code(), Some(143), "{outcome}");
        }
        assert!(!run.join("manifest.json").exists());
    }
}

/// The first of several bad records is told, by the first rank and as one process tells it.
#[test]
fn what_is_wrong_with_a_record_is_said_as_one_process_says_it() {
    let yard = data_yard();
    let dir = yard.path();
    let text = fs_err::read_to_string(dir.join("large.jsonl")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[2100] = "{\"text\": ";
    lines[8100] = "[]";
    fs_err::write(dir.join("large.jsonl"), lines.join("\n")).unwrap();
    let strict = ["--set", "datasets.large.bad_records=\"fail\""];
    let alone = command(dir).args(strict).fail(1, &["large.jsonl:2101: not valid JSON"]).unwrap();
    let ranks = finish(command(dir).args(strict).start_ranks(2).unwrap());
    let error =
        |outcome: &Outcome| outcome.stderr[outcome.stderr.find("error:").unwrap()..].to_owned();
    assert_eq!(error(&alone), error(&ranks[0]));
    assert_eq!((ranks[0].code(), ranks[1].code()), (Some(1), Some(1)));
    ranks[1].expect_error(&["rank 0 failed: data set `large`"]).unwrap();
}

/// A finished run in the directory, or another job at work there, is left alone by a job that cannot begin.
#[test]
fn a_job_that_cannot_begin_leaves_the_directory_as_it_is() {
    let yard = data_yard();
    let dir = yard.path();
    command(dir).succeed().unwrap();
    let before = everything(&dir.join("run"));
    fs_err::write(dir.join("data-prep.toml"), CONFIG.replace("\"few.txt\"", "\"run\"")).unwrap();
    let ranks = finish(command(dir).start_ranks(2).unwrap());
    assert_eq!((ranks[0].code(), ranks[1].code()), (Some(2), Some(1)), "{}{}", ranks[0], ranks[1]);
    ranks[0].expect_error(&["the run reads this and would replace it"]).unwrap();
    ranks[1].expect_error(&["rank 0 failed"]).unwrap();
    assert!(before == everything(&dir.join("run")));
}
