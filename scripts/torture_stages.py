"""The tiny stages that scripts/torture runs: each takes seconds and writes a checkpoint at nearly every step."""

from dataclasses import dataclass

DATA_PREP = """
seed = 1
out = "data-prep"
[tokenizer.train]
vocab_size = 400
datasets = ["text", "instructions"]
[datasets.text]
kind = "text"
max_length = 64
validation_fraction = 0.1
world = { seed = 7, part = "pretrain", records = RECORDS }
[datasets.instructions]
kind = "chat"
max_length = 96
overlong = "drop"
split_field = "split"
world = { seed = 7, part = "instructions", records = 600, held_out = 60 }
[datasets.preferences]
kind = "preference"
max_length = 96
overlong = "drop"
split_field = "split"
world = { seed = 7, part = "preferences", records = 400, held_out = 60 }
[datasets.requests]
kind = "prompt"
max_length = 64
overlong = "drop"
split_field = "split"
world = { seed = 7, part = "requests", records = 100, held_out = 20 }
"""

# Filled in by `training`: what all stages that train have.
TRAIN = """
[train]
steps = STEPS
batch_size.sequences = 8
micro_batch_tokens = 512
dropout = 0.1
log_every_steps = 5
[train.optimizer]
learning_rate = 5e-3
[train.schedule.linear]
warmup_ratio = 0.1
[train.checkpoint]
every_steps = 2
"""

PRETRAIN = """
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
train = ["data-prep/data/text/train.parquet"]
validation = ["data-prep/data/text/validation.parquet"]
[train.eval]
every_steps = 20
"""

SFT = """
seed = 1
out = "sft"
[model]
path = "pretrain"
[data]
train = ["data-prep/data/instructions/train.parquet"]
validation = ["data-prep/data/instructions/validation.parquet"]
[train.eval]
every_steps = 20
[samples]
prompts = "data-prep/data/instructions/prompts.parquet"
max_prompts = 8
max_new_tokens = 16
"""

REWARD = """
seed = 1
out = "reward"
[model]
path = "sft"
[data]
train = ["data-prep/data/preferences/train.parquet"]
validation = ["data-prep/data/preferences/validation.parquet"]
[train.eval]
every_steps = 20
"""

PPO = """
seed = 1
out = "ppo"
[model]
path = "sft"
[data]
prompts = ["data-prep/data/requests/train-prompts.parquet"]
validation = ["data-prep/data/requests/prompts.parquet"]
[reward]
model = "reward"
clip = 5.0
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
[train]
steps = 12
micro_batch_tokens = 256
[train.optimizer]
learning_rate = 1e-3
[train.schedule.constant]
[train.checkpoint]
every_steps = 1
[eval]
every_steps = 4
max_prompts = 8
[samples]
every_steps = 5
count = 4
"""

CONSTITUTION = """
name = "tiny"
no_problem = { en = ["no problem"], ko = ["문제가 없어요"] }
refusals = { en = ["I will not"], ko = ["안 돼요"] }
[[principles]]
id = "harm"
tags = ["harmless"]
critique = { en = "Any harm?", ko = "해로운가요?" }
revision = { en = "Mend it.", ko = "고쳐 주세요." }
comparison = { en = "Which is better?", ko = "어느 것이 나은가요?" }
"""

CAI_GENERATE = """
seed = 1
out = "cai-generate"
preview = 1
[model]
path = "sft"
[constitution]
path = "constitution.toml"
[prompts]
files = ["data-prep/data/requests/train-prompts.parquet"]
overlong = "skip"
[generate]
rounds = 1
critique = true
initial = { temperature = 1.0, max_new_tokens = 10 }
critiques = { temperature = 1.0, max_new_tokens = 6 }
revisions = { temperature = 1.0, max_new_tokens = 10 }
batch_prompts = 4
batch_rows = 8
"""

CAI_TRAIN = """
seed = 1
out = "cai-train"
[model]
path = "sft"
[constitution]
path = "constitution.toml"
[mix]
revisions = ["cai-generate/data/revised/train.parquet"]
helpful = ["data-prep/data/instructions/train.parquet"]
helpful_share = 0.5
[eval]
red_team = ["data-prep/data/requests/prompts.parquet"]
helpful = ["data-prep/data/instructions/prompts.parquet"]
max_prompts = 8
max_new_tokens = 8
batch_rows = 8
preview = 1
"""

FINETUNE = """
seed = 1
out = "finetune"
[model]
path = "sft"
[data]
train = ["data-prep/data/instructions/train.parquet"]
validation = ["data-prep/data/instructions/validation.parquet"]
[evaluation.instructions]
prompts = "data-prep/data/instructions/prompts.parquet"
max_prompts = 8
max_new_tokens = 8
"""

LORA = """
[peft.method.lora]
r = 2
lora_alpha = 4
lora_dropout = 0.1
"""

EVALUATE = """
seed = 1
out = "evaluate"
batch = { rows = 8, tokens = 300 }
bootstrap.samples = 500
[models.pretrain]
path = "pretrain"
[models.sft]
path = "sft"
parent = "pretrain"
[tests.text.perplexity]
rows = ["data-prep/data/text/validation.parquet"]
max_items = 60
[tests.instructions.generation]
prompts = ["data-prep/data/instructions/prompts.parquet"]
max_items = 40
max_new_tokens = 16
[tests.choices.choice]
prompts = ["data-prep/data/instructions/prompts.parquet"]
wrong_answers = 2
max_items = 20
[tests.drift.divergence]
prompts = ["data-prep/data/requests/prompts.parquet"]
reference = "sft"
max_items = 10
max_new_tokens = 8
"""


@dataclass(frozen=True)
class Stage:
    """A stage: its program and command, its config, the stages whose runs it reads, and an input of its own run."""

    command: tuple[str, ...]
    config: str
    reads: tuple[str, ...]
    # A file that the stage reads, to be changed under it; none where everything is generated.
    input: str | None


def training(config: str, steps: int) -> str:
    return config + TRAIN.replace("STEPS", str(steps))


TEXT = "data-prep/data/text/train.parquet"
INSTRUCTIONS = "data-prep/data/instructions/train.parquet"
REQUESTS = "data-prep/data/requests/train-prompts.parquet"

STAGES = {
    "data-prep": Stage(("data-prep",), DATA_PREP.replace("RECORDS", "1500"), (), None),
    "pretrain": Stage(("pretrain",), training(PRETRAIN, 80), ("data-prep",), TEXT),
    "sft": Stage(("sft",), training(SFT, 60), ("data-prep", "pretrain"), INSTRUCTIONS),
    "reward": Stage(
        ("reward",),
        training(REWARD, 50).replace("dropout = 0.1\n", ""),
        ("data-prep", "sft"),
        "data-prep/data/preferences/train.parquet",
    ),
    "ppo": Stage(("ppo",), PPO, ("data-prep", "sft", "reward"), REQUESTS),
    "cai-generate": Stage(("cai", "generate"), CAI_GENERATE, ("data-prep", "sft"), REQUESTS),
    "cai-train": Stage(
        ("cai", "train"), training(CAI_TRAIN, 50), ("data-prep", "sft", "cai-generate"), INSTRUCTIONS
    ),
    "finetune": Stage(("finetune",), training(FINETUNE, 50), ("data-prep", "sft"), INSTRUCTIONS),
    "peft": Stage(
        ("peft",),
        training(FINETUNE, 50).replace('"finetune"', '"peft"') + LORA,
        ("data-prep", "sft"),
        INSTRUCTIONS,
    ),
    "evaluate": Stage(("evaluate",), EVALUATE, ("data-prep", "pretrain", "sft"), "sft/model/model.safetensors"),
}
