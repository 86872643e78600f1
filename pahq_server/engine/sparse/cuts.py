"""What the removed edges of a batch of rows change directly: one difference per receiver and edge set.

The difference of a set is the sum over its edges, latest sender first, so that the sets of a chain, each
the one before it plus an edge, cost one addition each; a set of all kept edges needs no sum at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base import Base

# Senders cut from one receiver, latest first.
Pattern = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Cuts at one receiver.

    Args:
        patterns: distinct sets of senders, V of them.
        dx: change of the receiver's input, [V, P, C, D].
        variant: per row, index of its pattern; -1 for rows that cut nothing here.
    """

    patterns: list[Pattern]
    dx: Tensor
    variant: NDArray[np.int64]


def group(base: Base, removed: Sequence[Sequence[int]]) -> dict[int, list[Pattern]]:
    """Per live receiver, the pattern of every row ((): the row cuts nothing there)."""
    offsets = base.circuit.graph.offsets
    found: dict[int, list[Pattern]] = {}
    for row, edges in enumerate(removed):
        ids = np.sort(np.asarray(edges, dtype=np.int64))[::-1]
        receivers = np.searchsorted(offsets, ids, side="right") - 1
        for receiver in np.unique(receivers).tolist():
            if receiver in base.plan.receivers:
                senders = ids[receivers == receiver] - offsets[receiver]
                found.setdefault(receiver, [()] * len(removed))[row] = tuple(senders.tolist())
    return found


class CutCache:
    """The patterns of the last batch at one receiver: the next batch of a chain goes on from them."""

    def __init__(self) -> None:
        self._receiver = -1
        self._known: dict[Pattern, Tensor] = {}

    def cut(self, base: Base, receiver: int, by_row: Sequence[Pattern]) -> Cut:
        patterns = list(dict.fromkeys(pattern for pattern in by_row if pattern))
        index = {pattern: i for i, pattern in enumerate(patterns)} | {(): -1}
        variant = np.array([index[pattern] for pattern in by_row])
        known = self._known if self._receiver == receiver else {}
        dx = _sums(base, receiver, patterns, known)
        self._receiver, self._known = receiver, dict(zip(patterns, dx, strict=True))
        return Cut(patterns, dx, variant)


def _sums(base: Base, receiver: int, patterns: list[Pattern], known: dict[Pattern, Tensor]) -> Tensor:
    kept = np.flatnonzero(base.circuit.incoming(receiver))
    everything = tuple(kept[::-1].tolist())
    done = dict(known)
    missing = {s for p in patterns if p != everything for s in p[_known_prefix(p, done, patterns) :]}
    single = _single_cuts(base, receiver, sorted(missing, reverse=True))
    places = base.plan.receivers[receiver]
    shape = (base.tokens.prompts, base.tokens.count(places), base.weights.arch.d_model)
    dx = torch.empty(len(patterns), *shape, dtype=base.weights.dtype)
    for i, pattern in enumerate(patterns):
        if pattern == everything:
            torch.sub(base.empty_x(receiver), base.kept_x(receiver), out=dx[i])
        elif pattern[:-1] in done:
            torch.add(done[pattern[:-1]], single[pattern[-1]], out=dx[i])
        else:
            dx[i] = single[pattern[0]]
            for sender in pattern[1:]:
                dx[i] += single[sender]
        done[pattern] = dx[i]
    return dx


def _known_prefix(pattern: Pattern, done: dict[Pattern, Tensor], patterns: list[Pattern]) -> int:
    """How many leading senders need no cut of their own because a shorter pattern covers them."""
    covered = pattern[:-1] in done or (len(pattern) > 1 and pattern[:-1] in patterns)
    return len(pattern) - 1 if covered else 0


def _single_cuts(base: Base, receiver: int, senders: list[int]) -> dict[int, Tensor]:
    """Change of the receiver's input for each edge alone: [P, C, D]."""
    places = base.plan.receivers[receiver]
    heads = [s for s in senders if base.reference.is_head(s)]
    cuts = {s: base.ablation(s, places) for s in senders if not base.reference.is_head(s)}
    if heads:
        z = torch.stack([base.ablation(s, places).flatten(0, 1) for s in heads])
        writes = torch.bmm(z, torch.stack([base.weights.writes(s) for s in heads]))
        shape = (base.tokens.prompts, base.tokens.count(places), -1)
        cuts |= {s: write.view(shape) for s, write in zip(heads, writes, strict=True)}
    return cuts
