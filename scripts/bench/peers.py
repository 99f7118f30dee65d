"""The peers' side: runs peer.py in its Python environment. `run` says in variables where that is."""

import json
import os
from pathlib import Path

import process
from cases import ADAPTERS, ALPHA, RANK
from paths import CONSTITUTION, CORPUS, WORK, model_dir, score_model_dir, text_of

SCRIPT = Path(__file__).with_name("peer.py")
# peer.py says so on stderr when the first step is done.
FIRST_STEP = "^step 1$"
PYTHON = "BENCH_PEER_PYTHON"
LIBRARIES = "BENCH_PEER_LIBRARIES"
# Folders with what takes the place of the environment's packages, or is there besides, by task.
PACKAGES = {"ppo": "BENCH_PEER_PPO_PACKAGES", "qlora": "BENCH_PEER_QLORA_PACKAGES"}


def available():
    return PYTHON in os.environ


def environment(case, machine):
    """As our side's, with nothing from the network and all caches, compiled Python too, below the working directory."""
    inherited = {name: value for name, value in machine.environment().items() if name != "PYTHONDONTWRITEBYTECODE"}
    if case.task in PACKAGES:
        inherited["PYTHONPATH"] = os.environ[PACKAGES[case.task]]
    return inherited | {
        "LD_LIBRARY_PATH": os.environ.get(LIBRARIES, ""),
        "PYTHONPYCACHEPREFIX": str(WORK / "peer-cache" / "bytecode"),
        "HF_HOME": str(WORK / "peer-cache" / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "CUDA_VISIBLE_DEVICES": "" if machine.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
    }


def command(case, peer, machine):
    words = [os.environ[PYTHON], SCRIPT, peer.task, "--model", model_dir(case.model), "--steps", case.steps]
    words += ["--skip", case.skip, "--precision", case.precision, "--device", machine.device, *peer.options]
    if case.task == "data-prep":
        return [*words, "--data", CORPUS, "--processes", machine.threads]
    if case.task == "generate":
        return words
    if case.task == "cai":
        words += ["--constitution", CONSTITUTION]
    if case.task == "ppo":
        words += ["--score-model", score_model_dir(case.model)]
    if case.task in ADAPTERS:
        words += ["--rank", RANK, "--alpha", ALPHA]
    return [*words, "--data", text_of(case.data_set)]


def run(case, peer, machine):
    line = FIRST_STEP if case.task == "start-up" else None
    whole_tree = case.task == "data-prep"
    finished = process.run(command(case, peer, machine), environment(case, machine), line=line, whole_tree=whole_tree)
    results = json.loads(finished.stdout.splitlines()[-1])
    results.setdefault("peak_bytes", finished.peak_bytes)
    results["data"] = {"rows": results.pop("data_rows", None), "tokens": results.pop("data_tokens", None)}
    if case.task == "start-up":
        results["value"] = finished.line_seconds
    return results
