"""Handles of jobs on a server: watching a job, waiting for its result, cancelling and deleting it."""

from __future__ import annotations

from collections.abc import Iterator

from pahq.v1 import jobs_pb2 as pb

from pahq_client import _responses as responses
from pahq_client import formatting
from pahq_client._calls import (
    ARTIFACT,
    CANCEL,
    DELETE,
    GET,
    WATCH,
    Call,
    Caller,
    Open,
    Pause,
    Read,
    Steps,
    Stream,
    next_delay,
)
from pahq_client._transport import Transport
from pahq_client.artifacts import AnyArtifact, ArtifactMessages
from pahq_client.display.progress import ProgressLike, job_to_html, reporter
from pahq_client.errors import (
    DeadlineExceeded,
    JobCancelled,
    JobFailed,
    PahqError,
    RateLimited,
    Unavailable,
    WarningDisplay,
)
from pahq_client.events import Event, EventKind, JobInfo, JobState
from pahq_client.retries import Deadline

ARTIFACT_SECONDS = 600.0
# The least time limit of a short call, even if the caller wants to wait for less.
LEAST_SECONDS = 5.0
# A stream is opened anew this often, after a short call. So a server that vanished silently (a cut cable, a
# firewall that forgot the connection) is noticed, without a keepalive that both sides would have to agree on.
STREAM_SECONDS = 300.0
# A notebook that shows a job waits this long at most for news of it.
DISPLAY_SECONDS = 2.0


class JobBase:
    """What the blocking and the asynchronous handle of a job have in common."""

    _calls: JobCalls

    @property
    def name(self) -> str:
        """The resource name; `Client.job` finds the job by it, from any process."""
        return self._calls.name

    @property
    def latest(self) -> JobInfo | None:
        """What the server last said of the job, without asking again; None if it said nothing yet."""
        return self._calls.latest

    def __repr__(self) -> str:
        server = f"server={self._calls.caller.address!r}"
        known = [] if self.latest is None else [formatting.asked(self.latest), self.latest.state.lower()]
        return f"{type(self).__name__}({', '.join([repr(self.name), server, *filter(None, known)])})"

    def _repr_html_(self) -> str:
        return job_to_html(self.name, self.latest)


class JobHandle(JobBase):
    """A job on a server: it runs whether it is watched or not. Valid while its client is open.

    Every method raises NotFound if the server does not know the job (any more), Unavailable if
    there is no server, and the other errors of `pahq_client.errors` that concern access.
    """

    def __init__(self, transport: Transport, calls: JobCalls) -> None:
        self._transport = transport
        self._calls = calls

    @property
    def state(self) -> JobState:
        """The state, asked from the server."""
        return self._transport.run(self._calls.state())

    @property
    def info(self) -> JobInfo:
        """State, progress, queue position and times, asked from the server."""
        return self._transport.run(self._calls.info())

    def watch(self, after_sequence: int = 0) -> Iterator[Event]:
        """Events as they happen, up to the one that ends the job.

        Survives interruptions: it asks again for what it has not seen, several times with growing pauses.

        Args:
            after_sequence: only events with a larger sequence number.

        Raises:
            Unavailable: the server went away and did not come back.
        """
        watch = self._calls.watch(after_sequence)
        try:
            while (event := self._transport.run(self._calls.next_event(watch))) is not None:
                yield event
        finally:
            watch.close()

    def result(self, timeout: float | None = None, progress: ProgressLike = None) -> AnyArtifact:
        """Waits for the result: a Circuit, or EdgeScores for the method ``eap``.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

        Raises:
            TimeoutError: the result is not there in time; the job goes on.
            JobFailed: the job failed; `artifact` may have what it had found.
            JobCancelled: the job was cancelled; `artifact` may have what it had found.
            Unavailable: the server went away and did not come back; the job may go on.
        """
        return self._transport.run(self._calls.result(timeout, progress))

    def artifact(self) -> AnyArtifact:
        """Fetches the artifact of an ended job; for a cancelled or failed one what it had found, as partial.

        Raises:
            Conflict: the job has not ended, or it was cancelled or failed before it had found anything that
                its method can give.
        """
        return self._transport.run(self._calls.artifact())

    def cancel(self, timeout: float | None = None) -> JobState:
        """Asks the job to stop; no effect on one that ended. Returns its state after that.

        Args:
            timeout: seconds that the call may take; None for the client's usual.
        """
        return self._transport.run(self._calls.cancel(timeout))

    def delete(self) -> None:
        """Makes the server forget the job and its result.

        Raises:
            Conflict: it has not ended yet.
        """
        self._transport.run(self._calls.delete())

    def _repr_html_(self) -> str:
        """Draws the job as it stands now, or as the server last described it."""
        note = ""
        if self.latest is None or not self.latest.state.is_final:
            try:
                self._transport.run(self._calls.info(DISPLAY_SECONDS))
            except (PahqError, RuntimeError) as error:  # RuntimeError: the client is closed
                note = f"no news: {error}"
        return job_to_html(self.name, self.latest, note)


class JobCalls:
    """What can be done with a job, as steps; described at `JobHandle`.

    Args:
        caller: makes calls to its server.
        name: resource name.
        latest: what is known of the job; None if nothing is.
    """

    def __init__(self, caller: Caller, name: str, latest: JobInfo | None = None) -> None:
        self.caller = caller
        self.name = name
        self.latest = latest
        self._warnings = WarningDisplay()

    def show_warnings(self) -> None:
        """Shows warnings about the answer, as far as they are known and this object has not shown them."""
        if self.latest is not None:
            self._warnings.show(self.latest.warnings)

    def info(self, timeout: float | None = None) -> Steps[JobInfo]:
        request = pb.GetJobRequest(name=self.name)
        response = yield from self.caller.call(GET, request, timeout)
        return self._learn(response.job)

    def state(self) -> Steps[JobState]:
        return (yield from self.info()).state

    def watch(self, after_sequence: int, deadline: Deadline | None = None) -> Watch:
        return Watch(self.caller, self.name, after_sequence, deadline or Deadline(None))

    def next_event(self, watch: Watch) -> Steps[Event | None]:
        event = yield from watch.next()
        if event is not None and self.latest is not None:
            self.latest = self.latest.after(event)
        return event

    def result(self, timeout: float | None, progress: ProgressLike) -> Steps[AnyArtifact]:
        deadline = Deadline.after(timeout)
        short = max(LEAST_SECONDS, deadline.within(self.caller.timeout))
        info = yield from self.info(short)
        # A caller that wants progress gets all events, also of a job that was faster than this call.
        if not info.state.is_final or (progress and not deadline.passed):
            yield from self._follow(deadline, progress)
            info = yield from self.info()
        if info.state is JobState.FAILED:
            raise JobFailed(info.error, self.name)
        if info.state is JobState.CANCELLED:
            raise JobCancelled(self.name)
        return (yield from self.artifact())

    def artifact(self) -> Steps[AnyArtifact]:
        request = pb.GetArtifactRequest(name=self.name)
        found = yield from self.caller.collect(ARTIFACT, request, ArtifactMessages, ARTIFACT_SECONDS)
        self._warnings.show(found.warnings)
        return found

    def cancel(self, timeout: float | None) -> Steps[JobState]:
        request = pb.CancelJobRequest(name=self.name)
        response = yield from self.caller.call(CANCEL, request, timeout)
        return self._learn(response.job).state

    def delete(self) -> Steps[None]:
        request = pb.DeleteJobRequest(name=self.name)
        yield from self.caller.call(DELETE, request, gone=pb.DeleteJobResponse())

    def _learn(self, job: pb.Job) -> JobInfo:
        self.latest = responses.job_info(job)
        return self.latest

    def _follow(self, deadline: Deadline, progress: ProgressLike) -> Steps[None]:
        watch = self.watch(0, deadline)
        try:
            with reporter(progress) as report:
                while (event := (yield from self.next_event(watch))) is not None:
                    report(event)
        finally:
            watch.close()


class Watch:
    """Reads the events of a job once, over as many streams as it takes. Must be closed.

    Args:
        caller: makes calls to the server; pauses between tries start over whenever a new event arrives.
        name: name of the job.
        after: only events with a larger sequence number.
        deadline: when to give up with TimeoutError.
    """

    def __init__(self, caller: Caller, name: str, after: int, deadline: Deadline) -> None:
        self._caller = caller
        self._name = name
        self._after = after
        self._deadline = deadline
        self._delays = caller.backoff.delays()
        self._latest: Event | None = None
        self._stream: Stream | None = None
        self._opened = False  # at least once
        self._over = False  # the job had ended before the stream was opened
        self._ended = False  # there is nothing more to come

    def next(self) -> Steps[Event | None]:
        """The next event; None after the one that ends the job."""
        while not self._ended:
            if self._deadline.passed:
                raise TimeoutError(f"{self._name} did not finish in time")
            try:
                event = yield from self._read()
            except (Unavailable, RateLimited) as error:
                self.close()
                yield from self._pause(error)
            else:
                if event is not None:
                    return event
        self.close()
        return None

    def close(self) -> None:
        """Ends the stream; no effect on the job."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self) -> Steps[Event | None]:
        """Reads the next event of the stream; None if it is nothing new."""
        if self._stream is None:
            yield from self._open()
        assert self._stream is not None
        try:
            message: pb.WatchJobResponse | None = yield Read(self._stream)
        except DeadlineExceeded:  # the stream's time was up: all is well
            self.close()
            self._delays = self._caller.backoff.delays()
            return None
        if message is not None:
            return self._accept(responses.event(message.event))
        if not self._over:
            raise Unavailable(self._caller.address, "the stream of events broke off")
        # The stream of an ended job brought no end event: the caller has had that already.
        self._ended = True
        return None

    def _open(self) -> Steps[None]:
        self._over = self._opened and (yield from self._is_over())
        self._opened = True
        request = pb.WatchJobRequest(name=self._name, after_sequence=self._after)
        self._stream = yield Open(WATCH, request, self._deadline.within(STREAM_SECONDS))

    def _accept(self, event: Event) -> Event | None:
        """Drops an event that the server repeats, as it may after an interruption."""
        self._ended = event.kind is EventKind.END
        if not self._ended and not self._is_news(event):
            return None
        self._delays = self._caller.backoff.delays()  # not for repeated events: those may go on for ever
        self._after, self._latest = max(self._after, event.sequence), event
        return event

    def _is_news(self, event: Event) -> bool:
        # An event that only reports a new queue position repeats the sequence number.
        moved = event.sequence == self._after and event.queue_position is not None and event != self._latest
        return moved or event.sequence > self._after

    def _is_over(self) -> Steps[bool]:
        seconds = self._deadline.within(self._caller.timeout)
        response: pb.GetJobResponse = yield Call(GET, pb.GetJobRequest(name=self._name), seconds)
        return responses.job_state(response.job.state).is_final

    def _pause(self, error: Unavailable | RateLimited) -> Steps[None]:
        delay = next_delay(error, self._delays)
        if delay is None:
            raise error
        yield Pause(self._deadline.within(delay))
