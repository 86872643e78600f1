"""Which requests create a job: repeated ones, ones that only ask, and ones that are too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers.fake_engine import OBJECTIVE, FakeEngine
from helpers.specs import acdc, changed
from helpers.waiting import listed, wait_end, wait_until_forgotten

from pahq_server.core.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    ResourceExhaustedError,
)
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.service import JobService
from pahq_server.jobs.spec import JobSpec
from pahq_server.store.records import Retention

SPEC = acdc(2.0, grouping="gates")
NewService = Callable[..., JobService]


def create(service: JobService, spec: JobSpec = SPEC, request_id: str = "") -> Job:
    return service.create(spec, request_id)


def test_a_repeated_request_returns_the_first_job(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    first = create(service, request_id="abc")
    assert create(service, request_id="abc") is first
    engine.release()
    wait_end(first)
    assert create(service, request_id="abc").name == first.name
    assert listed(service) == [first.name]
    assert len(engine.opened) == 1


def test_requests_without_an_id_are_never_the_same(service: JobService) -> None:
    assert create(service).name != create(service).name


def test_a_request_id_for_another_discovery_is_refused(service: JobService) -> None:
    first = create(service, request_id="abc")
    with pytest.raises(AlreadyExistsError, match="'abc'"):
        create(service, changed(SPEC, threshold=0.5), request_id="abc")
    assert listed(service) == [first.name]


def test_a_request_id_is_not_a_place_to_store_things(service: JobService) -> None:
    create(service, request_id="x" * 256)
    with pytest.raises(InvalidRequestError, match="request_id: has more than 256 characters"):
        create(service, request_id="x" * 257)


def test_a_forgotten_jobs_request_id_may_be_used_again(service: JobService) -> None:
    first = create(service, request_id="abc")
    wait_end(first)
    service.delete(first.name)
    assert create(service, changed(SPEC, threshold=0.5), request_id="abc").name != first.name


def test_validating_only_checks_and_creates_nothing(engine: FakeEngine, service: JobService) -> None:
    job, _ = service.check(SPEC, "abc")
    assert (job.name, listed(service), engine.opened) == ("", [], [])
    with pytest.raises(InvalidRequestError):
        service.check(replace(SPEC, method="nothing"), "")
    created = create(service, request_id="abc")
    assert service.check(SPEC, "abc")[0].name == ""
    with pytest.raises(AlreadyExistsError):
        service.check(changed(SPEC, threshold=0.5), "abc")
    assert listed(service) == [created.name]


def test_a_full_queue_turns_requests_away_until_there_is_room(
    engine: FakeEngine, new_service: NewService
) -> None:
    service = new_service(max_queued=2)
    engine.hold()
    jobs = [create(service)]
    engine.wait_for_call()  # the first has left the queue; the rest wait
    jobs += [create(service), create(service)]
    for refused in (lambda: create(service), lambda: service.evaluations.evaluate(OBJECTIVE, [[]])):
        with pytest.raises(ResourceExhaustedError, match="2 runs are waiting already") as caught:
            refused()
        assert caught.value.retry_after_s > 0
    assert len(listed(service)) == 3
    engine.release()
    assert {wait_end(job).state for job in jobs} == {JobState.SUCCEEDED}
    assert wait_end(create(service)).state is JobState.SUCCEEDED


def test_who_fills_the_queue_keeps_no_other_user_out(engine: FakeEngine, new_service: NewService) -> None:
    def ask(user: str) -> Job:
        return service.create(SPEC, "", user=user)

    service = new_service(max_queued=2)
    engine.hold()
    jobs = [ask("ada")]
    engine.wait_for_call()
    jobs += [ask("ada"), ask("ada"), ask("bob")]
    for user in ("ada", "bob"):
        with pytest.raises(ResourceExhaustedError, match="2 runs are waiting already"):
            ask(user)
    jobs += [ask("eve")]
    with pytest.raises(ResourceExhaustedError, match="4 runs are waiting already"):
        ask("dan")
    engine.release()
    assert {wait_end(job).state for job in jobs} == {JobState.SUCCEEDED}
    assert service._scheduler._queued_of == {}


def test_the_oldest_finished_jobs_are_forgotten_first(engine: FakeEngine, new_service: NewService) -> None:
    service = new_service(retention=Retention(jobs=2))
    old, *newer = [create(service, request_id=f"{number}") for number in range(3)]
    for job in (old, *newer):
        wait_end(job)
    wait_until_forgotten(service, old.name)
    assert listed(service) == [job.name for job in newer[::-1]]
    assert create(service, request_id="0").name != old.name


def test_unfinished_jobs_are_never_forgotten(engine: FakeEngine, new_service: NewService) -> None:
    service = new_service(retention=Retention(jobs=1))
    engine.hold()
    jobs = [create(service) for _ in range(3)]
    assert listed(service) == [job.name for job in jobs[::-1]]
