//! The configs of the stages that [`FINISHED`](super::FINISHED) runs.

pub(crate) const DATA_PREP: &str = r#"
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

pub(crate) const CONSTITUTION: &str = r#"
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

/// Of what the others made.
pub(crate) const EVALUATE: &str = r#"
seed = 1
out = "evaluate"
batch = { rows = 8, tokens = 300 }
bootstrap.samples = 500
[models.pretrain]
path = "pretrain"
[models.sft]
path = "sft"
parent = "pretrain"
[models.peft]
path = "peft"
parent = "sft"
[models.reward]
path = "reward"
[tests.text.perplexity]
rows = ["data/data/text/validation.parquet"]
max_items = 20
[tests.things]
about = "Which of two things."
[tests.things.generation]
prompts = ["data/data/things/prompts.parquet"]
max_new_tokens = 8
[tests.choices.choice]
prompts = ["data/data/instructions/prompts.parquet"]
wrong_answers = 2
max_items = 12
[tests.requests.score]
prompts = ["data/data/requests/prompts.parquet"]
reward_model = "reward"
baseline = "pretrain"
max_new_tokens = 8
[tests.safety.safety]
prompts = ["data/data/requests/prompts.parquet"]
constitution = "constitution.toml"
max_new_tokens = 8
[tests.drift.divergence]
prompts = ["data/data/requests/prompts.parquet"]
reference = "sft"
max_items = 10
max_new_tokens = 8
[tests.pairs.preference]
rows = ["data/data/preferences/validation.parquet"]
"#;

/// The value function of [`PPO`]; no `--set` takes a table away.
pub(crate) const VALUE: &str = "[value]\ninit.own_trunk.path = \"reward\"\n";
