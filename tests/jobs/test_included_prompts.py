"""Jobs that are to tell their prompts with the result, beside equal ones that are not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.damage import summed_again
from helpers.fake_engine import OBJECTIVE, FakeEngine
from helpers.specs import acdc
from helpers.waiting import result_of

from pahq_server.core.errors import AlreadyExistsError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.jobs import spec as specs
from pahq_server.jobs.job import Job
from pahq_server.jobs.service import JobService
from pahq_server.jobs.spec import JobSpec, RequestFacts
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE
from pahq_server.store.jobs import SqliteJobStore

NewService = Callable[..., JobService]

TASK = PromptTask(("Mary had a", (3, 4)), ("John had a", (3, 6)), ("lamb", (7,)), positions=(1,))
SPEC = acdc(2.0, grouping="gates", objective=replace(OBJECTIVE, task=TASK))
ASKS = replace(SPEC, include_prompts=True)
BUILTIN = replace(SPEC, objective=replace(OBJECTIVE, task=BuiltinTask("ioi", 1, 5)))


class Telling(FakeEngine):
    """Tells the prompts as a real engine does."""

    def resolve(self, *asked: object) -> object:  # type: ignore[override]
        resolved = super().resolve(*asked)  # type: ignore[arg-type]
        task = resolved.objective.task
        generated = PromptTask(("generated",), ("made up",), ("a",), ("b",))
        return replace(resolved, prompts=task if isinstance(task, PromptTask) else generated)


@pytest.fixture
def engine() -> FakeEngine:
    return Telling()


def prompts_of(service: JobService, job: Job) -> object:
    prompts = result_of(service, job).prompts
    return None if prompts is None else json.loads(prompts)


EXPECTED = {
    "clean": ["Mary had a", [3, 4]],
    "corrupted": ["John had a", [3, 6]],
    "answers": ["lamb", [7]],
    "wrong_answers": [],
    "positions": [1],
}


def test_prompts_come_with_the_result_where_they_were_asked_for(service: JobService) -> None:
    assert prompts_of(service, service.create(ASKS, "")) == EXPECTED
    assert prompts_of(service, service.create(SPEC, "")) is None


def test_generated_prompts(service: JobService) -> None:
    asks = replace(BUILTIN, include_prompts=True)
    prompts = prompts_of(service, service.create(asks, ""))
    assert isinstance(prompts, dict)
    assert (prompts["clean"], prompts["answers"], prompts["positions"]) == (["generated"], ["a"], None)
    assert prompts_of(service, service.create(BUILTIN, "")) is None


def test_an_engine_that_tells_none_leaves_token_ids(engine: FakeEngine) -> None:
    service = JobService(FakeEngine(), "1.2.3")
    service.start()
    try:
        prompts = prompts_of(service, service.create(ASKS, ""))
    finally:
        service.close()
    assert prompts == {
        "clean": [[1, 2]], "corrupted": [[1, 3]], "answers": [], "wrong_answers": [], "positions": None
    }  # fmt: skip


@pytest.mark.parametrize("first", [SPEC, ASKS])
def test_equal_discoveries_share_a_result_and_not_the_prompts(
    first: JobSpec, engine: FakeEngine, new_service: NewService
) -> None:
    service = new_service(reuse=True)
    second = SPEC if first is ASKS else ASKS
    jobs = [service.create(spec, "") for spec in (first,)]
    result = result_of(service, jobs[0])
    jobs.append(service.create(second, ""))
    again = result_of(service, jobs[1])
    assert again.run["from_cache"]
    assert again.request == result.request
    assert len(engine.opened) == 1
    for spec, job in zip((first, second), jobs, strict=True):
        assert prompts_of(service, job) == (EXPECTED if spec is ASKS else None)


def test_a_request_id_tells_them_apart(service: JobService) -> None:
    job = service.create(ASKS, "abc")
    assert service.create(ASKS, "abc").name == job.name
    with pytest.raises(AlreadyExistsError):
        service.create(SPEC, "abc")


def test_jobs_of_one_result_tell_their_own_task(engine: FakeEngine, new_service: NewService) -> None:
    """The generated prompts are the same tokens as some that were sent."""
    service = new_service(reuse=True)
    tasks = [result_of(service, service.create(spec, "")).run["task"] for spec in (BUILTIN, SPEC)]
    assert tasks == [{"name": "ioi", "num_prompts": 1, "seed": 5}, {"num_prompts": 1}]
    assert len(engine.opened) == 1


# What is stored


def test_the_choice_is_part_of_the_request() -> None:
    text, asks = specs.encode(SPEC), specs.encode(ASKS)
    assert specs.decode(text.text, text.prompts) == SPEC
    assert specs.decode(asks.text, asks.prompts) == ASKS
    assert text.payload != asks.payload


def test_a_later_process_still_tells_all(engine: FakeEngine, new_service: NewService, tmp_path: Path) -> None:
    job = None
    for _ in range(2):
        with_database = Database(tmp_path / DATABASE)
        service = new_service(SqliteJobStore(with_database))
        job = job or service.create(ASKS, "")
        found = result_of(service, service.find(job.name))
        assert json.loads(found.prompts or "") == EXPECTED
        assert found.run["task"] == {"num_prompts": 1}
        assert service.find(job.name).facts.num_prompts == 1
        assert service.find(job.name).summary is not None
        service.close()
        with_database.close()


def test_specs_of_an_older_server(new_service: NewService, tmp_path: Path) -> None:
    """They have another form and tell nothing about the request; its id is known all the same."""
    database = Database(tmp_path / DATABASE)
    service = new_service(SqliteJobStore(database))
    job = service.create(SPEC, "abc")
    result_of(service, job)
    fields = json.loads(specs.encode(SPEC).text)
    older = {
        "measurement": fields["objective"],
        "builtin": None,
        "method": "acdc",
        "threshold": 2.0,
        "gates": True,
    }
    with database.transaction("test", synced=True) as connection:
        connection.execute("UPDATE jobs SET spec = ?, payload = ?", (specs.to_json(older), bytes(32)))
        summed_again(connection)
    found = service.find(job.name)
    assert (found.spec.parameters, found.facts) == (SPEC.parameters, RequestFacts())
    assert found.summary is not None
    again = result_of(service, found)
    assert (again.run["task"], again.prompts) == ({}, None)
    assert service.create(SPEC, "abc").name == job.name
    with pytest.raises(AlreadyExistsError):
        service.create(ASKS, "abc")
    service.close()
    database.close()


def test_prompts_are_not_logged(service: JobService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    result_of(service, service.create(ASKS, ""))
    assert "Mary" not in caplog.text
