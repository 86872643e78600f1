"""The results of sampling as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from statistics import mean
from typing import Any

Results = dict[str, Any]
# What must hold: what it is, measured, known, the limit, and whether it holds; None where nothing must.
Target = tuple[str, str, str, str, bool | None]

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
LEARNED = "learned, one prompt, signals tell 25%"
MOST_OVER_BOUND = {"exact lengths": 1.02, "noise .3": 1.03, LEARNED: 1.08}
MOST_OF_ROUNDS, MOST_OF_BEST = 0.70, 1.01
# With models: see `real`.
BACKENDS = ("transformers", "vllm")
MOST_OF_WHOLE, LEAST_OF_PLAIN = 0.35, 0.9


def markdown(results: Results) -> str:
    """All tables, and where the figures were measured."""
    tables = (targets(results), by_kind(results), by_memory(results), by_model(results))
    lines = [line for table in tables for line in (*table, "")]
    machines = sorted({each["measured_on"] for each in results.values()})
    return "\n".join([*lines, *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line."""
    lines = ["| what | measured | known | must | holds |", "|---|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {known} | {must} | {'-' if holds is None else 'yes' if holds else 'no'} |"
        for what, value, known, must, holds in _targets(results)
    ]


def by_kind(results: Results) -> list[str]:
    """Steps over the lower bound of every policy by kind of run; that of auto in bold."""
    return _by_kind(results, "over_bound")


def by_memory(results: Results) -> list[str]:
    """Peak of KV tokens of every policy by kind of run, as a share of that of all samples at once."""
    return _by_kind(results, "peak_of_whole")


def by_model(results: Results) -> list[str]:
    """What every policy took with models: means of the trials; that of auto in bold.

    In brackets, means of simulations of groups that are put together of the samples that were drawn, and the
    deviation from group to group.
    """
    lines = [
        "| model, backend | policy | steps / lower bound | peak KV tokens / full group "
        "| prompt tokens computed | tokens per second | CPU seconds per 1,000 tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, own in _models(results):
        for policy in dict.fromkeys((*own["runs"], *own["replayed"])):
            cells = zip(_measured(own, policy), _replayed(own, policy), strict=True)
            name = f"**{policy}**" if policy == own["auto"] else policy
            lines.append(f"| {what} | {name} | {' | '.join(' '.join(cell).strip() for cell in cells)} |")
    return lines


def _measured(own: dict[str, Any], policy: str) -> tuple[str, ...]:
    if policy not in own["runs"]:
        return ("",) * 5
    run, whole = own["runs"][policy], own["runs"]["whole group"]
    tokens = sum(run["tokens"])
    return (
        f"{mean(run['steps']) / mean(run['lower_bound']):.3f}",
        f"{mean(run['peak_kv_tokens']) / mean(whole['peak_kv_tokens']):.3f}",
        f"{mean(run['prompt_tokens_computed']):.0f}",
        f"{tokens / sum(run['seconds']):.0f}",
        f"{1000 * sum(run['cpu_seconds']) / tokens:.2f}",
    )


def _replayed(own: dict[str, Any], policy: str) -> tuple[str, ...]:
    if policy not in own["replayed"]:
        return ("",) * 5
    found = own["replayed"][policy]
    spread = f" ± {found['deviation']:.3f}" if "deviation" in found else ""
    return f"({found['over_bound']:.3f}{spread})", f"({found['peak_of_whole']:.3f})", "", "", ""


def _models(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    for backend in BACKENDS:
        for model, own in results.get(backend, {"figures": {}})["figures"].items():
            yield f"{model}, {backend}", own


def _by_kind(results: Results, figure: str) -> list[str]:
    kinds = results["kinds"]["figures"] if "kinds" in results else {}
    policies = list(next(iter(kinds.values()))[figure]) if kinds else []
    lines = [f"| run | {' | '.join(policies)} |", "|---" * (len(policies) + 1) + "|"]
    for name, own in kinds.items():
        shown = {policy: f"{value:.3f}" for policy, value in own[figure].items()}
        shown[own["auto"]] = f"**{shown[own['auto']]}**"
        lines.append(f"| {name} | {' | '.join(shown[policy] for policy in policies)} |")
    return lines


def _targets(results: Results) -> Iterator[Target]:
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
    for what, own in _models(results):
        # vLLM does not promise that samples do not depend on what runs beside them.
        yield from _model(what, own, promised=not what.endswith("vllm"))


def _model(what: str, own: dict[str, Any], promised: bool) -> Iterator[Target]:
    replayed = own["replayed"]
    auto, rounds = replayed[own["auto"]], replayed["rounds"]
    named = f"{what}: auto ({own['auto']}), samples of {own['groups']} groups regrouped"
    for name, value, most in (
        ("peak KV tokens / full group", auto["peak_of_whole"], MOST_OF_WHOLE),
        ("steps / rounds", auto["over_bound"] / rounds["over_bound"], MOST_OF_ROUNDS),
        ("steps / lower bound", auto["over_bound"], MOST_OVER_BOUND[LEARNED]),
    ):
        yield f"{named}, {name}", f"{value:.3f}", "-", f"≤ {most:g}", value <= most
    named = f"{what}: samples that differ by policy or slots, of {own['compared']:,}"
    yield named, str(own["differ"]), "-", "0" if promised else "-", not own["differ"] if promised else None
    if "plain" in own:
        yield from _against_plain(what, own["plain"])


def _against_plain(what: str, own: dict[str, list[float]]) -> Iterator[Target]:
    for suffix, clock in (("", "second"), ("_cpu", "CPU second")):
        for name, call in (("plain", "LLM.generate(n=32)"), ("seeded", "LLM.generate(n=32, seed)")):
            if f"{name}{suffix}" not in own:
                continue
            pairs = zip(own[f"ours{suffix}"], own[f"{name}{suffix}"], strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            named = f"{what}: tokens per {clock} / {call}, 4 slots"
            if suffix or name == "seeded":
                yield named, f"{ratio:.2f}", "-", "-", None
            else:
                yield named, f"{ratio:.2f}", "-", f"≥ {LEAST_OF_PLAIN:g}", ratio >= LEAST_OF_PLAIN


def _known(own: dict[str, Any]) -> Iterator[Target]:
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


def _kinds(kinds: dict[str, Any]) -> Iterator[Target]:
    for name, most in MOST_OVER_BOUND.items():
        value = kinds[name]["over_bound"][kinds[name]["auto"]]
        yield f"auto / lower bound, {name}", f"{value:.3f}", "-", f"≤ {most:g}", value <= most
    own = kinds[LEARNED]
    share = own["over_bound"][own["auto"]] / own["over_bound"]["rounds"]
    what = "auto, learned / rounds, simulated steps"
    yield what, f"{share:.2f}", "-", f"≤ {MOST_OF_ROUNDS:g}", share <= MOST_OF_ROUNDS
    worst, name = max(
        (own["over_bound"][own["auto"]] / min(own["over_bound"].values()), name)
        for name, own in kinds.items()
    )
    what = f"auto / best policy, worst kind of run ({name})"
    yield what, f"{worst:.3f}", "-", f"≤ {MOST_OF_BEST:g}", worst <= MOST_OF_BEST
