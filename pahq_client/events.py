"""What a job reports: its state, its progress, and the events of a watch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from pahq_client.graph import CircuitMetric


class JobState(StrEnum):
    """Where a job stands; compares equal to its name."""

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
    """What an event reports: a new state, progress, or the end."""

    STATE = "STATE"
    PROGRESS = "PROGRESS"
    END = "END"


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        done: units of work that are done.
        total: units of work in all; 0 when unknown.
        unit: what is counted, in the plural, for example ``edges``.
        stage: what is being done, in a few words; may be empty.
        figures: numbers of the moment, by name. ACDC reports ``kept``, ``metric`` and ``evaluations``.
        eta_s: estimated seconds until the end; None when unknown.
    """

    done: int = 0
    total: int = 0
    unit: str = ""
    stage: str = ""
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)
    eta_s: float | None = None

    @property
    def kept(self) -> int:
        """How many of the decided edges stay; 0 where the method does not report it."""
        return int(self.figures.get("kept", 0))

    @property
    def metric(self) -> float:
        """The metric of the circuit so far; 0 where the method does not report it."""
        return self.figures.get("metric", 0.0)

    @property
    def evaluations(self) -> int:
        """How many circuits were measured so far; 0 where the method does not report it."""
        return int(self.figures.get("evaluations", 0))

    @property
    def work(self) -> int:
        """What speed is computed from: evaluations if they are reported, else units that are done."""
        return self.evaluations if "evaluations" in self.figures else self.done


class _WithProgress:
    """Short names for the parts of ``progress``."""

    progress: Progress
    state: JobState

    @property
    def has_begun(self) -> bool:
        """Whether there is progress to show: the job is not queued, and its amount of work is known."""
        return self.state is not JobState.QUEUED and self.progress.total > 0

    @property
    def decided(self) -> int:
        """How many units of work are done; of ACDC, edges that are kept or removed for good."""
        return self.progress.done

    @property
    def total(self) -> int:
        """How many units of work there are; of ACDC, edges of the graph. 0 when unknown."""
        return self.progress.total

    @property
    def kept(self) -> int:
        """How many of the decided edges stay; 0 where the method does not report it."""
        return self.progress.kept

    @property
    def evaluations(self) -> int:
        """How many circuits were measured so far; 0 where the method does not report it."""
        return self.progress.evaluations

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds until the end; None when unknown."""
        return self.progress.eta_s


@dataclass(frozen=True)
class Event(_WithProgress):
    """Something that happened to a job.

    Args:
        sequence: increases, gaps are allowed. An event that only reports a new queue position repeats the
            sequence of the event before it.
        kind: what happened.
        state: the job's state after it.
        progress: the job's progress after it.
        error: why the job failed; empty unless it did.
        queue_position: position among the waiting jobs of all users, 1 for the next to begin; None when the
            job does not wait, or when unknown.
        estimated_start: when the job is likely to begin; None when it does not wait, or when unknown.
    """

    sequence: int
    kind: EventKind
    state: JobState
    progress: Progress = Progress()
    error: str = ""
    queue_position: int | None = None
    estimated_start: datetime | None = None

    @property
    def metric(self) -> float:
        """The metric of the circuit so far; 0 where the method does not report it."""
        return self.progress.metric


@dataclass(frozen=True)
class JobInfo(_WithProgress):
    """A job as the server knew it at some moment.

    Args:
        name: resource name.
        state: where it stands.
        model: name of the model.
        method: name of the method, for example ``acdc``.
        metric: name of the metric.
        threshold: None if there is none.
        target: what ``acdc`` looks for a threshold for, in words such as ``30 edges``; for ``node_pruning``
            its budget or penalty, such as ``KL 0.1``; else empty.
        progress: how far it is.
        queue_position: position among the waiting jobs of all users, 1 for the next to begin; None when
            unknown.
        estimated_start: when it is likely to begin; None when unknown.
        charged_s: seconds of the server's work that it took so far.
        created: when it was accepted.
        started: when it began to run; None if it did not.
        ended: when it ended; None if it did not.
        error: why it failed; empty unless it did.
        task: the task in words: the name of a built-in one, and how many prompts it has.
        num_prompts: how many prompts (pairs, if there are corrupted ones) it has; 0 if unknown.
        artifact: kind of its artifact, for example ``circuit``; empty unless it succeeded.
        figures: numbers of its artifact, by name; empty unless it succeeded. Those of a circuit are
            ``metric``, ``metric_full`` and ``metric_empty``.
        warnings: what may mislead about the result, as far as it is known by now, each with what to do.
    """

    name: str
    state: JobState
    model: str = ""
    method: str = ""
    metric: str = ""
    threshold: float | None = None
    progress: Progress = Progress()
    queue_position: int | None = None
    estimated_start: datetime | None = None
    charged_s: float = 0.0
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""
    task: str = ""
    num_prompts: int = 0
    artifact: str = ""
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)
    warnings: tuple[str, ...] = ()
    target: str = ""

    @property
    def metric_value(self) -> float | None:
        """The metric of the circuit that was found, or of the circuit so far; None when unknown.

        While it runs, ``single_edge`` reports the metric of the full model instead.
        """
        return self.figures.get("metric", self.progress.figures.get("metric"))

    @property
    def metric_full(self) -> float | None:
        """The metric of the full model; None unless the job succeeded."""
        return self.figures.get("metric_full")

    @property
    def metric_empty(self) -> float | None:
        """The metric of the empty circuit; None unless the job succeeded."""
        return self.figures.get("metric_empty")

    @property
    def faithfulness(self) -> float | None:
        """The faithfulness of the circuit, see `CircuitMetric`; None unless there is one."""
        value, full, empty = self.figures.get("metric"), self.metric_full, self.metric_empty
        if value is None or full is None or empty is None:
            return None
        return CircuitMetric(self.metric, value, full, empty).faithfulness

    def after(self, event: Event) -> JobInfo:
        """Returns what is known after an event."""
        return replace(
            self,
            state=event.state,
            progress=event.progress,
            queue_position=event.queue_position,
            estimated_start=event.estimated_start,
            error=event.error,
        )
