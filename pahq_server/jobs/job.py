"""A job: the state of one discovery, safe to read and watch from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from pahq_server.core.errors import ServerError, StorageError
from pahq_server.core.verdict import Verdict
from pahq_server.jobs.journal import Journal
from pahq_server.jobs.spec import DiscoverySpec, RequestFacts
from pahq_server.jobs.standing import Standing
from pahq_server.scheduler.places import Place
from pahq_server.search.base import SearchProgress
from pahq_server.store.records import DiscoveryResult, JobState, Outcome, Snapshot

__all__ = ["Job", "JobState", "Snapshot"]


class Job:
    """One discovery. What changes is stored before anybody can see it.

    ``standing`` is what the scheduler tells about it. Methods that change the rest raise StorageError, and
    change nothing then.

    Args:
        name: resource name.
        spec: what was asked for; of a finished job without prompts.
        facts: what was found about the request when it was accepted.
        outcome: of the result, if there is one.
        total: edges of the graph.
        snapshot: where it stands; None for a new one.
        journal: stores what changes.
        ended: called once, when it has become final.
    """

    def __init__(
        self,
        name: str,
        spec: DiscoverySpec,
        total: int,
        snapshot: Snapshot | None = None,
        journal: Journal | None = None,
        ended: Callable[[Job], None] = lambda job: None,
        facts: RequestFacts | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        self.name, self.spec, self.total = name, spec, total
        self.facts, self._outcome = facts or RequestFacts(), outcome
        self._snapshot = snapshot or Snapshot(JobState.QUEUED, SearchProgress(0, 0, 0.0), time.time())
        self._journal, self._ended = journal or Journal(), ended
        self.standing = Standing(charged_s=self._snapshot.charged)
        self._interrupted = self._unstored = False
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.Lock()
        # Apart: who begins to listen must not wait while a change is stored.
        self._listening = threading.Lock()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def outcome(self) -> Outcome | None:
        """What is known of its result; None unless it has succeeded."""
        return self._outcome

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about its answer, as far as it is known by now."""
        return (*self.facts.warnings, *(self._outcome.warnings if self._outcome else ()))

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

    def moved_to(self, place: Place) -> None:
        """Takes note of its place in the queue."""
        if self.standing.moved_to(place):
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
            deaths=now.deaths + 1,  # unless it comes further, or is stopped in good order
            begun=(time.monotonic(), now.progress.decided),
        )

    def begin_again(self, content: bytes) -> None:
        """Gives up all verdicts: they are of another version or other hardware.

        Args:
            content: key of the result that it has now.
        """
        with self._lock:
            now = self._snapshot
            if now.state.final:
                return
            after = replace(
                now,
                progress=SearchProgress(0, 0, 0.0),
                evaluations=0,
                dropped=now.dropped + now.evaluations,
            )
            self._journal.begin_again(after, content)
            self._snapshot = after
        self._tell()

    def update(self, progress: SearchProgress, evaluations: int, verdicts: Sequence[Verdict] = ()) -> None:
        """Takes note of verdicts; where they cannot be stored now, they are with the next ones."""
        self._journal.add(verdicts)
        before = self._snapshot
        # Its start may not have been stored.
        self._change(
            JobState.RUNNING,
            self._journal.advance,
            progress=progress,
            evaluations=evaluations,
            charged=self.standing.charged_s,
            started=self._later(),
            begun=before.begun or (time.monotonic(), before.progress.decided),
            **({"deaths": 0} if verdicts else {}),
        )

    def cancel(self) -> None:
        """Asks the job to stop; has no effect on a final one."""
        self._change(JobState.CANCELLING, self._journal.cancel)

    @property
    def cancelling(self) -> bool:
        return self._snapshot.state is JobState.CANCELLING

    def succeed(self, result: DiscoveryResult, outcome: Outcome | None = None) -> None:
        """Ends with a result, which only the store keeps; all that stays here is its outcome."""

        def save(now: Snapshot) -> None:
            self._journal.finish(now, result)
            self._outcome = outcome  # before anybody sees that it has ended

        self._end(JobState.SUCCEEDED, save)

    def end_cancelled(self) -> None:
        self._end(JobState.CANCELLED, lambda now: self._journal.finish(now, None))

    def fail(self, error: Exception) -> None:
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
            in_good_order: whether the job has nothing to do with why: else it counts as a death, like that
                of a process that was killed, and after several of them the job fails.
        """
        with suppress(StorageError), self._lock:
            now = replace(self._snapshot, deaths=0) if in_good_order else self._snapshot
            if now != self._snapshot or self._journal.behind:  # of a thousand that wait, none has news
                self._journal.advance(now)
            self._snapshot = now
        self.leave()

    def leave(self) -> None:
        """As `interrupt`, of a job that this process has not taken up: its deaths are others' to count."""
        self._interrupted = True
        self._tell()

    def _end(self, state: JobState, save: Callable[[Snapshot], None], **values: object) -> None:
        self._change(state, save, ended=self._later(), charged=self.standing.charged_s, **values)

    def _later(self) -> float:
        """The present; where a clock was set back, the latest moment that is known of this job."""
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
