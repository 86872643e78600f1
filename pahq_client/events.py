"""What a running discovery reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """Where a discovery stands; compares equal to its name."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED)


class EventKind(StrEnum):
    """What an event tells: a new state, progress, or the end."""

    STATE = "STATE"
    PROGRESS = "PROGRESS"
    END = "END"


@dataclass(frozen=True)
class Event:
    """Something that happened to a discovery.

    Args:
        sequence: increases; gaps are allowed.
        kind: what happened.
        state: the discovery's state after it.
        decided: edges whose fate is known.
        total: edges of the graph.
        kept: of the decided edges, those that stay.
        metric: of the circuit so far.
        evaluations: evaluations so far.
        eta_s: estimated seconds until the end; None when unknown.
        error: why the discovery failed; empty unless it did.
    """

    sequence: int
    kind: EventKind
    state: JobState
    decided: int = 0
    total: int = 0
    kept: int = 0
    metric: float = 0.0
    evaluations: int = 0
    eta_s: float | None = None
    error: str = ""
