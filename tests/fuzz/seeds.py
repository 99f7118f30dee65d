#!/usr/bin/env python3
"""Writes what the fuzz targets begin from into a folder, and beside each target's a dictionary: tests/fuzz/seeds.py FOLDER

Taken from the fixtures, the shipped configs, and the folder seeds/, which holds what only a run of temper makes.
"""

import collections
import json
import re
import shutil
import struct
import sys
from pathlib import Path

from tokenizer_seeds import tokenizers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIXTURES = ROOT / "tests/fixtures/parity"

RECORDS = {
    0: ['{"text": "안녕"}\n{"text": "b"}\n', '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'],
    1: ['[{"instruction": "a", "input": "", "output": "b"}]', '{"prompt": "p", "chosen": "c", "rejected": "r"}'],
    2: ['prompt,completion\n"a ""b""",c\n'],
    3: ["prompt\tcompletion\na\tb\n"],
    4: ["One.\n\nTwo.\n"],
    5: ['{"text": "packed"}\n{"prompt": "p", "completion": "c"}\n'],
    6: ['{"text": "packed"}\n{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'],
    # The second hexadecimal digit: how a text is cut, and the options `field` and `by_key`.
    0x14: ["a\n\nb\n--\nc\n"],
    0x34: ["a\n--\nb\n"],
    0x41: ['{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}'],
    0x81: ['{"k": {"text": "a"}, "l": {"text": "b"}}'],
    0xC1: ['{"data": {"k": {"prompt": "p", "completion": "c"}}}'],
    7: ['{"prompt": "p", "responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}]}\n{"a": [[[1e999, null]]]}'],
}

TEMPLATES = [
    "{% set ns = namespace(s='x') %}{% for m in messages %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% macro f(a, b=1) %}{{ a|replace('x', 'y')|indent(4) }}{% endmacro %}{{ f('x' * 9) }}{{ [1, 2]|join(', ') }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|tojson(indent=2) }}{{ '%s'|format(1) }}{{ range(9)|list }}",
]


def seeds() -> dict[str, list[bytes]]:
    def read(pattern: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted(FIXTURES.glob(pattern))]

    weights = read("adapters/*/adapter/adapter_model.safetensors")
    adapters = [path.parent for path in sorted(FIXTURES.glob("adapters/llama-*/adapter/adapter_config.json"))]
    model = (FIXTURES / "models/llama/model/model.safetensors").read_bytes()
    shard = b'\x00{"metadata": {}, "weight_map": {"a": "shard.safetensors", "b": "../../x.safetensors"}}'
    templates = [json.loads(path.read_text()) for path in sorted((FIXTURES / "templates").glob("*.json"))]
    sources = [it[key] for it in templates if isinstance(it, dict) for key in ("plain", "tagged") if it.get(key)]
    known = []
    for folder in sorted(path for path in (FIXTURES / "tokenizers").iterdir() if path.is_dir()):
        table = json.loads((folder / "tokenizer.json").read_text())
        thin(table)
        config = (folder / "tokenizer_config.json").read_bytes()
        known.append(json.dumps(table, ensure_ascii=False).encode() + b"\0" + config)
    return {
        "safetensors": [b"\x01" + file for file in weights if len(file) < 5000]
        + [b"\x02" + parted(file) for file in weights if len(file) < 5000]
        + [b"\x03" + parted(model), b"\x03" + parted(in_four_bits(model)), shard],
        "config_json": read("models/*/model/config.json") + read("reward-models/*/model/config.json"),
        "tokenizer_json": known + [json.dumps(it, ensure_ascii=False).encode() + b"\0{}" for it in tokenizers()],
        "chat_template": [source.encode() for source in sources + TEMPLATES],
        "records": [bytes([form]) + text.encode() for form, texts in RECORDS.items() for text in texts],
        "adapter": read("adapters/*/adapter/adapter_config.json")
        + [b"\0".join((it / f"adapter_{name}").read_bytes() for name in ("config.json", "model.safetensors")) for it in adapters],
        "toml_config": [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.toml"))],
    }


def thin(tokenizer: dict) -> None:
    """Leaves a few tokens and merges of a vocabulary, so that a change of a byte means something."""
    model = tokenizer["model"]
    keep = 300
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: at for token, at in model["vocab"].items() if at < keep}
    known = model["vocab"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model.get("merges", [])]
    if "merges" in model:
        model["merges"] = [merge for merge in merges if all(part in known for part in [*merge, "".join(merge)])]


def unpacked(file: bytes) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def parted(file: bytes) -> bytes:
    """A safetensors file as the target safetensors takes it, which puts the length itself."""
    header, data = unpacked(file)
    return json.dumps(header).encode() + b"\xff" + data


def in_four_bits(file: bytes) -> bytes:
    """The weights with one matrix in 4 bits, as bitsandbytes stores it."""
    (header, data), (table, tables) = unpacked(file), unpacked((FIXTURES / "four-bit/nf4.safetensors").read_bytes())
    parts = {name: (it["dtype"], it["shape"], data[slice(*it["data_offsets"])]) for name, it in header.items() if name[0] != "_"}
    name = "model.layers.0.self_attn.o_proj.weight"
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": parts[name][1]}).encode()
    quant_map = tables[slice(*table["zeros.plain.quant_map"]["data_offsets"])]
    parts |= {
        name: ("U8", [128, 1], bytes(range(128))),
        f"{name}.absmax": ("F32", [4], struct.pack("<4f", 1, 2, 3, 4)),
        f"{name}.quant_map": ("F32", [16], quant_map),
        f"{name}.quant_state.bitsandbytes__nf4": ("U8", [len(state)], state),
    }
    header, data = {}, b""
    for name, (dtype, shape, content) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def dictionary(files: list[bytes]) -> str:
    """The most frequent words of the files, in libFuzzer's form."""
    words = collections.Counter(word for file in files for word in re.findall(rb"[A-Za-z_][A-Za-z0-9_]{2,23}", file))
    return "".join(f'"{word.decode()}"\n' for word, _ in words.most_common(300))


def main() -> None:
    folder = Path(sys.argv[1])
    for target, files in seeds().items():
        place = folder / target
        place.mkdir(parents=True, exist_ok=True)
        for at, content in enumerate(files):
            (place / f"seed-{at:03}").write_bytes(content)
    for file in sorted(path for path in (HERE / "seeds").rglob("*") if path.is_file()):
        place = folder / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"seed-{file.name}")
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        words = dictionary([file.read_bytes() for file in sorted(place.glob("seed-*"))])
        (folder / f"{place.name}.dict").write_text(words)


if __name__ == "__main__":
    main()
