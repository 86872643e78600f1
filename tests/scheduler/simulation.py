"""A machine that exists only in time: it does what `Slots` says, and writes down what that was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.slots import Claim, Close, Limits, Slots


@dataclass(eq=False, kw_only=True)
class Job(Claim):
    """Needs so many batches, each of which takes so many seconds."""

    batches_left: int = 10
    batch_s: float = 1.0
    comes_at: int = 0  # step
    began_at: int | None = None
    ended_at: int | None = None
    openings: int = 0


@dataclass
class Step:
    """What happened in one step."""

    backlogged: set[str]
    without_slot: set[str]
    served: set[str]
    open: int
    closed: int


class Machine:
    """Runs jobs to their end.

    Args:
        jobs: in the order of their coming.
        limits, weights: of the policy.
        opening_s: what opening a session takes.
        room: how many sessions fit into memory; None for all.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        limits: Limits = Limits(),  # noqa: B008 - frozen
        weights: Mapping[str, float] | None = None,
        opening_s: float = 0.5,
        room: int | None = None,
    ) -> None:
        self.jobs, self.limits, self.opening_s, self.room = jobs, limits, opening_s, room
        self.accounts = Accounts(weights)
        self.slots: Slots[Job] = Slots(self.accounts, limits)
        self.seconds: Counter[str] = Counter()
        self.steps: list[Step] = []
        self._to_come = sorted(jobs, key=lambda job: job.comes_at)

    def run(self, most: int = 100_000) -> Machine:
        while (self._to_come or self.slots) and len(self.steps) < most:
            self.step()
        return self

    def step(self) -> None:
        now = len(self.steps)
        while self._to_come and self._to_come[0].comes_at <= now:
            self.slots.add(self._to_come.pop(0))
        self.accounts.attend(self.slots.users)
        closed = self._arrange()
        held = self.slots.held()
        backlogged = set(self.slots.users)
        served = self.accounts.turn(set(held))
        self.steps.append(Step(backlogged, backlogged - set(held), served, len(self.slots.open), closed))
        parts = [job for job in self.slots.open if job.user in served]
        if parts:
            self.accounts.measured_batch(sum(job.batch_s for job in parts))
        self.slots.batch_passed(parts)
        for job in parts:
            self._spend(job, job.batch_s)
            job.batches_left -= 1
            if not job.batches_left:
                job.ended_at = now
                self.slots.leave(job)

    def _arrange(self) -> int:
        closed = 0
        while (change := self.slots.next()) is not None:
            job = change.claim
            if isinstance(change, Close):
                closed += 1
                self.slots.pause(job)
                continue
            self._spend(job, self.opening_s)
            if self.room is not None and len(self.slots.open) >= self.room:
                assert self.slots.refused(job), "one job fits"
                continue
            self.accounts.measured_opening(self.opening_s)
            self.slots.opened(job)
            job.openings += 1
            if job.began_at is None:
                job.began_at = len(self.steps)
        return closed

    def _spend(self, job: Job, seconds: float) -> None:
        job.charged += seconds
        self.seconds[job.user] += seconds
        self.accounts.spend(job.user, seconds)
