"""Every call of the patching service, as it should go, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import grpc
import pytest
from helpers.api_server import RunningServer, objective, refused
from helpers.fake_engine import GRAPH, PATIENCE_S, FakeEngine
from helpers.scores import SetScore
from helpers.topology import edge_names
from pahq.v1 import circuit_pb2
from pahq.v1 import patching_pb2 as pb

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.errors import NonFiniteMetricError

Code = grpc.StatusCode
EDGES = edge_names(GRAPH)
SCORE = SetScore(GRAPH, 1)


class Recorder:
    """Scores passes and remembers them."""

    def __init__(self) -> None:
        self.passes: list[PatchedPass] = []

    def __call__(self, patched: PatchedPass) -> float:
        self.passes.append(patched)
        return SCORE(patched)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(recorder: Recorder) -> FakeEngine:
    return FakeEngine(score=recorder)


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[RunningServer]:
    with RunningServer(engine, window=4) as running:
        yield running


def open_session(server: RunningServer, **changes: Any) -> pb.Session:
    request = pb.OpenSessionRequest(objective=objective(**changes))
    session: pb.Session = server.patching.OpenSession(request, timeout=PATIENCE_S).session
    return session


def removed(names: Iterable[str]) -> pb.SessionCircuit:
    return pb.SessionCircuit(removed=pb.EdgeList(names=names))


def complete(names: Iterable[str]) -> pb.SessionCircuit:
    return pb.SessionCircuit(edges=pb.EdgeList(names=names))


def score(server: RunningServer, name: str, *circuits: pb.SessionCircuit) -> list[float]:
    request = pb.ScoreCircuitsRequest(name=name, circuits=circuits)
    return list(server.patching.ScoreCircuits(request, timeout=PATIENCE_S).metrics)


def commit(server: RunningServer, name: str, circuit: pb.SessionCircuit) -> int:
    request = pb.CommitCircuitRequest(name=name, circuit=circuit)
    num_edges: int = server.patching.CommitCircuit(request, timeout=PATIENCE_S).num_edges
    return num_edges


def without(base: Iterable[str], cut: Collection[str]) -> set[str]:
    return {edge for edge in base if edge not in cut}


def subsets(seed: int, count: int, of: Collection[str] = EDGES) -> list[list[str]]:
    chance = random.Random(seed)
    return [chance.sample(sorted(of), chance.randrange(len(of) + 1)) for _ in range(count)]


def test_open(server: RunningServer, engine: FakeEngine) -> None:
    session = open_session(server)
    assert session.name.startswith("users/local/sessions/")
    assert session.graph == circuit_pb2.Graph(layers=2, heads=2, kv_heads=2, kv_receivers="group", mlps=True)
    assert session.num_edges_total == GRAPH.num_edges == len(EDGES)
    assert (session.metric_full, session.metric_empty) == (SCORE.of_names(EDGES), SCORE.of_names([]))
    assert (session.max_circuits, session.idle_timeout.ToSeconds()) == (4096, 600)
    assert len(engine.open_states) == 1


def test_scores_come_in_order_in_both_forms(server: RunningServer, engine: FakeEngine) -> None:
    name = open_session(server).name
    some, others = subsets(1, 9), subsets(2, 6)
    circuits = [*map(complete, some), *map(removed, others)]
    expected = [*map(SCORE.of_names, some), *(SCORE.of_names(without(EDGES, cut)) for cut in others)]
    assert len(set(expected)) > 3
    assert score(server, name, *circuits) == expected
    backwards = expected[::-1]
    assert score(server, name, *circuits[::-1]) == backwards
    assert score(server, name) == []
    assert len(engine.opened) == 1  # the passes before the first score are not repeated


def test_passes_are_the_documented_ones(server: RunningServer, recorder: Recorder) -> None:
    """Relative to one base circuit per committed circuit, or from scratch."""
    name = open_session(server).name
    full, empty = recorder.passes
    assert full.removed == empty.removed == ()
    assert (full.circuit.num_kept, empty.circuit.num_kept) == (len(EDGES), 0)
    # Repeated names count once, in any order.
    score(server, name, removed([EDGES[7], EDGES[3], EDGES[7]]), removed([]), complete(EDGES[:2]))
    score(server, name, removed([EDGES[5]]))
    cut, nothing, scratch, again = recorder.passes[2:]
    assert cut.base_circuit is nothing.base_circuit is again.base_circuit is full.base_circuit
    assert (cut.removed, nothing.removed, again.removed) == ((3, 7), (), (5,))
    assert (scratch.removed, scratch.base_circuit.parent, scratch.circuit.num_kept) == ((), None, 2)


def test_a_committed_circuit_is_the_base(server: RunningServer, recorder: Recorder) -> None:
    name = open_session(server).name
    base = without(EDGES, EDGES[:5])
    assert commit(server, name, removed(EDGES[:5])) == len(base)
    cuts = subsets(3, 6, base)
    expected = [SCORE.of_names(without(base, cut)) for cut in cuts]
    assert score(server, name, *map(removed, cuts)) == expected
    (base_circuit,) = {id(each.base_circuit): each.base_circuit for each in recorder.passes[-6:]}.values()
    assert (base_circuit.circuit.num_kept, base_circuit.parent) == (len(base), None)
    # The same circuit again keeps what the engine knows of it; edges may come back.
    assert commit(server, name, complete(base)) == len(base)
    assert score(server, name, removed([])) == [SCORE.of_names(base)]
    assert recorder.passes[-1].base_circuit is base_circuit
    assert commit(server, name, complete(EDGES[:9])) == 9
    assert score(server, name, removed(EDGES[:2])) == [SCORE.of_names(EDGES[2:9])]
    assert recorder.passes[-1].base_circuit is not base_circuit


def test_a_call_has_the_base_of_its_arrival(server: RunningServer, engine: FakeEngine) -> None:
    name = open_session(server).name
    engine.wait_for_call()
    engine.hold()
    requests = [pb.ScoreCircuitsRequest(name=name, circuits=[removed([EDGES[i]])]) for i in (3, 4)]
    first = server.patching.ScoreCircuits.future(requests[0], timeout=PATIENCE_S)
    engine.wait_for_call()
    commit(server, name, removed([EDGES[0]]))
    second = server.patching.ScoreCircuits.future(requests[1], timeout=PATIENCE_S)
    engine.release()
    assert list(first.result().metrics) == [SCORE.of_names(without(EDGES, [EDGES[3]]))]
    assert list(second.result().metrics) == [SCORE.of_names(without(EDGES, [EDGES[0], EDGES[4]]))]


@pytest.mark.parametrize("model", ["nonsense", ""])
def test_open_checks_as_a_job_does(model: str, server: RunningServer) -> None:
    with refused() as refusal:
        open_session(server, model=model)
    assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    with refused() as refusal:
        open_session(server, metric="perplexity")
    assert refusal.violation == ("metric", "unknown metric 'perplexity'")


@pytest.mark.parametrize(
    ("circuit", "field", "detail"),
    [
        (pb.SessionCircuit(), "", "has neither removed nor edges"),
        (removed([EDGES[3], "a9.h9->m0"]), ".removed", "the graph has no sender 'a9.h9'"),
        (complete(["m0->m1", "m1->m0"]), ".edges", "'m1->m0': m1 does not come before m0"),
        (complete(["m0"]), ".edges", "'m0' is not of the form sender->receiver"),
        (removed([EDGES[3], EDGES[0]]), ".removed", f"the base circuit has no edge {EDGES[0]!r}"),
    ],
)
def test_edges_that_are_not_there(
    circuit: pb.SessionCircuit, field: str, detail: str, server: RunningServer, recorder: Recorder
) -> None:
    name = open_session(server).name
    commit(server, name, removed([EDGES[0]]))
    with refused() as refusal:
        score(server, name, removed([]), circuit)
    assert refusal.code is Code.INVALID_ARGUMENT
    assert refusal.violation == (f"circuits[1]{field}", detail)
    with refused() as refusal:
        commit(server, name, circuit)
    assert refusal.violation == (f"circuit{field}", detail)
    assert len(recorder.passes) == 2  # of the opening
    assert score(server, name, removed([])) == [SCORE.of_names(EDGES[1:])]  # the base is as it was


def test_a_failing_call_fails_alone(server: RunningServer, engine: FakeEngine) -> None:
    name = open_session(server).name
    engine.failures["toy"].run = NonFiniteMetricError("the metric is nan")
    with refused() as refusal:
        score(server, name, removed([]))
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "NON_FINITE_METRIC")
    assert refusal.message == "the metric is nan"
    engine.failures["toy"].run = None
    engine.whole_call_fails = RuntimeError("secret beads")
    with refused() as refusal:
        score(server, name, removed([]))
    assert (refusal.code, refusal.message) == (Code.INTERNAL, "internal error; see the server's log")
    engine.whole_call_fails = None
    assert score(server, name, removed([])) == [SCORE.of_names(EDGES)]


@pytest.mark.parametrize("name", ["", "users/local/sessions/none", "users/local/jobs/none"])
def test_unknown_sessions(name: str, server: RunningServer) -> None:
    calls: list[tuple[Any, Any]] = [
        (server.patching.ScoreCircuits, pb.ScoreCircuitsRequest(name=name)),
        (server.patching.CommitCircuit, pb.CommitCircuitRequest(name=name)),
        (server.patching.CloseSession, pb.CloseSessionRequest(name=name)),
    ]
    for call, request in calls:
        with refused() as refusal:
            call(request)
        assert (refusal.code, refusal.message) == (Code.NOT_FOUND, f"session {name!r} not found")
