"""A session on a server: circuits thought up here, measured there."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pahq_client.base import SessionBase
from pahq_client.flows.session import Edges
from pahq_client.session import SessionCalls as SessionFlows
from pahq_client.transport import Transport


class Session(SessionBase):
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
        model, metric, ablation, precision: what it measures, and how; kv_receivers are those of the graph.
        warnings: what may mislead about the scores; each tells what to do.
    """

    def __init__(self, transport: Transport, flows: SessionFlows) -> None:
        super().__init__(flows)
        self._transport = transport
        self._lock = threading.Lock()  # no commit between the portions of a list

    def score(self, circuits: Iterable[Edges], *, allow_other_model: bool = False) -> list[float]:
        """The metric of every circuit, in order. A circuit is given by all of its edges.

        Args:
            circuits: to measure.
            allow_other_model: whether a Circuit may have been found in another model.

        Raises:
            InvalidRequest: an edge is not in the graph.
            OtherModel: a Circuit was found in another model.
            JobFailed: a metric is not finite.
        """
        with self._lock:
            return self._transport.run(self._flows.score(circuits, allow_other_model))

    def score_removed(self, removals: Iterable[Edges], *, allow_other_model: bool = False) -> list[float]:
        """The metric of the base circuit without these edges, for every set of them, in order.

        Cheaper than `score`: what does not differ from the base is not computed again. The last digits may
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
            return self._transport.run(self._flows.score_removed(removals, allow_other_model))

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
            self._transport.run(self._flows.commit(removed, edges, allow_other_model))

    def close(self) -> None:
        """Closes the session; no effect if it is gone. If the server cannot be reached, it expires there."""
        self._transport.run(self._flows.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
