"""Warnings: what may mislead about a circuit or scores although nothing went wrong, in full sentences.

Each warning says what was found, what it means and what to do. Warnings about the request alone are in
`pahq_server.jobs.warnings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import CleanRun, ResolvedObjective
from pahq_server.methods.verdicts import SearchResult

# A circuit whose faithfulness is outside of these bounds does not do what the full model does.
LEAST_FAITHFULNESS, MOST_FAITHFULNESS = 0.1, 1.2
# The full model and the empty circuit are indistinct if their metrics differ by less than this share of the
# larger one, or by less than this in all.
LEAST_RELATIVE_GAP, LEAST_GAP = 0.01, 1e-6
# A search that starts from a circuit with less than this faithfulness has little of the behaviour to find.
LEAST_START = 0.5
# A circuit with at least this share of all edges leaves out next to nothing.
ALMOST_ALL = 0.95


@dataclass(frozen=True)
class Endpoints:
    """The metric of the full model and of the empty circuit.

    Args:
        name: name of the metric.
        full, empty: its values; lower is better.
    """

    name: str
    full: float
    empty: float

    @property
    def indistinct(self) -> bool:
        """Whether the ablation hardly changes the metric, so that there is nothing to explain."""
        gap = abs(self.full - self.empty)
        return gap < LEAST_GAP or gap < LEAST_RELATIVE_GAP * max(abs(self.full), abs(self.empty))

    def faithfulness(self, value: float) -> float:
        """The faithfulness of a circuit with this metric; only for endpoints that differ."""
        return (value - self.empty) / (self.full - self.empty)


def of_baseline(endpoints: Endpoints, clean_run: CleanRun) -> tuple[str, ...]:
    """Returns warnings about the full model and the empty circuit, which hold for every circuit."""
    found = [*_margins(clean_run)]
    full, empty = _number(endpoints.full), _number(endpoints.empty)
    if endpoints.indistinct:
        almost = "" if endpoints.full == endpoints.empty else "almost "
        found.append(
            f"The full model and the empty circuit have {almost}the same {endpoints.name} ({full} and "
            f"{empty}): ablation hardly disturbs the behaviour, so scores and faithfulness are mostly noise. "
            "Use corrupted prompts that break the behaviour, another ablation or another metric."
        )
    elif endpoints.empty < endpoints.full and not found:
        found.append(
            f"The empty circuit has a lower, that is better, {endpoints.name} than the full model "
            f"({empty} and {full}): ablating everything improves the behaviour. Check the answers and the "
            "corrupted prompts."
        )
    return tuple(found)


def of_search(resolved: ResolvedObjective, found: SearchResult) -> tuple[str, ...]:
    """Returns warnings about the result of a search."""
    endpoints = Endpoints(resolved.objective.metric, found.metric_full, found.metric_empty)
    larger_start = _larger_start(endpoints, found.metric_start)
    return (
        *of_baseline(endpoints, resolved.clean_run),
        *_sizes(found, larger_start),
        *_paths(found.circuit, larger_start or PATHS_ADVICE),
        *_faithfulness(endpoints, found.metric_value, larger_start or "Use a smaller threshold"),
    )


def of_circuit(clean_run: CleanRun, circuit: Circuit, value: float, endpoints: Endpoints) -> tuple[str, ...]:
    """Returns warnings about a given circuit with the metric ``value``."""
    empty = () if circuit.num_kept else ("The circuit has no edges: what was measured is the empty circuit.",)
    return (
        *of_baseline(endpoints, clean_run),
        *empty,
        *_paths(circuit, PATHS_ADVICE),
        *_faithfulness(endpoints, value, "Use a circuit with more edges"),
    )


# The request

# Metrics of which one edge can raise what another lowers. The others are never below those of the full model.
SIGNED = frozenset({"logit_difference"})


def of_signed_groups(metric: str) -> Iterator[str]:
    """Yields a warning about a search that tests groups of edges at once by a metric with two directions."""
    if metric in SIGNED:
        yield (
            f"Changes of {metric} have signs, and cancel where edges are removed together: with grouping "
            "'bisect' a group whose edges matter can go as one that does not, and the circuit can end far "
            "worse than with single tests. Use metric 'kl_divergence' or 'l2', or another grouping."
        )


# The full model


def _margins(clean_run: CleanRun) -> Iterator[str]:
    margins = np.array(clean_run.margins or ())
    if len(margins):
        yield from of_full_model(float(margins.mean()), int((margins > 0).sum()), len(margins))


def of_full_model(mean: float, right: int, count: int) -> Iterator[str]:
    """Yields warnings about a model that does not do the task.

    Args:
        mean: of its logit differences between the answers and the wrong answers, on the clean prompts.
        right: at how many positions the answer has the larger logit.
        count: of how many.
    """
    told = f"the answer has the larger logit at {right} of {count} positions"
    if mean <= 0:
        yield (
            "The full model does not do the task: its mean logit difference between the answers and the "
            f"wrong answers is {mean:.4g} on the clean prompts, and {told}. There is no behaviour that a "
            "circuit could explain. Check whether answers and wrong answers are swapped, or use a model "
            "that does it."
        )
    elif 2 * right < count:
        yield (
            f"The full model mostly does not do the task: on the clean prompts {told}, though the mean "
            f"logit difference is {mean:.4g}. The result is about the few prompts that it does. Leave out "
            "the others."
        )


# The circuit


PATHS_ADVICE = "Use a smaller threshold, or another metric or ablation"


def _larger_start(endpoints: Endpoints, start: float | None) -> str:
    """Returns the advice to start from a larger circuit; empty where the start is not to blame."""
    if start is None or endpoints.indistinct or endpoints.faithfulness(start) >= LEAST_START:
        return ""
    return (
        "The circuit that the search started from has only the faithfulness "
        f"{_number(endpoints.faithfulness(start), 3)}, and no threshold finds what it lacks: start from a "
        "larger one, such as a larger fraction of the best edges"
    )


def _sizes(found: SearchResult, larger_start: str) -> Iterator[str]:
    kept, total, threshold = found.circuit.num_kept, found.circuit.graph.num_edges, found.threshold
    if threshold is None:
        return
    if not kept and not found.verdicts:
        yield "No edge was tested: the circuit to start from leads nowhere. Start from one with more edges."
    elif not kept:
        largest = max((verdict.delta for verdict in found.verdicts), default=0.0)
        advice = (
            "Use a smaller threshold" if largest > 0 else "Change the task: a smaller threshold does not help"
        )
        advice = larger_start or advice
        yield (
            f"No edge is kept: no removal worsened the metric by the threshold {threshold:g}, the largest "
            f"change was {_number(largest)}. {advice}."
        )
    elif kept >= ALMOST_ALL * total:
        yield (
            f"{kept} of {total} edges are kept: nearly every removal changes the metric by the threshold "
            f"{threshold:g} or more, so the circuit does not tell what matters. Use a larger threshold."
        )


def _paths(circuit: Circuit, advice: str) -> Iterator[str]:
    kept = circuit.num_kept
    if kept and not circuit.on_paths().any():
        edges = "The only kept edge is not" if kept == 1 else f"None of the {kept} kept edges is"
        yield (
            f"{edges} on a path from input to logits: nothing of what is special to a prompt gets through, "
            f"and the circuit does not explain the behaviour. {advice}."
        )


def _faithfulness(endpoints: Endpoints, value: float, advice: str) -> Iterator[str]:
    """Yields nothing where the endpoints are indistinct: `of_baseline` has warned of that already."""
    if endpoints.indistinct:
        return
    faithfulness = endpoints.faithfulness(value)
    values = (
        f"{endpoints.name} {_number(value)}, of the full model {_number(endpoints.full)}, of the empty "
        f"circuit {_number(endpoints.empty)}"
    )
    if faithfulness < LEAST_FAITHFULNESS:
        # A little below 0 is rounding.
        worse = "does worse than the empty circuit" if faithfulness < -0.01 else "has lost the behaviour"
        yield f"The faithfulness is {_number(faithfulness, 3)}: the circuit {worse} ({values}). {advice}."
    elif faithfulness > MOST_FAITHFULNESS:
        yield (
            f"The faithfulness is {_number(faithfulness, 3)}: the circuit goes beyond the full model "
            f"({values}), since edges that work against the behaviour are missing. {advice}, or the metric "
            "kl_divergence, which counts every departure from the full model."
        )


def _number(value: float, digits: int = 6) -> str:
    return f"{value + 0.0:.{digits}g}"  # never "-0"
