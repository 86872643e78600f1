"""The results on concepts as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]
# What it is, measured, must, and whether the must holds.
Row = tuple[str, str, str, bool]

INDEX = 0.95
TIMES_KMEANS = 2.0
# Memory at N = 1e6 above that at N = 2e4, per state that there is more: less than a tenth of its two layers.
GROWTH_SHARE = 0.1
VQ, KMEANS = ("CLVQ, decoder sees codes", "VQLC, equal layers"), "k-means"
CONTROLS = ("random", "other_code", "component")


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    tables = (targets(results), planted(results), by_learner(results), cheaper(results))
    lines = [line for table in tables for line in (*table, "")]
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*lines, *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line."""
    lines = ["| what | measured | must | holds |", "|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {must} | {'yes' if holds else 'no'} |"
        for what, value, must, holds in _targets(results)
    ]


def planted(results: Results) -> list[str]:
    """How well planted concepts are found."""
    lines = [
        "| concepts | states | noise | learner | adjusted Rand index, by seed |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {own['concepts']} | {own['tokens']:,} | {own['noise']:g} | {own['learner']} "
        f"| {', '.join(f'{index:.3f}' for index in own['indices'])} |"
        for own in _part(results, "planted")
    ]


def by_learner(results: Results) -> list[str]:
    """Time, memory and faithfulness of all learners."""
    lines = [
        "| states | learner | CPU s | peak MiB | codes used | perplexity | probe | own concept removed "
        "| random direction | other concept | principal component | chance |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part in ("stories260K", "tinytalk", "many"):
        for own in _part(results, part):
            lines.append(f"| {own['subject']}, {own['states']:,.0f} | {own['learner']} | {_figures(own)} |")
    return lines


def cheaper(results: Results) -> list[str]:
    """What fewer layers and steps bring."""
    lines = [
        "| CLVQ | CPU s | explained | codes used | perplexity | probe | own concept removed |",
        "|---|---|---|---|---|---|---|",
    ]
    for own in _part(results, "cheaper"):
        name, accuracies = own["learner"].removeprefix("CLVQ, "), own["accuracies"]
        lines.append(
            f"| {name} | {own['cpu_seconds']:.1f} | {own['explained']:.3f} | {own['used']:.0f} "
            f"| {own['perplexity']:.0f} | {accuracies['nothing']:.3f} | {accuracies['code']:.3f} |"
        )
    return lines


def _figures(own: dict[str, Any]) -> str:
    accuracies = own["accuracies"]
    cells = (
        f"{own['cpu_seconds']:.1f}",
        f"{own['peak_bytes'] / 2**20:.0f}",
        f"{own['used']:.0f}",
        f"{own['perplexity']:.0f}",
        *(f"{accuracies[name]:.3f}" for name in ("nothing", "code", *CONTROLS, "chance")),
    )
    return " | ".join(cells)


def _targets(results: Results) -> Iterator[Row]:
    ours = [own for own in _part(results, "planted") if own["learner"] != KMEANS]
    for concepts in sorted({own["concepts"] for own in ours}):
        least = min(min(own["indices"]) for own in ours if own["concepts"] == concepts)
        what = f"{concepts} planted concepts in two layers: adjusted Rand index, the lowest"
        yield what, f"{least:.3f}", f"≥ {INDEX:g}", least >= INDEX
    for part in ("stories260K", "tinytalk", "many"):
        yield from _times(results, part)
    yield from _growth(results)


def _times(results: Results, part: str) -> Iterator[Row]:
    own = {each["learner"]: each for each in _part(results, part)}
    if KMEANS not in own:
        return
    for name in VQ:
        if name in own:
            times = own[name]["cpu_seconds"] / own[KMEANS]["cpu_seconds"]
            what = f"{own[name]['subject']}, {own[name]['states']:,.0f} states, {name}"
            yield (
                f"{what}: CPU s / those of k-means",
                f"{times:.1f}",
                f"≤ {TIMES_KMEANS:g}",
                times <= TIMES_KMEANS,
            )


def _growth(results: Results) -> Iterator[Row]:
    few = {each["learner"]: each for each in _part(results, "stories260K")}
    for own in _part(results, "many"):
        name = own["learner"]
        if name not in VQ or name not in few:
            continue
        more = own["peak_bytes"] - few[name]["peak_bytes"]
        share = more / own["state_bytes"]
        what = f"{name}: peak memory at {own['states']:,.0f} states - that at {few[name]['states']:,.0f}"
        yield (
            f"{what}, as a share of all states",
            f"{share:.3f} ({more / 2**20:.0f} MiB)",
            f"≤ {GROWTH_SHARE:g}",
            share <= GROWTH_SHARE,
        )


def _part(results: Results, name: str) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = results.get(name, {"figures": []})["figures"]
    return figures
