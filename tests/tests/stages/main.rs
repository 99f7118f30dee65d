//! The real binaries, stage after stage, on a tiny corpus: what they leave, that it comes out the same again, that kills
//! and signals lose nothing, and what is said when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adapter_refusals;
mod adapter_stages;
mod adapters;
mod bad_input;
mod cai;
mod chat;
mod fine_tuning;
mod interruption;
mod pipeline;
mod ppo;
mod refusals;
mod reward;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use artifact::rows::{Cell, Column, TableReader};
use serde_json::Value;
use temper_tests::binaries::Stage;
use temper_tests::corpus;

const DATA_PREP: &str = r#"
seed = 1
out = "data"
[tokenizer.train]
vocab_size = 400
datasets = ["text", "instructions"]
[datasets.text]
kind = "text"
sources = ["texts.jsonl"]
max_length = 64
validation_fraction = 0.1
[datasets.instructions]
kind = "chat"
sources = ["conversations.jsonl"]
max_length = 96
validation_fraction = 0.2
[datasets.preferences]
kind = "preference"
sources = ["preferences.jsonl"]
max_length = 96
validation_fraction = 0.2
train_prompts = true
[datasets.requests]
kind = "prompt"
sources = ["requests.jsonl"]
max_length = 96
validation_fraction = 0.3
[datasets.things]
kind = "chat"
sources = ["things.jsonl"]
max_length = 96
validation_fraction = 0.2
mapping = { prompt_template = "{{ language }}: {{ story }}", completion = "thing" }
"#;

pub(crate) const PRETRAIN: &str = r#"
seed = 1
out = "pretrain"
[model.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 128
tie_word_embeddings = true
[data]
train = ["data/data/text/train.parquet"]
validation = ["data/data/text/validation.parquet"]
[train]
steps = 60
batch_size.tokens = 512
micro_batch_tokens = 300
log_every_steps = 5
[train.optimizer]
learning_rate = 1e-2
max_grad_norm = 1.0
[train.schedule.cosine]
warmup_steps = 5
[train.eval]
every_steps = 20
[train.checkpoint]
every_steps = 4
"#;

pub(crate) const SFT: &str = r#"
seed = 1
out = "sft"
[model]
path = "pretrain"
[data]
train = ["data/data/instructions/train.parquet"]
validation = ["data/data/instructions/validation.parquet"]
[train]
epochs = 2
batch_size.sequences = 8
micro_batch_tokens = 512
dropout = 0.1
log_every_steps = 5
[train.optimizer]
learning_rate = 5e-3
[train.schedule.linear]
warmup_ratio = 0.1
[train.eval]
every_steps = 10
[train.checkpoint]
every_steps = 5
keep_best = true
[samples]
prompts = "data/data/instructions/prompts.parquet"
max_new_tokens = 16
"#;

pub(crate) const REWARD: &str = r#"
seed = 1
out = "reward"
[model]
path = "sft"
[data]
train = ["data/data/preferences/train.parquet"]
validation = ["data/data/preferences/validation.parquet"]
[reward]
centering_coefficient = 0.01
[train]
steps = 30
batch_size.sequences = 8
micro_batch_tokens = 512
log_every_steps = 5
[train.optimizer]
learning_rate = 5e-3
max_grad_norm = 1.0
[train.schedule.linear]
warmup_ratio = 0.1
[train.eval]
every_steps = 10
[train.checkpoint]
every_steps = 5
keep_best = true
"#;

pub(crate) const PPO: &str = r#"
seed = 1
out = "ppo"
[model]
path = "sft"
[data]
prompts = ["data/data/preferences/train-prompts.parquet"]
validation = ["data/data/preferences/prompts.parquet"]
[reward]
model = "reward"
normalize = true
clip = 5.0
missing_eos_penalty = 1.0
[value]
init.own_trunk.path = "reward"
[rollout]
prompts_per_step = 8
max_new_tokens = 16
[kl]
coef.fixed = 0.1
[ppo]
ppo_epochs = 2
num_minibatches = 2
value_clip_range = 0.2
[train]
steps = 6
micro_batch_tokens = 160
[train.optimizer]
learning_rate = 1e-3
max_grad_norm = 1.0
[train.schedule.constant]
[train.checkpoint]
every_steps = 2
[eval]
every_steps = 3
max_prompts = 8
[samples]
every_steps = 2
count = 4
"#;

const CONSTITUTION: &str = r#"
name = "tiny"
no_problem = { en = ["no problem"], ko = ["문제가 없어요"] }
refusals = { en = ["I will not"], ko = ["안 돼요"] }
[[principles]]
id = "harm"
tags = ["harmless"]
critique = { en = "Any harm?", ko = "해로운가요?" }
revision = { en = "Mend it.", ko = "고쳐 주세요." }
comparison = { en = "Which is better?", ko = "어느 것이 나은가요?" }
[[principles]]
id = "truth"
tags = ["truthful"]
critique = { en = "Any lie?", ko = "거짓인가요?" }
revision = { en = "Say it truly.", ko = "바르게 말하세요." }
comparison = { en = "Which is true?", ko = "어느 것이 참인가요?" }
[[examples]]
language = "en"
prompt = "Who?"
response = "Him."
critique_request = "Any harm?"
critique = "It is rude."
revision_request = "Mend it."
revision = "Minsu."
"#;

pub(crate) const CAI_GENERATE: &str = r#"
seed = 1
out = "cai-generate"
preview = 1
[model]
path = "sft"
[constitution]
path = "constitution.toml"
[prompts]
files = ["data/data/requests/train-prompts.parquet"]
[generate]
rounds = 2
critique = true
initial = { temperature = 1.0, max_new_tokens = 12 }
critiques = { temperature = 1.0, max_new_tokens = 8 }
revisions = { temperature = 1.0, max_new_tokens = 12 }
batch_prompts = 16
batch_rows = 8
"#;

pub(crate) const CAI_TRAIN: &str = r#"
seed = 1
out = "cai-train"
[model]
path = "sft"
[constitution]
path = "constitution.toml"
[mix]
revisions = ["cai-generate/data/revised/train.parquet"]
helpful = ["data/data/instructions/train.parquet"]
helpful_share = 0.5
[train]
steps = 20
batch_size.sequences = 8
micro_batch_tokens = 512
log_every_steps = 5
[train.optimizer]
learning_rate = 1e-3
[train.schedule.constant]
[train.checkpoint]
every_steps = 5
[eval]
red_team = ["data/data/requests/prompts.parquet"]
helpful = ["data/data/instructions/prompts.parquet"]
max_prompts = 16
max_new_tokens = 12
batch_rows = 8
preview = 1
"#;

pub(crate) const CAI_LABEL: &str = r#"
seed = 1
out = "cai-label"
preview = 1
[model]
path = "cai-train"
[feedback]
path = "sft"
[constitution]
path = "constitution.toml"
[prompts]
files = ["data/data/requests/train-prompts.parquet"]
[responses]
sampling = { temperature = 1.0, max_new_tokens = 12 }
batch_prompts = 16
batch_rows = 8
[label]
principles_per_pair = 0
micro_batch_tokens = 512
[rows]
validation_fraction = 0.25
"#;

pub(crate) const FINETUNE: &str = r#"
seed = 1
out = "finetune"
[model]
path = "sft"
[data]
train = ["data/data/things/train.parquet"]
validation = ["data/data/things/validation.parquet"]
[train]
steps = 30
batch_size.sequences = 8
micro_batch_tokens = 512
log_every_steps = 5
[train.optimizer]
learning_rate = 5e-3
[train.schedule.linear]
warmup_ratio = 0.1
[train.checkpoint]
every_steps = 10
[evaluation.things]
prompts = "data/data/things/prompts.parquet"
max_new_tokens = 8
labels = ["apple", "pear"]
[evaluation.instructions]
prompts = "data/data/instructions/prompts.parquet"
max_prompts = 8
max_new_tokens = 8
before = false
examples = 0
"#;

/// [`FINETUNE`] becomes a config of `peft` with this at its end.
pub(crate) const LORA: &str = r"
[peft.method.lora]
r = 2
lora_alpha = 4
lora_dropout = 0.1
";

/// The value function of [`PPO`]; no `--set` takes a table away.
pub(crate) const VALUE: &str = "[value]\ninit.own_trunk.path = \"reward\"\n";

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

/// Fails with the names of the files that differ, not with their bytes.
#[track_caller]
pub(crate) fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    let names =
        |list: &[(PathBuf, Vec<u8>)]| list.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    let differing: Vec<_> =
        a.iter().zip(&b).filter(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
}
