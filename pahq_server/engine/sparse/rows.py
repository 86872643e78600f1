"""The rows of a sweep and the bases they differ from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base import Base
from pahq_server.engine.sparse.cuts import collect, sum_up, sum_up_rest
from pahq_server.engine.sparse.low_cuts import collect_low
from pahq_server.engine.sparse.maps import Maps
from pahq_server.engine.sparse.plan import CODES
from pahq_server.engine.sparse.tokens import Places
from pahq_server.engine.sparse.variants import Index, Merged, as_tensor, merge, runs
from pahq_server.engine.sparse.weights import ALL_LOW, EXACT

METRIC, WINDOW = CODES[Places.METRIC], CODES[Places.WINDOW]


class Rows:
    """A batch of rows of any jobs of one model under one graph.

    Args:
        bases: what the rows are differences from.
        base_of: per row, index of its base; equal ones stand together.
        removed: per row, the edges of its base's circuit that it lacks.
        many: whether these are most of the edges into their receivers.
        maps: linear maps in low precision; None for full precision.
    """

    def __init__(
        self,
        bases: Sequence[Base],
        base_of: Index,
        removed: Sequence[Sequence[int]],
        many: bool = False,
        maps: Maps | None = None,
    ) -> None:
        self.bases, self.base_of, self.maps = bases, base_of, maps
        self.weights, self.graph = bases[0].weights, bases[0].circuit.graph
        # Which matrices rows use of heads that they do not promote.
        self.low = EXACT if maps is None else ALL_LOW
        self.promotion = None if maps is None else maps.promotion(self.graph, removed)
        if maps is None:
            self.cuts = collect(bases, base_of, removed, sum_up_rest if many else sum_up)
        else:
            self.cuts = collect_low(bases, base_of, removed, self.promotion)
        # bool, [bases, edges].
        self.kept = np.stack([base.circuit.kept for base in bases])
        # `Plan.sender_codes` and `Plan.receiver_codes`, [bases, senders] and [bases, receivers].
        self.sender_codes = np.stack([base.plan.sender_codes for base in bases])
        self.receiver_codes = np.stack([base.plan.receiver_codes for base in bases])
        self.one_job = all(base.reference is bases[0].reference for base in bases)
        # Tokens by base and code, [bases, 3].
        self._counts = np.array(
            [[0, *(base.tokens.count(places) for places in CODES)] for base in bases], dtype=np.int64
        )
        self._first_row = np.flatnonzero(np.diff(base_of, prepend=-1))
        self._known_counts: dict[int, Index] = {}
        # By id of the merged variants, which are held so that their ids stay their own.
        self._known_used: dict[int, tuple[Merged, tuple[list[int], Index]]] = {}

    def __len__(self) -> int:
        return len(self.base_of)

    def heads(self, layer: int) -> list[int]:
        """Heads of a layer that are live in any base, as sender indices."""
        first = self.graph.head(layer, 0)
        live = self.sender_codes[:, first : first + self.graph.heads].any(0)
        return (np.flatnonzero(live) + first).tolist()

    def is_live(self, sender: int) -> bool:
        """Whether a sender is live in any base."""
        return bool(self.sender_codes[:, sender].any())

    def where_live(self, sender: int, variant: Index) -> Index:
        """A row's variants where its base has the sender live, -1 elsewhere."""
        live = self.sender_codes[:, sender] > 0
        return variant if live.all() else np.where(live[self.base_of], variant, -1)

    def counts(self, receiver: int) -> Index:
        """Per base, the tokens at a receiver; 0 where it is not live."""
        counts = self._known_counts.get(receiver)
        if counts is None:
            counts = self._counts[np.arange(len(self.bases)), self.receiver_codes[:, receiver]]
            self._known_counts[receiver] = counts
        return counts

    def sizes(self, merged: Merged, receiver: int) -> Index:
        """Tokens of merged variants at a receiver: [V]."""
        return self.counts(receiver)[self.base_of[merged.first]]

    def composable(self, receiver: int) -> NDArray[np.bool_]:
        """Per row, `Base.composable`."""
        return np.array([base.composable(receiver) for base in self.bases])[self.base_of]

    def by_base(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Per base, whether any of its rows has the flag: [..., bases] for [..., rows]."""
        any_row: NDArray[np.bool_] = np.logical_or.reduceat(flags, self._first_row, axis=-1)
        return any_row

    def merged(self, columns: Sequence[Index]) -> Merged | None:
        """Merged by these columns, and so that all rows of a variant promote the same."""
        promotion = self.promotion
        return merge([*columns, promotion.column(columns)] if promotion is not None and columns else columns)

    def inputs(self, receiver: int, merged: Merged) -> Hashable:
        """Equal for receivers that read the same in the bases of merged variants."""
        return tuple(self.bases[number].input_of(receiver) for number in self._used(merged)[0])

    def of_bases(self, merged: Merged, value: Callable[[Base], Tensor]) -> Tensor:
        """Values of the bases in merged variants, laid out as they are; [1, ...] where all are the same."""
        numbers, index = self._used(merged)
        tensors = [value(self.bases[number]) for number in numbers]
        first = tensors[0]
        if all(tensor is first for tensor in tensors):
            return first[None]
        if all(len(tensor) == len(first) for tensor in tensors):
            return torch.stack(tensors)[as_tensor(index, first.device)]
        return torch.cat([tensors[i] for i in index.tolist()])[None]

    def add_of_bases(
        self, x: Tensor, merged: Merged, value: Callable[[Base], Tensor], alpha: int = 1
    ) -> Tensor:
        """Adds values of the bases, times alpha, to those of merged variants in place, and returns these."""
        numbers, index = self._used(merged)
        if not x.is_cpu or len(numbers) == 1:
            return x.add_(self.of_bases(merged, value), alpha=alpha)
        # Without copies for every variant.
        flat, begin, tensors = x.flatten(0, 1), 0, [value(self.bases[number]) for number in numbers]
        for first, last in runs(index):
            tensor = tensors[index[first]]
            end = begin + (last - first) * len(tensor)
            flat[begin:end].view(last - first, *tensor.shape).add_(tensor, alpha=alpha)
            begin = end
        return x

    def _used(self, merged: Merged) -> tuple[list[int], Index]:
        """The bases of merged variants, and the place of each variant's base among them."""
        if id(merged) not in self._known_used:
            places: dict[int, int] = {}
            bases = self.base_of[merged.first].tolist()
            index = np.array([places.setdefault(number, len(places)) for number in bases])
            self._known_used[id(merged)] = merged, (list(places), index)
        return self._known_used[id(merged)][1]
