"""Prints a make fragment: the manifest given as argument depends on the raw inputs it names.

Anything in a run directory stands for that run's manifest.json; a folder for itself and every file in it; a file for
itself. Each raw input gets an empty rule as well, so that one deleted later makes the stage run (and say what is
missing) instead of stopping make.
"""

import json
import os
import sys


def files(path):
    """The files make has to watch for the input `path`."""
    parent = path
    while parent not in ("", "/"):
        manifest = os.path.join(parent, "manifest.json")
        if os.path.exists(manifest):
            return [manifest]
        parent = os.path.dirname(parent)
    if not os.path.isdir(path):
        return [path]
    found = []
    for folder, _, names in sorted(os.walk(path)):
        found += [folder, *(os.path.join(folder, name) for name in sorted(names))]
    return found


def escaped(path):
    """`path` as a word in a prerequisite list; None where make has no way to write it."""
    if any(c in path for c in "\n\t%;|&*?[]"):
        return None
    return path.replace("$", "$$").replace("\\", "\\\\").replace(" ", "\\ ").replace("#", "\\#").replace(":", "\\:")


def main():
    manifest = sys.argv[1]
    with open(manifest, encoding="utf-8") as file:
        inputs = json.load(file)["inputs"]
    watched = (escaped(path) for entry in inputs for path in files(entry["path"]))
    words = sorted({word for word in watched if word})
    if words:
        print(f"{escaped(manifest)}: {' '.join(words)}")
        # An empty rule for a manifest would take the place of its own: leave those out.
        for word in words:
            if not word.endswith("/manifest.json"):
                print(f"{word}:")


main()
