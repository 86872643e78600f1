"""What the removed edges of rows change directly: one difference per receiver and set of edges.

The difference of a set is the sum over its edges, latest sender first, so that the sets of a chain, each
the one before it plus an edge, cost one addition each; a set of all kept edges needs no sum at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base import Base, Pattern
from pahq_server.engine.sparse.reference import is_head
from pahq_server.engine.sparse.variants import Values, laid_out, runs
from pahq_server.precision.products import matmul

# Differences of single edges that are remembered while patterns are summed up.
ALONE_KEPT = 16


@dataclass(frozen=True)
class Cut:
    """Cuts at one receiver.

    Args:
        patterns: V sets of senders, latest first.
        dx: change of the receiver's input, [V, N, D].
        variant: per row, index of its pattern; -1 for rows that cut nothing here.
    """

    patterns: list[Pattern]
    dx: Values
    variant: NDArray[np.int64]


class Sums(Protocol):
    """How the differences of the patterns of one base are made."""

    def __call__(self, base: Base, receiver: int, patterns: list[Pattern], kind: int) -> Tensor:
        """One difference per pattern: [V, N, D]. ``kind`` is that of the rows."""
        ...


def collect(
    bases: Sequence[Base],
    base_of: NDArray[np.int64],
    removed: Sequence[Sequence[int]],
    sums: Sums,
    kind_of: Callable[[int, Pattern], int] | None = None,
) -> dict[int, Cut]:
    """The cuts of a batch by live receiver. Row i lacks ``removed[i]`` of base ``bases[base_of[i]]``.

    Args:
        bases, base_of, removed: the batch.
        sums: makes the differences.
        kind_of: which kind of differences a row, given by number, needs for a pattern; without it all rows
            need those of kind -1.
    """
    wanted: dict[int, dict[tuple[int, int, Pattern], int]] = {}
    variants: dict[int, NDArray[np.int64]] = {}
    for row, edges in enumerate(removed):
        for receiver, pattern in _by_receiver(bases[base_of[row]], edges):
            kind = -1 if kind_of is None else kind_of(row, pattern)
            numbers = wanted.setdefault(receiver, {})
            number = numbers.setdefault((int(base_of[row]), kind, pattern), len(numbers))
            variants.setdefault(receiver, np.full(len(removed), -1))[row] = number
    return {r: _cut(bases, r, list(wanted[r]), variants[r], sums) for r in sorted(wanted)}


def sum_up(base: Base, receiver: int, patterns: list[Pattern], kind: int = -1) -> Tensor:
    """Sums of single cuts in full precision: `Sums`."""

    def everything() -> Tensor:
        return base.empty_x(receiver) - base.kept_x(receiver)

    return chained(base, receiver, patterns, None, lambda s: single_cut(base, receiver, s), everything)


def sum_up_rest(base: Base, receiver: int, patterns: list[Pattern], kind: int = -1) -> Tensor:
    """`sum_up` from all kept edges down where fewer are left than go."""
    kept = np.flatnonzero(base.circuit.incoming(receiver))[::-1]
    sums = []
    for pattern in patterns:
        rest = kept[~np.isin(kept, pattern)].tolist()
        if len(rest) >= len(pattern):
            sums.append(sum_up(base, receiver, [pattern])[0])
            continue
        dx = base.empty_x(receiver) - base.kept_x(receiver)
        for sender in rest:
            dx -= single_cut(base, receiver, sender)
        sums.append(dx)
    return torch.stack(sums)


def chained(
    base: Base,
    receiver: int,
    patterns: list[Pattern],
    key: object,
    alone: Callable[[int], Tensor],
    everything: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Sums of single cuts, [V, N, D]; remembered by the base, for chains that go on.

    Args:
        base: of the rows.
        receiver: whose input is cut.
        patterns: sets of senders.
        key: what besides the base and the receiver the single cuts depend on.
        alone: gives the change of the receiver's input for the edge of one sender alone, [N, D].
        everything: gives the difference of the pattern of all kept senders, which then needs no sum.
    """
    kept = tuple(np.flatnonzero(base.circuit.incoming(receiver))[::-1].tolist())
    known = dict(base.known_cuts.get((receiver, key), {}))
    # One after the other, few at a time: those of all senders together would be the most of a sweep's memory.
    single = lru_cache(ALONE_KEPT)(alone)
    shape = (len(patterns), base.count(receiver), base.weights.arch.d_model)
    dx = torch.empty(shape, dtype=base.weights.dtype, device=base.weights.device)
    for i, pattern in enumerate(patterns):
        if everything is not None and pattern == kept:
            dx[i] = everything()
        elif pattern[:-1] in known:
            torch.add(known[pattern[:-1]], single(pattern[-1]), out=dx[i])
        else:
            dx[i] = single(pattern[0])
            for sender in pattern[1:]:
                dx[i] += single(sender)
        known[pattern] = dx[i]
    base.remember_cuts((receiver, key), dict(zip(patterns, dx, strict=True)))
    return dx


def _by_receiver(base: Base, edges: Sequence[int]) -> list[tuple[int, Pattern]]:
    """Edges grouped by live receiver, as patterns."""
    offsets = base.circuit.graph.offsets
    ids = np.sort(np.asarray(edges, dtype=np.int64))[::-1]
    receivers = np.searchsorted(offsets, ids, side="right") - 1
    return [
        (receiver, tuple((ids[begin:end] - offsets[receiver]).tolist()))
        for begin, end in runs(receivers)
        if (receiver := int(receivers[begin])) in base.plan.receivers
    ]


def _cut(
    bases: Sequence[Base],
    receiver: int,
    keys: list[tuple[int, int, Pattern]],
    variant: NDArray[np.int64],
    sums: Sums,
) -> Cut:
    # Rows come sorted by base, so the groups of one base stand together.
    groups = {group: i for i, group in enumerate(dict.fromkeys(key[:2] for key in keys))}
    order = np.argsort([groups[key[:2]] for key in keys], kind="stable")
    keys = [keys[i] for i in order.tolist()]
    variant = np.where(variant >= 0, np.argsort(order)[variant], -1)
    parts = [
        sums(bases[number], receiver, [key[2] for key in keys if key[:2] == (number, kind)], kind)
        for number, kind in groups
    ]
    sizes = np.array([bases[number].count(receiver) for number, _, _ in keys])
    dx = parts[0] if len(parts) == 1 else laid_out(torch.cat([x.flatten(0, 1) for x in parts]), sizes)
    return Cut([pattern for _, _, pattern in keys], Values(dx, sizes), variant)


def single_cut(base: Base, receiver: int, sender: int, low: bool = False) -> Tensor:
    """Change of the receiver's input for one edge alone, [N, D]; through a head's rounded W_O if ``low``."""
    change = base.ablation(sender, base.plan.receivers[receiver])
    return matmul(change, base.weights.writes(sender, low)) if is_head(base.graph, sender) else change
