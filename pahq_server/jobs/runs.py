"""Runs: what the scheduler executes for a discovery and for an evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Capabilities, Prepared, Row
from pahq_server.core.verdict import SearchResult
from pahq_server.jobs.job import Job
from pahq_server.jobs.result import DiscoveryResult, request_provenance, run_provenance
from pahq_server.scheduler.places import Place
from pahq_server.search.base import endpoints


class DiscoveryRun:
    """Drives the search of one job.

    Args:
        job: reports progress and the end to it.
        window: how many evaluations the search may ask for at once.
        capabilities, version: for provenance.
    """

    def __init__(self, job: Job, window: int, capabilities: Capabilities, version: str) -> None:
        self.prepared = job.prepared
        self._job, self._capabilities, self._version = job, capabilities, version
        self.user = job.user
        self._search = job.spec.search(job.prepared.graph, window, job.standing.clock)
        self._steps = self._search.run()
        self._found: SearchResult | None = None

    def begin(self) -> Sequence[Row]:
        self._job.start()
        return next(self._steps)

    def deliver(self, scores: Sequence[float]) -> Sequence[Row]:
        try:
            rows = self._steps.send(scores)
        except StopIteration as stop:
            self._found, rows = stop.value, ()
        self._job.update(self._search.progress(), len(self._search.verdicts))
        return rows

    def stopped(self) -> bool:
        return self._job.cancelling

    def done(self) -> float:
        return self._search.progress().decided / self.prepared.graph.num_edges

    def charge(self, seconds: float, batch_s: float) -> None:
        self._job.standing.charge(seconds, batch_s)

    def place(self, place: Place) -> None:
        self._job.moved_to(place)

    def end(self, error: Exception | None) -> None:
        if self._found is not None:
            self._job.succeed(self._result(self._found))
        elif error is not None and not self._job.cancelling:
            self._job.fail(error)
        else:
            self._job.end_cancelled()

    def _result(self, found: SearchResult) -> DiscoveryResult:
        spec, started = self._job.spec, self._job.snapshot.started
        assert started is not None
        return DiscoveryResult(
            self.prepared,
            found,
            request_provenance(spec, self.prepared, self._version),
            run_provenance(spec, started, time.time(), self._capabilities, self._search.statistics),
        )


class EvaluationRun:
    """Measures one circuit, the full model and the empty circuit.

    ``future`` resolves to the three metrics. Cancelling it stops the run.
    """

    def __init__(self, prepared: Prepared, circuit: Circuit, user: str) -> None:
        self.prepared, self._circuit, self.user = prepared, circuit, user
        self.future: Future[tuple[float, float, float]] = Future()
        self._scores: Sequence[float] = ()

    def begin(self) -> Sequence[Row]:
        return endpoints(self.prepared.graph, self._circuit)

    def deliver(self, scores: Sequence[float]) -> Sequence[Row]:
        self._scores = scores
        return ()

    def stopped(self) -> bool:
        return self.future.cancelled()

    def done(self) -> float:
        return 0.0

    def charge(self, seconds: float, batch_s: float) -> None:
        """Nobody asks what it took."""

    def place(self, place: Place) -> None:
        """Nobody asks where it stands."""

    def end(self, error: Exception | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            value, full, empty = self._scores
            self.future.set_result((value, full, empty))
