"""Decides which worker gets which part of a batch. Pure: no workers, no clock. All times are seconds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

from pahq_server.core.circuit import BaseCircuit, PatchedPass
from pahq_server.core.operations import Operation, ScorePasses

# How often the time in which an operation can be done is halved in search of the shortest.
HALVINGS = 12

# What a pass is computed from: its base circuit and the ancestors of that, by any key of each.
Bases: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """An operation that is to run.

    Args:
        home: the worker that keeps the state of its job.
        pass_s: what one pass of it takes, about; None if that is unknown, and then it stays at home.
        bases: of each pass, what it is computed from. An operation that stays whole counts as one pass.
        base_s: what each of these takes on a worker that does not have it.
        helpers: workers beside ``home`` that may take passes.
        known: by worker, the bases that it has.
    """

    home: int
    pass_s: float | None
    bases: Sequence[Bases] = ((),)
    base_s: float = 0.0
    helpers: Collection[int] = ()
    known: Mapping[int, Collection[int]] = field(default_factory=dict)

    @cached_property
    def stretches(self) -> list[tuple[int, Bases]]:
        """How many neighbouring passes are computed from the same, and from what."""
        return [(len(list(some)), bases) for bases, some in groupby(self.bases)]

    def seconds(self, worker: int, first: int, last: int) -> float:
        """Returns what passes from ``first`` until before ``last`` take on a worker that has what it has."""
        known = self.known.get(worker, ())
        missing = {key for bases in self.bases[first:last] for key in bases if key not in known}
        return (last - first) * (self.pass_s or 0.0) + len(missing) * self.base_s


@dataclass(frozen=True)
class Share:
    """Parts of an operation that a worker gets: from ``first`` until before ``last``.

    Args:
        load: number of the operation.
        seconds: what they take there, about.
    """

    load: int
    first: int
    last: int
    seconds: float = field(default=0.0, compare=False)


def bases_of(passes: Sequence[PatchedPass]) -> list[Bases]:
    """Returns the identities of each pass's base circuit and of its ancestors."""
    found: dict[int, Bases] = {}

    def lineage(base: BaseCircuit) -> Bases:
        if id(base) not in found:
            found[id(base)] = (*(() if base.parent is None else lineage(base.parent)), id(base))
        return found[id(base)]

    return [lineage(each.base_circuit) for each in passes]


def part_of(operation: Operation, share: Share) -> Operation:
    """Returns the part of an operation that a share names."""
    if isinstance(operation, ScorePasses):
        return ScorePasses(operation.passes[share.first : share.last])
    return operation


def place(loads: Sequence[Load], busy: Mapping[int, float], least_s: float) -> dict[int, list[Share]]:
    """Divides a batch so that each operation ends as early as it can.

    Every operation begins at its home. The longest first, each is divided among its home and its helpers. The
    passes of a part follow each other: neighbours share base circuits, which each part computes anew that is
    on a worker without them.

    Args:
        loads: the operations. Every ``home`` is one of the workers.
        busy: the workers that take part, with what each has to do already.
        least_s: what is handed over takes at least so long.

    Returns:
        By worker, what it gets: at most one share of an operation, in the order of the operations. Each part
        of each operation is in one share.
    """
    until = dict(busy)
    whole = [load.seconds(load.home, 0, len(load.bases)) for load in loads]
    for load, seconds in zip(loads, whole, strict=True):
        until[load.home] += seconds
    placed: dict[int, list[Share]] = {}
    for number in sorted(range(len(loads)), key=lambda number: (-whole[number], number)):
        load = loads[number]
        until[load.home] -= whole[number]
        for worker, first, last in _divided(load, until, least_s):
            seconds = load.seconds(worker, first, last)
            until[worker] += seconds
            placed.setdefault(worker, []).append(Share(number, first, last, seconds))
    return {worker: sorted(shares, key=lambda share: share.load) for worker, shares in placed.items()}


# A part: the worker that gets it, and passes from the second until before the third number.
_Part: TypeAlias = tuple[int, int, int]


def _divided(load: Load, until: Mapping[int, float], least_s: float) -> list[_Part]:
    """Returns the parts of an operation, none of them empty.

    Args:
        load: the operation.
        until: how long each worker is busy without it.
        least_s: what is handed over takes at least so long.
    """
    count, home = len(load.bases), load.home
    if not count:
        return []
    helpers = sorted((w for w in load.helpers if w in until and w != home), key=lambda w: (until[w], w))
    latest = until[home] + load.seconds(home, 0, count)
    best = [(home, 0, count)]
    if not load.pass_s or not helpers:
        return best
    earliest = min(until[home], until[helpers[0]])
    for _ in range(HALVINGS):
        end = (earliest + latest) / 2
        parts = list(_filled(load, helpers, until, end, least_s))
        if parts[-1][2] == count:
            best, latest = parts, end
        else:
            earliest = end
    return _without_short(load, best, least_s)


def _filled(
    load: Load, helpers: Sequence[int], until: Mapping[int, float], end: float, least_s: float
) -> Iterator[_Part]:
    """Gives the home and each helper in turn as many of the passes that are left as it can do until ``end``.

    The last part ends where no worker can do more. The first one is that of the home, and may be empty.
    """
    first = 0
    for worker in (load.home, *helpers):
        room_s = end - until[worker]
        if worker != load.home and room_s < least_s:
            continue
        last = first + _fitting(load, worker, first, room_s)
        if last > first or worker == load.home:
            yield worker, first, last
        first = last
        if first == len(load.bases):
            return


def _fitting(load: Load, worker: int, first: int, room_s: float) -> int:
    """Returns how many passes from ``first`` on a worker can do in a time."""
    known, pass_s = set(load.known.get(worker, ())), load.pass_s or 0.0
    begin = fitting = 0
    for count, bases in load.stretches:
        begin += count
        left = min(count, begin - first)
        if left <= 0:
            continue
        missing = set(bases) - known
        room_s -= len(missing) * load.base_s
        some = min(left, int(max(0.0, room_s) / pass_s + 1e-9))
        fitting += some
        if some < left:
            break
        known |= missing
        room_s -= some * pass_s
    return fitting


def _without_short(load: Load, parts: Sequence[_Part], least_s: float) -> list[_Part]:
    """Leaves what is too short to be handed over with the part before it; drops an empty one."""
    kept: list[_Part] = []
    for worker, first, last in parts:
        if kept and load.seconds(worker, first, last) < least_s:
            before, begin, _ = kept.pop()
            kept.append((before, begin, last))
        else:
            kept.append((worker, first, last))
    return [part for part in kept if part[1] < part[2]]
