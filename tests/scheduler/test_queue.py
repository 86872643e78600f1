"""Places in the queue, and when jobs begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.queue import JobCosts, left_s, queue_order, start_times

from .simulation import Job, Limits, Machine


def accounts_of(**charges: float) -> Accounts:
    accounts = Accounts()
    accounts.attend(charges)
    for user, charge in charges.items():
        accounts.has_slot(user)
        accounts.spend(user, charge)
    return accounts


def test_users_take_turns_from_the_least_charged_on() -> None:
    costs = JobCosts()
    costs.ended("any", 2.0)
    order = queue_order({"a": ["a1", "a2", "a3"], "b": ["b1", "b2"]}, {}, accounts_of(a=0.0, b=3.0), costs)
    assert order == ["a1", "a2", "b1", "a3", "b2"]


def test_what_begun_jobs_still_take_counts() -> None:
    order = queue_order({"a": ["a1"], "b": ["b1"]}, {"a": 9.0}, accounts_of(a=0.0, b=3.0), JobCosts())
    assert order == ["b1", "a1"]


def test_a_newcomers_first_job_is_next() -> None:
    accounts = accounts_of(a=0.0, b=0.0)
    accounts.attend(["a", "b", "new"])
    accounts.spend("new", 5.0)
    lines = {"a": ["a1", "a2"], "b": ["b1"], "new": ["n1", "n2"]}
    assert queue_order(lines, {}, accounts, JobCosts()) == ["n1", "a1", "b1", "a2", "n2"]


def test_jobs_share_the_machine() -> None:
    """Two at a time, each at half the speed: with 3 s and 5 s left, the first one ends after 6 s."""
    assert start_times([3.0, 5.0], [10.0, 10.0, 1.0], slots=2) == [6.0, 10.0, 26.0]


def test_free_slots_are_taken_at_once() -> None:
    assert start_times([3.0], [1.0, 1.0], slots=3) == [0.0, 0.0]


def test_what_is_not_known_is_not_guessed() -> None:
    assert start_times([None], [1.0], slots=1) == [None]
    assert start_times([1.0], [None, 1.0], slots=1) == [1.0, None]
    assert left_s(5.0, 0.0, None) is None
    costs = JobCosts()
    assert costs.of("a") is None
    costs.expect([2.0, 4.0])
    assert costs.of("a") == 3.0  # that is known of those that run
    costs.expect([])
    assert costs.of("a") is None


def test_what_is_left_follows_from_what_is_done() -> None:
    assert left_s(6.0, 0.75, 100.0) == 2.0
    assert left_s(6.0, 0.0, 10.0) == 4.0
    assert left_s(6.0, 0.0, 1.0) == 0.0


def test_costs_are_means_by_user() -> None:
    costs = JobCosts()
    costs.ended("a", 1.0)
    assert costs.of("b") == 1.0
    costs.ended("b", 6.0)
    assert (costs.of("a"), costs.of("b")) == (1.0, 6.0)
    costs.forget_all_but(["a"])
    assert (costs.of("a"), costs.of("b")) == (1.0, 2.0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 12)), min_size=1, max_size=30),
    st.integers(1, 4),
)
def test_jobs_begin_about_when_they_were_told(jobs: list[tuple[str, int]], slots: int) -> None:
    """Told after one step; what jobs take is known here."""
    claims = [Job(user=user, batches_left=count) for user, count in jobs]
    machine = Machine(claims, Limits(slots), opening_s=1e-9)
    machine.step()
    lines, slots_ = machine.slots.lines(), machine.slots
    costs = JobCosts()
    costs.ended("any", sum(count for _, count in jobs) / len(jobs))
    order = queue_order(lines, {}, machine.accounts, costs)
    assert sorted(map(id, order)) == sorted(id(claim) for line in lines.values() for claim in line)
    for line in lines.values():  # each user's jobs in order
        places = [order.index(claim) for claim in line]
        assert places == sorted(places)
    running = [float(claim.batches_left) for claim in slots_.open]
    known = [float(claim.batches_left) for claim in order]
    starts = start_times(running, known, slots)
    assert starts == sorted(starts)  # type: ignore[type-var]
    machine.run()
    if len({user for user, _ in jobs}) == 1:  # nobody else changes anything
        told = [start / slots for start in starts if start is not None]
        assert [claim.began_at - 1 for claim in order] == pytest.approx(told)  # type: ignore[operator]


def test_hundreds_of_queued_jobs_are_ordered_at_once() -> None:
    users = [f"u{number}" for number in range(50)]
    accounts = accounts_of(**dict.fromkeys(users, 1.0))
    order = queue_order({user: list(range(20)) for user in users}, {}, accounts, JobCosts())
    assert len(order) == 1000
    assert order[:50] == [0] * 50
    assert None not in start_times([1.0] * 4, [1.0] * 1000, 4)
