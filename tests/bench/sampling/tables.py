"""The results of sampling as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]

# Mean steps with exact lengths, with noise .3 and .6 (lognormal lengths of mu 5.6 and sigma .6, at most 1024,
# 32 samples in 4 slots, 25 trials), and how closely they are to be met.
KNOWN = {
    "rounds": (4178, 4178, 4178),
    "sorted rounds": (2840, 3300, 3707),
    "fifo": (2695, 2695, 2695),
    "sjf": (2840, 2865, 2800),
    "longest_first": (2522, 2531, 2574),
}
KNOWN_BOUND, CLOSE = 2492, 0.03
NOISES = ("exact", "noise .3", "noise .6")
# Of the lower bound at most, by kind of run.
MOST_OVER_BOUND = {
    "exact lengths": 1.02,
    "noise .3": 1.03,
    "learned, one prompt, signals tell 25%": 1.08,
}
MOST_OF_ROUNDS, MOST_OF_BEST = 0.70, 1.01
LEAST_OF_PLAIN = 0.9


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    lines = [*targets(results), "", *by_kind(results), "", *by_memory(results), ""]
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*lines, *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line."""
    lines = ["| what | measured | known | must | holds |", "|---|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {known} | {must} | {'yes' if holds else 'no'} |"
        for what, value, known, must, holds in _targets(results)
    ]


def by_kind(results: Results) -> list[str]:
    """Steps over the lower bound of every policy by kind of run; that of auto in bold."""
    return _by_kind(results, "over_bound")


def by_memory(results: Results) -> list[str]:
    """Peak of KV tokens of every policy by kind of run, as a share of that of all samples at once."""
    return _by_kind(results, "peak_of_whole")


def _by_kind(results: Results, figure: str) -> list[str]:
    kinds = results["kinds"]["figures"] if "kinds" in results else {}
    policies = list(next(iter(kinds.values()))[figure]) if kinds else []
    lines = [f"| run | {' | '.join(policies)} |", "|---" * (len(policies) + 1) + "|"]
    for name, own in kinds.items():
        shown = {policy: f"{value:.3f}" for policy, value in own[figure].items()}
        shown[own["auto"]] = f"**{shown[own['auto']]}**"
        lines.append(f"| {name} | {' | '.join(shown[policy] for policy in policies)} |")
    return lines


def _targets(results: Results) -> Iterator[tuple[str, str, str, str, bool]]:
    if "known" in results:
        yield from _known(results["known"]["figures"])
    if "kinds" in results:
        yield from _kinds(results["kinds"]["figures"])
    if "plans" in results:
        own = results["plans"]["figures"]
        worst, states = own["worst_excess_over_epsilon"], own["most_states_over_bound"]
        what = f"plans, {own['instances']:,} random instances against brute force"
        yield f"{what}: excess / epsilon, worst", f"{worst:.2f}", "-", "≤ 1", worst <= 1
        yield f"{what}: states / bound, most", f"{states:.2f}", "-", "≤ 1", states <= 1
    if "throughput" in results:
        for model, own in results["throughput"]["figures"].items():
            against = f"{own['slots']} slots / LLM.generate(n={own['samples']})"
            for unit, ratio in (("second", own["ratio"]), ("CPU second", own["cpu_ratio"])):
                what = f"tokens per {unit}, {model} on vLLM, {against}"
                yield what, f"{ratio:.2f}", "-", f"≥ {LEAST_OF_PLAIN:g}", ratio >= LEAST_OF_PLAIN


def _known(own: dict[str, Any]) -> Iterator[tuple[str, str, str, str, bool]]:
    must = f"within {CLOSE:.0%}"
    for name, known in KNOWN.items():
        steps = own["steps"][name]
        yield (
            f"simulated steps, {name}: {' / '.join(NOISES)}",
            " / ".join(f"{each:.0f}" for each in steps),
            " / ".join(map(str, known)),
            must,
            all(abs(each / right - 1) <= CLOSE for each, right in zip(steps, known, strict=True)),
        )
    bound = own["lower_bound"]
    holds = abs(bound / KNOWN_BOUND - 1) <= CLOSE
    yield "simulated steps, lower bound", f"{bound:.0f}", str(KNOWN_BOUND), must, holds


def _kinds(kinds: dict[str, Any]) -> Iterator[tuple[str, str, str, str, bool]]:
    for name, most in MOST_OVER_BOUND.items():
        value = kinds[name]["over_bound"][kinds[name]["auto"]]
        yield f"auto / lower bound, {name}", f"{value:.3f}", "-", f"≤ {most:g}", value <= most
    own = kinds["learned, one prompt, signals tell 25%"]
    share = own["over_bound"][own["auto"]] / own["over_bound"]["rounds"]
    what = "auto, learned / rounds, simulated steps"
    yield what, f"{share:.2f}", "-", f"≤ {MOST_OF_ROUNDS:g}", share <= MOST_OF_ROUNDS
    worst, name = max(
        (own["over_bound"][own["auto"]] / min(own["over_bound"].values()), name)
        for name, own in kinds.items()
    )
    what = f"auto / best policy, worst kind of run ({name})"
    yield what, f"{worst:.3f}", "-", f"≤ {MOST_OF_BEST:g}", worst <= MOST_OF_BEST
