#!/usr/bin/env python3
"""ROUGE, chrF, exact match and F1 of pairs of texts of one's own, by the libraries that the fixtures are made with.

  text_metrics_pairs.py PAIRS.jsonl OUT.json      each line: {"prediction": "...", "references": ["...", ...]}

then   TEMPER_TEXT_METRICS=OUT.json cargo test --release -p data metrics -- --nocapture   compares ours and prints the largest
differences. Run it with the Python of `.venv-parity`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import write_json
from text_metrics import rows_of


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if line.strip()]
    cases = {f"line {number}": (line["prediction"], line["references"]) for number, line in enumerate(lines, 1)}
    write_json(Path(sys.argv[2]), rows_of(cases))


if __name__ == "__main__":
    main()
