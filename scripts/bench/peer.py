"""The peers' side: one measurement with transformers, TRL or datasets, as a user of them would write it.

Prints one JSON object, the last line of stdout; whatever the libraries print goes to stderr, and so does the line
`step 1` when the first optimiser step is done. Reads only what the other side reads: a model directory and a file of
rows. The orchestrator (`peers.py`) sets threads, caches and offline mode in the environment.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version

from peer_adapter import run_lora, run_qlora
from peer_cai import run_cai
from peer_common import load_model, load_tokenizer, wait
from peer_rlhf import run_ppo, run_reward
from peer_training import run_pretrain, run_sft, run_tutorial

LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers")
ADAPTER_LIBRARIES = {"lora": ("peft",), "qlora": ("peft", "bitsandbytes")}


def run_generate(args, _scratch):
    """model.generate on full batches, sampled from the whole distribution; no row ends early."""
    import torch
    from transformers import GenerationConfig

    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    model = load_model(args, dtype).eval()
    model.generation_config = GenerationConfig(
        max_new_tokens=args.new, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0,
        cache_implementation=None if args.cache == "dynamic" else args.cache,
    )
    prompts = torch.randint(model.config.vocab_size, (args.batch, args.prompt)).to(args.device)
    mask = torch.ones_like(prompts)
    rates = []
    with torch.inference_mode():
        for _ in range(args.steps + 1):
            wait(args.device)
            start = time.perf_counter()
            ids = model.generate(prompts, attention_mask=mask)
            wait(args.device)
            rates.append(args.batch * args.new / (time.perf_counter() - start))
            if ids.shape[1] != args.prompt + args.new:
                sys.exit(f"generate ended early: {tuple(ids.shape)}")
    return {"value": statistics.median(rates[1:]), "rates": rates[1:]}


def run_data_prep(args, scratch):
    """datasets: a text file, a line a document, tokenised by several processes into Parquet. Imports are not timed."""
    import datasets
    import pyarrow.compute
    import pyarrow.parquet

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(args)
    processes = args.processes if args.processes > 1 else None
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if processes else "true"
    target = os.path.join(scratch, "tokens.parquet")

    def encode(rows):
        ids = tokenizer(rows["text"], return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*row, tokenizer.eos_token_id] for row in ids]}

    start = time.perf_counter()
    rows = datasets.load_dataset("text", data_files=args.data, split="train", cache_dir=scratch)
    rows = rows.map(encode, batched=True, num_proc=processes, remove_columns=["text"])
    rows.to_parquet(target)
    seconds = time.perf_counter() - start
    column = pyarrow.parquet.read_table(target)["input_ids"]
    tokens = pyarrow.compute.sum(pyarrow.compute.list_value_length(column)).as_py()
    return {"value": tokens / seconds, "seconds": seconds, "data_rows": len(rows), "data_tokens": tokens}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--model", required=True, help="model directory; data-prep needs only its tokenizer")
    parser.add_argument("--score-model", help="ppo: model directory of what scores and of where the value starts")
    parser.add_argument("--constitution", help="cai: TOML with principles and no_problem, in English")
    parser.add_argument(
        "--data",
        help="JSON Lines with prompt, and completion or chosen and rejected; text for pretrain and data-prep",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--steps", type=int, default=10, help="optimiser steps; ppo: updates; generate: timed calls; cai: prompts"
    )
    parser.add_argument("--skip", type=int, default=2, help="first steps that are not timed")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a forward pass; cai: prompts at a time")
    parser.add_argument("--accumulate", type=int, default=1, help="forward passes in a step")
    parser.add_argument("--packing", choices=["bfd", "wrapped", "none"], default="none")
    parser.add_argument("--own-loss", action="store_true", help="the model's own loss instead of TRL's")
    parser.add_argument("--group-by-length", action="store_true")
    parser.add_argument("--rank", type=int, default=16, help="lora, qlora")
    parser.add_argument("--alpha", type=int, default=32, help="lora, qlora: the scale is this over the rank")
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens generated after each prompt; cai: the most")
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


TASKS = {
    "sft": run_sft,
    "lora": run_lora,
    "qlora": run_qlora,
    "tutorial": run_tutorial,
    "pretrain": run_pretrain,
    "reward": run_reward,
    "ppo": run_ppo,
    "generate": run_generate,
    "cai": run_cai,
    "data-prep": run_data_prep,
}


def main():
    args = parse()
    results_out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as scratch:
        results = TASKS[args.task](args, scratch)
    if args.device == "cuda":
        import torch

        results["peak_bytes"] = torch.cuda.max_memory_allocated()
    with contextlib.suppress(ModuleNotFoundError):
        libraries = (*LIBRARIES, *ADAPTER_LIBRARIES.get(args.task, ()))
        results["versions"] = {name: version(name) for name in libraries}
    print(json.dumps(results), file=results_out, flush=True)


if __name__ == "__main__":
    main()
