"""EvaluateNodes: circuits of nodes of the client, measured without a job."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from helpers.api_server import RunningServer, objective, refused, token_ids
from helpers.fake_engine import GRAPH, FakeEngine, nodes_of
from helpers.toy_nodes import Toy
from pahq.v1 import circuit_pb2, task_pb2
from pahq.v1 import patching_pb2 as pb

from pahq_server.core import errors
from pahq_server.core.pruning import Mask, MaskFigures, MeasureMasks

LAYOUT = nodes_of(GRAPH)
TOY = Toy(1, layout=LAYOUT)
FULL, EMPTY = np.ones(LAYOUT.size, dtype=bool), np.zeros(LAYOUT.size, dtype=bool)


def bits(mask: Mask) -> bytes:
    return np.packbits(mask, bitorder="little").tobytes()


def node_set(mask: Mask = FULL, revision: str = "", **sizes: int) -> circuit_pb2.NodeSet:
    layout = circuit_pb2.NodeLayout(**(asdict(LAYOUT) | sizes))
    return circuit_pb2.NodeSet(layout=layout, model_revision=revision, bits=bits(mask))


def request(*circuits: circuit_pb2.NodeSet, **changes: Any) -> pb.EvaluateNodesRequest:
    return pb.EvaluateNodesRequest(objective=objective(**changes), circuits=circuits)


def random_masks(count: int) -> list[Mask]:
    draw = np.random.default_rng(0)
    return [draw.random(LAYOUT.size) < share for share in draw.uniform(0.5, 1, count)]


def test_circuits_the_full_model_and_the_empty_circuit(server: RunningServer) -> None:
    masks = [TOY.planted, *random_masks(20)]
    response = server.patching.EvaluateNodes(request(*map(node_set, masks)))
    assert [each.kl for each in response.values] == [TOY.kl(mask) for mask in masks]
    assert response.values[0].kl == response.full.kl == 0
    assert response.empty.kl == TOY.kl(EMPTY) > 0
    assert not response.full.HasField("logit_difference")
    assert not response.full.HasField("accuracy")


def test_every_node_has_its_bit(server: RunningServer, engine: FakeEngine) -> None:
    """Of all others: what the engine gets is the circuit that was sent, made consistent."""
    masks = []
    for gate in range(LAYOUT.size):
        mask = FULL.copy()
        mask[gate] = False
        masks.append(mask)
    asked: list[Mask] = []

    def measured(operation: MeasureMasks) -> list[MaskFigures]:
        asked.extend(operation.masks)
        return [MaskFigures(float(mask.sum()), 0.5) for mask in operation.masks]

    engine.operations[MeasureMasks] = measured
    response = server.patching.EvaluateNodes(request(*map(node_set, masks)))
    assert (response.full.kl, response.empty.kl) == (LAYOUT.size, 0)
    assert [each.kl for each in response.values] == [mask.sum() for mask in asked[2:]]
    for gate, mask in enumerate(asked[2:]):
        assert not mask[gate]
    neurons = dict(LAYOUT.slices())["attention_neurons"]
    assert all(mask.sum() == LAYOUT.size - 1 for mask in asked[2:][neurons])


def test_all_figures_are_told(server: RunningServer, engine: FakeEngine) -> None:
    found = MaskFigures(0.25, 0.75, -1.5, 0.125)
    engine.operations[MeasureMasks] = lambda operation: [found] * len(operation.masks)
    response = server.patching.EvaluateNodes(request(node_set()))
    for each in (*response.values, response.full, response.empty):
        assert (each.kl, each.exact_match, each.logit_difference, each.accuracy) == (0.25, 0.75, -1.5, 0.125)
    assert any("does not do the task" in text for text in response.warnings)
    assert any("the same kl_divergence" in text for text in response.warnings)


def test_warnings_about_the_prompts(server: RunningServer, engine: FakeEngine) -> None:
    engine.request_warnings = ("Look at the tokens.",)
    same = task_pb2.PromptTask(clean=token_ids((1, 2)), corrupted=token_ids((1, 2)))
    asked = request(node_set(), task=task_pb2.Task(prompts=same))
    first, second = server.patching.EvaluateNodes(asked).warnings[:2]
    assert first == "Look at the tokens."
    assert "are the same in the only pair" in second


def test_a_thousand_circuits_and_no_more(server: RunningServer, engine: FakeEngine) -> None:
    masks = random_masks(1000)
    response = server.patching.EvaluateNodes(request(*map(node_set, masks)))
    assert [each.kl for each in response.values] == [TOY.kl(mask) for mask in masks]
    opened = len(engine.opened)
    for count in (0, 1001):
        with refused() as refusal:
            server.patching.EvaluateNodes(request(*[node_set()] * count))
        assert refusal.violation == ("circuits", f"must be from 1 to 1000 circuits, got {count}")
    assert len(engine.opened) == opened


@pytest.mark.parametrize("revision", ["", "c0ffee"])
def test_a_circuit_of_this_model_is_measured(server: RunningServer, revision: str) -> None:
    (value,) = server.patching.EvaluateNodes(request(node_set(EMPTY, revision))).values
    assert value.kl == TOY.kl(EMPTY)


@pytest.mark.parametrize(
    ("revision", "sizes"),
    [
        ("", {"layers": 3}),
        ("", {"heads": 4}),
        ("", {"d_head": 2}),
        ("", {"d_model": 4}),
        ("", {"d_mlp": 0}),
        ("", {"layers": 0, "heads": -(2**31)}),
        ("decaf", {}),
    ],
)
def test_a_circuit_of_another_model_is_refused(
    server: RunningServer, engine: FakeEngine, revision: str, sizes: dict[str, int]
) -> None:
    with refused() as refusal:
        server.patching.EvaluateNodes(request(node_set(), node_set(FULL, revision, **sizes)))
    assert refusal.info.reason == "OTHER_MODEL"
    assert refusal.violation[0] == "circuits[1]"
    assert "or pass allow_other_model=True" in refusal.violation[1]
    assert refusal.info.metadata["model"] == (
        "2 layers, 2 heads of width 4, width 8, 6 hidden units, revision c0ffee"
    )
    assert (revision or "revision unknown") in refusal.info.metadata["circuit"]
    assert engine.opened == []


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        (b"", f"must be {len(bits(FULL))} bytes, one bit for each of {LAYOUT.size} nodes, got 0"),
        (bits(FULL) + b"\0", f"must be {len(bits(FULL))} bytes"),
        (bits(FULL)[:-1], f"must be {len(bits(FULL))} bytes"),
        (bits(FULL)[:-1] + b"\xff", f"must be 0 after the last of {LAYOUT.size} nodes"),
    ],
)
def test_what_is_not_one_bit_per_node(server: RunningServer, wrong: bytes, detail: str) -> None:
    assert LAYOUT.size % 8
    circuit = node_set()
    circuit.bits = wrong
    with refused() as refusal:
        server.patching.EvaluateNodes(request(circuit))
    assert refusal.violation[0] == "circuits[0].bits"
    assert detail in refusal.violation[1]


def without_corrupted() -> dict[str, Any]:
    return {"task": task_pb2.Task(prompts=task_pb2.PromptTask(clean=token_ids((1, 2))))}


@pytest.mark.parametrize(
    ("asked", "field", "detail"),
    [
        (pb.EvaluateNodesRequest(), "task", "is missing"),
        (request(circuit_pb2.NodeSet(bits=bits(FULL))), "circuits[0].layout", "is missing"),
        (request(node_set(), metric="l2"), "metric", "got 'l2'"),
        (request(node_set(), precision="int8"), "precision", "rounds activations"),
        (request(node_set(), **without_corrupted()), "task.corrupted", "needs corrupted prompts"),
    ],
)
def test_bad_requests(
    server: RunningServer, engine: FakeEngine, asked: pb.EvaluateNodesRequest, field: str, detail: str
) -> None:
    with refused() as refusal:
        server.patching.EvaluateNodes(asked)
    assert refusal.violation[0] == field
    assert detail in refusal.violation[1]
    assert engine.opened == []


def test_no_corrupted_prompts_are_needed_without_resample(server: RunningServer) -> None:
    asked = request(node_set(), ablation="zero", **without_corrupted())
    assert len(server.patching.EvaluateNodes(asked).values) == 1


def test_a_figure_that_is_not_finite_fails(server: RunningServer, engine: FakeEngine) -> None:
    broken = MaskFigures(float("nan"), 0.5)
    engine.operations[MeasureMasks] = lambda operation: [broken] * len(operation.masks)
    with refused() as refusal:
        server.patching.EvaluateNodes(request(node_set()))
    assert refusal.info.reason == "NON_FINITE_METRIC"
    engine.operations[MeasureMasks] = TOY.answer
    engine.failures["bad"].run = errors.NonFiniteMetricError("the metric is nan")
    with refused() as refusal:
        server.patching.EvaluateNodes(request(node_set(), model="bad"))
    assert refusal.message == "the metric is nan"
    assert server.patching.EvaluateNodes(request(node_set())).full == pb.NodeFigures(kl=0, exact_match=0.5)
