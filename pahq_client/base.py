"""What the blocking and the asynchronous classes have in common beside the flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pahq_client import render_job
from pahq_client import formatting as words
from pahq_client.endpoint import Endpoint, TlsConfig
from pahq_client.events import JobInfo
from pahq_client._calls import Caller as Calls
from pahq_client.client import ServerCalls as ClientFlows
from pahq_client.jobs import JobCalls as JobFlows
from pahq_client.session import SessionCalls as SessionFlows
from pahq_client.patience import Backoff

F = TypeVar("F")


def described_as(original: Any) -> Callable[[F], F]:
    """Gives a method or class the docstring of its twin, so that there is one text to keep right."""

    def describe(twin: F) -> F:
        twin.__doc__ = original.__doc__
        return twin

    return describe


class ClientBase:
    """Arguments and address of a client."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, token, tls, timeout)
        self._flows = ClientFlows(Calls(self.address, self._endpoint.timeout, backoff or Backoff()))

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._endpoint.address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"


class JobBase:
    """Name and looks of a discovery."""

    _flows: JobFlows

    @property
    def name(self) -> str:
        """The resource name; `Client.job` finds the discovery by it, from any process."""
        return self._flows.name

    @property
    def latest(self) -> JobInfo | None:
        """What the server told last, without asking it; None if it told nothing yet."""
        return self._flows.latest

    def __repr__(self) -> str:
        server = f"server={self._flows.calls.address!r}"
        told = [] if self.latest is None else [words.asked(self.latest), self.latest.state.lower()]
        return f"{type(self).__name__}({', '.join([repr(self.name), server, *filter(None, told)])})"

    def _repr_html_(self) -> str:
        return render_job.to_html(self.name, self.latest)


class SessionBase:
    """A model and a task, kept ready on a server.

    Args:
        name: resource name.
        graph: the full graph.
        num_edges_total: its number of edges.
        full: the metric of the full model. Lower is better.
        empty: the metric of the empty circuit.
        model, metric, ablation, precision: what it measures, and how; kv_receivers are those of the graph.
        warnings: what may mislead about the scores; each tells what to do.
    """

    def __init__(self, flows: SessionFlows) -> None:
        self._flows = flows
        self.name, self.graph = flows.name, flows.graph
        self.full, self.empty = flows.full, flows.empty
        self.num_edges_total = flows.num_edges_total
        self.model, self.metric, self.ablation = flows.model, flows.metric, flows.ablation
        self.precision, self.warnings = flows.precision, flows.warnings

    @property
    def edges(self) -> tuple[str, ...]:
        """All edges of the base circuit, in the order of `Graph.edge_names`: backwards it is ACDC's."""
        return self._flows.edges

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, server={self._flows.calls.address!r})"
