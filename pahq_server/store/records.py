"""What is kept of a job."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass

from pahq_server.core.graph import Graph
from pahq_server.core.verdict import SearchResult
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
        return self.value >= JobState.CANCELLED.value


@dataclass(frozen=True)
class Snapshot:
    """Everything about a job that changes, at one moment. Times are seconds since the epoch.

    Args:
        state, progress: where it stands.
        created, started, ended: when; None for what has not happened.
        evaluations: that count.
        error: why it failed.
        dropped: evaluations of earlier tries, whose verdicts were given up.
        charged: seconds of work.
        deaths: processes that took it up since its last verdict, and were not stopped in good order.
        begun: when this process took it up, on the monotonic clock, and how many edges were decided then;
            None if it did not. Never stored.
    """

    state: JobState
    progress: SearchProgress
    created: float
    evaluations: int = 0
    started: float | None = None
    ended: float | None = None
    error: str = ""
    dropped: int = 0
    charged: float = 0.0
    deaths: int = 0
    begun: tuple[float, int] | None = None

    @property
    def sequence(self) -> int:
        """Grows with every change: one per evaluation and one per change of state."""
        return self.dropped + self.evaluations + min(self.state.value, JobState.CANCELLED.value)

    def eta_s(self, total: int) -> float | None:
        """Estimated seconds to the end, from the pace so far; None while there is none."""
        if self.begun is None or self.state.final:
            return None
        since, before = self.begun
        if self.progress.decided <= before:
            return None
        pace = (time.monotonic() - since) / (self.progress.decided - before)
        return max(0.0, pace * (total - self.progress.decided))


@dataclass(frozen=True)
class NewJob:
    """A job that is about to be created.

    Args:
        name: resource name.
        user: whose it is.
        request_id: chosen by the client; empty if none was.
        payload: SHA-256 of what was asked for: 32 bytes.
        spec: JSON of what was asked for, without prompts, and of what was found about it.
        prompts: JSON of the prompts; None for a built-in task, unless its prompts are to be in the result.
        total: edges of the graph.
        tokens: of all prompts.
        revision: of the model.
        content: SHA-256 of all that determines the result: 32 bytes.
        created: seconds since the epoch.
    """

    name: str
    user: str
    request_id: str
    payload: bytes
    spec: str
    prompts: str | None
    total: int
    tokens: int
    revision: str
    content: bytes
    created: float


@dataclass(frozen=True)
class Outcome:
    """What a list of jobs tells of a result.

    Args:
        value, full, empty: the metric of the circuit, the full model and the empty circuit.
        warnings: what may mislead about it.
    """

    value: float
    full: float
    empty: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRecord:
    """A job as it is stored; ``id`` grows with every new one. The prompts are read on their own.

    ``outcome`` is that of the result, if there is one.
    ``damage`` says what of the row cannot be read; it is empty if all can. A damaged job has failed, says so
    in its snapshot, and has only those other values that can still be believed.
    """

    id: int
    name: str
    user: str
    payload: bytes
    spec: str
    total: int
    revision: str
    content: bytes
    snapshot: Snapshot
    outcome: Outcome | None = None
    damage: str = ""


@dataclass(frozen=True)
class Usage:
    """What a user has in the store.

    Args:
        queued: jobs that wait for their turn.
        tokens: of the prompts of all unfinished jobs.
        results: that are kept, and jobs that may still give one.
    """

    queued: int
    tokens: int
    results: int


@dataclass(frozen=True)
class Retention:
    """How long finished jobs are kept.

    Args:
        jobs: the newest so many of each user; None for all.
        seconds: since their end; None for ever.
    """

    jobs: int | None = 10_000
    seconds: float | None = None


@dataclass(frozen=True)
class DiscoveryResult:
    """A circuit and where it comes from.

    Args:
        graph: that it is part of.
        metric: name of what was measured.
        search: what was found.
        request: determines the result; equal requests give equal results.
        run: what happened in this run.
        prompts: JSON of the prompts, for a job that asked to have them with the result. Not stored with it:
            the result may be another job's as well.
    """

    graph: Graph
    metric: str
    search: SearchResult
    request: dict[str, object]
    run: dict[str, object]
    prompts: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about it; none for results of servers that gave no warnings."""
        return warnings_of(self.run)

    @property
    def outcome(self) -> Outcome:
        found = self.search
        return Outcome(found.metric_value, found.metric_full, found.metric_empty, self.warnings)


def warnings_of(run: object) -> tuple[str, ...]:
    """The warnings in a result's account of its run."""
    found = run.get("warnings") if isinstance(run, dict) else None
    return tuple(map(str, found)) if isinstance(found, list) else ()
