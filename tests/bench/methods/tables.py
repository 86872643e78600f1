"""The comparison of methods as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench.methods.finding import KL, LOGIT_DIFFERENCE, PLAIN

Results = Mapping[str, Any]

HEAD = (
    *("method", "passes", "CPU s", "MiB", "KL", "CPR", "CMD", "CPR log", "CMD log"),
    *("AUC exact", "AUC ACDC", "rank corr."),
)
# What the literature lets expect, better first.
EXPECTED = (("gim", "eap_ig"), ("eap_ig", "eap"))
AREAS = ("cpr", "cmd", "cpr_log", "cmd_log")
TINYTALK = "tinytalk IOI"
BISECT = "acdc, bisect"
WITHIN_GIM, WITHIN_EAP_IG = f"{BISECT} in gim's 5%", f"{BISECT} in eap_ig (KL)'s 1%"


def markdown(results: Results) -> str:
    """Everything: targets, orders, tables by task, and the areas under the KL divergence."""
    parts = [targets(results), orders(results), by_task(results), by_task(results, KL)]
    machines = sorted({own["about"]["measured_on"] for own in _measured(results).values()})
    lines = [line for part in parts for line in (*part, "")]
    return "\n".join([*lines, *(f"Measured on: {each}." for each in machines)]) + "\n"


def targets(results: Results) -> list[str]:
    """What must hold, line by line; with "-" for what has not been measured."""
    lines = ["| what | measured | must | aim | holds |", "|---|---|---|---|---|"]
    rows = (
        (BISECT, (1 / 4, 1 / 10), (1.1, 1.0)),
        (WITHIN_GIM, (1 / 15, 1 / 40), (1.15, 1.0)),
        (WITHIN_EAP_IG, (1 / 15, 1 / 40), (1.15, 1.0)),
    )
    methods = _measured(results).get(TINYTALK, {"methods": {}})["methods"]
    for method, passes, divergence in rows:
        name = method.removeprefix("acdc, ")
        plain, own = methods.get(PLAIN), methods.get(method)
        share = own["evaluations"] / plain["evaluations"] if plain and own else None
        ratios = [a / b for a, b in zip(own["kl"], plain["kl"], strict=True)] if plain and own else []
        # At the subject's threshold: the middle one of the sizes.
        ratio = ratios[len(ratios) // 2] if ratios else None
        lines.append(_target(f"{TINYTALK}, {name}: evaluations / plain ACDC's", share, *passes))
        lines.append(_target(f"{TINYTALK}, {name}: KL / plain ACDC's at equal edges", ratio, *divergence))
    return lines


def orders(results: Results) -> list[str]:
    """On how many tasks the expected order of gradient methods holds, by area, and where it does not."""
    measured = _measured(results)
    lines = [f"| order | {' | '.join(map(_area_name, AREAS))} | not on |", "|---" * (len(AREAS) + 2) + "|"]
    for better, worse in EXPECTED:
        cells, failing = [], dict.fromkeys(measured, 0)
        for area in AREAS:
            holds = {name: _at_least(own["methods"], better, worse, area) for name, own in measured.items()}
            cells.append(f"{sum(holds.values())} of {len(holds)}")
            failing = {name: count + (not holds[name]) for name, count in failing.items()}
        where = ", ".join(f"{name} ({count} of {len(AREAS)})" for name, count in failing.items() if count)
        lines.append(f"| {better} ≥ {worse} | {' | '.join(cells)} | {where or '-'} |")
    return lines


def by_task(results: Results, metric: str = LOGIT_DIFFERENCE) -> list[str]:
    """A table of all methods per task.

    Args:
        results: of `compare`.
        metric: what the areas are of; the column "KL" is of the KL divergence in any case.
    """
    lines: list[str] = []
    for name, own in results.items():
        if lines:
            lines.append("")
        if "methods" not in own:
            lines.append(f"{name} is left out: {own['skipped']}")
            continue
        about = own["about"]
        sizes = ", ".join(map(str, about["sizes"]))
        lines += [
            f"**{name}**: {about['edges']:,} edges; threshold {about['threshold']:g}; KL at {sizes} edges, "
            f"{about['empty']:.3g} without any; areas of {metric}",
            "",
            f"| {' | '.join(HEAD)} |",
            "|---" * len(HEAD) + "|",
        ]
        lines += [
            f"| {method} | {' | '.join(_row(figures, metric))} |"
            for method, figures in own["methods"].items()
        ]
    return lines


def _row(own: Mapping[str, Any], metric: str) -> Iterator[str]:
    yield f"{own['evaluations']:,}"
    yield f"{own['cpu_seconds']:.2f}"
    yield f"{own['peak_mib']:.0f}"
    yield " / ".join(f"{value:.3g}" for value in own["kl"])
    yield from (_number(own[metric][area]) for area in AREAS)
    yield from (_number(own.get(key)) for key in ("auc_exact", "auc_acdc", "spearman_absolute"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _area_name(area: str) -> str:
    return area.replace("_log", " log").replace("cpr", "CPR").replace("cmd", "CMD")


def _at_least(methods: Mapping[str, Any], better: str, worse: str, area: str) -> bool:
    a, b = (methods[name][LOGIT_DIFFERENCE][area] for name in (better, worse))
    return bool(a >= b if area.startswith("cpr") else a <= b)


def _measured(results: Results) -> dict[str, Any]:
    return {name: own for name, own in results.items() if "methods" in own}


def _target(what: str, value: float | None, must: float, aim: float) -> str:
    shown = f"≤ {_share(must)} | ≤ {_share(aim)}"
    if value is None:
        return f"| {what} | - | {shown} | - |"
    return f"| {what} | {_share(value)} | {shown} | {'yes' if value <= must else 'no'} |"


def _share(value: float) -> str:
    """Shares of less than a half as 1/n."""
    return f"1/{_rounded(1 / value)}" if value < 0.5 else _rounded(value)


def _rounded(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)
