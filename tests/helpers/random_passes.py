"""Tasks and circuits to score in tests of executors."""

from __future__ import annotations

import numpy as np

from helpers.outputs import random_prompts
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Model

# The longest is beyond GPT-Neo's window; one is a single token.
LENGTHS = (7, 3, 10, 1)


def random_task(model: Model, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> TokenTask:
    """Unrelated clean and corrupted prompts of unequal lengths, with answers."""
    arch, count = model.architecture, len(lengths)
    rng = np.random.default_rng(seed)
    return TokenTask(
        clean=tuple(random_prompts(arch.vocabulary, lengths, 2 * seed)),
        corrupted=tuple(random_prompts(arch.vocabulary, lengths, 2 * seed + 1)),
        answers=tuple(rng.integers(arch.output_vocabulary, size=count).tolist()),
        wrong_answers=tuple(rng.integers(arch.output_vocabulary, size=count).tolist()),
    )


def random_circuit(graph: Graph, share: float, seed: int) -> Circuit:
    """Keeps about this share of the edges."""
    return Circuit(graph, np.random.default_rng(seed).random(graph.num_edges) < share)


def random_passes(graph: Graph, seed: int) -> list[PatchedPass]:
    """Passes over full, dense and sparse circuits, relative to base circuits up to two levels deep."""
    rng = np.random.default_rng(seed)

    def some(circuit: Circuit, count: int) -> tuple[int, ...]:
        kept = np.flatnonzero(circuit.kept)
        return tuple(rng.permutation(kept)[:count].tolist())

    passes = [PatchedPass(BaseCircuit(Circuit.empty(graph)))]
    for share in (1.0, 0.9, 0.6, 0.3):
        base_circuit = BaseCircuit(random_circuit(graph, share, int(rng.integers(1 << 30))))
        child = BaseCircuit(base_circuit.circuit.without(some(base_circuit.circuit, 3)), base_circuit)
        grandchild = BaseCircuit(child.circuit.without(some(child.circuit, 2)), child)
        for start in (base_circuit, child, grandchild):
            passes += [PatchedPass(start, some(start.circuit, count)) for count in (0, 1, 1, 2, 5)]
    receiver = graph.receiver_of("q", graph.layers - 1)
    everything = range(int(graph.offsets[receiver]), int(graph.offsets[receiver + 1]))
    return [*passes, PatchedPass(BaseCircuit(Circuit.full(graph)), tuple(everything))]


def names_of(circuit: Circuit) -> set[str]:
    return {circuit.graph.edge_name(edge) for edge in np.flatnonzero(circuit.kept).tolist()}
