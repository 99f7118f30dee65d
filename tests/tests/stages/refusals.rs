//! What reward and ppo say of a config or of data that cannot be: everything that is wrong, at once.

use std::fmt::Write as _;

use artifact::prompts::{self, PromptRow};

use super::bad_input::edit;
use super::*;

const TRAIN_PAIRS: &str = "data/data/preferences/train.parquet";

/// Gives a stage all settings of the table at once and expects its lines in their order, each cited with the setting beside it,
/// and nothing else. A line beside no setting is about the file; a setting beside no line is at fault with another one.
#[track_caller]
pub(crate) fn refused(dir: &Path, name: &str, table: &[(&str, &str)]) {
    let settings: Vec<&str> =
        table.iter().map(|(setting, _)| *setting).filter(|setting| !setting.is_empty()).collect();
    let outcome = stage(name, dir).args(["--out", "fresh"]).args(sets(&settings)).run().unwrap();
    let lines: Vec<_> = table.iter().filter(|(_, line)| !line.is_empty()).collect();
    let noun = if lines.len() == 1 { "problem" } else { "problems" };
    let mut expected = format!("error: {name}.toml has {} {noun}\n", lines.len());
    for (setting, line) in lines {
        let cited = format!(" (set by --set {setting})");
        let cited = if setting.is_empty() { "" } else { &cited };
        writeln!(expected, "  - {line}{cited}").unwrap();
    }
    let error = &outcome.stderr[outcome.stderr.find("error:").unwrap_or_default()..];
    assert_eq!(error, expected);
    assert_eq!(outcome.code(), Some(2));
    assert!(!dir.join("fresh").exists(), "a refused config leaves nothing");
}

/// Expects a refusal that has all of `parts`.
#[track_caller]
pub(crate) fn refused_with(dir: &Path, name: &str, settings: &[&str], parts: &[&str]) {
    stage(name, dir).args(sets(settings)).fail(2, parts).unwrap();
}

/// A file of one prompt.
pub(crate) fn prompt_file(path: &Path, prompt: &str, checker: Option<&str>) {
    let checker = checker.map(str::to_owned);
    let row = PromptRow { prompt: prompt.to_owned(), checker, ..PromptRow::default() };
    prompts::write(path, &[row]).unwrap();
}

/// Keys of ppo with values that cannot be, and what is said of them.
const IMPOSSIBLE: [(&str, &str, &str); 34] = [
    ("rollout.prompts_per_step", "0", "must be at least 1, got 0"),
    ("rollout.samples_per_prompt", "0", "must be at least 1, got 0"),
    ("rollout.max_new_tokens", "0", "must be at least 1, got 0"),
    ("rollout.batch_rows", "0", "must be at least 1, got 0"),
    ("ppo.ppo_epochs", "0", "must be at least 1, got 0"),
    ("ppo.num_minibatches", "0", "must be at least 1, got 0"),
    ("train.steps", "0", "must be at least 1, got 0"),
    ("train.micro_batch_tokens", "0", "must be at least 1, got 0"),
    ("train.checkpointing_interval", "0", "must be at least 1, got 0"),
    ("train.log_every_steps", "0", "must be at least 1, got 0"),
    ("train.checkpoint.save_total_limit", "0", "must be at least 1, got 0"),
    ("eval.max_prompts", "0", "must be at least 1, got 0"),
    ("samples.every_steps", "0", "must be at least 1, got 0"),
    ("save.max_shard_mb", "0", "must be at least 1, got 0"),
    ("eval.every_steps", "0", "must be at least 1, or absent"),
    ("train.checkpoint.every_steps", "0", "must be at least 1, or absent"),
    ("rollout.temperature", "0", "must be from 0.000001 to 1000000, got 0"),
    ("reward.clip", "0", "must be above 0, got 0"),
    ("reward.missing_eos_penalty", "-1", "must be 0 or above, got -1"),
    ("reward.missing_eos_score", "inf", "must be a finite number, got inf"),
    ("reward.length_penalty", "-1", "must be 0 or above, got -1"),
    ("kl.stop_above", "0", "must be above 0, got 0"),
    ("ppo.gamma", "1.5", "must be from 0 to 1, got 1.5"),
    ("ppo.gae_lambda", "-0.5", "must be from 0 to 1, got -0.5"),
    ("ppo.clip_range", "0", "must be from 0.000000001 to 1, got 0"),
    ("ppo.clip_range_high", "0", "must be above 0, got 0"),
    ("ppo.value_clip_range", "0", "must be above 0, got 0"),
    ("ppo.value_coef", "-1", "must be 0 or above, got -1"),
    ("ppo.entropy_coef", "-1", "must be 0 or above, got -1"),
    ("ppo.target_kl", "0", "must be above 0, got 0"),
    ("train.optimizer.learning_rate", "0", "must be above 0, got 0"),
    ("train.schedule.constant.warmup_ratio", "2", "must be from 0 to 1, got 2"),
    (
        "train.zero_stage",
        "2",
        "must be 0 or 1, got 2: sampling needs the whole policy in every process",
    ),
    ("reward.missing_eos_score", "inf", "is given beside missing_eos_penalty; leave one out"),
];

#[test]
fn every_impossible_number_of_ppo_is_named() {
    let yard = yard(&["data", "sft", "reward"]);
    let texts: Vec<[String; 2]> = IMPOSSIBLE
        .iter()
        .map(|(key, value, what)| [format!("{key}={value}"), format!("{key}: {what}")])
        .collect();
    let table: Vec<(&str, &str)> =
        texts.iter().map(|[setting, line]| (setting.as_str(), line.as_str())).collect();
    refused(yard.path(), "ppo", &table);
}

#[test]
fn settings_of_ppo_that_exclude_or_need_each_other_are_named() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    refused(
        dir,
        "ppo",
        &[
            ("ppo.advantage=rloo", ""),
            ("data.validation=[]", ""),
            ("reward={}", "reward: needs a `model`, or `rules`"),
            ("", "value: is for advantage = \"gae\" only; leave it out"),
            (
                "",
                "rollout.samples_per_prompt: must be at least 2: rloo and grpo compare the responses to one prompt",
            ),
            (
                "ppo.critic_warmup_steps=1",
                "ppo.critic_warmup_steps: is for advantage = \"gae\" only; leave it out",
            ),
            (
                "ppo.num_minibatches=9",
                "ppo.num_minibatches: is more than rollout.prompts_per_step; a prompt's responses stay together",
            ),
            (
                "rollout.stop_strings=[\"\"]",
                "rollout.stop_strings: has an empty text; leave it out",
            ),
            ("data.prompts=[]", "data.prompts: is empty; name prompt rows"),
            (
                "train.checkpoint.keep_best=true",
                "train.checkpoint.keep_best: needs data.validation and eval.every_steps",
            ),
            (
                "kl.coef={fixed=-1}",
                "kl.coef: must be 0 or above; initial, target and horizon above 0",
            ),
        ],
    );
    let ptx = "ptx={data=[\"data/data/instructions/train.parquet\"],coef=0,batch_tokens=0}";
    let no_room = "has no prompt that leaves room for a response of 128 tokens in the model's 128 positions; lower \
                   rollout.max_new_tokens";
    refused(
        dir,
        "ppo",
        &[
            (
                "kl.coef={adaptive={initial=0.1,target=0,horizon=100}}",
                "kl.coef: must be 0 or above; initial, target and horizon above 0",
            ),
            (
                "reward.rules=[{rule={checker={}},weight=inf}]",
                "reward.rules: has a weight that is not finite",
            ),
            ("rollout.max_new_tokens=128", ""),
            ("", &format!("data.prompts: {no_room}")),
            ("", &format!("data.validation: {no_room}")),
            (ptx, "ptx.coef: must be above 0"),
            (ptx, "ptx.batch_tokens: must be at least 1"),
            (
                "value={init={shared_trunk={}},learning_rate=1e-3}",
                "value.learning_rate: is for a trunk of its own; leave it out",
            ),
        ],
    );
    edit(dir, "ppo.toml", VALUE, "");
    let missing = "value: is missing: advantage = \"gae\" needs a value function";
    refused(dir, "ppo", &[("", missing)]);
    refused_with(
        dir,
        "ppo",
        &["ppo.advantage=rlo"],
        &["--set ppo.advantage=rlo: unknown variant `rlo`", "did you mean `rloo`?"],
    );
}

/// Reward models that do not go with the policy of a yard: of another tokenizer, too small, without statistics.
fn make_misfits(dir: &Path) {
    for name in ["foreign", "small", "bare"] {
        copy(&dir.join("reward/model"), &dir.join(name));
    }
    let tokenizer = dir.join("foreign/tokenizer.json");
    let text = fs_err::read_to_string(&tokenizer).unwrap();
    fs_err::write(tokenizer, text + "\n").unwrap();
    let change = |name: &str, by: &dyn Fn(&mut Value)| {
        let path = dir.join(name).join("config.json");
        let mut config = json(&path);
        by(&mut config);
        fs_err::write(path, config.to_string()).unwrap();
    };
    change("small", &|config| {
        config["vocab_size"] = 300.into();
        config["max_position_embeddings"] = 64.into();
    });
    change("bare", &|config| {
        config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("score_"));
    });
}

#[test]
fn models_that_do_not_go_together_are_named() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    make_misfits(dir);
    let language_model = "this is a language model, which has no score; give a reward model \
                          (`...ForSequenceClassification` with one label)";
    let reward_model = "this is a reward model, which has no language-model head; give a causal language model \
                        (`...ForCausalLM`)";
    let foreign =
        ["has another tokenizer than the policy, sft/model", "; give a model of the same one"];
    let no_statistics = "reward.normalize: needs a reward model whose config.json has score_mean and score_std, as temper's \
                         have";
    refused_with(dir, "ppo", &["model.path=nowhere"], &["model.path: nowhere: does not exist"]);
    refused_with(
        dir,
        "ppo",
        &["model.path=data"],
        &["model.path: data: is the run directory of a stage that makes no model"],
    );
    refused(dir, "ppo", &[("model.path=reward", &format!("model.path: {reward_model}"))]);
    refused_with(
        dir,
        "ppo",
        &["model.reference=reward", "reward.model=sft", "value.init.own_trunk.path=foreign"],
        &[
            &format!("model.reference: {reward_model} (set by --set model.reference=reward)"),
            &format!("reward.model: {language_model} (set by --set reward.model=sft)"),
            &format!("value.init.own_trunk.path: {}", foreign[0]),
            foreign[1],
            no_statistics,
        ],
    );
    let tokenizer = format!("reward.model: {}", foreign[0]);
    refused_with(dir, "ppo", &["reward.model=foreign"], &[&tokenizer, foreign[1]]);
    refused(
        dir,
        "ppo",
        &[
            ("reward.model=small", "reward.model: has a vocabulary of 300, the policy of 400"),
            ("reward.model=small", "reward.model: has positions of 64, the policy of 128"),
        ],
    );
    refused(dir, "ppo", &[("reward.model=bare", ""), ("", no_statistics)]);
    let rule = "reward={normalize=true,rules=[{rule={matches={pattern=\"x\"}}}]}";
    refused(dir, "ppo", &[(rule, no_statistics)]);
}

#[test]
fn prompts_that_cannot_be_asked_are_named_with_their_file() {
    let yard = yard(&["data", "sft", "reward"]);
    let dir = yard.path();
    prompt_file(&dir.join("empty.parquet"), "", None);
    prompt_file(&dir.join("judge.parquet"), "Who?", Some("{\"guess\":{}}"));
    prompt_file(&dir.join("bare.parquet"), "Who?", None);
    let prompts = format!(
        "data.prompts=[\"none.parquet\",\"empty.parquet\",\"judge.parquet\",\"bare.parquet\",\"{TRAIN_PAIRS}\"]"
    );
    let rules = "reward.rules=[{rule={matches={pattern=\"(\"}}},{rule={checker={}}}]";
    let ptx = format!("ptx={{data=[\"{TRAIN_PAIRS}\"],coef=1,batch_tokens=64}}");
    refused_with(
        dir,
        "ppo",
        &[&prompts, rules, &ptx],
        &[
            "error: ppo.toml has 7 problems\n",
            "reward.rules: regex parse error:",
            "unclosed group",
            "data.prompts: none.parquet does not exist; run the stage that makes it, or correct the path",
            "data.prompts: empty.parquet: row 0: the prompt is empty",
            "data.prompts: judge.parquet: row 0: not a checker: unknown variant `guess`",
            &format!("data.prompts: {TRAIN_PAIRS}: no column `prompt` of type utf8"),
            "prompt rows are made by `data-prep`",
            "data.prompts: has 1 prompts without a checker, which reward.rules asks for",
            &format!("ptx.data: {TRAIN_PAIRS}: holds pair rows, not token rows"),
        ],
    );
    refused_with(
        dir,
        "ppo",
        &["ptx={data=[],coef=1,batch_tokens=64}"],
        &["ptx.data: no token files given; name at least one data/<set>/train.parquet"],
    );
}

#[test]
fn every_problem_of_a_reward_config_is_named() {
    let yard = yard(&["data", "sft"]);
    refused(
        yard.path(),
        "reward",
        &[
            (
                "reward.centering_coefficient=-1",
                "reward.centering_coefficient: must be 0 or above, got -1",
            ),
            (
                "train.micro_batch_tokens=0",
                "train.micro_batch_tokens: must be from 1 to 1073741824, got 0",
            ),
            (
                "train.schedule.linear.min_lr_ratio=2",
                "train.schedule.linear.min_lr_ratio: must be from 0 to 1, got 2",
            ),
            ("save.max_shard_mb=0", "save.max_shard_mb: must be at least 1"),
            (
                "data.validation=[\"none.parquet\"]",
                "data.validation: none.parquet does not exist; run the stage that makes it, or correct the path",
            ),
            (
                "model.path=nowhere",
                "model.path: nowhere: does not exist; give a Hugging Face model directory or the run directory of a \
                 finished stage that makes a model",
            ),
        ],
    );
}

#[test]
fn rows_of_another_kind_are_told_apart() {
    let yard = yard(&["data", "pretrain", "sft"]);
    let dir = yard.path();
    let instructions = "data/data/instructions/train.parquet";
    refused_with(
        dir,
        "reward",
        &[&format!("data.train=[\"{instructions}\"]")],
        &[
            &format!("data.train: {instructions}: holds token rows, not pair rows"),
            "pair rows are made by `data-prep` from a data set of kind = \"preference\"",
        ],
    );
    refused_with(
        dir,
        "sft",
        &[&format!("data.train=[\"{TRAIN_PAIRS}\"]")],
        &[
            &format!("data.train: {TRAIN_PAIRS}: holds pair rows, not token rows"),
            "token rows are made by `data-prep`; give its data/<set>/<split>.parquet",
        ],
    );
    refused_with(
        dir,
        "reward",
        &["data.train=[\"data/data/preferences/train-prompts.parquet\"]"],
        &["no column `prompt_ids` of type list<int32>", "pair rows are made by `data-prep`"],
    );
}

#[test]
fn pairs_that_prefer_nothing_are_counted() {
    let reported = results(&FINISHED.join("data"))["datasets"]["preferences"].clone();
    let dropped = serde_json::json!({"a response is empty": 1, "both responses are the same": 1});
    assert_eq!(reported["dropped"], dropped);
    assert_eq!(reported["records_kept"], PREFERENCES);
    let rows = |split: &str| reported[split]["rows"].as_u64().unwrap();
    assert_eq!(rows("train") + rows("validation"), PREFERENCES as u64);
    assert_eq!(reported["train_prompts"], reported["train"]["rows"]);
    assert_eq!(reported["prompts"], reported["validation"]["rows"]);
}

#[test]
fn what_needs_a_language_model_refuses_a_reward_model() {
    let yard = yard(&["data", "pretrain", "sft", "reward"]);
    let dir = yard.path();
    let why = "this is a reward model, which has no language-model head";
    refused_with(dir, "sft", &["model.path=reward"], &[&format!("model.path: {why}")]);
    let talk = Stage::new("chat", dir).args(["--model", "reward", "--prompt", "hi"]);
    talk.fail(2, &[&format!("error: reward: {why}")]).unwrap();
}

#[test]
fn all_pairs_of_a_prompt_are_for_pairs() {
    let yard = yard(&["data", "pretrain"]);
    let config = SFT.replace("batch_size.sequences = 8", "batch_size.prompts = 8");
    fs_err::write(yard.path().join("sft.toml"), config).unwrap();
    let line = "  - train.batch_size.prompts: is for pairs of responses; give batch_size.sequences or \
                batch_size.tokens";
    stage("sft", yard.path()).fail(2, &[line]).unwrap();
}
