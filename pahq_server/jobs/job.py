"""A job as clients see it, the journal that stores its changes, and what the scheduler tells about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from pahq_server.core.artifact import Progress, Records
from pahq_server.core.errors import ServerError, StorageError
from pahq_server.jobs.spec import JobSpec, RequestFacts
from pahq_server.scheduler.run import QueuePosition
from pahq_server.store.base import JobStore
from pahq_server.store.records import ArtifactSummary, JobRecord, JobState, Snapshot, StoredArtifact

__all__ = ["ExpectedStart", "Job", "JobState", "Journal", "SchedulingStats", "Snapshot", "StoredJournal"]


NO_RECORDS = Records()


@dataclass(frozen=True)
class ExpectedStart:
    """When a queued job is likely to begin.

    Args:
        position: in the queue, 1 for the next to begin.
        start: about when, in seconds since the epoch; None while no job has shown how long jobs take.
    """

    position: int
    start: float | None


@dataclass
class SchedulingStats:
    """What the scheduler told last about a job. Only the worker writes it, any thread reads it.

    Args:
        charged_s: seconds of the worker's time that the job took.
        expected: when it is likely to begin; None if it is not queued or that is unknown.
    """

    charged_s: float = 0.0
    expected: ExpectedStart | None = None

    def charge(self, seconds: float) -> None:
        """Adds to the seconds that the job took."""
        self.charged_s += seconds

    def queued_at(self, position: QueuePosition) -> bool:
        """Takes note of a position; returns whether it differs from the one before."""
        before = self.expected
        start = None if position.start_s is None else time.time() + position.start_s
        self.expected = ExpectedStart(position.position, start)
        return before is None or before.position != position.position

    def clock(self) -> float:
        """Returns the seconds of the worker's time that the job took: the clock of its method."""
        return self.charged_s


class Journal:
    """Stores what happens to one job. This base class stores nothing; `StoredJournal` does.

    Methods are called one at a time, and raise StorageError.

    Attributes:
        records: how many records of the method were added, stored or not.
    """

    def __init__(self, records: int = 0) -> None:
        self.records = records

    def add(self, records: Records) -> None:
        """Takes records of the method, to be stored with the next snapshot."""
        self.records += records.count

    def advance(self, now: Snapshot) -> None:
        """Stores where the job stands."""

    def cancel(self, now: Snapshot) -> None:
        """Stores that the job was asked to stop."""

    def begin_again(self, now: Snapshot, content: bytes) -> None:
        """Drops all records, and stores ``content`` as the new key of the job's artifact."""
        self.records = 0

    def finish(self, now: Snapshot, artifact: StoredArtifact | None) -> None:
        """Stores the end."""

    @property
    def behind(self) -> bool:
        """Whether there are records that are not stored."""
        return False


class StoredJournal(Journal):
    """A journal in a `JobStore`.

    Args:
        store: the store that holds the job.
        job: id of the job in the store.
        records: how many records are stored already.
    """

    def __init__(self, store: JobStore, job: int, records: int = 0) -> None:
        super().__init__(records)
        self._store, self._job, self._stored, self._new = store, job, records, NO_RECORDS

    def add(self, records: Records) -> None:
        super().add(records)
        self._new += records

    def advance(self, now: Snapshot) -> None:
        self._store.advance(self._job, now, self._stored, self._new.data, self._new.alone)
        self._written()

    def cancel(self, now: Snapshot) -> None:
        self._store.cancel(self._job, now)

    def begin_again(self, now: Snapshot, content: bytes) -> None:
        self._store.begin_again(self._job, content, now)
        super().begin_again(now, content)
        self._written()

    def finish(self, now: Snapshot, artifact: StoredArtifact | None) -> None:
        self._store.finish(self._job, now, self._stored, self._new.data, artifact, self._new.alone)
        self._written()

    def _written(self) -> None:
        self._stored, self._new = self.records, NO_RECORDS

    @property
    def behind(self) -> bool:
        return self._stored < self.records


class Job:
    """One job, safe to read and watch from any thread. A change is stored before anybody can see it.

    ``scheduling`` is what the scheduler tells about the job, and is not stored. Methods that change anything
    else raise StorageError, and then change nothing.

    Args:
        name: resource name.
        spec: what was asked for; without prompts for a finished job.
        total: how many units of work there are.
        unit: what the units are, in the plural, such as "edges".
        snapshot: where the job stands; None for a new one.
        journal: stores what changes; None to store nothing.
        ended: called once, when the job has become final.
        facts: what was found about the request when it was accepted.
        summary: summary of the artifact; None if there is none.
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
        # A lock of its own: whoever begins to listen must not wait while a change is stored.
        self._listening = threading.Lock()

    @classmethod
    def of_record(
        cls,
        record: JobRecord,
        spec: JobSpec,
        facts: RequestFacts,
        journal: Journal | None = None,
        ended: Callable[[Job], None] = lambda job: None,
    ) -> Job:
        """Makes the job of a stored record; see `Job` for the other arguments."""
        return cls(
            record.name,
            spec,
            record.total,
            record.unit,
            record.snapshot,
            journal,
            ended,
            facts,
            record.summary,
        )

    @property
    def snapshot(self) -> Snapshot:
        """Where the job stands."""
        return self._snapshot

    @property
    def summary(self) -> ArtifactSummary | None:
        """What lists of jobs tell of its artifact; None unless the job has succeeded."""
        return self._summary

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about its artifact, as far as it is known by now."""
        return (*self.facts.warnings, *(self._summary.warnings if self._summary else ()))

    @property
    def interrupted(self) -> bool:
        """Whether this process has stopped working on the job, and leaves it to a later one."""
        return self._interrupted

    @property
    def unstored(self) -> bool:
        """Whether the job has failed and that could not be stored, so that only this process knows it."""
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
        """Notes that this process begins to work on the job."""
        now = self._snapshot
        self._change(
            JobState.RUNNING,
            self._journal.advance,
            started=self._later(),
            crash_count=now.crash_count + 1,  # back to 0 with its next record, or when it stops in good order
            begun=(time.monotonic(), now.progress.done),
        )

    def begin_again(self, content: bytes) -> None:
        """Drops all journal records, which come from another version of the server or other hardware.

        Args:
            content: the new key of its artifact, see `provenance.content_key`.
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

    def update(self, progress: Progress, records: Records = NO_RECORDS) -> None:
        """Takes note of progress and new journal records.

        Records that cannot be stored now are stored with the next ones.
        """
        self._journal.add(records)
        before = self._snapshot
        # Watchers rely on it: the sequence number of an event never falls.
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
            **({"crash_count": 0} if records.count else {}),
        )

    def cancel(self) -> None:
        """Asks the job to stop; has no effect on a final one."""
        self._change(JobState.CANCELLING, self._journal.cancel)

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop and has not stopped yet."""
        return self._snapshot.state is JobState.CANCELLING

    def succeed(self, artifact: StoredArtifact) -> None:
        """Ends with an artifact. The store keeps it, and this object only its summary."""

        def save(now: Snapshot) -> None:
            self._journal.finish(now, artifact)
            self._summary = artifact.summary  # before anybody sees that it has ended

        self._end(JobState.SUCCEEDED, save)

    def end_cancelled(self) -> None:
        """Ends as cancelled."""
        self._end(JobState.CANCELLED, lambda now: self._journal.finish(now, None))

    def fail(self, error: Exception) -> None:
        """Ends as failed, with this error as the reason."""
        # The text of an unexpected exception may quote the request: it belongs into the log only.
        known = isinstance(error, (ServerError, MemoryError))
        text = f"internal error ({type(error).__name__}); see the server's log"
        if known:
            text = str(error) or "not enough memory"  # a MemoryError says nothing
        self._end(JobState.FAILED, lambda now: self._journal.finish(now, None), error=text)

    def fail_unstored(self, error: ServerError) -> None:
        """Ends as failed without storing that, because the store is damaged."""
        self._unstored = True
        self._end(JobState.FAILED, lambda now: None, error=str(error))

    def interrupt(self, in_good_order: bool = True) -> None:
        """Leaves the job to a later process.

        Args:
            in_good_order: whether the server was asked to stop. If it was not, the job may be the reason, and
                its crash count stays as it is. A job that was running at too many crashes fails.
        """
        with suppress(StorageError), self._lock:
            now = replace(self._snapshot, records=self._journal.records)
            now = replace(now, crash_count=0) if in_good_order else now
            if now != self._snapshot or self._journal.behind:  # most jobs that wait have nothing new
                self._journal.advance(now)
            self._snapshot = now
        self.leave()

    def leave(self) -> None:
        """Leaves a job that this process has not begun to work on to a later process; stores nothing."""
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
        """Returns the present, or the latest time known of this job if the clock was set back."""
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
