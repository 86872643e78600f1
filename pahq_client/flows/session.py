"""A session on a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeAlias

from pahq.v1 import patching_pb2 as pb
from pahq.v1.discovery_pb2 import Objective

from pahq_client import checks
from pahq_client import _calls as rpcs
from pahq_client import _responses as wire
from pahq_client.circuit import Circuit
from pahq_client.comparison import check_same_model
from pahq_client.elements import Edge
from pahq_client.errors import InvalidRequest, NotFound, ServerFault, Unavailable
from pahq_client._calls import Steps as Flow
from pahq_client._calls import Caller as Calls

SCORE_SECONDS = 24 * 3600.0
CLOSE_SECONDS = 5.0
# Of one message: below the limit of any server, and soon on its way.
CHUNK_BYTES = 3 << 20

Edges: TypeAlias = Circuit | Iterable[str | Edge]
"""Edges, or their names, in any order."""


class SessionFlows:
    """What can be done with a session; described at `Session`. One flow at a time."""

    def __init__(self, calls: Calls, opened: pb.Session, asked: Objective) -> None:
        self.name, self.graph = wire.resource_name(opened.name), wire.graph(opened.graph)
        self.full, self.empty = wire.scores((opened.metric_full, opened.metric_empty))
        self.num_edges_total = opened.num_edges_total
        self.warnings = tuple(opened.warnings)
        self.model, self.metric, self.ablation = asked.model, asked.metric, asked.ablation
        self.precision, self._revision = asked.precision, opened.model_revision
        self.calls, self._most = calls, opened.max_hypotheses
        self._edges: tuple[str, ...] | None = None  # None: all

    @property
    def edges(self) -> tuple[str, ...]:
        if self._edges is None:
            # Counted first: a graph that is not what the server says is not worth the memory of its names.
            _check_counts("edges", self.num_edges_total, self.graph.num_edges)
            self._edges = tuple(self.graph.edge_names())
        return self._edges

    def score(self, circuits: Iterable[Edges], allow_other_model: bool) -> Flow[list[float]]:
        return (yield from self._score("circuits", circuits, True, allow_other_model))

    def score_removed(self, removals: Iterable[Edges], allow_other_model: bool) -> Flow[list[float]]:
        return (yield from self._score("removals", removals, False, allow_other_model))

    def commit(self, removed: Edges | None, edges: Edges | None, allow_other_model: bool) -> Flow[None]:
        if (removed is None) == (edges is None):
            raise InvalidRequest("commit", "takes either removed or edges")
        if removed is not None:
            yield from self._commit("removed", removed, False, allow_other_model)
        elif edges is not None:
            yield from self._commit("edges", edges, True, allow_other_model)

    def close(self) -> Flow[None]:
        with suppress(NotFound, Unavailable):
            yield from self.calls.call(rpcs.CLOSE, pb.CloseSessionRequest(name=self.name), CLOSE_SECONDS)

    def _names(self, field: str, edges: Edges, allow_other_model: bool) -> list[str]:
        """Names of edges that mean something here. Raises OtherModel for a circuit of another model."""
        if isinstance(edges, Circuit) and not checks.flag("allow_other_model", allow_other_model):
            check_same_model(edges, self.graph, self._revision)
        return wire.edge_set(field, edges)

    def _score(
        self, field: str, sets: Iterable[Edges], complete: bool, allow_other_model: bool
    ) -> Flow[list[float]]:
        named = (
            self._names(f"{field}[{i}]", edges, allow_other_model)
            for i, edges in enumerate(checks.items(field, sets))
        )
        hypotheses = [wire.hypothesis(names, complete) for names in named]
        metrics: list[float] = []
        for chunk in self._chunks(hypotheses):
            try:
                metrics += yield from self._measure(chunk)
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

    def _measure(self, chunk: list[pb.Hypothesis]) -> Flow[list[float]]:
        request = pb.ScoreCircuitsRequest(name=self.name, hypotheses=chunk)
        response = yield from self.calls.call(rpcs.SCORE, request, SCORE_SECONDS)
        _check_counts("metrics", len(response.metrics), len(chunk))
        return wire.scores(response.metrics)

    def _commit(self, field: str, edges: Edges, complete: bool, allow_other_model: bool) -> Flow[None]:
        names = self._names(field, edges, allow_other_model)
        request = pb.CommitCircuitRequest(name=self.name, circuit=wire.hypothesis(names, complete))
        try:
            response = yield from self.calls.call(rpcs.COMMIT, request)
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
