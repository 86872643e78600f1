"""What a job costs: memory, operations and seconds, estimated before it starts.

Operations are multiplications and additions of the textbook forward pass. An evaluation is the measurement of
one circuit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Protocol

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
# Share of the device's memory that all jobs together get, unless the operator says otherwise.
DEFAULT_SHARE = 0.5


def job_bytes(arch: Architecture, task: TokenTask) -> int:
    """Estimates the bytes that a job takes: what its clean and its ablated run keep, and about twice as much
    for its passes.

    Per token and layer the runs keep head outputs before W_O, MLP outputs and the two residual streams of
    both, and keys and values of the clean one. Attention scores of one layer are added.
    """
    longest = max(len(ids) for ids in task.clean)
    tokens = longest * len(task.clean)
    scores = len(task.clean) * arch.heads * longest * longest
    logits = len(task.metric_positions()) * arch.output_vocabulary
    return tokens * token_bytes(arch) + BYTES * (3 * scores + 4 * logits)


def token_bytes(arch: Architecture) -> int:
    """Returns the least bytes that a job needs for each token of its clean prompts."""
    per_layer = (2 * arch.heads + 2 * arch.kv_heads) * arch.d_head + 6 * arch.d_model
    return BYTES * 3 * arch.layers * per_layer


# Seconds of an evaluation beside its operations: most of the time of small models (about 5 ms for the demo).
BOOKKEEPING_S = 0.01
_SIDE, _DEVICE_SIDE = 1024, 4096


def sample_task(prompts: int, tokens: int) -> TokenTask:
    """Makes a task of this size, whose metric is read at the last tokens."""
    clean = ((0,) * tokens,) * prompts
    return TokenTask(clean, clean)


def least_operations(arch: Architecture, prompts: int, tokens: int) -> int:
    """Counts the least operations of an evaluation: the unembedding and one head, at the metric positions."""
    return _unembedding(arch, prompts) + _projection(arch, prompts) + _attention(arch, prompts, tokens)


def most_operations(arch: Architecture, graph: Graph, prompts: int, tokens: int) -> int:
    """Counts the operations of evaluating all edges one by one: every node downstream, at all tokens."""
    positions = prompts * tokens
    projection, attention = _projection(arch, positions), _attention(arch, positions, tokens)
    mlp = (6 if arch.gated else 4) * positions * arch.d_mlp * arch.d_model
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
    """Counts the operations of an evaluation from scratch: the whole model, an input per receiver."""
    positions = prompts * tokens
    inputs = 2 * graph.num_edges * positions * arch.d_model
    # Every kv receiver has a projection of its own.
    own = 2 * (graph.kv_units - graph.kv_heads) * _projection(arch, positions)
    return forward_operations(arch, prompts, tokens) + arch.layers * own + inputs


def forward_operations(arch: Architecture, prompts: int, tokens: int) -> int:
    """Counts the operations of a plain forward pass, with logits at one position of each prompt."""
    positions = prompts * tokens
    mlp = (6 if arch.gated else 4) * positions * arch.d_mlp * arch.d_model
    heads = (arch.heads + 2 * arch.kv_heads) * _projection(arch, positions)
    layer = heads + arch.heads * _attention(arch, positions, tokens) + mlp
    return arch.layers * layer + _unembedding(arch, prompts)


def slowdown(arch: Architecture, graph: Graph, prompts: int, tokens: int) -> tuple[float, float]:
    """Compares an evaluation from scratch with one in ``fp32``.

    An evaluation in ``fp32`` needs at least `least_operations` and, on average over all edges, at most
    `most_operations` divided by the number of edges.

    Returns:
        The least and the most times that the operations of the one from scratch exceed those in ``fp32``.
    """
    whole = whole_operations(arch, graph, prompts, tokens)
    most = most_operations(arch, graph, prompts, tokens) / graph.num_edges
    return whole / most, whole / least_operations(arch, prompts, tokens)


def _unembedding(arch: Architecture, positions: int) -> int:
    return 2 * positions * arch.d_model * arch.output_vocabulary


def _projection(arch: Architecture, positions: int) -> int:
    """Counts the operations of one of W_Q, W_K and W_V of one head."""
    return 2 * positions * arch.d_model * arch.d_head


def _attention(arch: Architecture, positions: int, tokens: int) -> int:
    """Counts the operations of scores, weighted sum and output of one head."""
    return 4 * positions * tokens * arch.d_head + 2 * positions * arch.d_head * arch.d_model


def measured_gflops(seconds: float = 0.2, device: torch.device | str = "cpu") -> float:
    """Measures the speed of large float32 products on a device.

    Args:
        seconds: how long to measure, at least one product.
        device: to measure.

    Returns:
        Billions of operations per second of the fastest product.
    """
    side = _SIDE if torch.device(device).type == "cpu" else _DEVICE_SIDE
    a = torch.rand(side, side).to(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            return 2 * side**3 / best / 1e9


def slow_policy(arch: Architecture, task: TokenTask, graph: Graph, precision: str) -> tuple[str, ...]:
    """Returns a warning for policies under which every circuit is computed from scratch; () for others."""
    if POLICIES[precision].operand != "activations":
        return ()
    least, most = slowdown(arch, graph, len(task.clean), max(map(len, task.clean)))
    times = f"{_factor(least)} to {_factor(most)} times"
    return (
        f"Precision {precision!r} computes every circuit from scratch: {times} the operations that 'fp32' "
        "needs. It is there for comparison; 'bf16' and 'pahq-int8' are about as fast as 'fp32', "
        "or faster.",
    )


def _factor(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


class Speed(Protocol):
    """How fast a device is. Methods may be called from any thread; the first call may measure it."""

    def operations_s(self) -> float:
        """Returns multiplications and additions per second of large float32 products."""
        ...

    def bytes_s(self, model: str) -> float:
        """Returns bytes per second at which weights of a model are read from its checkpoint's files."""
        ...


class MeasuredSpeed:
    """Measures the speed of a device when it is first needed.

    Args:
        device: to measure.
        served: the models on it, by name.
    """

    def __init__(self, device: torch.device, served: Mapping[str, LoadedModel]) -> None:
        self._device, self._served = device, served
        self._operations_s: float | None = None
        self._bytes_s: dict[str, float] = {}

    def operations_s(self) -> float:
        if self._operations_s is None:
            self._operations_s = measured_gflops(device=self._device) * 1e9
        return self._operations_s

    def bytes_s(self, model: str) -> float:
        if model not in self._bytes_s:
            self._bytes_s[model] = _reading_speed(self._served[model])
        return self._bytes_s[model]


def _reading_speed(loaded: LoadedModel) -> float:
    """Measures how fast a layer is read from a checkpoint's files, in bytes per second."""
    if not isinstance(loaded, ResidentModel):
        raise TypeError("the weights of this model are in memory, and are not read again")
    begin = time.perf_counter()
    layer = loaded.resident.checkpoint.layer(0)
    values = (getattr(layer, field.name) for field in fields(layer))
    size = sum(value.nbytes for value in values if isinstance(value, Tensor))
    return size / (time.perf_counter() - begin)


def estimate(
    arch: Architecture,
    resolved: ResolvedObjective,
    speed: Speed,
    streamed_bytes: int = 0,
    weight: float | None = None,
    tests: tuple[int, int] | None = None,
) -> Estimate:
    """Estimates what a job on a model will take.

    Args:
        arch: of the model.
        resolved: the job's objective.
        speed: of the device.
        streamed_bytes: size of the weights if they are read from the checkpoint's files again and again; else
            0.
        weight: the job's weight in patched passes, see `Engine.estimate`. Each takes between a plain forward
            pass and one from scratch. None for a job that tests edges.
        tests: the least and the most tests of such a job; None for every edge once. They are taken to cost
            what tests of single edges do on average.
    """
    task, graph = resolved.task, resolved.graph
    prompts, tokens = len(task.clean), max(map(len, task.clean))
    rate = speed.operations_s()
    # The operations of an evaluation, and how many of these there are: at least and at most.
    least: float = least_operations(arch, prompts, tokens)
    most = most_operations(arch, graph, prompts, tokens) / graph.num_edges
    whole = whole_operations(arch, graph, prompts, tokens)
    fewest: float
    many: float
    fewest, many = tests or (graph.num_edges, graph.num_edges)
    if weight is not None:
        fewest = many = weight
        least, most = forward_operations(arch, prompts, tokens), whole
    elif POLICIES[resolved.objective.precision].operand == "activations":
        least = most = whole
    each_s = most / rate + BOOKKEEPING_S
    if streamed_bytes:
        # At worst, every evaluation is a batch of its own and needs every layer.
        each_s += streamed_bytes / speed.bytes_s(resolved.objective.model)
    memory = job_bytes(arch, task) if resolved.activations else 0
    return Estimate(memory, fewest * least / rate, many * each_s, streamed_bytes > 0)
