"""Positions in the queue: when each waiting job begins, if nothing changes. All times are seconds."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from pahq_server.scheduler.fairness import Accounts, running_mean
from pahq_server.scheduler.run import Entry, QueuePosition
from pahq_server.scheduler.slots import Slots

C = TypeVar("C")

# After positions were told, nothing is told for this many times as long as that took.
TELL_AGAIN = 50


class JobCosts:
    """Estimates how long a job takes, from jobs that succeeded; before the first, from running ones."""

    def __init__(self) -> None:
        self._of_user: dict[str, float] = {}
        self._mean: float | None = None
        self._expected: float | None = None

    def expect(self, totals: Sequence[float]) -> None:
        """Takes the expected total seconds of every running job."""
        self._expected = sum(totals) / len(totals) if totals else None

    def ended(self, user: str, seconds: float) -> None:
        """Learns how long a job took that succeeded."""
        self._mean = running_mean(self._mean, seconds)
        self._of_user[user] = running_mean(self._of_user.get(user), seconds)

    def forget_all_but(self, present: Iterable[str]) -> None:
        """Forgets what is known of all users except these."""
        known = self._of_user
        self._of_user = {user: known[user] for user in present if user in known}

    def of(self, user: str) -> float | None:
        """Returns about how long a job of the user takes; None if nothing is known."""
        return self._of_user.get(user, self._expected if self._mean is None else self._mean)


def left_s(charged: float, done: float, expected: float | None) -> float | None:
    """Returns the seconds that a begun job still takes; None if unknown.

    Args:
        charged: seconds that it took so far.
        done: share of its work that is done, from 0 to 1.
        expected: seconds that a job of its user takes; None if unknown.
    """
    if done > 0:
        return charged * (1 - done) / done
    return None if expected is None else max(0.0, expected - charged)


def queue_order(
    lines: Mapping[str, Sequence[C]], begun_s: Mapping[str, float], accounts: Accounts, costs: JobCosts
) -> list[C]:
    """Returns all queued jobs in the order in which they are likely to begin.

    Args:
        lines: queued jobs by user, each in order; the users are present.
        begun_s: seconds that the begun jobs of a user still take; 0 for those that are missing.
        accounts: the charges of users.
        costs: costs of jobs; where nothing is known, all jobs count as equal.
    """
    heap = [
        (
            not accounts.due(user),
            accounts.charge(user) + begun_s.get(user, 0.0) / accounts.weight(user),
            since,
            0,
        )
        for user in lines
        for since in (accounts.since(user),)
    ]
    users = {accounts.since(user): user for user in lines}
    heapq.heapify(heap)
    order: list[C] = []
    while heap:
        _, charge, since, number = heap[0]
        user = users[since]
        order.append(lines[user][number])
        if number + 1 == len(lines[user]):
            heapq.heappop(heap)
        else:
            charge += (costs.of(user) or 1.0) / accounts.weight(user)
            heapq.heapreplace(heap, (True, charge, since, number + 1))
    return order


def start_times(
    running: Sequence[float | None], costs: Iterable[float | None], slots: int
) -> list[float | None]:
    """Returns the seconds until each queued job begins, if jobs in slots share the machine evenly.

    A time is None if it is unknown.

    Args:
        running: seconds that begun jobs still take; None if unknown.
        costs: seconds that the queued jobs take, in their order; None if unknown.
        slots: how many jobs run at a time.
    """
    if None in running:
        return [None for _ in costs]
    # Counted in seconds that every running job gets for itself: these pass ``slots`` times as slowly.
    ends = [left for left in running if left is not None]
    heapq.heapify(ends)
    times: list[float | None] = []
    begin: float | None = 0.0
    for cost in costs:
        while begin is not None and len(ends) >= slots:
            begin = heapq.heappop(ends)
        times.append(None if begin is None else begin * slots)
        if cost is None:
            begin = None  # nothing is known from here on
        elif begin is not None:
            heapq.heappush(ends, begin + cost)
    return times


class QueueNotifier:
    """Tells queued jobs their positions, as often as that takes little time (`TELL_AGAIN`).

    Args:
        slots, accounts: those of the scheduler.
        clock: seconds.
    """

    def __init__(self, slots: Slots[Entry], accounts: Accounts, clock: Callable[[], float]) -> None:
        self._slots, self._accounts, self._clock = slots, accounts, clock
        self._costs = JobCosts()
        self._next = clock()  # when to tell again

    def ended(self, entry: Entry) -> None:
        """Learns how long a job took that succeeded."""
        self._costs.ended(entry.user, entry.charged)

    def notify(self) -> None:
        """Tells every queued job its position, unless it was told a moment ago. All users must be present."""
        started = self._clock()
        lines = self._slots.lines()
        if not lines or started < self._next:
            return
        self._costs.forget_all_but(self._accounts.present)
        begun = [entry for entry in [*self._slots.open, *self._slots.waiting()] if entry.begun]
        parts = [(entry, entry.charged, entry.run.done()) for entry in begun]
        self._costs.expect([charged / done for _, charged, done in parts if done > 0])
        left = [left_s(charged, done, self._costs.of(entry.user)) for entry, charged, done in parts]
        of_user: dict[str, float] = {}
        for entry, seconds in zip(begun, left, strict=True):
            of_user[entry.user] = of_user.get(entry.user, 0.0) + (seconds or 0.0)
        order = queue_order(lines, of_user, self._accounts, self._costs)
        times = start_times(left, (self._costs.of(entry.user) for entry in order), self._slots.limits.slots)
        for number, (entry, start_s) in enumerate(zip(order, times, strict=True), start=1):
            entry.run.queued_at(QueuePosition(number, start_s))
        self._next = self._clock() + TELL_AGAIN * (self._clock() - started)
