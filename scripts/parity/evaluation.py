"""Perplexity as transformers' documentation computes it, and choices as lm-evaluation-harness does, of tiny random models.

Each model has one of the tokenizers of `tokenizer_files`. Text in Korean and English, shorter and longer than the context.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import tokenizer_files
from common import write_json
from models import randomise
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers import AutoModelForCausalLM

POSITIONS, STRIDE = 64, 24

TEXTS = [
    "The cat sat on the mat.",
    "민수는 사과를 세 개 가지고 있어요. 지원이는 배를 두 개 샀어요. 고양이가 마당에서 놀고 있습니다. 강아지는 공원에서 달리고 있습니다.",
    "x",
    "An old sailor told us of whales and of storms, of far islands where nobody sleeps. " * 3,
    "Minsu has three apples and two pears. He gave one apple to Jiwon. " * 6,
    "mixed 한국어와 English를 1234567.89원 섞어 쓴 문장, isn't it? 😀",
    "\u1100\u1161\u11a8 as conjoining jamo",
]

# No sentence of the tokenizers' corpus: they would take it for one token.
QUESTIONS: list[dict[str, Any]] = [
    {"query": "Who slept under our", "choices": ["bed?", "old dog", "tallest tree by the river."], "gold": 0},
    {"query": "Jiwon bought", "choices": ["seven plums", "some bread and a cat", "빵"], "gold": 1},
    {"query": "수지는 학교에서", "choices": ["책을 읽었어요.", "노래를 불렀어요.", "잤다"], "gold": 2},
    {"query": "My dog barks at ", "choices": ["us all.", "night!"], "gold": 1},
    {"question": "어제 저녁에는", "choices": ["눈이 왔다.", "바람이 불었어요. Cold!"], "answer": 0},
    {
        "question": "Which fruit is yellow", "answerKey": "B",
        "choices": {"text": ["a plum?", "banana", "포도"], "label": ["A", "B", "C"]},
    },
    {"ctx": "할머니가 부엌에서", "endings": ["국을 끓이셨다.", "주무셨다", "plums", "12,345번 웃으셨다."], "label": "3"},
    {"query": "", "choices": ["Her hat", "보라는"], "gold": 0},
    # Longer than the context, so that its beginning is left out: of each choice another part.
    {"query": "Minsu found a blue stone, a red leaf and " * 6 + "then", "choices": ["he slept.", "a fish sang to the old moon"], "gold": 0},
    {"query": "고양이가 마당에서 놀고 강아지는 공원에서 달리고 " * 12 + "나는", "choices": ["잤다", "노래를 불렀다."], "gold": 1},
]


def configs(vocab: dict[str, int]) -> dict[str, PretrainedConfig]:
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return {
        "byte-level": LlamaConfig(
            vocab_size=vocab["byte-level"], hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True, **ids,
        ),
        "metaspace": GPT2Config(
            vocab_size=vocab["metaspace"], n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, **ids,
        ),
    }


def perplexity(model: PreTrainedModel, tokenizer: Any) -> dict[str, float]:
    """https://huggingface.co/docs/transformers/perplexity, over several documents; loss by `labels`, as there."""
    nats, tokens = 0.0, 0
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        ids = ids if ids[:1] == [first] else [first, *ids]
        input_ids = torch.tensor([ids])
        seen = 0
        for begin in range(0, len(ids), STRIDE):
            end = min(begin + POSITIONS, len(ids))
            window = input_ids[:, begin:end]
            labels = window.clone()
            labels[:, : -(end - seen)] = -100
            # The first token of a text has nothing before it: the model shifts the labels by one.
            counted = int((labels[:, 1:] != -100).sum())
            with torch.no_grad():
                nats += float(model(window, labels=labels).loss.double()) * counted
            tokens += counted
            seen = end
            if end == len(ids):
                break
    size = sum(len(text.encode()) for text in TEXTS)
    loss = nats / tokens
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": nats / math.log(2) / size, "tokens": tokens}


def parts(record: dict[str, Any]) -> tuple[str, list[str], int]:
    if "query" in record:
        return record["query"], record["choices"], record["gold"]
    if "answerKey" in record:
        labels = record["choices"]["label"]
        return record["question"], record["choices"]["text"], labels.index(record["answerKey"])
    if "endings" in record:
        return record["ctx"], record["endings"], int(record["label"])
    return record["question"], record["choices"], record["answer"]


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As `TemplateLM._encode_pair` and `loglikelihood` of lm-evaluation-harness 0.4."""
    if context == "":
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        whole = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return ([first], whole) if whole[:1] != [first] else (whole[:1], whole[1:])
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole = tokenizer(context + continuation)["input_ids"]
    before = len(tokenizer(context)["input_ids"])
    return whole[:before], whole[before:]


def choices(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    rows, right, right_norm = [], 0, 0
    for record in QUESTIONS:
        query, options, gold = parts(record)
        sums = []
        for option in options:
            context, continuation = encode_pair(tokenizer, query, f" {option}")
            assert context and 0 < len(continuation) <= POSITIONS, (query, option)
            # As `_loglikelihood_tokens`: what is too long is cut from the left, and the last token is not read.
            read = (context + continuation)[-(POSITIONS + 1) :][:-1]
            with torch.no_grad():
                logits = model(torch.tensor([read])).logits[0].double()
            logprobs = logits.log_softmax(-1)[-len(continuation) :]
            sums.append(float(logprobs.gather(1, torch.tensor(continuation)[:, None]).sum()))
        norm = [total / len(option.encode()) for total, option in zip(sums, options)]
        right += max(range(len(sums)), key=sums.__getitem__) == gold
        right_norm += max(range(len(norm)), key=norm.__getitem__) == gold
        rows.append({"logprobs": sums, "gold": gold})
    return {"rows": rows, "accuracy": right / len(rows), "accuracy_norm": right_norm / len(rows)}


def write_all(out: Path) -> None:
    made = {"byte-level": tokenizer_files.byte_level(), "metaspace": tokenizer_files.metaspace()}
    vocab = {kind: tokenizer.get_vocab_size() for kind, (tokenizer, _) in made.items()}
    for seed, (kind, config) in enumerate(configs(vocab).items(), 50):
        folder = out / kind / "model"
        tokenizer_files.save(*made[kind], folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), seed)
        model.save_pretrained(folder)
        found = {"perplexity": perplexity(model, tokenizer), "choice": choices(model, tokenizer)}
        write_json(out / kind / "expect.json", {"stride": STRIDE, **found})
    write_json(out / "texts.json", [{"text": text} for text in TEXTS])
    write_json(out / "questions.json", QUESTIONS)
