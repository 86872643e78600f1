"""A session on a server: circuits thought up here, measured there."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from pahq.v1 import patching_pb2 as pb

from pahq_client import checks, wire
from pahq_client.circuit import Circuit
from pahq_client.elements import Edge
from pahq_client.errors import InvalidRequest, NotFound, ServerFault, Unavailable
from pahq_client.patience import Backoff
from pahq_client.transport import Transport

SCORE_SECONDS = 24 * 3600.0
CLOSE_SECONDS = 5.0
# Of one message: below the limit of any server, and soon on its way.
CHUNK_BYTES = 3 << 20

Edges = Circuit | Iterable[str | Edge]
"""Edges, or their names, in any order."""


class Session:
    """A model and a task, kept ready on a server to measure circuits; made by `Client.session`.

    A context manager, and safe to use from several threads: calls go one after another. Valid while its
    client is open. The server closes a session that is not used for some time. Every call may then raise
    NotFound, and as those of the client Unavailable, ResourceExhausted and ServerFault.

    Args:
        name: resource name.
        graph: the full graph.
        num_edges_total: its number of edges.
        full: the metric of the full model. Lower is better.
        empty: the metric of the empty circuit.
    """

    def __init__(self, transport: Transport, opened: pb.Session, backoff: Backoff) -> None:
        self.name, self.graph = opened.name, wire.graph(opened.graph)
        self.full, self.empty = opened.metric_full, opened.metric_empty
        self.num_edges_total = opened.num_edges_total
        self._transport, self._most = transport, opened.max_hypotheses
        self._retries = Backoff(attempts=2, first_s=backoff.first_s)
        self._edges: tuple[str, ...] | None = None  # None: all
        self._lock = threading.Lock()

    @property
    def edges(self) -> tuple[str, ...]:
        """All edges of the base circuit, in the order of `Graph.edge_names`: backwards it is ACDC's."""
        if self._edges is None:
            self._edges = tuple(self.graph.edge_names())
            _check_counts("edges", self.num_edges_total, len(self._edges))
        return self._edges

    def score(self, circuits: Iterable[Edges]) -> list[float]:
        """The metric of every circuit, in order. A circuit is given by all of its edges.

        Raises:
            InvalidRequest: an edge is not in the graph.
            JobFailed: a metric is not finite.
        """
        return self._score("circuits", circuits, complete=True)

    def score_removed(self, removals: Iterable[Edges]) -> list[float]:
        """The metric of the base circuit without these edges, for every set of them, in order.

        Cheaper than `score`: what does not differ from the base is not computed again. The last digits may
        differ from those of `score`, and more under precision policies that round: `score` computes whole
        circuits in full precision. Policies that promote a head choose it by the last edge of a set.

        Raises:
            InvalidRequest: an edge is not in the base circuit.
            JobFailed: a metric is not finite.
        """
        return self._score("removals", removals, complete=False)

    def commit(self, *, removed: Edges | None = None, edges: Edges | None = None) -> None:
        """Sets the base circuit. It is the full graph at first.

        Args:
            removed: edges that the base circuit loses.
            edges: or all of its edges.

        Raises:
            InvalidRequest: an edge is not there, or not exactly one of the arguments is given.
            Conflict: somebody else set the session's base circuit at the same time.
        """
        if (removed is None) == (edges is None):
            raise InvalidRequest("commit", "takes either removed or edges")
        if removed is not None:
            self._commit("removed", removed, complete=False)
        elif edges is not None:
            self._commit("edges", edges, complete=True)

    def close(self) -> None:
        """Closes the session; no effect if it is gone. If the server cannot be reached, it expires there."""
        request = pb.CloseSessionRequest(name=self.name)
        with suppress(NotFound, Unavailable):
            self._transport.call(self._transport.patching.CloseSession, request, CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({self.name!r}, server={self._transport.address!r})"

    def _score(self, field: str, sets: Iterable[Edges], complete: bool) -> list[float]:
        named = (wire.edge_set(f"{field}[{i}]", edges) for i, edges in enumerate(checks.items(field, sets)))
        hypotheses = [wire.hypothesis(names, complete) for names in named]
        metrics: list[float] = []
        with self._lock:  # no commit in between
            for chunk in self._chunks(hypotheses):
                try:
                    metrics += self._retries.retry(partial(self._measure, chunk))
                except InvalidRequest as error:
                    raise _rename(error, field, len(metrics)) from None
        return metrics

    def _chunks(self, hypotheses: list[pb.Hypothesis]) -> Iterator[list[pb.Hypothesis]]:
        """Hypotheses, as many at a time as fit into one message."""
        chunk: list[pb.Hypothesis] = []
        size = 0
        for hypothesis in hypotheses:
            added = hypothesis.ByteSize()
            if chunk and (len(chunk) >= self._most or size + added > CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(hypothesis)
            size += added
        if chunk:
            yield chunk

    def _measure(self, chunk: list[pb.Hypothesis]) -> list[float]:
        request = pb.ScoreCircuitsRequest(name=self.name, hypotheses=chunk)
        response = self._transport.call(self._transport.patching.ScoreCircuits, request, SCORE_SECONDS)
        _check_counts("metrics", len(response.metrics), len(chunk))
        return list(response.metrics)

    def _commit(self, field: str, edges: Edges, complete: bool) -> None:
        names = wire.edge_set(field, edges)
        request = pb.CommitCircuitRequest(name=self.name, circuit=wire.hypothesis(names, complete))
        with self._lock:
            try:
                response = self._transport.call(self._transport.patching.CommitCircuit, request)
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


def _rename(error: InvalidRequest, field: str, offset: int) -> InvalidRequest:
    """The error in terms of the caller's list, of which the server has seen a part."""
    match = re.match(r"hypotheses\[(\d+)\]", error.field)
    return InvalidRequest(f"{field}[{offset + int(match[1])}]", error.detail) if match else error
