//! `[peft]` in the other stages that train.

use temper_tests::fixtures::Tensors;

use super::*;

const LORA: &str = "peft={method={lora={r=4,lora_alpha=8}}}";
const RATE: &str = "train.optimizer.learning_rate=2e-2";
const FEW: &str = "samples.max_prompts=4";

/// A stage with settings into `out`.
#[track_caller]
fn run(name: &str, dir: &Path, out: &str, settings: &[&str]) -> PathBuf {
    stage(name, dir).args(["--out", out]).args(sets(settings)).succeed().unwrap();
    dir.join(out)
}

fn adapter(run: &Path) -> Tensors {
    Tensors::read(&run.join("adapter/adapter_model.safetensors")).unwrap()
}

fn config_of_adapter(run: &Path) -> Value {
    json(&run.join("adapter/adapter_config.json"))
}

/// What the first step of a policy logged.
fn first_step(run: &Path) -> Value {
    metrics(run).into_iter().find(|line| line["objective/kl"].is_number()).unwrap()
}

#[test]
fn instructions_are_learned_by_an_adapter_and_learned_on() {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    let first = run("sft", dir, "first", &[LORA, RATE, FEW]);
    assert!(first.join("samples.parquet").exists() && !first.join("model").exists());
    let loss = |run: &Path| results(run)["eval_loss"].as_f64().unwrap();
    let evals: Vec<f64> =
        metrics(&first).iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    assert!(evals.last().unwrap() < &(0.9 * evals[0]), "{evals:?}");
    // keep_best hands on the adapter of the best evaluation.
    let best = results(&first)["best_step"].as_u64().unwrap();
    let saved = first.join(format!("checkpoints/step-{best:08}/trained.safetensors"));
    let (saved, written) = (Tensors::read(&saved).unwrap(), adapter(&first));
    assert_eq!(saved.names().count(), written.names().count());
    for name in saved.names() {
        let key = format!("base_model.model.{name}");
        assert!(saved.get(name).unwrap().equal(written.get(&key).unwrap()), "{name}");
    }
    let second = run("sft", dir, "second", &["peft={adapter=\"first\"}", "train.epochs=1", FEW]);
    assert_eq!(roles(&second), ["model", "train", "validation", "tokenizer", "adapter", "prompts"]);
    assert!(loss(&second) < loss(&first), "{} {}", loss(&second), loss(&first));
    let [r, alpha] = ["r", "lora_alpha"].map(|key| config_of_adapter(&second)[key].clone());
    assert_eq!((r, alpha), (4.into(), 8.into()));
    assert_eq!(config_of_adapter(&second)["base_model_name_or_path"], "pretrain/model");
    // The whole model again leaves no adapter behind.
    let whole = run("sft", dir, "first", &["train.epochs=0.2", FEW]);
    assert!(whole.join("model").exists() && !whole.join("adapter").exists());
}

#[test]
fn pretraining_adapts_a_model_that_exists() {
    let yard = yard(&["data", "pretrain"]);
    let dir = yard.path();
    let settings = ["model={path=\"pretrain\"}", LORA, "train.steps=6"];
    let run = run("pretrain", dir, "more", &settings);
    assert_eq!(roles(&run), ["model", "train", "validation", "tokenizer"]);
    assert!(run.join("adapter").exists() && !run.join("model").exists());
    stage("pretrain", dir)
        .args(sets(&[LORA]))
        .args(["--out", "fresh"])
        .fail(2, &["peft: adapts a model that exists; give model.path"])
        .unwrap();
    assert!(!dir.join("fresh").exists());
    let planned = stage("pretrain", dir).args(sets(&settings)).args(["--check"]).succeed().unwrap();
    assert!(planned.stdout.contains("adapter     LoRA, 4352 parameters (11.52 %)\n"), "{planned}");
}

#[test]
fn a_reward_models_adapter_has_its_score() {
    let yard = yard(&["data", "sft"]);
    let dir = yard.path();
    let lora = "peft={method={lora={r=4}},merge=true}";
    let run = run("reward", dir, "scorer", &[lora, "train.steps=10"]);
    let config = config_of_adapter(&run);
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], serde_json::json!(["classifier", "score"]));
    let score = adapter(&run);
    let score = score.get("base_model.model.score.weight").unwrap();
    assert_eq!(score.size(), [1, 32]);
    // What is merged is a whole reward model, with the statistics of its scores.
    let merged = json(&run.join("model/config.json"));
    assert_eq!(merged["architectures"], serde_json::json!(["LlamaForSequenceClassification"]));
    let reported = results(&run);
    for key in ["score_mean", "score_std"] {
        assert_eq!(merged[key], reported[key]);
    }
    let whole = Tensors::read(&run.join("model/model.safetensors")).unwrap();
    assert!(whole.get("score.weight").unwrap().equal(score));
    Stage::new("chat", dir)
        .args(["--model", "sft", "--adapter", "scorer", "--prompt", "x"])
        .fail(2, &["error: scorer: this is a reward model, which has no language-model head"])
        .unwrap();
    let two = ["reward.model=\"scorer\"", "value.init.own_trunk.path=scorer", "train.steps=1"];
    let policy = stage("ppo", dir).args(sets(&two)).args(sets(&["data.validation=[]"]));
    policy.succeed().unwrap();
}

#[test]
fn a_policys_adapter_starts_at_its_reference() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let two = ["train.steps=2", "data.validation=[]"];
    for (out, settings) in [
        ("plain", &[LORA][..]),
        ("four-bit", &["peft={method={lora={r=4}},quantization={}}", "train.precision=bf16"]),
        ("shared", &[LORA, "value.init={shared_trunk={}}"]),
        ("on", &["peft={adapter=\"plain\"}"]),
    ] {
        let run = run("ppo", dir, out, &[&two, settings].concat());
        let first = first_step(&run);
        assert_eq!(first["objective/kl"], 0.0, "{out}: {first}");
        assert!(first["policy/first_ratio_gap"].as_f64().unwrap() <= 1e-6, "{out}: {first}");
        let last = metrics(&run).pop().unwrap();
        assert!(last["objective/kl"].as_f64().unwrap() != 0.0, "{out}: {last}");
        assert!(run.join("adapter").exists() && !run.join("model").exists(), "{out}");
        // A policy's values are no part of what it hands on.
        assert!(adapter(&run).names().all(|name| name.contains("lora_")), "{out}");
        assert_eq!(config_of_adapter(&run)["task_type"], "CAUSAL_LM");
    }
    assert_eq!(roles(&dir.join("on")), ["model", "adapter", "reward", "value", "train"]);
    // PiSSA's model without its adapter is read again.
    let pissa = ["peft={method={lora={init_lora_weights=\"pissa\"}}}"];
    let run = run("ppo", dir, "pissa", &[&two[..], &pissa].concat());
    let kl = first_step(&run)["objective/kl"].as_f64().unwrap();
    assert!(kl.abs() < 1e-3, "{kl}");
    let said = Stage::new("chat", dir).args(["--model", "plain", "--prompt", "Who?"]);
    said.args(["--max-new-tokens", "4"]).succeed().unwrap();
}

#[test]
fn revisions_are_learned_by_an_adapter() {
    let yard = yard(&["data", "sft", "cai-generate"]);
    let dir = yard.path();
    let settings =
        [LORA, "train.steps=6", "train.optimizer.learning_rate=1e-1", "eval.max_prompts=4"];
    let run = run("cai train", dir, "revised", &settings);
    assert!(run.join("adapter").exists() && !run.join("model").exists());
    assert!(results(&run)["changed_answers"].as_u64().unwrap() > 0);
    let on = ["peft={adapter=\"revised\"}", "train.steps=1", "eval.max_prompts=1"];
    let on = self::run("cai train", dir, "on", &on);
    assert_eq!(
        roles(&on),
        ["model", "train", "train", "adapter", "prompts", "prompts", "constitution"]
    );
    stage("cai train", dir)
        .args(sets(&["peft={method={lora={r=64}}}"]))
        .args(["--out", "fresh"])
        .fail(2, &["peft: r: a rank of 64 does not fit model.layers.0.self_attn.q_proj"])
        .unwrap();
    assert!(!dir.join("fresh").exists());
}
