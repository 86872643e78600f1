"""Circuits: which edges of the graph are kept, and forward passes under them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.graph import INPUT, Graph


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of kept edges.

    Args:
        graph: the graph that the edges belong to.
        kept: bool, shape [graph.num_edges]; never written to after construction.
    """

    graph: Graph
    kept: NDArray[np.bool_]

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """Keeps every edge."""
        return cls(graph, np.ones(graph.num_edges, dtype=bool))

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """Keeps no edge."""
        return cls(graph, np.zeros(graph.num_edges, dtype=bool))

    @classmethod
    def from_names(cls, graph: Graph, names: Iterable[str]) -> Circuit:
        """Keeps the named edges. Raises InvalidRequestError for a name that is not in the graph."""
        kept = np.zeros(graph.num_edges, dtype=bool)
        kept[[graph.parse_edge(name) for name in names]] = True
        return cls(graph, kept)

    @cached_property
    def key(self) -> bytes:
        """The kept flags as packed bits: equal for equal sets of edges of one graph."""
        return np.packbits(self.kept).tobytes()

    @property
    def num_kept(self) -> int:
        return int(np.count_nonzero(self.kept))

    def without(self, edges: Sequence[int]) -> Circuit:
        """Returns this circuit with these edges removed as well."""
        if not len(edges):
            return self
        kept = self.kept.copy()
        kept[list(edges)] = False
        return Circuit(self.graph, kept)

    def incoming(self, receiver: int) -> NDArray[np.bool_]:
        """Returns the kept flags of a receiver's edges, by sender: bool, shape [upstream(receiver)]."""
        offsets = self.graph.offsets
        return self.kept[offsets[receiver] : offsets[receiver + 1]]

    def on_paths(self) -> NDArray[np.bool_]:
        """Tells which kept edges are on a path from ``input`` to ``logits``: bool, shape [graph.num_edges].

        A path goes on from a receiver to every sender that reads it: from a query to its head, from the key
        or value of a group to all heads of the group.
        """
        graph = self.graph
        # A sender is reached if what it reads depends on the input, and used if the logits depend on it.
        reached, used = np.zeros((2, graph.num_senders), dtype=bool)
        reached[INPUT] = True
        # Receivers come in the order in which the model computes them, each before the senders that read it.
        for receiver in range(graph.num_receivers):
            if (self.incoming(receiver) & reached[: graph.upstream(receiver)]).any():
                reached[list(graph.senders_behind(receiver))] = True
        on_paths = np.zeros_like(self.kept)
        for receiver in reversed(range(graph.num_receivers)):
            if receiver == graph.logits or used[list(graph.senders_behind(receiver))].any():
                incoming = self.incoming(receiver)
                used[: len(incoming)] |= incoming
                start = int(graph.offsets[receiver])
                on_paths[start : start + len(incoming)] = incoming & reached[: len(incoming)]
        return on_paths

    def is_dead(self, sender: int) -> bool:
        """Tells whether no outgoing edge of the sender is kept, so that it cannot change anything."""
        return not self.kept[self.graph.outgoing(sender)].any()


@dataclass(frozen=True)
class EdgeSet:
    """Edges that a client gives by number, with the model that they were found in.

    Args:
        graph: the graph whose edges are numbered; of a client, so its values may be any.
        revision: revision of the model; empty if unknown.
        bits: one bit for each edge in the order of `Graph.edge`, the lowest bit of the first byte first.
    """

    graph: Graph
    revision: str
    bits: bytes

    def stored(self) -> dict[str, Any]:
        """Returns the edges as the values of a JSON object, for the database."""
        bits = base64.b64encode(self.bits).decode("ascii")
        return {"graph": asdict(self.graph), "revision": self.revision, "bits": bits}

    @classmethod
    def of_stored(cls, fields: Mapping[str, Any]) -> EdgeSet:
        """Reads what `stored` returned. Raises ValueError, TypeError or LookupError for what is none."""
        bits = base64.b64decode(fields["bits"], validate=True)
        return cls(Graph(**fields["graph"]), fields["revision"], bits)

    def described(self) -> dict[str, object]:
        """Returns what tells these edges from others of their graph, for provenance: the edges are large."""
        return {"sha256": hashlib.sha256(self.bits).hexdigest()}

    def circuit(self, field: str, graph: Graph, revision: str) -> Circuit:
        """Returns these edges as a circuit of a served model.

        Equal numbers and names of edges mean nothing across models: a circuit would be measured without an
        error and without sense.

        Args:
            field: path of the edges in the request, for errors.
            graph: graph of the served model.
            revision: its revision.

        Raises:
            OtherModelError: the edges were found in another model.
            InvalidRequestError: they name shared keys and values in another way, or are not one bit per edge.
        """
        same_model = replace(self.graph, kv_receivers=graph.kv_receivers) == graph
        if not same_model or self.revision not in ("", revision):
            raise OtherModelError(_describe(self.graph, self.revision), _describe(graph, revision), field)
        # Where every head has keys and values of its own, both values of kv_receivers give the same graph.
        if graph.heads != graph.kv_heads and self.graph.kv_receivers != graph.kv_receivers:
            detail = f"the circuit was found with {self.graph.kv_receivers!r}, which names other edges"
            raise InvalidRequestError("kv_receivers", f"{detail} than {graph.kv_receivers!r}: use the same")
        size = (graph.num_edges + 7) // 8
        if len(self.bits) != size:
            detail = (
                f"must be {size} bytes, one bit for each of {graph.num_edges} edges, got {len(self.bits)}"
            )
            raise InvalidRequestError(f"{field}.bits", detail)
        kept = np.unpackbits(np.frombuffer(self.bits, np.uint8), bitorder="little").astype(bool)
        if kept[graph.num_edges :].any():
            detail = f"must be 0 after the last of {graph.num_edges} edges"
            raise InvalidRequestError(f"{field}.bits", detail)
        return Circuit(graph, kept[: graph.num_edges])


def _describe(graph: Graph, revision: str) -> str:
    parts = [f"{graph.layers} layers", f"{graph.heads} heads", f"{graph.kv_heads} key/value heads"]
    parts += ["attention and MLP in parallel"] if graph.parallel else []
    parts += [] if graph.mlps else ["no MLPs"]
    return ", ".join([*parts, f"revision {revision[:12]}" if revision else "revision unknown"])


@dataclass(frozen=True, eq=False)
class BaseCircuit:
    """A circuit whose activations an executor may keep, to compute other circuits from them by differences.

    The last bits of a score depend on the circuit that is measured and on the chain of base circuits that it
    is computed from. The method therefore chooses the chain, and the server's load never changes it.

    Args:
        circuit: the circuit whose activations are kept.
        parent: the base circuit from which this one is computed; None to compute it from scratch.
    """

    circuit: Circuit
    parent: BaseCircuit | None = None


@dataclass(frozen=True, eq=False)
class PatchedPass:
    """One forward pass under a circuit: that of a base circuit without some of its edges.

    Args:
        base_circuit: what the pass is computed from.
        removed: edges that the pass lacks beyond the base circuit; the last one leads into the receiver under
            investigation.
        receiver: the receiver under investigation, where no removed edge tells it.
    """

    base_circuit: BaseCircuit
    removed: tuple[int, ...] = ()
    receiver: int | None = None

    @property
    def promoted_receiver(self) -> int | None:
        """The receiver under investigation, whose heads some precision policies run in full precision.

        None if the pass has none.
        """
        if self.receiver is not None or not self.removed:
            return self.receiver
        return self.base_circuit.circuit.graph.edge_ends(self.removed[-1])[1]

    @property
    def circuit(self) -> Circuit:
        """The circuit that the pass runs under."""
        return self.base_circuit.circuit.without(self.removed)
