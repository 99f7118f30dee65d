"""Our side: the programs in target/release, run as a user runs them."""

import json
import os
import shutil
import statistics
from dataclasses import dataclass

import process
from cases import ADAPTERS, ALPHA, CAI_PROMPTS, EPISODES, GENERATE_ROWS, PROMPT_TOKENS, RANK
from paths import (
    BINARIES, CONSTITUTION, CORPUS, PREPARED, PREPARED_PROMPTS, PROMPTS, TOKENIZER, WORK, model_dir, score_model_dir,
    train_file,
)

# A stage's line on stderr after its first step, where that is no terminal.
FIRST_STEP = r"^step 1[/ ]"
MICRO_BATCH_TOKENS = 4096
# Twice TRL's.
PPO_MICRO_BATCH_TOKENS = 2048
# What a task runs besides bench and data-prep; the last is measured.
PROGRAMS = {
    "sft": ("sft",), "start-up": ("sft",), "pretrain": ("pretrain",), "reward": ("reward",), "ppo": ("reward", "ppo"),
    "cai": ("cai",), "finetune": ("finetune",), "lora": ("peft",), "qlora": ("peft",),
}
TRAINING = ("sft", "pretrain", "reward", "finetune", *ADAPTERS)
# The tasks whose matrix products `bench bound` knows.
BOUNDED = ("sft", "pretrain", "generate", "finetune", *ADAPTERS)
# What a case counts, in a stage's metrics.
COUNTERS = {"tokens": "num_tokens", "pairs": "num_pairs", "episodes": "episode"}
KINDS = {
    "corpus": "text", "pretrain": "text", "sft": "completion", "preference": "preference-plain", "prompts": "prompt",
}
PPO_PARTS = ("rollout", "scoring", "reference", "update")

TRAIN_CONFIG = """\
model.path = {model}
data.train = [{data}]

[train]
steps = {steps}
batch_size.{batch_unit} = {batch}
micro_batch_tokens = {micro_batch}
precision = {precision}
activation_checkpointing = {recomputes}
log_every_steps = 1
optimizer = {{ learning_rate = 3e-4, weight_decay = 0.01, max_grad_norm = 1.0 }}
schedule.constant.warmup_steps = 10
"""

# What a task adds to it.
LORA_CONFIG = f"""
[peft.method.lora]
r = {RANK}
lora_alpha = {ALPHA}
target_modules = "all-linear"
"""
EXTRA_CONFIG = {
    "lora": LORA_CONFIG,
    "qlora": LORA_CONFIG + '[peft.quantization]\nquant_type = "nf4"\ndouble_quant = true\n',
}

# TRL's settings for all that it has a default for.
PPO_CONFIG = """\
model.path = {model}
reward.model = {score_model}
value.init.own_trunk.path = {score_model}
data.prompts = [{prompts}]

[rollout]
prompts_per_step = {episodes}
samples_per_prompt = 1
max_new_tokens = {new_tokens}
temperature = 0.7
ignore_eos = true
batch_rows = {episodes}

[kl]
coef.fixed = 0.05

[ppo]
ppo_epochs = 4
num_minibatches = 1
value_clip_range = 0.2

[train]
steps = {steps}
micro_batch_tokens = {micro_batch}
precision = {precision}
log_every_steps = 1
optimizer = {{ learning_rate = 3e-6, weight_decay = 0.01, max_grad_norm = 1.0 }}
schedule.constant.warmup_steps = 10
"""

CAI_CONFIG = """\
model.path = {model}
constitution.path = {constitution}
prompts = {{ files = [{prompts}], max_prompts = {count} }}

[generate]
rounds = 1
critique = true
initial = {{ temperature = 0.7, max_new_tokens = {new_tokens} }}
critiques = {{ temperature = 0.3, max_new_tokens = {new_tokens} }}
revisions = {{ temperature = 0.5, max_new_tokens = {new_tokens} }}
batch_prompts = {count}
batch_rows = {count}
precision = {precision}
"""
# How its conversations may end.
CAI_ENDS = {"all rounds held", "blank revision"}

TOKEN_SET_CONFIG = """
[datasets.{name}]
kind = {kind}
sources = [{source}]
max_length = {max_length}
overlong = {overlong}
read.text_unit = "line"
"""


@dataclass(frozen=True)
class Machine:
    """What both sides run on: a device, `cpu` or `cuda`, and a number of threads."""

    device: str
    threads: int

    @property
    def name(self):
        return "cuda:0" if self.device == "cuda" else "cpu"

    def environment(self):
        """The caller's environment with the number of threads for every library that takes one from there."""
        count = str(self.threads)
        return os.environ | {f"{library}_NUM_THREADS": count for library in ("OMP", "MKL", "RAYON")}


def quoted(value):
    """A TOML string."""
    return json.dumps(str(value))


def stage(program, config, machine, **options):
    """Runs a stage with a config that lacks seed and run directory; returns that directory and the finished process.
    `program` is its name, with a command where it has some."""
    name, *word = program.split()
    out = WORK / "ours" / "-".join([name, *word])
    shutil.rmtree(out, ignore_errors=True)
    file = out.with_suffix(".toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"seed = 1\nout = {quoted(out)}\n{config}")
    command = [BINARIES / name, *word, "--config", file]
    if program != "data-prep":
        command += ["--device", machine.name]
    return out, process.run(command, machine.environment(), **options)


def manifest_of(run):
    return json.loads((run / "manifest.json").read_text())


def train_config(model, data_set, batch, steps, precision, recomputes="none"):
    unit, size = batch
    return TRAIN_CONFIG.format(
        model=quoted(model_dir(model)), data=quoted(train_file(data_set)), steps=steps, batch_unit=unit, batch=size,
        micro_batch=MICRO_BATCH_TOKENS, precision=quoted(precision), recomputes=quoted(recomputes),
    )


def train(case, machine):
    """Runs pretrain, sft, reward, finetune or peft."""
    config = train_config(case.model, case.data_set, case.batch, case.steps, case.precision, case.recomputes)
    config += EXTRA_CONFIG.get(case.task, "")
    line = FIRST_STEP if case.task == "start-up" else None
    run, finished = stage(PROGRAMS[case.task][-1], config, machine, line=line)
    lines, results = measured(run, finished, case, machine)
    results["loss_first"] = lines[0]["loss"]
    if case.task == "start-up":
        results["value"] = finished.line_seconds
    shutil.rmtree(run)
    return results


def ppo(case, machine):
    """Runs ppo; also says what the parts of an update took, of those that are timed."""
    config = PPO_CONFIG.format(
        model=quoted(model_dir(case.model)), score_model=quoted(score_model_dir(case.model)), prompts=quoted(PROMPTS),
        episodes=EPISODES, new_tokens=case.new_tokens, micro_batch=PPO_MICRO_BATCH_TOKENS, steps=case.steps,
        precision=quoted(case.precision),
    )
    run, finished = stage("ppo", config, machine)
    lines, results = measured(run, finished, case, machine)
    timed = lines[case.skip :]
    results["part_seconds"] = {part: statistics.fmean(line[f"time/{part}"] for line in timed) for part in PPO_PARTS}
    shutil.rmtree(run)
    return results


def measured(run, finished, case, machine):
    """The lines of a run's metrics, and its memory and speed, which is by the metrics' clock as the peers' is."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    manifest = manifest_of(run)
    results = {"steps": len(lines), "peak_bytes": finished.peak_bytes}
    results["versions"] = {"libtorch": manifest["versions"]["libtorch"]}
    found = manifest["results"]
    results["trained"] = found.get("trainable_parameters", found.get("parameters"))
    if machine.device == "cuda":
        results["peak_bytes"] = found["peak_memory_bytes"]
    return lines, results | speed(lines, case)


def speed(lines, case):
    """What the case counts, a second, from the end of step `skip` to the end of the last one; nothing where none is
    left."""
    if len(lines) <= case.skip:
        return {}
    counted = case.unit.removesuffix("/s")
    first, last = lines[case.skip - 1], lines[-1]
    count, seconds = last[COUNTERS[counted]] - first[COUNTERS[counted]], last["time"] - first["time"]
    return {"value": count / seconds, counted: count, "seconds": seconds}


def generate(case, machine):
    sizes = ("--rows", GENERATE_ROWS, "--prompt", PROMPT_TOKENS, "--new", case.new_tokens, "--rounds", case.steps)
    finished = bench(machine, "generate", *model_options(case, machine), *sizes)
    results = json.loads(finished.stdout)
    rates = results["tokens_per_s"]
    peak = results.get("peak_memory_bytes") if machine.device == "cuda" else finished.peak_bytes
    return {"value": statistics.median(rates), "rates": rates, "peak_bytes": peak}


def cai(case, machine):
    """Runs cai generate, whose clock starts when the model is loaded."""
    config = CAI_CONFIG.format(
        model=quoted(model_dir(case.model)), constitution=quoted(CONSTITUTION), prompts=quoted(PROMPTS),
        count=CAI_PROMPTS, new_tokens=case.new_tokens, precision=quoted(case.precision),
    )
    run, finished = stage("cai generate", config, machine)
    manifest = manifest_of(run)
    shutil.rmtree(run)
    found = manifest["results"]
    if not found["stopped"].keys() <= CAI_ENDS:
        raise process.Failed(f"conversations ended early: {found['stopped']}")
    peak = found["peak_memory_bytes"] if machine.device == "cuda" else finished.peak_bytes
    results = {"value": found["responses_per_second"], "responses": found["responses"], "peak_bytes": peak}
    return results | {"versions": {"libtorch": manifest["versions"]["libtorch"]}}


def data_prep(_case, machine):
    """The corpus, whole documents, with the tokenizer that is there."""
    config = f"preview_rows = 0\ntokenizer.existing.path = {quoted(TOKENIZER)}\n"
    config += token_set("corpus", CORPUS, max_length=1_000_000)
    run, finished = stage("data-prep", config, machine)
    counts = token_counts(run)["corpus"]
    shutil.rmtree(run)
    speed = counts["tokens"] / finished.seconds
    return {"value": speed, "seconds": finished.seconds, "peak_bytes": finished.peak_bytes, "data": counts}


def token_set(name, source, max_length=512):
    kind = KINDS[name.partition("-")[0]]
    return TOKEN_SET_CONFIG.format(
        name=name, kind=quoted(kind), source=quoted(source), max_length=max_length,
        overlong=quoted({"text": "split", "prompt": "drop"}.get(kind, "truncate")),
    )


def token_counts(run):
    """Rows and tokens of each data set of a run of data-prep; of prompts, which have no token rows, their number."""
    sets = manifest_of(run)["results"]["datasets"]
    counts = {}
    for name, found in sets.items():
        train = found.get("train", {"rows": found.get("train_prompts"), "tokens": None})
        counts[name] = {key: train[key] for key in ("rows", "tokens")}
    return counts


def make_token_sets(sources, machine):
    """Token sets of `sources`, name to file, and a tokenizer trained on the two that are always there."""
    config = 'preview_rows = 0\n[tokenizer.train]\nvocab_size = 4096\ndatasets = ["pretrain", "sft"]\n'
    config += "".join(token_set(name, source) for name, source in sorted(sources.items()))
    run, _ = stage("data-prep", config, machine)
    keep(run, PREPARED)
    return token_counts(PREPARED)


def make_prompts(source, machine):
    """The prompts of ppo, which are made for the tokenizer and so after it."""
    config = f"preview_rows = 0\ntokenizer.existing.path = {quoted(TOKENIZER)}\n{token_set('prompts', source)}"
    run, _ = stage("data-prep", config, machine)
    keep(run, PREPARED_PROMPTS)
    return token_counts(PREPARED_PROMPTS)


def make_score_model(model, data_set, machine):
    """What scores in ppo and what its value starts from, on both sides: one step of reward on `data_set`."""
    config = train_config(model, data_set, batch=("sequences", 8), steps=1, precision="fp32")
    run, _ = stage("reward", config, machine)
    keep(run / "model", score_model_dir(model))
    shutil.rmtree(run)


def keep(run, target):
    shutil.rmtree(target, ignore_errors=True)
    run.rename(target)


def make_model(target, config, precision, machine):
    """A model directory with random weights, stored in that precision, and the tokenizer."""
    shutil.rmtree(target, ignore_errors=True)
    file = target.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=2))
    bench(machine, "init", "--config", file, "--tokenizer", TOKENIZER, "--precision", precision, "--out", target)


def bound(case, machine, counts):
    """The most tokens a second that the matrix products of the case's model allow on this machine, measured now.
    `counts` are the rows and tokens trained on."""
    if case.task == "generate":
        shape = ["--decode-rows", GENERATE_ROWS, "--seq", PROMPT_TOKENS + case.new_tokens]
    else:
        unit, size = case.batch
        row_tokens = counts["tokens"] / counts["rows"]
        tokens = size if unit == "tokens" else size * row_tokens
        shape = ["--tokens", round(tokens), "--seq", round(row_tokens)]
        shape += ["--frozen"] if case.task in ADAPTERS else []
    finished = bench(machine, "bound", *model_options(case, machine), *shape)
    measured = json.loads(finished.stdout)
    return {"value": measured["tokens_per_s"], "gflops": measured["gflops"]}


def model_options(case, machine):
    return ("--model", model_dir(case.model), "--precision", case.precision, "--device", machine.name)


def bench(machine, *arguments):
    return process.run([BINARIES / "bench", *arguments], machine.environment())


RUN = {
    **dict.fromkeys((*TRAINING, "start-up"), train), "ppo": ppo, "generate": generate, "cai": cai,
    "data-prep": data_prep,
}
