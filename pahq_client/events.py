"""What a running discovery reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from pahq_client.elements import CircuitMetric


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
        sequence: increases, gaps are allowed; an event that tells only a new queue position repeats it.
        kind: what happened.
        state: the discovery's state after it.
        decided: edges whose fate is known.
        total: edges of the graph.
        kept: of the decided edges, those that stay.
        metric: of the circuit so far.
        evaluations: evaluations so far.
        eta_s: estimated seconds until the end; None when unknown.
        error: why the discovery failed; empty unless it did.
        queue_position: place among all waiting discoveries, 1 for the next to begin; None when it does not
            wait, or when unknown.
        estimated_start: when it is likely to begin; None when it does not wait, or when unknown.
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
    queue_position: int | None = None
    estimated_start: datetime | None = None


@dataclass(frozen=True)
class JobInfo:
    """A discovery as the server knew it at some moment.

    Args:
        name: resource name.
        state: where it stands.
        model: name of the model.
        method: ``acdc`` or ``single_edge``.
        metric: name of the metric.
        threshold: None if there is none.
        task: the task in words: the name of a built-in one, and how many prompts it has.
        num_prompts: how many prompts (pairs, if there are corrupted ones) it has; 0 if unknown.
        decided: edges whose fate is known.
        total: edges of the graph; 0 before the discovery runs.
        kept: of the decided edges, those that stay.
        metric_value: of the circuit so far; of a job that succeeded, of its circuit.
        evaluations: evaluations so far.
        eta_s: estimated seconds until the end; None when unknown.
        queue_position: place among all waiting discoveries, 1 for the next to begin; None when unknown.
        estimated_start: when it is likely to begin; None when unknown.
        charged_s: seconds of the server's work that it took so far.
        created: when it was accepted.
        started: when it began to run; None if it did not.
        ended: when it ended; None if it did not.
        error: why it failed; empty unless it did.
        metric_full: the metric of the full model; None unless it succeeded.
        metric_empty: the metric of the empty circuit; None unless it succeeded.
        warnings: what may mislead about the answer, as far as it is known by now; each tells what to do.
    """

    name: str
    state: JobState
    model: str = ""
    method: str = ""
    metric: str = ""
    threshold: float | None = None
    decided: int = 0
    total: int = 0
    kept: int = 0
    metric_value: float = 0.0
    evaluations: int = 0
    eta_s: float | None = None
    queue_position: int | None = None
    estimated_start: datetime | None = None
    charged_s: float = 0.0
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""
    task: str = ""
    num_prompts: int = 0
    metric_full: float | None = None
    metric_empty: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def faithfulness(self) -> float | None:
        """That of the circuit, see `CircuitMetric`; None unless it succeeded, and where there is none."""
        if self.metric_full is None or self.metric_empty is None:
            return None
        return CircuitMetric(self.metric, self.metric_value, self.metric_full, self.metric_empty).faithfulness

    def after(self, event: Event) -> JobInfo:
        """What is known after an event."""
        return replace(
            self,
            state=event.state,
            decided=event.decided,
            total=event.total,
            kept=event.kept,
            metric_value=event.metric,
            evaluations=event.evaluations,
            eta_s=event.eta_s,
            queue_position=event.queue_position,
            estimated_start=event.estimated_start,
            error=event.error,
        )
