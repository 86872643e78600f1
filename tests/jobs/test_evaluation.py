"""Measuring one circuit."""

from __future__ import annotations

from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
from helpers.fake_engine import GRAPH, MEASUREMENT, PATIENCE_S, FakeEngine
from helpers.scores import SetScore
from helpers.topology import edge_names
from helpers.waiting import close_in_mid_step, listed

from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, ServerError
from pahq_server.jobs.service import JobService

EDGES = ["m1->logits", "a0.h1->m1", "input->a0.h1<q>"]


def test_the_circuit_the_full_model_and_the_empty_circuit(service: JobService) -> None:
    prepared, future = service.evaluate(MEASUREMENT, EDGES)
    metric = SetScore(GRAPH, 1)
    expected = metric.of_names(EDGES), metric.of_names(edge_names(GRAPH)), metric.of_names([])
    assert future.result(PATIENCE_S) == expected
    assert prepared.graph is GRAPH
    assert listed(service) == []  # it is no discovery


def test_no_edges_is_the_empty_circuit(service: JobService) -> None:
    value, _, empty = service.evaluate(MEASUREMENT, [])[1].result(PATIENCE_S)
    assert value == empty


@pytest.mark.parametrize("edge", ["m9->logits", "m1", "m1->m0", ""])
def test_an_unknown_edge_is_named(edge: str, service: JobService, engine: FakeEngine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        service.evaluate(MEASUREMENT, [*EDGES, edge])
    assert caught.value.field == "edges"
    assert repr(edge) in caught.value.detail or repr(edge.partition("->")[0]) in caught.value.detail
    assert engine.opened == []


@pytest.mark.parametrize("place", ["open", "score"])
def test_a_failure_is_the_callers(place: str, engine: FakeEngine, service: JobService) -> None:
    error = NonFiniteMetricError("the metric is nan")
    setattr(engine.failures["bad"], place, error)
    _, future = service.evaluate(replace(MEASUREMENT, model="bad"), EDGES)
    assert future.exception(PATIENCE_S) is error
    assert service.evaluate(MEASUREMENT, EDGES)[1].result(PATIENCE_S)


def test_a_caller_that_leaves_stops_it(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    first = service.evaluate(MEASUREMENT, EDGES)[1]
    engine.wait_for_call()
    abandoned = service.evaluate(MEASUREMENT, EDGES)[1]
    assert abandoned.cancel()
    engine.release()
    assert first.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        abandoned.result(PATIENCE_S)
    assert service.evaluate(MEASUREMENT, EDGES)[1].result(PATIENCE_S)
    assert len(engine.opened) == 2


def test_close_ends_it(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    running = service.evaluate(MEASUREMENT, EDGES)[1]
    engine.wait_for_call()
    waiting = [service.evaluate(MEASUREMENT, EDGES)[1] for _ in range(5)]
    close_in_mid_step(service, engine)
    assert running.result(PATIENCE_S)  # its only step was under way
    for future in waiting:
        error = future.exception(PATIENCE_S)
        assert isinstance(error, ServerError)
        assert str(error) == "the server stopped"
