"""Measures sampling, and prints the tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.__main__ import RESULTS, machine
from bench.pages import write_table
from bench.sampling import real, simulated
from bench.sampling.tables import by_kind, by_memory, by_model, markdown, targets

# A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {
    "known": simulated.known_steps,
    "kinds": simulated.kinds,
    "plans": simulated.plans,
    "transformers": real.by_transformers,
    "vllm": real.by_vllm,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stored: Path = RESULTS / "sampling.json"
    results: dict[str, Any] = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    for name in options.parts:
        try:
            figures = PARTS[name]()
        except real.SkippedError as error:
            print(error, file=sys.stderr)
            continue
        results[name] = {"figures": figures, "measured_on": machine()}
        stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = markdown(results)
    (RESULTS / "sampling.md").write_text(table, "utf-8")
    write_table("sampling", targets(results))
    write_table("sampling-kinds", by_kind(results))
    write_table("sampling-memory", by_memory(results))
    write_table("sampling-models", by_model(results))
    print(table)


if __name__ == "__main__":
    main()
