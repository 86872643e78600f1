"""A discovery on a server, seen from here."""

from __future__ import annotations

from collections.abc import Iterator

from pahq.v1 import discovery_pb2 as pb

from pahq_client import wire
from pahq_client.circuit import Circuit
from pahq_client.errors import JobCancelled, JobFailed
from pahq_client.events import Event, JobState
from pahq_client.patience import Backoff, Deadline
from pahq_client.progress import ProgressLike, reporter
from pahq_client.transport import Transport
from pahq_client.watch import Watch

CIRCUIT_SECONDS = 600.0


class JobHandle:
    """A discovery that runs on a server, whoever watches. Valid while its client is open.

    Every method raises NotFound if the server does not know the discovery (any more), Unavailable if
    there is no server, and the other errors of `pahq_client.errors` that concern access.
    """

    def __init__(self, transport: Transport, name: str, backoff: Backoff | None = None) -> None:
        self._transport = transport
        self._name = name
        self._backoff = backoff or Backoff()

    @property
    def name(self) -> str:
        """The resource name; `Client.job` finds the discovery by it, from any process."""
        return self._name

    @property
    def state(self) -> JobState:
        """The state, asked from the server."""
        return wire.job_state(self._fetch().state)

    def watch(self, after_sequence: int = 0) -> Iterator[Event]:
        """Events as they happen, up to the one that ends the discovery.

        Survives interruptions: it asks again for what it has not seen, several times with growing pauses.

        Args:
            after_sequence: only events with a larger sequence number.

        Raises:
            Unavailable: the server went away and stayed away.
        """
        return iter(self._events(after_sequence, Deadline(None)))

    def result(self, timeout: float | None = None, progress: ProgressLike = None) -> Circuit:
        """Waits for the circuit.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            progress: True for a bar on stderr, or a function that gets every Event.

        Raises:
            TimeoutError: it is not there yet; the discovery goes on.
            JobFailed: it ended without a circuit.
            JobCancelled: it was stopped.
            Unavailable: the server went away and stayed away; the discovery may go on.
        """
        deadline = Deadline.after(timeout)
        discovery = self._fetch()
        # Who wants progress gets all events, also of a discovery that was faster than this call.
        if not wire.job_state(discovery.state).is_final or (progress and not deadline.passed):
            self._follow(deadline, progress)
            discovery = self._backoff.retry(self._fetch)
        state = wire.job_state(discovery.state)
        if state is JobState.FAILED:
            raise JobFailed(discovery.error_message, self.name)
        if state is JobState.CANCELLED:
            raise JobCancelled(self.name)
        return self._backoff.retry(self._circuit)

    def cancel(self, timeout: float | None = None) -> JobState:
        """Asks the discovery to stop; no effect on one that ended. Returns its state after that.

        Args:
            timeout: seconds that the call may take; None for the client's usual.
        """
        method, request = self._transport.discovery.CancelDiscovery, pb.CancelDiscoveryRequest(name=self.name)
        return wire.job_state(self._transport.call(method, request, timeout).discovery.state)

    def delete(self) -> None:
        """Makes the server forget the discovery and its circuit.

        Raises:
            Conflict: it has not ended yet.
        """
        self._transport.call(
            self._transport.discovery.DeleteDiscovery, pb.DeleteDiscoveryRequest(name=self.name)
        )

    def __repr__(self) -> str:
        return f"JobHandle({self.name!r}, server={self._transport.address!r})"

    def _fetch(self) -> pb.Discovery:
        request = pb.GetDiscoveryRequest(name=self.name)
        response: pb.GetDiscoveryResponse = self._transport.call(
            self._transport.discovery.GetDiscovery, request
        )
        return response.discovery

    def _circuit(self) -> Circuit:
        method, request = self._transport.discovery.GetCircuit, pb.GetCircuitRequest(name=self.name)
        return wire.circuit(self._transport.stream(method, request, CIRCUIT_SECONDS))

    def _follow(self, deadline: Deadline, progress: ProgressLike) -> None:
        with reporter(progress) as report:
            for event in self._events(0, deadline):
                report(event)

    def _events(self, after: int, deadline: Deadline) -> Watch:
        return Watch(self._transport, self.name, after, deadline, self._backoff)
