"""Places in the queue: who begins when, if nothing changes.

Pure. All times are seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pahq_server.scheduler.fairness import Accounts, running_mean

C = TypeVar("C")


@dataclass(frozen=True)
class Place:
    """Where a job stands in the queue.

    Args:
        position: 1 for the next to begin.
        start_s: seconds until it begins, about; None while nothing is known of the pace.
    """

    position: int
    start_s: float | None


class Costs:
    """What jobs take, from those that ended well; before the first one has, from those that run."""

    def __init__(self) -> None:
        self._of_user: dict[str, float] = {}
        self._mean: float | None = None
        self._expected: float | None = None

    def expect(self, totals: Sequence[float]) -> None:
        """What jobs that run are going to take altogether."""
        self._expected = sum(totals) / len(totals) if totals else None

    def ended(self, user: str, seconds: float) -> None:
        self._mean = running_mean(self._mean, seconds)
        self._of_user[user] = running_mean(self._of_user.get(user), seconds)

    def forget_all_but(self, present: Iterable[str]) -> None:
        """Keeps what is known of some users only."""
        known = self._of_user
        self._of_user = {user: known[user] for user in present if user in known}

    def of(self, user: str) -> float | None:
        """What a job of the user takes, about; None if nothing is known of any."""
        return self._of_user.get(user, self._expected if self._mean is None else self._mean)


def left_s(charged: float, done: float, expected: float | None) -> float | None:
    """Seconds that a begun job still takes.

    Args:
        charged: seconds that it took.
        done: share of its work that is done.
        expected: what jobs like it take.
    """
    if done > 0:
        return charged * (1 - done) / done
    return None if expected is None else max(0.0, expected - charged)


def queue_order(
    lines: Mapping[str, Sequence[C]], begun_s: Mapping[str, float], accounts: Accounts, costs: Costs
) -> list[C]:
    """All queued jobs in the order in which they are likely to begin.

    Args:
        lines: queued jobs by user, each in order; the users are present.
        begun_s: seconds that the begun jobs of a user still take; 0 for those that are missing.
        accounts: of users.
        costs: of jobs; where nothing is known, all are taken to be alike.
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
    """When each queued job begins, if those in slots share one machine evenly.

    Args:
        running: what begun jobs still take; None if unknown.
        costs: of the queued jobs, in their order; None if unknown.
        slots: how many jobs run at a time.
    """
    if None in running:
        return [None for _ in costs]
    # In time that each of the running jobs gets for itself: the clock goes ``slots`` times as fast.
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
