"""The job service: creates, finds, lists, cancels and deletes discoveries."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Engine, Measurement, Prepared
from pahq_server.core.errors import AlreadyExistsError, ConflictError, NotFoundError, ResourceExhaustedError
from pahq_server.jobs.calls import SessionLimits
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.runs import DiscoveryRun, EvaluationRun
from pahq_server.jobs.sessions import SessionService
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.scheduler.scheduler import Scheduler


class JobService:
    """Discoveries of one server, kept in memory. Methods may be called from any thread.

    ``sessions`` is the service of sessions that share its worker.

    Args:
        engine: checks and scores.
        version: of the server, for provenance.
        window: how many evaluations a search may ask for at once.
        max_queued: how many runs may wait.
        max_kept: how many jobs are remembered; the oldest final ones are forgotten first.
        session_limits: what sessions may take.
    """

    def __init__(
        self,
        engine: Engine,
        version: str,
        window: int = 1,
        max_queued: int = 1000,
        max_kept: int = 10_000,
        session_limits: SessionLimits | None = None,
    ) -> None:
        self._engine, self._version, self._window = engine, version, window
        self._max_queued, self._max_kept = max_queued, max_kept
        self._scheduler = Scheduler(engine)
        self.sessions = SessionService(engine, self._scheduler, window, session_limits or SessionLimits())
        self._jobs: dict[str, Job] = {}
        self._by_request: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        self._scheduler.start()

    def close(self) -> None:
        """Stops the worker; unfinished jobs and calls of sessions fail."""
        self._scheduler.close()

    def create(self, spec: DiscoverySpec, request_id: str, validate_only: bool, user: str = "local") -> Job:
        """Accepts a discovery, or returns the one that the same request id created before.

        Raises InvalidRequestError, NotFoundError (model), AlreadyExistsError (the request id came
        with another spec) and ResourceExhaustedError.
        """
        spec.check()
        prepared = self._engine.prepare(spec.measurement)
        with self._lock:
            known = self._by_request.get(request_id) if request_id else None
            if known is not None and known.spec != spec:
                raise AlreadyExistsError(f"request id {request_id!r} was used for another discovery")
            if validate_only:
                return Job("", spec, prepared)
            if known is not None:
                return known
            self._check_room()
            job = Job(f"users/{user}/discoveries/{uuid.uuid4().hex}", spec, prepared)
            self._remember(job, request_id)
        self._scheduler.submit(DiscoveryRun(job, self._window, self._engine.capabilities(), self._version))
        return job

    def evaluate(
        self, measurement: Measurement, edges: Sequence[str], user: str = "local"
    ) -> tuple[Prepared, Future[tuple[float, float, float]]]:
        """Measures a circuit given by edge names.

        The future gives its metric, the full model's and the empty circuit's.
        """
        prepared = self._engine.prepare(measurement)
        run = EvaluationRun(prepared, Circuit.from_names(prepared.graph, edges), user)
        self._check_room()
        self._scheduler.submit(run)
        return prepared, run.future

    def find(self, name: str) -> Job:
        """Raises NotFoundError."""
        try:
            return self._jobs[name]
        except KeyError:
            raise NotFoundError(f"discovery {name!r}") from None

    def newest_first(self) -> list[Job]:
        with self._lock:
            return list(reversed(self._jobs.values()))

    def count_by_state(self) -> dict[str, int]:
        """How many jobs are in each state, by its name in lower case."""
        counts = Counter(job.snapshot.state for job in self.newest_first())
        return {state.name.lower(): counts[state] for state in JobState}

    def cancel(self, name: str) -> Job:
        job = self.find(name)
        job.cancel()
        return job

    def delete(self, name: str) -> None:
        """Forgets a final job. Raises NotFoundError, and ConflictError while it may still change."""
        job = self.find(name)
        if not job.snapshot.state.final:
            raise ConflictError(f"{name} is {job.snapshot.state.name}: cancel it first")
        with self._lock:
            self._forget(lambda other: other is job)

    def _check_room(self) -> None:
        if self._scheduler.queued >= self._max_queued:
            raise ResourceExhaustedError(f"{self._max_queued} runs are waiting already", retry_after_s=30)

    def _remember(self, job: Job, request_id: str) -> None:
        self._jobs[job.name] = job
        if request_id:
            self._by_request[request_id] = job
        if len(self._jobs) > self._max_kept:
            oldest = next((old for old in self._jobs.values() if old.snapshot.state.final), None)
            self._forget(lambda other: other is oldest)

    def _forget(self, unwanted: Callable[[Job], bool]) -> None:
        self._jobs = {name: job for name, job in self._jobs.items() if not unwanted(job)}
        self._by_request = {key: job for key, job in self._by_request.items() if not unwanted(job)}
