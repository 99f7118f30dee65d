"""Small tokenizers of the two common kinds, and what AutoTokenizer makes of texts in Korean, English and emoji.

* `byte-level`: GPT-2's and Llama 3's kind, byte-level BPE with a splitting pattern and special tokens.
* `metaspace`: Llama 2's and Mistral's kind, pieces with U+2581 for spaces, unknown characters as bytes, a BOS token added by
  the post-processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import write_json
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

CORPUS = [
    "The cat sat on the mat. The dog ran to the park and sat there.",
    "Minsu has three apples and two pears. He gave one apple to Jiwon.",
    "민수는 사과를 세 개 가지고 있어요. 지원이는 배를 두 개 샀어요.",
    "고양이가 마당에서 놀고 있습니다. 강아지는 공원에서 달리고 있습니다.",
    "오늘 날씨가 좋아요. 내일은 비가 올 거예요. What a nice day it is today!",
    "1, 2, 3, 10, 100 and 2024. 가격은 1,500원입니다. 😀 👍 café naïve",
] * 4

TEXTS = [
    "",
    " ",
    "\n",
    "Hello, world!",
    "The cat sat on the mat.",
    "  two  spaces,\ttabs\r\nand lines\n\n\n",
    "민수는 사과를 세 개 가지고 있어요.",
    "완성형: 각 값 뷁 쀍",
    "\u1100\u1161\u11a8 as conjoining jamo, \uac01 composed",
    "family 👨\u200d👩\u200d👧\u200d👦 flags 🇰🇷 and 👍🏽",
    "mixed 한국어와 English를 1234567.89원 섞어 쓴 문장, isn't it? I'LL we've",
    "naïve café — “quotes” … \u00a0nbsp \u200bzwsp \ufeffbom",
    "𠜎𡃁 rare, \u0000 control, \ufffd replacement",
    "<s>markup</s> <|im_start|>user\nhi<|im_end|>",
    "word" * 40,
    "ㅋㅋㅋㅋㅋㅋ ㅠㅠ ^^;;",
]

SPECIALS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> tuple[Tokenizer, dict[str, Any]]:
    """GPT-4's and Llama 3's splitting pattern in front of byte-level BPE."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    config = {
        "bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "unk_token": None,
        "additional_special_tokens": SPECIALS[2:],
    }
    return tokenizer, config


def metaspace() -> tuple[Tokenizer, dict[str, Any]]:
    """Llama 2's pipeline: a space in front, spaces to U+2581, BPE with byte fallback, BOS by template."""
    specials = ["<unk>", "<s>", "</s>"]
    first = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    first.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=560, special_tokens=specials + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False,
    )
    first.train_from_iterator(CORPUS, trainer)
    # Training marks the byte tokens as special; in Llama's file only the first three are.
    import json

    state = json.loads(first.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": "<unk>"}
    return tokenizer, config


def save(tokenizer: Tokenizer, config: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {**config, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"},
    )


def byte_offsets(text: str, spans: list[tuple[int, int]]) -> list[list[int]]:
    return [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans]


def encodings(out: Path) -> list[dict[str, Any]]:
    """What AutoTokenizer says about each text."""
    auto = AutoTokenizer.from_pretrained(out)
    found = []
    for text in TEXTS:
        plain = auto(text, add_special_tokens=False, return_offsets_mapping=True)
        found.append(
            {
                "text": text,
                "ids": plain["input_ids"],
                "offsets": byte_offsets(text, plain["offset_mapping"]),
                "ids_with_special": auto(text)["input_ids"],
                "decoded": auto.decode(plain["input_ids"], skip_special_tokens=False),
                "decoded_without_special": auto.decode(plain["input_ids"], skip_special_tokens=True),
            }
        )
    return found


def write_all(out: Path) -> None:
    for name, make in (("byte-level", byte_level), ("metaspace", metaspace)):
        tokenizer, config = make()
        save(tokenizer, config, out / name)
        write_json(out / f"{name}.json", encodings(out / name))
