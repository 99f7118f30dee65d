"""Golden values of tiny random sequence classifiers of one label: scores, values, the loss of pairs and its gradients.

transformers scores padded rows, and finds the last token of each by its id: the last one that is not the padding
token. So every text is scored alone, padded on the right and padded on the left, with the padding token inside some
of them; and one that ends in it is scored where there is no padding token.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Tensors, gap, write_json, write_tensors
from models import EOS, PAD, VOCAB, AllDouble, configs, randomise
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

# Prompt, chosen and rejected; the window of `mistral-window` is shorter than the first prompt with either response.
LENGTHS = ((6, 4, 7), (2, 1, 5))
# Without it nothing that adds the same to both scores has a gradient, as the bias of GPT-2's last norm does.
CENTERING = 0.1


@dataclass
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass
class Texts:
    """Two pairs, a text of one token, and one that ends in the padding token."""

    pairs: list[Pair]
    single: list[int]
    pad_last: list[int]

    @classmethod
    def draw(cls, seed: int) -> Texts:
        generator = torch.Generator().manual_seed(seed)

        def tokens(length: int) -> list[int]:
            return torch.randint(2, VOCAB, (length,), generator=generator).tolist()

        pairs = [Pair(*map(tokens, lengths)) for lengths in LENGTHS]
        pairs[0].prompt[3] = pairs[1].rejected[1] = PAD
        pairs[0].chosen[-1] = pairs[1].rejected[-1] = EOS
        return cls(pairs, tokens(1), tokens(4) + [PAD])

    def rows(self) -> list[list[int]]:
        """What is scored: chosen and rejected of each pair with their prompt, then the single one."""
        responses = [pair.prompt + response for pair in self.pairs for response in (pair.chosen, pair.rejected)]
        return [*responses, self.single]


def padded(rows: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
    """Arguments of the model's forward."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[index, start : start + len(row)], mask[index, start : start + len(row)] = torch.tensor(row), 1
    batch = {"input_ids": ids, "attention_mask": mask}
    # GPT-2 counts positions from the start of the row unless it is told.
    return {**batch, "position_ids": mask.cumsum(1) - mask} if left else batch


def scores(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, use_cache=False).logits[:, 0]


def all_scores(model: PreTrainedModel, texts: Texts) -> Tensors:
    rows = texts.rows()
    with torch.no_grad():
        alone = [scores(model, {"input_ids": torch.tensor([row])}) for row in rows]
        return {
            "alone": torch.cat(alone),
            "right": scores(model, padded(rows, left=False)),
            "left": scores(model, padded(rows, left=True)),
        }


def score_of_pad_last(model: PreTrainedModel, texts: Texts) -> float:
    """Of the last token, which transformers passes over as long as it takes it for padding."""
    other = copy.deepcopy(model)
    other.config.pad_token_id = None
    ids = torch.tensor([texts.pad_last])
    with torch.no_grad():
        score, passed_over = (scores(m, {"input_ids": ids}) for m in (other, model))
    assert gap(score, passed_over) > 0.01, "the padding token at the end is nothing special"
    return float(score)


def values(model: PreTrainedModel, texts: Texts) -> list[list[float]]:
    """The score at the token before each token of a response, as TRL's PPOTrainer reads its value model."""
    found = []
    for pair in texts.pairs:
        for response in (pair.chosen, pair.rejected):
            with torch.no_grad():
                hidden = model.base_model(input_ids=torch.tensor([pair.prompt + response])).last_hidden_state
                found.append(model.score(hidden)[0, len(pair.prompt) - 1 : -1, 0].tolist())
    return found


@dataclass
class Backward:
    loss: float  # of the two pairs, as TRL's RewardTrainer defines it
    centred_loss: float  # with `center_rewards_coefficient`
    grads: Tensors  # of the latter


def backward(model: PreTrainedModel, texts: Texts) -> Backward:
    chosen, rejected = scores(model, padded(texts.rows()[:-1], left=False)).view(-1, 2).unbind(1)
    loss = -logsigmoid(chosen - rejected).mean()
    centred = loss + CENTERING * ((chosen + rejected) ** 2).mean()
    centred.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return Backward(float(loss.detach()), float(centred.detach()), grads)


def check_references(name: str, model: PreTrainedModel, model_dir: Path, texts: Texts) -> None:
    """Holds transformers to itself: padding changes no score, nor does another attention after a reload."""
    again = AutoModelForSequenceClassification.from_pretrained(model_dir, attn_implementation="sdpa").eval()
    alone = all_scores(model, texts)["alone"]
    for kind, found in (*all_scores(model, texts).items(), *all_scores(again, texts).items()):
        assert gap(found, alone) < 1e-5, (name, kind, gap(found, alone))


def write_architecture(name: str, config: PretrainedConfig, out: Path, seed: int) -> None:
    """Writes `model/`, `gradients.safetensors` and `expect.json`."""
    config.num_labels = 1
    model = randomise(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"), seed)
    exact = copy.deepcopy(model).double()
    texts = Texts.draw(11)
    model.save_pretrained(out / "model")
    check_references(name, model, out / "model", texts)

    found = all_scores(model, texts)
    trained = backward(copy.deepcopy(model), texts)
    with AllDouble():
        found64 = all_scores(exact, texts)
        trained64 = backward(exact, texts)
    write_tensors(out / "gradients.safetensors", {f"grad.{key}": grad for key, grad in trained.grads.items()})
    expect: dict[str, Any] = {
        "pairs": [vars(pair) for pair in texts.pairs],
        "single": texts.single,
        "scores": {kind: numbers.tolist() for kind, numbers in found.items()},
        "scores_noise": {kind: gap(found[kind], found64[kind]) for kind in found},
        "pad_last": {"ids": texts.pad_last, "score": score_of_pad_last(model, texts)},
        "values": values(model, texts),
        "loss": trained.loss,
        "loss_noise": abs(trained.loss - trained64.loss),
        "centering": CENTERING,
        "centred_loss": trained.centred_loss,
        "train": {"grad_noise": {key: gap(grad, trained64.grads[key]) for key, grad in trained.grads.items()}},
    }
    write_json(out / "expect.json", expect)


def write_all(out: Path) -> None:
    for index, (name, config) in enumerate(configs().items()):
        write_architecture(name, config, out / name, seed=100 * (index + 1) + 50)
