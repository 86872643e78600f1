"""What is stored comes back to the last bit."""

from __future__ import annotations

import struct

import numpy as np
from helpers.fake_engine import GRAPH
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.core.verdict import Verdict
from pahq_server.store import codec

floats = st.floats(allow_nan=False, width=64)
verdicts = st.builds(
    Verdict, gate=st.booleans(), index=st.integers(0, 1 << 40), score=floats, delta=floats, kept=st.booleans()
)


@given(st.lists(verdicts, max_size=20))
def test_verdicts(some: list[Verdict]) -> None:
    found = codec.unpack_verdicts(codec.pack_verdicts(some))
    assert found == some
    for a, b in zip(found, some, strict=True):
        assert struct.pack("dd", a.score, a.delta) == struct.pack("dd", b.score, b.delta)  # also -0.0
        assert (type(a.gate), type(a.index), type(a.score)) == (bool, int, float)


@given(st.lists(st.booleans(), min_size=GRAPH.num_edges, max_size=GRAPH.num_edges))
def test_circuits(kept: list[bool]) -> None:
    circuit = Circuit(GRAPH, np.array(kept))
    found = codec.unpack_circuit(GRAPH, codec.pack_circuit(circuit))
    assert found.kept.dtype == bool
    assert found.kept.tolist() == kept


def test_graphs() -> None:
    for graph in (GRAPH, Graph(3, 8, 2, kv_receivers="query", parallel=True, mlps=False)):
        assert codec.graph_from_json(codec.graph_to_json(graph)) == graph
