"""The run of a job: drives its method, step by step, as the scheduler asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pahq_server.core.artifact import Artifact
from pahq_server.core.context import log_context
from pahq_server.core.engine import Capabilities, ResolvedObjective
from pahq_server.core.errors import StorageError, WorkerFailedError
from pahq_server.core.observer import Observer
from pahq_server.core.operations import Operation
from pahq_server.jobs.files import JobFiles
from pahq_server.jobs.job import Job
from pahq_server.jobs.provenance import request_provenance, run_provenance
from pahq_server.methods.base import MethodContext, Steps
from pahq_server.scheduler.run import QueuePosition
from pahq_server.store.records import StoredArtifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What all runs of a service share.

    Args:
        window: how many patched passes a method may ask for at once, about.
        workers: returns how many workers share the operations of a job, about.
        capabilities: capabilities of the engine, for provenance.
        version: version of the server, for provenance.
        observer: is told how methods advance.
        leave: decides whether a job that ends with this error is left to a later process.
        later: takes the end of a job that could not be stored, to try again.
        ended: called once for every job that has become final.
        files: has the folders of jobs.
    """

    window: int
    workers: Callable[[], int]
    capabilities: Capabilities
    version: str
    observer: Observer
    leave: Callable[[Exception], bool]
    later: Callable[[Job, Callable[[], None]], None]
    ended: Callable[[Job], None]
    files: JobFiles

    def end(self, job: Job, end: Callable[[], None]) -> None:
        """Ends a job by calling ``end``, now or as soon as that can be stored."""
        try:
            end()
        except StorageError as error:
            logger.error("the end of a job could not be stored: %s", error)
            if error.damaged:
                job.fail_unstored(error)
            else:
                self.later(job, end)


class MethodRun:
    """A `Run` of the scheduler: drives the method of one job, and stores and reports how far it is.

    Args:
        job: takes the progress and the end.
        resolved: its objective.
        shared: what all runs share.
        journal: the records of earlier processes, in pieces; ``job.snapshot.records`` says how many they are.
    """

    def __init__(
        self, job: Job, resolved: ResolvedObjective, shared: RunContext, journal: Sequence[bytes] = ()
    ) -> None:
        self.resolved, self.user, self.name = resolved, job.user, job.name
        self._job, self._shared = job, shared
        self._method = job.spec.check()
        self._context: MethodContext[Any] = MethodContext(
            resolved,
            job.spec.parameters,
            journal,
            job.snapshot.records,
            shared.window,
            job.scheduling.clock,
            shared.workers,
            lambda size: shared.files.folder(job.user, job.name, size),
        )
        self._context.tell(job.snapshot.progress)
        self._steps: Steps | None = None
        self._started = time.time()
        # Seconds from the job's start until this process began, and that moment on the monotonic clock: with
        # these the duration is right even if the wall clock is set meanwhile.
        self._before, self._begun = 0.0, time.monotonic()
        self._told = (0, 0)  # passes, and of these wasted, that the observer knows of
        self._found: Artifact | None = None
        self._late = False  # whether something waits to be stored

    # Run

    def begin(self) -> Operation | None:
        self._stored(self._job.start)
        self._started = self._job.snapshot.started or time.time()
        self._before, self._begun = max(0.0, time.time() - self._started), time.monotonic()
        self._steps = self._method.run(self._context)
        return self._advance(None)

    def deliver(self, result: object) -> Operation | None:
        operation = self._advance(result)
        self._note()
        return operation

    def stopped(self) -> bool:
        return self._job.cancelling

    def end(self, error: Exception | None) -> None:
        if self._found is not None:
            artifact = self._stored_artifact(self._found)
            self._end(lambda: self._succeed(artifact))
        elif error is None or self._job.cancelling:
            self._end(self._job.end_cancelled)
        elif self._shared.leave(error):
            self._job.interrupt(in_good_order=not isinstance(error.__cause__, WorkerFailedError))
        else:
            failed = error
            self._end(lambda: self._job.fail(failed))

    def done(self) -> float:
        return min(1.0, self._context.progress.done / self._job.total)

    def charge(self, seconds: float) -> None:
        self._job.scheduling.charge(seconds)

    def queued_at(self, position: QueuePosition) -> None:
        self._job.queued_at(position)

    # Steps

    def _advance(self, result: object) -> Operation | None:
        """Hands the result of the last operation to the method; returns the next one, None at the end."""
        assert self._steps is not None, "a run begins before it goes on"
        try:
            operation = self._steps.send(result)
        except StopIteration as stop:
            if not isinstance(stop.value, Artifact):
                raise TypeError(f"method {self._method.name!r} returned no artifact") from None
            self._found = stop.value
            return None
        if not isinstance(operation, Operation):
            raise TypeError(f"method {self._method.name!r} asked for {type(operation).__name__}")
        return operation

    def _note(self) -> None:
        """Stores and reports what the method did since the last call."""
        context = self._context
        records = context.take_records()
        self._stored(lambda: self._job.update(context.progress, records))
        passes, wasted = self._told
        self._told = context.counts["passes"], context.counts["wasted"]
        self._shared.observer.method_advanced(records.count, self._told[0] - passes, self._told[1] - wasted)

    def _stored(self, change: Callable[[], None]) -> None:
        """Makes a change. One that cannot be stored now is stored with the next one; the method goes on."""
        try:
            change()
            self._late = False
        except StorageError as error:
            if error.damaged:
                raise
            if not self._late:
                with log_context(job=self.name, user=self.user):
                    logger.warning("what is found will be stored later: %s", error)
            self._late = True

    # The end

    def _succeed(self, artifact: StoredArtifact) -> None:
        # What went before may not have been stored.
        self._job.update(self._context.progress)
        self._job.succeed(artifact)

    def _end(self, end: Callable[[], None]) -> None:
        """Ends the job now, or as soon as that can be stored."""
        with log_context(job=self.name, user=self.user):
            try:
                self._shared.end(self._job, end)
            except Exception as error:
                # An artifact that cannot be written must not leave its job without an end.
                logger.exception("the end of a job cannot be stored")
                failed = error
                self._shared.end(self._job, lambda: self._job.fail(failed))

    def _stored_artifact(self, found: Artifact) -> StoredArtifact:
        spec, shared = self._job.spec, self._shared
        run = run_provenance(
            spec,
            self._started,
            max(self._started, time.time()),
            self._before + time.monotonic() - self._begun,
            shared.capabilities,
            {**self._context.counts, "replayed": self._context.replayed},
            self._context.chosen,
            found.warnings,
        )
        return StoredArtifact(found, request_provenance(spec, self.resolved, shared.version), run)
