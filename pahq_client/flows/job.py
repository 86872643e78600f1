"""One discovery on a server."""

from __future__ import annotations

from pahq.v1 import discovery_pb2 as pb

from pahq_client import _calls as rpcs
from pahq_client import _responses as wire
from pahq_client.errors import WarningDisplay as Cautions
from pahq_client.circuit import Circuit
from pahq_client.errors import JobCancelled, JobFailed
from pahq_client.events import Event, JobInfo, JobState
from pahq_client._calls import Steps as Flow
from pahq_client._calls import Caller as Calls
from pahq_client.flows.watch import Watch
from pahq_client.patience import Deadline
from pahq_client.progress import ProgressLike, reporter

CIRCUIT_SECONDS = 600.0
# Of a short call, even for who waits no longer than a moment: to ask is not to wait.
LEAST_SECONDS = 5.0


class JobFlows:
    """What can be done with a discovery; described at `JobHandle`.

    Args:
        calls: to its server.
        name: resource name.
        latest: what is known of it.
    """

    def __init__(self, calls: Calls, name: str, latest: JobInfo | None = None) -> None:
        self.calls = calls
        self.name = name
        self.latest = latest
        self._cautions = Cautions()

    def show_warnings(self) -> None:
        """Shows what may mislead about the answer, as far as it is known and was not shown by this object."""
        if self.latest is not None:
            self._cautions.show(self.latest.warnings)

    def info(self, timeout: float | None = None) -> Flow[JobInfo]:
        request = pb.GetDiscoveryRequest(name=self.name)
        response = yield from self.calls.call(rpcs.GET, request, timeout)
        return self._learn(response.discovery)

    def state(self) -> Flow[JobState]:
        return (yield from self.info()).state

    def watch(self, after_sequence: int, deadline: Deadline | None = None) -> Watch:
        return Watch(self.calls, self.name, after_sequence, deadline or Deadline(None))

    def next_event(self, watch: Watch) -> Flow[Event | None]:
        event = yield from watch.next()
        if event is not None and self.latest is not None:
            self.latest = self.latest.after(event)
        return event

    def result(self, timeout: float | None, progress: ProgressLike) -> Flow[Circuit]:
        deadline = Deadline.after(timeout)
        short = max(LEAST_SECONDS, deadline.within(self.calls.timeout))
        info = yield from self.info(short)
        # Who wants progress gets all events, also of a discovery that was faster than this call.
        if not info.state.is_final or (progress and not deadline.passed):
            yield from self._follow(deadline, progress)
            info = yield from self.info()
        if info.state is JobState.FAILED:
            raise JobFailed(info.error, self.name)
        if info.state is JobState.CANCELLED:
            raise JobCancelled(self.name)
        request = pb.GetCircuitRequest(name=self.name)
        circuit = yield from self.calls.collect(rpcs.CIRCUIT, request, wire.CircuitPages, CIRCUIT_SECONDS)
        self._cautions.show(circuit.warnings)
        return circuit

    def cancel(self, timeout: float | None) -> Flow[JobState]:
        request = pb.CancelDiscoveryRequest(name=self.name)
        response = yield from self.calls.call(rpcs.CANCEL, request, timeout)
        return self._learn(response.discovery).state

    def delete(self) -> Flow[None]:
        request = pb.DeleteDiscoveryRequest(name=self.name)
        yield from self.calls.call(rpcs.DELETE, request, gone=pb.DeleteDiscoveryResponse())

    def _learn(self, discovery: pb.Discovery) -> JobInfo:
        self.latest = wire.job_info(discovery)
        return self.latest

    def _follow(self, deadline: Deadline, progress: ProgressLike) -> Flow[None]:
        watch = self.watch(0, deadline)
        try:
            with reporter(progress) as report:
                while (event := (yield from self.next_event(watch))) is not None:
                    report(event)
        finally:
            watch.close()
