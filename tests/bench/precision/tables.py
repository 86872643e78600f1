"""The results of the comparison of policies as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Results = dict[str, Any]

# Per policy: most flipped verdicts, least Kendall tau, and the round-to-nearest policy to compare with.
MUST = {
    "pahq-int8": (0.0015, 0.93, "rtn-int8"),
    "pahq-int8-weight": (0.001, 0.98, "rtn-int8-weight"),
    "pahq-fp8": (0.002, 0.80, "rtn-fp8"),
}
LEAST_AUC, MOST_LOST_AUC = 0.99, 0.01


def markdown(results: Results) -> str:
    parts: dict[str, Callable[[Any], list[str]]] = {
        "faithfulness": _faithfulness,
        "speed": _speed,
        "width": lambda figures: _of_fp32("GPT-2 shape, width", figures),
        "narrow": lambda figures: _of_fp32("tinytalk IOI with gates, seed", figures),
        "resident": _resident,
        "loading": _loading,
    }
    lines: list[str] = []
    for name, table in parts.items():
        if name in results:
            lines += [
                *table(results[name]["figures"]),
                "",
                f"Measured on: {results[name]['measured_on']}.",
                "",
            ]
    return "\n".join(lines)


def targets(results: Results) -> list[str]:
    """What must hold, line by line."""
    lines = ["| what | measured | must | holds |", "|---|---|---|---|"]
    return lines + [
        f"| {what} | {value} | {must} | {'yes' if holds else 'no'} |"
        for what, value, must, holds in _targets(results)
    ]


def by_width(results: Results) -> list[str]:
    """What rounding gains at several widths, as shares of the time in ``fp32``."""
    lines = ["| | bf16 | pahq-int8 |", "|---|---|---|"]
    for part, what in (("width", "width {}"), ("narrow", "tinytalk IOI, seed {}")):
        for name, own in results[part]["figures"].items() if part in results else ():
            lines.append(f"| {what.format(name)} | {own['bf16']:.2f} | {own['pahq-int8']:.2f} |")
    return lines


def _targets(results: Results) -> Iterator[tuple[str, str, str, bool]]:
    if "faithfulness" in results:
        figures = results["faithfulness"]["figures"]
        for name, (flips, tau, nearest) in MUST.items():
            own = figures[name]
            yield (
                f"{name}: flipped verdicts",
                f"{own['flipped_share']:.3%}",
                f"≤ {flips:.2%}",
                own["flipped_share"] <= flips,
            )
            yield f"{name}: Kendall tau", f"{own['kendall_tau']:.3f}", f"≥ {tau}", own["kendall_tau"] >= tau
            ratio = figures[nearest]["sampled_rms_error"] / own["sampled_rms_error"]
            least = 1 if name.endswith("weight") else 4
            yield f"rms error of {nearest} / {name}", f"{ratio:.2f}", f"≥ {least}", ratio >= least
        own = figures["pahq-int8"]
        auc = [value for key, value in own.items() if key.endswith(": auc")]
        yield "pahq-int8: AUC, worst", f"{min(auc):.4f}", f"≥ {LEAST_AUC}", min(auc) >= LEAST_AUC
        lost = max(own[f"{key}_fp32"] - own[key] for key in own if key.endswith(": auc_of_circuit"))
        yield (
            "pahq-int8: AUC of the circuit below fp32's, worst",
            f"{lost:.4f}",
            f"≤ {MOST_LOST_AUC}",
            lost <= MOST_LOST_AUC,
        )
        mine, nearest = _mean(own, "jaccard", figures["rtn-int8"]), _mean(figures["rtn-int8"], "jaccard", own)
        yield "Jaccard of circuits, pahq-int8 - rtn-int8", f"{mine - nearest:+.3f}", "≥ 0", mine >= nearest
        changes = sorted(value for key, value in own.items() if key.endswith("kl_change"))
        middle = changes[len(changes) // 2]
        yield "pahq-int8: change of KL, median", f"{middle:.2%}", "≤ 5%", middle <= 0.05
    if "speed" in results:
        for name in ("bf16", "pahq-int8"):
            own = results["speed"]["figures"][name]
            most = 1.15 * own["expected_of_fp32"]
            yield f"{name}: time of fp32's", f"{own['of_fp32']:.2f}", f"≤ {most:.2f}", own["of_fp32"] <= most
    if "narrow" in results:
        for name in ("bf16", "pahq-int8"):
            searches = sorted(own[name] for own in results["narrow"]["figures"].values())
            share = searches[len(searches) // 2]
            yield f"{name}: time of fp32's, tinytalk IOI", f"{share:.2f}", "≤ 1.05", share <= 1.05
    if "resident" in results:
        for name, share in results["resident"]["figures"].items():
            yield f"pahq-int8: bytes of fp32's, {name}", f"{share:.3f}", "≤ 0.30", share <= 0.30
    if "loading" in results:
        peak = results["loading"]["figures"]["peak_of_resident"]
        yield "pahq-int8: peak of loading / resident, 1.2B parameters", f"{peak:.2f}", "≤ 1.3", peak <= 1.3


def _mean(own: dict[str, float], what: str, other: dict[str, float]) -> float:
    """Over the runs that both have."""
    values = [value for key, value in own.items() if key.endswith(what) and key in other]
    return sum(values) / len(values)


def _faithfulness(figures: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        "| policy | verdicts | flipped | rms error | tau | sampled: flipped | rms error | tau |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in figures.items():
        all_of_them = "- | - | - | -"
        if "verdicts" in own:
            all_of_them = f"{own['verdicts']} | {_agreement(own, '')}"
        lines.append(f"| {name} | {all_of_them} | {_agreement(own, 'sampled_')} |")
    runs = sorted({key.rpartition(": ")[0] for own in figures.values() for key in own if ": " in key})
    lines += [
        "",
        "| run | policy | AUC | AUC of the circuit (fp32's) | Jaccard | change of KL |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        for name, own in figures.items():
            if any(key.startswith(f"{run}: ") for key in own):
                lines.append(f"| {run} | {name} | {_of_run(own, run)} |")
    return lines


def _of_run(own: dict[str, float], run: str) -> str:
    auc, circuit, exact, jaccard, change = (
        own.get(f"{run}: {key}")
        for key in ("auc", "auc_of_circuit", "auc_of_circuit_fp32", "jaccard", "kl_change")
    )
    scored = "- | -" if auc is None else f"{auc:.4f} | {circuit:.3f} ({exact:.3f})"
    searched = "- | -" if jaccard is None else f"{jaccard:.3f} | {change:.2%}"
    return f"{scored} | {searched}"


def _agreement(own: dict[str, float], kind: str) -> str:
    flipped, error, tau = (own[f"{kind}{key}"] for key in ("flipped_share", "rms_error", "kendall_tau"))
    return f"{flipped:.3%} | {error:.2e} | {tau:.3f}"


def _speed(figures: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        "| policy | ms per evaluation | of fp32's | 1 - s + s/g | s | g | ms, scattered edges | of fp32's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    share = figures["fp32"]["gemm_share"]
    for name, own in figures.items():
        expected = (
            f"{own['expected_of_fp32']:.2f} | {share:.2f} | {own['kernel_gain']:.2f}"
            if "kernel_gain" in own
            else "- | - | -"
        )
        searched, scattered = (
            f"{own[f'{kind}seconds_per_evaluation'] * 1e3:.2f} | {own[f'{kind}of_fp32']:.2f}"
            for kind in ("", "scattered_")
        )
        lines.append(f"| {name} | {searched} | {expected} | {scattered} |")
    return lines


def _of_fp32(what: str, figures: dict[str, dict[str, float]]) -> list[str]:
    """Times as shares of fp32's."""
    lines = [f"| {what} | bf16 / fp32 | pahq-int8 / fp32 |", "|---|---|---|"]
    return lines + [
        f"| {name} | {own['bf16']:.2f} | {own['pahq-int8']:.2f} |" for name, own in figures.items()
    ]


def _resident(figures: dict[str, float]) -> list[str]:
    lines = ["| model | bytes of weights, pahq-int8 / fp32 |", "|---|---|"]
    return lines + [f"| {name} | {share:.3f} |" for name, share in figures.items()]


def _loading(figures: dict[str, float]) -> list[str]:
    lines = ["| loading 1.2 billion parameters as pahq-int8 | value |", "|---|---|"]
    return lines + [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in figures.items()]
