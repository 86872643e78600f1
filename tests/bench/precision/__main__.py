"""Compares the precision policies, and prints the tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.__main__ import RESULTS, machine
from bench.pages import write_table
from bench.precision import cost, faithfulness
from bench.precision.subjects import subjects
from bench.precision.tables import by_width, markdown, targets
from pahq_server.memory.heap import keep_freed_memory

PARTS: dict[str, Callable[[], Any]] = {
    "faithfulness": lambda: faithfulness.measure(subjects()),
    "speed": cost.speed,
    "width": cost.by_width,
    "narrow": cost.narrow_search,
    "resident": cost.resident_shares,
    "loading": cost.loading,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        cost.write_llama(options.write)
        return
    if options.load:
        print(json.dumps(cost.load(options.load)))
        return
    keep_freed_memory()
    stored: Path = RESULTS / "precision.json"
    results: dict[str, Any] = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    # One thread: CPU seconds of small products would count the waiting of others.
    torch.set_num_threads(1)
    for name in options.parts:
        results[name] = {"figures": PARTS[name](), "measured_on": machine()}
        RESULTS.mkdir(exist_ok=True)
        stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = markdown(results)
    (RESULTS / "precision.md").write_text(table, "utf-8")
    write_table("precision", targets(results))
    write_table("width", by_width(results))
    print(table)


if __name__ == "__main__":
    main()
