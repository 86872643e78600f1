"""Which job of a user has a slot, and what memory does to slots."""

from __future__ import annotations

import pytest

from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.slots import Claim, Close, Limits, Open, Slots

from .simulation import Job, Machine


def make(limits: Limits, *users: str) -> tuple[Slots[Claim], list[Claim], Accounts]:
    accounts = Accounts()
    slots: Slots[Claim] = Slots(accounts, limits)
    claims = [Claim(user=user) for user in users]
    for claim in claims:
        slots.add(claim)
    accounts.attend(slots.users)
    return slots, claims, accounts


def open_all(slots: Slots[Claim]) -> list[Claim]:
    """Opens what may be opened; nothing may have to be closed."""
    opened = []
    while isinstance(change := slots.next(), Open):
        slots.opened(change.claim)
        opened.append(change.claim)
    assert change is None
    return opened


def test_jobs_of_a_user_begin_in_order() -> None:
    slots, claims, _ = make(Limits(slots=2), *"aaaa")
    assert open_all(slots) == claims[:2]
    slots.leave(claims[0])
    assert open_all(slots) == [claims[2]]
    assert sum(map(len, slots.lines().values())) == 1
    assert list(slots.waiting()) == [claims[3]]


def test_users_share_slots_from_the_start() -> None:
    slots, claims, _ = make(Limits(slots=4), *"aaaabb")
    assert [claim.user for claim in open_all(slots)] == ["a", "b", "a", "b"]
    assert slots.held() == {"a": 2, "b": 2}
    assert slots.lines() == {"a": claims[2:4]}


def test_a_long_job_lets_the_next_one_of_its_user_go_first() -> None:
    jobs = [Job(user="a", batches_left=200), Job(user="a", batches_left=10), Job(user="a", batches_left=10)]
    Machine(jobs, Limits(slots=1, slice_s=30.0), opening_s=0.5).run()
    began = [job.began_at for job in jobs]
    assert began == sorted(began)  # type: ignore[type-var]
    assert jobs[0].openings == 2  # it lost its slot once, to both
    assert jobs[2].ended_at < 60 < jobs[0].ended_at  # type: ignore[operator]


def test_short_jobs_of_a_user_are_done_one_after_another() -> None:
    jobs = [Job(user="a", batches_left=20) for _ in range(30)]
    Machine(jobs, Limits(slots=2, slice_s=30.0)).run()
    assert [job.openings for job in jobs] == [1] * 30


def test_no_more_jobs_of_a_user_are_begun_than_allowed() -> None:
    jobs = [Job(user="a", batches_left=500) for _ in range(20)]
    machine = Machine(jobs, Limits(slots=1, slice_s=10.0, begun_per_user=3))
    for _ in range(1000):
        machine.step()
        assert sum(job.begun and job.ended_at is None for job in jobs) <= 3
    assert sum(job.openings for job in jobs) > 30  # these three take turns


def test_a_claim_without_memory_waits_until_a_session_was_closed() -> None:
    slots, claims, _ = make(Limits(slots=4), *"aaa")
    for claim in claims[:2]:
        slots.opened(claim)
    assert slots.next() == Open(claims[2])
    assert slots.refused(claims[2])
    assert slots.next() is None
    slots.leave(claims[0])
    assert slots.next() == Open(claims[2])


def test_a_claim_that_does_not_fit_alone_has_nothing_to_wait_for() -> None:
    slots, (claim,), _ = make(Limits(slots=4), "a")
    assert slots.next() == Open(claim)
    assert not slots.refused(claim)
    slots.leave(claim)
    assert slots.next() is None
    assert not slots


def test_claims_that_lost_their_slot_to_lack_of_memory_come_back_one_at_a_time() -> None:
    slots, claims, _ = make(Limits(slots=4), *"aaaa")
    assert open_all(slots) == claims
    slots.pause(claims[3], for_memory=True)
    slots.pause(claims[2], for_memory=True)
    assert slots.next() is None
    slots.leave(claims[0])
    assert open_all(slots) == [claims[2]]
    slots.batch_passed(slots.open)
    slots.leave(claims[1])
    assert open_all(slots) == [claims[3]]


def test_when_all_lost_their_slots_one_goes_on() -> None:
    slots, claims, _ = make(Limits(slots=4), *"ab")
    open_all(slots)
    for claim in claims:
        slots.pause(claim, for_memory=True)
    assert open_all(slots) == claims[:1]


def test_a_slot_passes_on_between_operations() -> None:
    slots, (busy, between), accounts = make(Limits(slots=2), *"aa")
    open_all(slots)
    slots.batch_passed(slots.open)
    slots.add(Claim(user="new"))
    accounts.attend(slots.users)
    busy.under_way = between.under_way = True
    assert slots.next() is None
    busy.under_way, between.under_way = False, True
    change = slots.next()
    assert isinstance(change, Close)
    assert change.claim is busy


def test_a_slice_does_not_end_within_an_operation() -> None:
    slots, (running, waiting), _ = make(Limits(slots=1, slice_s=10.0), *"aa")
    open_all(slots)
    slots.batch_passed(slots.open)
    running.charged, running.under_way = 11.0, True
    assert slots.next() is None
    running.under_way = False
    assert slots.next() == Close(running, waiting)


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_newcomer_that_leaves_does_not_keep_a_slot(at: str) -> None:
    slots, (_, second), accounts = make(Limits(slots=1), *"aa")
    open_all(slots)
    slots.batch_passed(slots.open)
    accounts.measured_batch(1.0)
    new = Claim(user="new")
    slots.add(new)
    accounts.attend(slots.users)
    change = slots.next()
    assert isinstance(change, Close)
    if at == "after":
        slots.pause(change.claim)
        assert slots.next() == Open(new)
    slots.leave(new)
    if at == "before":
        slots.pause(change.claim)
    # The one that was begun already goes on before the next one.
    assert open_all(slots) == [change.claim]
    assert list(slots.waiting()) == [second]
