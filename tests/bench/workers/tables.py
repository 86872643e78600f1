"""The results of several workers as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from bench.workers.real import LOCAL, ONE_BY_RAY, TWO_THREADS, TWO_WORKERS
from bench.workers.simulation import AS_BUILT

Results = dict[str, Any]
# What must hold: what it is, measured, must, aim, and whether it holds; None for what was not measured.
Target = tuple[str, str, str, str, bool | None]

# Wall time of one server by that of another: at least, and what is aimed at.
FASTER = ((LOCAL, TWO_WORKERS, 1.7, 1.9), (TWO_THREADS, TWO_WORKERS, 1.1, None))
OVERHEAD, OVERHEAD_AIM = 1.1, 1.03
EFFICIENCY_AIM = 0.7
# Where worker-seconds go, in the words of the table.
PARTS = {
    "used": "passes used",
    "wasted": "passes wasted",
    "bases": "base circuits",
    "repeated_bases": "base circuits again",
    "calls": "calls",
    "waiting": "waiting for others",
    "head": "waiting for the server",
}


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    tables = (targets(results), by_workers(results), by_step(results), constants(results))
    lines = [line for table in tables for line in (*table, "")]
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*lines, *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line."""
    lines = ["| what | measured | must | aim | holds |", "|---|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {must} | {aim} | {'-' if holds is None else 'yes' if holds else 'no'} |"
        for what, value, must, aim, holds in _targets(results)
    ]


def _targets(results: Results) -> Iterator[Target]:
    for name, own in _figures(results, "real").items():
        seconds = own["seconds"]
        for slower, faster, must, aim in FASTER:
            ratio = _ratio(seconds, slower, faster)
            aimed = "-" if aim is None else f"≥ {aim:g}"
            yield f"{name}: {slower} / {faster}", f"{ratio:.2f}", f"≥ {must:g}", aimed, ratio >= must
        ratio = _ratio(seconds, ONE_BY_RAY, LOCAL)
        what = f"{name}: {ONE_BY_RAY} / {LOCAL}"
        yield what, f"{ratio:.2f}", f"≤ {OVERHEAD:g}", f"≤ {OVERHEAD_AIM:g}", ratio <= OVERHEAD
        different = own["different"]
        yield f"{name}: turns with other circuits", str(different), "0", "-", different == 0
    simulated = _figures(results, "simulation")
    for run in simulated.get("runs", ()):
        if run["workers"] == max(each["workers"] for each in simulated["runs"]):
            efficiency = _efficiency(simulated, run)
            what = f"simulated, {run['device']}, {_jobs(run)}, {run['step']}: efficiency at {run['workers']}"
            yield what, f"{efficiency:.2f}", "-", f"≥ {EFFICIENCY_AIM:g}", efficiency >= EFFICIENCY_AIM


def by_workers(results: Results) -> list[str]:
    """The efficiency of one job by workers, and where the workers' time goes."""
    simulated = _figures(results, "simulation")
    names = list(PARTS.values())
    lines = [
        f"| device | workers | efficiency | times faster | passes per operation | {' | '.join(names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for run in simulated.get("runs", ()):
        if run["jobs"] == 1 and run["step"] == AS_BUILT:
            efficiency, device = _efficiency(simulated, run), simulated["devices"][run["device"]]
            faster = efficiency * run["workers"]
            lines.append(f"| {device} | {run['workers']} | {efficiency:.2f} | {faster:.1f} | {_share(run)} |")
    return lines


def by_step(results: Results) -> list[str]:
    """What is lost without parts of the design, and several jobs at once."""
    simulated = _figures(results, "simulation")
    names = list(PARTS.values())
    lines = [
        f"| device | jobs | workers | step | efficiency | passes per operation | {' | '.join(names)} |",
        f"|---|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for run in simulated.get("runs", ()):
        if run["jobs"] > 1 or run["step"] != AS_BUILT:
            lines.append(
                f"| {run['device']} | {run['jobs']} | {run['workers']} | {run['step']} "
                f"| {_efficiency(simulated, run):.2f} | {_share(run)} |"
            )
    return lines


def constants(results: Results) -> list[str]:
    """What was measured for the cost model."""
    own = _figures(results, "constants")
    lines = ["| constant | value |", "|---|---|"]
    for name, value in own.items():
        values = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"| {f'{name}, {part}' if part else name} | {each:.3g} |" for part, each in values]
    return [line.replace("_", " ") for line in lines]


def _figures(results: Results, part: str) -> dict[str, Any]:
    found: dict[str, Any] = results[part]["figures"] if part in results else {}
    return found


def _ratio(seconds: dict[str, list[float]], slower: str, faster: str) -> float:
    """The median over turns of how many times as long one server took as another."""
    return statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True))


def _efficiency(simulated: dict[str, Any], run: dict[str, Any]) -> float:
    """How much of n workers' time does what one worker would do: time(1) / (n time(n))."""
    (alone,) = (
        each["seconds"]
        for each in simulated["runs"]
        if (each["device"], each["jobs"], each["workers"]) == (run["device"], run["jobs"], 1)
    )
    return float(alone / (run["workers"] * run["seconds"]))


def _share(run: dict[str, Any]) -> str:
    """Passes per operation, and the shares of the workers' time."""
    shares = (f"{run['lost'][name]:.0%}" for name in PARTS)
    return " | ".join([f"{run['passes'] / run['batches']:.0f}", *shares])


def _jobs(run: dict[str, Any]) -> str:
    return "one job" if run["jobs"] == 1 else f"{run['jobs']} jobs"
