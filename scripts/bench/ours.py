"""Our side: the programs in target/release, run as a user runs them."""

import json
import os
import shutil
import statistics
from dataclasses import dataclass

import process
from cases import GENERATE_ROWS, PROMPT_TOKENS
from paths import BINARIES, CORPUS, PREPARED, TOKENIZER, WORK, model_dir, train_file

# A stage's line on stderr after its first step, where that is no terminal.
FIRST_STEP = r"^step 1[/ ]"
MICRO_BATCH_TOKENS = 4096

TRAIN_CONFIG = """\
model.path = {model}
data.train = [{data}]

[train]
steps = {steps}
batch_size.{batch_unit} = {batch}
micro_batch_tokens = {micro_batch}
precision = {precision}
log_every_steps = 1
optimizer = {{ learning_rate = 3e-4, weight_decay = 0.01, max_grad_norm = 1.0 }}
schedule.constant.warmup_steps = 10
"""

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
    """Runs a stage with a config that lacks seed and run directory; returns that directory and the finished process."""
    out = WORK / "ours" / program
    shutil.rmtree(out, ignore_errors=True)
    file = out.with_suffix(".toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"seed = 1\nout = {quoted(out)}\n{config}")
    command = [BINARIES / program, "--config", file]
    if program != "data-prep":
        command += ["--device", machine.name]
    return out, process.run(command, machine.environment(), **options)


def manifest_of(run):
    return json.loads((run / "manifest.json").read_text())


def train(case, machine):
    """Runs sft or pretrain; speed is taken from its metrics file, by the clock as the peers' is."""
    unit, size = case.batch
    config = TRAIN_CONFIG.format(
        model=quoted(model_dir(case.model)), data=quoted(train_file(case.data_set)), steps=case.steps,
        batch_unit=unit, batch=size, micro_batch=MICRO_BATCH_TOKENS, precision=quoted(case.precision),
    )
    program = "pretrain" if case.task == "pretrain" else "sft"
    run, finished = stage(program, config, machine, line=FIRST_STEP if case.task == "start-up" else None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    manifest = manifest_of(run)
    results = {"loss_first": lines[0]["loss"], "steps": len(lines), "peak_bytes": finished.peak_bytes}
    results["versions"] = {"libtorch": manifest["versions"]["libtorch"]}
    if machine.device == "cuda":
        results["peak_bytes"] = manifest["results"]["peak_memory_bytes"]
    results |= speed(lines, case.skip)
    if case.task == "start-up":
        results["value"] = finished.line_seconds
    shutil.rmtree(run)
    return results


def speed(lines, skip):
    """Tokens a second from the end of step `skip` to the end of the last one; nothing where none is left."""
    if len(lines) <= skip:
        return {}
    first, last = lines[skip - 1], lines[-1]
    tokens, seconds = last["num_tokens"] - first["num_tokens"], last["time"] - first["time"]
    return {"value": tokens / seconds, "tokens": tokens, "seconds": seconds}


def generate(case, machine):
    sizes = ("--rows", GENERATE_ROWS, "--prompt", PROMPT_TOKENS, "--new", case.new_tokens, "--rounds", case.steps)
    finished = bench(machine, "generate", *model_options(case, machine), *sizes)
    results = json.loads(finished.stdout)
    rates = results["tokens_per_s"]
    peak = results.get("peak_memory_bytes") if machine.device == "cuda" else finished.peak_bytes
    return {"value": statistics.median(rates), "rates": rates, "peak_bytes": peak}


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
    kind, overlong = ("text", "split") if source.suffix == ".txt" else ("completion", "truncate")
    return TOKEN_SET_CONFIG.format(
        name=name, kind=quoted(kind), source=quoted(source), max_length=max_length, overlong=quoted(overlong)
    )


def token_counts(run):
    """Rows and tokens of each token set of a run of data-prep."""
    sets = manifest_of(run)["results"]["datasets"]
    return {name: {key: found["train"][key] for key in ("rows", "tokens")} for name, found in sets.items()}


def make_token_sets(sources, machine):
    """Token sets of `sources`, name to file, and a tokenizer trained on the two that are always there."""
    config = 'preview_rows = 0\n[tokenizer.train]\nvocab_size = 4096\ndatasets = ["pretrain", "sft"]\n'
    config += "".join(token_set(name, source) for name, source in sorted(sources.items()))
    run, _ = stage("data-prep", config, machine)
    shutil.rmtree(PREPARED, ignore_errors=True)
    run.rename(PREPARED)
    return token_counts(PREPARED)


def make_model(target, config, machine):
    """A model directory with random weights and the tokenizer."""
    shutil.rmtree(target, ignore_errors=True)
    file = target.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=2))
    bench(machine, "init", "--config", file, "--tokenizer", TOKENIZER, "--out", target)


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
    finished = bench(machine, "bound", *model_options(case, machine), *shape)
    measured = json.loads(finished.stdout)
    return {"value": measured["tokens_per_s"], "gflops": measured["gflops"]}


def model_options(case, machine):
    return ("--model", model_dir(case.model), "--precision", case.precision, "--device", machine.name)


def bench(machine, *arguments):
    return process.run([BINARIES / "bench", *arguments], machine.environment())


RUN = {"sft": train, "start-up": train, "pretrain": train, "generate": generate, "data-prep": data_prep}
