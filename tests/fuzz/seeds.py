#!/usr/bin/env python3
"""Writes what the fuzz targets begin from into a folder: tests/fuzz/seeds.py FOLDER

Taken from the fixtures, the shipped configs, and the folder seeds/, which holds what only a run of temper makes.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIXTURES = ROOT / "tests/fixtures/parity"

RECORDS = {
    0: ['{"text": "안녕"}\n{"text": "b"}\n', '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'],
    1: ['[{"instruction": "a", "input": "", "output": "b"}]', '{"prompt": "p", "chosen": "c", "rejected": "r"}'],
    2: ['prompt,completion\n"a ""b""",c\n'],
    3: ["prompt\tcompletion\na\tb\n"],
    4: ["One.\n\nTwo.\n"],
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
    shard = b'\x00{"metadata": {}, "weight_map": {"a": "shard.safetensors", "b": "../../x.safetensors"}}'
    templates = [json.loads(path.read_text()) for path in sorted((FIXTURES / "templates").glob("*.json"))]
    sources = [it[key] for it in templates if isinstance(it, dict) for key in ("plain", "tagged") if it.get(key)]
    tokenizers = []
    for folder in sorted(path for path in (FIXTURES / "tokenizers").iterdir() if path.is_dir()):
        table = json.loads((folder / "tokenizer.json").read_text())
        thin(table)
        config = (folder / "tokenizer_config.json").read_bytes()
        tokenizers.append(json.dumps(table, ensure_ascii=False).encode() + b"\0" + config)
    return {
        "safetensors": [b"\x01" + file for file in weights if len(file) < 5000] + [shard],
        "config_json": read("models/*/model/config.json") + read("reward-models/*/model/config.json"),
        "tokenizer_json": tokenizers,
        "chat_template": [source.encode() for source in sources + TEMPLATES],
        "records": [bytes([form]) + text.encode() for form, texts in RECORDS.items() for text in texts],
        "adapter": read("adapters/*/adapter/adapter_config.json"),
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


if __name__ == "__main__":
    main()
