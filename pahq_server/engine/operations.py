"""Operations of a discovery, between bounds, and how fast a machine does them.

Counted as `engine.sparse.work` counts them: multiplications and additions of the textbook forward pass.
"""

from __future__ import annotations

import time

import torch

from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Architecture

# Per evaluation, beside its operations: what small models take for the most part (the demo about 5 ms).
BOOKKEEPING_S = 0.01
_SIDE, _DEVICE_SIDE = 1024, 4096


def sample_task(prompts: int, tokens: int) -> TokenTask:
    """A task of this size, whose metric is read at the last tokens."""
    clean = ((0,) * tokens,) * prompts
    return TokenTask(clean, clean)


def least_operations(arch: Architecture, prompts: int, tokens: int) -> int:
    """Of an evaluation: the unembedding and one head, where the metric is read."""
    return _unembedding(arch, prompts) + _projection(arch, prompts) + _attention(arch, prompts, tokens)


def most_operations(arch: Architecture, graph: Graph, prompts: int, tokens: int) -> int:
    """Of the evaluations of all edges, one by one: every node that an edge can reach, at all tokens."""
    places = prompts * tokens
    projection, attention = _projection(arch, places), _attention(arch, places, tokens)
    mlp = (6 if arch.gated else 4) * places * arch.d_mlp * arch.d_model
    layer = (graph.heads + 2 * graph.kv_units) * projection + graph.heads * attention + mlp
    total = 0
    for index in range(graph.num_receivers):
        kind, depth, unit = graph.receiver(index)
        cost = _unembedding(arch, prompts)
        if kind != "logits":
            cost += (arch.layers - depth - 1) * layer
        if kind in ("q", "k", "v"):
            heads = 1 if kind == "q" else len(graph.unit_heads(unit))
            cost += projection + heads * attention
        if kind == "mlp" or (kind != "logits" and not arch.parallel):
            cost += mlp
        total += graph.upstream(index) * cost
    return total


def whole_operations(arch: Architecture, graph: Graph, prompts: int, tokens: int) -> int:
    """Of an evaluation that shares nothing with others: the whole model, and every receiver's own input."""
    places = prompts * tokens
    mlp = (6 if arch.gated else 4) * places * arch.d_mlp * arch.d_model
    heads = (graph.heads + 2 * graph.kv_units) * _projection(arch, places)
    layer = heads + graph.heads * _attention(arch, places, tokens) + mlp
    inputs = 2 * graph.num_edges * places * arch.d_model
    return arch.layers * layer + inputs + _unembedding(arch, prompts)


def slowdown(arch: Architecture, graph: Graph, prompts: int, tokens: int) -> tuple[float, float]:
    """How many times the operations of an evaluation in ``fp32`` one takes that shares nothing, in a search.

    Between bounds: what an evaluation in ``fp32`` needs is between `least_operations` and, on average over
    all edges, `most_operations`.
    """
    whole = whole_operations(arch, graph, prompts, tokens)
    most = most_operations(arch, graph, prompts, tokens) / graph.num_edges
    return whole / most, whole / least_operations(arch, prompts, tokens)


def _unembedding(arch: Architecture, places: int) -> int:
    return 2 * places * arch.d_model * arch.output_vocabulary


def _projection(arch: Architecture, places: int) -> int:
    """One of q, k and v of one head."""
    return 2 * places * arch.d_model * arch.d_head


def _attention(arch: Architecture, places: int, tokens: int) -> int:
    """Scores, weighted sum and output of one head."""
    return 4 * places * tokens * arch.d_head + 2 * places * arch.d_head * arch.d_model


def measured_gflops(seconds: float = 0.2, device: torch.device | str = "cpu") -> float:
    """Billions of operations per second of a large float32 product on a device, the best of a few."""
    side = _SIDE if torch.device(device).type == "cpu" else _DEVICE_SIDE
    a = torch.rand(side, side).to(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for devices that only take orders
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            return 2 * side**3 / best / 1e9
