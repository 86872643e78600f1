"""The job service: creates, finds, lists, cancels and deletes discoveries."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pahq_server.core.circuit import Circuit
from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Engine, Estimate, Objective, ResolvedObjective
from pahq_server.core.errors import (
    AlreadyExistsError,
    NotFoundError,
    ResourceExhaustedError,
    ServerError,
    StorageError,
    WorkerFailedError,
)
from pahq_server.core.observer import Observer
from pahq_server.core.task import PromptTask
from pahq_server.jobs import arguments, spec_json, warnings
from pahq_server.jobs.arguments import CircuitOrigin
from pahq_server.jobs.calls import SessionLimits
from pahq_server.jobs.housekeeping import Housekeeper
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.journal import StoredJournal
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.result import DiscoveryResult, content_key, of_job, request_provenance
from pahq_server.jobs.resuming import Resumption
from pahq_server.jobs.runs import DiscoveryRun, EvaluationRun, Surroundings
from pahq_server.jobs.sessions import SessionService
from pahq_server.jobs.spec import DiscoverySpec, RequestFacts
from pahq_server.scheduler.scheduler import Scheduler
from pahq_server.store.base import JobStore
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import JobRecord, NewJob, Retention, Usage
from pahq_server.store.rows import condemned

logger = logging.getLogger(__name__)

# What is told of a job of which cannot be read what was asked for.
UNREADABLE = DiscoverySpec(Objective("", PromptTask(clean=()), "", "", "", ""), "", None, False)


@dataclass(frozen=True)
class JobPolicy:
    """How a service treats jobs.

    Args:
        window: how many evaluations a search may ask for at once.
        max_queued: how many runs of all users may wait; twice as many if each is its user's only one.
        quotas: of every user.
        slots: how many jobs have tensors in memory at a time.
        user_weights: shares of users in the engine's time; 1 for those that are missing.
        retention: of finished jobs.
        reuse: whether a job takes over the result of an equal one of the same user.
        environment: what computes besides the engine's hardware: results are only reused, and searches only
            go on, where it is the same.
    """

    window: int = 1
    max_queued: int = 1000
    quotas: Quotas = field(default_factory=Quotas)
    slots: int = 4
    user_weights: Mapping[str, float] = field(default_factory=dict)
    retention: Retention = field(default_factory=Retention)
    reuse: bool = False
    environment: dict[str, object] = field(default_factory=dict)


class JobService:
    """Discoveries of one server. Methods may be called from any thread, and raise StorageError.

    ``sessions`` is the service of sessions that share its worker. Finished jobs are only in the store.

    Args:
        engine: checks and scores.
        version: of the server, for provenance.
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
        self.sessions = SessionService(engine, self._scheduler, window, limits)
        self._housekeeper = Housekeeper(self._store, self._policy.retention)
        self._jobs: dict[str, Job] = {}  # those that are not final in the store
        self._lock = threading.Lock()
        self._closing = False
        # Evaluations that are under way: they count towards their users' quotas, and no store knows them.
        self._evaluating: set[EvaluationRun] = set()
        self._evaluations_lock = threading.Lock()
        self._around = Surroundings(
            window,
            engine.capabilities(),
            version,
            self._observer,
            self._leave,
            self._housekeeper.later,
            self._forget,
        )
        self._resumption = Resumption(
            engine, self._store, self._around, self._content, self._scheduler.submit
        )

    @property
    def quotas(self) -> Quotas:
        """Of every user."""
        return self._policy.quotas

    def start(self, wait: bool = True) -> None:
        """Goes on with the jobs that an earlier process left, and takes new ones.

        Args:
            wait: whether to return only when it works on all that were left; else it may be asked about them
                meanwhile, see `resumed`.

        Raises StorageError where it cannot be read which jobs were left.
        """
        self._jobs |= {job.name: job for job in self._resumption.find()}
        self._housekeeper.start()
        if wait:
            self._resumption.run()
        self._scheduler.start()
        self._resumption.start()

    @property
    def resumed(self) -> bool:
        """Whether it works on all jobs that an earlier process left."""
        return self._resumption.done

    def wait_resumed(self) -> bool:
        """Waits until it is `resumed`, or closed; returns whether it is resumed."""
        return self._resumption.wait()

    def close(self) -> None:
        """Stops the worker. Unfinished jobs are left to a later process if there will be one, else they fail.

        Calls of sessions fail.
        """
        self._closing = True
        self._resumption.close()
        self._scheduler.close()
        self._housekeeper.close()

    def check(self, spec: DiscoverySpec, request_id: str, user: str = LOCAL_USER) -> tuple[Job, Estimate]:
        """What `create` would accept, without a name, and what it would take. Raises as `create` does."""
        spec.check()
        arguments.check_request_id(request_id)
        self._known(spec_json.payload(*spec_json.encode(spec)), request_id, user)
        resolved = self._engine.resolve(spec.objective)
        job = Job("", spec, resolved.graph.num_edges, facts=_facts(resolved))
        return job, self._engine.estimate(resolved)

    def create(self, spec: DiscoverySpec, request_id: str, user: str = LOCAL_USER) -> Job:
        """Accepts a discovery, or returns the one that the same request id of the user created before.

        It is stored when this returns. Raises InvalidRequestError, NotFoundError (model), AlreadyExistsError
        (the request id came with another spec) and ResourceExhaustedError.
        """
        spec.check()
        arguments.check_request_id(request_id)
        text, prompts = spec_json.encode(spec)
        payload = spec_json.payload(text, prompts)
        known = self._known(payload, request_id, user)
        if known is not None:
            return self._job(known)
        resolved = self._engine.resolve(spec.objective)
        facts = _facts(resolved)
        if spec.include_prompts:
            prompts = spec_json.prompts_to_json(_prompts(resolved))
        new = NewJob(
            name=f"users/{user}/discoveries/{uuid.uuid4().hex}",
            user=user,
            request_id=request_id,
            payload=payload,
            spec=spec_json.with_facts(text, facts),
            prompts=prompts,
            total=resolved.graph.num_edges,
            tokens=_tokens(resolved),
            revision=resolved.revision,
            content=self._content(spec, resolved),
            created=time.time(),
        )
        return self._create(new, spec, resolved, facts)

    def _create(
        self, new: NewJob, spec: DiscoverySpec, resolved: ResolvedObjective, facts: RequestFacts
    ) -> Job:
        def admit(usage: Usage, computed: bool) -> None:
            if computed:
                self._check_room(new.user)
            with self._evaluations_lock:
                usage = self._with_evaluations(usage, new.user)
            self._policy.quotas.check(new.user, usage, new.tokens, computed)

        # Whoever finds the job in the store must find it here as well.
        with self._lock:
            record, created = self._store.create(new, admit, self._policy.reuse)
            if created and not record.snapshot.state.final:
                journal = StoredJournal(self._store, record.id)
                job = Job(record.name, spec, record.total, record.snapshot, journal, self._forget, facts)
                self._jobs[job.name] = job
        if created and record.snapshot.state.final:
            self._observer.job_ended(record.name, record.snapshot.state.name.lower(), 0.0)
            record = self._store.find(record.name)  # with its outcome, which is another job's
            self._housekeeper.ended(new.user)
        if not created or record.snapshot.state.final:
            return self._job(record)
        self._resumption.submit(DiscoveryRun(job, resolved, self._around))
        return job

    def _known(self, payload: bytes, request_id: str, user: str) -> JobRecord | None:
        """The job that a request id created before. Raises AlreadyExistsError if that had another payload."""
        known = self._store.by_request(user, request_id) if request_id else None
        if known is not None and known.payload != payload and not known.damage:
            raise AlreadyExistsError(f"request id {request_id!r} was used for another discovery")
        return known

    def evaluate(
        self,
        objective: Objective,
        edges: Sequence[str],
        user: str = LOCAL_USER,
        origin: CircuitOrigin | None = None,
    ) -> tuple[ResolvedObjective, Future[tuple[float, float, float]]]:
        """Measures a circuit given by edge names.

        The future gives its metric, the full model's and the empty circuit's. To cancel it is to give the
        evaluation up; nothing of it is stored. Raises OtherModelError if the circuit was found in another
        model, where that is known, and ResourceExhaustedError.
        """
        resolved = self._engine.resolve(objective)
        if origin is not None:
            origin.check(resolved)
        run = EvaluationRun(resolved, Circuit.from_names(resolved.graph, edges), user, _tokens(resolved))
        self._check_room(user)
        usage = self._store.usage(user)
        with self._evaluations_lock:
            self._policy.quotas.check_run(user, self._with_evaluations(usage, user), run.tokens)
            self._evaluating.add(run)
        run.future.add_done_callback(lambda future: self._evaluated(run))
        self._scheduler.submit(run)
        return resolved, run.future

    def _with_evaluations(self, usage: Usage, user: str) -> Usage:
        """What a user has, with evaluations that are under way. Their lock is held."""
        runs = [run for run in self._evaluating if run.user == user]
        waiting, tokens = sum(not run.begun for run in runs), sum(run.tokens for run in runs)
        return replace(usage, queued=usage.queued + waiting, tokens=usage.tokens + tokens)

    def _evaluated(self, run: EvaluationRun) -> None:
        with self._evaluations_lock:
            self._evaluating.discard(run)

    def find(self, name: str) -> Job:
        """Raises NotFoundError."""
        job = self._jobs.get(name)
        return self._job(self._store.find(name)) if job is None else job

    def page(self, user: str | None, size: int, token: str = "") -> tuple[list[Job], str]:
        """Jobs of a user, or None for all, newest first, and the token of the next page; empty on the last.

        Args:
            user: whose.
            size: at most so many, up to 1000; 0 for 50.
            token: of the page before, empty for the first.

        Raises InvalidRequestError.
        """
        size = arguments.page_size(size)
        records = self._store.page(user, size + 1, arguments.before(token))
        jobs: list[Job] = []
        for record in records[:size]:
            with suppress(NotFoundError):  # deleted in between
                jobs.append(self._job(record))
        return jobs, f"{records[size - 1].id}" if len(records) > size else ""

    def result(self, name: str) -> DiscoveryResult | None:
        """The result as the answer to this job; None for a job that has none. Raises NotFoundError."""
        result = self._store.result(name)
        if result is None:
            return None
        record = self._store.find(name)
        spec, facts = spec_json.read(record), spec_json.facts(record.spec)
        prompts = self._store.prompts(record.id) if spec.include_prompts else None
        return of_job(result, spec, facts, prompts)

    def count_by_state(self) -> dict[str, int]:
        """How many jobs of all users are in each state, by its name in lower case."""
        counts = self._store.count_by_state()
        return {state.name.lower(): counts.get(state, 0) for state in JobState}

    def cancel(self, name: str) -> Job:
        """Raises NotFoundError."""
        job = self.find(name)
        job.cancel()
        self._resumption.cancelled(job)
        return job

    def delete(self, name: str) -> None:
        """Forgets a final job. Raises NotFoundError, and ConflictError while it may still change."""
        self._store.delete(name)
        self._jobs.pop(name, None)

    def _job(self, record: JobRecord) -> Job:
        """The job of a record; the one that is worked on if it is."""
        with self._lock:
            job = self._jobs.get(record.name)
        if job is not None:
            return job
        if not record.snapshot.state.final:
            record = self._store.find(record.name)  # it has ended in between
        try:
            spec, facts = spec_json.read(record), spec_json.facts(record.spec)
        except StorageError as error:  # of a job that cannot be read, the others must not know
            spec, facts = UNREADABLE, RequestFacts()
            if record.snapshot.state is not JobState.FAILED:  # else it says why
                record = condemned(record, str(error))
        job = Job(record.name, spec, record.total, record.snapshot, facts=facts, outcome=record.outcome)
        if not record.snapshot.state.final:
            # Nobody here knows it, so nobody here works on it: those who watch must not wait for that.
            logger.error("%s is left to a later process", record.name)
            job.leave()
        return job

    def _forget(self, job: Job) -> None:
        """Lets go of a job that has ended: the store has all of it, unless it is damaged."""
        if not job.unstored:
            self._jobs.pop(job.name, None)
        now = job.snapshot
        ran = now.started is not None and now.ended is not None
        seconds = max(0.0, now.ended - now.started) if ran else 0.0  # type: ignore[operator]
        self._observer.job_ended(job.name, now.state.name.lower(), seconds)
        self._housekeeper.ended(job.user)

    def _leave(self, error: Exception) -> bool:
        """Whether a later process goes on with a job that ended with this error."""
        stopped = self._closing and type(error) is ServerError
        return self._store.durable and (stopped or isinstance(error.__cause__, WorkerFailedError))

    def _content(self, spec: DiscoverySpec, resolved: ResolvedObjective) -> bytes:
        request = request_provenance(spec, resolved, self._version)
        capabilities = self._around.capabilities
        engine = {"device": capabilities.device, "hardware": capabilities.hardware}
        return content_key(request, spec.objective.model, engine | self._policy.environment)

    def _check_room(self, user: str) -> None:
        """Lets in who has nothing in the queue: no other user can fill it alone."""
        left = self._resumption
        most = self._policy.max_queued * (1 if self._scheduler.queued_of(user) + left.waiting_of(user) else 2)
        if self._scheduler.queued + left.waiting >= most:
            raise ResourceExhaustedError(f"{most} runs are waiting already", retry_after_s=30)


def _facts(resolved: ResolvedObjective) -> RequestFacts:
    return RequestFacts(len(resolved.task.clean), warnings.of_request(resolved))


def _prompts(resolved: ResolvedObjective) -> PromptTask:
    """The prompts in words where these are known, else as token ids."""
    if resolved.prompts is not None:
        return resolved.prompts
    task = resolved.task
    answers, wrong = ([(token,) for token in ids or ()] for ids in (task.answers, task.wrong_answers))
    return PromptTask(task.clean, task.corrupted or (), tuple(answers), tuple(wrong), task.positions)


def _tokens(resolved: ResolvedObjective) -> int:
    """Tokens of all prompts, clean and corrupted."""
    task = resolved.task
    return sum(len(ids) for ids in (*task.clean, *(task.corrupted or ())))
