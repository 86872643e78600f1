"""The policy on a machine that exists only in time: shares, delays, and what preemption costs."""

from __future__ import annotations

import pytest
from helpers.fairness import jain
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.slots import Limits

from .simulation import Job, Machine

ENDLESS = 10**9
costs = st.sampled_from((0.1, 0.3, 1.0, 4.0))
weights = st.sampled_from((0.5, 1.0, 2.0, 5.0))


def endless(user: str, batch_s: float, count: int, comes_at: int = 0) -> list[Job]:
    return [Job(user=user, batches_left=ENDLESS, batch_s=batch_s, comes_at=comes_at) for _ in range(count)]


@st.composite
def mixes(draw: st.DrawFn) -> list[Job]:
    """Jobs of some users that come in the first steps and end."""
    jobs = []
    for user in range(draw(st.integers(1, 6))):
        for _ in range(draw(st.integers(1, 5))):
            batches, comes_at = draw(st.integers(1, 40)), draw(st.integers(0, 30))
            jobs.append(Job(user=f"u{user}", batches_left=batches, batch_s=draw(costs), comes_at=comes_at))
    return jobs


limits = st.builds(
    Limits,
    slots=st.integers(1, 5),
    per_user=st.none() | st.integers(1, 3),
    slice_s=st.sampled_from((5.0, 60.0)),
)


@settings(max_examples=25, deadline=None)
@given(
    users=st.lists(st.tuples(costs, st.integers(1, 6), weights), min_size=2, max_size=10),
    slots=st.integers(1, 5),
    opening_s=costs,
)
def test_charges_of_users_that_always_want_more_stay_close(
    users: list[tuple[float, int, float]], slots: int, opening_s: float
) -> None:
    """Their difference is bounded by what moves a slot and by single batches, however long they run."""
    of_user = {f"u{number}": weight for number, (_, _, weight) in enumerate(users)}
    jobs = [
        job
        for user, (cost, count, _) in zip(of_user, users, strict=True)
        for job in endless(user, cost, count)
    ]
    machine = Machine(jobs, Limits(slots), of_user, opening_s)
    single = max((min(count, slots) * cost + opening_s) / weight for cost, count, weight in users)
    patience = 0.0
    for _ in range(800):
        machine.step()
        patience = max(patience, machine.accounts.switch_margin)
    charges = [machine.seconds[user] / weight for user, weight in of_user.items()]
    assert max(charges) - min(charges) <= 2 * (patience + single)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_fifty_users_get_the_same(slots: int) -> None:
    """While all of them have work: jobs of very different length and cost."""
    jobs = [
        Job(
            user=f"u{number % 50}",
            batches_left=5 + number * 7 % 50,
            batch_s=(0.05, 0.1, 0.3, 1.0)[number % 4],
        )
        for number in range(1000)
    ]
    users = {job.user for job in jobs}
    machine = Machine(jobs, Limits(slots), opening_s=0.3)
    machine.step()
    while machine.steps[-1].backlogged == users:
        machine.step()
    assert jain(list(machine.seconds.values())) >= 0.99
    assert len(machine.seconds) == 50


@settings(max_examples=30, deadline=None)
@given(
    others=st.lists(st.tuples(costs, st.integers(1, 8)), min_size=1, max_size=8),
    slots=st.integers(1, 5),
    opening_s=costs,
    comes_at=st.integers(0, 120),
)
def test_a_newcomer_waits_two_quanta_at_most(
    others: list[tuple[float, int]], slots: int, opening_s: float, comes_at: int
) -> None:
    """Whoever has work already, how many jobs they have queued, and however dear these are."""
    jobs = [job for number, (cost, count) in enumerate(others) for job in endless(f"u{number}", cost, count)]
    newcomer = Job(user="new", comes_at=comes_at + len(others))
    Machine([*jobs, newcomer], Limits(slots), opening_s=opening_s).run(comes_at + len(others) + 5)
    assert newcomer.began_at is not None
    assert newcomer.began_at - newcomer.comes_at <= 2


@settings(max_examples=40, deadline=None)
@given(mixes(), limits, costs)
def test_every_job_ends_and_no_slot_stays_empty(jobs: list[Job], limits: Limits, opening_s: float) -> None:
    machine = Machine(jobs, limits, opening_s=opening_s).run(20_000)
    assert all(job.ended_at is not None for job in jobs)
    per_user = limits.per_user or limits.slots
    for number, step in enumerate(machine.steps):
        there = [job for job in jobs if job.comes_at <= number and (job.ended_at or 0) >= number]
        of_user = {user: sum(job.user == user for job in there) for user in {job.user for job in there}}
        assert step.open == min(limits.slots, sum(min(count, per_user) for count in of_user.values()))
        assert bool(step.served) == bool(there)


@settings(max_examples=30, deadline=None)
@given(mixes(), st.integers(1, 5), st.integers(1, 3))
def test_every_job_ends_where_memory_holds_few(jobs: list[Job], slots: int, room: int) -> None:
    machine = Machine(jobs, Limits(slots), room=room).run(20_000)
    assert all(job.ended_at is not None for job in jobs)
    assert max(step.open for step in machine.steps) <= room


@settings(max_examples=20, deadline=None)
@given(
    users=st.lists(costs, min_size=2, max_size=10),
    slots=st.integers(1, 4),
    opening_s=st.sampled_from((0.1, 1.0, 9.0)),
)
def test_slots_move_so_seldom_that_opening_takes_little(
    users: list[float], slots: int, opening_s: float
) -> None:
    jobs = [job for number, cost in enumerate(users) for job in endless(f"u{number}", cost, 6)]
    machine = Machine(jobs, Limits(slots), opening_s=opening_s).run(800)
    first = len(jobs)  # every job may be opened once
    moved = max(0, sum(job.openings for job in jobs) - first) * opening_s
    assert moved <= 0.25 * sum(machine.seconds.values())


def test_idling_earns_no_credit() -> None:
    jobs = [*endless("early", 1.0, 3), *endless("late", 1.0, 3, comes_at=400)]
    machine = Machine(jobs, Limits(slots=2)).run(400)
    before = machine.seconds["early"]
    machine.run(800)
    after = machine.seconds["early"] - before
    assert after == pytest.approx(machine.seconds["late"], rel=0.05)


def test_a_debt_outlasts_a_break() -> None:
    accounts = Accounts()
    accounts.attend(["a", "b"])
    accounts.spend("a", 9.0)
    accounts.attend(["b"])
    accounts.attend(["a", "b"])
    assert (accounts.charge("a"), accounts.charge("b")) == (9.0, 0.0)
    assert not accounts.due("a")
    accounts.spend("b", 20.0)
    accounts.turn({"b"})
    accounts.attend(["b"])
    accounts.attend(["a", "b"])
    assert accounts.charge("a") == accounts.now == 20.0  # its debt was overtaken
    assert accounts.due("a")


def test_users_far_ahead_miss_a_turn() -> None:
    accounts = Accounts({"c": 10.0})
    accounts.attend(["a", "b", "c"])
    accounts.measured_batch(1.0)
    accounts.measured_opening(100.0)
    for user in "abc":
        accounts.spend(user, 5.0)
    accounts.spend("a", 1.5)
    assert accounts.turn({"a", "b"}) == {"a", "b"}
    assert accounts.turn({"a", "b", "c"}) == {"c"}
    assert accounts.turn({"a"}) == {"a"}
    assert accounts.turn(set()) == set()


def test_nobody_catches_up_without_end() -> None:
    accounts = Accounts()
    accounts.attend(["a", "b"])
    accounts.measured_batch(1.0)
    accounts.spend("a", 1000.0)
    accounts.turn({"a", "b"})
    assert 1000.0 - accounts.charge("b") == pytest.approx(8 * accounts.switch_margin)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Accounts({"a": weight})


def test_what_is_known_of_users_does_not_grow() -> None:
    accounts = Accounts()
    for number in range(1000):
        accounts.attend([f"u{number}", "steady"])
        accounts.turn({f"u{number}", "steady"})
        accounts.spend(f"u{number}", 0.5)
        accounts.spend("steady", 1.0)
    assert len(accounts._absent) + len(accounts.present) < 10


def test_jain() -> None:
    assert jain([3.0, 3.0]) == 1.0
    assert jain([4.0, 0.0]) == 0.5
    assert jain([0.0]) == 1.0


@pytest.mark.parametrize(
    ("held", "ahead", "moves"),
    [
        ({"a": 2}, 1.0, True),  # a keeps another one
        ({"a": 1}, 1.0, False),  # that would be to and fro
        ({"a": 1}, 100.0, True),
        ({"a": 2}, -9.0, False),  # b was charged more
        ({"a": 1, "b": 1}, 100.0, False),  # b has one: turns even out the rest
    ],
)
def test_whoever_had_a_slot_before_takes_none_without_need(
    held: dict[str, int], ahead: float, moves: bool
) -> None:
    accounts = Accounts()
    accounts.attend(["a", "b"])
    accounts.measured_batch(1.0)
    accounts.measured_opening(1.0)
    for user in "ab":
        accounts.has_slot(user)
        accounts.spend(user, 20.0)
    accounts.spend("a", ahead)
    found = accounts.switch({"a", "b"}, held, ready={"a"}, slots=sum(held.values()))
    assert found == (("b", "a") if moves else None)
