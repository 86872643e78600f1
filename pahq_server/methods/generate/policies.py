"""Which waiting samples take the slots that are free.

A policy is a pure function of a `Queue`; what it plans at the beginning of a run is fixed in the policy that
`Policy.begin` returns. Policies never stop a sample that runs, and never change one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Literal, NamedTuple, TypeAlias

from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.generate.fptas import epsilon_within, plan

# How well the lengths of samples are known before they run: to the token, about, or not at all, so that they
# have to be predicted from what has ended and what the model says.
Foreknowledge: TypeAlias = Literal["exact", "about", "none"]


class QueuedSample(NamedTuple):
    """A sample that waits or runs.

    Args:
        key: names it.
        prompt: names its prompt: samples of one prompt are alike until they begin.
        remaining: how many tokens it still gets, as predicted.
    """

    key: int
    prompt: int
    remaining: float


@dataclass(frozen=True)
class Queue:
    """All samples that have not ended.

    Args:
        slots: how many run at a time.
        waiting: in order of submission.
        running: at most as many as there are slots.
    """

    slots: int
    waiting: tuple[QueuedSample, ...]
    running: tuple[QueuedSample, ...] = ()

    @property
    def free(self) -> int:
        """How many samples can begin now."""
        return max(0, self.slots - len(self.running))


class Policy(ABC):
    """Chooses the samples that begin.

    Attributes:
        name: as clients name it.
        reads_predictions: whether the choice depends on predicted lengths.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def reads_predictions(self) -> bool:
        return True

    def begin(self, queue: Queue) -> Policy:
        """Returns the policy of a run whose samples are those of the queue: this one, if it plans nothing."""
        return self

    @abstractmethod
    def admit(self, queue: Queue) -> tuple[int, ...]:
        """Returns the keys of waiting samples that begin now, at most as many as there are free slots.

        If nothing runs and something waits, it returns at least one.
        """


@dataclass(frozen=True)
class Rounds(Policy):
    """As many as there are slots, which all wait for the longest: micro sampling groups of the paper.

    Args:
        sort: rounds are formed by predicted length, the shortest first, instead of in order of submission.
            For experiments.
    """

    sort: bool = False

    @property
    def name(self) -> str:
        return "sorted rounds" if self.sort else "rounds"

    @property
    def reads_predictions(self) -> bool:
        return self.sort

    def admit(self, queue: Queue) -> tuple[int, ...]:
        if queue.running:
            return ()
        waiting = sorted(queue.waiting, key=_length) if self.sort else queue.waiting
        return _first(waiting, queue.free)


@dataclass(frozen=True)
class Fifo(Policy):
    """A free slot is taken by the sample that was submitted first: continuous sampling of the paper."""

    @property
    def name(self) -> str:
        return "fifo"

    @property
    def reads_predictions(self) -> bool:
        return False

    def admit(self, queue: Queue) -> tuple[int, ...]:
        return _first(queue.waiting, queue.free)


@dataclass(frozen=True)
class ShortestFirst(Policy):
    """A free slot is taken by the sample with the fewest tokens to go; equal ones alternate by prompt."""

    @property
    def name(self) -> str:
        return "sjf"

    def admit(self, queue: Queue) -> tuple[int, ...]:
        return _least(queue, 1)


@dataclass(frozen=True)
class LongestFirst(Policy):
    """A free slot is taken by the sample with the most tokens to go; equal ones alternate by prompt.

    What is left at the end is short, so that slots end at about the same time (Graham 1969).
    """

    @property
    def name(self) -> str:
        return "longest_first"

    def admit(self, queue: Queue) -> tuple[int, ...]:
        return _least(queue, -1)


@dataclass(frozen=True)
class Fptas(Policy):
    """Plans one stack of samples per slot, by predicted length, and keeps to it.

    Args:
        refill: who takes a slot whose stack is done: the shortest sample of all (the paper's hybrid), the
            longest, or nobody.
        epsilon: see `fptas.plan`; None for the smallest that is quick.
        stacks: the plan; empty before `begin`.
    """

    refill: Literal["shortest", "longest", "nobody"] = "nobody"
    epsilon: float | None = None
    stacks: tuple[tuple[int, ...], ...] = ()

    @property
    def name(self) -> str:
        return {"nobody": "fptas", "shortest": "fptas_sjf", "longest": "fptas_ljf"}[self.refill]

    def begin(self, queue: Queue) -> Policy:
        samples = [*queue.running, *queue.waiting]
        lengths = [max(0.0, each.remaining) for each in samples]
        epsilon = self.epsilon or epsilon_within(lengths, queue.slots)
        stacks = plan(lengths, queue.slots, epsilon).stacks
        keys = tuple(tuple(samples[position].key for position in stack) for stack in stacks)
        return Fptas(self.refill, epsilon, keys)

    def admit(self, queue: Queue) -> tuple[int, ...]:
        waiting = {each.key: each for each in queue.waiting}
        running = {each.key for each in queue.running}
        chosen: list[int] = []
        for stack in self.stacks:
            if len(chosen) < queue.free and not running.intersection(stack):
                chosen += [key for key in stack if key in waiting][:1]
        if self.refill != "nobody" or not (running or chosen):
            sign = -1 if self.refill == "longest" else 1
            rest = (each for each in queue.waiting if each.key not in chosen)
            free = queue.free - len(chosen)
            chosen += _first(nsmallest(free, rest, key=lambda each: sign * each.remaining), free)
        return tuple(chosen)


@dataclass(frozen=True)
class RunKind:
    """What `auto` chooses by.

    Args:
        samples: how many there are.
        prompts: how many different prompts they have.
        slots: how many run at a time.
        foreknowledge: how well lengths are known.
        probes: whether all samples run for some tokens first, so that signals of each are known.
    """

    samples: int
    prompts: int
    slots: int
    foreknowledge: Foreknowledge
    probes: bool


# By the name that clients use; see `auto` for the one that is missing here.
POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (Rounds(), Fifo(), ShortestFirst(), LongestFirst(), Fptas(), Fptas("shortest"))
}
AUTO = "auto"
NAMES = (AUTO, *POLICIES)


def auto(kind: RunKind) -> str:
    """Returns the name of the policy that takes the fewest steps in simulations (`make bench-sampling`)."""
    if kind.samples <= kind.slots:
        return "fifo"
    if kind.foreknowledge == "exact":
        return "fptas_sjf"
    if kind.foreknowledge == "about" or kind.probes or kind.prompts > 1:
        return "longest_first"
    return "fifo"


def check_name(name: str) -> str:
    """Returns the name of a policy. Raises InvalidRequestError, which lists all names, for another one."""
    if name not in NAMES:
        raise InvalidRequestError("policy", f"must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def find(name: str, kind: RunKind) -> Policy:
    """Returns a policy, for ``auto`` the one that it stands for. Raises like `check_name`."""
    return POLICIES[auto(kind) if check_name(name) == AUTO else name]


def _length(sample: QueuedSample) -> float:
    return sample.remaining


def _first(samples: Sequence[QueuedSample], count: int) -> tuple[int, ...]:
    return tuple(each.key for each in samples[: max(0, count)])


def _least(queue: Queue, sign: int) -> tuple[int, ...]:
    """Takes the waiting samples with the least ``sign * remaining``.

    Of equal ones those of the prompt come first of which the fewest run, so that prompts alternate.
    """
    costs = [sign * each.remaining for each in queue.waiting]
    most = max(nsmallest(queue.free, costs), default=-math.inf)
    turns = dict(Counter(each.prompt for each in queue.running))
    found: list[tuple[float, int, int]] = []
    for position, ((_, prompt, _), cost) in enumerate(zip(queue.waiting, costs, strict=True)):
        turn = turns.get(prompt, 0)
        turns[prompt] = turn + 1
        if cost <= most:
            found.append((cost, turn, position))
    return tuple(queue.waiting[position].key for *_, position in nsmallest(queue.free, found))
