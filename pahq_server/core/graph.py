"""The computational graph: senders, receivers, edges, and their names.

Indices (invariants that the whole server relies on):

- Senders are numbered in the order in which the model computes them: ``input`` is 0, then per layer
  the heads 0 … H-1 and, if the model has MLPs, the MLP. The senders upstream of a receiver are
  therefore always the first ``upstream(r)`` ones.
- Receivers are numbered per layer: q of heads 0 … H-1, k of units 0 … K-1, v of units 0 … K-1, the
  MLP; ``logits`` is last. The receivers downstream of a sender are therefore always the last ones.
  K is `Graph.kv_units`: a unit is a key/value head or a query head, as ``kv_receivers`` says.
- Edge ``offsets[r] + s`` leads from sender ``s`` to receiver ``r``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.errors import InvalidRequestError

ReceiverKind = Literal["q", "k", "v", "mlp", "logits"]
KvReceivers = Literal["group", "query"]

INPUT = 0
# Few digits: Python refuses to read very long numbers.
_SENDER = re.compile(r"input|a(\d{1,9})\.h(\d{1,9})|m(\d{1,9})")
_RECEIVER = re.compile(r"a(\d{1,9})\.([hg])(\d{1,9})<([qkv])>|m(\d{1,9})|logits")


class Receiver(NamedTuple):
    """What a receiver index stands for. ``unit`` is the head (q), the key/value unit (k, v), or else 0."""

    kind: ReceiverKind
    layer: int
    unit: int


@dataclass(frozen=True)
class Graph:
    """The computational graph of one model. ``kv_receivers`` says how shared key/value heads are treated.

    Args:
        layers: number of transformer layers, L.
        heads: query heads per layer, H.
        kv_heads: key/value heads per layer, G; divides H.
        kv_receivers: ``group`` for one k and one v receiver per key/value head, ``query`` for one
            per query head.
        parallel: attention and MLP of a layer read the same residual stream, so that a head does
            not feed the MLP of its own layer.
        mlps: whether layers have an MLP.
    """

    layers: int
    heads: int
    kv_heads: int
    kv_receivers: KvReceivers = "group"
    parallel: bool = False
    mlps: bool = True

    @property
    def kv_units(self) -> int:
        """Number of k receivers per layer, K; there are as many v receivers."""
        return self.kv_heads if self.kv_receivers == "group" else self.heads

    @property
    def senders_per_layer(self) -> int:
        return self.heads + self.mlps

    @property
    def receivers_per_layer(self) -> int:
        return self.heads + 2 * self.kv_units + self.mlps

    @property
    def num_senders(self) -> int:
        return 1 + self.layers * self.senders_per_layer

    @property
    def num_receivers(self) -> int:
        return self.layers * self.receivers_per_layer + 1

    @property
    def logits(self) -> int:
        """Index of the receiver ``logits``."""
        return self.num_receivers - 1

    @property
    def num_edges(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First edge of each receiver, and the number of edges at the end: shape [receivers + 1]."""
        return np.concatenate([[0], np.cumsum(self._fan_in)]).astype(np.int64)

    # Senders

    def head(self, layer: int, head: int) -> int:
        return 1 + layer * self.senders_per_layer + head

    def mlp(self, layer: int) -> int:
        """Sender index of an MLP; only for graphs with MLPs."""
        return 1 + layer * self.senders_per_layer + self.heads

    def first_sender(self, layer: int) -> int:
        """Number of senders in the layers below, input included."""
        return 1 + layer * self.senders_per_layer

    def first_receiver(self, sender: int) -> int:
        """The earliest receiver that the sender feeds; it feeds all later ones, too."""
        if sender == INPUT:
            return 0
        layer, unit = divmod(sender - 1, self.senders_per_layer)
        feeds_own_mlp = unit < self.heads and self.mlps and not self.parallel
        return (layer + 1) * self.receivers_per_layer - (1 if feeds_own_mlp else 0)

    # Receivers

    def receiver(self, index: int) -> Receiver:
        return self._receivers[index]

    @cached_property
    def _receivers(self) -> tuple[Receiver, ...]:
        kinds: list[tuple[ReceiverKind, int]]
        kinds = [("q", self.heads), ("k", self.kv_units), ("v", self.kv_units), ("mlp", int(self.mlps))]
        inner = [
            Receiver(kind, layer, unit)
            for layer in range(self.layers)
            for kind, width in kinds
            for unit in range(width)
        ]
        return (*inner, Receiver("logits", self.layers, 0))

    def receiver_of(self, kind: ReceiverKind, layer: int, unit: int = 0) -> int:
        """Inverse of `receiver`."""
        if kind == "logits":
            return self.logits
        start = {
            "q": 0,
            "k": self.heads,
            "v": self.heads + self.kv_units,
            "mlp": self.heads + 2 * self.kv_units,
        }
        return layer * self.receivers_per_layer + start[kind] + unit

    def upstream(self, receiver: int) -> int:
        """How many senders feed the receiver: exactly those with index below it."""
        return self._fan_in[receiver]

    @cached_property
    def _fan_in(self) -> tuple[int, ...]:
        own = 0 if self.parallel else self.heads
        return tuple(
            self.first_sender(layer) + (own if kind == "mlp" else 0) for kind, layer, _ in self._receivers
        )

    def unit_heads(self, unit: int) -> range:
        """The query heads that a k or v receiver feeds."""
        per_unit = self.heads // self.kv_units
        return range(unit * per_unit, (unit + 1) * per_unit)

    def senders_behind(self, receiver: int) -> tuple[int, ...]:
        """The senders whose output depends on the receiver within its own layer; () for logits."""
        kind, layer, unit = self.receiver(receiver)
        if kind == "logits":
            return ()
        if kind == "mlp":
            return (self.mlp(layer),)
        heads = (unit,) if kind == "q" else self.unit_heads(unit)
        return tuple(self.head(layer, h) for h in heads)

    def heads_behind(self, receiver: int) -> tuple[int, ...]:
        """The heads that read a receiver's value, by sender index; () unless it is a query, key or value."""
        return () if self.receiver(receiver).kind == "mlp" else self.senders_behind(receiver)

    def head_receivers(self, head: int) -> tuple[int, int, int]:
        """The q, k and v receivers of a head, by sender index."""
        layer, unit = divmod(head - 1, self.senders_per_layer)
        kv = unit * self.kv_units // self.heads
        first = layer * self.receivers_per_layer
        return first + unit, first + self.heads + kv, first + self.heads + self.kv_units + kv

    # Edges

    def edge(self, sender: int, receiver: int) -> int:
        return int(self.offsets[receiver]) + sender

    def edge_ends(self, edge: int) -> tuple[int, int]:
        """(sender, receiver) of an edge."""
        receiver = int(np.searchsorted(self.offsets, edge, side="right")) - 1
        return edge - int(self.offsets[receiver]), receiver

    def outgoing(self, sender: int) -> NDArray[np.int64]:
        """All edges that leave a sender."""
        return self.offsets[self.first_receiver(sender) : -1] + sender

    @cached_property
    def head_edges(self) -> NDArray[np.bool_]:
        """Whether each edge leaves a head: bool, shape [num_edges]."""
        senders = np.arange(self.num_edges) - np.repeat(self.offsets[:-1], self._fan_in)
        of_heads: NDArray[np.bool_] = (senders - 1) % self.senders_per_layer < self.heads
        of_heads &= senders != INPUT
        return of_heads

    # Names

    def sender_name(self, sender: int) -> str:
        if sender == INPUT:
            return "input"
        layer, unit = divmod(sender - 1, self.senders_per_layer)
        return f"m{layer}" if unit == self.heads else f"a{layer}.h{unit}"

    def receiver_name(self, receiver: int) -> str:
        kind, layer, unit = self.receiver(receiver)
        if kind == "logits":
            return "logits"
        if kind == "mlp":
            return f"m{layer}"
        letter = "g" if kind != "q" and self.kv_units < self.heads else "h"
        return f"a{layer}.{letter}{unit}<{kind}>"

    def edge_name(self, edge: int) -> str:
        sender, receiver = self.edge_ends(edge)
        return f"{self.sender_name(sender)}->{self.receiver_name(receiver)}"

    def parse_sender(self, name: str) -> int:
        """Index of a sender. Raises InvalidRequestError for a name that is not in the graph."""
        match = _SENDER.fullmatch(name)
        if match is None:
            raise InvalidRequestError("edges", f"{name!r} is not a sender")
        if match[3] is not None:
            sender = self.mlp(int(match[3]))
        else:
            sender = INPUT if match[1] is None else self.head(int(match[1]), int(match[2]))
        # Out-of-range numbers alias other nodes or none: the name must come back unchanged.
        if sender >= self.num_senders or self.sender_name(sender) != name:
            raise InvalidRequestError("edges", f"the graph has no sender {name!r}")
        return sender

    def parse_receiver(self, name: str) -> int:
        """Index of a receiver. Raises InvalidRequestError for a name that is not in the graph."""
        match = _RECEIVER.fullmatch(name)
        if match is None:
            raise InvalidRequestError("edges", f"{name!r} is not a receiver")
        if match[5] is not None:
            receiver = self.receiver_of("mlp", int(match[5]))
        elif match[1] is None:
            receiver = self.logits
        else:
            receiver = self.receiver_of(match[4], int(match[1]), int(match[3]))  # type: ignore[arg-type]
        if receiver >= self.num_receivers or self.receiver_name(receiver) != name:
            raise InvalidRequestError("edges", f"the graph has no receiver {name!r}")
        return receiver

    def parse_edge(self, name: str) -> int:
        """Index of an edge ``sender->receiver``. Raises InvalidRequestError if there is none."""
        source, arrow, target = name.partition("->")
        if not arrow:
            raise InvalidRequestError("edges", f"{name!r} is not of the form sender->receiver")
        sender, receiver = self.parse_sender(source), self.parse_receiver(target)
        if sender >= self.upstream(receiver):
            raise InvalidRequestError("edges", f"{name!r}: {source} does not come before {target}")
        return self.edge(sender, receiver)
