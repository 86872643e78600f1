"""The job service: creates, finds, lists, cancels and deletes jobs of any method."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Engine, Estimate, Objective, ResolvedObjective, WorkerState
from pahq_server.core.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    StorageError,
    WorkerFailedError,
)
from pahq_server.core.observer import Observer
from pahq_server.core.task import PromptTask
from pahq_server.jobs import spec as specs
from pahq_server.jobs import warnings
from pahq_server.jobs.evaluation import EvaluationService
from pahq_server.jobs.files import JobFiles
from pahq_server.jobs.generation import GenerationService
from pahq_server.jobs.housekeeping import Housekeeper
from pahq_server.jobs.job import Job, JobState, StoredJournal
from pahq_server.jobs.node_evaluation import NodeEvaluationService
from pahq_server.jobs.predictions import PredictionService
from pahq_server.jobs.provenance import content_key, request_provenance
from pahq_server.jobs.quotas import Admission, Quotas
from pahq_server.jobs.resuming import Resumption
from pahq_server.jobs.run import MethodRun, RunContext
from pahq_server.jobs.session_calls import SessionLimits
from pahq_server.jobs.sessions import SessionService
from pahq_server.jobs.spec import JobSpec, RequestFacts, StoredSpec
from pahq_server.methods.base import Method, MethodContext
from pahq_server.scheduler.scheduler import Scheduler
from pahq_server.store.base import JobStore
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import JobRecord, NewJob, Retention, StoredArtifact, Usage
from pahq_server.store.rows import condemned

logger = logging.getLogger(__name__)

USUAL_PAGE, MAX_PAGE = 50, 1000
# In characters: the id is stored with the job.
MAX_REQUEST_ID = 256

# Stands in for the spec of a job whose stored spec cannot be read.
UNREADABLE = JobSpec(Objective("", PromptTask(clean=()), "", "", "", ""), "", None)


@dataclass(frozen=True)
class JobPolicy:
    """How the job service treats jobs.

    Args:
        window: how many patched passes a method may ask for at once, about.
        max_queued: how many runs of all users may wait; twice as many if each is its user's only one.
        quotas: quotas of every user.
        slots: how many jobs have tensors in memory at a time.
        user_weights: shares of users in the engine's time; 1 for those that are missing.
        retention: how long finished jobs are kept.
        reuse: whether a job takes over the artifact of an equal one of the same user.
        files: where jobs keep files while they run; None for a temporary folder.
        environment: settings that, like the engine's hardware, may change last bits. Artifacts are reused,
            and journals resumed, only where it is the same.
    """

    window: int = 1
    max_queued: int = 1000
    quotas: Quotas = field(default_factory=Quotas)
    slots: int = 4
    user_weights: Mapping[str, float] = field(default_factory=dict)
    retention: Retention = field(default_factory=Retention)
    reuse: bool = False
    files: Path | None = None
    environment: dict[str, object] = field(default_factory=dict)


class JobService:
    """Jobs of one server. Methods may be called from any thread, and raise StorageError.

    ``sessions``, ``evaluations``, ``predictions`` and ``generations`` are the services for calls that share
    its worker and store nothing. Finished jobs are kept in the store only.

    Args:
        engine: checks objectives and runs operations.
        version: version of the server, for provenance.
        policy: how jobs are treated.
        session_limits: what sessions may take.
        store: keeps the jobs, and is closed by whoever opened it; None keeps them in memory.
        observer: hears of jobs and batches.
        failed: called from the worker thread if it cannot go on: no job will be worked on from then on, and
            those that are stored are left to a later process.
    """

    def __init__(
        self,
        engine: Engine,
        version: str,
        policy: JobPolicy | None = None,
        session_limits: SessionLimits | None = None,
        store: JobStore | None = None,
        observer: Observer | None = None,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine, self._version, self._policy = engine, version, policy or JobPolicy()
        self._store = store or SqliteJobStore(Database(None))
        self._observer = observer or Observer()
        self._scheduler = Scheduler(
            engine,
            self._policy.slots,
            self._policy.quotas.running_jobs,
            self._policy.user_weights,
            self._observer,
            failed=failed,
        )
        window, limits = self._policy.window, session_limits or SessionLimits()
        self._housekeeper = Housekeeper(self._store, self._policy.retention)
        self._jobs: dict[str, Job] = {}  # those that are not final in the store
        self._lock = threading.Lock()
        self._closing = False
        self._files = JobFiles(self._policy.files, self._policy.quotas.file_bytes)
        self._shared = RunContext(
            window,
            self._workers_per_job,
            engine.capabilities(),
            version,
            self._observer,
            self._leave,
            self._housekeeper.later,
            self._forget,
            self._files,
        )
        self._resumption = Resumption(
            engine, self._store, self._shared, self._content, self._scheduler.submit
        )
        self._admission = Admission(
            self._policy.quotas,
            self._policy.max_queued,
            lambda: self._scheduler.queued + self._resumption.waiting,
            lambda user: self._scheduler.queued_of(user) + self._resumption.waiting_of(user),
        )
        self.sessions = SessionService(engine, self._scheduler, window, limits)
        self.evaluations = EvaluationService(engine, self._scheduler, self._store, self._admission)
        self.node_evaluations = NodeEvaluationService(engine, self._scheduler, self._store, self._admission)
        self.predictions = PredictionService(engine, self._scheduler, self._store, self._admission)
        self.generations = GenerationService(engine, self._scheduler, self._store, self._admission)

    @property
    def quotas(self) -> Quotas:
        """Of every user."""
        return self._policy.quotas

    # Life of the service

    def start(self, wait: bool = True) -> None:
        """Resumes the jobs that an earlier process left, and takes new ones.

        Args:
            wait: whether to return only when all jobs are resumed; else see `resumed`.

        Raises StorageError if the list of unfinished jobs cannot be read.
        """
        self._jobs |= {job.name: job for job in self._resumption.find()}
        self._files.keep_only(self._jobs)
        self._housekeeper.start()
        if wait:
            self._resumption.run()
        self._scheduler.start()
        self._resumption.start()

    @property
    def resumed(self) -> bool:
        """Whether all jobs that an earlier process left were submitted to the scheduler or have ended."""
        return self._resumption.done

    def wait_resumed(self) -> bool:
        """Waits until the service is `resumed` or closed; returns whether it is resumed."""
        return self._resumption.wait()

    def unavailable(self) -> str:
        """Says why nothing can be computed at present, or any more; empty if it can.

        New jobs are accepted all the same, and wait.
        """
        return self._scheduler.failure or self._engine.unavailable()

    def close(self) -> None:
        """Stops the worker. Unfinished jobs are left to a later process, or fail if the store is not durable.

        Waiting calls of sessions fail.
        """
        self._closing = True
        self._resumption.close()
        self._scheduler.close()
        self._housekeeper.close()
        self._files.close()

    # Creating

    def check(self, spec: JobSpec, request_id: str, user: str = LOCAL_USER) -> tuple[Job, Estimate]:
        """Returns the job that `create` would accept, without a name, and its estimate. Raises like it."""
        method = spec.check()
        _check_request_id(request_id)
        self._known(specs.encode(spec), request_id, user)
        resolved, facts = self._accept(spec, method)
        job = Job("", spec, method.total(spec.parameters, resolved), method.unit, facts=facts)
        weight, tests = method.weight(spec.parameters, resolved), method.tests(spec.parameters, resolved)
        return job, self._engine.estimate(resolved, weight, tests)

    def create(self, spec: JobSpec, request_id: str, user: str = LOCAL_USER) -> Job:
        """Accepts a job, or returns the one that the same request id of the user created before.

        It is stored when this returns. Raises InvalidRequestError, NotFoundError (model), AlreadyExistsError
        (the request id came with another spec) and ResourceExhaustedError.
        """
        method = spec.check()
        _check_request_id(request_id)
        stored = specs.encode(spec)
        known = self._known(stored, request_id, user)
        if known is not None:
            return self._job(known)
        resolved, facts = self._accept(spec, method)
        new = NewJob(
            name=f"users/{user}/jobs/{uuid.uuid4().hex}",
            user=user,
            request_id=request_id,
            payload=stored.payload,
            spec=stored.with_facts(facts),
            prompts=specs.prompts_to_json(_prompts(resolved)) if spec.include_prompts else stored.prompts,
            total=method.total(spec.parameters, resolved),
            unit=method.unit,
            tokens=resolved.task.num_tokens,
            revision=resolved.revision,
            content=self._content(spec, resolved),
            created=time.time(),
        )
        return self._create(new, spec, resolved, facts)

    def _accept(self, spec: JobSpec, method: Method[Any]) -> tuple[ResolvedObjective, RequestFacts]:
        """Checks a request against the model. Raises InvalidRequestError and NotFoundError."""
        resolved = self._engine.resolve(spec.objective, spec.needs_activations)
        method.check(spec.parameters, resolved)
        return resolved, _facts(spec, method, resolved)

    def _create(self, new: NewJob, spec: JobSpec, resolved: ResolvedObjective, facts: RequestFacts) -> Job:
        def admit(usage: Usage, computed: bool) -> None:
            self._admission.admit_job(new.user, usage, new.tokens, computed)

        # With the lock held: whoever finds the job in the store must find it here as well.
        with self._lock:
            record, created = self._store.create(new, admit, self._policy.reuse)
            if created and not record.snapshot.state.final:
                journal = StoredJournal(self._store, record.id)
                job = Job.of_record(record, spec, facts, journal, self._forget)
                self._jobs[job.name] = job
        if created and record.snapshot.state.final:
            self._observer.job_ended(record.name, record.snapshot.state.name.lower(), 0.0)
            record = self._store.find(record.name)  # with the summary of its artifact, which is another job's
            self._housekeeper.ended(new.user)
        if not created or record.snapshot.state.final:
            return self._job(record)
        self._resumption.submit(MethodRun(job, resolved, self._shared))
        return job

    def _known(self, asked: StoredSpec, request_id: str, user: str) -> JobRecord | None:
        """Returns the job that a request id created before.

        Raises AlreadyExistsError if that asked for something else.
        """
        known = self._store.by_request(user, request_id) if request_id else None
        if known is not None and known.payload != asked.payload and not known.damage:
            # An earlier version may have written the same request in another form.
            with suppress(StorageError):
                again = specs.encode(specs.read(known, self._store.prompts(known.id)))
                if again == asked:
                    return known
            raise AlreadyExistsError(f"request id {request_id!r} was used for another job")
        return known

    # Finding

    def find(self, name: str) -> Job:
        """Returns a job. Raises NotFoundError."""
        job = self._jobs.get(name)
        return self._job(self._store.find(name)) if job is None else job

    def page(self, user: str | None, size: int, token: str = "") -> tuple[list[Job], str]:
        """Returns jobs, newest first, and the token of the next page; empty on the last one.

        Args:
            user: whose; None for all users'.
            size: how many jobs at most, up to 1000; 0 for 50.
            token: the token that came with the page before; empty for the first page.

        Raises InvalidRequestError.
        """
        if not 0 <= size <= MAX_PAGE:
            raise InvalidRequestError("page_size", f"{size} is outside of [0, {MAX_PAGE}]")
        size = size or USUAL_PAGE
        records = self._store.page(user, size + 1, _before(token))
        jobs: list[Job] = []
        for record in records[:size]:
            with suppress(NotFoundError):  # deleted in between
                jobs.append(self._job(record))
        return jobs, f"{records[size - 1].id}" if len(records) > size else ""

    def count_by_state(self) -> dict[str, int]:
        """Returns how many jobs of all users are in each state, by its name in lower case."""
        counts = self._store.count_by_state()
        return {state.name.lower(): counts.get(state, 0) for state in JobState}

    def artifact(self, name: str) -> StoredArtifact | None:
        """Returns the artifact of a job, with the job's own warnings and prompts; None if it has none.

        For a cancelled or failed job its method makes it from the journal, which takes as long as checking a
        request. Raises NotFoundError, and ConflictError where the model that is needed to read the
        journal is not served any more.
        """
        stored = self._store.artifact(name)
        record = self._store.find(name)
        if stored is None:
            stored = self._partial(record)
        if stored is None:
            return None
        # Equal jobs share an artifact, but each has a task description and request warnings of its own.
        spec, facts = specs.read(record), specs.facts(record.spec)
        told = tuple(dict.fromkeys((*facts.warnings, *stored.warnings)))
        about_job = {"task": spec.task(facts.num_prompts), "warnings": list(told)}
        return replace(
            stored,
            artifact=replace(stored.artifact, warnings=told),
            run=stored.run | about_job,
            prompts=self._store.prompts(record.id) if spec.include_prompts else None,
        )

    def _partial(self, record: JobRecord) -> StoredArtifact | None:
        """Returns what a cancelled or failed job had found by then; None if that is nothing."""
        if record.damage or record.snapshot.state not in (JobState.CANCELLED, JobState.FAILED):
            return None
        journal = self._store.journal(record.id)
        if not journal:
            return None
        spec = specs.read(record, self._store.prompts(record.id))
        why_not = f"what {record.name} had found cannot be read"
        try:
            resolved = self._engine.resolve(spec.objective, spec.needs_activations)
        except ServerError as error:
            raise ConflictError(f"{why_not}: {error}") from error
        if resolved.revision != record.revision:
            detail = f"it was found with revision {record.revision} of the model, which is not served"
            raise ConflictError(f"{why_not}: {detail}")
        context: MethodContext[Any] = MethodContext(
            resolved, spec.parameters, journal, record.snapshot.records
        )
        found = spec.check().partial(context)
        if found is None:
            return None
        same = self._content(spec, resolved) == record.content
        request = request_provenance(spec, resolved, self._version if same else "")
        run: dict[str, object] = {
            "model": spec.objective.model,
            "state": record.snapshot.state.name.lower(),
        }
        return StoredArtifact(found, request, run, partial=True)

    # Changing

    def cancel(self, name: str) -> Job:
        """Asks a job to stop. Raises NotFoundError."""
        job = self.find(name)
        job.cancel()
        self._resumption.cancelled(job)
        return job

    def delete(self, name: str) -> None:
        """Forgets a final job. Raises NotFoundError, and ConflictError while it may still change."""
        self._store.delete(name)
        self._jobs.pop(name, None)

    def _job(self, record: JobRecord) -> Job:
        """Returns the job of a record: the object that is being worked on, if there is one."""
        with self._lock:
            job = self._jobs.get(record.name)
        if job is not None:
            return job
        if not record.snapshot.state.final:
            record = self._store.find(record.name)  # it may have ended in between
        try:
            spec, facts = specs.read(record), specs.facts(record.spec)
        except StorageError as error:  # a list that holds a job that cannot be read must not fail
            spec, facts = UNREADABLE, RequestFacts()
            if record.snapshot.state is not JobState.FAILED:  # else it says why
                record = condemned(record, str(error))
        job = Job.of_record(record, spec, facts)
        if not record.snapshot.state.final:
            # Nobody here knows it, so nobody here works on it: those who watch must not wait for that.
            logger.error("%s is left to a later process", record.name)
            job.leave()
        return job

    def _forget(self, job: Job) -> None:
        """Called when a job has ended: from now on only the store keeps it, unless that is damaged."""
        self._files.delete(job.name)
        if not job.unstored:
            self._jobs.pop(job.name, None)
        now = job.snapshot
        ran = now.started is not None and now.ended is not None
        seconds = max(0.0, now.ended - now.started) if ran else 0.0  # type: ignore[operator]
        self._observer.job_ended(job.name, now.state.name.lower(), seconds)
        self._housekeeper.ended(job.user)

    def _leave(self, error: Exception) -> bool:
        """Tells whether a later process goes on with a job that ended with this error."""
        stopped = self._closing and type(error) is ServerError
        return self._store.durable and (stopped or isinstance(error.__cause__, WorkerFailedError))

    def _workers_per_job(self) -> int:
        if not self._engine.concurrent:
            return 1  # methods ask in every step, and describing workers takes longer than this
        ready = sum(worker.state is WorkerState.READY for worker in self._engine.workers())
        return max(1, ready // max(1, self._scheduler.running))

    def _content(self, spec: JobSpec, resolved: ResolvedObjective) -> bytes:
        request = request_provenance(spec, resolved, self._version) | {"parameters": spec.identity()}
        capabilities = self._shared.capabilities
        engine = {"device": capabilities.device, "hardware": capabilities.hardware}
        return content_key(request, spec.objective.model, engine | self._policy.environment)


def _check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequestError("request_id", f"has more than {MAX_REQUEST_ID} characters")


def _before(token: str) -> int | None:
    """Returns the id that a page begins below; None for the first page. Raises InvalidRequestError."""
    if not token:
        return None
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidRequestError("page_token", "is not from an earlier response")
    return int(token)


def _facts(spec: JobSpec, method: Method[Any], resolved: ResolvedObjective) -> RequestFacts:
    found = (*warnings.of_request(resolved, method.ablates), *method.warnings(spec.parameters, resolved))
    return RequestFacts(len(resolved.task.clean), found)


def _prompts(resolved: ResolvedObjective) -> PromptTask:
    """Returns the prompts in words where these are known, else as token ids."""
    if resolved.prompts is not None:
        return resolved.prompts
    task = resolved.task
    answers, wrong = ([(token,) for token in ids or ()] for ids in (task.answers, task.wrong_answers))
    return PromptTask(task.clean, task.corrupted or (), tuple(answers), tuple(wrong), task.positions)
