"""Patched passes on their way to a worker: each base circuit is sent once, and then named by its number.

A circuit of a large model has more than a million edges, and a worker sees the same base circuits in batch
after batch. Because equal numbers become the same object, an executor finds the activations that it has kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.errors import ServerError

# Of all jobs and workers: a number that was meant for something else is unknown, never mistaken.
_NUMBERS = itertools.count()


@dataclass(frozen=True, eq=False)
class SentBase:
    """A base circuit that is sent for the first time.

    Args:
        number: its name from now on.
        circuit: its edges.
        parent: number of the base circuit that it is computed from; None for none.
    """

    number: int
    circuit: Circuit
    parent: int | None


@dataclass(frozen=True, eq=False)
class SentPasses:
    """The passes of a `ScorePasses`.

    Args:
        bases: base circuits that were not sent before, parents before their children.
        passes: of each the number of its base circuit, the removed edges and the receiver (`PatchedPass`).
    """

    bases: tuple[SentBase, ...]
    passes: tuple[tuple[int, tuple[int, ...], int | None], ...]


class SentBases:
    """What a worker knows of the base circuits of one state: those of the last passes that it was sent."""

    def __init__(self) -> None:
        # By identity; holds the base circuits, so that identities stay unique.
        self._known: dict[int, tuple[int, BaseCircuit]] = {}

    @property
    def known(self) -> Collection[int]:
        """The identities of these base circuits."""
        return self._known.keys()

    def send(self, passes: Sequence[PatchedPass]) -> SentPasses:
        """Returns passes as they are sent. The worker must get them, and those of all calls in order."""
        used: dict[int, tuple[int, BaseCircuit]] = {}
        new: list[SentBase] = []

        for each in passes:
            for base in _not_in(used, each.base_circuit):
                if id(base) in self._known:
                    used[id(base)] = self._known[id(base)]
                else:
                    used[id(base)] = next(_NUMBERS), base
                    parent = None if base.parent is None else used[id(base.parent)][0]
                    new.append(SentBase(used[id(base)][0], base.circuit, parent))
        self._known = used
        sent = ((used[id(each.base_circuit)][0], each.removed, each.receiver) for each in passes)
        return SentPasses(tuple(new), tuple(sent))


def _not_in(seen: Collection[int], base: BaseCircuit) -> list[BaseCircuit]:
    """Returns a base circuit and its ancestors, the eldest first, down to the first whose id was seen."""
    lineage: list[BaseCircuit] = []
    at: BaseCircuit | None = base
    while at is not None and id(at) not in seen:
        lineage.append(at)
        at = at.parent
    return lineage[::-1]


class ReceivedBases:
    """The same on the worker's side."""

    def __init__(self) -> None:
        self._known: dict[int, BaseCircuit] = {}

    def receive(self, sent: SentPasses) -> list[PatchedPass]:
        """Returns the passes. Raises ServerError for a base circuit that was not sent."""
        known = dict(self._known)
        try:
            for new in sent.bases:
                parent = None if new.parent is None else known[new.parent]
                known[new.number] = BaseCircuit(new.circuit, parent)
            passes = [
                PatchedPass(known[number], removed, receiver) for number, removed, receiver in sent.passes
            ]
        except KeyError as error:
            raise ServerError(f"base circuit {error} was not sent to this worker") from error
        used: set[int] = set()
        for each in passes:
            used.update(map(id, _not_in(used, each.base_circuit)))
        self._known = {number: base for number, base in known.items() if id(base) in used}
        return passes
