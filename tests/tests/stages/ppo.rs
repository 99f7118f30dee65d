//! The policy: what its run leaves, that it comes out the same again, and what each way of learning changes.

use artifact::prompts;
use artifact::rows::Kind;
use data::checker::Checker;
use temper_tests::fixtures::Tensors;

use super::bad_input::edit;
use super::*;

/// What every step logs by TRL's names.
const NAMES: [&str; 16] = [
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/ratio_var",
    "val/num_eos_tokens",
    "lr",
    "episode",
];

/// A row of `samples.parquet`.
#[derive(Debug)]
struct Sample {
    step: f64,
    prompt: String,
    response: String,
    score: f64,
}

fn samples(run: &Path) -> Vec<Sample> {
    let columns = [
        Column::required("step", Kind::Int),
        Column::required("prompt", Kind::Text),
        Column::required("response", Kind::Text),
        Column::required("score", Kind::Float32),
    ];
    let sample = |row: &Vec<Cell>| {
        let text = |at: usize| row[at].as_text().unwrap().to_owned();
        let number = |at: usize| row[at].as_f64().unwrap();
        Sample { step: number(0), prompt: text(1), response: text(2), score: number(3) }
    };
    rows(&run.join("samples.parquet"), &columns).iter().map(sample).collect()
}

/// The lines of a run's metrics that tell of steps, and those of evaluations.
fn logged(run: &Path) -> (Vec<Value>, Vec<Value>) {
    metrics(run).into_iter().partition(|line| line["objective/kl"].is_number())
}

#[track_caller]
fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"))
}

/// Whether the number of this name is such in every line.
fn all(lines: &[Value], key: &str, holds: impl Fn(f64) -> bool) -> bool {
    lines.iter().all(|line| holds(number(line, key)))
}

fn weights(run: &Path) -> Vec<u8> {
    fs_err::read(run.join("model/model.safetensors")).unwrap()
}

/// Two steps with some settings and without evaluations, in a run directory of this name; returns the lines of the steps.
fn brief(dir: &Path, run: &str, settings: &[&str]) -> Vec<Value> {
    let two_steps = ["train.steps=2", "data.validation=[]"];
    stage("ppo", dir)
        .args(["--out", run])
        .args(sets(&two_steps))
        .args(sets(settings))
        .succeed()
        .unwrap();
    logged(&dir.join(run)).0
}

/// Fails if two of the runs end with the same weights.
#[track_caller]
fn assert_all_differ(dir: &Path, runs: &[&str]) {
    for (at, run) in runs.iter().enumerate() {
        for other in &runs[..at] {
            assert!(weights(&dir.join(run)) != weights(&dir.join(other)), "{run} ends as {other}");
        }
    }
}

#[test]
fn the_run_directory_holds_a_language_model() {
    let (run, sft) = (FINISHED.join("ppo"), FINISHED.join("sft"));
    assert_eq!(json(&run.join("manifest.json"))["stage"], "ppo");
    assert_eq!(roles(&run), ["model", "reward", "value", "train", "validation"]);
    assert_eq!(fs_err::read_dir(run.join("tensorboard")).unwrap().count(), 1);
    let config = json(&run.join("model/config.json"));
    assert_eq!(config["architectures"], serde_json::json!(["LlamaForCausalLM"]));
    for file in ["model/generation_config.json", "model/tokenizer.json"] {
        assert_eq!(json(&run.join(file)), json(&sft.join(file)), "{file}");
    }
    assert!(weights(&run) != weights(&sft), "it has learnt nothing");
    let settings = ["model.path=ppo"];
    let check = stage("sft", &FINISHED).args(sets(&settings)).args(["--check"]).succeed().unwrap();
    assert!(check.stdout.starts_with("from        ppo/model\n"), "{}", check.stdout);
    let prompt = ["--prompt", "What did Minsu find at place 0?", "--max-new-tokens", "8"];
    let said = Stage::new("chat", &FINISHED)
        .args(["--model", "ppo", "--device", "cpu"])
        .args(prompt)
        .succeed()
        .unwrap();
    assert!(said.stdout.ends_with('\n') && !said.stdout.contains("<|"), "{said}");
}

#[test]
fn samples_are_of_training_prompts() {
    let found = samples(&FINISHED.join("ppo"));
    // Four each at the first step, at every second, and at the last.
    let steps: Vec<f64> = found.iter().map(|sample| sample.step).collect();
    assert_eq!(steps, [[1.0; 4], [2.0; 4], [4.0; 4], [6.0; 4]].concat());
    let file = FINISHED.join("data/data/preferences/train-prompts.parquet");
    let prompts = prompts::read(file).unwrap();
    for sample in &found {
        assert!(prompts.iter().any(|row| row.prompt == sample.prompt), "{sample:?}");
        assert!(!sample.response.contains("<|"), "{sample:?}");
        // A score is cut off at 5, and a response that is cut off loses another point.
        assert!((-6.0..=5.0).contains(&sample.score), "{sample:?}");
    }
}

#[test]
fn steps_are_logged_by_trls_names_from_where_the_reference_is() {
    let (steps, evals) = logged(&FINISHED.join("ppo"));
    assert_eq!((steps.len(), evals.len()), (6, 3));
    let text = fs_err::read_to_string(FINISHED.join("ppo/metrics.jsonl")).unwrap();
    for name in ["eps", "time/rollout", "time/scoring", "time/reference", "time/update"] {
        assert_eq!(text.matches(&format!("\"{name}\":")).count(), 6, "{name}");
    }
    for (line, step) in steps.iter().zip(1_u32..) {
        let of = |key: &str| number(line, key);
        assert!(NAMES.iter().all(|name| of(name).is_finite()), "{line}");
        assert_eq!(line["step"], step);
        assert_eq!((of("episode"), of("lr")), (f64::from(8 * step), 1e-3));
        // The policy that learns is the one that sampled.
        assert!(of("policy/first_ratio_gap") <= 1e-6, "{line}");
        let (scores, penalty) = (of("objective/scores"), of("objective/non_score_reward"));
        assert!((of("objective/rlhf_reward") - scores - penalty).abs() < 1e-9, "{line}");
        assert!((penalty + 0.1 * of("objective/kl")).abs() < 1e-4, "{line}");
        let cut_off = 1.0 - of("val/num_eos_tokens") / 8.0;
        assert!((of("objective/truncated") - cut_off).abs() < 1e-9, "{line}");
        for share in ["policy/clipfrac_avg", "val/clipfrac_avg"] {
            assert!((0.0..=1.0).contains(&of(share)), "{line}");
        }
    }
    assert_eq!(number(&steps[0], "objective/kl"), 0.0);
    assert!(number(&steps[5], "objective/kl") != 0.0);
    let at: Vec<f64> = evals.iter().map(|line| number(line, "step")).collect();
    assert_eq!(at, [0.0, 3.0, 6.0]);
    assert_eq!(number(&evals[0], "eval/win_rate"), 0.5);
    assert_eq!(number(&evals[0], "eval/kl"), 0.0);
}

#[test]
fn results_are_of_the_first_and_the_last_evaluation() {
    let run = FINISHED.join("ppo");
    let (reported, (_, evals)) = (results(&run), logged(&run));
    for (key, name) in [
        ("score", "eval/score"),
        ("kl", "eval/kl"),
        ("length", "eval/response_length"),
        ("ended", "eval/ended"),
        ("win_rate", "eval/win_rate"),
        ("accuracy", "eval/accuracy"),
    ] {
        assert_eq!(number(&reported["eval_before"], key), number(&evals[0], name));
        assert_eq!(number(&reported["eval"], key), number(&evals[2], name));
    }
    for key in ["score", "accuracy"] {
        assert_eq!(reported["reference"][key], reported["eval_before"][key], "{key}");
    }
    assert!(number(&reported["reference"], "score_std") > 0.0);
    for (key, value) in [("steps", 6), ("episodes", 48), ("prompts_too_long", 0)] {
        assert_eq!(reported[key], value, "{key}");
    }
    assert_eq!(reported["skipped_steps"], 0);
    assert!(reported["stopped"].is_null(), "{reported}");
}

#[test]
fn the_same_config_and_seed_give_the_same_bytes_and_another_seed_others() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    for (name, run) in [("reward", "reward-again"), ("ppo", "ppo-again")] {
        stage(name, dir).args(["--out", run]).succeed().unwrap();
        let (again, first) = (dir.join(run), FINISHED.join(name));
        assert_same_files(&again.join("model"), &first.join("model"));
        assert_eq!(metrics(&again), metrics(&first));
        assert_eq!(timeless_results(&again), timeless_results(&first));
        let samples = |run: &Path| fs_err::read(run.join("samples.parquet")).unwrap();
        assert!(samples(&again) == samples(&first), "{name} has other samples");
    }
    let other = brief(dir, "other", &["seed=2", "train.steps=1"]);
    let (first, _) = logged(&FINISHED.join("ppo"));
    let entropy = |line: &Value| number(line, "objective/entropy");
    assert_ne!(entropy(&other[0]), entropy(&first[0]));
}

#[test]
fn value_functions_penalties_and_mixtures_lead_elsewhere() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let own = brief(dir, "own", &[]);
    assert!(all(&own, "val/grad_norm", |norm| norm > 0.0));
    brief(dir, "fresh", &["value.init.own_trunk.path=sft"]);
    let shared = brief(dir, "shared", &["value.init={shared_trunk={}}"]);
    // One trunk has one gradient, and its score is no part of a language model's files.
    assert!(shared.iter().all(|line| line.get("val/grad_norm").is_none()));
    assert!(all(&shared, "loss/value_avg", |loss| loss > 0.0));
    let names = |run: &str| -> Vec<String> {
        let file = Tensors::read(&dir.join(run).join("model/model.safetensors")).unwrap();
        file.names().map(str::to_owned).collect()
    };
    assert_eq!(names("shared"), names("sft"));
    let in_loss = brief(dir, "in_loss", &["kl.place=loss"]);
    assert!(all(&in_loss, "objective/non_score_reward", |penalty| penalty == 0.0));
    let following = ["kl.coef={adaptive={initial=0.1,target=1.0,horizon=100}}"];
    let following = brief(dir, "following", &following);
    assert_eq!(number(&following[0], "objective/kl_coef"), 0.1);
    // 8 of 100 episodes without any divergence: a fifth of 8 % less.
    assert!((number(&following[1], "objective/kl_coef") - 0.1 * (1.0 - 0.2 * 0.08)).abs() < 1e-12);
    let other = "ptx={data=[\"data/data/instructions/train.parquet\"],coef=0.5,batch_tokens=128}";
    assert!(all(&brief(dir, "mixed", &[other]), "loss/ptx", |loss| loss > 0.0));
    assert_eq!(roles(&dir.join("mixed")), ["model", "reward", "value", "train", "ptx"]);
    assert_all_differ(dir, &["own", "fresh", "shared", "in_loss", "following", "mixed", "sft"]);
}

#[test]
fn groups_of_responses_need_no_value_function() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    edit(dir, "ppo.toml", VALUE, "");
    for (run, advantage) in [("rloo", "ppo.advantage=rloo"), ("grpo", "ppo.advantage=grpo")] {
        let groups = ["rollout.prompts_per_step=4", "rollout.samples_per_prompt=2", advantage];
        let lines = brief(dir, run, &groups);
        assert!(all(&lines, "loss/value_avg", |loss| loss == 0.0));
        assert!(lines.iter().all(|line| line.get("val/explained_variance").is_none()));
        assert_eq!(number(&lines[1], "episode"), 16.0);
        assert_eq!(roles(&dir.join(run)), ["model", "reward", "train"]);
        // The first four shown are two to each of two prompts.
        let prompts: Vec<String> =
            samples(&dir.join(run)).into_iter().take(4).map(|sample| sample.prompt).collect();
        assert!(prompts[0] == prompts[1] && prompts[2] == prompts[3], "{prompts:?}");
        assert_ne!(prompts[1], prompts[2]);
    }
    assert_all_differ(dir, &["rloo", "grpo", "sft"]);
}

#[test]
fn rules_score_without_a_reward_model() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let shown = ["samples.every_steps=1", "samples.count=8", "rollout.stop_strings=[\".\"]"];
    let pattern = "reward={rules=[{rule={matches={pattern=\"[a요]\"}},weight=2.0}]}";
    brief(dir, "matches", &[&[pattern][..], &shown].concat());
    assert_eq!(roles(&dir.join("matches")), ["model", "value", "train"]);
    let found = samples(&dir.join("matches"));
    assert_eq!(found.len(), 16);
    for sample in &found {
        let score = if sample.response.contains(['a', '요']) { 2.0 } else { 0.0 };
        assert_eq!(sample.score, score, "{sample:?}");
        assert!(!sample.response.contains('.'), "it goes on past its stop: {sample:?}");
    }
    assert!(found.iter().any(|sample| sample.score > 0.0), "{found:?}");

    let held_out = "data.validation=[\"data/data/preferences/prompts.parquet\"]";
    let checked = ["reward={rules=[{rule={checker={}}}]}", held_out];
    brief(dir, "checked", &[&checked[..], &shown[..2]].concat());
    let prompts = prompts::read(dir.join("data/data/preferences/train-prompts.parquet")).unwrap();
    for sample in samples(&dir.join("checked")) {
        let row = prompts.iter().find(|row| row.prompt == sample.prompt).unwrap();
        let checker: Checker = serde_json::from_str(row.checker.as_deref().unwrap()).unwrap();
        let score = if checker.check(&sample.response) { 1.0 } else { 0.0 };
        assert_eq!(sample.score, score, "{sample:?}");
    }
    let eval = results(&dir.join("checked"))["eval"].clone();
    assert_eq!(number(&eval, "score"), number(&eval, "accuracy"));
}

#[test]
fn the_end_and_the_length_of_a_response_count() {
    let yard = yard(&["data", "sft", "reward"]);
    let rule = "rules=[{rule={matches={pattern=\"a\"}}}]";
    let reward = format!("reward={{{rule},missing_eos_score=-3.0,length_penalty=0.5}}");
    let settings = ["rollout.ignore_eos=true", "rollout.max_new_tokens=4", &reward];
    let lines = brief(yard.path(), "cut_off", &settings);
    for (key, value) in [
        ("objective/response_length", 4.0),
        ("objective/truncated", 1.0),
        ("objective/scores", -3.0 - 0.5 * 4.0),
        ("val/num_eos_tokens", 0.0),
    ] {
        assert!(all(&lines, key, |number| number == value), "{key}: {lines:?}");
    }
}

#[test]
fn target_kl_ends_the_passes_of_a_step() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let whole = "ppo.num_minibatches=1";
    let early = ["ppo.ppo_epochs=3", "ppo.target_kl=1e-9", whole];
    let early = brief(dir, "early", &early);
    assert!(all(&early, "policy/stopped_early", |stopped| stopped == 1.0));
    // The first pass is all there is of a step whose second has moved too far.
    let once = brief(dir, "once", &["ppo.ppo_epochs=1", whole]);
    assert!(all(&once, "policy/stopped_early", |stopped| stopped == 0.0));
    assert_same_files(&dir.join("early/model"), &dir.join("once/model"));
    brief(dir, "thrice", &["ppo.ppo_epochs=3", whole]);
    assert_all_differ(dir, &["once", "thrice"]);
}

#[test]
fn the_policy_stays_while_the_critic_warms_up() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let lines = brief(dir, "warm", &["ppo.critic_warmup_steps=2"]);
    assert!(weights(&dir.join("warm")) == weights(&dir.join("sft")), "the policy has moved");
    assert!(all(&lines, "objective/kl", |kl| kl == 0.0));
    assert!(all(&lines, "policy/grad_norm", |norm| norm == 0.0));
    assert!(all(&lines, "val/grad_norm", |norm| norm > 0.0));
    brief(dir, "warmed", &["ppo.critic_warmup_steps=1"]);
    assert_all_differ(dir, &["warmed", "sft"]);
}

#[test]
fn a_policy_that_moves_too_far_is_stopped() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let most = 0.001;
    let settings = ["kl.stop_above=0.001", "train.steps=20", "train.optimizer.learning_rate=1e-2"];
    let lines = brief(dir, "far", &settings);
    let kls: Vec<f64> = lines.iter().map(|line| number(line, "objective/kl")).collect();
    let (last, before) = kls.split_last().unwrap();
    assert!(*last > most && before.iter().all(|kl| *kl <= most), "{kls:?}");
    let reported = results(&dir.join("far"));
    assert_eq!(reported["steps"], lines.len());
    assert!(lines.len() < 20);
    let said = format!("a KL divergence of {last:.3} nats is above 0.001");
    assert_eq!(reported["stopped"], said);
    assert!(dir.join("far/model/model.safetensors").exists());
}

#[test]
fn prompts_without_room_for_a_response_are_left_out_and_counted() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    let mut prompts =
        prompts::read(dir.join("data/data/preferences/train-prompts.parquet")).unwrap();
    prompts.truncate(10);
    for row in &mut prompts[..2] {
        row.prompt = format!("<|bos|><|user|>{}<|end|><|assistant|>", "x ".repeat(200));
    }
    prompts::write(dir.join("mixed.parquet"), &prompts).unwrap();
    let settings = ["data.prompts=[\"mixed.parquet\"]", "data.validation=[]", "train.steps=1"];
    let command = || stage("ppo", dir).args(sets(&settings));
    let plan = command().args(["--check"]).succeed().unwrap();
    let line = "prompts     8 to train on, 0 held out, 2 too long\n";
    assert!(plan.stdout.contains(line), "{}", plan.stdout);
    assert!(!dir.join("ppo").exists());
    let outcome = command().succeed().unwrap();
    let warning = "2 prompts leave no room for a response and are left out";
    assert!(outcome.stderr.contains(warning), "{outcome}");
    assert_eq!(results(&dir.join("ppo"))["prompts_too_long"], 2);
}
