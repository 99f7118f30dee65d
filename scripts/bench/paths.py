"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target" / "release"
RECORDS = ROOT / "docs" / "benchmarks"
WORK = ROOT / "runs" / "bench"

TEXT = WORK / "text"
CORPUS = TEXT / "corpus.txt"
CONSTITUTION = TEXT / "constitution.toml"
PREPARED = WORK / "prepared"
TOKENIZER = PREPARED / "tokenizer"
PREPARED_PROMPTS = WORK / "prepared-prompts"
PROMPTS = PREPARED_PROMPTS / "data" / "prompts" / "train-prompts.parquet"


def text_of(data_set):
    """The file that the peers read where our side reads the token set."""
    return TEXT / ("pretrain.txt" if data_set == "pretrain" else f"{data_set}.jsonl")


def train_file(data_set):
    return PREPARED / "data" / data_set / "train.parquet"


def model_dir(model):
    return WORK / "models" / model


def score_model_dir(model):
    """A reward model of that shape."""
    return WORK / "models" / f"{model}-score"
