"""What `pahq_client.selection`, `comparison` and `edge_index` compute, edge by edge: slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from helpers.topology import edge_names, heads_behind, on_paths, receiver_names, unit_names

from pahq_server.core.graph import Graph


def acdc_order(graph: Graph) -> list[str]:
    """All edges in the order in which ACDC tests them alone."""
    receivers = ["logits"]
    for layer in reversed(range(graph.layers)):
        if graph.mlps:
            receivers.append(f"m{layer}")
        for kind in "vkq":
            receivers += reversed(unit_names(graph, layer, kind))
    assert sorted(receivers) == sorted(receiver_names(graph))
    into: dict[str, list[str]] = {receiver: [] for receiver in receivers}
    for name in edge_names(graph):
        into[name.split("->")[1]].insert(0, name)
    return [name for receiver in receivers for name in into[receiver]]


def ranked(graph: Graph, scores: Mapping[str, float], rank: str) -> list[str]:
    """All edges, the best first; `sorted` leaves equal ones in the order of the tests."""
    sizes = {name: abs(score) if rank == "absolute" else score for name, score in scores.items()}
    return sorted(acdc_order(graph), key=lambda name: -sizes[name])


def top(graph: Graph, scores: Mapping[str, float], rank: str, count: int) -> list[str]:
    """The best edges that are on a path, in the order of the tests."""
    return _pruned(graph, ranked(graph, scores, rank)[:count])


def greedy(graph: Graph, scores: Mapping[str, float], rank: str, count: int) -> list[str]:
    """Grown from the logits: in every step the best of all edges into nodes that are in. Then pruned."""
    order = ranked(graph, scores, rank)
    chosen: list[str] = []
    nodes = {"logits"}
    while len(chosen) < count:
        for name in order:
            receiver = name.split("->")[1]
            read = heads_behind(graph, receiver) or [receiver]
            if name not in chosen and not nodes.isdisjoint(read):
                chosen.append(name)
                nodes.add(name.split("->")[0])
                break
        else:
            break
    return _pruned(graph, chosen)


def _pruned(graph: Graph, names: Collection[str]) -> list[str]:
    kept = on_paths(graph, names)
    return [name for name in acdc_order(graph) if name in kept]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation of mean ranks, counted one by one."""
    ranks = [[sum(y < x for y in s) + (sum(y == x for y in s) + 1) / 2 for x in s] for s in (a, b)]
    (xs, ys), n = ranks, len(a)
    mean = (n + 1) / 2
    products = sum((x - mean) * (y - mean) for x, y in zip(xs, ys, strict=True))
    squares = [sum((x - mean) ** 2 for x in values) for values in ranks]
    return products / math.sqrt(squares[0] * squares[1]) if all(squares) else None


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Tau-b over all pairs: (concordant − discordant) / √(pairs unequal in a · pairs unequal in b)."""
    signs = []
    for i in range(len(a)):
        for j in range(i):
            signs.append(((a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])))
    unequal = [sum(pair[side] != 0 for pair in signs) for side in (0, 1)]
    return sum(x * y for x, y in signs) / math.sqrt(unequal[0] * unequal[1]) if all(unequal) else None


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """How often a positive is above a negative, over all pairs; equal ones count half."""
    wins = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    return sum(wins) / len(wins)
