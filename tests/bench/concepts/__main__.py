"""Measures codebooks of concepts beside other ways to divide states, and prints the tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.__main__ import RESULTS
from bench.concepts import planted
from bench.concepts.methods import METHODS, measured
from bench.concepts.states import rows_of, write
from bench.concepts.tables import by_method, markdown, targets
from bench.pages import write_table
from bench.parts import chosen
from bench.parts import measured as measured_parts

SMALL, LARGE = 20_000, 1_000_000
# What takes too long, or too much memory, with all states.
OF_MANY = ("clvq", "vqlc", "k_means")


def states(count: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The figures of some methods on states of stories260K, by method."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        return {name: measured(name, Path(folder), rows_of(count)) for name in names}


# A part that has not been measured has no rows.
PARTS: dict[str, Callable[[], Any]] = {
    "planted": planted.run,
    "small": lambda: states(SMALL, tuple(METHODS)),
    "large": lambda: states(LARGE, OF_MANY),
}


def main() -> None:
    names = chosen(PARTS, __doc__)
    results = measured_parts("concepts.json", names, lambda name, results: PARTS[name]())
    table = markdown(results)
    (RESULTS / "concepts.md").write_text(table, "utf-8")
    write_table("concepts", targets(results))
    write_table("concepts-methods", by_method(results))
    print(table)


if __name__ == "__main__":
    main()
