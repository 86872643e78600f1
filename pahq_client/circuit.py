"""A circuit: the edges that a discovery kept, and how it came to keep them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pahq_client import circuit_file
from pahq_client import files
from pahq_client.display import circuits as render
from pahq_client.circuit import Circuit as CircuitContents

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(CircuitContents):
    """The result of a discovery. Two circuits are equal when their canonical bytes are.

    Its fields are described at `CircuitContents`.
    """

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Reads a circuit file.

        Raises:
            InvalidCircuitFile: it is not one, is damaged or too large, or has a version that is not known.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        return cls(**circuit_file.decode(files.read(path), files.path_text("path", path)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a circuit file, whole or not at all. Devices and pipes are written to, not replaced.

        Raises:
            InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, circuit_file.encode(self, files.path_text("path", path)) + b"\n")

    def canonical_bytes(self) -> bytes:
        """The circuit without ``provenance.run``: equal for two equal discoveries.

        Raises:
            InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
        """
        return circuit_file.encode(self, "circuit", run=False)

    def pruned(self) -> Circuit:
        """The circuit without the edges that lie on no path from ``input`` to ``logits``.

        ``metric`` stays that of the whole circuit. Under ``resample`` ablation the pruned one has the same up
        to rounding. Under ``zero`` and ``mean`` it may have another, since an edge from a node that hears
        nothing still carries a constant: then a warning is added, and `Client.evaluate` measures it.
        ``verdicts`` and what counts them stay as well; ``provenance.run.pruned`` tells how many edges went.
        """
        edges = self.on_paths
        if len(edges) == len(self.edges):
            return self
        receivers = {edge.target for edge in edges}
        gone = self._pruned_before + len(self.edges) - len(edges)
        run: dict[str, Any] = {**self._run, "pruned": gone}
        if self.parameters.get("ablation") != "resample":
            run["warnings"] = [
                *self.warnings,
                f"The metric is that of the circuit before it was pruned of {gone} edge{'s'[: gone > 1]}; "
                "without what was on no path it may differ unless the ablation is resample. Measure the "
                "circuit with evaluate().",
            ]
        return replace(
            self,
            edges=edges,
            gates_kept=tuple(gate for gate in self.gates_kept if gate in receivers),
            provenance={**self.provenance, "run": run},
        )

    @property
    def _pruned_before(self) -> int:
        before = self._run.get("pruned", 0)
        return before if isinstance(before, int) else 0

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """The circuit as a graph of nodes; see `pahq_client.render.to_networkx`."""
        return render.to_networkx(self)

    def to_dot(self) -> str:
        """The circuit in Graphviz's language; the same text for the same circuit."""
        return render.to_dot(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"Circuit({render.summary(self)})"

    def _repr_html_(self) -> str:
        return render.to_html(self)
