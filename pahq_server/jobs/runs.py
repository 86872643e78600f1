"""Runs: what the scheduler executes for a discovery and for an evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.context import log_context
from pahq_server.core.engine import Capabilities, ResolvedObjective
from pahq_server.core.errors import StorageError, WorkerFailedError
from pahq_server.core.observer import Observer
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.jobs import warnings
from pahq_server.jobs.job import Job
from pahq_server.jobs.result import DiscoveryResult, request_provenance, run_provenance
from pahq_server.scheduler.places import Place
from pahq_server.search.base import endpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What all discoveries of a service share.

    Args:
        window: how many evaluations a search may ask for at once.
        capabilities, version: for provenance.
        observer: hears of what searches do.
        leave: whether a run that ends with an error is left to a later process: asked at its end.
        later: gets an end that could not be stored, to be tried again.
        ended: called once for every job that has become final.
    """

    window: int
    capabilities: Capabilities
    version: str
    observer: Observer
    leave: Callable[[Exception], bool]
    later: Callable[[Job, Callable[[], None]], None]
    ended: Callable[[Job], None]


class DiscoveryRun:
    """Drives the search of one job.

    Args:
        job: reports progress and the end to it.
        prepared: its measurement.
        around: what it shares with others.
        verdicts: that an earlier process reached.
    """

    def __init__(
        self,
        job: Job,
        resolved: ResolvedObjective,
        around: Surroundings,
        verdicts: Sequence[Verdict] = (),
    ) -> None:
        self.resolved, self.user, self.name = resolved, job.user, job.name
        self._job, self._around = job, around
        self._search = job.spec.search(
            resolved.graph,
            around.window,
            verdicts,
            job.standing.clock,
            resolved.baseline_depends_on_promotion,
        )
        self._replayed = self._noted = len(verdicts)
        self._steps = self._search.run()
        self._started = time.time()
        # Seconds since the start until this process began, and when that was, on the monotonic clock: so the
        # duration is right whatever the other clock is set to meanwhile.
        self._before, self._begun = 0.0, time.monotonic()
        self._seen = (0, 0)  # rows, and of these wasted, that the observer knows of
        self._found: SearchResult | None = None
        self._late = False  # whether something waits to be stored

    def begin(self) -> Sequence[PatchedPass]:
        self._stored(self._job.start)
        self._started = self._job.snapshot.started or time.time()
        self._before, self._begun = max(0.0, time.time() - self._started), time.monotonic()
        return next(self._steps)

    def deliver(self, scores: Sequence[float]) -> Sequence[PatchedPass]:
        try:
            rows = self._steps.send(scores)
        except StopIteration as stop:
            self._found, rows = stop.value, ()
        self._note()
        return rows

    def stopped(self) -> bool:
        return self._job.cancelling

    def end(self, error: Exception | None) -> None:
        if self._found is not None:
            result = self._result(self._found)
            self._end(lambda: self._succeed(result))
        elif error is None or self._job.cancelling:
            self._end(self._job.end_cancelled)
        elif self._around.leave(error):
            self._job.interrupt(in_good_order=not isinstance(error.__cause__, WorkerFailedError))
        else:
            failed = error
            self._end(lambda: self._job.fail(failed))

    def _succeed(self, result: DiscoveryResult) -> None:
        # What went before may not have been stored.
        self._job.update(self._search.progress(), len(self._search.verdicts))
        self._job.succeed(result, result.outcome)

    def done(self) -> float:
        return self._search.progress().decided / self._job.total

    def charge(self, seconds: float) -> None:
        self._job.standing.charge(seconds)

    def place(self, place: Place) -> None:
        self._job.moved_to(place)

    def _note(self) -> None:
        """Stores and tells what was decided since the last time."""
        verdicts, statistics = self._search.verdicts, self._search.statistics
        new, self._noted = verdicts[self._noted :], len(verdicts)
        self._stored(lambda: self._job.update(self._search.progress(), len(verdicts), new))
        rows, wasted = self._seen
        self._seen = statistics.rows, statistics.wasted
        self._around.observer.search_advanced(len(new), statistics.rows - rows, statistics.wasted - wasted)

    def _stored(self, change: Callable[[], None]) -> None:
        """Makes a change that is stored now or with the next one: the search goes on in any case."""
        try:
            change()
            self._late = False
        except StorageError as error:
            if error.damaged:
                raise
            if not self._late:
                with log_context(job=self._job.name, user=self.user):
                    logger.warning("what is decided will be stored later: %s", error)
            self._late = True

    def _end(self, end: Callable[[], None]) -> None:
        """Ends the job now, or as soon as that can be stored."""
        try:
            end()
        except StorageError as error:
            with log_context(job=self._job.name, user=self.user):
                logger.error("the end of a job could not be stored: %s", error)
            if error.damaged:
                self._job.fail_unstored(error)
            else:
                self._around.later(self._job, end)

    def _result(self, found: SearchResult) -> DiscoveryResult:
        spec, around, resolved = self._job.spec, self._around, self.resolved
        return DiscoveryResult(
            resolved.graph,
            resolved.objective.metric,
            found,
            request_provenance(spec, resolved, around.version),
            run_provenance(
                spec,
                self._started,
                max(self._started, time.time()),
                self._before + time.monotonic() - self._begun,
                around.capabilities,
                self._search.statistics,
                self._replayed,
                warnings.of_search(resolved, spec.threshold, found),
            ),
        )


class EvaluationRun:
    """Measures one circuit, the full model and the empty circuit.

    ``future`` resolves to the three metrics. Cancelling it stops the run.

    Args:
        prepared: the measurement.
        circuit: what is measured.
        user: who asked for it.
        tokens: of its prompts.
    """

    def __init__(self, resolved: ResolvedObjective, circuit: Circuit, user: str, tokens: int = 0) -> None:
        self.resolved, self.user, self.name, self._circuit = resolved, user, "", circuit
        self.tokens, self.begun = tokens, False
        self.future: Future[tuple[float, float, float]] = Future()
        self._scores: Sequence[float] = ()

    def begin(self) -> Sequence[PatchedPass]:
        self.begun = True
        return endpoints(self.resolved.graph, self._circuit)

    def deliver(self, scores: Sequence[float]) -> Sequence[PatchedPass]:
        self._scores = scores
        return ()

    def stopped(self) -> bool:
        return self.future.cancelled()

    def end(self, error: Exception | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            value, full, empty = self._scores
            self.future.set_result((value, full, empty))

    def done(self) -> float:
        return 0.0

    def charge(self, seconds: float) -> None:
        """Nobody asks."""

    def place(self, place: Place) -> None:
        """Nobody asks."""
