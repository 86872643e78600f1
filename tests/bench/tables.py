"""The results of the benchmarks as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """What a figure must reach. ``least`` tells that more is better.

    Args:
        benchmark, figure: where the figure stands in the results.
        text: what it says.
        must, aim: bounds in the figure's unit times ``scale``.
        scale: from the figure's unit to the one shown.
    """

    benchmark: str
    figure: str
    text: str
    must: float
    aim: float
    scale: float = 1.0
    least: bool = False


def _at_once(benchmark: str, jobs: str, must: float, aim: float) -> Target:
    """Throughput of several jobs at once against one after another."""
    return Target(benchmark, "throughput_cpu", f"{jobs}: at once, CPU throughput", must, aim, least=True)


def _grouped(
    benchmark: str, search: str, evaluations: tuple[float, float] = (1 / 4, 1 / 10), kl: float = 1.1
) -> Iterator[Target]:
    """A grouped search against one with single tests: evaluations (must, aim), CPU seconds and circuits."""
    against = f"{search} / single tests"
    yield Target(benchmark, "evaluations_ratio", f"{against}: evaluations", *evaluations)
    yield Target(benchmark, "seconds_ratio", f"{against}: CPU seconds", 1 / 2.5, 1 / 6)
    yield Target(benchmark, "kl_ratio", f"{against}: KL at equal edges", kl, 1.0)


TARGETS = (
    Target("tinytalk", "times_floor", "tinytalk IOI: time per evaluation / floor", 2.0, 1.3),
    Target("gpt2", "seconds_per_evaluation", "GPT-2 small shape: ms per evaluation", 12.0, 5.0, 1e3),
    Target("gpt2", "times_needed", "GPT-2 small shape: time / (needed operations / GEMM rate)", 2.5, 1.4),
    Target("gpt2", "peak_resident_gib", "GPT-2 small shape: peak resident memory, GiB", 1.2, 0.8),
    Target("gpt2", "share_of_gemm_rate", "GPT-2 small shape: share of the GEMM rate", 0.4, 0.7, least=True),
    *_grouped("bisect", "GPT-2 small shape, bisect"),
    *_grouped("bisect-tinytalk", "tinytalk IOI, bisect"),
    *_grouped("bisect-within", "tinytalk IOI, bisect within 5 % by gim", (1 / 15, 1 / 40), kl=1.15),
    Target("growth", "deepest_to_shallowest", "24 layers / 4 layers, live nodes in the top 4", 1.3, 1.0),
    Target("prefix", "shared_to_none", "context 512, prompts with one prefix of 256 / none", 1.3, 1.05),
    Target("prefix", "own_to_none", "context 512, each prompt's own prefix of 256 / none", 1.3, 1.05),
    _at_once("ten-demo", "ten demo searches", 1.5, 3.0),
    _at_once("ten-tinytalk", "ten tinytalk searches", 1.5, 3.0),
    _at_once("ten-demo-sweeps", "ten demo single-edge sweeps", 1.5, 3.0),
    _at_once("ten-tinytalk-sweeps", "ten tinytalk single-edge sweeps", 1.5, 3.0),
    _at_once("three-large", "three larger searches", 0.95, 1.0),
)


def targets(results: Results) -> list[str]:
    """The table of what must hold, line by line; with "-" for what has not been measured."""
    lines = ["| what | measured | must | aim | holds |", "|---|---|---|---|---|"]
    return lines + [_target(target, results) for target in TARGETS]


def markdown(results: Results) -> str:
    """The targets, then all figures, then where they were measured."""
    lines = [*targets(results), "", "| benchmark | figure | value |", "|---|---|---|"]
    for name, figures in results.items():
        for key, value in figures.items():
            if isinstance(value, int | float):
                lines.append(f"| {name} | {key.replace('_', ' ')} | {value:.4g} |")
    machines = sorted({figures["measured_on"] for figures in results.values()})
    return "\n".join([*lines, "", *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def _target(target: Target, results: Results) -> str:
    sign = "≥" if target.least else "≤"
    if target.benchmark not in results:
        return f"| {target.text} | - | {sign} {target.must:g} | {sign} {target.aim:g} | - |"
    value = float(results[target.benchmark][target.figure]) * target.scale
    holds = value >= target.must if target.least else value <= target.must
    shown = f"{value:.3g} | {sign} {target.must:g} | {sign} {target.aim:g} | {'yes' if holds else 'no'}"
    return f"| {target.text} | {shown} |"
