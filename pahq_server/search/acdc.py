"""ACDC (Conmy et al. 2023, arXiv:2304.14997, algorithm 1) as a sequence of tests.

The search is a pure state machine: a `State` names the next test, `advance` gives the state after a
verdict. What has been decided is a function of the verdicts alone, so a log of verdicts is a complete
checkpoint, and a chain of hypothetical verdicts can be explored without side effects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import BaseCircuit, PatchedPass
from pahq_server.core.graph import Graph, ReceiverKind

# A turn starts from a new anchor after so many tests. An anchor costs as much as some tests; without it,
# every test pays for the edges that were removed since the last one.
TESTS_PER_ANCHOR = 32


@dataclass(frozen=True)
class Turn:
    """A run of tests that share an anchor: the edges of one receiver, or the gates of a layer."""

    layer: int
    receivers: tuple[int, ...]
    gate: bool


@dataclass(frozen=True)
class Test:
    """One question: do these edges carry the behaviour? ``index`` is the edge, or a gate's receiver."""

    index: int
    edges: tuple[int, ...]
    gate: bool


@dataclass(frozen=True, eq=False)
class State:
    """Where a search stands.

    Args:
        turn: index into the order of turns.
        tests: of this turn, in order.
        position: of the next test in ``tests``.
        layer_anchor: the circuit at the start of the layer.
        anchor: the circuit at the start of this turn or of an earlier one of its layer.
        removed: edges removed since the anchor.
        since: tests in earlier turns since the anchor.
    """

    turn: int
    tests: tuple[Test, ...]
    position: int
    layer_anchor: BaseCircuit
    base_circuit: BaseCircuit
    removed: tuple[int, ...] = ()
    since: int = 0

    @property
    def anchored(self) -> bool:
        """Whether this is the first test since the anchor."""
        return self.position == 0 and self.since == 0

    @property
    def test(self) -> Test | None:
        """The next test; None at the end of the search."""
        return self.tests[self.position] if self.tests else None

    @property
    def row(self) -> PatchedPass:
        """The hypothesis of the next test."""
        return PatchedPass(self.base_circuit, self.removed + self.tests[self.position].edges)

    @cached_property
    def circuit(self) -> Circuit:
        """The current circuit."""
        return self.base_circuit.circuit.without(self.removed)


class Acdc:
    """The order of ACDC's tests on a graph.

    Args:
        graph: the full graph, where the search starts.
        gates: whether all incoming edges of a q, k or v receiver are tested at once before each is.
    """

    def __init__(self, graph: Graph, gates: bool) -> None:
        self.graph = graph
        self.turns = _turns(graph, gates)

    def start(self) -> State:
        return self._enter(0, None)

    def advance(self, state: State, keep: bool) -> State:
        """The state after the verdict on ``state.test``."""
        test = state.tests[state.position]
        removed = state.removed if keep else state.removed + test.edges
        if state.position + 1 < len(state.tests):
            return replace(state, position=state.position + 1, removed=removed)
        return self._enter(state.turn + 1, replace(state, removed=removed))

    def _enter(self, turn: int, previous: State | None) -> State:
        """The first state at or after a turn that has something to test."""
        circuit = Circuit.full(self.graph) if previous is None else previous.circuit
        died = False
        while turn < len(self.turns):
            dead = [r for r in self.turns[turn].receivers if self._is_dead(r, circuit)]
            died |= previous is not None and any(
                not self._is_dead(r, previous.base_circuit.circuit) for r in dead
            )
            # Kept edges into receivers that cannot change anything: they go without a test.
            circuit = circuit.without([edge for r in dead for edge in _kept_edges(circuit, r)])
            tests = self._tests(self.turns[turn], circuit)
            if tests:
                return self._anchored(turn, tests, circuit, previous, died)
            turn += 1
        end = BaseCircuit(circuit)
        return State(turn, (), 0, end, end)

    def _anchored(
        self, turn: int, tests: tuple[Test, ...], circuit: Circuit, previous: State | None, died: bool
    ) -> State:
        """The first state of a turn: under a new anchor, or under the last one while that pays.

        ``died`` tells that nodes died since the last anchor, which are still computed under it.
        """
        if previous is None or self.turns[previous.turn].layer != self.turns[turn].layer:
            base_circuit = BaseCircuit(circuit)
            return State(turn, tests, 0, base_circuit, base_circuit)
        since = previous.since + len(previous.tests)
        if died or since >= TESTS_PER_ANCHOR:
            base_circuit = BaseCircuit(circuit, parent=previous.layer_anchor)
            return State(turn, tests, 0, previous.layer_anchor, base_circuit)
        removed = tuple(np.flatnonzero(previous.base_circuit.circuit.kept & ~circuit.kept).tolist())
        return replace(previous, turn=turn, tests=tests, position=0, removed=removed, since=since)

    def _is_dead(self, receiver: int, circuit: Circuit) -> bool:
        if receiver == self.graph.logits:
            return False
        return all(circuit.is_dead(sender) for sender in self.graph.senders_behind(receiver))

    def _tests(self, turn: Turn, circuit: Circuit) -> tuple[Test, ...]:
        if turn.gate:
            gates = ((r, tuple(_kept_edges(circuit, r))) for r in turn.receivers)
            return tuple(Test(r, edges, gate=True) for r, edges in gates if edges)
        (receiver,) = turn.receivers
        # Latest sender first.
        return tuple(Test(edge, (edge,), gate=False) for edge in reversed(_kept_edges(circuit, receiver)))


def _kept_edges(circuit: Circuit, receiver: int) -> list[int]:
    start = int(circuit.graph.offsets[receiver])
    edges: list[int] = (np.flatnonzero(circuit.incoming(receiver)) + start).tolist()
    return edges


def _turns(graph: Graph, gates: bool) -> list[Turn]:
    turns = [Turn(graph.layers, (graph.logits,), gate=False)]
    for layer in reversed(range(graph.layers)):
        if graph.mlps:
            turns.append(Turn(layer, (graph.receiver_of("mlp", layer),), gate=False))
        kinds: list[tuple[ReceiverKind, int]]
        kinds = [("v", graph.kv_units), ("k", graph.kv_units), ("q", graph.heads)]
        receivers = [
            graph.receiver_of(kind, layer, unit) for kind, units in kinds for unit in reversed(range(units))
        ]
        if gates:
            turns.append(Turn(layer, tuple(receivers), gate=True))
        turns += [Turn(layer, (receiver,), gate=False) for receiver in receivers]
    return turns
