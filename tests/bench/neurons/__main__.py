"""Measures finding of neurons, steering by them and what looking at them costs, and prints the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.__main__ import RESULTS
from bench.neurons import capture, planted, pronouns
from bench.neurons.tables import markdown, tables
from bench.pages import write_table
from bench.parts import chosen, measured

# A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {
    "planted": planted.run,
    "pronouns": pronouns.run,
    "gpt2": capture.gpt2,
    "stories": capture.stories,
}


def main() -> None:
    torch.set_num_threads(1)
    names = chosen(PARTS, __doc__)
    results = measured("neurons.json", names, lambda name, results: PARTS[name]())
    table = markdown(results)
    (RESULTS / "neurons.md").write_text(table, "utf-8")
    for name, lines in tables(results).items():
        write_table(name, lines)
    print(table)


if __name__ == "__main__":
    main()
