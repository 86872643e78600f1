"""Resuming the jobs that an earlier process left unfinished, while calls are already being answered."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from pahq_server.core.context import log_context
from pahq_server.core.engine import Engine, ResolvedObjective
from pahq_server.core.errors import ServerError, StorageError
from pahq_server.jobs import spec as specs
from pahq_server.jobs.job import Job, JobState, StoredJournal
from pahq_server.jobs.run import MethodRun, RunContext
from pahq_server.jobs.spec import JobSpec
from pahq_server.store.base import JobStore
from pahq_server.store.records import JobRecord

# A job that was running at more crashes than this fails, since it may be what crashes the server.
MOST_CRASHES = 5
# Seconds until a database that could not be used is tried again.
RETRY_S = 1.0
# How many finished jobs are inspected at once, and the pause until the next, so that others can read.
PORTION, PORTION_PAUSE_S = 200, 0.01

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Left:
    """A job that an earlier process left unfinished: as it was stored, and as this process knows it."""

    record: JobRecord
    job: Job


class Resumption:
    """Makes runs of the jobs that are stored as unfinished, one after another. A job that cannot go on fails.

    Users take turns, and each user's jobs keep their order: a job that is created while older jobs of its
    user wait here waits behind them. From `find` on, the jobs can be asked about, watched and cancelled.

    Args:
        engine: resolves the jobs' objectives again.
        store: holds the jobs and their journals.
        shared: what all runs share.
        content: computes the key of a job's artifact, see `provenance.content_key`.
        submit: hands a run to the scheduler.
    """

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        shared: RunContext,
        content: Callable[[JobSpec, ResolvedObjective], bytes],
        submit: Callable[[MethodRun], None],
    ) -> None:
        self._engine, self._store, self._shared, self._content = engine, store, shared, content
        self._submit = submit
        # What waits, by user; whose turn it is comes first.
        self._lines: OrderedDict[str, deque[_Left | MethodRun]] = OrderedDict()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pahq-resumption", daemon=True)

    def find(self) -> list[Job]:
        """Returns the jobs that were left; jobs whose record cannot be read fail. Raises StorageError."""
        jobs: list[Job] = []
        for record in self._store.unfinished():
            if record.damage:
                self._condemn(record, record.damage)
                continue
            try:
                spec = specs.read(record)
            except StorageError as error:
                self._condemn(record, str(error))
                continue
            journal = StoredJournal(self._store, record.id, record.snapshot.records)
            job = Job.of_record(record, spec, specs.facts(record.spec), journal, self._shared.ended)
            self._lines.setdefault(job.user, deque()).append(_Left(record, job))
            jobs.append(job)
        return jobs

    def start(self) -> None:
        """Runs in a thread of its own."""
        self._thread.start()

    def run(self) -> None:
        """Submits or ends all jobs that were left, in this thread."""
        while (item := self._next()) is not None:
            self._take_up(item)
            self._settled(item.job.user if isinstance(item, _Left) else item.user)
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether all jobs that were left were submitted or have ended."""
        return self._done.is_set()

    def wait(self) -> bool:
        """Waits until it is `done`, or closed; returns whether it is done."""
        self._done.wait()
        return not self._closing.is_set()

    @property
    def waiting(self) -> int:
        """How many jobs wait here."""
        with self._lock:
            return sum(map(len, self._lines.values()))

    def waiting_of(self, user: str) -> int:
        """Returns how many of these are one user's."""
        with self._lock:
            return len(self._lines.get(user, ()))

    def submit(self, run: MethodRun) -> None:
        """Submits the run of a new job, after those of the same user that wait here."""
        with self._lock:
            line = self._lines.get(run.user)
            if line is not None:
                line.append(run)
                return
        self._submit(run)

    def cancelled(self, job: Job) -> None:
        """Ends a job that waits here, because it was cancelled; no effect on a job that does not."""
        with self._lock:
            line = self._lines.get(job.user, deque())
            item = next((item for item in line if isinstance(item, _Left) and item.job is job), None)
            if item is None:
                return
            line.remove(item)
        self._shared.end(job, job.end_cancelled)

    def close(self) -> None:
        """Stops after the job at hand; the others are left to a later process."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._done.set()
        with self._lock:
            lines, self._lines = self._lines, OrderedDict()
        for line in lines.values():
            for item in line:
                if isinstance(item, _Left):
                    item.job.leave()
                else:
                    item.end(ServerError("the server stopped"))

    def _work(self) -> None:
        try:
            self.run()
        finally:
            self._done.set()
        try:
            self._inspect()
        except Exception:
            logger.exception("finished jobs could not be looked at")

    # One after another

    def _next(self) -> _Left | MethodRun | None:
        """Returns what comes next; None at the end.

        The line of its user stays until `_settled`, so that new runs of this user wait behind it.
        """
        with self._lock:
            while self._lines and not self._closing.is_set():
                user, line = next(iter(self._lines.items()))
                if line:
                    self._lines.move_to_end(user)
                    return line.popleft()
                del self._lines[user]  # all that was left of it was cancelled
            return None

    def _settled(self, user: str) -> None:
        """Removes the line of a user if nothing waits in it: new runs of the user need not wait then."""
        with self._lock:
            if not self._lines.get(user, True):
                del self._lines[user]

    def _take_up(self, item: _Left | MethodRun) -> None:
        if isinstance(item, MethodRun):
            self._submit(item)
            return
        job = item.job
        with log_context(job=job.name, user=job.user):
            try:
                if job.cancelling:
                    self._shared.end(job, job.end_cancelled)
                    return
                self._submit(self._run_of(item))
            except StorageError as error:
                if error.damaged:
                    self._fail(job, error)
                else:
                    logger.warning("%s waits for the database: %s", job.name, error)
                    self._closing.wait(RETRY_S)
                    with self._lock:  # in front: its user's jobs keep their order
                        self._lines.setdefault(job.user, deque()).appendleft(item)
            except Exception as error:  # noqa: BLE001 - no reason to leave all others
                self._fail(job, error)

    def _run_of(self, item: _Left) -> MethodRun:
        record, job = item.record, item.job
        spec = specs.read(record, self._store.prompts(record.id))
        resolved = self._resolve(record, spec)
        job.spec = spec
        content = self._content(spec, resolved)
        if content != record.content:
            # What another version or other hardware found is not mixed with what this one finds.
            logger.warning("%s begins again: another version or other hardware began it", record.name)
            job.begin_again(content)
        run = MethodRun(job, resolved, self._shared, self._store.journal(record.id))
        logger.info("%s goes on after %d journal records", record.name, job.snapshot.records)
        return run

    def _resolve(self, record: JobRecord, spec: JobSpec) -> ResolvedObjective:
        if record.snapshot.crash_count > MOST_CRASHES:
            crashes = record.snapshot.crash_count
            raise ServerError(f"the server crashed {crashes} times while it ran, without coming further")
        resolved = self._engine.resolve(spec.objective, spec.needs_activations)
        if resolved.revision != record.revision:
            raise ServerError(
                f"model {spec.objective.model!r} has revision {resolved.revision} now; the job was "
                f"accepted for {record.revision}"
            )
        spec.check().check(spec.parameters, resolved)  # what the server offers may have changed
        return resolved

    # Jobs that end here

    def _fail(self, job: Job, error: Exception) -> None:
        logger.warning("%s cannot go on", job.name, exc_info=error)
        self._shared.end(job, lambda: job.fail(_explained(error)))

    def _condemn(self, record: JobRecord, reason: str) -> None:
        logger.error("%s cannot be read, and has failed: %s", record.name, reason)
        try:
            self._store.condemn(record, reason)
        except Exception:  # whoever reads it finds the same: no reason to leave all others
            logger.exception("the end of %s could not be stored", record.name)

    def _inspect(self) -> None:
        """Looks for finished jobs whose records are damaged: they have failed, and count as such."""
        last = 0
        while not self._closing.wait(PORTION_PAUSE_S):
            records = self._store.after(last, PORTION)
            if not records:
                return
            last = records[-1].id
            for record in records:
                if not record.snapshot.state.final:
                    continue
                try:
                    specs.read(record)
                except StorageError as error:
                    if record.snapshot.state is not JobState.FAILED or record.damage:
                        self._condemn(record, str(error))


def _explained(error: Exception) -> Exception:
    """Returns an error that says that the job cannot be resumed, why, and what to do about damage."""
    if not isinstance(error, ServerError):
        return error
    advice = ": delete it, and submit it again" if isinstance(error, StorageError) and error.damaged else ""
    return ServerError(f"cannot go on after a restart: {error}{advice}")
