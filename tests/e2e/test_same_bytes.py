"""Verdicts and results of the known circuits, to the last bit: whatever the load, the window, the memory and
the restarts. In one process and without the network: what decides is below it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pahq_server.core.engine import Objective, ResolvedObjective, Work
from pahq_server.core.errors import ResourceExhaustedError
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import PromptTask
from pahq_server.engine.cost import job_bytes
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.worker import TRANSFORMS
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.verdicts import SearchResult, Verdict
from pahq_server.models.loading import LoadedModel, load
from pahq_server.scheduler.run import QueuePosition
from pahq_server.scheduler.scheduler import Scheduler

from .cases import Case, grouping_of, load_cases

JOBS = 10
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Known:
    """A discovery of a case."""

    case: Case
    run: dict[str, Any]

    @property
    def name(self) -> str:
        run = self.run
        return "-".join([self.case.name, run["ablation"], run["kv"], grouping_of(run), str(run["tau"])])

    def resolved(self, engine: ModelEngine) -> ResolvedObjective:
        content = self.case.content
        pairs, positions = content.get("answers") or (), content["positions"]
        task = PromptTask(
            clean=tuple(map(tuple, content["clean"])),
            corrupted=tuple(map(tuple, content["corrupted"])),
            answers=tuple((right,) for right, _ in pairs),
            wrong_answers=tuple((wrong,) for _, wrong in pairs),
            positions=None if positions == "last" else tuple(positions),
        )
        asked = Objective(
            self.case.model, task, self.case.metric, self.run["ablation"], self.run["kv"], "fp32"
        )
        return engine.resolve(asked)

    def search(
        self, resolved: ResolvedObjective, window: int, verdicts: Sequence[Verdict] = ()
    ) -> AcdcSearch:
        return AcdcSearch(resolved.graph, self.run["tau"], grouping_of(self.run), window, verdicts)


def cheapest_first() -> list[Known]:
    """All discoveries of all cases."""
    every = [Known(case, run) for case in load_cases() for run in case.runs]
    return sorted(every, key=lambda known: known.run["n_evaluations"])


def one_per_case() -> list[Known]:
    """The cheapest discovery of each case."""
    first: dict[str, Known] = {}
    for known in cheapest_first():
        first.setdefault(known.case.name, known)
    return list(first.values())


def one_grouped_per_case() -> list[Known]:
    """The cheapest grouped discovery of each case."""
    return [
        Known(case, min(case.attribution["bisect"], key=lambda run: run["n_evaluations"]))
        for case in load_cases()
    ]


def by_model() -> dict[str, list[Known]]:
    """The cheapest discoveries of each model, ten at most."""
    models: dict[str, list[Known]] = {}
    for known in cheapest_first():
        models.setdefault(known.case.model, []).append(known)
    return {model: some[:JOBS] for model, some in models.items()}


# A run of these takes seconds, not fractions of one.
LARGE = ("tinytalk-gptneo-hf", "stories260K-hf")


def parameters(every: Sequence[Known]) -> list[Any]:
    marks = {known.name: pytest.mark.long if known.case.model in LARGE else () for known in every}
    return [pytest.param(k, id=k.name, marks=marks[k.name]) for k in every]


@dataclass(frozen=True)
class Outcome:
    """All that a discovery decides, comparable bit by bit."""

    verdicts: tuple[Verdict, ...]
    circuit: bytes
    scores: bytes
    metrics: tuple[float, float, float]

    @classmethod
    def of(cls, found: SearchResult) -> Outcome:
        metrics = found.metric_value, found.metric_full, found.metric_empty
        return cls(found.verdicts, found.circuit.key, found.scores.tobytes(), metrics)


class SearchRun:
    """A search as the scheduler runs it, each of a user of its own."""

    name = ""

    def __init__(self, resolved: ResolvedObjective, search: AcdcSearch) -> None:
        self.resolved, self._steps = resolved, search.run()
        self.user = f"user-{id(self)}"
        self.found: Outcome | None = None
        self.error: Exception | None = None
        self._ended = threading.Event()

    def begin(self) -> ScorePasses:
        return ScorePasses(next(self._steps))

    def deliver(self, result: object) -> ScorePasses | None:
        assert isinstance(result, list)
        try:
            return ScorePasses(self._steps.send(result))
        except StopIteration as stop:
            self.found = Outcome.of(stop.value)
            return None

    def stopped(self) -> bool:
        return False

    def end(self, error: Exception | None) -> None:
        self.error = error
        self._ended.set()

    def done(self) -> float:
        return 0.0

    def charge(self, seconds: float) -> None:
        """Nobody pays."""

    def queued_at(self, position: QueuePosition) -> None:
        """Nobody asks."""

    def wait(self) -> Outcome:
        assert self._ended.wait(PATIENCE_S), "the run did not end"
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


@pytest.fixture(scope="module")
def served() -> dict[str, LoadedModel]:
    directories = {case.model: case.model_directory for case in load_cases()}
    return {name: load(str(path), TRANSFORMS["sparse"]) for name, path in directories.items()}


@pytest.fixture(scope="module")
def engine(served: dict[str, LoadedModel]) -> Iterator[ModelEngine]:
    engine = ModelEngine(served, memory_bytes=1 << 30)
    yield engine
    engine.memory.pool.check_integrity()
    engine.memory.prefixes.clear()
    assert engine.memory_usage().used == 0


def alone(engine: ModelEngine, known: Known, window: int = 32, verdicts: Sequence[Verdict] = ()) -> Outcome:
    """The discovery by itself, perhaps from the middle on."""
    resolved = known.resolved(engine)
    return followed(engine, resolved, known.search(resolved, window, verdicts))


def followed(engine: ModelEngine, resolved: ResolvedObjective, search: AcdcSearch) -> Outcome:
    """A search to its end. Raises what its scores end with."""
    state = engine.open(resolved)
    try:
        run = SearchRun(resolved, search)
        operation: ScorePasses | None = run.begin()
        while operation is not None:
            (scores,) = engine.run([Work(state, operation)])
            if isinstance(scores, Exception):
                raise scores
            operation = run.deliver(scores)
    finally:
        engine.close(state)
    assert run.found is not None
    return run.found


KNOWN: dict[str, Outcome] = {}


def expected(engine: ModelEngine, known: Known) -> Outcome:
    """Of the discovery alone; computed once."""
    if known.name not in KNOWN:
        KNOWN[known.name] = alone(engine, known)
        assert len(KNOWN[known.name].verdicts) == known.run["n_evaluations"]
    return KNOWN[known.name]


def together(engine: ModelEngine, jobs: Sequence[Known], windows: Sequence[int]) -> list[Outcome]:
    """All in one scheduler at once."""
    scheduler, runs = Scheduler(engine, max_running=len(jobs)), []
    for number, known in enumerate(jobs):
        resolved = known.resolved(engine)
        runs.append(SearchRun(resolved, known.search(resolved, windows[number % len(windows)])))
        scheduler.submit(runs[-1])
    scheduler.start()
    try:
        return [run.wait() for run in runs]
    finally:
        scheduler.close()


@pytest.mark.parametrize("window", [1, 7, 64])
@pytest.mark.parametrize("known", parameters([*one_per_case(), *one_grouped_per_case()]))
def test_any_window(engine: ModelEngine, known: Known, window: int) -> None:
    assert alone(engine, known, window) == expected(engine, known)


@pytest.mark.parametrize("known", parameters([*one_per_case(), *one_grouped_per_case()]))
def test_a_restart_from_the_log(engine: ModelEngine, known: Known) -> None:
    whole = expected(engine, known)
    for share in (0.25, 0.5, 0.9):
        log = whole.verdicts[: int(len(whole.verdicts) * share)]
        assert alone(engine, known, 7, log) == whole


def in_memory(
    memory_bytes: int, known: Known, model: LoadedModel, resolved: ResolvedObjective
) -> Outcome | None:
    """The discovery with so much memory; None if that does not suffice."""
    engine = ModelEngine({known.case.model: model}, memory_bytes=memory_bytes)
    try:
        return followed(engine, resolved, known.search(resolved, 1))
    except ResourceExhaustedError:
        return None
    finally:
        engine.memory.pool.check_integrity()


def least_memory(engine: ModelEngine, model: LoadedModel, known: Known) -> int:
    """Bytes, within a fifth, with which the discovery is possible; whatever is possible, it is the same."""
    whole, resolved = expected(engine, known), known.resolved(engine)
    # Beginning with what the server demands before it accepts the job.
    low, high = 0, job_bytes(model.model.architecture, resolved.task)
    while (found := in_memory(high, known, model, resolved)) is None:
        low, high = high, 2 * high
    assert found == whole
    while high - low > max(high // 5, 8192):
        middle = (low + high) // 2
        found = in_memory(middle, known, model, resolved)
        assert found in (None, whole)
        low, high = (middle, high) if found is None else (low, middle)
    return high


@pytest.mark.parametrize("known", parameters(one_per_case()))
def test_the_smallest_memory(engine: ModelEngine, served: dict[str, LoadedModel], known: Known) -> None:
    assert least_memory(engine, served[known.case.model], known) > 0


@pytest.mark.parametrize(
    "jobs",
    [
        pytest.param(jobs, id=model, marks=pytest.mark.long if model in LARGE else ())
        for model, jobs in by_model().items()
    ],
)
def test_ten_jobs_of_one_model(engine: ModelEngine, jobs: list[Known]) -> None:
    """Their rows share sweeps. Where a case has fewer runs, some run twice."""
    jobs = [jobs[i % len(jobs)] for i in range(JOBS)]
    assert together(engine, jobs, (32, 1, 64, 7)) == [expected(engine, known) for known in jobs]


def small_ones() -> list[Known]:
    jobs = [known for known in one_per_case() if known.case.model not in LARGE]
    return jobs or pytest.skip("needs ../shared/cases, which is not part of the repository")


def test_jobs_of_all_models(engine: ModelEngine) -> None:
    jobs = small_ones()
    assert together(engine, jobs, (32, 3)) == [expected(engine, known) for known in jobs]


def test_jobs_that_fit_one_by_one_wait_for_each_other(
    engine: ModelEngine, served: dict[str, LoadedModel]
) -> None:
    jobs = small_ones()
    memory_bytes = max(least_memory(engine, served[k.case.model], k) for k in jobs)
    small = ModelEngine(served, memory_bytes=memory_bytes)
    assert together(small, jobs, (1,)) == [expected(engine, known) for known in jobs]
    small.memory.pool.check_integrity()
