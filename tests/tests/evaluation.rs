//! `evaluate` against transformers' perplexity and lm-evaluation-harness' choices, on tiny random models with tokenizers:
//! `tests/fixtures/parity/evaluation`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use artifact::evaluation::Evaluation;
use serde_json::Value;
use temper_tests::binaries::Stage;
use temper_tests::fixtures;

const MODELS: [&str; 2] = ["byte-level", "metaspace"];
/// Relative.
const TOLERANCE: f64 = 1e-4;

fn near(ours: f64, theirs: f64) -> bool {
    (ours - theirs).abs() <= TOLERANCE * theirs.abs()
}

/// The config for both models, over texts and questions in `dir`.
fn config(stride: u64, batch_tokens: usize) -> String {
    let mut out = format!(
        "seed = 1\nout = \"run\"\nbatch.tokens = {batch_tokens}\nbootstrap.samples = 100\n\
         [tests.texts.perplexity]\nsources = [\"texts.json\"]\nstride = {stride}\n\
         [tests.questions.choice]\nsources = [\"questions.json\"]\n"
    );
    for name in MODELS {
        let path = fixtures::parity("evaluation").join(name).join("model");
        let path = path.display().to_string();
        writeln!(out, "[models.{name}]\npath = {path:?}").unwrap();
    }
    // The last table is that of the second model.
    out + &format!("parent = {:?}\n", MODELS[0])
}

fn prepare(dir: &Path) {
    for name in ["texts.json", "questions.json"] {
        fs_err::copy(fixtures::parity("evaluation").join(name), dir.join(name)).unwrap();
    }
}

fn evaluate(dir: &Path, config: &str) -> Evaluation {
    fs_err::write(dir.join("evaluate.toml"), config).unwrap();
    let words = ["--config", "evaluate.toml", "--device", "cpu"];
    Stage::new("evaluate", dir).args(words).succeed().unwrap();
    Evaluation::read(&dir.join("run/results.json")).unwrap()
}

fn value(found: &Evaluation, model: &str, test: &str, metric: &str) -> f64 {
    let mut all = found.measurements.iter();
    let own = all.find(|own| own.model == model && own.test == test && own.metric == metric);
    own.unwrap_or_else(|| panic!("no {metric} of {model}")).value
}

fn expected(name: &str) -> Value {
    fixtures::json(&fixtures::parity("evaluation").join(name).join("expect.json")).unwrap()
}

#[test]
fn perplexity_and_choices_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let stride = expected(MODELS[0])["stride"].as_u64().unwrap();
    let found = evaluate(dir, &config(stride, 4096));
    for (model, name) in MODELS.into_iter().enumerate() {
        let expect = expected(name);
        for metric in ["loss", "perplexity", "bits_per_byte"] {
            let theirs = expect["perplexity"][metric].as_f64().unwrap();
            let ours = value(&found, name, "texts", metric);
            assert!(near(ours, theirs), "{name} {metric}: {ours} {theirs}");
        }
        for metric in ["accuracy", "accuracy_norm"] {
            assert_eq!(
                value(&found, name, "questions", metric),
                expect["choice"][metric].as_f64().unwrap()
            );
        }
        // Every choice's log-probability, of what the run keeps to go on from.
        let part = dir.join(format!("run/checkpoints/part-{model:04}-0001.json"));
        let columns = fixtures::json::<Value>(&part).unwrap()["columns"].clone();
        let mut compared = 0;
        for (item, row) in expect["choice"]["rows"].as_array().unwrap().iter().enumerate() {
            for (choice, theirs) in row["logprobs"].as_array().unwrap().iter().enumerate() {
                let ours = columns[format!("logprob_{choice}")][item].as_f64().unwrap();
                let theirs = theirs.as_f64().unwrap();
                assert!(
                    near(ours, theirs),
                    "{name} question {item} choice {choice}: {ours} {theirs}"
                );
                compared += 1;
            }
        }
        assert!(compared >= 20, "{compared}");
        let tokens: f64 = fixtures::json::<Value>(
            &dir.join(format!("run/checkpoints/part-{model:04}-0000.json")),
        )
        .unwrap()["columns"]["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|own| own.as_f64().unwrap())
            .sum();
        assert_eq!(Some(tokens), expect["perplexity"]["tokens"].as_f64());
    }
}

/// Perplexity means something else with other tokens, bits of a byte do not.
#[test]
fn models_of_other_tokens_are_compared_by_what_they_share() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let found = evaluate(dir, &config(24, 4096));
    let names: Vec<&str> = found.differences.iter().map(|own| own.metric.as_str()).collect();
    assert!(names.contains(&"bits_per_byte") && names.contains(&"accuracy"), "{names:?}");
    assert!(!names.contains(&"perplexity") && !names.contains(&"loss"), "{names:?}");
}

/// Another stride gives other numbers, other batches do not.
#[test]
fn the_stride_counts_and_the_batch_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let theirs = expected("byte-level")["perplexity"]["loss"].as_f64().unwrap();
    let stride = expected("byte-level")["stride"].as_u64().unwrap();
    let loss = |config: &str| value(&evaluate(dir, config), "byte-level", "texts", "loss");
    assert!(near(loss(&config(stride, 50)), theirs));
    assert!(!near(loss(&config(63, 4096)), theirs));
}

#[test]
fn a_stride_beyond_the_window_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    fs_err::write(dir.join("evaluate.toml"), config(64, 64)).unwrap();
    Stage::new("evaluate", dir)
        .args(["--config", "evaluate.toml"])
        .fail(2, &["tests.texts.perplexity.stride: must be at least 1 and below the window, which is 64 tokens"])
        .unwrap();
}
