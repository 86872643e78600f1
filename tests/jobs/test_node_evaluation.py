"""Measuring given circuits of nodes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE, PATIENCE_S, FakeEngine, nodes_of
from helpers.specs import acdc
from helpers.toy_nodes import Toy
from helpers.waiting import listed, wait_end

from pahq_server.core.errors import (
    InvalidRequestError,
    NonFiniteMetricError,
    OtherModelError,
    QuotaExceededError,
)
from pahq_server.core.pruning import MaskFigures, NodeSet
from pahq_server.jobs.job import JobState
from pahq_server.jobs.node_evaluation import MASKS_PER_OPERATION, NodeFigures
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobService

LAYOUT = nodes_of(GRAPH)
TOY = Toy(1, layout=LAYOUT)
WHOLE = NodeSet(LAYOUT, "", np.packbits(np.ones(LAYOUT.size, bool), bitorder="little").tobytes())


def random_circuits(count: int) -> list[NodeSet]:
    draw = np.random.default_rng(5)
    masks = [draw.random(LAYOUT.size) < 0.9 for _ in range(count)]
    return [NodeSet(LAYOUT, "c0ffee", np.packbits(mask, bitorder="little").tobytes()) for mask in masks]


def figures(circuit: NodeSet) -> MaskFigures:
    return MaskFigures(TOY.kl(circuit.mask("", LAYOUT, "c0ffee")), 0.5)


EMPTY = figures(NodeSet(LAYOUT, "", bytes(len(WHOLE.bits))))


def test_the_circuit_the_full_model_and_the_empty_circuit(service: JobService, engine: FakeEngine) -> None:
    (circuit,) = random_circuits(1)
    evaluation = service.node_evaluations.evaluate(OBJECTIVE, [circuit])
    expected = NodeFigures((figures(circuit),), figures(WHOLE), EMPTY)
    assert evaluation.future.result(PATIENCE_S) == expected
    assert not engine.opened[0].activations  # its operations run the prompts
    assert listed(service) == []  # it is no job


def test_many_circuits_are_measured_in_small_batches(engine: FakeEngine, service: JobService) -> None:
    """Others get their turn in between."""
    circuits = random_circuits(50)
    engine.hold()
    evaluation = service.node_evaluations.evaluate(OBJECTIVE, circuits)
    engine.wait_for_call()
    job = service.create(acdc(2.0, grouping="none"), "", user="bob")
    engine.release()
    assert evaluation.future.result(PATIENCE_S).values == tuple(map(figures, circuits))
    wait_end(job)
    assert job.snapshot.state is JobState.SUCCEEDED
    state = engine.steps[0][0]
    assert sum(state in states for states in engine.steps) == -(-(len(circuits) + 2) // MASKS_PER_OPERATION)


def test_a_caller_that_leaves_stops_it(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    running = service.node_evaluations.evaluate(OBJECTIVE, [WHOLE] * 100).future
    engine.wait_for_call()
    waiting = service.node_evaluations.evaluate(OBJECTIVE, [WHOLE]).future
    assert running.cancel()
    assert waiting.cancel()
    engine.release()
    assert service.node_evaluations.evaluate(OBJECTIVE, [WHOLE]).future.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        running.result(PATIENCE_S)
    assert len(engine.steps) == 2
    assert engine.open_states == {}


@pytest.mark.parametrize("place", ["open", "run"])
def test_a_failure_is_the_callers(place: str, engine: FakeEngine, service: JobService) -> None:
    error = NonFiniteMetricError("the metric is nan")
    setattr(engine.failures["bad"], place, error)
    future = service.node_evaluations.evaluate(replace(OBJECTIVE, model="bad"), [WHOLE]).future
    assert future.exception(PATIENCE_S) is error
    assert service.node_evaluations.evaluate(OBJECTIVE, [WHOLE]).future.result(PATIENCE_S)


def test_what_cannot_be_measured_is_not_queued(engine: FakeEngine, service: JobService) -> None:
    other = replace(WHOLE, layout=replace(LAYOUT, heads=3))
    with pytest.raises(OtherModelError):
        service.node_evaluations.evaluate(OBJECTIVE, [WHOLE, other])
    with pytest.raises(InvalidRequestError, match="from 1 to 1000"):
        service.node_evaluations.evaluate(OBJECTIVE, [])
    assert engine.opened == []
    assert not service._admission._unstored


def test_it_counts_like_a_job(engine: FakeEngine, new_service: Callable[..., JobService]) -> None:
    service = new_service(quotas=Quotas(queued_jobs=2))
    engine.hold()
    service.node_evaluations.evaluate(OBJECTIVE, [WHOLE], user="bob")
    engine.wait_for_call()
    waiting = [service.node_evaluations.evaluate(OBJECTIVE, [WHOLE], user="ada").future for _ in range(2)]
    with pytest.raises(QuotaExceededError, match="3 queued jobs would be more than the 2"):
        service.node_evaluations.evaluate(OBJECTIVE, [WHOLE], user="ada")
    engine.release()
    assert all(future.result(PATIENCE_S) for future in waiting)
    assert service.node_evaluations.evaluate(OBJECTIVE, [WHOLE], user="ada").future.result(PATIENCE_S)
