"""The results of the benchmark of neurons as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.neurons.floor import TEXTS, TOKENS

Results = dict[str, Any]
# What it is, measured, must, and whether the must holds.
Row = tuple[str, str, str, bool]

MODELS = {"gpt2": "GPT-2 small shape", "stories": "stories260K"}
TIMES_FLOOR, TIMES_FLOOR_PEAK = 1.3, 1.2


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*targets(results), "", *(f"Measured on: {each}." for each in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line. A part that has not been measured has no rows."""
    lines = ["| what | measured | must | holds |", "|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {must} | {'yes' if holds else 'no'} |"
        for what, value, must, holds in _targets(results)
    ]


def _targets(results: Results) -> Iterator[Row]:
    for part, name in MODELS.items():
        if part not in results:
            continue
        own, what = results[part]["figures"], f"{name}, {TEXTS} x {TOKENS} tokens, sums of all neurons"
        for of, figure, must in (
            ("CPU seconds", own["times_floor"], TIMES_FLOOR),
            ("peak memory above the model without the sums", own["times_floor_peak"], TIMES_FLOOR_PEAK),
        ):
            yield f"{what}: {of} / plain transformers", f"{figure:.2f}", f"≤ {must:g}", figure <= must
