"""Made-up metrics of circuits: pure functions of a seed and of the kept edges, without a model.

Values are small integers, so sums and differences are exact and deltas often equal a threshold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

from helpers.topology import edge_names, heads_behind, receiver_names, senders_into
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.circuits import SearchSteps
from pahq_server.methods.verdicts import SearchResult

ScorePass = Callable[[PatchedPass], float]


class SetScore:
    """A metric that depends, in no simple way, on the kept edges that lead to the logits.

    Edges into a dead node change nothing, as in a real model.

    Args:
        graph: of the circuits.
        seed: selects the function.
        values: how many different values it takes.
    """

    def __init__(self, graph: Graph, seed: int, values: int = 7) -> None:
        self._values = values
        # Per receiver, latest first: the senders it flows into, and its edges by sender.
        self._receivers = [
            (heads_behind(graph, name), {s: f"{s}->{name}" for s in senders_into(graph, name)})
            for name in reversed(receiver_names(graph))
        ]
        self._code = {name: _digest(f"{seed} {name}".encode()) for name in edge_names(graph)}

    def of_names(self, names: Collection[str]) -> float:
        alive: set[str] = set()
        total = 0
        for behind, edges in self._receivers:
            if behind and alive.isdisjoint(behind):
                continue
            for sender, edge in edges.items():
                if edge in names:
                    alive.add(sender)
                    total ^= self._code[edge]
        return float(_digest(total.to_bytes(8, "big")) % self._values)

    def of_circuit(self, circuit: Circuit) -> float:
        return self.of_names({name for name, kept in zip(self._code, circuit.kept, strict=True) if kept})

    def __call__(self, patched: PatchedPass) -> float:
        return self.of_circuit(patched.circuit)


class SumScore(SetScore):
    """A metric that grows by what every lost edge is worth: most are worth nothing, a few less than that.

    Groups are kept where one of their edges matters, as in a real model.
    """

    WORTH: tuple[float, ...] = (0, 0, 0, 0, 0, 1, 3, -1)

    def of_names(self, names: Collection[str]) -> float:
        alive: set[str] = set()
        lost = 0.0
        for behind, edges in self._receivers:
            dead = bool(behind) and alive.isdisjoint(behind)
            for sender, edge in edges.items():
                if not dead and edge in names:
                    alive.add(sender)
                else:
                    lost += self.WORTH[self._code[edge] % len(self.WORTH)]
        return lost


class BasedScore:
    """A metric that also depends on the base circuits, as a rounded one does.

    Searches may rely on nothing more: a score is a pure function of the chain of base circuits and the pass.
    """

    def __init__(self, graph: Graph, seed: int, kind: type[SetScore] = SetScore) -> None:
        self._seed = seed
        self._set_score = kind(graph, seed)

    def __call__(self, patched: PatchedPass) -> float:
        chain = b"".join([*_base_keys(patched.base_circuit), patched.circuit.key])
        rounding = _digest(chain + bytes([self._seed])) % 1000 / 1024
        return self._set_score(patched) + rounding


def answer(steps: SearchSteps, score: ScorePass, sizes: list[int] | None = None) -> SearchResult:
    """Runs a search to its end; ``sizes`` collects how many passes each step asks for."""
    passes = next(steps)
    while True:
        if sizes is not None:
            sizes.append(len(passes))
        try:
            passes = steps.send([score(patched) for patched in passes])
        except StopIteration as stop:
            result: SearchResult = stop.value
            return result


def _base_keys(base_circuit: BaseCircuit | None) -> list[bytes]:
    return [] if base_circuit is None else [base_circuit.circuit.key, *_base_keys(base_circuit.parent)]


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
