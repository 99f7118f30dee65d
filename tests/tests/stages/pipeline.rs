//! What the stages leave, and that it comes out the same again.

use artifact::rows::{Cell, Column, Kind, TableReader};

use super::*;

#[test]
fn every_stage_leaves_its_run_directory() {
    let dir = &*FINISHED;
    for (run, products) in [("pretrain", &["model"][..]), ("sft", &["model", "samples.parquet"])] {
        let run_dir = dir.join(run);
        let manifest = json(&run_dir.join("manifest.json"));
        assert_eq!(manifest["stage"], run);
        assert!(manifest["device"].as_str().unwrap().starts_with("cpu, "));
        assert!(manifest["versions"]["libtorch"].as_str().unwrap().starts_with("2.11."));
        for product in products {
            assert!(run_dir.join(product).exists(), "{run}/{product}");
        }
        for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
        {
            let recorded = &manifest["outputs"][format!("model/{file}")];
            let digest = artifact::digest::file(run_dir.join("model").join(file)).unwrap();
            assert_eq!(recorded, digest.as_str(), "{run} {file}");
        }
        let events = fs_err::read_dir(run_dir.join("tensorboard")).unwrap().count();
        assert_eq!(events, 1);
    }
    let inputs = json(&dir.join("sft/manifest.json"))["inputs"].clone();
    let roles: Vec<&str> =
        inputs.as_array().unwrap().iter().map(|input| input["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["model", "train", "validation", "tokenizer", "prompts"]);
}

#[test]
fn losses_fall_and_what_is_reported_is_what_was_logged() {
    for run in ["pretrain", "sft"] {
        let run_dir = FINISHED.join(run);
        let lines = metrics(&run_dir);
        let evals: Vec<f64> = lines.iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
        let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
        assert!(losses.last().unwrap() < &(0.7 * losses[0]), "{run}: {losses:?}");
        assert!(evals.windows(2).all(|two| two[1] < two[0] + 0.1), "{run}: {evals:?}");
        let reported = results(&run_dir);
        assert_eq!(reported["eval_loss"].as_f64(), evals.last().copied());
        let perplexity = reported["eval_perplexity"].as_f64().unwrap();
        assert!((perplexity - evals.last().unwrap().exp()).abs() < 1e-9 * perplexity);
        assert_eq!(reported["skipped_steps"], 0);
        for key in
            ["learning_rate", "grad_norm", "mean_token_accuracy", "entropy", "epoch", "num_tokens"]
        {
            assert!(lines[0][key].is_number(), "{run}: {key}: {}", lines[0]);
        }
    }
}

#[test]
fn the_model_has_the_special_tokens_of_its_tokenizer() {
    let model = FINISHED.join("sft/model");
    let (config, generation) =
        (json(&model.join("config.json")), json(&model.join("generation_config.json")));
    let tokenizer = data::tokenizer::Tokenizer::load(&model).unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    assert_eq!(config["bos_token_id"], id("<|bos|>"));
    assert_eq!(config["eos_token_id"], id("<|eos|>"));
    assert_eq!(config["vocab_size"], tokenizer.vocab_size());
    // Generation stops at the end of a turn too.
    assert_eq!(generation["eos_token_id"], serde_json::json!([id("<|eos|>"), id("<|end|>")]));
    assert!(json(&model.join("tokenizer_config.json"))["chat_template"].is_string());
}

#[test]
fn samples_hold_answers_and_whether_they_are_right() {
    let run = FINISHED.join("sft");
    let columns = [
        Column::required("prompt", Kind::Text),
        Column::required("response", Kind::Text),
        Column::required("answer", Kind::Text),
        Column::required("task", Kind::Text),
        Column::required("score", Kind::Float32),
    ];
    let rows: Vec<Vec<Cell>> = TableReader::open(run.join("samples.parquet"), &columns, "")
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let reported = results(&run);
    assert_eq!(reported["responses"], rows.len());
    let text = |row: &[Cell], at: usize| row[at].as_text().unwrap().to_owned();
    let mut right = 0.0;
    for row in &rows {
        assert!(text(row, 0).ends_with("<|assistant|>"), "{row:?}");
        assert!(!text(row, 1).contains("<|"), "special tokens are not part of a response: {row:?}");
        let same =
            data::checker::normalise(&text(row, 1)) == data::checker::normalise(&text(row, 2));
        assert_eq!(row[4].as_f64().unwrap(), if same { 1.0 } else { 0.0 }, "{row:?}");
        right += row[4].as_f64().unwrap();
    }
    let accuracy = reported["accuracy"].as_f64().unwrap();
    assert!((accuracy - right / rows.len() as f64).abs() < 1e-12);
    assert!(
        reported["accuracy_by_task"]["ko"].is_number()
            && reported["accuracy_by_task"]["en"].is_number()
    );
}

#[test]
fn the_same_config_and_seed_give_the_same_bytes_and_another_seed_others() {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    stage("sft", dir).succeed().unwrap();
    assert_same_files(&dir.join("sft/model"), &FINISHED.join("sft/model"));
    assert_eq!(metrics(&dir.join("sft")), metrics(&FINISHED.join("sft")));
    stage("sft", dir).args(["--set", "seed=2", "--out", "other"]).succeed().unwrap();
    let weights = |run: &str| fs_err::read(dir.join(run).join("model/model.safetensors")).unwrap();
    assert_ne!(weights("other"), weights("sft"));
}

#[test]
fn a_finished_run_starts_over_and_ends_the_same() {
    let yard = yard(&["data", "pretrain"]);
    let before = files(&yard.path().join("pretrain/model"));
    let outcome = stage("pretrain", yard.path()).succeed().unwrap();
    assert!(!outcome.stderr.contains("goes on from"), "{outcome}");
    assert_eq!(files(&yard.path().join("pretrain/model")), before);
}

#[test]
fn pretraining_goes_on_from_a_model() {
    let yard = yard(&["data", "pretrain"]);
    let more = PRETRAIN.replace("out = \"pretrain\"", "out = \"more\"");
    let (start, end) = (more.find("[model.config]").unwrap(), more.find("[data]").unwrap());
    let more = format!("{}[model]\npath = \"pretrain\"\n{}", &more[..start], &more[end..]);
    fs_err::write(yard.path().join("pretrain.toml"), more).unwrap();
    stage("pretrain", yard.path()).succeed().unwrap();
    let loss = |run: &Path| results(run)["eval_loss"].as_f64().unwrap();
    assert!(loss(&yard.path().join("more")) < loss(&FINISHED.join("pretrain")));
}

#[test]
fn a_model_can_be_saved_in_half_precision_and_in_shards() {
    let yard = yard(&["data", "pretrain"]);
    let changes = [
        "--set",
        "save.precision=bf16",
        "--set",
        "save.max_shard_mb=1",
        "--set",
        "train.precision=bf16",
    ];
    stage("sft", yard.path()).args(changes).succeed().unwrap();
    let size = |run: &Path| fs_err::metadata(run.join("model/model.safetensors")).unwrap().len();
    let (half, full) = (size(&yard.path().join("sft")), size(&FINISHED.join("sft")));
    assert!(half < full * 6 / 10, "{half} of {full}");
    assert_eq!(json(&yard.path().join("sft/model/config.json"))["torch_dtype"], "bfloat16");
}

#[test]
fn check_prints_the_plan_and_touches_nothing() {
    let yard = yard(&["data"]);
    let outcome = stage("pretrain", yard.path()).args(["--check"]).succeed().unwrap();
    for part in [
        "model       llama, 33440 parameters, 2 layers of width 32\n",
        "tokenizer   data/tokenizer\n",
        "data        ",
        "validation  ",
        "steps       60, at most 512 tokens each, micro-batches of at most 300 tokens, fp32\n",
        "memory      about ",
    ] {
        assert!(outcome.stdout.contains(part), "{part:?} in\n{}", outcome.stdout);
    }
    assert!(!yard.path().join("pretrain").exists());
    let sft = stage("sft", &FINISHED).args(["--check"]).succeed().unwrap();
    assert!(sft.stdout.starts_with("from        pretrain/model\n"), "{}", sft.stdout);
}
