"""The inputs of all cases, made from a seed: text and prompts of made-up words, our token sets of them, and model
directories with random weights. The peers read the same text, tokenizer and weights."""

import bisect
import itertools
import json
import random
import shutil

import ours
from cases import MODELS, PREFERENCE_ROWS, PROMPT_TOKENS, ROLLOUT_PROMPTS, SFT_ROWS, STORED_PRECISION
from paths import CONSTITUTION, CORPUS, TEXT, TOKENIZER, model_dir, text_of

SEED = 1
CORPUS_BYTES = 20_000_000
PRETRAIN_DOCUMENTS = 3000
# Of the constitution.
PHRASES = {"no_problem": "No problem found", "refusals": "I will not help"}
PRINCIPLES = 4
REQUEST_WORDS = 12
# What ppo's reward model is trained on, in one step.
SCORE_MODEL_SET = "preference-8"
# Raise it when the text changes, so that what an earlier version wrote is written anew.
VERSION = 1


class Writer:
    """Writes sentences of made-up words: few are frequent, and these are short, as in a language."""

    def __init__(self, seed, words=6000):
        self.random = random.Random(seed)
        syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
        made = {"".join(self.random.choices(syllables, k=self.random.randint(1, 4))) for _ in range(3 * words)}
        self.words = sorted(self.random.sample(sorted(made), words), key=len)
        self.cumulative = list(itertools.accumulate((rank + 2.7) ** -1.05 for rank in range(words)))

    def word(self):
        at = self.random.random() * self.cumulative[-1]
        return self.words[bisect.bisect(self.cumulative, at)]

    def text(self, median, spread, least, most):
        """Sentences of together a log-normal number of words."""
        left = int(min(most, max(least, median * self.random.lognormvariate(0, spread))))
        sentences = []
        while left > 0:
            words = [self.word() for _ in range(min(left, self.random.randint(5, 14)))]
            sentences.append(" ".join(words).capitalize() + ".")
            left -= len(words)
        return " ".join(sentences)


def write_corpus():
    writer = Writer(SEED)
    size = 0
    with CORPUS.open("w") as corpus, (TEXT / "pretrain.txt").open("w") as first:
        for document in itertools.count():
            if size >= CORPUS_BYTES:
                break
            line = writer.text(90, 0.7, 10, 600) + "\n"
            size += corpus.write(line)
            if document < PRETRAIN_DOCUMENTS:
                first.write(line)


def question(writer):
    return f"Question: {writer.text(16, 0.6, 3, 120)}\nAnswer:"


def write_rows(data_set, rows):
    with text_of(data_set).open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def sft_rows():
    writer = Writer(SEED + 1)
    for _ in range(SFT_ROWS):
        yield {"prompt": question(writer), "completion": " " + writer.text(45, 0.8, 3, 260)}


def preference_rows():
    """Pairs in which the chosen response tends to be the longer one, of the words of sft, which the tokenizer knows."""
    writer = Writer(SEED + 1)
    writer.random.seed(SEED + 2)
    for _ in range(PREFERENCE_ROWS):
        yield {
            "prompt": question(writer),
            "chosen": " " + writer.text(50, 0.7, 3, 220),
            "rejected": " " + writer.text(35, 0.7, 3, 220),
        }


def prompt_rows():
    """Prompts of exactly PROMPT_TOKENS tokens: BOS, and words that are one token each."""
    writer = Writer(SEED + 1)
    vocab = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    # In the vocabulary Ġ is the blank before a word.
    firsts = [word for word in writer.words if word in vocab]
    others = [word for word in writer.words if f"Ġ{word}" in vocab]
    for _ in range(ROLLOUT_PROMPTS):
        words = writer.random.choices(firsts) + writer.random.choices(others, k=PROMPT_TOKENS - 2)
        yield {"prompt": " ".join(words)}


def principle(writer, number):
    """A principle whose texts are of the words of sft, as long as such requests tend to be."""
    lines = [f'[[principles]]\nid = "p{number}"\n']
    for key in ("critique", "revision", "comparison"):
        text = ours.quoted(writer.text(REQUEST_WORDS, 0, REQUEST_WORDS, REQUEST_WORDS))
        lines.append(f"{key} = {{ en = {text}, ko = {text} }}\n")
    return "".join(lines)


def write_constitution():
    """Random weights never say `No problem found`, so every conversation has its critique and its revision."""
    writer = Writer(SEED + 1)
    writer.random.seed(SEED + 3)
    head = [f'{key} = {{ en = ["{phrase}"], ko = ["{phrase}"] }}\n' for key, phrase in PHRASES.items()]
    principles = [principle(writer, number) for number in range(1, PRINCIPLES + 1)]
    CONSTITUTION.write_text("\n".join(['name = "bench"\n' + "".join(head), *principles]))


def write_text():
    """Writes the text unless it is there as these constants make it."""
    stamp = TEXT / "version.json"
    wanted = json.dumps([VERSION, SEED, CORPUS_BYTES, PRETRAIN_DOCUMENTS, SFT_ROWS, PREFERENCE_ROWS])
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(TEXT, ignore_errors=True)
    TEXT.mkdir(parents=True)
    write_corpus()
    write_rows("sft", sft_rows())
    write_rows("preference", preference_rows())
    stamp.write_text(wanted)


def write_first_rows(data_set):
    """`sft-N` has the first N rows of `sft`."""
    whole, _, count = data_set.partition("-")
    rows = text_of(whole).read_text().splitlines(keepends=True)
    text_of(data_set).write_text("".join(rows[: int(count)]))


def prepare(cases, machine):
    """Makes everything that the cases need; returns the rows and tokens of each of our data sets."""
    write_text()
    ppo_models = {case.model for case in cases if case.task == "ppo"}
    sets = {"pretrain", "sft"} | {case.data_set for case in cases if case.task in ("sft", "reward")}
    sets |= {SCORE_MODEL_SET} if ppo_models else set()
    for data_set in filter(lambda name: "-" in name, sets):
        write_first_rows(data_set)
    counts = ours.make_token_sets({data_set: text_of(data_set) for data_set in sets}, machine)
    for model in {case.model for case in cases}:
        precision = STORED_PRECISION.get(model, "fp32")
        ours.make_model(model_dir(model), MODELS[model] | special_ids(), precision, machine)
    if any(case.data_set == "prompts" for case in cases):
        write_rows("prompts", prompt_rows())
        counts |= ours.make_prompts(text_of("prompts"), machine)
        write_constitution()
    for model in ppo_models:
        ours.make_score_model(model, SCORE_MODEL_SET, machine)
    return counts


def special_ids():
    """The ids of the tokenizer's special tokens, for the models' configs."""
    names = json.loads((TOKENIZER / "special_tokens_map.json").read_text())
    tokens = json.loads((TOKENIZER / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    return {f"{key}_id": ids[names[key]] for key in ("bos_token", "eos_token", "pad_token")}
