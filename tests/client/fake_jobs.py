"""Jobs of the fake server, and the artifact that they give."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from pahq.v1 import jobs_pb2 as pb
from pahq.v1.jobs_pb2_grpc import JobServiceServicer

from .fake_artifact import FakeArtifact
from .faults import Code, Fault

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FINAL = (pb.JOB_STATE_CANCELLED, pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED)


class FakeJob:
    """A job with a list of events that grows."""

    def __init__(self, name: str, spec: pb.JobSpec | None = None) -> None:
        self.name = name
        self.spec = spec
        self.events: list[pb.Event] = []
        self.changed = threading.Condition()
        self.warnings: list[str] = []  # the first one is known from the start
        self.figures: dict[str, float] = {}

    @property
    def sequence(self) -> int:
        return self.events[-1].sequence if self.events else 0

    def add(self, state: int, kind: int = pb.EVENT_KIND_STATE, error: str = "", decided: int = 0) -> None:
        figures = {"kept": decided // 2, "metric": 0.5, "evaluations": decided}
        progress = pb.Progress(done=decided, total=10, unit="edges", figures=figures)
        with self.changed:
            event = pb.Event(
                sequence=self.sequence + 1, kind=kind, state=state, error_message=error, progress=progress
            )
            self.events.append(event)
            self.changed.notify_all()

    def move(self, position: int, start: datetime) -> None:
        """Reports a new queue position: all else stays, the sequence number too."""
        with self.changed:
            event = pb.Event()
            event.CopyFrom(self.events[-1])
            event.queue_position = position
            event.estimated_start_time.FromDatetime(start)
            self.events.append(event)
            self.changed.notify_all()

    def end(self, state: int, error: str = "") -> None:
        self.add(state, pb.EVENT_KIND_END, error, decided=10)

    @property
    def state(self) -> int:
        return self.events[-1].state

    def message(self) -> pb.Discovery:
        latest = self.events[-1]
        message = pb.Job(
            name=self.name,
            spec=self.spec,
            state=latest.state,
            progress=latest.progress,
            error_message=latest.error_message,
            charged_seconds=1.5,
            warnings=self.warnings if latest.state in FINAL else self.warnings[:1],
            num_prompts=16,
            create_time=STARTED,
            start_time=STARTED,
        )
        if latest.state in FINAL:
            message.end_time.FromDatetime(STARTED + timedelta(seconds=65))
        if latest.state == pb.JOB_STATE_SUCCEEDED:
            message.artifact.CopyFrom(pb.ArtifactSummary(kind="circuit", figures=self.figures))
        if latest.HasField("queue_position"):
            message.queue_position = latest.queue_position
            message.estimated_start_time.CopyFrom(latest.estimated_start_time)
        return message


class FakeJobs(JobServiceServicer):
    """The job service; a part of `FakeServer`."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.by_request: dict[str, FakeJob] = {}
        # None: jobs run until they are cancelled.
        self.outcome: tuple[int, str] | None = (pb.JOB_STATE_SUCCEEDED, "")
        self.cuts: list[int] = []  # per stream: after so many events it breaks off
        self.cut_fault: Fault | None = Fault(Code.UNAVAILABLE)  # None: it just ends
        self.repeat = False  # streams ignore after_sequence
        self.artifact = FakeArtifact()
        self.list_pages: list[list[str]] = [[]]
        self.warnings: list[str] = []  # of every answer; of jobs, the first one is known from the start
        self.figures: dict[str, float] = {}  # of the artifact of every job that succeeded
        self.watching = threading.Event()
        self.cancelled = threading.Event()
        self._closing = threading.Event()

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        raise NotImplementedError

    def _job(self, name: str, context: grpc.ServicerContext) -> FakeJob:
        if name not in self.jobs:
            Fault(Code.NOT_FOUND, f"no {name}", "NOT_FOUND", {"name": name}).raise_on(context)
        return self.jobs[name]

    def CreateJob(self, request: Any, context: Any) -> Any:
        if request.validate_only:
            self._enter("CreateJob", request, context)
            estimate = pb.Estimate(
                memory_bytes=1 << 20,
                least_seconds=2,
                most_seconds=90,
                streams_weights=True,
                warnings=self.warnings[:1],
            )
            return pb.CreateJobResponse(job=pb.Job(spec=request.spec), estimate=estimate)
        job = self.by_request.get(request.request_id)
        if job is None:
            job = FakeJob(f"users/me/jobs/{len(self.jobs)}", request.spec)
            self.jobs[job.name] = self.by_request[request.request_id] = job
            job.warnings, job.figures = self.warnings, self.figures
            job.add(pb.JOB_STATE_QUEUED)
            job.add(pb.JOB_STATE_RUNNING)
            job.add(pb.JOB_STATE_RUNNING, pb.EVENT_KIND_PROGRESS, decided=4)
            if self.outcome is not None:
                job.end(*self.outcome)
        self._enter("CreateJob", request, context)  # after the work: a fault loses the answer only
        return pb.CreateJobResponse(job=job.message())

    def GetJob(self, request: Any, context: Any) -> Any:
        self._enter("GetJob", request, context)
        return pb.GetJobResponse(job=self._job(request.name, context).message())

    def ListJobs(self, request: Any, context: Any) -> Any:
        self._enter("ListJobs", request, context)
        page = int(request.page_token or 0)
        more = page + 1 < len(self.list_pages)
        return pb.ListJobsResponse(
            jobs=[self._listed(name) for name in self.list_pages[page]],
            next_page_token=str(page + 1) if more else "",
        )

    def _listed(self, name: str) -> pb.Discovery:
        if name in self.jobs:
            return self.jobs[name].message()
        return pb.Job(name=name, state=pb.JOB_STATE_SUCCEEDED)

    def CancelJob(self, request: Any, context: Any) -> Any:
        self._enter("CancelJob", request, context)
        job = self._job(request.name, context)
        if job.state not in FINAL:
            job.end(pb.JOB_STATE_CANCELLED)
        self.cancelled.set()
        return pb.CancelJobResponse(job=job.message())

    def DeleteJob(self, request: Any, context: Any) -> Any:
        self._enter("DeleteJob", request, context)
        del self.jobs[self._job(request.name, context).name]
        return pb.DeleteJobResponse()

    def WatchJob(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("WatchJob", request, context)
        job = self._job(request.name, context)
        cut = self.cuts.pop(0) if self.cuts else None
        self.watching.set()
        for count, event in enumerate(self._events(job, request.after_sequence, context)):
            if count == cut:
                break
            yield pb.WatchJobResponse(event=event)
        if cut is not None and self.cut_fault is not None:
            self.cut_fault.raise_on(context)

    def _events(self, job: FakeJob, after: int, context: grpc.ServicerContext) -> Iterator[pb.Event]:
        position = 0 if self.repeat else sum(event.sequence <= after for event in job.events)
        if position == len(job.events) and job.events[-1].HasField("queue_position"):
            position -= 1  # a repeated question gets the present position again
        while context.is_active() and not self._closing.is_set():
            with job.changed:
                if len(job.events) <= position:
                    job.changed.wait(timeout=0.02)
                news = job.events[position:]
            yield from news
            position += len(news)
            if job.state in FINAL and position == len(job.events):
                return

    def GetArtifact(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("GetArtifact", request, context)
        job = self._job(request.name, context)
        if job.state not in FINAL:
            Fault(Code.FAILED_PRECONDITION, f"{job.name} has not ended", "CONFLICT").raise_on(context)
        if job.state != pb.JOB_STATE_SUCCEEDED and not self.artifact.header.partial:
            Fault(Code.NOT_FOUND, "nothing was found", "NOT_FOUND", {"name": job.name}).raise_on(context)
        for message in self.artifact.messages():
            if message.HasField("header"):
                message.header.warnings[:] = job.warnings
            yield message
