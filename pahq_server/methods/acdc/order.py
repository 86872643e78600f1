"""The order of ACDC's tests (Conmy et al. 2023, arXiv:2304.14997, algorithm 1).

The order is a pure state machine: a `State` names the next test, `TestOrder.advance` gives the state after a
verdict. What has been decided is a function of the verdicts alone, so a list of verdicts is a complete
checkpoint, and a chain of assumed verdicts can be explored without side effects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph, ReceiverKind

# A group of tests starts from a new base circuit after so many tests. A base circuit costs as much as some
# tests; without a new one, every test pays for the edges that were removed since the last one.
TESTS_PER_BASE = 32


@dataclass(frozen=True)
class TestGroup:
    """Tests that may share a base circuit: of the edges of one receiver, or of the gates of a layer."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    layer: int
    receivers: tuple[int, ...]
    gate: bool


@dataclass(frozen=True)
class Test:
    """The question whether some edges carry the behaviour.

    Args:
        index: the edge, or a gate's receiver.
        edges: the edges that are removed for the test.
        gate: whether these are all kept incoming edges of a receiver.
    """

    __test__ = False

    index: int
    edges: tuple[int, ...]
    gate: bool


@dataclass(frozen=True, eq=False)
class State:
    """Where a search stands.

    Args:
        group: index of the present group of tests.
        tests: the tests of this group, in order; empty at the end of the search.
        position: index of the next test in ``tests``.
        layer_base: the circuit at the start of the layer.
        base_circuit: the circuit at the start of this group or of an earlier one of its layer.
        removed: edges removed since the base circuit.
        since: number of tests in earlier groups since the base circuit.
    """

    group: int
    tests: tuple[Test, ...]
    position: int
    layer_base: BaseCircuit
    base_circuit: BaseCircuit
    removed: tuple[int, ...] = ()
    since: int = 0

    @property
    def has_new_base(self) -> bool:
        """Whether the next test is the first one under its base circuit."""
        return self.position == 0 and self.since == 0

    @property
    def test(self) -> Test | None:
        """The next test; None at the end of the search."""
        return self.tests[self.position] if self.tests else None

    @property
    def patched_pass(self) -> PatchedPass:
        """What measures the next test."""
        return PatchedPass(self.base_circuit, self.removed + self.tests[self.position].edges)

    @cached_property
    def circuit(self) -> Circuit:
        """The current circuit."""
        return self.base_circuit.circuit.without(self.removed)


class TestOrder:
    """The order of ACDC's tests on a graph.

    Args:
        graph: the full graph, where the search starts.
        gates: whether all incoming edges of a q, k or v receiver are tested at once before each is.
    """

    __test__ = False

    def __init__(self, graph: Graph, gates: bool) -> None:
        self.graph = graph
        self.groups = _groups(graph, gates)

    def start(self) -> State:
        """Returns the state before the first test."""
        return self._enter(0, None)

    def advance(self, state: State, keep: bool) -> State:
        """Returns the state after the verdict on ``state.test``."""
        test = state.tests[state.position]
        removed = state.removed if keep else state.removed + test.edges
        if state.position + 1 < len(state.tests):
            return replace(state, position=state.position + 1, removed=removed)
        return self._enter(state.group + 1, replace(state, removed=removed))

    def _enter(self, group: int, previous: State | None) -> State:
        """Returns the first state at or after a group that has something to test."""
        circuit = Circuit.full(self.graph) if previous is None else previous.circuit
        died = False
        while group < len(self.groups):
            dead = [r for r in self.groups[group].receivers if self._is_dead(r, circuit)]
            died |= previous is not None and any(
                not self._is_dead(r, previous.base_circuit.circuit) for r in dead
            )
            # Kept edges into receivers that cannot change anything: they go without a test.
            circuit = circuit.without([edge for r in dead for edge in _kept_edges(circuit, r)])
            tests = self._tests(self.groups[group], circuit)
            if tests:
                return self._with_base(group, tests, circuit, previous, died)
            group += 1
        end = BaseCircuit(circuit)
        return State(group, (), 0, end, end)

    def _with_base(
        self, group: int, tests: tuple[Test, ...], circuit: Circuit, previous: State | None, died: bool
    ) -> State:
        """Returns the first state of a group, under the last base circuit or, where that pays, a new one.

        A new one pays after many tests, and when nodes have ``died``, that is, lost their last way to the
        logits: under the last base circuit they would still be computed.
        """
        if previous is None or self.groups[previous.group].layer != self.groups[group].layer:
            base_circuit = BaseCircuit(circuit)
            return State(group, tests, 0, base_circuit, base_circuit)
        since = previous.since + len(previous.tests)
        if died or since >= TESTS_PER_BASE:
            base_circuit = BaseCircuit(circuit, parent=previous.layer_base)
            return State(group, tests, 0, previous.layer_base, base_circuit)
        removed = tuple(np.flatnonzero(previous.base_circuit.circuit.kept & ~circuit.kept).tolist())
        return replace(previous, group=group, tests=tests, position=0, removed=removed, since=since)

    def _is_dead(self, receiver: int, circuit: Circuit) -> bool:
        if receiver == self.graph.logits:
            return False
        return all(circuit.is_dead(sender) for sender in self.graph.senders_behind(receiver))

    def _tests(self, group: TestGroup, circuit: Circuit) -> tuple[Test, ...]:
        if group.gate:
            gates = ((r, tuple(_kept_edges(circuit, r))) for r in group.receivers)
            return tuple(Test(r, edges, gate=True) for r, edges in gates if edges)
        (receiver,) = group.receivers
        # Latest sender first.
        return tuple(Test(edge, (edge,), gate=False) for edge in reversed(_kept_edges(circuit, receiver)))


def _kept_edges(circuit: Circuit, receiver: int) -> list[int]:
    start = int(circuit.graph.offsets[receiver])
    edges: list[int] = (np.flatnonzero(circuit.incoming(receiver)) + start).tolist()
    return edges


def _groups(graph: Graph, gates: bool) -> list[TestGroup]:
    groups = [TestGroup(graph.layers, (graph.logits,), gate=False)]
    for layer in reversed(range(graph.layers)):
        if graph.mlps:
            groups.append(TestGroup(layer, (graph.receiver_of("mlp", layer),), gate=False))
        kinds: list[tuple[ReceiverKind, int]]
        kinds = [("v", graph.kv_units), ("k", graph.kv_units), ("q", graph.heads)]
        receivers = [
            graph.receiver_of(kind, layer, unit) for kind, units in kinds for unit in reversed(range(units))
        ]
        if gates:
            groups.append(TestGroup(layer, tuple(receivers), gate=True))
        groups += [TestGroup(layer, (receiver,), gate=False) for receiver in receivers]
    return groups
