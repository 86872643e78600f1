"""How much memory a job takes, known before it starts.

Operations of a discovery, between bounds, and how fast a machine does them.

Counted as `engine.sparse.work` counts them: multiplications and additions of the textbook forward pass.


How long a discovery will take, between bounds, and how much memory."""

from __future__ import annotations

import time
from dataclasses import fields

import torch
from torch import Tensor

from pahq_server.core.engine import Estimate, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Architecture
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel
from pahq_server.precision.policy import POLICIES

BYTES = 4  # float32
# Share of the device's memory for jobs.
DEFAULT_SHARE = 0.5


def job_bytes(arch: Architecture, task: TokenTask) -> int:
    """Bytes that the clean and the ablated pass of a job keep, and about twice as much for its rows.

    Per token and layer: z of both passes, keys and values of the clean one, MLP outputs and the two
    residual streams of both. Attention scores of one layer come on top.
    """
    longest = max(len(ids) for ids in task.clean)
    tokens = longest * len(task.clean)
    scores = len(task.clean) * arch.heads * longest * longest
    logits = len(task.metric_positions()) * arch.output_vocabulary
    return tokens * token_bytes(arch) + BYTES * (3 * scores + 4 * logits)


def token_bytes(arch: Architecture) -> int:
    """Bytes that a job needs at least for each token of its clean prompts."""
    per_layer = (2 * arch.heads + 2 * arch.kv_heads) * arch.d_head + 6 * arch.d_model
    return BYTES * 3 * arch.layers * per_layer


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


def slow_policy(arch: Architecture, task: TokenTask, graph: Graph, precision: str) -> tuple[str, ...]:
    """A warning for a policy under which every circuit is computed from scratch; none for others."""
    if POLICIES[precision].operand != "activations":
        return ()
    least, most = slowdown(arch, graph, len(task.clean), max(map(len, task.clean)))
    times = f"{_factor(least)} to {_factor(most)} times"
    return (
        f"Precision {precision!r} computes every circuit from scratch: {times} the operations that 'fp32' "
        "needs in a search. It is there for comparison; 'bf16' and 'pahq-int8' are about as fast as 'fp32', "
        "or faster.",
    )


def _factor(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


class Estimator:
    """Estimates discoveries on models of one device, by rates that are measured when first needed."""

    def __init__(self) -> None:
        self._operations_s: float | None = None
        self._bytes_s: dict[str, float] = {}

    def estimate(self, loaded: LoadedModel, resolved: ResolvedObjective) -> Estimate:
        """What a discovery on a model will take."""
        arch, task, graph = loaded.model.architecture, resolved.task, resolved.graph
        prompts, tokens = len(task.clean), max(map(len, task.clean))
        if self._operations_s is None:
            self._operations_s = measured_gflops(device=loaded.model.device) * 1e9
        rate = self._operations_s
        least = least_operations(arch, prompts, tokens) * graph.num_edges / rate
        most = most_operations(arch, graph, prompts, tokens) / rate + BOOKKEEPING_S * graph.num_edges
        if POLICIES[resolved.objective.precision].operand == "activations":
            least = whole_operations(arch, graph, prompts, tokens) * graph.num_edges / rate
            most = least + BOOKKEEPING_S * graph.num_edges
        streams = isinstance(loaded, ResidentModel) and resolved.objective.precision == "fp32"
        if isinstance(loaded, ResidentModel) and streams:
            # At worst, every evaluation is a batch of its own and reaches every layer.
            most += graph.num_edges * self._reading_s(resolved.objective.model, loaded)
        return Estimate(job_bytes(arch, task), least, most, streams)

    def _reading_s(self, name: str, loaded: ResidentModel) -> float:
        """Seconds to read all weights of a model from its files."""
        if name not in self._bytes_s:
            begin = time.perf_counter()
            layer = loaded.resident.checkpoint.layer(0)
            values = (getattr(layer, field.name) for field in fields(layer))
            size = sum(value.nbytes for value in values if isinstance(value, Tensor))
            self._bytes_s[name] = size / (time.perf_counter() - begin)
        return loaded.model.parameters * BYTES / self._bytes_s[name]
