"""Which edges of a circuit carry anything from the prompts to the output."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pahq_client.elements import Edge, Graph

_HEAD = re.compile(r"a(\d{1,9})\.h(\d{1,9})", re.ASCII)  # Python refuses to read very long numbers


def edges_on_paths(edges: Sequence[Edge], graph: Graph) -> tuple[Edge, ...]:
    """The edges on a path from ``input`` to ``logits``, in their order.

    A path goes on from a receiver to each sender that reads it: from ``a1.h2<q>`` to ``a1.h2``, from
    ``a1.g0<k>`` to every head of the group, from ``m1`` to itself.
    """
    # Nodes are prefixed, since an MLP is a receiver and a sender of one name.
    following: dict[str, list[str]] = defaultdict(list)
    leading: dict[str, list[str]] = defaultdict(list)
    arrows = [(f"s:{edge.source}", f"r:{edge.target}") for edge in edges]
    inner = (
        (f"r:{receiver}", f"s:{sender}")
        for sender in {edge.source for edge in edges}
        for receiver in _read_by(sender, graph)
    )
    for start, end in (*arrows, *inner):
        following[start].append(end)
        leading[end].append(start)
    reached, used = _reachable("s:input", following), _reachable("r:logits", leading)
    pairs = zip(edges, arrows, strict=True)
    return tuple(edge for edge, (start, end) in pairs if start in reached and end in used)


def _read_by(sender: str, graph: Graph) -> Iterator[str]:
    """The receivers that a sender reads."""
    match = _HEAD.fullmatch(sender)
    if match is None:
        if sender != "input":
            yield sender  # an MLP
        return
    layer, head = int(match[1]), int(match[2])
    size = graph.heads // max(graph.kv_heads, 1)
    yield from (f"a{layer}.h{head}<{kind}>" for kind in "qkv")
    if size:
        yield from (f"a{layer}.g{head // size}<{kind}>" for kind in "kv")


def _reachable(start: str, arrows: Mapping[str, Iterable[str]]) -> set[str]:
    reached, pending = {start}, [start]
    while pending:
        for node in arrows.get(pending.pop(), ()):
            if node not in reached:
                reached.add(node)
                pending.append(node)
    return reached
