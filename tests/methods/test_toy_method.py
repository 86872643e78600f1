"""A method with an operation of its own, which jobs, store and scheduler have never heard of."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.fake_engine import OBJECTIVE, FakeEngine
from helpers.waiting import result_of, wait_until

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.jobs.job import JobState
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods.base import Method, MethodContext, Steps
from pahq_server.methods.registry import METHODS
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore


@dataclass(frozen=True)
class Square(Operation):
    number: int
    weight = 1.0  # type: ignore[assignment]


@dataclass(frozen=True)
class ToyParameters:
    numbers: int = 5


class Toy(Method[ToyParameters]):
    name, parameters, unit = "toy", ToyParameters, "numbers"

    def total(self, parameters: ToyParameters, resolved: ResolvedObjective) -> int:
        return parameters.numbers

    def run(self, context: MethodContext[ToyParameters]) -> Steps:
        squares = list(b"".join(context.journal))
        while len(squares) < context.parameters.numbers:
            squares.append((yield Square(len(squares))))
            context.record(bytes(squares[-1:]))
            context.tell(Progress(len(squares), "squaring", {"sum": sum(squares)}))
        return Artifact("squares", 1, bytes(squares), {"sum": sum(squares)})


def start(path: Path) -> tuple[JobService, FakeEngine]:
    engine = FakeEngine()
    engine.operations[Square] = lambda operation: operation.number**2
    engine.hold()
    store = SqliteJobStore(Database(path / "jobs.sqlite3"))
    service = JobService(engine, "1.2.3", JobPolicy(), store=store)
    service.start()
    return service, engine


def test_a_toy_is_queued_watched_killed_resumed_and_gives_its_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "toy", Toy())
    (tmp_path / "first").mkdir()
    killed, killed_engine = start(tmp_path / "first")
    job = killed.create(JobSpec(OBJECTIVE, "toy", ToyParameters()), "")
    killed_engine.let(3)
    seen = wait_until(job, lambda now: now.progress == Progress(3, "squaring", {"sum": 5.0}))
    assert (seen.state, seen.records, job.unit, job.total) == (JobState.RUNNING, 3, "numbers", 5)
    shutil.copytree(tmp_path / "first", tmp_path / "then", ignore=shutil.ignore_patterns("*-shm"))
    service, engine = start(tmp_path / "then")  # as another process finds what a killed one left
    engine.release()
    result = result_of(service, service.find(job.name))
    assert (result.artifact.kind, result.artifact.data) == ("squares", bytes([0, 1, 4, 9, 16]))
    assert result.run["counts"] == {"replayed": 3}
    assert sum(map(len, engine.steps)) == 2  # the first three numbers are not squared again
    for each, held in ((killed, killed_engine), (service, engine)):
        held.release()
        each.close()
