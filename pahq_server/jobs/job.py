"""A job as everybody sees it, what is written down about it, and what the scheduler tells of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from pahq_server.core.artifact import Progress
from pahq_server.core.errors import ServerError, StorageError
from pahq_server.jobs.spec import JobSpec, RequestFacts
from pahq_server.scheduler.run import QueuePosition
from pahq_server.store.base import JobStore
from pahq_server.store.records import ArtifactSummary, JobState, Snapshot, StoredArtifact

__all__ = ["ExpectedStart", "Job", "JobState", "Journal", "SchedulingStats", "Snapshot", "StoredJournal"]


@dataclass(frozen=True)
class ExpectedStart:
    """When a queued job is likely to begin.

    Args:
        position: in the queue, 1 for the next to begin.
        start: seconds since the epoch, about; None while nothing is known of the pace.
    """

    position: int
    start: float | None


@dataclass
class SchedulingStats:
    """What the scheduler told last. Written by its worker alone, read by any thread. Not stored.

    Args:
        charged_s: seconds of the worker's time that the job took.
        expected: while it is queued.
    """

    charged_s: float = 0.0
    expected: ExpectedStart | None = None

    def charge(self, seconds: float) -> None:
        """Adds to the seconds that the job took."""
        self.charged_s += seconds

    def queued_at(self, position: QueuePosition) -> bool:
        """Takes note of a position; returns whether it is another one than before."""
        before = self.expected
        start = None if position.start_s is None else time.time() + position.start_s
        self.expected = ExpectedStart(position.position, start)
        return before is None or before.position != position.position

    def clock(self) -> float:
        """Returns seconds, for a method: the job's own share of the worker's time."""
        return self.charged_s


class Journal:
    """Writes down what happens to one job while it runs. This one stores nothing.

    Methods are called one by one, and raise StorageError.

    Attributes:
        records: how many were added, stored or not.
    """

    def __init__(self, records: int = 0) -> None:
        self.records = records

    def add(self, data: bytes, count: int) -> None:
        """Takes records to store with the next snapshot."""
        self.records += count

    def advance(self, now: Snapshot) -> None:
        """Stores where the job stands."""

    def cancel(self, now: Snapshot) -> None:
        """Stores that the job was asked to stop."""

    def begin_again(self, now: Snapshot, content: bytes) -> None:
        """Stores that all records are given up, and that the job's artifact has another key now."""
        self.records = 0

    def finish(self, now: Snapshot, artifact: StoredArtifact | None) -> None:
        """Stores the end."""

    @property
    def behind(self) -> bool:
        """Whether there are records that are not stored."""
        return False


class StoredJournal(Journal):
    """Writes into a store.

    Args:
        store: keeps it.
        job: id in the store.
        records: how many are there already.
    """

    def __init__(self, store: JobStore, job: int, records: int = 0) -> None:
        super().__init__(records)
        self._store, self._job, self._stored = store, job, records
        self._data = b""

    def add(self, data: bytes, count: int) -> None:
        super().add(data, count)
        self._data += data

    def advance(self, now: Snapshot) -> None:
        self._store.advance(self._job, now, self._stored, self._data)
        self._written()

    def cancel(self, now: Snapshot) -> None:
        self._store.cancel(self._job, now)

    def begin_again(self, now: Snapshot, content: bytes) -> None:
        self._store.begin_again(self._job, content, now)
        super().begin_again(now, content)
        self._written()

    def finish(self, now: Snapshot, artifact: StoredArtifact | None) -> None:
        self._store.finish(self._job, now, self._stored, self._data, artifact)
        self._written()

    def _written(self) -> None:
        self._stored, self._data = self.records, b""

    @property
    def behind(self) -> bool:
        return self._stored < self.records


class Job:
    """One job, safe to read and watch from any thread. What changes is stored before anybody can see it.

    ``scheduling`` is what the scheduler tells about it. Methods that change the rest raise StorageError, and
    change nothing then.

    Args:
        name: resource name.
        spec: what was asked for; of a finished job without prompts.
        total: how many units of work there are.
        unit: what the units are, in the plural, such as "edges".
        snapshot: where it stands; None for a new one.
        journal: stores what changes.
        ended: called once, when it has become final.
        facts: what was found about the request when it was accepted.
        summary: of the artifact, if there is one.
    """

    def __init__(
        self,
        name: str,
        spec: JobSpec,
        total: int,
        unit: str,
        snapshot: Snapshot | None = None,
        journal: Journal | None = None,
        ended: Callable[[Job], None] = lambda job: None,
        facts: RequestFacts | None = None,
        summary: ArtifactSummary | None = None,
    ) -> None:
        self.name, self.spec, self.total, self.unit = name, spec, total, unit
        self.facts, self._summary = facts or RequestFacts(), summary
        self._snapshot = snapshot or Snapshot(JobState.QUEUED, Progress(), time.time())
        self._journal, self._ended = journal or Journal(self._snapshot.records), ended
        self.scheduling = SchedulingStats(charged_s=self._snapshot.charged)
        self._interrupted = self._unstored = False
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.Lock()
        # Apart: who begins to listen must not wait while a change is stored.
        self._listening = threading.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """Where it stands."""
        return self._snapshot

    @property
    def summary(self) -> ArtifactSummary | None:
        """What is known of its artifact; None unless it has succeeded."""
        return self._summary

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about its answer, as far as it is known by now."""
        return (*self.facts.warnings, *(self._summary.warnings if self._summary else ()))

    @property
    def interrupted(self) -> bool:
        """Whether this process works on it no longer, though it is not final: a later one goes on with it."""
        return self._interrupted

    @property
    def unstored(self) -> bool:
        """Whether only this process knows that it has failed."""
        return self._unstored

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.name.split("/")[1]

    def queued_at(self, position: QueuePosition) -> None:
        """Takes note of its position in the queue."""
        if self.scheduling.queued_at(position):
            self._tell()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls ``listener`` after every change, from the thread that made it; returns how to stop."""
        with self._listening:
            self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def start(self) -> None:
        """Tells that this process takes it up."""
        now = self._snapshot
        self._change(
            JobState.RUNNING,
            self._journal.advance,
            started=self._later(),
            crash_count=now.crash_count + 1,  # unless it comes further, or is stopped in good order
            begun=(time.monotonic(), now.progress.done),
        )

    def begin_again(self, content: bytes) -> None:
        """Gives up all journal records: they are of another version or other hardware.

        Args:
            content: key of the artifact that it will have now.
        """
        with self._lock:
            now = self._snapshot
            if now.state.final:
                return
            after = replace(
                now,
                progress=Progress(),
                records=0,
                dropped=now.dropped + now.records + now.progress.done,
            )
            self._journal.begin_again(after, content)
            self._snapshot = after
        self._tell()

    def update(self, progress: Progress, data: bytes = b"", count: int = 0) -> None:
        """Takes note of progress and journal records.

        Records that cannot be stored now are stored with the next ones.

        Args:
            progress: how far the method is.
            data: new records.
            count: how many these are.
        """
        self._journal.add(data, count)
        before = self._snapshot
        # Watchers rely on it: the number of an event never falls.
        progress = replace(progress, done=max(progress.done, before.progress.done))
        # Its start may not have been stored.
        self._change(
            JobState.RUNNING,
            self._journal.advance,
            progress=progress,
            records=self._journal.records,
            charged=self.scheduling.charged_s,
            started=self._later(),
            begun=before.begun or (time.monotonic(), before.progress.done),
            **({"crash_count": 0} if count else {}),
        )

    def cancel(self) -> None:
        """Asks the job to stop; has no effect on a final one."""
        self._change(JobState.CANCELLING, self._journal.cancel)

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop and has not stopped yet."""
        return self._snapshot.state is JobState.CANCELLING

    def succeed(self, artifact: StoredArtifact) -> None:
        """Ends with an artifact, which only the store keeps; all that stays here is its summary."""

        def save(now: Snapshot) -> None:
            self._journal.finish(now, artifact)
            self._summary = artifact.summary  # before anybody sees that it has ended

        self._end(JobState.SUCCEEDED, save)

    def end_cancelled(self) -> None:
        """Ends as it was asked to."""
        self._end(JobState.CANCELLED, lambda now: self._journal.finish(now, None))

    def fail(self, error: Exception) -> None:
        """Ends with a reason."""
        # An unexpected exception may quote anything; its details belong into the log.
        known = isinstance(error, (ServerError, MemoryError))
        text = f"internal error ({type(error).__name__}); see the server's log"
        if known:
            text = str(error) or "not enough memory"  # a MemoryError says nothing
        self._end(JobState.FAILED, lambda now: self._journal.finish(now, None), error=text)

    def fail_unstored(self, error: ServerError) -> None:
        """Fails for this process alone: the store is damaged."""
        self._unstored = True
        self._end(JobState.FAILED, lambda now: None, error=str(error))

    def interrupt(self, in_good_order: bool = True) -> None:
        """Leaves the job to a later process.

        Args:
            in_good_order: whether the job has nothing to do with why: else it counts as a crash, like that of
                a process that was killed, and after several of them the job fails.
        """
        with suppress(StorageError), self._lock:
            now = replace(self._snapshot, records=self._journal.records)
            now = replace(now, crash_count=0) if in_good_order else now
            if now != self._snapshot or self._journal.behind:  # of a thousand that wait, none has news
                self._journal.advance(now)
            self._snapshot = now
        self.leave()

    def leave(self) -> None:
        """As `interrupt`, of a job that this process has not taken up: it does not change its crash count."""
        self._interrupted = True
        self._tell()

    def _end(self, state: JobState, save: Callable[[Snapshot], None], **values: object) -> None:
        self._change(
            state,
            save,
            ended=self._later(),
            charged=self.scheduling.charged_s,
            records=self._journal.records,  # the last ones may not have been stored
            **values,
        )

    def _later(self) -> float:
        """Returns the present; where a clock was set back, the latest moment that is known of this job."""
        return max(time.time(), self._snapshot.created, self._snapshot.started or 0.0)

    def _change(self, state: JobState, save: Callable[[Snapshot], None], **values: object) -> None:
        with self._lock:
            now = self._snapshot
            if now.state.final:
                return
            if now.started is not None:
                values.pop("started", None)
            # States only go forward: a cancel may race with the end, an update with a cancel.
            state = max(now.state, state, key=lambda s: s.value)
            after = replace(now, state=state, **values)  # type: ignore[arg-type]
            if after == now:
                return
            save(after)
            self._snapshot = after
        if after.state.final:
            self._ended(self)
        self._tell()

    def _tell(self) -> None:
        with self._listening:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
