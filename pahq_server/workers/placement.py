"""Decides which worker gets which part of a batch. Pure: no workers, no clock. All times are seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.operations import Operation, ScorePasses

# How far a cut may be from where it would balance best, as a share of what is cut off, so that passes which
# share a base circuit or a receiver stay together.
SNAP = 0.25


@dataclass(frozen=True)
class Load:
    """An operation that is to run.

    Args:
        home: the worker that keeps the state of its job.
        seconds: what it will take, about; None if that is unknown, and then it stays at home.
        passes: how many parts it can be cut into; 1 for an operation that stays whole.
        joints: numbers of parts, from above 0 to below ``passes``, where cutting before them is cheap.
        helpers: workers beside ``home`` that may take parts of it.
    """

    home: int
    seconds: float | None
    passes: int = 1
    joints: Sequence[int] = ()
    helpers: Collection[int] = ()


@dataclass(frozen=True)
class Share:
    """Parts of an operation that a worker gets: from ``first`` until before ``last``.

    Args:
        load: number of the operation.
    """

    load: int
    first: int
    last: int


def joints_of(passes: Sequence[PatchedPass]) -> list[int]:
    """Returns where passes begin that have another base circuit or receiver than those before them."""
    keys = [(id(each.base_circuit), each.promoted_receiver) for each in passes]
    return [number for number in range(1, len(keys)) if keys[number] != keys[number - 1]]


def part_of(operation: Operation, share: Share) -> Operation:
    """Returns the part of an operation that a share names."""
    if isinstance(operation, ScorePasses):
        return ScorePasses(operation.passes[share.first : share.last])
    return operation


def place(loads: Sequence[Load], busy: Mapping[int, float], least_s: float) -> dict[int, list[Share]]:
    """Divides a batch so that all workers end at about the same time.

    Every operation begins at its home. As long as a worker has more than its part, it hands the last passes
    of its longest operation to the worker that has least, if these take long enough to be worth it.

    Args:
        loads: the operations. Every ``home`` is one of the workers.
        busy: the workers that take part, with what each has to do already.
        least_s: what is handed over takes at least so long.

    Returns:
        By worker, what it gets: at most one share of an operation, in the order of the operations. Each part
        of each operation is in one share.
    """
    left = {number: load.passes for number, load in enumerate(loads)}  # how many passes stay at home
    seconds = dict(busy)
    for load in loads:
        seconds[load.home] += load.seconds or 0.0
    fair = sum(seconds.values()) / len(seconds)
    # By operation and worker, how many passes it takes, from the last ones on.
    given: list[dict[int, int]] = [{} for _ in loads]
    # Whoever gives ends up with its part or cannot give any more; whoever takes never has more than its part.
    giving = {worker for worker in seconds if seconds[worker] - fair >= least_s}
    while giving:
        giver = max(giving, key=lambda worker: (seconds[worker], -worker))
        moved = _hand_over(loads, left, seconds, giver, fair, least_s)
        if moved is None:
            giving.discard(giver)
            continue
        number, worker, count = moved
        given[number][worker] = given[number].get(worker, 0) + count
        if seconds[giver] - fair < least_s:
            giving.discard(giver)
    placed: dict[int, list[Share]] = {}
    for number, load in enumerate(loads):
        last = load.passes
        for worker, count in [*given[number].items(), (load.home, left[number])]:
            if count:
                placed.setdefault(worker, []).append(Share(number, last - count, last))
            last -= count
    return placed


def _hand_over(
    loads: Sequence[Load],
    left: dict[int, int],
    seconds: dict[int, float],
    giver: int,
    fair: float,
    least_s: float,
) -> tuple[int, int, int] | None:
    """Moves passes from a worker that has too much to another. Changes ``left`` and ``seconds``.

    Returns of which operation, to which worker, and how many; None if there are none to move.
    """
    own = [
        number
        for number, load in enumerate(loads)
        if load.home == giver and load.seconds is not None and left[number] and load.helpers
    ]
    # The longest first: the fewer operations are cut, the less is computed twice.
    for number in sorted(own, key=lambda number: -_rest(loads[number], left[number])):
        load = loads[number]
        taker = min((w for w in load.helpers if w in seconds), key=lambda w: (seconds[w], w), default=None)
        if taker is None:
            continue
        wanted = min(seconds[giver] - fair, fair - seconds[taker])
        count = _cut(load, left[number], wanted, seconds[giver] - seconds[taker], least_s)
        moved = count * _each(load)
        if not count or moved < least_s:
            continue
        left[number] -= count
        seconds[giver] -= moved
        seconds[taker] += moved
        return number, taker, count
    return None


def _each(load: Load) -> float:
    return (load.seconds or 0.0) / load.passes


def _rest(load: Load, left: int) -> float:
    return left * _each(load)


def _cut(load: Load, left: int, wanted_s: float, ahead_s: float, least_s: float) -> int:
    """Returns how many of the last passes to hand over.

    Args:
        load: the operation.
        left: how many of its passes are left.
        wanted_s: what would balance best.
        ahead_s: by how much the giver is ahead of the taker.
        least_s: what is handed over takes at least so long, even if the part of each worker is shorter, as
            long as the giver stays no less busy than the taker.
    """
    each = _each(load)
    if load.passes == 1:
        # A whole operation moves only if both workers are nearer to their part then.
        return int(0 < each < 2 * wanted_s)
    if not each:
        return 0
    count = min(left, round(wanted_s / each))
    if count * each < max(least_s, each):
        count = min(left, max(1, ceil(least_s / each)))
        return count if 2 * count * each <= ahead_s else 0
    near = [left - joint for joint in load.joints if abs(left - joint - count) <= SNAP * count]
    return min(near, key=lambda other: abs(other - count), default=count)
