"""What receivers hear of single senders, in the variants that hear it.

Shape suffixes as in `receivers`.


Changes of the residual stream at receivers, in the rows of a sweep.

Shape suffixes as in `receivers`; S senders, B bases.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base_activations import BaseActivations
from pahq_server.engine.sparse.batch import METRIC, WINDOW, PassBatch
from pahq_server.engine.sparse.positions import PositionSet
from pahq_server.engine.sparse.unpatched import is_head
from pahq_server.engine.sparse.variants import (
    Index,
    MergedVariants,
    VariantValues,
    as_tensor,
    is_identity,
    layout,
    pick,
    runs,
    token_index,
    with_layout,
)
from pahq_server.engine.sparse.weights import PairPrecision
from pahq_server.precision.products import add_matmul, matmul, sums

# Where fewer variants than this share hear a sender, only they are computed.
SPARSE_SHARE = 0.7
# On CPUs so removes_most runs of tokens are added one by one faster than by index.
MAX_RUNS = 12

# Changed senders, in order, each with the variant that every row hears; -1 where it hears no change.
ChangedSenders = list[tuple[int, Index]]


@dataclass(frozen=True)
class NodeChange:
    """A node's change in the rows that change it.

    Args:
        values: difference from the base.
        variant: per row, index into V; -1 for rows that leave the node as it is.
    """

    values: VariantValues
    variant: Index


@dataclass(frozen=True)
class Contribution:
    """A sender's change in some of the merged variants.

    Args:
        y: [V, N, K or D] of these variants.
        variants: their numbers.
        tokens: where their tokens are among those of all merged variants, as is_prefix_of and ends of runs, or as
            an index where there are removes_most; None if they are all.
    """

    y: Tensor
    variants: Index
    tokens: list[tuple[int, int]] | Tensor | None

    def add_to(self, total: Tensor | None, w: Tensor, shape: tuple[int, int]) -> Tensor:
        """Adds y @ w in place; ``total`` has the variants' layout ``shape``, None stands for zeros."""
        if self.tokens is None:
            return add_product(total, self.y, w)
        if total is None:
            total = self.y.new_zeros(*shape, w.shape[-1])
        self.scatter(total, matmul(self.y, w))
        return total

    def scatter(self, total: Tensor, values: Tensor) -> None:
        """Adds values of these variants in place."""
        if self.tokens is None:
            total += values
            return
        flat, some = total.flatten(0, 1), values.flatten(0, 1)
        if isinstance(self.tokens, Tensor):
            flat.index_add_(0, self.tokens, some)
            return
        first = 0
        for begin, end in self.tokens:
            flat[begin:end] += some[first : first + end - begin]
            first += end - begin


def add_product(total: Tensor | None, y: Tensor, w: Tensor) -> Tensor:
    """``total += y @ w`` in place; None stands for zeros."""
    return matmul(y, w) if total is None else add_matmul(total, y, w)


class Contributions:
    """The terms of a sweep's senders.

    Args:
        rows: the rows.
        senders: what changes, filled while the sweep goes up.
    """

    def __init__(self, batch: PassBatch, senders: Mapping[int, NodeChange]) -> None:
        self._batch, self._senders = batch, senders

    def split_by_precision(
        self, sender: int, receiver: int, wanted: Index, merged: MergedVariants, reader: int | None = None
    ) -> Iterator[tuple[PairPrecision, Contribution]]:
        """A head's change in the merged variants that hear it, split_by_precision by the matrices that these use.

        Args:
            sender, receiver: a head, and where its change is needed.
            wanted: per merged variant, the head's.
            merged: variants.
            reader: the receiver, if its matrix is used too.
        """
        for precision, some in self.variants_by_precision(sender, wanted, merged, reader):
            yield precision, self.of_sender(sender, receiver, some, merged)

    def variants_by_precision(
        self, sender: int, wanted: Index, merged: MergedVariants, reader: int | None = None
    ) -> list[tuple[PairPrecision, Index]]:
        """``wanted`` split_by_precision by the matrices of head and reader that variants use, -1 in all others."""
        promotion = self._batch.promotion
        if promotion is None:
            found = [(self._batch.precision, wanted)]
        else:
            found = promotion.split_by_precision(wanted, merged, sender, reader)
        return [(precision, some) for precision, some in found if (some >= 0).any()]

    def of_sender(self, sender: int, receiver: int, wanted: Index, merged: MergedVariants) -> Contribution:
        """A sender's change in the merged variants that hear it."""
        heard = np.flatnonzero(wanted >= 0)
        as_it_is = is_identity(wanted[heard], len(self._senders[sender].values.sizes))
        if len(heard) == len(wanted) or (len(heard) > SPARSE_SHARE * len(wanted) and not as_it_is):
            y = self.output_delta(sender, receiver, wanted, merged)
            return Contribution(y, np.arange(len(wanted)), None)
        sizes = self._batch.sizes(merged, receiver)
        y = self.output_delta(sender, receiver, wanted[heard], merged.some(heard))
        return Contribution(y, heard, _token_ranges(heard, sizes, y.device))

    def output_delta(self, sender: int, receiver: int, wanted: Index, merged: MergedVariants) -> Tensor:
        """A sender's change in merged variants, where a receiver needs it: [V, N, K or D]."""
        batch, values = self._batch, self._senders[sender].values
        sizes = batch.sizes(merged, receiver)
        have, want = batch.sender_codes[:, sender], batch.receiver_codes[:, receiver]
        narrowed = ((have == WINDOW) & (want == METRIC))[(have > 0) & (want > 0)]
        if not narrowed.any():
            return pick(values, wanted, sizes).data
        if narrowed.all() and batch.one_job and values.even:
            data = batch.bases[0].tokens.narrow(values.data, PositionSet.WINDOW, PositionSet.METRIC)
            return pick(VariantValues(data, np.full(len(values.sizes), data.shape[1])), wanted, sizes).data
        return self._output_delta_by_base(sender, receiver, wanted, merged)

    def _output_delta_by_base(
        self, sender: int, receiver: int, wanted: Index, merged: MergedVariants
    ) -> Tensor:
        """`heard` where some variants have other places than others."""
        batch, values = self._batch, self._senders[sender].values
        sizes, base_of = batch.sizes(merged, receiver), batch.base_of[merged.first]
        if base_of[0] == base_of[-1]:
            return self._output_delta_in_base(batch.bases[base_of[0]], sender, receiver, wanted)
        data = values.data.new_zeros(int(sizes.sum()), *values.data.shape[2:])
        ends = np.cumsum(sizes)
        for begin, end in runs(base_of):
            if (wanted[begin:end] < 0).all():
                continue
            found = self._output_delta_in_base(
                batch.bases[base_of[begin]], sender, receiver, wanted[begin:end]
            )
            data[ends[begin] - sizes[begin] : ends[end - 1]] = found.flatten(0, 1)
        return with_layout(data, sizes)

    def _output_delta_in_base(
        self, base: BaseActivations, sender: int, receiver: int, wanted: Index
    ) -> Tensor:
        """`heard` in variants of one base."""
        have, want = base.plan.needed[sender], base.plan.receivers[receiver]
        sizes = np.full(len(wanted), base.tokens.count(have))
        return base.tokens.narrow(pick(self._senders[sender].values, wanted, sizes).data, have, want)


def _token_ranges(variants: Index, sizes: Index, device: torch.device) -> list[tuple[int, int]] | Tensor:
    """Where the tokens of some variants are: `Contribution.tokens`."""
    ends = np.cumsum(sizes)
    is_prefix_of = ends - sizes
    last = np.append(np.flatnonzero(variants[1:] - variants[:-1] > 1), len(variants) - 1)
    if device.type != "cpu" or len(last) > MAX_RUNS:
        return as_tensor(token_index(is_prefix_of[variants], sizes[variants]), device)
    first = [0, *(last[:-1] + 1).tolist()]
    return list(zip(is_prefix_of[variants[first]].tolist(), ends[variants[last]].tolist(), strict=True))


# A sum of fewer terms is made again as quickly, and not worth its memory.
MIN_REMEMBERED_TERMS = 6
# So removes_most sums are remembered, of receivers that are needed at different places.
MAX_REMEMBERED_SUMS = 2


@dataclass(eq=False)
class _RememberedSum:
    """What senders change together.

    Args:
        codes: per base, where it is needed: `LivenessPlan.receiver_codes`, [B].
        heard: whether any row of a base hears a sender: bool, [S, B].
        variant: per row, as in `MergedVariants`, but counted from the first one of its base.
        bounds: where a base's tokens begin in ``dx``: [B + 1].
        dx: [V, N, D].
        squares: changes of sums of squares, [V, N], by the inputs that dx is added to.
    """

    codes: NDArray[np.int8]
    includes: NDArray[np.bool_]
    variant: Index
    bounds: Index
    dx: Tensor
    squares: dict[Hashable, Tensor] = field(default_factory=dict)

    def of_base(self, base: int) -> Tensor:
        """Tokens of a base's variants: [N, D]."""
        return self.dx.flatten(0, 1)[self.bounds[base] : self.bounds[base + 1]]

    def is_prefix_of(self, other: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Per base, whether the sum of other senders goes on from this one, all in order."""
        earlier = np.arange(len(other))[:, None] < len(other) - self.includes[::-1].argmax(0)
        found: NDArray[np.bool_] = self.includes.any(0) & ~((other != self.includes) & earlier).any(0)
        return found


class ResidualSums:
    """Sums of what senders write.

    Receivers of a circuit with removes_most edges hear nearly the same, and those of the next layer a little more. So
    the last sums are remembered, but for those at ablations; rows of a base go on from them where what they hear
    is_prefix_of alike.

    Args:
        rows: the rows of the sweep.
        terms: of its senders.
    """

    def __init__(self, batch: PassBatch, contributions: Contributions) -> None:
        self._batch, self._contributions = batch, contributions
        # Of different codes.
        self._last: list[_RememberedSum] = []

    def input_change(
        self, receiver: int, changed_senders: ChangedSenders, mask: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, MergedVariants] | None:
        """Change of a receiver's input, [V, N, D], in the given rows (bool) or all.

        Not to be written to, and good until the next call, which may go on in the same memory.
        """
        batch, ablation = self._batch, self._batch.ablations.get(receiver)
        columns = [variant for _, variant in changed_senders]
        columns += [] if ablation is None else [ablation.variant]
        if mask is not None and not mask.all():
            columns = [np.where(mask, column, -1) for column in columns]
        merged = batch.merged(columns)
        if merged is None:
            return None
        senders = [sender for sender, _ in changed_senders]
        if len(senders) >= MIN_REMEMBERED_TERMS:
            heard = np.zeros((batch.graph.num_senders, len(batch.bases)), dtype=bool)
            heard[senders] = batch.by_base(np.stack(columns[: len(senders)]) >= 0)
            return self._sum(receiver, senders, merged, heard), merged
        dx = self._edge_ablations(receiver, len(senders), merged)
        for sender, wanted in zip(senders, merged.picks, strict=False):
            if (wanted >= 0).any():
                self._add(dx, sender, receiver, wanted, merged)
        return dx, merged

    def _sum(
        self, receiver: int, senders: list[int], merged: MergedVariants, heard: NDArray[np.bool_]
    ) -> Tensor:
        """The change, on from the last sums; ``heard`` as in `_RememberedSum`."""
        batch, ablation, codes = (
            self._batch,
            self._batch.ablations.get(receiver),
            self._batch.receiver_codes[:, receiver],
        )
        base_of = batch.base_of[merged.first]
        first = np.searchsorted(base_of, np.arange(len(codes) + 1))
        bounds = np.cumsum([0, *batch.sizes(merged, receiver)])[first]
        variant = np.where(merged.variant < 0, -1, merged.variant - first[batch.base_of])
        known, missing = self._known(receiver, heard, variant)
        old = next((last for last in self._last if np.array_equal(codes, last.codes)), None)
        in_place = old is not None and ablation is None and np.array_equal(variant, old.variant)
        if old is not None and in_place:
            dx = old.dx
            for base in np.flatnonzero((missing == heard).all(0)).tolist():
                old.of_base(base).zero_()
        else:
            if old is not None and ablation is None and all(last is not old for last, _ in known):
                self._last.remove(old)
                old = None  # before the next one takes as much
            dx = self._edge_ablations(receiver, len(senders), merged)
        elsewhere = [(last, bases) for last, bases in known if last.dx is not dx]
        _copy(elsewhere, dx, bounds)
        if in_place and not elsewhere and not missing.any():
            return dx
        if ablation is None:
            self._last = [last for last in self._last if last is not old]
        del known, elsewhere, old  # their memory is wanted below
        whole = (missing == heard).all(1)
        for sender, wanted in zip(senders, merged.picks, strict=False):
            if missing[sender].any():
                some = wanted if whole[sender] else np.where(missing[sender, base_of], wanted, -1)
                self._add(dx, sender, receiver, some, merged)
        if ablation is None:
            self._last = [
                *self._last[1 - MAX_REMEMBERED_SUMS :],
                _RememberedSum(codes, heard, variant, bounds, dx),
            ]
        return dx

    def _known(
        self, receiver: int, heard: NDArray[np.bool_], variant: Index
    ) -> tuple[list[tuple[_RememberedSum, NDArray[np.bool_]]], NDArray[np.bool_]]:
        """Sums that go on, each with the bases whose rows go on from it, bool [B]; and what is missing."""
        batch, ablation, known = self._batch, self._batch.ablations.get(receiver), []
        codes, missing = batch.receiver_codes[:, receiver], heard
        free = np.full(len(codes), True) if ablation is None else ~batch.by_base(ablation.variant >= 0)
        for last in self._last:
            bases = free & (codes == last.codes) & ~batch.by_base(variant != last.variant)
            if bases.any() and (bases := bases & last.is_prefix_of(heard)).any():
                known.append((last, bases))
                free, missing = free & ~bases, missing & ~(last.includes & bases)
        return known, missing

    def _edge_ablations(self, receiver: int, senders: int, merged: MergedVariants) -> Tensor:
        """What ablations at a receiver change, zeros without any.

        Args:
            receiver: where.
            senders: how removes_most are added afterwards, in place; picks of ablations come after theirs.
            merged: variants.
        """
        weights, ablation = self._batch.weights, self._batch.ablations.get(receiver)
        sizes = self._batch.sizes(merged, receiver)
        if ablation is None:
            shape = (*layout(sizes), weights.arch.d_model)
            return torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        dx = pick(ablation.dx, merged.picks[senders], sizes).data
        # The bases go on using the original.
        shared = dx.untyped_storage().data_ptr() == ablation.dx.data.untyped_storage().data_ptr()
        return dx.clone() if senders and shared else dx

    def _add(self, dx: Tensor, sender: int, receiver: int, wanted: Index, merged: MergedVariants) -> None:
        if not is_head(self._batch.graph, sender):
            contribution = self._contributions.of_sender(sender, receiver, wanted, merged)
            contribution.scatter(dx, contribution.y)
            return
        shape = layout(self._batch.sizes(merged, receiver))
        for (precision, _), contribution in self._contributions.split_by_precision(
            sender, receiver, wanted, merged
        ):
            contribution.add_to(dx, self._batch.weights.head_output_weight(sender, precision), shape)

    def squared_norm_change(self, receiver: int, dx: Tensor, merged: MergedVariants) -> Tensor:
        """What `change`, ``dx``, does to the input's sum of squares: [V, N]."""
        inputs = self._batch.inputs(receiver, merged)
        known = next((last.squares for last in self._last if last.dx is dx), {})
        if inputs not in known:
            twice = self._batch.add_of_bases(
                dx.clone(), merged, lambda base: base.cached_input(receiver), alpha=2
            )
            known[inputs] = sums(twice.mul_(dx))
        return known[inputs]


def _copy(known: list[tuple[_RememberedSum, NDArray[np.bool_]]], dx: Tensor, bounds: Index) -> None:
    """Writes what is known of bases to where their tokens begin in ``dx``."""
    for last, bases in known:
        for base in np.flatnonzero(bases).tolist():
            dx.flatten(0, 1)[bounds[base] : bounds[base + 1]] = last.of_base(base)
