"""Measures sampling, and prints the tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.__main__ import RESULTS, machine
from bench.pages import write_table
from bench.sampling import simulated, throughput
from bench.sampling.tables import by_kind, by_memory, markdown, targets

# What is measured with models goes here too: one entry per backend, in a module `real` beside `simulated`,
# with its rows in `tables._targets`. A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {
    "known": simulated.known_steps,
    "kinds": simulated.kinds,
    "plans": simulated.plans,
    "throughput": throughput.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stored: Path = RESULTS / "sampling.json"
    results: dict[str, Any] = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    for name in options.parts:
        results[name] = {"figures": PARTS[name](), "measured_on": machine()}
        stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = markdown(results)
    (RESULTS / "sampling.md").write_text(table, "utf-8")
    write_table("sampling", targets(results))
    write_table("sampling-kinds", by_kind(results))
    write_table("sampling-memory", by_memory(results))
    print(table)


if __name__ == "__main__":
    main()
