"""Grouping rows that agree on all inputs of a node, so that each distinct input is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Merged:
    """Rows grouped by the variants of several inputs.

    Args:
        count: number of merged variants, V.
        picks: per input, its variant in each merged one [V]; -1 where it is unchanged.
        variant: per row, its merged variant; -1 where no input changed.
        first: per merged variant, its first row [V].
    """

    count: int
    picks: list[Index]
    variant: Index
    first: Index


def merge(columns: Sequence[Index], group: Index) -> Merged | None:
    """Groups rows by their inputs' variants and by ``group``; None if no row changes any input."""
    active = np.flatnonzero(np.max(columns, axis=0) >= 0) if columns else np.empty(0, dtype=np.int64)
    if not len(active):
        return None
    numbers: dict[tuple[int, ...], int] = {}
    keys = zip(group[active].tolist(), *(column[active].tolist() for column in columns), strict=True)
    merged = [numbers.setdefault(key, len(numbers)) for key in keys]
    variant = np.full(len(group), -1)
    variant[active] = merged
    first = active[np.unique(merged, return_index=True)[1]]
    return Merged(len(numbers), [column[first] for column in columns], variant, first)


def pick(values: Tensor, wanted: Index) -> Tensor:
    """Values [V, ...] by merged variant; zero where -1 is wanted."""
    if is_identity(wanted, len(values)):
        return values
    picked = values[torch.from_numpy(np.maximum(wanted, 0))]
    unchanged = np.flatnonzero(wanted < 0)
    if len(unchanged):
        picked[torch.from_numpy(unchanged)] = 0
    return picked


def is_identity(wanted: Index, count: int) -> bool:
    return len(wanted) == count and bool((wanted == np.arange(count)).all())
