"""Which nodes a model has for node pruning, what they are called, and what sets of them can be a circuit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pahq_client.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = (
    "heads",
    "attention_neurons",
    "mlp_hidden",
    "mlp_outputs",
    "attention_blocks",
    "mlp_blocks",
    "layers",
)
# What people call them.
KIND_NAMES = {
    "heads": "heads",
    "attention_neurons": "attention neurons",
    "mlp_hidden": "MLP hidden units",
    "mlp_outputs": "MLP outputs",
    "attention_blocks": "attention blocks",
    "mlp_blocks": "MLP blocks",
    "layers": "layers",
}


@dataclass(frozen=True)
class NodeLayout:
    """Which nodes a model has.

    Args:
        layers, heads, d_head, d_model: of the model.
        d_mlp: hidden units of an MLP; 0 for a model without MLPs.
    """

    layers: int
    heads: int
    d_head: int
    d_model: int
    d_mlp: int

    @property
    def per_layer(self) -> Mapping[str, int]:
        """How many nodes of each kind a layer has; 0 for kinds that the model lacks."""
        mlp = int(self.d_mlp > 0)
        counts = (self.heads, self.heads * self.d_head, self.d_mlp, mlp * self.d_model, 1, mlp, 1)
        return dict(zip(KINDS, counts, strict=True))

    @property
    def size(self) -> int:
        """How many nodes there are."""
        return self.layers * sum(self.per_layer.values())

    def split(self, nodes: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
        """Returns views of a set of nodes by kind, [layers, nodes of a layer] each.

        Args:
            nodes: bool, [nodes]: one kind after another in the order of `KINDS`, each layer by layer, the
                attention neurons of a layer by head.
        """
        found, first = {}, 0
        for kind, count in self.per_layer.items():
            last = first + self.layers * count
            found[kind] = nodes[first:last].reshape(self.layers, count)
            first = last
        return found

    def names(self, kind: str, nodes: NDArray[np.bool_]) -> tuple[str, ...]:
        """Returns the names of nodes of one kind, layer by layer.

        They are ``a3.h5`` (a head), ``a3.h5.n17`` (a neuron of its), ``m2.u103`` (a hidden unit of an MLP),
        ``m2.o5`` (an output of it), ``a3`` and ``m2`` (blocks), and ``layer 3``.

        Args:
            kind: of the nodes.
            nodes: bool, [layers, nodes of a layer].

        Raises:
            InvalidRequest: there is no such kind.
        """
        d_head = self.d_head
        forms: Mapping[str, Callable[[int, int], str]] = {
            "heads": lambda layer, node: f"a{layer}.h{node}",
            "attention_neurons": lambda layer, node: f"a{layer}.h{node // d_head}.n{node % d_head}",
            "mlp_hidden": lambda layer, node: f"m{layer}.u{node}",
            "mlp_outputs": lambda layer, node: f"m{layer}.o{node}",
            "attention_blocks": lambda layer, _: f"a{layer}",
            "mlp_blocks": lambda layer, _: f"m{layer}",
            "layers": lambda layer, _: f"layer {layer}",
        }
        form = forms[checked_kind("kind", kind)]
        layers, numbers = (each.tolist() for each in nodes.nonzero())
        return tuple(map(form, layers, numbers))


def checked_kind(field: str, kind: object) -> str:
    """Returns the name of a kind of nodes. Raises InvalidRequest for anything else."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidRequest(field, f"unknown kind of node {kind!r:.60}; one of {', '.join(KINDS)}")
    return kind


def consistent(layout: NodeLayout, nodes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the largest circuit within a set of nodes.

    A part needs all that contains it, a container a part: an attention block a head with at least one neuron,
    an MLP at least one hidden unit and one output, a layer a block.

    Args:
        layout: of the model.
        nodes: bool, [nodes].
    """
    kept = nodes.copy()
    of = layout.split(kept)
    layers, attention, mlp = of["layers"], of["attention_blocks"], of["mlp_blocks"]
    heads, hidden, outputs = of["heads"], of["mlp_hidden"], of["mlp_outputs"]
    neurons = of["attention_neurons"].reshape(layout.layers, layout.heads, layout.d_head)
    # Containers without a part go first, from the smallest on; then parts of what is gone.
    heads &= neurons.any(2)
    attention &= heads.any(1, keepdims=True)
    blocks = attention
    if layout.d_mlp:
        mlp &= hidden.any(1, keepdims=True) & outputs.any(1, keepdims=True)
        blocks = attention | mlp
    layers &= blocks
    attention &= layers
    heads &= attention
    neurons &= heads[:, :, None]
    if layout.d_mlp:
        mlp &= layers
        hidden &= mlp
        outputs &= mlp
    return kept
