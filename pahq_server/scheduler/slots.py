"""Slots: which jobs have one, which wait for one, and what should change next.

A slot is the right to hold tensors. Like `fairness`, this has no threads, engine or clock: the scheduler
opens and closes engine states as `Slots.next` says, and reports what came of it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pahq_server.scheduler.fairness import Accounts


@dataclass(frozen=True)
class Limits:
    """How many jobs have slots, and how slots pass between jobs of one user.

    Args:
        slots: jobs that hold tensors at the same time.
        per_user: slots of one user at most; None for all.
        slice_s: seconds of a turn: a job that took them lets the user's next job go first, round by round.
        begun_per_user: how many jobs of one user may have begun, with or without a slot.
    """

    slots: int = 4
    per_user: int | None = None
    slice_s: float = 60.0
    begun_per_user: int = 8


@dataclass(eq=False, kw_only=True)
class Claim:
    """A job's claim to a slot."""

    user: str
    arrival: int = 0  # claims that came earlier have smaller numbers
    charged: float = 0.0  # seconds that the job took
    batches: int = 0  # number of batches since it got its slot
    under_way: bool = False  # is in the middle of an operation, which would be lost with its slot
    begun: bool = False
    evicted_for_memory: bool = False  # lost its slot because memory was short, and has been in no batch since

    @property
    def can_give(self) -> bool:
        """Whether it has used its slot, and loses nothing with it."""
        return self.batches > 0 and not self.under_way


C = TypeVar("C", bound=Claim)


@dataclass(frozen=True)
class Open(Generic[C]):
    """A claim should get a slot. Answered by `Slots.opened`, `Slots.refused` or `Slots.leave`."""

    claim: C


@dataclass(frozen=True)
class Close(Generic[C]):
    """A claim should give up its slot to its successor, and goes on later. Answered by `Slots.pause`."""

    claim: C
    successor: C


@dataclass
class _Line(Generic[C]):
    """The claims of one user that wait."""

    new: OrderedDict[int, C] = field(default_factory=OrderedDict)
    paused: dict[int, C] = field(default_factory=dict)

    def __iter__(self) -> Iterator[C]:
        yield from self.paused.values()
        yield from self.new.values()

    def add(self, claim: C) -> None:
        (self.paused if claim.begun else self.new)[claim.arrival] = claim

    def discard(self, claim: C) -> None:
        self.new.pop(claim.arrival, None)
        self.paused.pop(claim.arrival, None)


class Slots(Generic[C]):
    """The slots of all jobs.

    Args:
        accounts: the charges of users.
        limits: how many slots there are.
    """

    def __init__(self, accounts: Accounts, limits: Limits) -> None:
        self._accounts, self.limits = accounts, limits
        self.open: list[C] = []
        self._lines: dict[str, _Line[C]] = {}
        self._arrivals = 0
        # How many jobs fit into memory; known once it was full, until one of them is closed.
        self._room: int | None = None
        self._promised: C | None = None  # gets the slot that was closed for it

    def add(self, claim: C) -> None:
        """Queues a new claim."""
        claim.arrival = self._arrivals
        self._arrivals += 1
        self._line(claim.user).add(claim)

    def __bool__(self) -> bool:
        """Whether there are any claims."""
        return bool(self.open or self._lines)

    @property
    def users(self) -> list[str]:
        """Who has or wants a slot."""
        return list(dict.fromkeys([*(claim.user for claim in self.open), *self._lines]))

    def waiting(self) -> Iterator[C]:
        """Claims without a slot."""
        for line in self._lines.values():
            yield from line

    def lines(self) -> dict[str, list[C]]:
        """Claims that were never begun, by user, in the order in which they will be."""
        return {user: list(line.new.values()) for user, line in self._lines.items() if line.new}

    def held(self) -> Counter[str]:
        """Slots by user."""
        return Counter(claim.user for claim in self.open)

    # What should change

    def next(self) -> Open[C] | Close[C] | None:
        """Returns the next change; None if nothing should change. All users of claims must be present."""
        if self._promised is not None:
            return Open(self._promised)
        held = self.held()
        wanting = [user for user in self._lines if self._may_have_more(user, held)]
        if self._free() and (user := self._accounts.first(wanting, held)):
            return Open(self._head(user))
        return self._switched(held) or self._rotated(held)

    def _switched(self, held: Counter[str]) -> Close[C] | None:
        """Returns the change that gives a slot to a user without one."""
        ready = {claim.user for claim in self.open if claim.can_give}
        capacity = min(len(self.open), self.limits.slots)
        switch = self._accounts.switch(self._lines, held, ready, capacity)
        if switch is None:
            return None
        user, giver = switch
        self._promised = self._head(user)
        return Close(self._last(giver), self._promised)

    def _rotated(self, held: Counter[str]) -> Close[C] | None:
        """Returns the change that gives a slot from a job that had its time slice to the user's next job."""
        for user in self._lines:
            if not held[user]:
                continue
            head, last = self._head(user), self._last(user)
            allowed = head.begun or not self._enough_begun(user)
            if allowed and last.can_give and self._round(head) < self._round(last):
                self._promised = head
                return Close(last, head)
        return None

    def _free(self) -> bool:
        room = self.limits.slots if self._room is None else max(1, self._room)
        return len(self.open) < min(self.limits.slots, room)

    def _may_have_more(self, user: str, held: Counter[str]) -> bool:
        return self.limits.per_user is None or held[user] < self.limits.per_user

    def _round(self, claim: C) -> int:
        return int(claim.charged // self.limits.slice_s)

    def _head(self, user: str) -> C:
        """Returns the claim that gets the user's next slot."""
        line = self._lines[user]
        heads = [*line.paused.values()]
        if line.new and not (heads and self._enough_begun(user)):
            heads.append(next(iter(line.new.values())))
        return min(heads, key=lambda claim: (self._round(claim), claim.arrival))

    def _enough_begun(self, user: str) -> bool:
        return self.held()[user] + len(self._lines[user].paused) >= self.limits.begun_per_user

    def _last(self, user: str) -> C:
        """Returns which claim of the user gives up its slot first: one that can, if there is one."""
        own = [claim for claim in self.open if claim.user == user]
        return max(own, key=lambda claim: (claim.can_give, self._round(claim), claim.arrival))

    # What the scheduler reports

    def opened(self, claim: C) -> None:
        """Notes that a claim has its slot now."""
        self._forget(claim)
        claim.batches, claim.under_way, claim.begun = 0, False, True
        self.open.append(claim)
        self._accounts.has_slot(claim.user)
        if claim.evicted_for_memory:
            # A job that ran out of memory beside others comes back as the last one: with more beside it, all
            # would run out of memory in turn.
            self._room = len(self.open)

    def refused(self, claim: C) -> bool:
        """Notes that there was no memory for a claim beside those that are open.

        Returns whether the claim waits: False if nothing is open that could free memory.
        """
        self._promised = None
        self._room = len(self.open)
        return bool(self.open)

    def pause(self, claim: C, for_memory: bool = False) -> None:
        """Notes that a claim lost its slot; ``for_memory`` tells that memory was short."""
        self.open.remove(claim)
        self._room = len(self.open) if for_memory else None
        claim.evicted_for_memory = claim.evicted_for_memory or for_memory
        self._line(claim.user).add(claim)

    def leave(self, claim: C) -> None:
        """Removes a claim whose job has ended, with or without a slot."""
        if claim in self.open:
            self.open.remove(claim)
            self._room = None
        self._forget(claim)

    def batch_passed(self, parts: Collection[C]) -> None:
        """Notes that a batch was done, in which these claims took part and had enough memory."""
        for claim in self.open:
            claim.batches += 1
        for claim in parts:
            claim.evicted_for_memory = False

    def _forget(self, claim: C) -> None:
        """Removes a claim from those that wait."""
        if claim is self._promised:
            self._promised = None
        line = self._lines.get(claim.user)
        if line is not None:
            line.discard(claim)
            if not (line.new or line.paused):
                del self._lines[claim.user]

    def _line(self, user: str) -> _Line[C]:
        return self._lines.setdefault(user, _Line())
