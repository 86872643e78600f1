"""Sessions: what is sent, in which portions, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.graphs import graphs
from helpers.topology import edge_names
from hypothesis import given
from pahq.v1 import circuit_pb2

from pahq_client import (
    Circuit,
    Client,
    Conflict,
    Edge,
    Graph,
    InvalidRequest,
    JobFailed,
    NotFound,
    ResourceExhausted,
    ServerFault,
    Session,
    Unavailable,
    _requests,
)
from pahq_server.core.graph import Graph as ServerGraph

from .fake_server import Code, FakeServer, Fault

# Of the fake server's graph, in order.
EDGES = (
    *("input->a0.h0<q>", "input->a0.h1<q>", "input->a0.g0<k>", "input->a0.g0<v>"),
    *("input->m0", "a0.h0->m0", "a0.h1->m0"),
    *("input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits"),
)


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.session("demo", "ioi") as opened:
        yield opened


@given(graphs())
def test_names_of_edges(graph: ServerGraph) -> None:
    """The client's order is the server's."""
    fields = ("layers", "heads", "kv_heads", "kv_receivers", "parallel", "mlps")
    known = Graph(**{name: getattr(graph, name) for name in fields})
    assert list(known.edge_names()) == edge_names(graph)


def test_open(client: Client, server: FakeServer) -> None:
    options = {"metric": "l2", "ablation": "zero", "kv_receivers": "query", "precision": "bf16"}
    with client.session("demo", "ioi", **options) as session:  # type: ignore[arg-type]
        assert (session.full, session.empty, session.num_edges_total) == (0.0, 4.0, 11)
        assert session.graph == Graph(1, 2, 1, "group", False, True)
        assert session.edges == EDGES
        assert session.name == "users/me/sessions/0"
        assert repr(session) == f"Session('users/me/sessions/0', server='{server.address}')"
    asked = server.called("OpenSession")[0].objective
    assert (asked.model, asked.task.builtin.name) == ("demo", "ioi")
    assert {name: getattr(asked, name) for name in options} == options
    assert [request.name for request in server.called("CloseSession")] == [session.name]


def test_defaults_are_those_of_a_discovery(client: Client, session: Session, server: FakeServer) -> None:
    client.submit("demo", "ioi")
    (opened,) = server.called("OpenSession")
    assert opened.objective == server.called("CreateJob")[0].spec.objective


def test_score(session: Session, server: FakeServer, circuit: Circuit) -> None:
    """Circuits come in whatever holds edges."""
    sets = [EDGES[:2], {EDGES[1]}, [Edge.parse(EDGES[0]), EDGES[3]], circuit, (), dict.fromkeys(EDGES).keys()]
    assert session.score(sets, allow_other_model=True) == [2, 1, 2, 4, 0, 11]
    assert session.score_removed(set(EDGES[:i]) for i in (1, 3)) == [10, 8]
    assert session.score([]) == session.score_removed([]) == []
    requests = server.called("ScoreCircuits")
    assert [len(request.circuits) for request in requests] == [5, 1, 2]
    assert list(requests[0].circuits[2].edges.names) == [EDGES[0], EDGES[3]]
    assert sorted(requests[2].circuits[1].removed.names) == sorted(EDGES[:3])


def test_repeated_edges_are_sent_once(session: Session) -> None:
    assert session.score([[EDGES[0], Edge.parse(EDGES[0])]]) == [1]


def test_long_lists_are_sent_in_portions(
    session: Session, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [EDGES[:size] for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0)]
    assert session.score(sets) == [len(names) for names in sets]
    assert [len(request.circuits) for request in server.called("ScoreCircuits")] == [5, 5, 2]
    monkeypatch.setattr(_requests, "CHUNK_BYTES", 100)
    server.calls.clear()
    assert session.score(sets) == [len(names) for names in sets]
    requests = server.called("ScoreCircuits")
    assert sum(len(request.circuits) for request in requests) == len(sets)
    # Only what is too large by itself exceeds the limit.
    assert all(request.ByteSize() <= 140 or len(request.circuits) == 1 for request in requests)
    assert len(requests) > 5


def test_commit(session: Session, server: FakeServer) -> None:
    session.commit(removed=[EDGES[2], EDGES[0]])
    assert session.edges == (EDGES[1], *EDGES[3:])
    session.commit(removed={EDGES[5]})
    assert session.edges == (EDGES[1], EDGES[3], EDGES[4], *EDGES[6:])
    session.commit(edges=[EDGES[7], Edge.parse(EDGES[2])])
    assert session.edges == (EDGES[2], EDGES[7])
    session.commit(edges=())
    assert session.edges == ()
    sent = [request.circuit for request in server.called("CommitCircuit")]
    assert [circuit.WhichOneof("circuit") for circuit in sent] == ["removed", "removed", "edges", "edges"]
    assert list(sent[0].removed.names) == [EDGES[2], EDGES[0]]


def test_a_refused_commit_changes_nothing(session: Session, server: FakeServer) -> None:
    for fault, kind in (
        (invalid("circuit.removed", "no such edge"), InvalidRequest),
        (Fault(Code.FAILED_PRECONDITION, "too slow", "CONFLICT"), Conflict),
    ):
        server.faults["CommitCircuit"] = [fault]
        with pytest.raises(kind):
            session.commit(removed=EDGES[:1])
        assert session.edges == EDGES


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda s: s.score("a"), "circuits"),
        (lambda s: s.score(EDGES), "circuits[0]"),
        (lambda s: s.score([[], 3]), "circuits[1]"),
        (lambda s: s.score([[], [3]]), "circuits[1]"),
        (lambda s: s.score([{"a->b": 1}]), "circuits[0]"),
        (lambda s: s.score_removed([EDGES[:1], None]), "removals[1]"),
        (lambda s: s.commit(), "commit"),
        (lambda s: s.commit(removed=[], edges=[]), "commit"),
        (lambda s: s.commit(removed="input->m0"), "removed"),
        (lambda s: s.commit(edges=[b"input->m0"]), "edges"),
    ],
)
def test_wrong_types(call: Callable[[Any], Any], field: str, session: Session, server: FakeServer) -> None:
    with pytest.raises(InvalidRequest) as raised:
        call(session)
    assert raised.value.field == field
    assert not server.called("ScoreCircuits")
    assert not server.called("CommitCircuit")


def invalid(field: str, detail: str) -> Fault:
    return Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", violation=(field, detail))


def test_errors_name_what_the_caller_gave(session: Session, server: FakeServer) -> None:
    """The server counts circuits of one call, which is a part of the caller's list."""
    server.faults["ScoreCircuits"] = [None, invalid("circuits[3].edges", "no such edge")]
    with pytest.raises(InvalidRequest) as raised:
        session.score([EDGES] * 10)
    assert (raised.value.field, raised.value.detail) == ("circuits[8]", "no such edge")
    server.faults["ScoreCircuits"] = [invalid("circuits[1].removed", "no such edge")]
    with pytest.raises(InvalidRequest, match=r"removals\[1\]: no such edge"):
        session.score_removed([EDGES] * 2)
    server.faults["ScoreCircuits"] = [invalid("circuits", "too many")]
    with pytest.raises(InvalidRequest, match="circuits: too many"):
        session.score([EDGES])
    server.faults["CommitCircuit"] = [invalid("circuit.removed", "no such edge")]
    with pytest.raises(InvalidRequest, match="removed: no such edge"):
        session.commit(removed=["m9->logits"])


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(Code.NOT_FOUND, "it expired", "NOT_FOUND", {"name": "session"}), NotFound),
        (Fault(Code.FAILED_PRECONDITION, "nan", "NON_FINITE_METRIC"), JobFailed),
        (Fault(Code.RESOURCE_EXHAUSTED, "full", "RESOURCE_EXHAUSTED", retry_s=1.0), ResourceExhausted),
        (Fault(Code.INTERNAL, "oops"), ServerFault),
    ],
)
def test_errors_are_typed(
    fault: Fault, kind: type[Exception], client: Client, session: Session, server: FakeServer
) -> None:
    server.faults["OpenSession"] = [fault]
    with pytest.raises(kind):
        client.session("demo", "ioi")
    server.faults["ScoreCircuits"] = [fault]
    with pytest.raises(kind):
        session.score([EDGES])
    assert session.score([EDGES]) == [11]


def test_scores_are_asked_for_again_after_an_interruption(session: Session, server: FakeServer) -> None:
    down = Fault(Code.UNAVAILABLE, "down")
    server.faults["ScoreCircuits"] = [down, down]
    assert session.score([EDGES]) == [11]
    server.faults["ScoreCircuits"] = [down] * 5
    with pytest.raises(Unavailable):
        session.score([EDGES])


def test_a_commit_is_not_repeated(session: Session, server: FakeServer) -> None:
    server.faults["CommitCircuit"] = [Fault(Code.UNAVAILABLE, "down")]
    with pytest.raises(Unavailable):
        session.commit(removed=EDGES[:1])


def test_closing_what_is_gone(client: Client, server: FakeServer) -> None:
    for fault in (Fault(Code.NOT_FOUND, "it expired", "NOT_FOUND"), Fault(Code.UNAVAILABLE, "down")):
        server.faults["CloseSession"] = [fault]
        with client.session("demo", "ioi"):
            pass
    session = client.session("demo", "ioi")
    session.close()
    session.close()
    with pytest.raises(ZeroDivisionError), client.session("demo", "ioi"):
        raise ZeroDivisionError
    assert len(server.called("CloseSession")) == 5


def test_a_server_that_breaks_the_protocol(client: Client, server: FakeServer) -> None:
    server.session.num_edges_total = 12
    with pytest.raises(ServerFault, match="12 edges, this client 11"):
        print(client.session("demo", "ioi").edges)
    server.session.num_edges_total, server.base = 11, 20
    with pytest.raises(ServerFault, match="19 edges, this client 10"):
        client.session("demo", "ioi").commit(removed=EDGES[:1])
    server.unanswered = 1
    with pytest.raises(ServerFault, match="1 metrics, this client 2"):
        client.session("demo", "ioi").score([EDGES, EDGES])


def test_a_graph_without_mlps(client: Client, server: FakeServer) -> None:
    server.session.graph.CopyFrom(circuit_pb2.Graph(layers=1, heads=1, kv_heads=1, kv_receivers="group"))
    server.session.num_edges_total = 5
    edges = client.session("demo", "ioi").edges
    assert edges == (*(f"input->a0.h0<{kind}>" for kind in "qkv"), "input->logits", "a0.h0->logits")


def test_threads_take_turns(threads_client: Client, server: FakeServer) -> None:
    """No commit of one thread comes between the portions of another's list."""
    session = threads_client.session("demo", "ioi")
    scorer = threading.Thread(target=lambda: session.score([EDGES] * 200))
    scorer.start()
    session.commit(edges=EDGES)
    scorer.join()
    names = [name for name, _, _ in server.calls if name in ("ScoreCircuits", "CommitCircuit")]
    assert names.index("CommitCircuit") in (0, 40)
    assert len(names) == 41
