"""Measuring given circuits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.graphs import graphs
from helpers.scores import SetScore
from helpers.specs import acdc, changed
from helpers.topology import edge_names
from helpers.waiting import close_in_mid_step, listed, wait_end, wait_state
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import (
    InvalidRequestError,
    NonFiniteMetricError,
    QuotaExceededError,
    ServerError,
)
from pahq_server.core.graph import Graph
from pahq_server.jobs.evaluation import CircuitMetrics, PackedCircuit
from pahq_server.jobs.job import JobState
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobService
from pahq_server.jobs.session_calls import BASE_CIRCUITS_PER_BATCH

SPEC = acdc(2.0, grouping="none")
EDGES = ["m1->logits", "a0.h1->m1", "input->a0.h1<q>"]


def test_the_circuit_the_full_model_and_the_empty_circuit(service: JobService) -> None:
    evaluation = service.evaluations.evaluate(OBJECTIVE, [EDGES])
    metric = SetScore(GRAPH, 1)
    full, empty = metric.of_names(edge_names(GRAPH)), metric.of_names([])
    expected = CircuitMetrics((metric.of_names(EDGES),), full, empty)
    assert evaluation.future.result(PATIENCE_S) == expected
    assert evaluation.resolved.graph is GRAPH
    assert listed(service) == []  # it is no job


def test_no_edges_is_the_empty_circuit(service: JobService) -> None:
    evaluation = service.evaluations.evaluate(OBJECTIVE, [[]])
    measured = evaluation.future.result(PATIENCE_S)
    assert measured.values == (measured.empty,)
    assert any("has no edges" in text for text in evaluation.warnings())


@pytest.mark.parametrize("edge", ["m9->logits", "m1", "m1->m0", ""])
def test_an_unknown_edge_is_named(edge: str, service: JobService, engine: FakeEngine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        service.evaluations.evaluate(OBJECTIVE, [EDGES, [*EDGES, edge]])
    assert caught.value.field == "circuits[1].names"
    assert repr(edge) in caught.value.detail or repr(edge.partition("->")[0]) in caught.value.detail
    assert engine.opened == []


def test_many_circuits_are_measured_in_small_batches(engine: FakeEngine, service: JobService) -> None:
    """Others get their turn in between, also a caller that leaves, and one that stops the server."""
    names = edge_names(GRAPH)
    circuits = [names[:count] for count in range(len(names))] + [names[count:] for count in range(len(names))]
    score = SetScore(GRAPH, 1)
    engine.hold()
    evaluation = service.evaluations.evaluate(OBJECTIVE, circuits)
    engine.wait_for_call()
    job = service.create(SPEC, "", user="bob")
    engine.release()
    found = evaluation.future.result(PATIENCE_S)
    assert list(found.values) == [score.of_names(circuit) for circuit in circuits]
    wait_end(job)
    assert job.snapshot.state is JobState.SUCCEEDED
    batches = -(-(len(circuits) + 2) // BASE_CIRCUITS_PER_BATCH)
    alone = [states for states in engine.steps if len(states) == 1]
    both = [states for states in engine.steps if len(states) == 2]
    assert len(alone) + len(both) >= batches
    assert both


def test_a_caller_that_leaves_in_the_middle(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    future = service.evaluations.evaluate(OBJECTIVE, [EDGES] * 100).future
    engine.wait_for_call()
    assert future.cancel()
    engine.release()
    assert service.evaluations.evaluate(OBJECTIVE, [EDGES]).future.result(PATIENCE_S)
    assert len(engine.steps) == 2


@given(st.data(), graphs())
def test_packed_circuits(data: st.DataObject, graph: Graph) -> None:
    chance = data.draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    kept = np.random.default_rng(data.draw(st.integers(0, 99))).random(graph.num_edges) < chance
    found = PackedCircuit(Circuit(graph, kept)).unpack()
    assert found.graph is graph
    assert found.kept.dtype == bool
    assert found.kept.tolist() == kept.tolist()


@pytest.mark.parametrize("place", ["open", "run"])
def test_a_failure_is_the_callers(place: str, engine: FakeEngine, service: JobService) -> None:
    error = NonFiniteMetricError("the metric is nan")
    setattr(engine.failures["bad"], place, error)
    future = service.evaluations.evaluate(replace(OBJECTIVE, model="bad"), [EDGES]).future
    assert future.exception(PATIENCE_S) is error
    assert service.evaluations.evaluate(OBJECTIVE, [EDGES]).future.result(PATIENCE_S)


def test_a_caller_that_leaves_stops_it(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    first = service.evaluations.evaluate(OBJECTIVE, [EDGES]).future
    engine.wait_for_call()
    abandoned = service.evaluations.evaluate(OBJECTIVE, [EDGES]).future
    assert abandoned.cancel()
    engine.release()
    assert first.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        abandoned.result(PATIENCE_S)
    assert service.evaluations.evaluate(OBJECTIVE, [EDGES]).future.result(PATIENCE_S)
    assert len(engine.opened) == 2


def test_close_ends_it(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    running = service.evaluations.evaluate(OBJECTIVE, [EDGES]).future
    engine.wait_for_call()
    waiting = [service.evaluations.evaluate(OBJECTIVE, [EDGES]).future for _ in range(5)]
    close_in_mid_step(service, engine)
    assert running.result(PATIENCE_S)  # its only step was under way
    for future in waiting:
        error = future.exception(PATIENCE_S)
        assert isinstance(error, ServerError)
        assert str(error) == "the server stopped"


# Quotas

TOKENS = 4  # of the prompts of the fake engine's task


def test_evaluations_that_wait_count_like_jobs(
    engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(queued_jobs=2, running_jobs=1))
    engine.hold()
    job = service.create(SPEC, "", user="ada")
    wait_state(job, JobState.RUNNING)  # holds her only place
    first = service.evaluations.evaluate(OBJECTIVE, [EDGES], user="ada").future
    queued = service.create(changed(SPEC, threshold=3.0), "", user="ada")
    for _ in range(2):
        with pytest.raises(QuotaExceededError, match="3 queued jobs would be more than the 2") as caught:
            service.evaluations.evaluate(OBJECTIVE, [EDGES], user="ada")
        assert (caught.value.quota, caught.value.subject) == ("queued_jobs", "users/ada")
        with pytest.raises(QuotaExceededError):
            service.create(SPEC, "", user="ada")
    other = service.evaluations.evaluate(OBJECTIVE, [EDGES], user="bob").future
    assert first.cancel()
    again = service.evaluations.evaluate(
        OBJECTIVE, [EDGES], user="ada"
    ).future  # what was given up does not count
    engine.release()
    assert again.result(PATIENCE_S)
    assert other.result(PATIENCE_S)
    wait_end(job)
    wait_end(queued)
    assert service.evaluations.evaluate(OBJECTIVE, [EDGES], user="ada").future.result(PATIENCE_S)
    assert not service._admission._unstored


def test_prompts_of_evaluations_count_until_they_end(
    engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(prompt_tokens=2 * TOKENS))
    engine.hold()
    futures = [service.evaluations.evaluate(OBJECTIVE, [EDGES], user="ada").future for _ in range(2)]
    engine.wait_for_call()
    with pytest.raises(QuotaExceededError, match=f"{3 * TOKENS} prompt tokens") as caught:
        service.evaluations.evaluate(OBJECTIVE, [EDGES], user="ada")
    assert caught.value.quota == "prompt_tokens"
    with pytest.raises(QuotaExceededError, match="prompt tokens"):
        service.create(SPEC, "", user="ada")
    assert service.create(SPEC, "", user="bob")
    engine.release()
    assert all(future.result(PATIENCE_S) for future in futures)
    wait_end(service.create(SPEC, "", user="ada"))


def test_evaluations_leave_no_result_that_would_count(new_service: Callable[..., JobService]) -> None:
    service = new_service(quotas=Quotas(stored_results=1))
    wait_end(service.create(SPEC, "", user="ada"))
    assert service.evaluations.evaluate(OBJECTIVE, [EDGES], user="ada").future.result(PATIENCE_S)
    with pytest.raises(QuotaExceededError, match="stored results"):
        service.create(changed(SPEC, threshold=3.0), "", user="ada")


@pytest.mark.parametrize("place", ["open", "run"])
def test_an_evaluation_that_fails_counts_no_more(
    place: str, engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(queued_jobs=1, prompt_tokens=TOKENS))
    setattr(engine.failures["bad"], place, NonFiniteMetricError("the metric is nan"))
    for _ in range(3):
        future = service.evaluations.evaluate(replace(OBJECTIVE, model="bad"), [EDGES], user="ada").future
        assert isinstance(future.exception(PATIENCE_S), NonFiniteMetricError)
    assert not service._admission._unstored


def test_many_callers_at_once_get_no_more_than_the_quota(
    engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(queued_jobs=3))
    engine.hold()
    running = service.evaluations.evaluate(OBJECTIVE, [EDGES], "bob").future
    engine.wait_for_call()

    def ask(_: int) -> bool:
        try:
            service.evaluations.evaluate(OBJECTIVE, [EDGES], "ada")
        except QuotaExceededError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(64))) == 3
    engine.release()
    assert running.result(PATIENCE_S)
