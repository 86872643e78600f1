"""Measures how concepts are learned, and prints the tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.__main__ import RESULTS
from bench.concepts import comparing
from bench.concepts.tables import by_learner, cheaper, markdown, planted, targets
from bench.pages import write_table
from bench.parts import chosen, measured

# A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {
    "planted": comparing.planted_concepts,
    "stories260K": partial(comparing.few_states, "stories260K"),
    "tinytalk": partial(comparing.few_states, "tinytalk"),
    "many": comparing.many_states,
    "cheaper": comparing.cheaper_training,
}


def main() -> None:
    torch.set_num_threads(1)
    names = chosen(PARTS, __doc__)
    results = measured("concepts.json", names, lambda name, results: PARTS[name]())
    table = markdown(results)
    (RESULTS / "concepts.md").write_text(table, "utf-8")
    write_table("concepts", targets(results))
    write_table("concepts-planted", planted(results))
    write_table("concepts-learners", by_learner(results))
    write_table("concepts-cheaper", cheaper(results))
    print(table)


if __name__ == "__main__":
    main()
