"""Decides which users are served next: weighted deficit round robin, charged by measured cost.

A user's *charge* is the seconds that were spent on its work, divided by its weight; the deficit of a user is
how far its charge lags behind others'. Whoever lags most comes first. *Now*, the virtual time, is the least
charge among the users that were served last: a user that comes, or comes back after idling, starts there, so
idling earns nothing. A debt, however, stays until the others have caught up.

Pure: no threads, no engine, no clock. All times are seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

# All users take part in a batch whose charge is ahead of the least one by no more than this many batches.
BATCHES_AHEAD = 2.0
# A slot moves between users that hold at most one only when their charges differ by what this many openings
# of an engine state, or this many batches, take. Opening states then takes about a tenth of the time at most.
OPENINGS, BATCHES = 8.0, 4.0
# A user that waited long catches up on no more than this many times the difference that moves a slot.
BEHIND = 8.0
# Weight of the latest measurement in a mean.
NEWS = 0.2


@dataclass
class _Account:
    weight: float
    charge: float
    since: int  # number of its arrival: users that came earlier have smaller ones
    due: bool  # whether the user has arrived and has had no slot since


class Accounts:
    """Charges of all users.

    Args:
        weights: weights of users, above 0; others have 1. A user of weight 2 gets twice the seconds.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        for user, weight in self._weights.items():
            if not weight > 0:
                raise ValueError(f"the weight {weight} of {user!r} is not above 0")
        self._present: dict[str, _Account] = {}
        self._absent: dict[str, float] = {}  # charges of users without work, if ahead of `now`
        self._order = itertools.count()
        self.now = 0.0
        # Means of what was measured: a batch, and opening a state.
        self.batch_s, self.opening_s = 0.0, 0.0

    @property
    def switch_margin(self) -> float:
        """Difference of charges at which a slot moves between users that hold at most one."""
        return max(OPENINGS * self.opening_s, BATCHES * self.batch_s)

    @property
    def present(self) -> Collection[str]:
        """Users that have work, in the order of their arrival."""
        return self._present.keys()

    def attend(self, users: Iterable[str]) -> None:
        """Sets who has work at present."""
        wanted = dict.fromkeys(users)
        for user in [user for user in self._present if user not in wanted]:
            self._absent[user] = self._present.pop(user).charge
        self._absent = {user: charge for user, charge in self._absent.items() if charge > self.now}
        for user in wanted:
            if user not in self._present:
                charge = max(self._absent.pop(user, self.now), self.now)
                due = charge == self.now
                self._present[user] = _Account(self.weight(user), charge, next(self._order), due)

    def weight(self, user: str) -> float:
        return self._weights.get(user, 1.0)

    def charge(self, user: str) -> float:
        """Returns a user's charge, in seconds per weight; `now` for one neither present nor in debt."""
        account = self._present.get(user)
        return account.charge if account else max(self.now, self._absent.get(user, 0.0))

    def since(self, user: str) -> int:
        return self._present[user].since

    def due(self, user: str) -> bool:
        """Tells whether the user has arrived and has had no slot since."""
        return self._present[user].due

    def has_slot(self, user: str) -> None:
        self._present[user].due = False

    def spend(self, user: str, seconds: float) -> None:
        """Charges a user that is present."""
        account = self._present[user]
        account.charge += seconds / account.weight

    def measured_batch(self, seconds: float) -> None:
        self.batch_s = running_mean(self.batch_s or None, seconds)

    def measured_opening(self, seconds: float) -> None:
        self.opening_s = running_mean(self.opening_s or None, seconds)

    def turn(self, users: Collection[str]) -> set[str]:
        """Returns which of these users, all present and ready, take part in the next batch: at least one."""
        if not users:
            return set()
        self._proceed(users)
        limit = min(map(self.charge, users)) + BATCHES_AHEAD * self.batch_s
        return {user for user in users if self.charge(user) <= limit}

    def _proceed(self, served: Iterable[str]) -> None:
        accounts = [self._present[user] for user in served]
        oldest = max(account.charge for account in accounts) - BEHIND * self.switch_margin
        for account in accounts:
            account.charge = max(account.charge, oldest)
        self.now = min(account.charge for account in accounts)

    # Slots: a job needs one to take part in batches

    def projected(self, user: str, held: int) -> float:
        """Returns the charge after one more batch with so many slots, about."""
        return self.charge(user) + held * self.batch_s / self.weight(user)

    def first(self, waiting: Collection[str], held: Mapping[str, int]) -> str | None:
        """Returns who gets a free slot: the least charged user, then who holds least, then who came first.

        Args:
            waiting: users, all present.
            held: slots by user; none for those that are missing.
        """

        def rank(user: str) -> tuple[float, float, int]:
            slots = held.get(user, 0)
            return self.projected(user, slots), slots / self.weight(user), self.since(user)

        return min(waiting, key=rank, default=None)

    def switch(
        self, waiting: Collection[str], held: Mapping[str, int], ready: Collection[str], slots: int
    ) -> tuple[str, str] | None:
        """Returns a user without a slot that shall get one, and the user that gives it; None for no change.

        Only users with more than their share give. A user that has just arrived gets a slot at once, and so
        does every user if the giver keeps another slot. Else charges must differ by `switch_margin`.

        Args:
            waiting: users that want a slot, all present.
            held: slots by user; none for those that are missing.
            ready: users that can give a slot, because they have used it for at least one batch.
            slots: how many there are.
        """
        total = sum(map(self.weight, {*waiting, *held}))
        over = [user for user in ready if held[user] > slots * self.weight(user) / total]
        if not over:
            return None
        giver = max(over, key=lambda user: (self.projected(user, held[user]), self.since(user)))
        lead, keeps = self.projected(giver, held[giver]), held[giver] > 1
        none = [user for user in waiting if not held.get(user)]
        for user in sorted(none, key=lambda user: (not self.due(user), self.charge(user), self.since(user))):
            ahead = lead - self.charge(user)
            if ahead > self.switch_margin or ((self.due(user) or keeps) and ahead >= 0):
                return user, giver
        return None


def running_mean(mean: float | None, news: float) -> float:
    """Returns a mean with one more measurement; the mean is None before the first one."""
    return news if mean is None else mean + NEWS * (news - mean)
