"""A circuit: the edges that a discovery kept, and how it came to keep them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pahq_client import circuit_file, files, render
from pahq_client.contents import CircuitContents

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
