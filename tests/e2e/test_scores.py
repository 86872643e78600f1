"""``single_edge``: the effect of every edge alone."""

from __future__ import annotations

from typing import Any

import pytest

from pahq_client import Circuit, Client, Edge, Task, Verdict

from .cases import Case, score_parameters


@pytest.mark.parametrize("expected", list(score_parameters()))
def test_single_edge(client: Client, expected: tuple[Case, dict[str, Any]]) -> None:
    case, scores = expected
    options = {"metric": case.metric, "ablation": scores["ablation"], "kv_receivers": scores["kv"]}
    circuit = client.discover(case.model, case.task, method="single_edge", **options)
    effects = {str(edge): edge.score for edge in circuit.edges}
    assert effects == pytest.approx(scores["single"], abs=1e-4, rel=1e-4)
    assert {verdict.subject: verdict.delta for verdict in circuit.verdicts} == effects
    assert circuit.num_evaluations == circuit.num_edges_total == len(effects)


def test_a_threshold_keeps_the_edges_that_matter(client: Client) -> None:
    task = Task(clean=[[1, 2, 3], [4, 5]], corrupted=[[1, 6, 3], [7, 5]])
    everything = client.discover("plain", task, method="single_edge")
    threshold = sorted(edge.score or 0.0 for edge in everything.edges)[20]
    some = client.discover("plain", task, threshold, method="single_edge")
    assert some.verdicts == tuple(
        Verdict(v.subject, v.delta, kept=v.delta >= threshold) for v in everything.verdicts
    )
    assert some.edges == everything_above(everything, threshold)
    assert len(some.edges) == len(everything.edges) - 20 == everything.num_edges_total - 20


def everything_above(circuit: Circuit, threshold: float) -> tuple[Edge, ...]:
    return tuple(edge for edge in circuit.edges if edge.score is not None and edge.score >= threshold)
