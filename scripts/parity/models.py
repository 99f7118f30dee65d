"""Golden values of tiny random models: logits, losses, gradients, AdamW steps, greedy ids.

Two choices matter to whoever uses them:

* Every parameter is drawn with a real spread (biases not 0, norm weights not 1). With transformers' own
  initialisation logits are almost uniform, and a missing bias or a wrong mask would pass unseen.
* Numbers come with `noise`: the largest distance to the same computation in float64 throughout. Nobody can be asked
  to agree more closely than that.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import Tensors, gap, rms, write_json, write_tensors
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB, HIDDEN, HEADS, KV_HEADS, LAYERS, INTERMEDIATE, POSITIONS = 64, 16, 4, 2, 2, 24, 64
BOS, EOS, PAD = 0, 0, 1
PACKED_LENGTHS = (7, 5, 4)
NEW_TOKENS = 12
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0}


def configs() -> dict[str, PretrainedConfig]:
    """One config for each architecture and option that changes the arithmetic."""
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    llama_like = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": POSITIONS,
        **ids,
    }
    # The four frequencies of an 8-wide head fall into the three bands of Llama 3's rule: kept, blended, divided.
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 48,
    }
    return {
        "gpt2": GPT2Config(
            vocab_size=VOCAB, n_positions=POSITIONS, n_embd=HIDDEN, n_layer=LAYERS, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
        ),
        "llama": LlamaConfig(tie_word_embeddings=False, **llama_like),
        "llama3-rope": LlamaConfig(tie_word_embeddings=True, rope_parameters=llama3, head_dim=8, **llama_like),
        "mistral": MistralConfig(tie_word_embeddings=False, sliding_window=None, head_dim=8, **llama_like),
        # The window is shorter than the rows below.
        "mistral-window": MistralConfig(tie_word_embeddings=False, sliding_window=6, head_dim=8, **llama_like),
        "qwen2": Qwen2Config(tie_word_embeddings=True, use_sliding_window=False, **llama_like),
        # A head dimension that is not hidden / heads, as in the published Qwen3 models.
        "qwen3": Qwen3Config(tie_word_embeddings=True, head_dim=8, use_sliding_window=False, **llama_like),
    }


def randomise(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draws every parameter with a spread that shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            value = 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
        elif any(part in name for part in ("wte", "wpe", "embed_tokens")):
            # Small where it is the output layer as well, so that a token does not only predict itself.
            value = (0.2 if model.config.tie_word_embeddings else 0.5) * noise
        else:
            # GPT-2's Conv1D stores [in, out], Linear stores [out, in].
            fan_in = parameter.shape[0] if ".c_" in name else parameter.shape[1]
            value = noise / fan_in**0.5
        parameter.data.copy_(value)
    return model.eval()


@dataclass
class Batches:
    """The inputs all architectures share. Labels are -100 where a token is not counted."""

    full: torch.Tensor  # [3, 16]
    padded: torch.Tensor  # [3, 16], right-padded rows of 16, 11 and 5 tokens
    padded_mask: torch.Tensor
    padded_labels: torch.Tensor  # the first 6, 4 and 2 tokens are a prompt
    packed: torch.Tensor  # [1, 16], documents of PACKED_LENGTHS
    packed_positions: torch.Tensor
    packed_labels: torch.Tensor
    prompts: torch.Tensor  # [3, 8], left-padded prompts of 8, 5 and 2 tokens
    prompts_mask: torch.Tensor
    cases: tuple[str, ...] = field(default=("full", "padded", "packed"))

    @classmethod
    def draw(cls, seed: int) -> Batches:
        generator = torch.Generator().manual_seed(seed)

        def tokens(rows: int, length: int) -> torch.Tensor:
            return torch.randint(2, VOCAB, (rows, length), generator=generator)

        padded, mask = torch.full((3, 16), PAD), torch.zeros(3, 16, dtype=torch.long)
        labels = torch.full((3, 16), -100)
        for row, (content, length, prompt) in enumerate(zip(tokens(3, 16), (16, 11, 5), (6, 4, 2))):
            padded[row, :length], mask[row, :length] = content[:length], 1
            labels[row, prompt:length] = content[prompt:length]
        packed = tokens(1, sum(PACKED_LENGTHS))
        positions = torch.cat([torch.arange(n) for n in PACKED_LENGTHS])[None]
        prompts, prompts_mask = torch.full((3, 8), PAD), torch.zeros(3, 8, dtype=torch.long)
        for row, (content, length) in enumerate(zip(tokens(3, 8), (8, 5, 2))):
            prompts[row, 8 - length :], prompts_mask[row, 8 - length :] = content[:length], 1
        return cls(
            full=tokens(3, 16), padded=padded, padded_mask=mask, padded_labels=labels, packed=packed,
            packed_positions=positions,
            # A document's first token is not predicted from the document before it.
            packed_labels=packed.masked_fill(positions == 0, -100),
            prompts=prompts, prompts_mask=prompts_mask,
        )

    def kwargs(self, case: str) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward."""
        if case == "full":
            return {"input_ids": self.full, "labels": self.full}
        if case == "padded":
            return {"input_ids": self.padded, "attention_mask": self.padded_mask, "labels": self.padded_labels}
        return {"input_ids": self.packed, "position_ids": self.packed_positions, "labels": self.packed_labels}

    def defined(self, case: str, logits: torch.Tensor) -> torch.Tensor:
        """The logits of real tokens, [N, V]: those of padding mean nothing."""
        return logits[self.padded_mask.bool()] if case == "padded" else logits.flatten(0, 1)

    def tensors(self) -> Tensors:
        names = (
            "full", "padded", "padded_mask", "padded_labels", "packed", "packed_positions", "packed_labels", "prompts",
            "prompts_mask",
        )
        return {name: getattr(self, name) for name in names}


@dataclass
class Forward:
    logits: torch.Tensor  # [N, V] of real tokens
    loss: float


def forward(model: PreTrainedModel, batches: Batches, case: str) -> Forward:
    """Loss: the mean over counted labels, shifted by one, as transformers defines it."""
    with torch.no_grad():
        out = model(**batches.kwargs(case), use_cache=False)
    return Forward(batches.defined(case, out.logits), float(out.loss))


@dataclass
class Step:
    loss: float
    grad_norm: float
    grads: Tensors  # before clipping
    weights: Tensors  # after the step


def train(model: PreTrainedModel, batches: Batches, steps: int) -> list[Step]:
    """AdamW on the padded batch. No decay on parameters of one dimension, as transformers' Trainer has it."""
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": ADAMW["weight_decay"]},
            {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=ADAMW["lr"], betas=tuple(ADAMW["betas"]), eps=ADAMW["eps"], foreach=False, fused=False,
    )
    done = []
    for _ in range(steps):
        loss = model(**batches.kwargs("padded"), use_cache=False).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in named.items()}
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        weights = {name: p.detach().clone() for name, p in named.items()}
        done.append(Step(float(loss.detach()), float(total), grads, weights))
    return done


class AllDouble(TorchFunctionMode):
    """Turns the casts to float32 inside transformers' norms, rotary tables and softmax into casts to float64, so that
    a model in float64 is float64 throughout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wider(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(wider, args), **{key: wider(value) for key, value in (kwargs or {}).items()})


@dataclass
class Greedy:
    ids: torch.Tensor  # [3, NEW_TOKENS] generated ids
    logprobs: torch.Tensor  # of each of them
    margin: float  # smallest lead of the chosen token's logit


def greedy(model: PreTrainedModel, batches: Batches) -> Greedy:
    """The largest logit, again and again: one prompt at a time, no padding, no cache."""
    ids, logprobs, margins = [], [], []
    for row, mask in zip(batches.prompts, batches.prompts_mask):
        context, chosen = row[mask.bool()], []
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                logits = model(input_ids=context[None], use_cache=False).logits[0, -1]
            first, second = logits.topk(2).values
            margins.append(float(first - second))
            chosen.append(logits.log_softmax(-1).max())
            context = torch.cat([context, logits.argmax()[None]])
        ids.append(context[-NEW_TOKENS:])
        logprobs.append(torch.stack(chosen))
    return Greedy(torch.stack(ids), torch.stack(logprobs), min(margins))


def check_generate(model: PreTrainedModel, batches: Batches, expected: torch.Tensor) -> None:
    """transformers' own `generate`, with its cache and left padding, must say the same."""
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(
            input_ids=batches.prompts, attention_mask=batches.prompts_mask, max_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=PAD, eos_token_id=None,
        )
    assert torch.equal(out[:, batches.prompts.shape[1] :], expected), "generate() differs from the plain loop"


def bfloat16_gradient_error(model: PreTrainedModel, batches: Batches, exact: Tensors) -> float:
    """What bfloat16 does to the gradients in transformers: the distance of all together, relative to their norm."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half(**batches.kwargs("padded"), use_cache=False).loss.backward()
    grads = {name: p.grad.double() for name, p in half.named_parameters()}
    error = sum(float(((grads[name] - want.double()) ** 2).sum()) for name, want in exact.items())
    return (error / sum(float((want.double() ** 2).sum()) for want in exact.values())) ** 0.5


def bfloat16(model: PreTrainedModel, batches: Batches, exact: dict[str, Forward]) -> tuple[Tensors, dict[str, Any]]:
    """The same model in bfloat16. `rms` and `max` are what rounding alone does to transformers' logits."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    got = {case: forward(half, batches, case) for case in batches.cases}
    tensors = {f"bf16.{case}_logits": got[case].logits for case in ("full",)}
    distance = {
        case: {
            "loss": got[case].loss,
            "loss_error": abs(got[case].loss - exact[case].loss),
            "logits_rms": rms(got[case].logits, exact[case].logits),
            "logits_max": gap(got[case].logits, exact[case].logits),
        }
        for case in batches.cases
    }
    return tensors, distance


def legacy_config(model_dir: Path, out: Path) -> None:
    """The same config as transformers 4 wrote it (`rope_theta`, `rope_scaling`, `torch_dtype`), as most models on
    disk have it. transformers must read both alike."""
    import json

    config = json.loads((model_dir / "config.json").read_text())
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    config.pop("layer_types", None)
    write_json(out / "config.json", config)
    new, old = (AutoModelForCausalLM.from_pretrained(model_dir, config=c).eval() for c in (model_dir, out))
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        assert torch.equal(new(ids).logits, old(ids).logits), "the legacy config means another model"


def check_references(name: str, model: PreTrainedModel, model_dir: Path, batches: Batches) -> None:
    """Holds transformers to itself: another attention, a reload, and packed documents run alone."""
    again = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="sdpa").eval()
    for case in batches.cases:
        a, b = forward(model, batches, case), forward(again, batches, case)
        assert gap(a.logits, b.logits) < 1e-5, (name, case, gap(a.logits, b.logits))
    packed = forward(model, batches, "packed").logits
    with torch.no_grad():
        alone = [model(input_ids=part[None], use_cache=False).logits[0] for part in batches.packed[0].split(PACKED_LENGTHS)]
    assert gap(torch.cat(alone), packed) < 1e-5, (name, "packed documents see each other")


def write_architecture(name: str, config: PretrainedConfig, out: Path, seed: int) -> None:
    """Writes `model/`, `config-legacy/`, `io.safetensors`, `train.safetensors` and `expect.json`."""
    model = randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), seed)
    exact = copy.deepcopy(model).double()
    batches = Batches.draw(7)
    model.save_pretrained(out / "model")
    (out / "model" / "generation_config.json").unlink(missing_ok=True)
    legacy_config(out / "model", out / "config-legacy")
    check_references(name, model, out / "model", batches)

    single = {case: forward(model, batches, case) for case in batches.cases}
    found = greedy(model, batches)
    check_generate(copy.deepcopy(model), batches, found.ids)
    steps = train(copy.deepcopy(model), batches, 3)
    with AllDouble():
        double = {case: forward(exact, batches, case) for case in batches.cases}
        found64 = greedy(exact, batches)
        steps64 = train(exact, batches, 3)
    logits_noise = {case: gap(single[case].logits, double[case].logits) for case in batches.cases}
    assert found.margin > 100 * max(logits_noise.values()), (name, "greedy ids hang on rounding", found.margin)
    bf16_tensors, bf16 = bfloat16(model, batches, single)

    io = {**batches.tensors(), **bf16_tensors, "greedy_ids": found.ids, "greedy_logprobs": found.logprobs}
    io |= {f"{case}_logits": single[case].logits for case in batches.cases}
    write_tensors(out / "io.safetensors", io)
    trained = {f"grad.{k}": v for k, v in steps[0].grads.items()}
    trained |= {f"after_{n}.{k}": v for n in (1, 3) for k, v in steps[n - 1].weights.items()}
    write_tensors(out / "train.safetensors", trained)

    def noise(kind: str, index: int) -> dict[str, float]:
        a, b = getattr(steps[index], kind), getattr(steps64[index], kind)
        return {key: gap(a[key], b[key]) for key in a}

    write_json(
        out / "expect.json",
        {
            "logits": {"rows": "real tokens only, [N, vocab]", "noise": logits_noise},
            "loss": {case: single[case].loss for case in batches.cases},
            "loss_noise": {case: abs(single[case].loss - double[case].loss) for case in batches.cases},
            "greedy": {
                "margin": found.margin,
                "logprob_noise": gap(found.logprobs, found64.logprobs),
            },
            "train": {
                "batch": "padded",
                "no_decay": "parameters of one dimension",
                **ADAMW,
                "loss": [s.loss for s in steps],
                "grad_norm": [s.grad_norm for s in steps],
                "bf16_grad_error": bfloat16_gradient_error(model, batches, steps[0].grads),
                "grad_noise": noise("grads", 0),
                # Where the true gradient is 0 (the bias of GPT-2's keys: softmax ignores it), Adam turns rounding
                # into steps of the learning rate; these numbers are large exactly there.
                "after_1_noise": noise("weights", 0),
                "after_3_noise": noise("weights", 2),
            },
            "bf16": bf16,
        },
    )


def write_all(out: Path) -> None:
    for index, (name, config) in enumerate(configs().items()):
        write_architecture(name, config, out / name, seed=100 * (index + 1))
