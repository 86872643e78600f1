"""Measures node pruning, and prints the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.__main__ import RESULTS
from bench.pages import write_table
from bench.parts import chosen, measured
from bench.pruning import cost, tasks
from bench.pruning.tables import by_budget, by_case, markdown, targets

# A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {
    "planted": tasks.planted,
    "tinytalk": tasks.tinytalk,
    "budgets": tasks.budgets,
    "cost": cost.run,
}


def main() -> None:
    torch.set_num_threads(1)
    names = chosen(PARTS, __doc__)
    results = measured("pruning.json", names, lambda name, results: PARTS[name]())
    table = markdown(results)
    (RESULTS / "pruning.md").write_text(table, "utf-8")
    write_table("pruning", targets(results))
    write_table("pruning-cases", by_case(results))
    write_table("pruning-budgets", by_budget(results))
    print(table)


if __name__ == "__main__":
    main()
