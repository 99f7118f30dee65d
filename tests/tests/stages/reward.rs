//! The reward model: what its run leaves, and what it says of the responses of any file.

use artifact::rows::{Kind, TableWriter};

use super::*;

/// A row of the run's `samples.parquet`.
struct Sample {
    /// Prompt, chosen and rejected.
    texts: [String; 3],
    /// Of chosen and rejected.
    scores: [f64; 2],
    task: String,
}

fn text(name: &str) -> Column {
    Column::required(name, Kind::Text)
}

fn score_of(name: &str) -> Column {
    Column::required(name, Kind::Float32)
}

fn samples(run: &Path) -> Vec<Sample> {
    let columns = [
        text("prompt"),
        text("chosen"),
        text("rejected"),
        text("task"),
        score_of("chosen_score"),
        score_of("rejected_score"),
    ];
    let sample = |row: &Vec<Cell>| {
        let text = |at: usize| row[at].as_text().unwrap().to_owned();
        let score = |at: usize| row[at].as_f64().unwrap();
        Sample { texts: [0, 1, 2].map(text), task: text(3), scores: [4, 5].map(score) }
    };
    rows(&run.join("samples.parquet"), &columns).iter().map(sample).collect()
}

/// A table of texts at `path`.
fn write(path: &Path, names: &[&str], texts: &[Vec<&str>]) {
    let columns: Vec<Column> = names.iter().map(|name| text(name)).collect();
    let mut table = TableWriter::create(path, &columns).unwrap();
    for row in texts {
        let cells: Vec<Cell> = row.iter().map(|text| Cell::from(*text)).collect();
        table.write_row(&cells).unwrap();
    }
    table.finish().unwrap();
}

/// `reward score` in `dir`.
fn score<'a>(dir: &'a Path, model: &str, input: &str, output: &str) -> Stage<'a> {
    let files = ["--input", input, "--output", output];
    Stage::new("reward", dir).args(["score", "--model", model, "--device", "cpu"]).args(files)
}

#[track_caller]
fn assert_near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-4, "{got} is not {want}");
}

#[test]
fn the_run_directory_holds_a_classifier_of_one_label() {
    let run = FINISHED.join("reward");
    let manifest = json(&run.join("manifest.json"));
    assert_eq!(manifest["stage"], "reward");
    assert_eq!(roles(&run), ["model", "train", "validation", "tokenizer"]);
    for file in ["model/model.safetensors", "model/config.json", "samples.parquet"] {
        let digest = artifact::digest::file(run.join(file)).unwrap();
        assert_eq!(manifest["outputs"][file], digest.as_str(), "{file}");
    }
    assert_eq!(fs_err::read_dir(run.join("tensorboard")).unwrap().count(), 1);

    let config = json(&run.join("model/config.json"));
    assert_eq!(config["architectures"], serde_json::json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], serde_json::json!({"0": "LABEL_0"}));
    // transformers scores the last token that is not padding, which must not be one that ends a text.
    let generation = json(&run.join("model/generation_config.json"));
    let stops = generation["eos_token_id"].as_array().unwrap();
    assert_eq!(stops.len(), 2);
    assert!(config["pad_token_id"].is_u64() && !stops.contains(&config["pad_token_id"]));
    let weights = run.join("model/model.safetensors");
    let tensors = temper_tests::fixtures::Tensors::read(&weights).unwrap();
    assert_eq!(tensors.get("score.weight").unwrap().size(), [1, 32]);
}

#[test]
fn what_is_reported_is_what_the_held_out_pairs_say() {
    let run = FINISHED.join("reward");
    let (reported, samples) = (results(&run), samples(&run));
    let number = |value: &Value| value.as_f64().unwrap();
    assert_eq!(reported["pairs"], samples.len());
    let share = |of: &dyn Fn(&Sample) -> bool| {
        let judged: Vec<&Sample> = samples.iter().filter(|&sample| of(sample)).collect();
        let right = judged.iter().filter(|sample| sample.scores[0] > sample.scores[1]).count();
        right as f64 / judged.len() as f64
    };
    assert_near(number(&reported["accuracy"]), share(&|_| true));
    for task in ["en", "ko"] {
        let by_task = &reported["accuracy_by_task"][task];
        assert_near(number(by_task), share(&|sample| sample.task == task));
    }
    // A refusal is easily told from an answer, and two thirds of the rejected are one.
    assert!(number(&reported["accuracy"]) > 0.6, "{reported}");

    let scores: Vec<f64> = samples.iter().flat_map(|sample| sample.scores).collect();
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    assert_near(number(&reported["score_mean"]), mean);
    assert_near(number(&reported["score_std"]), (squares / (count - 1.0)).sqrt());
    let margins = samples.iter().map(|sample| sample.scores[0] - sample.scores[1]);
    assert_near(number(&reported["margin"]), margins.sum::<f64>() / samples.len() as f64);
    let config = json(&run.join("model/config.json"));
    for key in ["score_mean", "score_std"] {
        assert_eq!(config[key], reported[key]);
    }
    assert!((0.0..1.0).contains(&number(&reported["calibration_error"])));
    assert!((-1.0..=1.0).contains(&number(&reported["length_correlation"])));
    // The weights that are handed on are those of the best evaluation.
    assert_near(number(&reported["eval_accuracy"]), number(&reported["accuracy"]));
    assert_near(number(&reported["eval_mean_reward"]), mean);
}

#[test]
fn losses_are_logged_with_what_trl_logs_and_fall() {
    let lines = metrics(&FINISHED.join("reward"));
    let (steps, evals): (Vec<&Value>, Vec<&Value>) =
        lines.iter().partition(|line| line["loss"].is_number());
    assert_eq!((steps.len(), evals.len()), (6, 3));
    for key in ["loss", "accuracy", "margin", "mean_reward", "learning_rate", "grad_norm"] {
        assert!(steps.iter().all(|line| line[key].is_number()), "{key}: {steps:?}");
    }
    for key in ["eval_loss", "eval_accuracy", "eval_margin", "eval_mean_reward"] {
        assert!(evals.iter().all(|line| line[key].is_number()), "{key}: {evals:?}");
    }
    let losses: Vec<f64> = steps.iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    assert!(losses[5] < 0.9 * losses[0], "{losses:?}");
}

#[test]
fn a_reward_model_can_be_trained_on() {
    let yard = yard(&["data", "reward"]);
    // One step, at a rate of 0: it is still warming up.
    let settings = ["model.path=reward", "train.steps=1"];
    stage("reward", yard.path()).args(["--out", "on"]).args(sets(&settings)).succeed().unwrap();
    let weights =
        |run: &str| fs_err::read(yard.path().join(run).join("model/model.safetensors")).unwrap();
    assert!(weights("on") == weights("reward"), "its score is not where it was");
    let (on, before) = (results(&yard.path().join("on")), results(&FINISHED.join("reward")));
    assert_eq!(on["score_mean"], before["score_mean"]);
}

#[test]
fn score_adds_to_either_form_what_the_run_itself_found() {
    let yard = yard(&["reward"]);
    let dir = yard.path();
    let samples = samples(&dir.join("reward"));
    let texts = samples.iter().map(|sample| sample.texts.each_ref().map(String::as_str));
    let single: Vec<Vec<&str>> =
        texts.clone().map(|[prompt, chosen, _]| vec!["kept", prompt, chosen]).collect();
    write(&dir.join("single.parquet"), &["note", "prompt", "response"], &single);
    score(dir, "reward", "single.parquet", "scored.parquet").succeed().unwrap();
    let columns = [text("note"), text("prompt"), text("response"), score_of("score")];
    let scored = rows(&dir.join("scored.parquet"), &columns);
    assert_eq!(scored.len(), samples.len());
    for ((row, given), sample) in scored.iter().zip(&single).zip(&samples) {
        let kept: Vec<&str> = row[..3].iter().map(|cell| cell.as_text().unwrap()).collect();
        assert_eq!(&kept, given);
        assert_near(row[3].as_f64().unwrap(), sample.scores[0]);
    }

    let pairs: Vec<Vec<&str>> = texts.map(Vec::from).collect();
    write(&dir.join("pairs.parquet"), &["prompt", "chosen", "rejected"], &pairs);
    // Few at a time: how many go through the model together is no part of a score.
    let few = ["--batch-tokens", "64"];
    score(dir, "reward", "pairs.parquet", "scored.parquet").args(few).succeed().unwrap();
    let columns = [score_of("chosen_score"), score_of("rejected_score")];
    let scored = rows(&dir.join("scored.parquet"), &columns);
    assert_eq!(scored.len(), samples.len());
    for (row, sample) in scored.iter().zip(&samples) {
        assert_near(row[0].as_f64().unwrap(), sample.scores[0]);
        assert_near(row[1].as_f64().unwrap(), sample.scores[1]);
    }
}

#[test]
fn score_renders_a_question_and_passes_over_what_is_too_long() {
    let yard = yard(&["reward"]);
    let dir = yard.path();
    let sample = samples(&dir.join("reward")).remove(0);
    let [prompt, chosen, _] = &sample.texts;
    let question = prompt.strip_prefix("<|bos|><|user|>").unwrap();
    let question = question.strip_suffix("<|end|><|assistant|>").unwrap();
    let long = "x ".repeat(300);
    let texts = [vec![question, chosen], vec![question, &long]];
    write(&dir.join("questions.parquet"), &["prompt", "response"], &texts);
    let outcome = score(dir, "reward", "questions.parquet", "scored.parquet")
        .args(["--form", "chat"])
        .succeed()
        .unwrap();
    let warning = "1 texts are longer than the model's 128 positions and have no score";
    assert!(outcome.stderr.contains(warning), "{outcome}");
    let columns = [Column::optional("score", Kind::Float32)];
    let scored = rows(&dir.join("scored.parquet"), &columns);
    assert_near(scored[0][0].as_f64().unwrap(), sample.scores[0]);
    assert_eq!(scored[1][0], Cell::Null);
}

#[test]
fn score_says_what_it_cannot_score() {
    let yard = yard(&["reward", "sft"]);
    let dir = yard.path();
    write(&dir.join("text.parquet"), &["text"], &[vec!["x"]]);
    write(&dir.join("prompt.parquet"), &["prompt"], &[vec!["x"]]);
    let advice =
        "scored are the text columns `prompt` and `response`, or `prompt`, `chosen` and `rejected`";
    score(dir, "reward", "text.parquet", "out.parquet")
        .fail(
            1,
            &["error: text.parquet: no column `prompt` of type utf8; it has (text: Utf8)", advice],
        )
        .unwrap();
    score(dir, "reward", "prompt.parquet", "out.parquet")
        .fail(1, &["prompt.parquet: no column `response` of type utf8", advice])
        .unwrap();
    score(dir, "sft", "text.parquet", "out.parquet")
        .fail(2, &["error: sft: this is a language model, which has no score; give a reward model"])
        .unwrap();
    score(dir, "nowhere", "text.parquet", "out.parquet")
        .fail(2, &["error: nowhere: does not exist; give a Hugging Face model directory"])
        .unwrap();
    score(dir, "reward", "none.parquet", "out.parquet").fail(1, &["none.parquet"]).unwrap();
    assert!(!dir.join("out.parquet").exists());
}

#[test]
fn help_names_both_forms() {
    let help = Stage::new("reward", &FINISHED).args(["score", "--help"]).succeed().unwrap();
    let words: Vec<&str> = help.stdout.split_whitespace().collect();
    let words = words.join(" ");
    for part in [
        "text columns `prompt` and `response`, or `prompt`, `chosen` and `rejected`",
        "the column `score`, or `chosen_score` and `rejected_score`",
        "Usage: reward score",
        "--form <FORM>",
    ] {
        assert!(words.contains(part), "{part:?} in\n{}", help.stdout);
    }
    let help = Stage::new("reward", &FINISHED).args(["--help"]).succeed().unwrap();
    assert!(help.stdout.contains("reward score --help"), "{}", help.stdout);
}
