"""Graphs for property tests."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from pahq_server.core.graph import Graph


@st.composite
def graphs(draw: DrawFn, max_layers: int = 3, max_kv_heads: int = 3, max_group: int = 3) -> Graph:
    """Small graphs of every kind: grouped or not, parallel or not, with or without MLPs."""
    kv_heads = draw(st.integers(1, max_kv_heads))
    return Graph(
        layers=draw(st.integers(1, max_layers)),
        heads=kv_heads * draw(st.integers(1, max_group)),
        kv_heads=kv_heads,
        kv_receivers=draw(st.sampled_from(["group", "query"])),
        parallel=draw(st.booleans()),
        mlps=draw(st.booleans()),
    )
