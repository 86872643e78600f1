"""A job: the state of one discovery, safe to read and watch from any thread."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pahq_server.core.engine import Prepared
from pahq_server.core.errors import ServerError
from pahq_server.jobs.result import DiscoveryResult
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.search.base import SearchProgress


class JobState(enum.Enum):
    """Life of a job. The last three are final."""

    QUEUED = 1
    RUNNING = 2
    CANCELLING = 3
    CANCELLED = 4
    SUCCEEDED = 5
    FAILED = 6

    @property
    def final(self) -> bool:
        return self in (JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True)
class Snapshot:
    """Everything about a job that changes, at one moment. Times are seconds since the epoch."""

    state: JobState
    progress: SearchProgress
    created: float
    evaluations: int = 0
    started: float | None = None
    ended: float | None = None
    error: str = ""
    result: DiscoveryResult | None = None

    @property
    def sequence(self) -> int:
        """Grows with every change: one per evaluation and one per change of state."""
        return self.evaluations + min(self.state.value, JobState.CANCELLED.value)

    def eta_s(self, total: int) -> float | None:
        """Estimated seconds to the end, from the pace so far; None while there is none."""
        if self.started is None or not self.progress.decided or self.state.final:
            return None
        pace = (time.time() - self.started) / self.progress.decided
        return pace * (total - self.progress.decided)


class Job:
    """One discovery.

    Args:
        name: resource name.
        spec, prepared: what was asked for, and its checked form.
    """

    def __init__(self, name: str, spec: DiscoverySpec, prepared: Prepared) -> None:
        self.name, self.spec, self.prepared = name, spec, prepared
        self._snapshot = Snapshot(JobState.QUEUED, SearchProgress(0, 0, 0.0), time.time())
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.Lock()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls ``listener`` after every change, from the thread that made it; returns how to stop."""
        with self._lock:
            self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def start(self) -> None:
        self._change(JobState.RUNNING, started=time.time())

    def update(self, progress: SearchProgress, evaluations: int) -> None:
        self._change(None, progress=progress, evaluations=evaluations)

    def cancel(self) -> None:
        """Asks the job to stop; has no effect on a final one."""
        self._change(JobState.CANCELLING)

    @property
    def cancelling(self) -> bool:
        return self._snapshot.state is JobState.CANCELLING

    def succeed(self, result: DiscoveryResult) -> None:
        self._change(JobState.SUCCEEDED, result=result, ended=time.time())

    def end_cancelled(self) -> None:
        self._change(JobState.CANCELLED, ended=time.time())

    def fail(self, error: Exception) -> None:
        # An unexpected exception may quote anything; its details belong into the log.
        known = isinstance(error, (ServerError, MemoryError))
        text = str(error) if known else f"internal error ({type(error).__name__}); see the server's log"
        self._change(JobState.FAILED, error=text, ended=time.time())

    def _change(self, state: JobState | None, **values: object) -> None:
        with self._lock:
            now = self._snapshot
            # States only go forward: a cancel may race with the end, an update with a cancel.
            if now.state.final or (state is not None and state.value <= now.state.value):
                state, values = None, {} if now.state.final else values
            self._snapshot = replace(now, state=state or now.state, **values)  # type: ignore[arg-type]
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
