"""The peers' Constitutional AI: a loop over model.generate, as tutorials and small projects write it."""

import json
import random
import time
import tomllib
from pathlib import Path

from peer_common import load_model, load_tokenizer, wait

# What the model is asked for after the prompt, and how hot its turns are.
TURNS = ((None, 0.7), ("critique", 0.3), ("revision", 0.5))


def run_cai(args, _scratch):
    """An answer, a critique and a revision for the first --steps prompts, --batch at a time. Loading is not timed."""
    import torch

    model = load_model(args, torch.bfloat16 if args.precision == "bf16" else torch.float32).eval()
    tokenizer = load_tokenizer(args)
    tokenizer.padding_side = "left"
    constitution = tomllib.loads(Path(args.constitution).read_text())
    lines = Path(args.data).read_text().splitlines()[: args.steps]
    talks = [[message("user", json.loads(line)["prompt"])] for line in lines]

    def say(talks, temperature):
        inputs = tokenizer.apply_chat_template(
            talks, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=args.new, do_sample=True, temperature=temperature, top_k=0)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    chance = random.Random(1)
    responses = 0
    wait(args.device)
    start = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(talks), args.batch):
            responses += hold(talks[first : first + args.batch], say, constitution, chance)
    wait(args.device)
    seconds = time.perf_counter() - start
    return {"value": responses / seconds, "responses": responses, "seconds": seconds}


def message(role, text):
    return {"role": role, "content": text}


def hold(talks, say, constitution, chance):
    """One round of each conversation; returns how many turns the model took."""
    live = [(talk, chance.choice(constitution["principles"])) for talk in talks]
    responses = 0
    for request, temperature in TURNS:
        if request:
            for talk, principle in live:
                talk.append(message("user", principle[request]["en"]))
        for (talk, _), text in zip(live, say([talk for talk, _ in live], temperature)):
            talk.append(message("assistant", text))
        responses += len(live)
        if request == "critique":
            live = [(talk, principle) for talk, principle in live if not finds_no_problem(talk, constitution)]
        if not live:
            break
    return responses


def finds_no_problem(talk, constitution):
    critique = talk[-1]["content"].lower()
    return any(phrase.lower() in critique for phrase in constitution["no_problem"]["en"])
