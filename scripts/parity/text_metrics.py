"""ROUGE by rouge_score, chrF by sacrebleu, exact match and F1 by SQuAD's rules, of texts in English and Korean."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import regex
from common import write_json
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import CHRF

ROUGE = ["rouge1", "rouge2", "rougeL"]
SHARES = [*ROUGE, "exact_match", "f1"]

# A long text and one made of it: every seventh word is left out, every fifth another, every eleventh said twice.
LONG = [f"{'abcdefgh'[i * i % 8]}{i * 7 % 31}" for i in range(200)]
CHANGED = " ".join(
    "other" if i % 5 == 4 else f"{word} {word}" if i % 11 == 10 else word for i, word in enumerate(LONG) if i % 7 != 6
)

CASES: dict[str, tuple[str, list[str]]] = {
    "identical": ("The cat sat on the mat.", ["The cat sat on the mat."]),
    "paraphrase": ("The quick brown fox jumps over the lazy dog", ["The quick brown dog jumps on the log."]),
    "repeated words": ("the the the the the cat", ["the cat is on the mat, the cat"]),
    "other order": ("dog the over jumps fox the", ["the fox jumps over the dog"]),
    "disjoint": ("xyz", ["qrs tuv"]),
    "nothing said": ("", ["Paris"]),
    "nothing asked for": ("Paris", [""]),
    "both empty": ("", [""]),
    "punctuation only": ("...", ["?!"]),
    "punctuation against a word": ("!!!", ["yes"]),
    "articles only": ("The", ["a"]),
    "articles": ("an apple a day; the-end, theatre, a. b—the—c", ["Apple day: theend theatre b — c"]),
    "case and punctuation": ("  blue,\tCAT ", ["“Blue” cat!", "blue cat."]),
    "numbers": ("About 1,234.50 units (12%) in 2019", ["1234.50 units, 12 % in 2019_20"]),
    "short": ("ab", ["abc"]),
    "one character": ("a", ["a"]),
    "white space": ("one two\tthree\x1cfour\r\nfive", ["one two three four\nfive"]),
    "several": ("the cat sat", ["a cat sat down there", "sat the cat", "the dog sat by the cat", ""]),
    "several, one without words": ("...", ["the", "Paris"]),
    "several, equal scores": ("qq", ["xyz", "uvwxy zabc"]),
    "Korean": ("고양이가 매트 위에 앉았다.", ["고양이가 매트 위에 앉았다."]),
    "Korean particles": ("고양이는 매트 위에 앉아 있다.", ["고양이가 매트 위에 앉아 있었다."]),
    "Korean disjoint": ("서울", ["부산이다"]),
    "decomposed Hangul": (unicodedata.normalize("NFD", "한국의 수도는 서울이다"), ["한국의 수도는 서울이다"]),
    "mixed scripts": ("GPT-4는 Transformer 모델(model)이다", ["GPT-4는 transformer 기반 모델이에요: model!"]),
    "full width": ("ＡＢＣ　１２３！", ["abc 123"]),
    "marks and emoji": ("हिन्दी में नमस्ते 👍🏽", ["हिन्दी नमस्ते 👍"]),
    "case beyond ASCII": ("ΟΔΟΣ Straße İZMİR", ["οδος STRASSE izmir Οδός"]),
    "long": (CHANGED, [" ".join(LONG)]),
}


class Words(Tokenizer):
    """Runs of letters, marks and digits of any script; rouge_score's own tokenizer knows those of ASCII alone."""

    def tokenize(self, text: str) -> list[str]:
        return regex.findall(r"[\p{Alphabetic}\p{M}\p{N}]+", text.lower())


def rouge(prediction: str, references: list[str]) -> dict[str, float]:
    scores = RougeScorer(ROUGE, tokenizer=Words()).score_multi(references, prediction)
    if all(text.isascii() for text in (prediction, *references)):
        assert scores == RougeScorer(ROUGE).score_multi(references, prediction), prediction
    return {name: float(score.fmeasure) for name, score in scores.items()}


def normalised(text: str) -> str:
    """As SQuAD's script does, but in NFKC."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = text.translate(dict.fromkeys(map(ord, string.punctuation)))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = (Counter(predicted) & Counter(wanted)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def squad(prediction: str, references: list[str]) -> dict[str, float]:
    """As the script of version 2.0: references that normalise to nothing are left out, unless all do."""
    wanted = [text for text in map(normalised, references) if text] or [""]
    predicted = normalised(prediction)
    return {
        "exact_match": float(predicted in wanted),
        "f1": max(word_f1(predicted.split(), text.split()) for text in wanted),
    }


def rows_of(cases: dict[str, tuple[str, list[str]]]) -> dict[str, Any]:
    """Each case with its scores, and those of all together."""
    rows: list[dict[str, Any]] = [
        {
            "name": name, "prediction": prediction, "references": references, **rouge(prediction, references),
            **squad(prediction, references), "chrf": CHRF().sentence_score(prediction, references).score,
        }
        for name, (prediction, references) in cases.items()
    ]
    streams = list(zip_longest(*(references for _, references in cases.values())))
    chrf = CHRF().corpus_score([prediction for prediction, _ in cases.values()], streams).score
    means = {name: fmean(row[name] for row in rows) for name in SHARES}
    return {"rows": rows, "means": {**means, "chrf": chrf}}


def write_all(out: Path) -> None:
    write_json(out / "text-metrics.json", rows_of(CASES))
