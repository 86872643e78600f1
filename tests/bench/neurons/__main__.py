"""Measures what it costs to look at neurons, and prints the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.__main__ import RESULTS
from bench.neurons import capture
from bench.neurons.tables import markdown, targets
from bench.pages import write_table
from bench.parts import chosen, measured

# A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {"gpt2": capture.gpt2, "stories": capture.stories}


def main() -> None:
    torch.set_num_threads(1)
    names = chosen(PARTS, __doc__)
    results = measured("neurons.json", names, lambda name, results: PARTS[name]())
    table = markdown(results)
    (RESULTS / "neurons.md").write_text(table, "utf-8")
    write_table("neurons", targets(results))
    print(table)


if __name__ == "__main__":
    main()
