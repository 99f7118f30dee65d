//! What the binary says of what it cannot use.

use crate::fixture::{Yard, data};

/// Runs it over `runs` and expects `code` and every part in its error.
#[track_caller]
fn fails(yard: &Yard, runs: &str, arguments: &[&str], code: i32, parts: &[&str]) {
    yard.config(runs);
    let ran = yard.report(arguments);
    assert_eq!(ran.code, code, "{}\n{}", ran.stdout, ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "{part:?} is not in\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("internal error"));
    assert!(!yard.path("out/report.html").exists());
}

#[test]
fn a_wrong_config_tells_every_problem() {
    let yard = Yard::quick();
    fs_err::create_dir_all(yard.path("empty")).unwrap();
    let runs =
        "a = []\nb = [\"none\"]\nc = [\"empty\"]\nd = [\"runs/quick/sft\", \"runs/quick/sft\"]";
    let parts = [
        "config.toml has 5 problems",
        "- max_points: must be at least 3",
        "- runs.a: is empty; name run directories or a folder of them",
        "- runs.b: none does not exist",
        "- runs.c: empty is no run directory and holds none; name the directories that stages wrote",
        "- runs.d: names runs/quick/sft twice",
    ];
    fails(&yard, runs, &["--set", "max_points=2"], 2, &parts);
    fails(
        &yard,
        "",
        &[],
        2,
        &["- runs: is empty; name a pipeline and its run directories, as in:"],
    );
    fails(&yard, "a = [\"runs\"]\n[more]", &[], 2, &["unknown field `more`"]);
}

#[test]
fn the_report_does_not_read_itself() {
    let yard = Yard::quick();
    let page = yard.page("quick = [\"runs/quick\"]");
    fs_err::remove_file(page).unwrap();
    let error = "- runs.a: out is the run directory of a report; name others";
    fails(&yard, "a = [\"out\"]", &[], 2, &[error]);
    // Nor an earlier one, which lies among the runs.
    yard.page("quick = [\"runs/quick\"]");
    fs_err::rename(yard.path("out"), yard.path("runs/quick/report")).unwrap();
    let page = yard.page("quick = [\"runs/quick\"]");
    assert_eq!(data(&page)["runs"].as_array().unwrap().len(), 6);
    let error = "- runs.a: runs/quick/report is the run directory of a report; name others";
    fs_err::remove_dir_all(yard.path("out")).unwrap();
    fails(&yard, "a = [\"runs/quick/report\"]", &[], 2, &[error]);
}

#[test]
fn damaged_files_are_named() {
    let yard = Yard::quick();
    let quick = "quick = [\"runs/quick\"]";
    let metrics = yard.dir("quick", "sft").metrics_path();
    let good = fs_err::read_to_string(&metrics).unwrap();
    fs_err::write(&metrics, format!("no line\n{good}")).unwrap();
    let line = "runs/quick/sft/metrics.jsonl: line 1 is no JSON object with a `step`";
    fails(&yard, quick, &[], 1, &["cannot read the run runs/quick/sft", line]);
    fs_err::write(&metrics, good).unwrap();

    let results = yard.dir("quick", "evaluate").results_path();
    let good = fs_err::read_to_string(&results).unwrap();
    fs_err::write(&results, "{}").unwrap();
    fails(&yard, quick, &[], 1, &["results.json: changed since stage `evaluate` wrote it"]);
    fs_err::write(&results, good).unwrap();

    let samples = yard.dir("quick", "peft").samples_path();
    let good = fs_err::read(&samples).unwrap();
    fs_err::write(&samples, "no table").unwrap();
    fails(&yard, quick, &[], 1, &["samples.parquet: changed since stage `peft` wrote it"]);

    fs_err::write(&samples, good).unwrap();

    fs_err::write(yard.dir("quick", "sft").manifest_path(), "{").unwrap();
    fails(&yard, quick, &[], 1, &["runs/quick/sft/manifest.json: not a manifest"]);
}

#[test]
fn a_missing_config_is_wrong_usage() {
    let yard = Yard::new();
    let ran = yard.report(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot load config.toml"), "{}", ran.stderr);
    assert!(ran.stderr.contains("give another file with --config"), "{}", ran.stderr);
}
