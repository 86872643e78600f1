"""Sessions: a model and a task kept ready on a server, for searches that run on the client's side."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

from pahq.v1 import patching_pb2 as pb
from pahq.v1.jobs_pb2 import Objective

from pahq_client import _requests as requests
from pahq_client import _responses as responses
from pahq_client import checks
from pahq_client._calls import CLOSE, COMMIT, SCORE, Caller, Steps
from pahq_client._transport import Transport
from pahq_client.circuit import Circuit, check_same_model
from pahq_client.errors import InvalidRequest, NotFound, OtherModel, ServerFault, Unavailable
from pahq_client.graph import Edge

SCORE_SECONDS = 24 * 3600.0
CLOSE_SECONDS = 5.0

Edges: TypeAlias = Circuit | Iterable[str | Edge]
"""Edges, or their names, in any order."""


class SessionBase:
    """What the blocking and the asynchronous session have in common; described at `Session`."""

    def __init__(self, calls: SessionCalls) -> None:
        self._calls = calls
        self.name, self.graph = calls.name, calls.graph
        self.full, self.empty = calls.full, calls.empty
        self.num_edges_total = calls.num_edges_total
        self.model, self.metric, self.ablation = calls.model, calls.metric, calls.ablation
        self.precision, self.warnings = calls.precision, calls.warnings

    @property
    def edges(self) -> tuple[str, ...]:
        """All edges of the base circuit, in the order of `Graph.edge_names`, the reverse of ACDC's."""
        return self._calls.edges

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, server={self._calls.caller.address!r})"


class Session(SessionBase):
    """A model and a task, kept ready on a server to measure circuits; made by `Client.session`.

    A context manager, and safe to use from several threads: calls go one after another. Valid while its
    client is open. The server closes a session that is not used for some time; every call then raises
    NotFound. Like those of the client, calls may also raise Unavailable, ResourceExhausted and ServerFault.

    Attributes:
        name: resource name.
        graph: the full graph, including how key/value heads are treated.
        num_edges_total: number of edges of the full graph.
        full: the metric of the full model. Lower is better.
        empty: the metric of the empty circuit.
        model, metric, ablation, precision: what the session was opened with.
        warnings: what may mislead about the scores, each with what to do.
    """

    def __init__(self, transport: Transport, calls: SessionCalls) -> None:
        super().__init__(calls)
        self._transport = transport
        self._lock = threading.Lock()  # no commit between the chunks of a list

    def score(self, circuits: Iterable[Edges], *, allow_other_model: bool = False) -> list[float]:
        """The metric of every circuit, in order. A circuit is given by all of its edges.

        Args:
            circuits: the circuits to measure.
            allow_other_model: whether a Circuit may have been found in another model.

        Raises:
            InvalidRequest: an edge is not in the graph.
            OtherModel: a Circuit was found in another model.
            JobFailed: a metric is not finite.
        """
        with self._lock:
            return self._transport.run(self._calls.score(circuits, allow_other_model))

    def score_removed(self, removals: Iterable[Edges], *, allow_other_model: bool = False) -> list[float]:
        """The metric of the base circuit without these edges, for every set of them, in order.

        Cheaper than `score`: only what differs from the base circuit is computed. The last digits may
        differ from those of `score`, and more under precision policies that round: `score` computes whole
        circuits in full precision. Policies that promote a head choose it by the last edge of a set.

        Args:
            removals: sets of edges.
            allow_other_model: whether a Circuit may have been found in another model.

        Raises:
            InvalidRequest: an edge is not in the base circuit.
            OtherModel: a Circuit was found in another model.
            JobFailed: a metric is not finite.
        """
        with self._lock:
            return self._transport.run(self._calls.score_removed(removals, allow_other_model))

    def commit(
        self,
        *,
        removed: Edges | None = None,
        edges: Edges | None = None,
        allow_other_model: bool = False,
    ) -> None:
        """Sets the base circuit. It is the full graph at first.

        Args:
            removed: edges that the base circuit loses.
            edges: or all of its edges.
            allow_other_model: whether a Circuit may have been found in another model.

        Raises:
            InvalidRequest: an edge is not there, or not exactly one of the arguments is given.
            OtherModel: a Circuit was found in another model.
            Conflict: somebody else set the session's base circuit at the same time.
        """
        with self._lock:
            self._transport.run(self._calls.commit(removed, edges, allow_other_model))

    def close(self) -> None:
        """Closes the session; no effect if it is gone. If the server cannot be reached, it expires there."""
        self._transport.run(self._calls.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SessionCalls:
    """What can be done with a session, as steps; described at `Session`. Run one at a time."""

    def __init__(self, caller: Caller, opened: pb.Session, asked: Objective) -> None:
        self.name, self.graph = responses.resource_name(opened.name), responses.graph(opened.graph)
        self.full, self.empty = responses.scores((opened.metric_full, opened.metric_empty))
        self.num_edges_total = opened.num_edges_total
        self.warnings = responses.warnings(opened.warnings)
        self.model, self.metric, self.ablation = asked.model, asked.metric, asked.ablation
        self.precision, self._revision = asked.precision, opened.model_revision
        self.caller, self._most = caller, opened.max_circuits
        self._edges: tuple[str, ...] | None = None  # None: all

    @property
    def edges(self) -> tuple[str, ...]:
        if self._edges is None:
            # Counted first: listing the names of a huge graph that the server made up would take the memory.
            _check_counts("edges", self.num_edges_total, self.graph.num_edges)
            self._edges = tuple(self.graph.edge_names())
        return self._edges

    def score(self, circuits: Iterable[Edges], allow_other_model: bool) -> Steps[list[float]]:
        return (yield from self._score("circuits", circuits, True, allow_other_model))

    def score_removed(self, removals: Iterable[Edges], allow_other_model: bool) -> Steps[list[float]]:
        return (yield from self._score("removals", removals, False, allow_other_model))

    def commit(self, removed: Edges | None, edges: Edges | None, allow_other_model: bool) -> Steps[None]:
        if (removed is None) == (edges is None):
            raise InvalidRequest("commit", "takes either removed or edges")
        if removed is not None:
            yield from self._commit("removed", removed, False, allow_other_model)
        elif edges is not None:
            yield from self._commit("edges", edges, True, allow_other_model)

    def close(self) -> Steps[None]:
        with suppress(NotFound, Unavailable):
            yield from self.caller.call(CLOSE, pb.CloseSessionRequest(name=self.name), CLOSE_SECONDS)

    def _names(self, field: str, edges: Edges, allow_other_model: bool) -> list[str]:
        """Returns the names of edges. Raises OtherModel for a circuit of another model."""
        if isinstance(edges, Circuit) and not checks.flag("allow_other_model", allow_other_model):
            check_same_model(edges, self.graph, self._revision)
        return requests.edge_set(field, edges)

    def _score(
        self, field: str, sets: Iterable[Edges], complete: bool, allow_other_model: bool
    ) -> Steps[list[float]]:
        named = (
            self._names(f"{field}[{i}]", edges, allow_other_model)
            for i, edges in enumerate(checks.items(field, sets))
        )
        circuits = [requests.circuit(names, complete) for names in named]
        metrics: list[float] = []
        for chunk in requests.chunks(circuits, self._most):
            try:
                metrics += yield from self._measure(chunk)
            except InvalidRequest as error:
                raise renamed(error, field, len(metrics)) from None
        return metrics

    def _measure(self, chunk: list[pb.SessionCircuit]) -> Steps[list[float]]:
        request = pb.ScoreCircuitsRequest(name=self.name, circuits=chunk)
        response = yield from self.caller.call(SCORE, request, SCORE_SECONDS)
        _check_counts("metrics", len(response.metrics), len(chunk))
        return responses.scores(response.metrics)

    def _commit(self, field: str, edges: Edges, complete: bool, allow_other_model: bool) -> Steps[None]:
        names = self._names(field, edges, allow_other_model)
        request = pb.CommitCircuitRequest(name=self.name, circuit=requests.circuit(names, complete))
        try:
            response = yield from self.caller.call(COMMIT, request)
        except InvalidRequest as error:
            raise InvalidRequest(field, error.detail) from None
        self._edges = self._base_after(set(names), complete)
        _check_counts("edges", response.num_edges, len(self._edges))

    def _base_after(self, names: set[str], complete: bool) -> tuple[str, ...]:
        candidates = self.graph.edge_names() if complete else self.edges
        return tuple(edge for edge in candidates if (edge in names) is complete)


def _check_counts(what: str, server: int, here: int) -> None:
    if server != here:
        raise ServerFault(f"the server counts {server} {what}, this client {here}")


def renamed(error: InvalidRequest, field: str, offset: int) -> InvalidRequest:
    """Returns an error with the index in the caller's list: the server has seen only a chunk of that.

    Args:
        error: about ``circuits[3].edges`` of a message, for example.
        field: the caller's name of the list.
        offset: how many circuits were in earlier messages.
    """
    match = re.match(r"circuits\[(\d{1,9})\]", error.field)
    if not match:
        return error
    field = f"{field}[{offset + int(match[1])}]"
    if isinstance(error, OtherModel):
        return OtherModel(error.circuit, error.model, error.detail, field)
    return InvalidRequest(field, error.detail)
