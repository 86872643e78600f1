"""Benchmarks in parts: each is measured and stored by itself, beside what earlier runs have measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from bench.__main__ import RESULTS, machine

# Of all parts that were ever measured, by name: their figures, and what they were measured on.
Results = dict[str, Any]


class SkippedError(Exception):
    """A part cannot be measured here. The message says why, and what to do."""


def chosen(parts: Collection[str], description: str | None) -> list[str]:
    """Returns the parts that the command's arguments name; all if they name none."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("parts", nargs="*", default=list(parts), help=f"of {', '.join(parts)}; default: all")
    names: list[str] = parser.parse_args().parts
    return names


def measured(stored: str, parts: Collection[str], measure: Callable[[str, Results], Any]) -> Results:
    """Measures parts, one after another.

    Args:
        stored: name of the file with the results, which is written after each part.
        parts: their names.
        measure: takes the name of a part, and the results so far; returns its figures. Raises SkippedError
            for a part that is to be left as it is.
    """
    RESULTS.mkdir(exist_ok=True)
    file: Path = RESULTS / stored
    results: Results = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for name in parts:
        try:
            figures = measure(name, results)
        except SkippedError as error:
            print(error, file=sys.stderr)
            continue
        results[name] = {"figures": figures, "measured_on": machine()}
        file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return results
