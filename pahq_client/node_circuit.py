"""Circuits of nodes: which heads, neurons, blocks and layers of a model suffice for a task."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from pahq_client import checks, files, node_circuit_file
from pahq_client.edge_index import edge_index
from pahq_client.errors import InvalidNodeCircuitFile, InvalidRequest, OtherModel
from pahq_client.formatting import count_warnings, one_line
from pahq_client.graph import CircuitMetric, Graph
from pahq_client.node_layout import KIND_NAMES, NodeLayout, checked_kind
from pahq_client.results import WithProvenance, check_same_revision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.circuit import Circuit


@dataclass(frozen=True)
class NodeFigures:
    """How a circuit of nodes does, as means over prompts and metric positions.

    Args:
        kl: KL divergence from the full model, in nats.
        exact_match: share where its likeliest token is the full model's.
        logit_difference: answer minus wrong answer; None for a task without these.
        accuracy: share where the answer is above the wrong answer; None as well.
    """

    kl: float
    exact_match: float
    logit_difference: float | None = None
    accuracy: float | None = None

    def __str__(self) -> str:
        parts = [f"KL {self.kl:.4g}", f"exact match {self.exact_match:.1%}"]
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.1%}")
        if self.logit_difference is not None:
            parts.append(f"logit difference {self.logit_difference:.4g}")
        return ", ".join(parts)


@dataclass(frozen=True, eq=False, repr=False)
class NodeCircuit(WithProvenance):
    """The nodes that node pruning keeps (arXiv:2512.10903).

    Two node circuits are equal when their canonical bytes are.

    Args:
        layout: which nodes the model has.
        graph: of the model's heads and MLPs.
        kinds: that were pruned. Nodes of other kinds are kept with what contains them.
        kept: per kind, which nodes are kept: bool, [layers, nodes of a layer]. Attention neurons go by head.
        trained: the same of the circuit that training found, before anything was measured.
        log_alpha: logits of all gates after training: float32, [nodes].
        figures: of the circuit; None for a job that did not come to its end.
        trained_figures: of the circuit that training found; None as well.
        full: of the full model under the same precision; None as well.
        kept_parameters: how many weights the nodes of a circuit use, biases, norms and embeddings left out:
            ``kept``, ``trained``, and ``all`` of the model.
        stochastic_kl: mean KL divergence of the last steps of training, whose gates were random; None where
            no step was made.
        budget: the most KL divergence that was allowed; None where a penalty was given.
        penalty: the weight of all penalties; None where there was a budget.
        steps: of training.
        polished: whether whatever can go by measurement has gone.
        repaired: whether gates were opened again, since what training found was over the budget.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    layout: NodeLayout
    graph: Graph
    kinds: tuple[str, ...]
    kept: Mapping[str, NDArray[np.bool_]]
    trained: Mapping[str, NDArray[np.bool_]]
    log_alpha: NDArray[np.float32]
    figures: NodeFigures | None
    trained_figures: NodeFigures | None
    full: NodeFigures | None
    kept_parameters: Mapping[str, int]
    stochastic_kl: float | None
    budget: float | None
    penalty: float | None
    steps: int
    polished: bool
    repaired: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    @property
    def counts(self) -> Mapping[str, tuple[int, int]]:
        """Per kind that the model has, how many nodes are kept, and how many there are."""
        return {kind: (int(mask.sum()), mask.size) for kind, mask in self.kept.items() if mask.size}

    @property
    def heads(self) -> tuple[str, ...]:
        """The kept heads, such as ``a3.h5``."""
        return self.nodes("heads")

    @property
    def mlps(self) -> tuple[str, ...]:
        """The MLPs of which something is kept, such as ``m2``."""
        return self.nodes("mlp_blocks")

    @checks.known_arguments
    def nodes(self, kind: str, *, trained: bool = False) -> tuple[str, ...]:
        """Returns the names of the kept nodes of a kind, layer by layer.

        Args:
            kind: ``heads`` (``a3.h5``), ``attention_neurons`` (``a3.h5.n17``), ``mlp_hidden`` (``m2.u103``),
                ``mlp_outputs`` (``m2.o5``), ``attention_blocks`` (``a3``), ``mlp_blocks`` (``m2``) or
                ``layers`` (``layer 3``).
            trained: whether to name those of the circuit that training found instead.

        Raises:
            InvalidRequest: there is no such kind.
        """
        masks = self.trained if checks.flag("trained", trained) else self.kept
        return self.layout.names(kind, masks[checked_kind("kind", kind)])

    def nodes_per_layer(self) -> list[dict[str, int]]:
        """Returns for each layer how many nodes of each kind are kept."""
        sums = {kind: mask.sum(1).tolist() for kind, mask in self.kept.items() if mask.size}
        return [{kind: sums[kind][layer] for kind in sums} for layer in range(self.layout.layers)]

    def to_circuit(self) -> Circuit:
        """Returns the edges between the kept heads and MLPs, to search in with ``discover(within=...)``.

        Of a key or value that several heads share, edges are kept if one of these heads is.

        Raises:
            InvalidRequest: the graph has too many edges to be listed.
        """
        import numpy as np

        # Imported here, since it imports much that node circuits do not need.
        from pahq_client.circuit import Circuit

        index, nodes = edge_index(self.graph), {"input", "logits", *self.heads, *self.mlps}
        senders = np.array([sender in nodes for sender in index.senders])
        receivers = np.array(
            [
                receiver == "logits" or any(index.senders[sender] in nodes for sender in feeds)
                for receiver, feeds in zip(index.receivers, index.feeds, strict=True)
            ]
        )
        kept = senders[index.sender_of] & receivers[index.receiver_of]
        return Circuit(
            edges=index.scored(kept, np.full(index.num_edges, math.nan)),
            graph=self.graph,
            metric=CircuitMetric("kl_divergence", math.nan, math.nan, math.nan),
            num_evaluations=0,
            num_edges_total=index.num_edges,
            provenance=self.provenance,
        )

    @checks.known_arguments
    def compare(self, other: NodeCircuit, *, allow_other_model: bool = False) -> Mapping[str, NodeOverlap]:
        """Compares the nodes of two circuits, kind by kind: this one is a, the other is b.

        Args:
            other: the other circuit.
            allow_other_model: whether they may have been found in different models of the same sizes.

        Raises:
            InvalidRequest: the other is no NodeCircuit.
            OtherModel: they are of different models, and that is not allowed, or of other sizes.
        """
        if not isinstance(other, NodeCircuit):
            hint = "; read a file with NodeCircuit.load" if isinstance(other, str | os.PathLike) else ""
            raise InvalidRequest("other", f"must be a NodeCircuit, got {type(other).__name__}{hint}")
        check_same_revision(self, other, checks.flag("allow_other_model", allow_other_model))
        if self.layout != other.layout:
            raise OtherModel(self.model_revision, other.model_revision, "these are of models of other sizes")
        pairs = ((kind, mask, other.kept[kind]) for kind, mask in self.kept.items() if mask.size)
        return {
            kind: NodeOverlap(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()))
            for kind, a, b in pairs
        }

    @classmethod
    @checks.known_arguments
    def load(cls, path: str | os.PathLike[str], *, allow_partial: bool = False) -> NodeCircuit:
        """Reads a file of a node circuit.

        Args:
            path: path of the file.
            allow_partial: whether to read what a job found that did not come to its end.

        Raises:
            InvalidNodeCircuitFile: it is not such a file, is damaged or has an unknown version, or is partial
                without ``allow_partial``.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        name = files.path_text("path", path)
        circuit = node_circuit_file.decode(files.read(path), name)
        if circuit.partial and not allow_partial:
            detail = "holds what a job found that did not come to its end, and nothing of it was measured"
            hint = "Pass allow_partial=True (pahq --allow-partial) to use it anyway"
            raise InvalidNodeCircuitFile(name, f"{detail}. {hint}")
        return circuit

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the circuit to a file, whole or not at all: a safetensors file with its provenance.

        Raises:
            InvalidNodeCircuitFile: the provenance holds what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, node_circuit_file.encode(self, files.path_text("path", path)))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that shows which nodes each layer keeps: one file, without scripts or any network.

        Raises:
            InvalidRequest: the path is none, is that of a folder, or cannot be written to.
            OSError: the file cannot be written.
        """
        from pahq_client.display import nodes, page

        page.check_target("path", path)
        files.write(path, nodes.page(self).encode("utf-8"))

    @overload
    def to_svg(self, path: None = None) -> str: ...
    @overload
    def to_svg(self, path: str | os.PathLike[str]) -> None: ...
    def to_svg(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """A picture of the kept heads and MLPs, layer by layer; the same text for the same circuit.

        Returns the text if there is no path to write it to, else None.

        Raises:
            InvalidRequest: the model has too many heads to be drawn, or the path cannot be written to.
            OSError: the file cannot be written.
        """
        from pahq_client.display import node_picture

        return files.text_or_file(node_picture.static(self), path)

    def canonical_bytes(self) -> bytes:
        """The file without ``provenance.run``: equal for two equal jobs on the same hardware.

        Raises:
            InvalidNodeCircuitFile: the provenance holds what JSON cannot express.
        """
        return node_circuit_file.encode(self, "node circuit", run=False)

    def summary(self) -> str:
        """Says in one line what is kept."""
        shown = [f"{kept} of {count} {KIND_NAMES[kind]}" for kind, (kept, count) in self.counts.items()]
        share = self.kept_parameters["kept"] / max(1, self.kept_parameters["all"])
        parts = [*shown, f"{share:.1%} of the weights"]
        if self.figures is not None:
            parts.append(str(self.figures))
        if self.model:
            parts.append(f"model {one_line(self.model)}")
        parts += ["partial"] if self.partial else []
        return ", ".join([*parts, *count_warnings(self.warnings)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeCircuit):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"NodeCircuit({self.summary()})"

    def _repr_html_(self) -> str:
        from pahq_client.display import nodes

        return nodes.notebook_html(self)


@dataclass(frozen=True)
class NodeOverlap:
    """How many nodes of one kind two circuits share.

    Args:
        both: in both.
        only_a, only_b: in one of them.
    """

    both: int
    only_a: int
    only_b: int

    @property
    def jaccard(self) -> float:
        """Shared nodes as a share of all; 1 where neither has any."""
        union = self.both + self.only_a + self.only_b
        return self.both / union if union else 1.0
