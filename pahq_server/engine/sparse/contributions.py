"""What changed senders add to the inputs of receivers, and sums of it in the residual stream.

A receiver's input is the sum of what its senders write. In a batch it changes by the sum of y_s W_s over the
changed senders s along kept edges, where y_s is the change of a head's output before W_O, with W_s its W_O,
or of an MLP's output, with W_s the identity.

Shape suffixes: V variants, N packed tokens, D d_model, K d_head, S senders, B bases; values of variants of
unequal sizes are laid out as in `variants`.
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

# If at most this share of the variants reads a changed sender, its contribution is computed in these alone.
SPARSE_SHARE = 0.7
# On CPUs, adding up to so many runs of tokens one by one is faster than adding by index.
MAX_RUNS = 12

# Changed senders that a receiver reads, in order: each with the variant of its change that every pass reads,
# or -1 where the receiver reads no change of it.
ChangedSenders = list[tuple[int, Index]]


@dataclass(frozen=True)
class NodeChange:
    """How a node's output differs from the base circuit's.

    Args:
        values: the difference in V variants.
        variant: per pass, its index into V; -1 for passes that leave the node as it is.
    """

    values: VariantValues
    variant: Index


@dataclass(frozen=True)
class Contribution:
    """A sender's change in some of the merged variants.

    Args:
        y: the change in these variants, [V, N, K or D].
        variants: their numbers among the merged variants.
        tokens: where their tokens are among those of all merged variants: begins and ends of runs, or an
            index if there are many runs; None if these are all variants.
    """

    y: Tensor
    variants: Index
    tokens: list[tuple[int, int]] | Tensor | None

    def add_to(self, total: Tensor | None, w: Tensor, shape: tuple[int, int]) -> Tensor:
        """Adds y @ w in place and returns the sum.

        Args:
            total: sum so far; None for zeros.
            w: matrix, [K or D, O].
            shape: layout of all merged variants, for a new sum.
        """
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
    """Adds y @ w to ``total`` in place and returns it; None stands for zeros."""
    return matmul(y, w) if total is None else add_matmul(total, y, w)


class Contributions:
    """What the changed senders of a batch contribute to receivers.

    Args:
        batch: the passes.
        senders: changes of senders, filled while the forward pass goes up the layers.
    """

    def __init__(self, batch: PassBatch, senders: Mapping[int, NodeChange]) -> None:
        self._batch, self._senders = batch, senders

    def split_by_precision(
        self, sender: int, receiver: int, wanted: Index, merged: MergedVariants, reader: int | None = None
    ) -> Iterator[tuple[PairPrecision, Contribution]]:
        """Yields a head's change in parts: in each, all variants multiply it with the same matrices.

        Args:
            sender, receiver: the head, and the receiver that its change is for.
            wanted: per merged variant, the variant of the head's change that it reads, or -1.
            merged: the merged variants.
            reader: the receiver, if the change is multiplied with its matrix, too; otherwise None.
        """
        for precision, some in self.variants_by_precision(sender, wanted, merged, reader):
            yield precision, self.of_sender(sender, receiver, some, merged)

    def variants_by_precision(
        self, sender: int, wanted: Index, merged: MergedVariants, reader: int | None = None
    ) -> list[tuple[PairPrecision, Index]]:
        """Splits ``wanted`` by the matrices of head and reader that variants use.

        Each part is -1 in the variants of the other parts. The arguments are those of `split_by_precision`.
        """
        promotion = self._batch.promotion
        if promotion is None:
            found = [(self._batch.precision, wanted)]
        else:
            found = promotion.split_by_precision(wanted, merged, sender, reader)
        return [(precision, some) for precision, some in found if (some >= 0).any()]

    def of_sender(self, sender: int, receiver: int, wanted: Index, merged: MergedVariants) -> Contribution:
        """Returns a sender's change in the merged variants that read it."""
        reads = np.flatnonzero(wanted >= 0)
        needs_no_copy = is_identity(wanted[reads], len(self._senders[sender].values.sizes))
        if len(reads) == len(wanted) or (len(reads) > SPARSE_SHARE * len(wanted) and not needs_no_copy):
            y = self.output_delta(sender, receiver, wanted, merged)
            return Contribution(y, np.arange(len(wanted)), None)
        sizes = self._batch.sizes(merged, receiver)
        y = self.output_delta(sender, receiver, wanted[reads], merged.some(reads))
        return Contribution(y, reads, _token_ranges(reads, sizes, y.device))

    def output_delta(self, sender: int, receiver: int, wanted: Index, merged: MergedVariants) -> Tensor:
        """Returns a sender's change in merged variants, at a receiver's positions: [V, N, K or D].

        Zero where ``wanted``, the variant of the change by merged variant, is -1.
        """
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
        """Computes `output_delta` base by base, for variants that need different positions."""
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
        """Computes `output_delta` in variants of one base."""
        have, want = base.plan.needed[sender], base.plan.receivers[receiver]
        sizes = np.full(len(wanted), base.tokens.count(have))
        return base.tokens.narrow(pick(self._senders[sender].values, wanted, sizes).data, have, want)


def _token_ranges(variants: Index, sizes: Index, device: torch.device) -> list[tuple[int, int]] | Tensor:
    """Returns where the tokens of some variants are, as in `Contribution`.

    Args:
        variants: numbers of the variants, ascending.
        sizes: tokens of each of all variants.
        device: of an index.
    """
    ends = np.cumsum(sizes)
    starts = ends - sizes
    last = np.append(np.flatnonzero(variants[1:] - variants[:-1] > 1), len(variants) - 1)
    if device.type != "cpu" or len(last) > MAX_RUNS:
        return as_tensor(token_index(starts[variants], sizes[variants]), device)
    first = [0, *(last[:-1] + 1).tolist()]
    return list(zip(starts[variants[first]].tolist(), ends[variants[last]].tolist(), strict=True))


# Sums of fewer contributions are not worth the memory: summing again is as fast.
MIN_REMEMBERED_TERMS = 6
# How many sums are remembered: one for each set of positions at which receivers are needed.
MAX_REMEMBERED_SUMS = 2


@dataclass(eq=False)
class _RememberedSum:
    """The sum of what several senders change, in the variants of one receiver's input.

    Args:
        codes: per base, at which positions the receiver is needed: `LivenessPlan.receiver_codes`, [B].
        includes: whether any pass of a base reads a change of a sender: bool, [S, B].
        variant: per pass, as in `MergedVariants`, but counted from the first variant of its base.
        bounds: where a base's tokens begin in ``dx``: [B + 1].
        dx: the sum, [V, N, D].
        squares: changes of the squared norm, [V, N], by the inputs that dx is added to.
    """

    codes: NDArray[np.int8]
    includes: NDArray[np.bool_]
    variant: Index
    bounds: Index
    dx: Tensor
    squares: dict[Hashable, Tensor] = field(default_factory=dict)

    def of_base(self, base: int) -> Tensor:
        """Returns the tokens of a base's variants: [N, D]."""
        return self.dx.flatten(0, 1)[self.bounds[base] : self.bounds[base + 1]]

    def is_prefix_of(self, other: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tells by base whether a sum over other senders, all in order, begins with this one: bool, [B]."""
        earlier = np.arange(len(other))[:, None] < len(other) - self.includes[::-1].argmax(0)
        found: NDArray[np.bool_] = self.includes.any(0) & ~((other != self.includes) & earlier).any(0)
        return found


class ResidualSums:
    """Sums what changed senders write to the residual stream.

    In a circuit with many edges, receivers read nearly the same senders, and those of the next layer a few
    more. The last sums are therefore remembered, except at receivers with removed edges. Passes of a base go
    on from a remembered sum if what they read begins with the same senders. A sum has the same bits either
    way, because contributions are always added in the order of senders.

    Args:
        batch: the passes.
        contributions: of the changed senders.
    """

    def __init__(self, batch: PassBatch, contributions: Contributions) -> None:
        self._batch, self._contributions = batch, contributions
        # Remembered sums, of which no two have the same codes.
        self._last: list[_RememberedSum] = []

    def input_change(
        self, receiver: int, changed_senders: ChangedSenders, mask: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, MergedVariants] | None:
        """Returns the change of a receiver's input, [V, N, D], and its variants; None if no pass changes it.

        The tensor must not be written to. It is valid until the next call, which may reuse its memory.

        Args:
            receiver: whose input it is.
            changed_senders: that it reads.
            mask: restricts it to some passes: bool, [passes].
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
            reads = np.zeros((batch.graph.num_senders, len(batch.bases)), dtype=bool)
            reads[senders] = batch.by_base(np.stack(columns[: len(senders)]) >= 0)
            return self._sum(receiver, senders, merged, reads), merged
        dx = self._edge_ablations(receiver, len(senders), merged)
        for sender, wanted in zip(senders, merged.picks, strict=False):
            if (wanted >= 0).any():
                self._add(dx, sender, receiver, wanted, merged)
        return dx, merged

    def _sum(
        self, receiver: int, senders: list[int], merged: MergedVariants, reads: NDArray[np.bool_]
    ) -> Tensor:
        """Returns `input_change`, going on from remembered sums that are a part of it.

        Args:
            receiver: whose input it is.
            senders: that it reads.
            merged: variants.
            reads: whether any pass of a base reads a sender's change: bool, [S, B].
        """
        batch, ablation = self._batch, self._batch.ablations.get(receiver)
        codes = batch.receiver_codes[:, receiver]
        base_of = batch.base_of[merged.first]
        first = np.searchsorted(base_of, np.arange(len(codes) + 1))
        bounds = np.cumsum([0, *batch.sizes(merged, receiver)])[first]
        variant = np.where(merged.variant < 0, -1, merged.variant - first[batch.base_of])
        known, missing = self._known(receiver, reads, variant)
        old = next((last for last in self._last if np.array_equal(codes, last.codes)), None)
        in_place = old is not None and ablation is None and np.array_equal(variant, old.variant)
        if old is not None and in_place:
            dx = old.dx
            for base in np.flatnonzero((missing == reads).all(0)).tolist():
                old.of_base(base).zero_()
        else:
            if old is not None and ablation is None and all(last is not old for last, _ in known):
                self._last.remove(old)
                old = None  # freed before the new sum takes as much memory
            dx = self._edge_ablations(receiver, len(senders), merged)
        elsewhere = [(last, bases) for last, bases in known if last.dx is not dx]
        _copy(elsewhere, dx, bounds)
        if in_place and not elsewhere and not missing.any():
            return dx
        if ablation is None:
            self._last = [last for last in self._last if last is not old]
        del known, elsewhere, old  # frees memory that is needed below
        whole = (missing == reads).all(1)
        for sender, wanted in zip(senders, merged.picks, strict=False):
            if missing[sender].any():
                some = wanted if whole[sender] else np.where(missing[sender, base_of], wanted, -1)
                self._add(dx, sender, receiver, some, merged)
        if ablation is None:
            self._last = [
                *self._last[1 - MAX_REMEMBERED_SUMS :],
                _RememberedSum(codes, reads, variant, bounds, dx),
            ]
        return dx

    def _known(
        self, receiver: int, reads: NDArray[np.bool_], variant: Index
    ) -> tuple[list[tuple[_RememberedSum, NDArray[np.bool_]]], NDArray[np.bool_]]:
        """Finds remembered sums that are a part of this one.

        Returns:
            These sums, each with the bases whose passes go on from it (bool, [B]), and what is missing of
            ``reads``.
        """
        batch, ablation, known = self._batch, self._batch.ablations.get(receiver), []
        codes, missing = batch.receiver_codes[:, receiver], reads
        free = np.full(len(codes), True) if ablation is None else ~batch.by_base(ablation.variant >= 0)
        for last in self._last:
            bases = free & (codes == last.codes) & ~batch.by_base(variant != last.variant)
            if bases.any() and (bases := bases & last.is_prefix_of(reads)).any():
                known.append((last, bases))
                free, missing = free & ~bases, missing & ~(last.includes & bases)
        return known, missing

    def _edge_ablations(self, receiver: int, senders: int, merged: MergedVariants) -> Tensor:
        """Returns what removed edges into a receiver change; zeros without any.

        Args:
            receiver: whose edges are removed.
            senders: how many contributions are added to the result in place. Picks of removed edges come
                after theirs.
            merged: variants.
        """
        weights, ablation = self._batch.weights, self._batch.ablations.get(receiver)
        sizes = self._batch.sizes(merged, receiver)
        if ablation is None:
            shape = (*layout(sizes), weights.arch.d_model)
            return torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        dx = pick(ablation.dx, merged.picks[senders], sizes).data
        # The bases keep the original for later batches.
        shared = dx.untyped_storage().data_ptr() == ablation.dx.data.untyped_storage().data_ptr()
        return dx.clone() if senders and shared else dx

    def _add(self, dx: Tensor, sender: int, receiver: int, wanted: Index, merged: MergedVariants) -> None:
        """Adds what a sender changes, in place."""
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
        """Returns how ``dx``, from `input_change`, changes the squared norm of the input: [V, N].

        With input x this is |x + dx|^2 - |x|^2 = (2 x + dx) . dx.
        """
        inputs = self._batch.inputs(receiver, merged)
        known = next((last.squares for last in self._last if last.dx is dx), {})
        if inputs not in known:
            twice = self._batch.add_of_bases(
                dx.clone(), merged, lambda base: base.cached_input(receiver), alpha=2
            )
            known[inputs] = sums(twice.mul_(dx))
        return known[inputs]


def _copy(known: list[tuple[_RememberedSum, NDArray[np.bool_]]], dx: Tensor, bounds: Index) -> None:
    """Copies remembered sums to ``dx``, where the tokens of base i begin at ``bounds[i]``."""
    for last, bases in known:
        for base in np.flatnonzero(bases).tolist():
            dx.flatten(0, 1)[bounds[base] : bounds[base + 1]] = last.of_base(base)
