"""The figures of what methods found, measured on a server that they do not share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.methods.finding import KL, LOGIT_DIFFERENCE, Found
from bench.methods.subjects import Subject
from pahq_client import Circuit, Client, Curve, EdgeScores
from pahq_client.curve import FRACTIONS

Figures = dict[str, Any]


@dataclass
class Reference:
    """What the methods of a subject are compared with.

    Args:
        circuit: plain ACDC's at the subject's threshold.
        sizes: of the circuits that are compared, in edges, descending thresholds.
        exact: the exact score of every edge, by metric.
    """

    circuit: Circuit
    sizes: tuple[int, ...]
    exact: dict[str, EdgeScores] = field(default_factory=dict)


def figures(client: Client, subject: Subject, found: Found, reference: Reference) -> Figures:
    """Measures what a method found.

    Args:
        client: of a server that has nothing else to do.
        subject: the model and the task.
        found: what the method found.
        reference: what to compare with, its exact scores included.

    Returns:
        Cost, evaluations, ``kl`` (one per size), the areas of the faithfulness curve per metric, and the
        agreement with the reference; of several draws the mean.
    """
    own: Figures = {
        "evaluations": found.evaluations,
        "cpu_seconds": found.cost.cpu_seconds,
        "peak_mib": found.cost.peak_mib,
    }
    if found.circuits:
        own["edges"] = len(found.at_threshold.edges)
        return own | _of_circuits(client, subject, found, reference)
    return own | _mean([_of_scores(client, subject, scores, reference) for scores in found.scores])


def _of_scores(client: Client, subject: Subject, scores: EdgeScores, reference: Reference) -> Figures:
    task = subject.prompts()
    sized = [scores.top(edges=size) for size in reference.sizes]
    areas = {
        metric: client.curve(subject.model, task, scores, metric=metric, baselines=0).areas
        for metric in (LOGIT_DIFFERENCE, KL)
    }
    exact = reference.exact[scores.metric]
    agreement = scores.compare(exact, allow_other_model=True)
    return {
        "kl": _values(client, subject, sized, KL),
        "sizes": [len(circuit.edges) for circuit in sized],
        **areas,
        "auc_exact": scores.roc(_best(exact, len(reference.circuit.edges))).auc,
        "auc_acdc": scores.roc(reference.circuit).auc,
        "spearman": agreement.spearman,
        "spearman_absolute": agreement.spearman_absolute,
    }


def _of_circuits(client: Client, subject: Subject, found: Found, reference: Reference) -> Figures:
    """A search gives one circuit per threshold: at each size the largest that is small enough counts."""
    exact, total = reference.exact[KL], found.circuits[0].num_edges_total
    kept = set(map(str, found.at_threshold.edges))
    member = replace(exact, scores=np.array([float(name in kept) for name in exact.graph.edge_names()]))
    return {
        "kl": _values(client, subject, found.sized, KL),
        "sizes": [len(circuit.edges) for circuit in found.sized],
        **{
            metric: _areas(client, subject, found.circuits, metric, total)
            for metric in (LOGIT_DIFFERENCE, KL)
        },
        "auc_exact": member.roc(_best(exact, len(reference.circuit.edges))).auc,
        "auc_acdc": member.roc(reference.circuit).auc,
    }


def _areas(
    client: Client, subject: Subject, circuits: Sequence[Circuit], metric: str, total: int
) -> dict[str, float | None]:
    measured = client.evaluate_many(subject.model, subject.prompts(), circuits, metric=metric)
    full, empty = measured[0].full, measured[0].empty
    sized = sorted((len(circuit.edges), each.value) for circuit, each in zip(circuits, measured, strict=True))
    values, counts = [], []
    for fraction in FRACTIONS:
        room = int(fraction * total)
        count, value = max((pair for pair in sized if pair[0] <= room), default=(0, empty))
        whole = room == total
        counts.append(total if whole else count)
        values.append(full if whole else value)
    curve = Curve.from_values(FRACTIONS, values, full=full, empty=empty, num_edges=counts, metric=metric)
    return curve.areas


def _values(client: Client, subject: Subject, circuits: Sequence[Circuit], metric: str) -> list[float]:
    task = subject.prompts()
    return [each.value for each in client.evaluate_many(subject.model, task, circuits, metric=metric)]


def _best(exact: EdgeScores, count: int) -> Circuit:
    """The edges with the largest exact scores, also those on no path."""
    chosen = np.zeros(len(exact.scores), dtype=bool)
    chosen[np.argsort(-np.abs(exact.scores), kind="stable")[:count]] = True
    return exact.circuit(chosen)


def _mean(draws: Sequence[Figures]) -> Figures:
    """The mean of each figure, of lists and objects element by element."""
    first = draws[0]
    if len(draws) == 1:
        return first
    return {key: _mean_of([draw[key] for draw in draws]) for key in first}


def _mean_of(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return _mean(values)
    if isinstance(values[0], list):
        return [_mean_of(each) for each in zip(*values, strict=True)]
    return None if None in values else statistics.fmean(values)
