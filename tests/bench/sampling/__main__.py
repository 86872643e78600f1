"""Measures sampling, and prints the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.__main__ import RESULTS
from bench.pages import write_table
from bench.parts import chosen, measured
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
    names = chosen(PARTS, __doc__)
    results = measured("sampling.json", names, lambda name, results: PARTS[name]())
    table = markdown(results)
    (RESULTS / "sampling.md").write_text(table, "utf-8")
    write_table("sampling", targets(results))
    write_table("sampling-kinds", by_kind(results))
    write_table("sampling-memory", by_memory(results))
    write_table("sampling-models", by_model(results))
    print(table)


if __name__ == "__main__":
    main()
