"""The computational graph of a model, and the parts of a circuit in it: edges, verdicts, a metric.

Senders (``input``, ``a0.h1``, ``m0``) write into the residual stream, receivers (``a5.h5<q>``, ``m0``,
``logits``) read from it, and an edge leads from one to the other. ``extra`` of a class holds keys of a
circuit file that this version does not know, so that saving keeps them; it has no part in comparisons.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from pahq_client.checks import integer
from pahq_client.errors import InvalidRequest

Extra: TypeAlias = tuple[tuple[str, Any], ...]

# Without leading zeros, so that a node has one name only, and short, since Python refuses very long numbers.
_NUMBER = r"(?:0|[1-9]\d{0,5})"
_SENDER = re.compile(rf"input|a{_NUMBER}\.h{_NUMBER}|m{_NUMBER}", re.ASCII)
_RECEIVER = re.compile(rf"a{_NUMBER}\.[hg]{_NUMBER}<[qkv]>|m{_NUMBER}|logits", re.ASCII)

# A head and a receiver of attention, with any number of digits that Python reads.
_HEAD = re.compile(r"a(\d{1,9})\.h(\d{1,9})", re.ASCII)
_UNIT = re.compile(r"a(\d{1,9})\.([hg])(\d{1,9})<([qkv])>", re.ASCII)
_MLP = re.compile(r"m(\d{1,9})", re.ASCII)

# The most layers, heads or key/value heads, far beyond any model. Larger numbers come from damage or malice,
# and could take all memory.
MOST_UNITS = 10_000
# The most edges of a graph that are listed, which takes some gigabytes. Servers also work with larger graphs.
MOST_LISTED = 20_000_000


def is_sender(name: str) -> bool:
    """Whether the name has the form of a sender, for example ``a0.h1``."""
    return _SENDER.fullmatch(name) is not None


def is_receiver(name: str) -> bool:
    """Whether the name has the form of a receiver, for example ``a5.h5<q>``."""
    return _RECEIVER.fullmatch(name) is not None


def node_kind(node: str) -> str:
    """What a sender or ``logits`` is: ``input``, ``head``, ``mlp`` or ``logits``."""
    return node if node in ("input", "logits") else "head" if _HEAD.fullmatch(node) else "mlp"


def node_order(node: str) -> tuple[int, int, int]:
    """Sorts nodes in the order in which the model computes them: ``input`` first, ``logits`` last."""
    match = _HEAD.fullmatch(node) or _MLP.fullmatch(node)
    if match is None:
        return (-1, 0, 0) if node == "input" else (1 << 30, 0, 0)
    is_mlp = match.re is _MLP
    return int(match[1]), int(is_mlp), 0 if is_mlp else int(match[2])


def head_of(sender: str) -> int | None:
    """The head that a sender is; None for all others."""
    match = _HEAD.fullmatch(sender)
    return int(match[2]) if match else None


def layer_of(name: str) -> int | None:
    """The layer of a sender or receiver; None for ``input`` and ``logits``."""
    match = _HEAD.fullmatch(name) or _UNIT.fullmatch(name) or _MLP.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Edge:
    """A kept edge; ``str(edge)`` is its name, for example ``a0.h1->a5.h5<q>``.

    Args:
        source: the sender, for example ``a0.h1``.
        target: the receiver, for example ``a5.h5<q>``.
        score: how much the metric changed when the edge was tested; None if it never was.
    """

    source: str
    target: str
    score: float | None = None
    extra: Extra = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"

    @property
    def layer(self) -> int | None:
        """The layer that the edge leads into; None for ``logits``."""
        return layer_of(self.target)

    @property
    def head(self) -> int | None:
        """The head that the edge leads into; None for an MLP, ``logits`` and a shared key or value."""
        match = _UNIT.fullmatch(self.target)
        return int(match[3]) if match and match[2] == "h" else None

    @property
    def group(self) -> int | None:
        """The key/value head that the edge leads into, where several heads share it; else None."""
        match = _UNIT.fullmatch(self.target)
        return int(match[3]) if match and match[2] == "g" else None

    @property
    def kind(self) -> str:
        """What the edge leads into: ``q``, ``k``, ``v``, ``mlp`` or ``logits``."""
        match = _UNIT.fullmatch(self.target)
        return match[4] if match else "logits" if self.target == "logits" else "mlp"

    @property
    def source_layer(self) -> int | None:
        """The layer that the edge comes from; None for ``input``."""
        return layer_of(self.source)

    @property
    def source_head(self) -> int | None:
        """The head that the edge comes from; None for ``input`` and an MLP."""
        return head_of(self.source)

    @property
    def source_kind(self) -> str:
        """What the edge comes from: ``input``, ``head`` or ``mlp``."""
        return node_kind(self.source)

    @classmethod
    def parse(cls, name: str) -> Edge:
        """The edge of a name. Raises InvalidRequest if it is not of the form sender->receiver."""
        source, arrow, target = name.partition("->")
        if not arrow or not is_sender(source) or not is_receiver(target):
            raise InvalidRequest("edge", f"{name!r} is not of the form sender->receiver")
        return cls(source, target)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one test of an edge, a group of edges or a gate.

    Args:
        subject: the edge; for a gate the receiver; for a group its first and its last edge with `` ... ``
            between them: all edges from one to the other, in the order of ACDC's tests, that were left.
        delta: how much the metric changed when the edge, the group or the gate was removed; positive is
            worse.
        kept: whether it stays. A group that stays is tested again in halves, down to single edges.
        gate: whether all incoming edges of one receiver were tested at once.
        size: how many edges the group has; 1 if this is none.
    """

    subject: str
    delta: float
    kept: bool
    gate: bool = False
    extra: Extra = field(default=(), compare=False, repr=False)
    size: int = 1

    @property
    def of_one_edge(self) -> bool:
        """Whether it decides a single edge."""
        return not self.gate and self.size == 1


@dataclass(frozen=True)
class Graph:
    """The graph that a circuit is part of.

    Args:
        layers: number of transformer layers.
        heads: query heads per layer.
        kv_heads: key/value heads per layer.
        kv_receivers: ``group`` for one k and one v receiver per key/value head, ``query`` for one per
            query head.
        parallel: whether attention and MLP of a layer run in parallel.
        mlps: whether layers have an MLP.
    """

    layers: int
    heads: int
    kv_heads: int
    kv_receivers: str
    parallel: bool
    mlps: bool = True
    extra: Extra = field(default=(), compare=False, repr=False)

    def same_as(self, other: Graph) -> bool:
        """Whether equal names of edges mean the same in both.

        Where every head has keys and values of its own, ``kv_receivers`` makes no difference.
        """
        alike = replace(other, kv_receivers=self.kv_receivers) if self.heads == self.kv_heads else other
        return self == alike

    def __str__(self) -> str:
        parts = [f"{self.layers} layers", f"{self.heads} heads", f"{self.kv_heads} key/value heads"]
        parts += [f"kv_receivers {self.kv_receivers!r}"] if self.heads != self.kv_heads else []
        parts += ["attention and MLP in parallel"] if self.parallel else []
        parts += [] if self.mlps else ["no MLPs"]
        return ", ".join(parts)

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "kv_heads"):
            number = integer(f"graph.{name}", getattr(self, name))
            if not 0 <= number <= MOST_UNITS:
                raise InvalidRequest(f"graph.{name}", f"must be from 0 to {MOST_UNITS}, got {number}")

    @property
    def num_edges(self) -> int:
        """The number of edges of the full graph, without listing them."""
        senders, edges = 1, 0
        receivers = sum(count for _, _, count in self._attention_units())
        for _ in range(self.layers):
            edges += receivers * senders
            if self.mlps:
                edges += senders if self.parallel else senders + self.heads
            senders += self.heads + self.mlps
        return edges + senders

    def group_heads(self, group: int) -> range:
        """The query heads that a key/value head feeds."""
        size = self.heads // max(self.kv_heads, 1)
        return range(group * size, (group + 1) * size)

    def edge_names(self) -> Iterator[str]:
        """All edges of the full graph: receivers from first to last, into each the earliest sender first.

        Backwards this is the order in which ACDC tests edges.

        Raises:
            InvalidRequest: there are too many to be listed.
        """
        self.check_listable()
        return (f"{sender}->{receiver}" for sender, receiver in self._edges())

    def edges(self) -> Iterator[tuple[str, str]]:
        """All edges of the full graph as (sender, receiver), in the order of `edge_names`.

        Each node's name is one object, however many edges it has. Raises as `edge_names`.
        """
        self.check_listable()
        return self._edges()

    def senders(self) -> Iterator[str]:
        """All senders of the full graph, in the order in which the model computes them."""
        yield "input"
        for layer in range(self.layers):
            yield from (f"a{layer}.h{head}" for head in range(self.heads))
            if self.mlps:
                yield f"m{layer}"

    def receivers(self) -> Iterator[str]:
        """All receivers of the full graph, in the order in which the model computes them."""
        for layer in range(self.layers):
            yield from self._attention_receivers(layer)
            if self.mlps:
                yield f"m{layer}"
        yield "logits"

    def sender_counts(self) -> Iterator[int]:
        """For each of `receivers`, how many senders it has: the first ones of `senders`."""
        senders = 1
        for _ in range(self.layers):
            yield from (senders for _, _, count in self._attention_units() for _ in range(count))
            if self.mlps:
                yield senders if self.parallel else senders + self.heads
            senders += self.heads + self.mlps
        yield senders

    def senders_behind(self, receiver: str) -> tuple[str, ...]:
        """The senders that read a receiver: a head, the heads of a group, an MLP, none for ``logits``."""
        match = _UNIT.fullmatch(receiver)
        if match is None:
            return () if receiver == "logits" else (receiver,)
        layer, letter, unit, _ = match.groups()
        heads = self.group_heads(int(unit)) if letter == "g" else (int(unit),)
        return tuple(f"a{layer}.h{head}" for head in heads)

    def check_listable(self) -> None:
        """Raises InvalidRequest if there are too many edges to be listed."""
        if self.num_edges > MOST_LISTED:
            raise InvalidRequest(
                "graph", f"has {self.num_edges} edges; at most {MOST_LISTED} can be listed by their names"
            )

    def _edges(self) -> Iterator[tuple[str, str]]:
        senders = ["input"]
        for layer in range(self.layers):
            heads = [f"a{layer}.h{head}" for head in range(self.heads)]
            mlp = [f"m{layer}"] if self.mlps else []
            for receiver in self._attention_receivers(layer):
                yield from ((sender, receiver) for sender in senders)
            for receiver in mlp:
                earlier = senders if self.parallel else senders + heads
                yield from ((sender, receiver) for sender in earlier)
            senders += heads + mlp
        yield from ((sender, "logits") for sender in senders)

    def _attention_receivers(self, layer: int) -> Iterator[str]:
        for kind, letter, count in self._attention_units():
            yield from (f"a{layer}.{letter}{unit}<{kind}>" for unit in range(count))

    def _attention_units(self) -> Iterator[tuple[str, str, int]]:
        """The receivers of a layer's attention: q, k or v; h of heads or g of groups; how many."""
        shared = self.kv_receivers == "group" and self.kv_heads < self.heads
        for kind in "qkv":
            yield (kind, "g", self.kv_heads) if shared and kind != "q" else (kind, "h", self.heads)


@dataclass(frozen=True)
class CircuitMetric:
    """A metric, measured on the circuit, the full model and the empty circuit. Lower is better.

    Args:
        name: name of the metric, for example ``kl_divergence``.
        value: the metric of the circuit.
        full: the metric of the full model.
        empty: the metric of the empty circuit, in which every edge is ablated.

    A value is NaN where a partial circuit does not know it.
    """

    name: str
    value: float
    full: float
    empty: float
    extra: Extra = field(default=(), compare=False, repr=False)

    @property
    def faithfulness(self) -> float | None:
        """How much of the way from the empty circuit (0) to the full model (1) the circuit goes.

        It is (value - empty) / (full - empty); None where the full model and the empty circuit measure the
        same, so that there is no way to go.
        """
        way = self.full - self.empty
        share = (self.value - self.empty) / way if way else math.nan
        return share + 0.0 if math.isfinite(share) else None  # never -0.0


def edges_on_paths(edges: Sequence[Edge], graph: Graph) -> tuple[Edge, ...]:
    """The edges on a path from ``input`` to ``logits``, in their order.

    A path goes on from a receiver to each sender that reads it: from ``a1.h2<q>`` to ``a1.h2``, from
    ``a1.g0<k>`` to every head of the group, from ``m1`` to itself.
    """
    # Nodes are prefixed, since an MLP is a receiver and a sender of one name.
    following: dict[str, list[str]] = defaultdict(list)
    leading: dict[str, list[str]] = defaultdict(list)
    arrows = [(f"s:{edge.source}", f"r:{edge.target}") for edge in edges]
    inner = (
        (f"r:{receiver}", f"s:{sender}")
        for sender in {edge.source for edge in edges}
        for receiver in _read_by(sender, graph)
    )
    for start, end in (*arrows, *inner):
        following[start].append(end)
        leading[end].append(start)
    reached, used = _reachable("s:input", following), _reachable("r:logits", leading)
    pairs = zip(edges, arrows, strict=True)
    return tuple(edge for edge, (start, end) in pairs if start in reached and end in used)


def _read_by(sender: str, graph: Graph) -> Iterator[str]:
    """The receivers that a sender reads."""
    match = _HEAD.fullmatch(sender)
    if match is None:
        if sender != "input":
            yield sender  # an MLP
        return
    layer, head = int(match[1]), int(match[2])
    size = graph.heads // max(graph.kv_heads, 1)
    yield from (f"a{layer}.h{head}<{kind}>" for kind in "qkv")
    if size:
        yield from (f"a{layer}.g{head // size}<{kind}>" for kind in "kv")


def _reachable(start: str, arrows: Mapping[str, Iterable[str]]) -> set[str]:
    reached, pending = {start}, [start]
    while pending:
        for node in arrows.get(pending.pop(), ()):
            if node not in reached:
                reached.add(node)
                pending.append(node)
    return reached
