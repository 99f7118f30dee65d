"""Golden values of PEFT's adapters over the tiny random models: logits, merged logits, loss, gradients.

The base models are those under `models` and `reward-models`, which must be there already. What a fresh adapter leaves
at zero or one is drawn too: an adapter that does nothing would show nothing. `noise` is what it is in `models.py`.
"""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Tensors, gap, write_json, write_tensors
from models import VOCAB, AllDouble
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

ROWS, LENGTH = 2, 24
PISSA = "llama-pissa"
# What rounding may do to the outputs: the tests allow 1e-5.
NOISE = 8e-6


@dataclass
class Case:
    base: str  # a fixture of a model, relative to the folder of all fixtures
    config: PeftConfig


def cases() -> dict[str, Case]:
    """Fresh each time: PEFT changes the configs that it is given."""
    qv = ["q_proj", "v_proj"]

    def gpt2(config: type[PeftConfig], **options: Any) -> Case:
        return Case("models/gpt2", config(fan_in_fan_out=True, task_type="CAUSAL_LM", **options))

    def llama(config: type[PeftConfig], **options: Any) -> Case:
        return Case("models/llama", config(task_type="CAUSAL_LM", **options))

    def qwen2(bias: str) -> Case:
        # Of these `o_proj` has no bias; `k_proj`, which is not one of them, has one.
        config = LoraConfig(r=2, lora_alpha=4, target_modules=[*qv, "o_proj"], bias=bias, task_type="CAUSAL_LM")
        return Case("models/qwen2", config)

    return {
        # `c_proj` is a layer of attention and one of the MLP.
        "gpt2-lora": gpt2(LoraConfig, r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"]),
        "gpt2-dora": gpt2(LoraConfig, r=2, lora_alpha=3, target_modules=["c_attn", "c_proj"], use_dora=True),
        # The biases of norms and of layers without an adapter as well.
        "gpt2-bias-all": gpt2(LoraConfig, r=2, lora_alpha=4, target_modules=["c_attn"], bias="all"),
        "gpt2-ia3": gpt2(IA3Config, target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
        "llama-lora": llama(LoraConfig, r=4, lora_alpha=8, target_modules="all-linear"),
        "llama-qv": llama(LoraConfig, r=4, lora_alpha=3, target_modules=qv, use_rslora=True),
        "llama-dora": llama(LoraConfig, r=2, lora_alpha=3, target_modules=[*qv, "down_proj"], use_dora=True),
        "llama-layers": llama(
            LoraConfig, r=2, lora_alpha=4, target_modules=["q_proj", "self_attn.k_proj", "up_proj", "down_proj"],
            exclude_modules=["mlp.down_proj"], layers_to_transform=[1], layers_pattern="layers",
        ),
        "llama-patterns": llama(
            LoraConfig, r=4, lora_alpha=4,
            target_modules=r"model\.layers\.\d+\.(self_attn\.[qkv]_proj|mlp\.(up|down)_proj)",
            rank_pattern={"down_proj": 3, r"layers\.0\.self_attn\.q_proj": 6},
            alpha_pattern={"^model.layers.1.mlp.up_proj": 7, "v_proj": 3, r"layers\.0\.self_attn\.(q|k)_proj": 5},
        ),
        "llama-save": llama(LoraConfig, r=2, lora_alpha=4, target_modules=qv, modules_to_save=["lm_head"]),
        "llama-ia3": llama(
            IA3Config, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        PISSA: llama(LoraConfig, r=4, lora_alpha=6, target_modules=qv, init_lora_weights="pissa"),
        "llama-reward-lora": Case(
            "reward-models/llama", LoraConfig(r=2, lora_alpha=4, target_modules=[*qv, "down_proj"], task_type="SEQ_CLS")
        ),
        "qwen2-bias-all": qwen2("all"),
        "qwen2-bias-lora-only": qwen2("lora_only"),
    }


def load_base(path: Path) -> PreTrainedModel:
    """The base as any user would load it."""
    is_classifier = path.parent.parent.name == "reward-models"
    auto_class = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    return auto_class.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def randomise(model: PeftModel, generator: torch.Generator) -> None:
    """Draws A and B, and moves everything else that is trained: magnitudes, scales, biases, whole layers."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            if ".lora_A." in name or ".lora_B." in name:
                parameter.data.copy_(0.2 * noise)
            else:
                parameter.data += 0.2 * noise


def file_key(name: str) -> str:
    """What a parameter of the model is called in `adapter_model.safetensors`."""
    key = name.replace(".modules_to_save.default", "").replace(".default", "")
    return key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key


def save(model: PeftModel, base: str, out: Path, initial: Path | None = None) -> None:
    """`save_pretrained`, without the model card and with lists in an order that does not change."""
    model.peft_config["default"].base_model_name_or_path = f"../../../{base}/model"
    convert = {"path_initial_model_for_weight_conversion": str(initial)} if initial else {}
    model.save_pretrained(str(out), save_embedding_layers=False, **convert)
    (out / "README.md").unlink()
    path = out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in config.items():
        if isinstance(value, list):
            config[key] = sorted(value)
    # As PEFT writes it.
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def outputs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits [N, vocab] of a language model, scores [rows] of a classifier."""
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False).logits
    return found.flatten(0, 1) if found.ndim == 3 else found[:, 0]


def backward(model: PeftModel, ids: torch.Tensor) -> tuple[float, Tensors]:
    """The loss and the gradients of all that is trained. A language model's loss is the mean over all tokens but the
    first of each row; a classifier should score the first row higher than the second."""
    if model.peft_config["default"].task_type == "SEQ_CLS":
        scores = model(input_ids=ids, use_cache=False).logits[:, 0]
        loss = -logsigmoid(scores[0] - scores[1])
    else:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    grads = {file_key(name): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return float(loss.detach()), grads


def modules(model: PeftModel) -> dict[str, dict[str, Any]]:
    """What the config came to: the layers that have an adapter."""
    found: dict[str, dict[str, Any]] = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            found[name] = {"r": layer.r["default"], "scaling": float(layer.scaling["default"])}
        elif isinstance(layer, IA3Layer):
            found[name] = {"feedforward": layer.is_feedforward}
    return found


def check_references(name: str, base: Path, out: Path, ids: torch.Tensor, expected: torch.Tensor) -> None:
    """Holds PEFT to itself: what is loaded again says the same, and something other than the base."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        again = PeftModel.from_pretrained(load_base(base), str(out / "adapter")).eval()
    assert gap(outputs(again, ids), expected) < 1e-5, (name, "loaded again", gap(outputs(again, ids), expected))
    assert gap(outputs(load_base(base), ids), expected) > 0.1, (name, "the adapter changes nothing")


def record(case: Case, model: PeftModel, base: Path, out: Path, generator: torch.Generator, extra: Tensors) -> None:
    """Writes `io.safetensors` and `expect.json` of the adapter that lies in `adapter/` and is loaded in `model`."""
    name, ids = out.name, torch.randint(2, VOCAB, (ROWS, LENGTH), generator=generator)
    exact = copy.deepcopy(model).double()
    kind = "scores" if case.config.task_type == "SEQ_CLS" else "logits"
    layers = modules(model)
    found, merged = outputs(model, ids), outputs(copy.deepcopy(model).merge_and_unload(), ids)
    loss, grads = backward(model, ids)
    with AllDouble():
        found64 = outputs(exact, ids)
        loss64, grads64 = backward(exact, ids)
    check_references(name, base, out, ids, found)
    noise, merged_noise = gap(found, found64), gap(merged, found64)
    assert max(noise, merged_noise) < NOISE, (name, noise, merged_noise)
    assert grads.keys() == load_file(out / "adapter" / "adapter_model.safetensors").keys(), (name, sorted(grads))
    assert all(grad.abs().max() > 1e-4 for grad in grads.values()), (name, "something has no gradient")

    io = {"input_ids": ids, kind: found, f"merged_{kind}": merged, **extra}
    write_tensors(out / "io.safetensors", io | {f"grad.{key}": grad for key, grad in grads.items()})
    rows = {"rows": "all tokens, [N, vocab]"} if kind == "logits" else {}
    write_json(
        out / "expect.json",
        {
            "base": f"{case.base}/model",
            "modules": layers,
            kind: {**rows, "noise": noise},
            f"merged_{kind}": {**rows, "noise": merged_noise},
            "loss": loss,
            "loss_noise": abs(loss - loss64),
            "train": {"grad_noise": {key: gap(grad, grads64[key]) for key, grad in grads.items()}},
        },
    )


def pissa_initial(model: PeftModel) -> Tensors:
    """What PiSSA made of the first layer: `residual.*` is the base without its largest components, `initial.*` is
    those, which the adapter has."""
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
            # The signs of singular vectors are left open; here the largest number of each row of A is positive.
            signs = a.gather(1, a.abs().argmax(1, keepdim=True)).sign()
            a *= signs
            b *= signs.T
            if ".0." in name:
                found[f"residual.{name}.weight"] = layer.base_layer.weight.data.clone()
                found[f"initial.{name}.weight"] = layer.scaling["default"] * b @ a
    return found


def write_pissa(case: Case, base: Path, out: Path, generator: torch.Generator) -> None:
    """A PiSSA adapter as PEFT makes a LoRA adapter of it, which goes with the ordinary base: A and what it was before
    training one above the other, B and minus what it was side by side."""
    model = get_peft_model(load_base(base), case.config).eval()
    extra = pissa_initial(model)
    with tempfile.TemporaryDirectory() as tmp:
        initial = Path(tmp) / "initial"
        save(model, case.base, initial)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        trained = copy.deepcopy(model)
        save(model, case.base, out / "adapter", initial)
    converted = PeftModel.from_pretrained(load_base(base), str(out / "adapter"), is_trainable=True).eval()
    ids = torch.randint(2, VOCAB, (ROWS, LENGTH), generator=generator)
    difference = gap(outputs(trained, ids), outputs(converted, ids))
    assert difference < 1e-5, (out.name, "as a LoRA adapter", difference)
    record(case, converted, base, out, generator, extra)


def write_all(out: Path) -> None:
    for index, (name, case) in enumerate(cases().items()):
        generator = torch.Generator().manual_seed(1000 + index)
        base = out.parent / case.base / "model"
        if not base.exists():
            raise SystemExit(f"{base} is missing: adapters are made over it; write `models` and `reward-models` first")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            # Of the conversion, which looks for the base at its path and loads the first adapter beside the last.
            warnings.filterwarnings("ignore", message="PiSSA changes the base weights|Could not find a config file in")
            if name == PISSA:
                write_pissa(case, base, out / name, generator)
                continue
            model = get_peft_model(load_base(base), case.config).eval()
            randomise(model, generator)
            save(model, case.base, out / name / "adapter")
            record(case, model, base, out / name, generator, {})
