"""The rows of a sweep and the bases they differ from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pahq_server.engine.sparse import cuts
from pahq_server.engine.sparse.base import Base
from pahq_server.engine.sparse.variants import Index, Merged


class Rows:
    """A batch of rows.

    Args:
        bases: what the rows are differences from; all of one plan.
        base_of: per row, index of its base; equal ones stand together.
        removed: per row, the edges of its base's circuit that it lacks.
    """

    def __init__(self, bases: Sequence[Base], base_of: Index, removed: Sequence[Sequence[int]]) -> None:
        self.bases, self.base_of = bases, base_of
        self.base = bases[0]  # for all that depends on the plan alone
        self.plan, self.graph = self.base.plan, self.base.circuit.graph
        self.cuts = cuts.collect(bases, base_of, removed)
        # bool, [bases, edges].
        self.kept = np.stack([base.circuit.kept for base in bases])

    def __len__(self) -> int:
        return len(self.base_of)

    def groups(self, *receivers: int) -> Index:
        """Per row, a number that is equal for bases with equal values at these receivers."""
        if len(self.bases) == 1:
            return self.base_of
        numbers: dict[int, int] = {}
        group = [numbers.setdefault(id(base.owner(*receivers)), len(numbers)) for base in self.bases]
        return np.array(group)[self.base_of]

    def of_bases(self, merged: Merged, value: Callable[[Base], Tensor]) -> Tensor:
        """Values of the bases in merged variants: [V or 1, ...]."""
        if len(self.bases) == 1:
            return value(self.bases[0])[None]
        numbers = self.base_of[merged.first]
        used = {number: value(self.bases[number]) for number in dict.fromkeys(numbers.tolist())}
        distinct: dict[int, int] = {}
        tensors: list[Tensor] = []
        for tensor in used.values():
            if distinct.setdefault(id(tensor), len(tensors)) == len(tensors):
                tensors.append(tensor)
        if len(tensors) == 1:
            return tensors[0][None]
        index = torch.tensor([distinct[id(used[number])] for number in numbers.tolist()])
        return torch.stack(tensors)[index]
