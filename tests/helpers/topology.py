"""The graph by name, written down a second time: nested loops over names, no index arithmetic.

Tests compare the product with it, so it shares no code with `pahq_server.core.graph`.
"""

from __future__ import annotations

from collections.abc import Collection

import networkx

from pahq_server.core.graph import Graph


def unit_names(graph: Graph, layer: int, kind: str) -> list[str]:
    """The q, k or v receivers of a layer, lowest first."""
    grouped = kind != "q" and graph.kv_receivers == "group" and graph.kv_heads < graph.heads
    letter, count = ("g", graph.kv_heads) if grouped else ("h", graph.heads)
    return [f"a{layer}.{letter}{unit}<{kind}>" for unit in range(count)]


def senders_before(graph: Graph, layer: int) -> list[str]:
    """Everything below a layer, in the order in which the model computes it."""
    names = ["input"]
    for below in range(layer):
        names += [f"a{below}.h{head}" for head in range(graph.heads)]
        if graph.mlps:
            names.append(f"m{below}")
    return names


def senders_into(graph: Graph, receiver: str) -> list[str]:
    """The senders of a receiver, earliest first."""
    if receiver == "logits":
        return senders_before(graph, graph.layers)
    if receiver.startswith("m"):
        layer = int(receiver[1:])
        own = [] if graph.parallel else [f"a{layer}.h{head}" for head in range(graph.heads)]
        return senders_before(graph, layer) + own
    return senders_before(graph, int(receiver[1 : receiver.index(".")]))


def receiver_names(graph: Graph) -> list[str]:
    """All receivers in the documented order of their indices."""
    names = []
    for layer in range(graph.layers):
        for kind in "qkv":
            names += unit_names(graph, layer, kind)
        if graph.mlps:
            names.append(f"m{layer}")
    return [*names, "logits"]


def edge_names(graph: Graph) -> list[str]:
    """All edges in the documented order of their indices."""
    return [f"{s}->{r}" for r in receiver_names(graph) for s in senders_into(graph, r)]


def heads_behind(graph: Graph, receiver: str) -> list[str]:
    """The senders of its own layer that a receiver's input flows into."""
    if receiver == "logits":
        return []
    if receiver.startswith("m"):
        return [receiver]
    node, _, _ = receiver.partition("<")
    layer, unit = node[1:].split(".")
    if unit.startswith("h"):
        return [node]
    per_group = graph.heads // graph.kv_heads
    group = int(unit[1:])
    return [f"a{layer}.h{h}" for h in range(graph.heads) if h // per_group == group]


def on_paths(graph: Graph, names: Collection[str]) -> set[str]:
    """The edges on a path from ``input`` to ``logits``: one search through the whole graph per edge."""
    paths: networkx.DiGraph[tuple[str, str]] = networkx.DiGraph()
    paths.add_nodes_from([("sender", "input"), ("receiver", "logits")])
    for receiver in receiver_names(graph):
        for sender in heads_behind(graph, receiver):
            paths.add_edge(("receiver", receiver), ("sender", sender))
    ends = {name: name.split("->") for name in names}
    for source, target in ends.values():
        paths.add_edge(("sender", source), ("receiver", target))
    return {
        name
        for name, (source, target) in ends.items()
        if networkx.has_path(paths, ("sender", "input"), ("sender", source))
        and networkx.has_path(paths, ("receiver", target), ("receiver", "logits"))
    }
