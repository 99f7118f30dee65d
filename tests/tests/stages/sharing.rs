//! Two processes and one run directory, and inputs that another process writes to.

use super::*;

#[test]
fn the_second_process_on_a_run_directory_names_the_first_and_leaves_it_alone() {
    let yard = yard(&["data"]);
    let dir = yard.path();
    let command = |name| stage(name, dir).args(["--set", "train.steps=100000"]);
    let mut first = command("pretrain").start().unwrap();
    let log = dir.join("pretrain/metrics.jsonl");
    let lines = || fs_err::read_to_string(&log).map_or(0, |text| text.lines().count());
    assert!(first.wait_until(|| lines() > 0).unwrap());
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let who = format!(
        "error: pretrain: process {} on {} has been at work here since 20",
        first.id().unwrap(),
        host.trim()
    );
    let hint = "hint: wait for it, stop it, or choose another run directory with --out";
    for extra in [&[][..], &["--resume", "never"]] {
        let second = command("pretrain").args(extra.iter().copied());
        second.fail(2, &[&who, hint]).unwrap();
    }
    let before = lines();
    assert!(first.wait_until(|| lines() > before).unwrap(), "the first goes on");
    first.kill().unwrap();
    assert!(dir.join("pretrain/.holder.json").exists(), "a killed process cannot tidy up");
    let third = stage("pretrain", dir).args(["--resume", "never"]).succeed().unwrap();
    assert!(!dir.join("pretrain/.holder.json").exists(), "{third}");
    assert_same_files(&dir.join("pretrain/model"), &FINISHED.join("pretrain/model"));
}

#[test]
fn data_that_changes_under_a_run_is_named_and_what_was_saved_before_is_good() {
    let yard = yard(&["data"]);
    let dir = yard.path();
    let mut running = stage("pretrain", dir).start().unwrap();
    let log = dir.join("pretrain/metrics.jsonl");
    assert!(running.wait_until(|| log.exists()).unwrap(), "it ended too soon");
    let data = dir.join("data/data/text");
    let train = fs_err::read(data.join("train.parquet")).unwrap();
    let other = fs_err::read(data.join("validation.parquet")).unwrap();
    artifact::atomic::write_bytes(data.join("train.parquet"), &other).unwrap();
    let outcome = running.finish().unwrap();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    let parts = [
        "error: data/data/text/train.parquet: changed while this run read it",
        "caused by: data/data/text/train.parquet: changed since stage `data-prep` wrote it",
        "hint: put it back and run the same command again to go on, or start over with --resume never",
    ];
    outcome.expect_error(&parts).unwrap();
    assert!(!dir.join("pretrain/manifest.json").exists());
    fs_err::write(data.join("train.parquet"), train).unwrap();
    stage("pretrain", dir).succeed().unwrap();
    assert_same_files(&dir.join("pretrain/model"), &FINISHED.join("pretrain/model"));
}
