"""The values that a store of jobs takes and gives."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pahq_server.core.artifact import Artifact, Progress


class JobState(enum.Enum):
    """Where a job stands. States only go forward, and the last three are final."""

    QUEUED = 1
    RUNNING = 2
    CANCELLING = 3
    CANCELLED = 4
    SUCCEEDED = 5
    FAILED = 6

    @property
    def final(self) -> bool:
        """Whether a job in this state will never change again."""
        return self.value >= JobState.CANCELLED.value


@dataclass(frozen=True)
class Snapshot:
    """Everything about a job that changes, at one moment. Times are seconds since the epoch.

    Args:
        state: where the job stands.
        progress: how far its method is.
        created: when it was accepted.
        records: how many records its journal holds.
        started, ended: when it began to run and when it ended; None for what has not happened.
        error: why it failed; empty unless it did.
        dropped: records and units of earlier attempts that were given up; they stay part of `sequence`.
        charged: seconds of the worker's time that it took.
        crash_count: how many processes crashed while they ran it, since its last record.
        begun: when this process began to run it, in seconds of the monotonic clock, and how many units were
            done then; None if it did not. Never stored.
    """

    state: JobState
    progress: Progress
    created: float
    records: int = 0
    started: float | None = None
    ended: float | None = None
    error: str = ""
    dropped: int = 0
    charged: float = 0.0
    crash_count: int = 0
    begun: tuple[float, int] | None = None

    @property
    def sequence(self) -> int:
        """A number that grows with every record, every unit that is done and every change of state."""
        return (
            self.dropped + self.records + self.progress.done + min(self.state.value, JobState.CANCELLED.value)
        )

    def eta_s(self, total: int) -> float | None:
        """Estimates the seconds until the end from the pace so far; None while there is no pace.

        Args:
            total: units of work in all.
        """
        if self.begun is None or self.state.final:
            return None
        since, before = self.begun
        if self.progress.done <= before:
            return None
        pace = (time.monotonic() - since) / (self.progress.done - before)
        return max(0.0, pace * (total - self.progress.done))


@dataclass(frozen=True)
class NewJob:
    """A job that is about to be created.

    Args:
        name: resource name, ``users/{user}/jobs/{id}``.
        user: whose it is.
        request_id: chosen by the client; empty if none was.
        payload: SHA-256 of what was asked for: 32 bytes.
        spec: JSON of what was asked for, without prompts, and of what was found about it.
        prompts: JSON of the prompts; None where nothing needs them, as for most built-in tasks.
        total: units of work in all.
        unit: what the units of work are, in the plural, such as "edges".
        tokens: number of tokens of all prompts together.
        revision: revision of the model.
        content: SHA-256 of all that determines the artifact: 32 bytes.
        created: seconds since the epoch.
    """

    name: str
    user: str
    request_id: str
    payload: bytes
    spec: str
    prompts: str | None
    total: int
    unit: str
    tokens: int
    revision: str
    content: bytes
    created: float


@dataclass(frozen=True)
class ArtifactSummary:
    """What a list of jobs tells of an artifact, without its bytes.

    Args:
        kind: as in `Artifact`.
        figures: numbers by name; all finite.
        warnings: what may mislead about it.
    """

    kind: str
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact, and where it comes from.

    Args:
        artifact: what the method found.
        request: provenance: what determines the artifact. Equal requests give equal artifacts.
        run: provenance: what happened in the run that found it.
        prompts: JSON of the prompts, if the job was to include them. The store does not keep it with the
            artifact, which several jobs may share: the job service adds it.
        partial: whether the job was cancelled or failed, so that this is what it had found by then. The job
            service makes partial artifacts from the journal; they are never stored.
    """

    artifact: Artifact
    request: dict[str, object]
    run: dict[str, object]
    prompts: str | None = None
    partial: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about the artifact."""
        return self.artifact.warnings

    @property
    def summary(self) -> ArtifactSummary:
        """What a list of jobs tells of the artifact."""
        return ArtifactSummary(self.artifact.kind, self.artifact.figures, self.artifact.warnings)


@dataclass(frozen=True)
class JobRecord:
    """A job as it is stored. Its prompts, its journal and its artifact are read on their own.

    Args:
        id: grows with every new job, and is never used again.
        name, user, payload, spec, total, unit, revision, content: as in `NewJob`.
        snapshot: where the job stands.
        summary: summary of its artifact, if it has one.
        damage: what of the stored row cannot be read; empty if all of it can. The snapshot of a damaged job
            says that it has failed, and its other values are only those that can still be trusted.
    """

    id: int
    name: str
    user: str
    payload: bytes
    spec: str
    total: int
    unit: str
    revision: str
    content: bytes
    snapshot: Snapshot
    summary: ArtifactSummary | None = None
    damage: str = ""


@dataclass(frozen=True)
class Usage:
    """What counts towards the quotas of a user, as far as it is stored.

    Args:
        queued: jobs that wait for their turn.
        tokens: number of tokens of the prompts of all unfinished jobs.
        results: artifacts that are kept, and jobs that may still give one.
    """

    queued: int
    tokens: int
    results: int


@dataclass(frozen=True)
class Retention:
    """How long finished jobs are kept.

    Args:
        jobs: how many of each user, the newest; None for all.
        seconds: how long after their end; None for ever.
    """

    jobs: int | None = 10_000
    seconds: float | None = None
