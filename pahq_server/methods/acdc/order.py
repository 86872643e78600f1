"""The order of ACDC's tests (Conmy et al. 2023, arXiv:2304.14997, algorithm 1), and what each removes.

The order is a pure state machine: a `State` names the next test, `TestOrder.advance` gives the state after a
verdict. What has been decided is a function of the verdicts alone, so a list of verdicts is a complete
checkpoint, and assumed verdicts can be explored without side effects.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph, ReceiverKind

# What is tested at once: every edge alone; first all edges into a q, k or v receiver; or all edges into all
# receivers of one kind in a layer, halved until they go.
Grouping = Literal["none", "gates", "bisect"]
GROUPINGS: tuple[str, ...] = get_args(Grouping)

# A group of tests starts from a new base circuit after so many tests. A base circuit costs as much as some
# tests; without a new one, every test pays for the edges that were removed since the last one.
TESTS_PER_BASE = 32


@dataclass(frozen=True)
class TestGroup:
    """Tests that may share a base circuit.

    Args:
        layer: that the receivers belong to.
        receivers: in the order of their tests.
        tests: ``edges`` of the one receiver, one by one; ``gates``, one of each receiver; or ``halves``: all
            edges into all receivers at once, then halves of what is kept.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    layer: int
    receivers: tuple[int, ...]
    tests: Literal["edges", "gates", "halves"]


@dataclass(frozen=True)
class Test:
    """The question whether some edges carry the behaviour.

    Args:
        index: the first edge, or a gate's receiver.
        edges: the edges that are removed for the test. Without a gate: in the order of single tests.
        gate: whether these are all kept incoming edges of a receiver.
        parent: the test of a larger group that this one is a half of.
        sibling: the first half, if this one is the second half of a group.
        has_parents_score: whether the sibling went in one verdict. Then the circuit under test is that of the
            parent's test, so that its score is known.
    """

    __test__ = False

    index: int
    edges: tuple[int, ...]
    gate: bool = False
    parent: Test | None = field(default=None, compare=False, repr=False)
    sibling: Test | None = field(default=None, compare=False, repr=False)
    has_parents_score: bool = False

    @property
    def is_group(self) -> bool:
        """Whether several edges are tested at once, without a gate."""
        return not self.gate and len(self.edges) > 1

    def halves(self, graph: Graph) -> tuple[Test, ...]:
        """Returns the two halves of a group that is kept; () for a single edge.

        Several receivers are divided, else the senders of the only one; the first half gets the extra one.
        """
        if not self.is_group:
            return ()
        receivers = np.searchsorted(graph.offsets, self.edges, side="right")
        starts = np.flatnonzero(np.diff(receivers, prepend=0)).tolist()
        middle = (len(self.edges) + 1) // 2 if len(starts) == 1 else starts[(len(starts) + 1) // 2]
        first = Test(self.edges[0], self.edges[:middle], parent=self)
        return first, Test(self.edges[middle], self.edges[middle:], parent=self, sibling=first)


@dataclass(frozen=True, eq=False)
class State:
    """Where a search stands.

    Args:
        group: index of the present group of tests.
        tests: the tests of this group that are known to come, in order; empty at the end of the search.
        layer_base: the circuit at the start of the layer.
        base_circuit: the circuit at the start of this group or of an earlier one of its layer.
        removed: edges removed since the base circuit.
        since: number of tests since the base circuit.
    """

    group: int
    tests: tuple[Test, ...]
    layer_base: BaseCircuit
    base_circuit: BaseCircuit
    removed: tuple[int, ...] = ()
    since: int = 0

    @property
    def has_new_base(self) -> bool:
        """Whether the next test is the first one under its base circuit."""
        return self.since == 0

    @property
    def test(self) -> Test | None:
        """The next test; None at the end of the search."""
        return self.tests[0] if self.tests else None

    @property
    def patched_pass(self) -> PatchedPass:
        """What measures the next test. Of a group, its last receiver is the one under investigation."""
        return PatchedPass(self.base_circuit, self.removed + self.tests[0].edges)

    @cached_property
    def circuit(self) -> Circuit:
        """The current circuit."""
        return self.base_circuit.circuit.without(self.removed)


class TestOrder:
    """The order of ACDC's tests on a graph.

    Args:
        graph: the full graph.
        grouping: what is tested at once.
        start: the circuit where the search starts; None for the full graph.
    """

    __test__ = False

    def __init__(self, graph: Graph, grouping: Grouping, start: Circuit | None = None) -> None:
        self.graph, self._start = graph, start or Circuit.full(graph)
        self.groups = _groups(graph, grouping)

    def bounds(self) -> tuple[int, int]:
        """Returns the least and the most tests of a search in which no node dies."""
        kept = np.add.reduceat(self._start.kept, self.graph.offsets[:-1], dtype=np.int64)
        least = most = 0
        gated: set[int] = set()
        for group in self.groups:
            of_receivers = kept[list(group.receivers)]
            edges, gates = int(of_receivers.sum()), int(np.count_nonzero(of_receivers))
            if group.tests == "gates":
                least, most = least + gates, most + gates
                gated.update(group.receivers)
            elif group.tests == "halves":
                least, most = least + min(edges, 1), most + max(2 * edges - 1, 0)
            else:
                least, most = least + (0 if gated.issuperset(group.receivers) else edges), most + edges
        return least, most

    def start(self) -> State:
        """Returns the state before the first test."""
        return self._enter(0, None)

    def advance(self, state: State, keep: bool) -> State:
        """Returns the state after the verdict on ``state.test``."""
        test, *following = state.tests
        removed = state.removed if keep else state.removed + test.edges
        if keep and self.groups[state.group].tests == "halves":
            following = [*test.halves(self.graph), *following]
        elif not keep and following and following[0].sibling is test:
            following[0] = replace(following[0], has_parents_score=True)
        after = replace(state, tests=tuple(following), removed=removed, since=state.since + 1)
        if not following:
            return self._enter(state.group + 1, after)
        return self._rebased(after) if self._takes_new_base(after) else after

    def _takes_new_base(self, state: State) -> bool:
        """Tells whether to go on from a new base circuit in the middle of a group.

        Not between the tests of a group and of its halves, which are compared with each other.
        """
        test = state.tests[0]
        starts_anew = test.sibling is not None and not test.has_parents_score
        return starts_anew and state.since >= TESTS_PER_BASE

    def _rebased(self, state: State) -> State:
        """Returns the same state under the current circuit as its base circuit."""
        base_circuit = BaseCircuit(state.circuit, parent=state.layer_base)
        return replace(state, base_circuit=base_circuit, removed=(), since=0)

    def _enter(self, group: int, previous: State | None) -> State:
        """Returns the first state at or after a group that has something to test."""
        circuit = self._start if previous is None else previous.circuit
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
        return State(group, (), end, end)

    def _with_base(
        self, group: int, tests: tuple[Test, ...], circuit: Circuit, previous: State | None, died: bool
    ) -> State:
        """Returns the first state of a group, under the last base circuit or, where that pays, a new one.

        A new one pays after many tests, and when nodes have ``died``, that is, lost their last way to the
        logits: under the last base circuit they would still be computed.
        """
        if previous is None or self.groups[previous.group].layer != self.groups[group].layer:
            base_circuit = BaseCircuit(circuit)
            return State(group, tests, base_circuit, base_circuit)
        if died or previous.since >= TESTS_PER_BASE:
            base_circuit = BaseCircuit(circuit, parent=previous.layer_base)
            return State(group, tests, previous.layer_base, base_circuit)
        removed = tuple(np.flatnonzero(previous.base_circuit.circuit.kept & ~circuit.kept).tolist())
        return replace(previous, group=group, tests=tests, removed=removed)

    def _is_dead(self, receiver: int, circuit: Circuit) -> bool:
        if receiver == self.graph.logits:
            return False
        return all(circuit.is_dead(sender) for sender in self.graph.senders_behind(receiver))

    def _tests(self, group: TestGroup, circuit: Circuit) -> tuple[Test, ...]:
        if group.tests == "gates":
            gates = ((r, tuple(_kept_edges(circuit, r))) for r in group.receivers)
            return tuple(Test(r, edges, gate=True) for r, edges in gates if edges)
        # Latest sender first.
        edges = tuple(edge for r in group.receivers for edge in reversed(_kept_edges(circuit, r)))
        if group.tests == "halves":
            return (Test(edges[0], edges),) if edges else ()
        return tuple(Test(edge, (edge,)) for edge in edges)


def _kept_edges(circuit: Circuit, receiver: int) -> list[int]:
    start = int(circuit.graph.offsets[receiver])
    edges: list[int] = (np.flatnonzero(circuit.incoming(receiver)) + start).tolist()
    return edges


def _groups(graph: Graph, grouping: Grouping) -> list[TestGroup]:
    of_one: Literal["edges", "halves"] = "halves" if grouping == "bisect" else "edges"
    groups = [TestGroup(graph.layers, (graph.logits,), of_one)]
    for layer in reversed(range(graph.layers)):
        if graph.mlps:
            groups.append(TestGroup(layer, (graph.receiver_of("mlp", layer),), of_one))
        kinds: list[tuple[ReceiverKind, int]]
        kinds = [("v", graph.kv_units), ("k", graph.kv_units), ("q", graph.heads)]
        receivers = [
            tuple(graph.receiver_of(kind, layer, unit) for unit in reversed(range(units)))
            for kind, units in kinds
        ]
        if grouping == "bisect":
            groups += [TestGroup(layer, of_kind, "halves") for of_kind in receivers]
            continue
        every = tuple(receiver for of_kind in receivers for receiver in of_kind)
        if grouping == "gates":
            groups.append(TestGroup(layer, every, "gates"))
        groups += [TestGroup(layer, (receiver,), "edges") for receiver in every]
    return groups
