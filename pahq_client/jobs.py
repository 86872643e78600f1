"""A discovery on a server, seen from here."""

from __future__ import annotations

from collections.abc import Iterator

from pahq_client import render_job
from pahq_client.base import JobBase
from pahq_client.circuit import Circuit
from pahq_client.errors import PahqError
from pahq_client.events import Event, JobInfo, JobState
from pahq_client.jobs import JobCalls as JobFlows
from pahq_client.progress import ProgressLike
from pahq_client.transport import Transport

# A notebook that shows a discovery waits this long at most for news of it.
DISPLAY_SECONDS = 2.0


class JobHandle(JobBase):
    """A discovery that runs on a server, whoever watches. Valid while its client is open.

    Every method raises NotFound if the server does not know the discovery (any more), Unavailable if
    there is no server, and the other errors of `pahq_client.errors` that concern access.
    """

    def __init__(self, transport: Transport, flows: JobFlows) -> None:
        self._transport = transport
        self._flows = flows

    @property
    def state(self) -> JobState:
        """The state, asked from the server."""
        return self._transport.run(self._flows.state())

    @property
    def info(self) -> JobInfo:
        """State, progress, place in the queue and times, asked from the server."""
        return self._transport.run(self._flows.info())

    def watch(self, after_sequence: int = 0) -> Iterator[Event]:
        """Events as they happen, up to the one that ends the discovery.

        Survives interruptions: it asks again for what it has not seen, several times with growing pauses.

        Args:
            after_sequence: only events with a larger sequence number.

        Raises:
            Unavailable: the server went away and stayed away.
        """
        watch = self._flows.watch(after_sequence)
        try:
            while (event := self._transport.run(self._flows.next_event(watch))) is not None:
                yield event
        finally:
            watch.close()

    def result(self, timeout: float | None = None, progress: ProgressLike = None) -> Circuit:
        """Waits for the circuit.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

        Raises:
            TimeoutError: it is not there yet; the discovery goes on.
            JobFailed: it ended without a circuit.
            JobCancelled: it was stopped.
            Unavailable: the server went away and stayed away; the discovery may go on.
        """
        return self._transport.run(self._flows.result(timeout, progress))

    def cancel(self, timeout: float | None = None) -> JobState:
        """Asks the discovery to stop; no effect on one that ended. Returns its state after that.

        Args:
            timeout: seconds that the call may take; None for the client's usual.
        """
        return self._transport.run(self._flows.cancel(timeout))

    def delete(self) -> None:
        """Makes the server forget the discovery and its circuit.

        Raises:
            Conflict: it has not ended yet.
        """
        self._transport.run(self._flows.delete())

    def _repr_html_(self) -> str:
        """As it stands now, or as it stood when the server was last heard."""
        note = ""
        if self.latest is None or not self.latest.state.is_final:
            try:
                self._transport.run(self._flows.info(DISPLAY_SECONDS))
            except (PahqError, RuntimeError) as error:  # RuntimeError: the client is closed
                note = f"no news: {error}"
        return render_job.to_html(self.name, self.latest, note)
