"""Tells queued jobs where they stand."""

from __future__ import annotations

from collections.abc import Callable

from pahq_server.scheduler.entry import Entry
from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.places import Costs, Place, left_s, queue_order, start_times
from pahq_server.scheduler.slots import Slots

# Places are told again after so many times what telling them took.
TELL_AGAIN = 50


class Teller:
    """Tells places in the queue, as often as it takes no time worth mentioning.

    Args:
        slots, accounts: as they are at present, all users present.
        clock: seconds.
    """

    def __init__(self, slots: Slots[Entry], accounts: Accounts, clock: Callable[[], float]) -> None:
        self._slots, self._accounts, self._clock = slots, accounts, clock
        self._costs = Costs()
        self._again = clock()

    def ended(self, entry: Entry) -> None:
        """Takes note of what a job took that ended well."""
        self._costs.ended(entry.user, entry.charged)

    def tell(self) -> None:
        """Tells every queued job its place, unless that was done just now."""
        started = self._clock()
        lines = self._slots.lines()
        if not lines or started < self._again:
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
        for position, (entry, start_s) in enumerate(zip(order, times, strict=True), start=1):
            entry.run.place(Place(position, start_s))
        self._again = self._clock() + TELL_AGAIN * (self._clock() - started)
