"""From trained gates to a binary circuit within bounds, from which nothing more can go.

Everything here is decided by measurement. Circuits are asked for in an order that depends on nothing but what
was measured before, so that a journal of figures is a complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.pruning import Mask, MaskFigures, NodeKind, NodeLayout, consistent

# Yields circuits to measure, receives their figures, in order.
Measured: TypeAlias = Generator[Sequence[Mask], Sequence[MaskFigures], "Polished"]
# The stages of polishing: kinds whose nodes are tested together, the largest first.
STAGES: tuple[tuple[NodeKind, ...], ...] = (
    ("layers",),
    ("attention_blocks", "mlp_blocks"),
    ("heads",),
    ("attention_neurons", "mlp_hidden"),
    ("mlp_outputs",),
)
# Neurons are first tested in so many groups, the other nodes one by one. At most so many circuits are
# measured for the neurons of a stage: groups are then no longer halved.
GROUPS, MOST_MEASURED = 32, 500
# How many circuits are measured together: enough that the ablated run, which they share, costs little, and
# few enough for one operation.
AT_ONCE = 16


@dataclass(frozen=True)
class Bounds:
    """What a circuit has to keep within.

    Args:
        kl: the most KL divergence from the full model, in nats.
        accuracy: the least share of prompts where the answer is above the wrong answer; None for any.
    """

    kl: float
    accuracy: float | None = None

    def hold(self, figures: MaskFigures) -> bool:
        """Tells whether a circuit with these figures is within the bounds."""
        if self.accuracy is not None and (figures.accuracy is None or figures.accuracy < self.accuracy):
            return False
        return figures.kl <= self.kl


@dataclass(frozen=True)
class Polished:
    """What polishing found.

    Args:
        kept: the circuit.
        measured: how many circuits were measured.
    """

    kept: Mask
    measured: int


def binary(layout: NodeLayout, log_alpha: NDArray[np.float32], kinds: Sequence[NodeKind]) -> Mask:
    """Returns the circuit of trained gates: those above 0, and all of the kinds that were not trained."""
    return above(layout, log_alpha, kinds, 0.0)


def above(
    layout: NodeLayout, log_alpha: NDArray[np.float32], kinds: Sequence[NodeKind], least: float
) -> Mask:
    """Returns the circuit of the gates whose log_alpha is above ``least``; other kinds stay open."""
    kept = np.ones(layout.size, dtype=bool)
    for kind, part in layout.slices():
        if kind in kinds:
            kept[part] = log_alpha[part] > least
    return consistent(layout, kept)


def repair(
    layout: NodeLayout, log_alpha: NDArray[np.float32], kinds: Sequence[NodeKind], bounds: Bounds
) -> Measured:
    """Opens the gates that were closed last until the circuit is within the bounds.

    The threshold on log_alpha is bisected between 0 and that of the full circuit, which is within the bounds.
    At most about 20 circuits are measured.
    """
    values = np.unique(log_alpha[log_alpha <= 0])  # thresholds, the lowest opens all but its own gate
    low, high, measured = 0, len(values), 0  # the circuit of `high` is not within, that of -1 is full
    found = np.ones(layout.size, dtype=bool)
    while low < high:
        middle = (low + high) // 2
        kept = above(layout, log_alpha, kinds, float(values[middle]))
        (figures,) = yield [kept]
        measured += 1
        if bounds.hold(figures):
            found, low = kept, middle + 1
        else:
            high = middle
    return Polished(found, measured)


def polish(
    layout: NodeLayout, log_alpha: NDArray[np.float32], kept: Mask, kinds: Sequence[NodeKind], bounds: Bounds
) -> Measured:
    """Removes whatever can go while the circuit stays within the bounds.

    Layers, then blocks, then heads are tested one by one, those with the lowest log_alpha first; then neurons
    in groups, which are halved where they cannot go as a whole. In the end every node that is kept has been
    measured to be needed, by itself or in its smallest group, beside no more than what was kept then. Of
    neurons `MOST_MEASURED` circuits are measured in each stage, about.

    Args:
        layout: of the model.
        log_alpha: of all gates.
        kept: the circuit to begin with, which is within the bounds.
        kinds: that may go.
        bounds: of the circuit.
    """
    measured = 0
    for stage in STAGES:
        nodes = _by_importance(layout, log_alpha, [kind for kind in stage if kind in kinds])
        single = stage[0] in ("layers", "attention_blocks", "heads")
        groups = np.array_split(nodes, max(1, len(nodes)) if single else GROUPS)
        found = yield from _stage(layout, kept, groups, bounds)
        kept, measured = found.kept, measured + found.measured
    return Polished(kept, measured)


def _stage(layout: NodeLayout, kept: Mask, groups: Sequence[NDArray[np.int64]], bounds: Bounds) -> Measured:
    """Removes groups of nodes, or parts of them.

    A round measures the circuit without each of the next `AT_ONCE` groups, then without the harmless ones of
    them together, the most harmless first: one, two, three of them and so on. The most of these that are
    within the bounds go. Of the others the first is known to be needed beside what is kept now; the rest wait
    for the next round.
    """
    pending, measured = list(groups), 0
    while pending:
        # Some may have gone with what contained them.
        tried = [left for group in pending[:AT_ONCE] if len(left := group[kept[group]])]
        pending = pending[AT_ONCE:]
        if not tried:
            continue
        figures = yield [_without(layout, kept, group) for group in tried]
        measured += len(tried)
        order = sorted(range(len(tried)), key=lambda number: figures[number].kl)
        harmless = [tried[number] for number in order if bounds.hold(figures[number])]
        needed = [group for group, each in zip(tried, figures, strict=True) if not bounds.hold(each)]
        waiting: list[NDArray[np.int64]] = []
        if harmless:
            together = [
                _without(layout, kept, np.concatenate(harmless[:count]))
                for count in range(1, len(harmless) + 1)
            ]
            within = [0]
            if len(together) > 1:
                figures = yield together[1:]
                measured += len(together) - 1
                within += [number for number, each in enumerate(figures, 1) if bounds.hold(each)]
            kept, rest = together[within[-1]], harmless[within[-1] + 1 :]
            needed, waiting = needed + rest[:1], rest[1:]
        if measured < MOST_MEASURED:
            waiting += [half for group in needed if len(group) > 1 for half in np.array_split(group, 2)]
        pending = waiting + pending
    return Polished(kept, measured)


def _by_importance(
    layout: NodeLayout, log_alpha: NDArray[np.float32], kinds: Sequence[NodeKind]
) -> NDArray[np.int64]:
    """Returns the gates of some kinds, the lowest log_alpha first; of equal ones the later gate."""
    gates = np.concatenate([[], *(np.arange(part.start, part.stop) for part in _parts(layout, kinds))])
    gates = gates.astype(np.int64)[::-1]
    return gates[np.argsort(log_alpha[gates], kind="stable")]


def _parts(layout: NodeLayout, kinds: Sequence[NodeKind]) -> Iterator[slice]:
    return (part for kind, part in layout.slices() if kind in kinds)


def _without(layout: NodeLayout, kept: Mask, gates: NDArray[np.int64]) -> Mask:
    less = kept.copy()
    less[gates] = False
    return consistent(layout, less)
