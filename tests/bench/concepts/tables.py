"""The results of the benchmark of concepts as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]
# What it is, measured, must, and whether the must holds; None where there is none.
Row = tuple[str, str, str, bool | None]

NAMES = {
    "clvq": "codebook, two layers",
    "clvq_continuous": "the same, continuous memory",
    "vqlc": "codebook, one layer",
    "k_means": "k-means",
    "ward": "Ward",
    "sae": "sparse autoencoder",
}
SIZES = {"small": "20,000", "large": "1,000,000"}
RAND, TIMES_K_MEANS, TIMES_MEMORY = 0.95, 2.0, 1.2
CONTROLS = ("random", "other", "component")


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    machines = sorted({each["measured_on"] for each in results.values()})
    tables = [*targets(results), "", *by_method(results), ""]
    return "\n".join([*tables, *(f"Measured on: {each}." for each in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line. A part that has not been measured has no rows."""
    shown = {True: "yes", False: "no", None: "-"}
    return ["| what | measured | must | holds |", "|---|---|---|---|"] + [
        f"| {what} | {value} | {must} | {shown[holds]} |" for what, value, must, holds in _targets(results)
    ]


def _targets(results: Results) -> Iterator[Row]:
    figures = {name: each["figures"] for name, each in results.items()}
    for case in figures.get("planted", ()):
        least = min(case["rand"])
        what = f"{case['concepts']} planted concepts, {case['states']:,} states of two layers"
        yield (
            f"{what}: adjusted Rand index, least of {len(case['rand'])}",
            f"{least:.3f}",
            f"≥ {RAND}",
            least >= RAND,
        )
    for part, states in SIZES.items():
        if part not in figures:
            continue
        own, other = figures[part]["clvq"], figures[part]["k_means"]
        times = own["seconds"] / other["seconds"]
        what = f"{states} states of stories260K: CPU seconds of a codebook / of k-means"
        yield what, f"{times:.2f}", f"≤ {TIMES_K_MEANS:g}", times <= TIMES_K_MEANS
    if {"small", "large"} <= set(figures):
        times = figures["large"]["clvq"]["peak_bytes"] / figures["small"]["clvq"]["peak_bytes"]
        what = "peak memory of a codebook of 1,000,000 states / of 20,000"
        yield what, f"{times:.2f}", f"≤ {TIMES_MEMORY:g}", times <= TIMES_MEMORY


def by_method(results: Results) -> list[str]:
    """Every method on every number of states."""
    head = "| states | method | CPU s | peak MiB | codes used | perplexity | probe | without its code |"
    head += " without a random direction | another code | a component | chance |"
    lines = [head, "|" + "---|" * 12]
    for part, states in SIZES.items():
        for name, own in results.get(part, {"figures": {}})["figures"].items():
            accuracy = own["accuracy"]
            shares = [f"{accuracy[each]:.2f}" for each in ("plain", "own", *CONTROLS, "chance")]
            cells = [states, NAMES[name], f"{own['seconds']:.3g}", f"{own['peak_bytes'] / 2**20:.0f}"]
            cells += [str(own["used"]), f"{own['perplexity']:.0f}", *shares]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
