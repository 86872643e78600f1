"""Grouping passes that agree on all inputs of a node, so that each distinct input is computed once.

A *variant* of a node is one of its distinct values in a batch. The values of V variants stand one after the
other in one tensor: [V, N, d] where all have equally many tokens N, [1, sum of N, d] where they belong to
jobs of different sizes. Matrix products and elementwise operations are the same in both layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]

# Up to so many passes are merged one by one in Python; see `_merge_few`.
FEW_PASSES = 96
# Above this, the numbers that stand for combinations of variants are renumbered before they can overflow.
_LARGE = 1 << 40


@dataclass(frozen=True)
class MergedVariants:
    """Passes grouped by the variants of several inputs.

    Args:
        count: number of merged variants, V.
        picks: per input, its variant in each merged one, [V]; -1 where the input is unchanged.
        variant: per pass, its merged variant; -1 where no input changed.
        first: per merged variant, its first pass, [V].
    """

    count: int
    picks: list[Index]
    variant: Index
    first: Index

    def some(self, chosen: Index) -> MergedVariants:
        """Selects merged variants. ``variant`` of the result still counts in all of them."""
        return MergedVariants(len(chosen), [p[chosen] for p in self.picks], self.variant, self.first[chosen])

    def parts(self, most: int | None) -> Iterator[tuple[int, MergedVariants]]:
        """Yields all variants in parts of at most ``most``, each with the number of its first variant."""
        if most is None or self.count <= most:
            yield 0, self
            return
        for begin in range(0, self.count, most):
            chosen = slice(begin, begin + most)
            first = self.first[chosen]
            mine = (self.variant >= begin) & (self.variant < begin + len(first))
            variant = np.where(mine, self.variant - begin, -1)
            yield begin, MergedVariants(len(first), [p[chosen] for p in self.picks], variant, first)


@dataclass(frozen=True)
class VariantValues:
    """One value per variant.

    Args:
        data: [V, N, ...] or, for unequal sizes, [1, sum of N, ...].
        sizes: per variant, its number of tokens N: [V].
    """

    data: Tensor
    sizes: Index

    @cached_property
    def even(self) -> bool:
        """Whether ``data`` has the layout [V, N, ...] of variants with equally many tokens."""
        return len(self.data) == len(self.sizes)

    def of(self, variant: int) -> Tensor:
        """Returns the value of one variant: [N, ...]."""
        if self.even:
            return self.data[variant]
        return self.data[0, self.starts[variant] : self.starts[variant] + self.sizes[variant]]

    @cached_property
    def starts(self) -> Index:
        """The first token of each variant: [V]."""
        return np.cumsum(self.sizes) - self.sizes


def layout(sizes: Index) -> tuple[int, int]:
    """Returns the first two dimensions of the values of variants with these sizes."""
    even = len(sizes) == 1 or bool((sizes == sizes[0]).all())
    return (len(sizes), int(sizes[0])) if even else (1, int(sizes.sum()))


def as_tensor(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Copies numbers to a device, as an index of tensors."""
    index = torch.from_numpy(numbers)
    if device.type == "cuda":
        # A copy from memory that is not pinned would wait for all work that the device still has to do.
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)


def with_layout(flat: Tensor, sizes: Index) -> Tensor:
    """Gives the tokens of all variants, [sum of N, ...], the layout that goes with these sizes."""
    return flat.view(*layout(sizes), *flat.shape[1:])


def merge(columns: Sequence[Index]) -> MergedVariants | None:
    """Groups passes that agree on the variants of all inputs of a node.

    Args:
        columns: per input, the variant of every pass; -1 for passes that do not change the input. All
            passes with the same variant have the same base.

    Returns:
        The groups; None if no pass changes any input.
    """
    if not columns:
        return None
    if len(columns[0]) <= FEW_PASSES:
        return _merge_few(columns)
    # One number per pass that is equal for equal combinations of variants.
    combined = columns[0] + 1
    for column in columns[1:]:
        combined = combined * (int(column.max()) + 2) + column + 1
        if int(combined.max()) > _LARGE:
            combined = np.unique(combined, return_inverse=True)[1] + (combined.min() > 0)
    active = np.flatnonzero(combined)
    if not len(active):
        return None
    _, first, inverse = np.unique(combined[active], return_index=True, return_inverse=True)
    # Numbered in the order of their first passes, so that variants of one job stand together.
    order = np.argsort(first)
    variant = np.full(len(combined), -1)
    variant[active] = np.argsort(order)[inverse]
    first = active[first[order]]
    return MergedVariants(len(first), [column[first] for column in columns], variant, first)


def _merge_few(columns: Sequence[Index]) -> MergedVariants | None:
    """Does what `merge` does, pass by pass: for few passes, calls of numpy would take longer."""
    numbers: dict[tuple[int, ...], int] = {(-1,) * len(columns): -1}
    variant: list[int] = []
    first: list[int] = []
    for index, combination in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        number = numbers.get(combination)
        if number is None:
            number = numbers[combination] = len(first)
            first.append(index)
        variant.append(number)
    if not first:
        return None
    firsts = np.array(first)
    return MergedVariants(len(first), [column[firsts] for column in columns], np.array(variant), firsts)


def pick(values: VariantValues, wanted: Index, sizes: Index) -> VariantValues:
    """Selects values by merged variant: zero where -1 is wanted. Returns a view where possible.

    Args:
        values: of the variants before merging.
        wanted: per merged variant, its variant before merging, or -1.
        sizes: tokens of the merged variants, [V].
    """
    first, last = int(wanted[0]), int(wanted[0]) + len(wanted)
    if first >= 0 and bool((wanted == np.arange(first, last)).all()):
        return (
            values
            if last - first == len(values.sizes)
            else VariantValues(part_of(values, first, last), sizes)
        )
    unchanged = np.flatnonzero(wanted < 0)
    shape, device = layout(sizes), values.data.device
    if values.even and shape[0] == len(sizes) and values.data.shape[1] == shape[1]:
        data = values.data[as_tensor(np.maximum(wanted, 0), device)]
        if len(unchanged):
            data[as_tensor(unchanged, device)] = 0
        return VariantValues(data, sizes)
    data = values.data.new_zeros(int(sizes.sum()), *values.data.shape[2:])
    changed = np.flatnonzero(wanted >= 0)
    here = token_index((np.cumsum(sizes) - sizes)[changed], sizes[changed])
    there = token_index(values.starts[wanted[changed]], sizes[changed])
    data[as_tensor(here, device)] = values.data.flatten(0, 1)[as_tensor(there, device)]
    return VariantValues(with_layout(data, sizes), sizes)


def part_of(values: VariantValues, begin: int, end: int) -> Tensor:
    """Returns variants ``begin`` to ``end - 1``, in the layout that goes with their sizes."""
    if end - begin == len(values.sizes):
        return values.data
    starts = values.starts
    last = starts[end - 1] + values.sizes[end - 1]
    return with_layout(values.data.flatten(0, 1)[starts[begin] : last], values.sizes[begin:end])


def concatenated(parts: Sequence[VariantValues]) -> VariantValues:
    """Returns the variants of all parts, one after the other."""
    sizes = np.concatenate([part.sizes for part in parts])
    data = torch.cat([part.data.flatten(0, 1) for part in parts])
    return VariantValues(with_layout(data, sizes), sizes)


def token_index(starts: Index, sizes: Index) -> Index:
    """Returns the numbers ``starts[i] ... starts[i] + sizes[i] - 1`` for every i, one after the other."""
    offsets = np.cumsum(sizes) - sizes
    index: Index = np.arange(int(sizes.sum())) + np.repeat(starts - offsets, sizes)
    return index


def runs(numbers: Index) -> list[tuple[int, int]]:
    """Returns begin and end, excluded, of each run of equal numbers."""
    if not len(numbers):
        return []
    later = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    return list(pairwise([0, *later.tolist(), len(numbers)]))


def is_identity(wanted: Index, count: int) -> bool:
    """Tells whether the variants are all of ``count``, in order."""
    return len(wanted) == count and bool((wanted == np.arange(count)).all())
