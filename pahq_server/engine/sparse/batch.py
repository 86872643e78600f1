"""A batch of patched passes, and what their removed edges change directly at the receivers.

Removing the edge s->r changes the input of r by what s contributes when ablated, less what it contributes in
the base circuit. For a set of removed edges these changes are summed, latest sender first. Methods often ask
for chains of sets, each with one more edge than the one before it: every further set costs one addition.

Shape suffixes: V variants, N packed tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base_activations import BaseActivations, RemovedSenders
from pahq_server.engine.sparse.positions import POSITION_CODES, PositionSet
from pahq_server.engine.sparse.quantized import Promotion, QuantizedLinears
from pahq_server.engine.sparse.unpatched import is_head
from pahq_server.engine.sparse.variants import (
    Index,
    MergedVariants,
    VariantValues,
    as_tensor,
    merge,
    runs,
    with_layout,
)
from pahq_server.engine.sparse.weights import BOTH_EXACT, BOTH_QUANTIZED
from pahq_server.precision.products import matmul

# Changes by single edges that are remembered while the sums of one receiver are made.
REMEMBERED_EDGES = 16


@dataclass(frozen=True)
class EdgeAblation:
    """The removed edges into one receiver, in all passes of a batch.

    Args:
        patterns: the V different sets of removed senders, each latest first.
        dx: change of the receiver's input by each set, [V, N, D].
        variant: per pass, the index of its set; -1 for passes that remove no edge into the receiver.
    """

    patterns: list[RemovedSenders]
    dx: VariantValues
    variant: NDArray[np.int64]


class AblationSums(Protocol):
    """Computes the change of a receiver's input by sets of removed senders, under one base circuit."""

    def __call__(
        self, base: BaseActivations, receiver: int, patterns: list[RemovedSenders], kind: int
    ) -> Tensor:
        """Returns one change per set: [V, N, D].

        Args:
            base: activations of the base circuit.
            receiver: whose edges are removed.
            patterns: the sets of senders.
            kind: which heads the passes run in full precision; see `collect_ablations`.
        """
        ...


def collect_ablations(
    bases: Sequence[BaseActivations],
    base_of: NDArray[np.int64],
    removed: Sequence[Sequence[int]],
    sums: AblationSums,
    kind_of: Callable[[int, RemovedSenders], int] | None = None,
) -> dict[int, EdgeAblation]:
    """Computes the removed edges of a batch, by live receiver.

    Args:
        bases: activations of base circuits.
        base_of: per pass, the index of its base.
        removed: per pass, the edges of its base circuit that it lacks.
        sums: computes the changes.
        kind_of: which kind of change a pass, given by number, needs for a set of senders. Passes of one kind
            share changes. Without it all passes are of kind -1.
    """
    for base in bases:
        base.begin_ablations()
    wanted: dict[int, dict[tuple[int, int, RemovedSenders], int]] = {}
    variants: dict[int, NDArray[np.int64]] = {}
    for index, edges in enumerate(removed):
        for receiver, pattern in _by_receiver(bases[base_of[index]], edges):
            kind = -1 if kind_of is None else kind_of(index, pattern)
            numbers = wanted.setdefault(receiver, {})
            number = numbers.setdefault((int(base_of[index]), kind, pattern), len(numbers))
            variants.setdefault(receiver, np.full(len(removed), -1))[index] = number
    return {r: _ablation_of_receiver(bases, r, list(wanted[r]), variants[r], sums) for r in sorted(wanted)}


def sum_ablations(
    base: BaseActivations, receiver: int, patterns: list[RemovedSenders], kind: int = -1
) -> Tensor:
    """Computes `AblationSums` in full precision."""

    def everything() -> Tensor:
        return base.ablated_input(receiver) - base.cached_input(receiver)

    return sum_chains(base, receiver, patterns, None, lambda s: ablate_edge(base, receiver, s), everything)


def sum_ablations_by_complement(
    base: BaseActivations, receiver: int, patterns: list[RemovedSenders], kind: int = -1
) -> Tensor:
    """Computes `AblationSums` in full precision for sets that leave few edges.

    The change is that of removing all edges, less the changes by those that stay.
    """
    kept = np.flatnonzero(base.circuit.incoming(receiver))[::-1]
    sums = []
    for pattern in patterns:
        rest = kept[~np.isin(kept, pattern)].tolist()
        if len(rest) >= len(pattern):
            sums.append(sum_ablations(base, receiver, [pattern])[0])
            continue
        dx = base.ablated_input(receiver) - base.cached_input(receiver)
        for sender in rest:
            dx -= ablate_edge(base, receiver, sender)
        sums.append(dx)
    return torch.stack(sums)


def sum_chains(
    base: BaseActivations,
    receiver: int,
    patterns: list[RemovedSenders],
    key: object,
    ablate: Callable[[int], Tensor],
    everything: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Sums the changes by single edges, one sum per set: [V, N, D].

    The base remembers the sums, because the next batch of a job often goes on from them. A sum is always made
    in the order of its set, so that going on from that of a set that it begins with gives the same bits.

    Args:
        base: activations of the base circuit.
        receiver: whose edges are removed.
        patterns: sets of senders.
        key: what besides the base and the receiver the changes by single edges depend on.
        ablate: gives the change of the receiver's input by removing the edge of one sender, [N, D].
        everything: gives the change by removing all kept edges without summing; None to sum it, too.
    """
    kept = tuple(np.flatnonzero(base.circuit.incoming(receiver))[::-1].tolist())
    known = dict(base.recalled_ablations((receiver, key)))
    # The changes by all single edges together would take most of a batch's memory: few are held at a time.
    single = lru_cache(REMEMBERED_EDGES)(ablate)
    shape = (len(patterns), base.count(receiver), base.weights.arch.d_model)
    dx = torch.empty(shape, dtype=base.weights.dtype, device=base.weights.device)
    # The shortest first: longer ones begin with them.
    for i in sorted(range(len(patterns)), key=lambda i: len(patterns[i])):
        pattern = patterns[i]
        if pattern in known:
            dx[i] = known[pattern]
        elif everything is not None and pattern == kept:
            dx[i] = everything()
        else:
            length = _longest_known_beginning(pattern, known)
            if length:
                torch.add(known[pattern[:length]], single(pattern[length]), out=dx[i])
            else:
                dx[i] = single(pattern[0])
            for sender in pattern[length + 1 :]:
                dx[i] += single(sender)
        known[pattern] = dx[i]
    base.remember_ablations((receiver, key), dict(zip(patterns, dx, strict=True)))
    return dx


def _longest_known_beginning(pattern: RemovedSenders, known: Mapping[RemovedSenders, Tensor]) -> int:
    """Returns the length of the longest known set that a longer one begins with; 0 if there is none."""
    lengths = sorted({len(each) for each in known if len(each) < len(pattern)}, reverse=True)
    return next((length for length in lengths if pattern[:length] in known), 0)


def _by_receiver(base: BaseActivations, edges: Sequence[int]) -> list[tuple[int, RemovedSenders]]:
    """Groups removed edges by live receiver, each as a set of senders."""
    offsets = base.circuit.graph.offsets
    ids = np.sort(np.asarray(edges, dtype=np.int64))[::-1]
    receivers = np.searchsorted(offsets, ids, side="right") - 1
    return [
        (receiver, tuple((ids[begin:end] - offsets[receiver]).tolist()))
        for begin, end in runs(receivers)
        if (receiver := int(receivers[begin])) in base.plan.receivers
    ]


def _ablation_of_receiver(
    bases: Sequence[BaseActivations],
    receiver: int,
    keys: list[tuple[int, int, RemovedSenders]],
    variant: NDArray[np.int64],
    sums: AblationSums,
) -> EdgeAblation:
    """Computes the removed edges into one receiver.

    Args:
        bases: activations of base circuits.
        receiver: whose edges are removed.
        keys: the V different changes, as (number of the base, kind, set of senders).
        variant: per pass, its index into ``keys``, or -1.
        sums: computes the changes.
    """
    # Passes come sorted by base, so the groups of one base stand together.
    groups = {group: i for i, group in enumerate(dict.fromkeys(key[:2] for key in keys))}
    order = np.argsort([groups[key[:2]] for key in keys], kind="stable")
    keys = [keys[i] for i in order.tolist()]
    variant = np.where(variant >= 0, np.argsort(order)[variant], -1)
    parts = [
        sums(bases[number], receiver, [key[2] for key in keys if key[:2] == (number, kind)], kind)
        for number, kind in groups
    ]
    sizes = np.array([bases[number].count(receiver) for number, _, _ in keys])
    dx = parts[0] if len(parts) == 1 else with_layout(torch.cat([x.flatten(0, 1) for x in parts]), sizes)
    return EdgeAblation([pattern for _, _, pattern in keys], VariantValues(dx, sizes), variant)


def ablate_edge(base: BaseActivations, receiver: int, sender: int, quantized: bool = False) -> Tensor:
    """Returns the change of the receiver's input by removing the edge of one sender: [N, D].

    Args:
        base: activations of the base circuit.
        receiver, sender: ends of the edge.
        quantized: whether a head's change goes through the policy's W_O instead of the one in full precision.
    """
    change = base.ablation(sender, base.plan.receivers[receiver])
    return (
        matmul(change, base.weights.head_output_weight(sender, quantized))
        if is_head(base.graph, sender)
        else change
    )


def collect_quantized_ablations(
    bases: Sequence[BaseActivations],
    base_of: NDArray[np.int64],
    removed: Sequence[Sequence[int]],
    promotion: Promotion | None,
) -> dict[int, EdgeAblation]:
    """Computes `collect_ablations` under a precision policy: changes of heads go through the policy's W_O.

    The kind of a change is the number of the set of heads that run in full precision. Most passes promote
    heads whose edges they do not remove, and share the changes of passes that promote none (kind -1).
    """

    def sums(base: BaseActivations, receiver: int, patterns: list[RemovedSenders], kind: int) -> Tensor:
        heads = frozenset[int]() if promotion is None or kind < 0 else promotion.heads[kind]
        everything: Callable[[], Tensor] | None = None
        if not heads:
            everything = lambda: base.quantized_ablation_of_all(receiver)  # noqa: E731

        def ablate(sender: int) -> Tensor:
            return ablate_edge(base, receiver, sender, quantized=sender not in heads)

        return sum_chains(base, receiver, patterns, heads, ablate, everything)

    def kind_of(index: int, pattern: RemovedSenders) -> int:
        assert promotion is not None
        kind = int(promotion.of_pass[index])
        return kind if kind >= 0 and not promotion.heads[kind].isdisjoint(pattern) else -1

    return collect_ablations(bases, base_of, removed, sums, None if promotion is None else kind_of)


# The codes of the two position sets, as numbers to compare arrays with.
METRIC, WINDOW = POSITION_CODES[PositionSet.METRIC], POSITION_CODES[PositionSet.WINDOW]


class PassBatch:
    """A batch of patched passes, of any jobs of one model under one graph.

    Args:
        bases: activations that the passes are computed from, by differences.
        base_of: per pass, the index of its base. Passes of one base stand together.
        removed: per pass, the edges of its base circuit that it lacks.
        removes_most: whether these are most of the edges into their receivers.
        linears: linear maps of a precision policy; None for full precision.
    """

    def __init__(
        self,
        bases: Sequence[BaseActivations],
        base_of: Index,
        removed: Sequence[Sequence[int]],
        removes_most: bool = False,
        linears: QuantizedLinears | None = None,
    ) -> None:
        self.bases, self.base_of, self.linears = bases, base_of, linears
        self.weights, self.graph = bases[0].weights, bases[0].circuit.graph
        # Which matrices of heads passes use unless they promote the head.
        self.precision = BOTH_EXACT if linears is None else BOTH_QUANTIZED
        self.promotion = None if linears is None else linears.promotion(self.graph, removed)
        if linears is None:
            self.ablations = collect_ablations(
                bases, base_of, removed, sum_ablations_by_complement if removes_most else sum_ablations
            )
        else:
            self.ablations = collect_quantized_ablations(bases, base_of, removed, self.promotion)
        # Which edges each base circuit keeps: bool, [bases, edges].
        self.kept = np.stack([base.circuit.kept for base in bases])
        # `LivenessPlan.sender_codes` and `receiver_codes`: [bases, senders] and [bases, receivers].
        self.sender_codes = np.stack([base.plan.sender_codes for base in bases])
        self.receiver_codes = np.stack([base.plan.receiver_codes for base in bases])
        self.one_job = all(base.unpatched is bases[0].unpatched for base in bases)
        # Number of packed tokens by base and code (see `POSITION_CODES`), [bases, 3].
        self._counts = np.array(
            [[0, *(base.tokens.count(position_set) for position_set in POSITION_CODES)] for base in bases],
            dtype=np.int64,
        )
        self._first_pass = np.flatnonzero(np.diff(base_of, prepend=-1))
        self._known_counts: dict[int, Index] = {}
        # By id of the merged variants, which are held so that their ids stay their own.
        self._bases_by_merged: dict[int, tuple[MergedVariants, tuple[list[int], Index]]] = {}

    def __len__(self) -> int:
        """Returns the number of passes."""
        return len(self.base_of)

    def heads(self, layer: int) -> list[int]:
        """Returns the heads of a layer that are live under any base, as sender indices."""
        first = self.graph.head(layer, 0)
        live = self.sender_codes[:, first : first + self.graph.heads].any(0)
        return (np.flatnonzero(live) + first).tolist()

    def is_live(self, sender: int) -> bool:
        """Tells whether a sender is live under any base."""
        return bool(self.sender_codes[:, sender].any())

    def where_live(self, sender: int, variant: Index) -> Index:
        """Returns the variants of passes under whose base the sender is live, -1 for the others: [passes]."""
        live = self.sender_codes[:, sender] > 0
        return variant if live.all() else np.where(live[self.base_of], variant, -1)

    def counts(self, receiver: int) -> Index:
        """Returns the number of tokens at a receiver by base; 0 where the receiver is not live."""
        counts = self._known_counts.get(receiver)
        if counts is None:
            counts = self._counts[np.arange(len(self.bases)), self.receiver_codes[:, receiver]]
            self._known_counts[receiver] = counts
        return counts

    def sizes(self, merged: MergedVariants, receiver: int) -> Index:
        """Returns the number of tokens of merged variants at a receiver: [V]."""
        return self.counts(receiver)[self.base_of[merged.first]]

    def pays_to_compose(self, receiver: int) -> NDArray[np.bool_]:
        """Returns `BaseActivations.pays_to_compose` by pass: bool, [passes]."""
        return np.array([base.pays_to_compose(receiver) for base in self.bases])[self.base_of]

    def by_base(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tells by base whether any of its passes has a flag: bool, [..., bases] for [..., passes]."""
        any_pass: NDArray[np.bool_] = np.logical_or.reduceat(flags, self._first_pass, axis=-1)
        return any_pass

    def merged(self, columns: Sequence[Index]) -> MergedVariants | None:
        """Groups passes by the variants of several inputs (see `variants.merge`) and by what they promote."""
        promotion = self.promotion
        return merge([*columns, promotion.column(columns)] if promotion is not None and columns else columns)

    def inputs(self, receiver: int, merged: MergedVariants) -> Hashable:
        """Returns a key. Receivers have equal inputs under the bases of merged variants if keys are equal."""
        return tuple(self.bases[number].input_key(receiver) for number in self._bases_of(merged)[0])

    def of_bases(self, merged: MergedVariants, value: Callable[[BaseActivations], Tensor]) -> Tensor:
        """Returns the value of each merged variant's base, in the layout of `VariantValues`.

        If all variants have the same value, it is returned once: [1, ...].
        """
        numbers, index = self._bases_of(merged)
        tensors = [value(self.bases[number]) for number in numbers]
        first = tensors[0]
        if all(tensor is first for tensor in tensors):
            return first[None]
        if all(len(tensor) == len(first) for tensor in tensors):
            return torch.stack(tensors)[as_tensor(index, first.device)]
        return torch.cat([tensors[i] for i in index.tolist()])[None]

    def add_of_bases(
        self, x: Tensor, merged: MergedVariants, value: Callable[[BaseActivations], Tensor], alpha: int = 1
    ) -> Tensor:
        """Adds alpha times the value of each merged variant's base to ``x``, in place; returns the sum."""
        numbers, index = self._bases_of(merged)
        if not x.is_cpu or len(numbers) == 1:
            return x.add_(self.of_bases(merged, value), alpha=alpha)
        # On CPUs, added in place: no copy is made for each variant.
        flat, begin, tensors = x.flatten(0, 1), 0, [value(self.bases[number]) for number in numbers]
        for first, last in runs(index):
            tensor = tensors[index[first]]
            end = begin + (last - first) * len(tensor)
            flat[begin:end].view(last - first, *tensor.shape).add_(tensor, alpha=alpha)
            begin = end
        return x

    def _bases_of(self, merged: MergedVariants) -> tuple[list[int], Index]:
        """Returns the bases of merged variants, and for each variant the index of its base among them."""
        if id(merged) not in self._bases_by_merged:
            order: dict[int, int] = {}
            bases = self.base_of[merged.first].tolist()
            index = np.array([order.setdefault(number, len(order)) for number in bases])
            self._bases_by_merged[id(merged)] = merged, (list(order), index)
        return self._bases_by_merged[id(merged)][1]
