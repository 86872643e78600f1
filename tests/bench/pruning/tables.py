"""The results of node pruning as tables."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

Results = dict[str, Any]
# What it is, measured, must, aim, and whether the must holds.
Row = tuple[str, str, str, str, bool]

OF_ACDC, AIM_OF_ACDC, LOST_ACCURACY = 1.0, 0.5, 0.02
OF_EDGE_MASK, AIM_OF_EDGE_MASK = 1 / 5, 1 / 20
TIMES_FLOOR, AIM_TIMES_FLOOR = 3.0, 2.0


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    tables = (targets(results), by_case(results), by_budget(results))
    lines = [line for table in tables for line in (*table, "")]
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*lines, *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line."""
    lines = ["| what | measured | must | aim | holds |", "|---|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {must} | {aim} | {'yes' if holds else 'no'} |"
        for what, value, must, aim, holds in _targets(results)
    ]


def by_case(results: Results) -> list[str]:
    """How often the known nodes were found, by case and ablation."""
    lines = [
        "| case, ablation | budget | found by training | found after the polish | within the budget "
        "| CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in _part(results, "planted").items():
        found = (f"{own[each]} of {own['seeds']}" for each in ("trained", "polished", "within"))
        lines.append(f"| {name} | {own['max_kl']:.2g} | {' | '.join(found)} | {own['cpu_seconds']:.1f} |")
    return lines


def by_budget(results: Results) -> list[str]:
    """KL divergence and parameters at several budgets: while training, of what it found, and in the end."""
    lines = [
        "| task | budget | stochastic KL | binary KL, trained | binary KL, polished | parameters, trained "
        "| parameters, polished | accuracy (full model) | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in _runs(results):
        cells = (
            f"{own['max_kl']:.3g}",
            f"{own['stochastic_kl']:.3g}",
            f"{own['trained_kl']:.3g}",
            f"{own['kl']:.3g}",
            f"{own['trained_parameters'] / own['all_parameters']:.1%}",
            f"{own['parameters'] / own['all_parameters']:.1%}",
            "-" if own["accuracy"] is None else f"{own['accuracy']:.2f} ({own['full_accuracy']:.2f})",
            f"{own['cpu_seconds']:.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _runs(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, runs in _part(results, "budgets").items():
        for own in runs:
            yield name, own
    tinytalk = _part(results, "tinytalk")
    for own in tinytalk.get("runs", ()):
        yield "tinytalk IOI, answers in the loss", own
    for own in tinytalk.get("without_answers", ()):
        yield "tinytalk IOI", own


def _targets(results: Results) -> Iterator[Row]:
    yield from _planted(_part(results, "planted"))
    tinytalk = _part(results, "tinytalk")
    if tinytalk:
        yield from _tinytalk(tinytalk)
    runs = [own for _, own in _runs(results)]
    if runs:
        within = sum(own["kl"] <= own["max_kl"] for own in runs)
        what = f"binary KL within the budget after the polish, {len(runs)} runs"
        yield what, str(within), str(len(runs)), "-", within == len(runs)
    cost = _part(results, "cost")
    if cost:
        yield from _cost(cost)


def _planted(cases: dict[str, Any]) -> Iterator[Row]:
    if not cases:
        return
    total = sum(own["seeds"] for own in cases.values())
    for what, name in (("after the polish", "polished"), ("by training alone", "trained")):
        found = sum(own[name] for own in cases.values())
        must, aim = (str(total), "-") if name == "polished" else ("-", str(total))
        holds = found == total if name == "polished" else True
        yield f"planted and compiled circuits found exactly {what}, of {total}", str(found), must, aim, holds


def _tinytalk(own: dict[str, Any]) -> Iterator[Row]:
    runs = own["runs"]
    what = f"tinytalk IOI at ACDC's KL ({own['max_kl']:.2f}), answers in the loss"
    share = median(run["parameters"] / own["acdc_parameters"] for run in runs)
    yield (
        f"{what}: parameters kept / those of ACDC's nodes, median of {len(runs)} seeds",
        f"{share:.2f}",
        f"≤ {OF_ACDC:g}",
        f"≤ {AIM_OF_ACDC:g}",
        share <= OF_ACDC,
    )
    lost = median(run["full_accuracy"] - run["accuracy"] for run in runs)
    yield f"{what}: accuracy lost", f"{lost:.3f}", f"≤ {LOST_ACCURACY:g}", "-", lost <= LOST_ACCURACY


def _cost(own: dict[str, Any]) -> Iterator[Row]:
    for what, name in (
        ("outputs of all senders", "peak_of_senders"),
        ("outputs of all senders and inputs of all receivers", "peak_of_senders_and_receivers"),
    ):
        yield (
            f"GPT-2 small shape, 32 x 16 tokens: peak memory above the model / {what}",
            f"{own[name]:.2f}",
            f"≤ {OF_EDGE_MASK:g}",
            f"≤ {AIM_OF_EDGE_MASK:g}",
            own[name] <= OF_EDGE_MASK,
        )
    times = own["times_floor"]
    yield (
        "GPT-2 small shape, 32 x 16 tokens: CPU seconds of a step / plain torch",
        f"{times:.2f}",
        f"≤ {TIMES_FLOOR:g}",
        f"≤ {AIM_TIMES_FLOOR:g}",
        times <= TIMES_FLOOR,
    )


def _part(results: Results, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = results.get(name, {"figures": {}})["figures"]
    return figures
