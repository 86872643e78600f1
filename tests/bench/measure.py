"""Measuring: CPU seconds, rates of the machine, and one search."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bench.operations import needed_operations
from bench.workloads import Workload
from pahq_server.core.artifact import Artifact
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import ResolvedObjective, Work
from pahq_server.core.graph import Graph
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse import executor as sparse
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.memory.heap import hand_back_freed_memory, keep_freed_memory
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.base import MethodContext
from pahq_server.methods.registry import find
from pahq_server.models.architecture import Model

WINDOW = 32
# Calls of `SweepJob`.
SWEEP_CALLS = 32
MEMORY_BYTES = 350 << 20


def cpu_seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """Median CPU seconds of the process."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


@torch.inference_mode()
def gemm_rate() -> float:
    """Operations per CPU second of a large float32 product, the better of BLAS and oneDNN."""
    x, w = torch.randn(2048, 2048), torch.randn(2048, 2048)
    blas = cpu_seconds(lambda: x @ w, 7)
    onednn = cpu_seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""), 7)
    return 2 * 2048**3 / min(blas, onednn)


@torch.inference_mode()
def floor_seconds(model: Model, places: int) -> float:
    """CPU seconds of the least that an evaluation needs: unembedding of the metric places, softmax."""
    x = torch.randn(places, model.architecture.d_model)
    return cpu_seconds(lambda: (x @ model.weights.w_u).log_softmax(-1), 101)


class Job:
    """One search with the sparse executor, step by step.

    Args:
        backend: of the model.
        graph: of the model.
        workload: the search.
    """

    def __init__(self, backend: SparseBackend, graph: Graph, workload: Workload) -> None:
        self.graph = graph
        self.executor = backend.open(graph, workload.task, "kl_divergence", "resample")
        self.seconds = 0.0  # its share of what batches took, as the server charges it
        self.search = AcdcSearch(
            self.graph, workload.threshold, grouping="none", window=WINDOW, clock=lambda: self.seconds
        )
        self._steps = self.search.run()
        self.rows: Sequence[PatchedPass] = next(self._steps)

    def take(self, scores: Sequence[float]) -> None:
        """Goes on to the next rows; none at the end."""
        try:
            self.rows = self._steps.send(scores)
        except StopIteration:
            self.rows = ()


class SweepJob:
    """Some calls of a sweep of single edges, spread evenly over all of it.

    Args:
        backend: of the model.
        graph: of the model.
        workload: prompts.
    """

    def __init__(self, backend: SparseBackend, graph: Graph, workload: Workload) -> None:
        self.executor = backend.open(graph, workload.task, "kl_divergence", "resample")
        self.seconds = 0.0
        full = BaseCircuit(Circuit.full(graph))
        starts = np.linspace(0, graph.num_edges - WINDOW, SWEEP_CALLS, dtype=np.int64).tolist()
        self._calls = [
            [PatchedPass(full, (edge,)) for edge in range(first, first + WINDOW)] for first in starts
        ]
        self.rows: Sequence[PatchedPass] = self._calls.pop()

    def take(self, scores: Sequence[float]) -> None:
        """Goes on to the next call; no rows at the end."""
        self.rows = self._calls.pop() if self._calls else ()


AnyJob = Job | SweepJob


def step(backend: SparseBackend, jobs: Sequence[AnyJob]) -> None:
    """One batch for all jobs that are not at their end."""
    running = [job for job in jobs if job.rows]
    started, total = time.perf_counter(), sum(len(job.rows) for job in running)
    outcomes = backend.score([(job.executor, job.rows) for job in running])
    seconds = time.perf_counter() - started
    for job in running:
        job.seconds += seconds * len(job.rows) / total
    for job, outcome in zip(running, outcomes, strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        job.take(outcome)


class Counter:
    """Adds up the operations that rows need, by watching the executor's sweeps."""

    def __init__(self) -> None:
        self.operations = 0.0

    def __enter__(self) -> Counter:
        run = sparse.BatchForward.run

        def counted(sweep: sparse.BatchForward) -> None:
            run(sweep)
            # Anchors are our own means, not needed.
            self.operations += 0.0 if sweep.keep else float(np.sum(needed_operations(sweep)))

        self._run, sparse.BatchForward.run = run, counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *exc: object) -> None:
        sparse.BatchForward.run = self._run  # type: ignore[method-assign]


def search(workload: Workload) -> dict[str, float]:
    """Runs ACDC to its end with the sparse executor; figures per evaluation are in CPU seconds."""
    memory = DeviceMemory(MEMORY_BYTES)
    hand_back_freed_memory()
    model = workload.folded()
    keep_freed_memory()
    backend = SparseBackend(model, memory, b"bench")
    start = time.process_time()
    job = Job(backend, model.architecture.graph("group"), workload)
    base, needed, start = time.process_time() - start, 0.0, time.process_time()
    with Counter() as counter:
        while job.rows:
            counts = job.search.counts
            wasted, rows, before = counts["wasted"], len(job.rows), counter.operations
            step(backend, [job])
            # Wasted rows need as much as the others of their batch, about.
            needed += (counter.operations - before) * (1 - (counts["wasted"] - wasted) / rows)
    seconds, count = time.process_time() - start, len(job.search.verdicts)
    pool = memory.pool.statistics()
    return {
        "evaluations": count,
        "kept": sum(v.kept for v in job.search.verdicts),
        "seconds_per_evaluation": seconds / count,
        "needed_operations_per_evaluation": needed / count,
        "base_seconds": base,
        "rows": job.search.counts["passes"],
        "wasted": job.search.counts["wasted"],
        "batches": job.search.counts["batches"],
        "memory_budget_mib": MEMORY_BYTES / 2**20,
        "peak_pages_mib": pool.peak_used * pool.page_bytes / 2**20,
    }


def literal_seconds(workload: Workload, samples: int) -> float:
    """CPU seconds per evaluation of the literal executor, over edges spread evenly over the graph."""
    model = workload.plain()
    graph = model.architecture.graph("group")
    literal = LiteralExecutor(model, graph, workload.task, "kl_divergence", "resample")
    full = literal._full
    edges = np.linspace(0, graph.num_edges - 1, samples).astype(int).tolist()
    return cpu_seconds(lambda: [literal.measure(full.without([edge])) for edge in edges]) / samples


# Operators of torch by kind. All others are elementwise; what is left of the time is Python.
OPERATORS = {
    "gemm": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"),
    "attention": ("aten::bmm", "aten::_softmax"),
    "gather": ("aten::index", "aten::cat", "aten::copy_", "aten::select", "aten::_reshape_copy"),
    "metric": ("aten::expm1", "aten::log1p", "aten::linalg_vecdot"),
}


def profile(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the time of a piece of work by kind. Being watched costs time, most of it in Python."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        total = cpu_seconds(work)
    shares = dict.fromkeys([*OPERATORS, "elementwise"], 0.0)
    for event in profiler.key_averages():
        kinds = (kind for kind, names in OPERATORS.items() if event.key.startswith(names))
        shares[next(kinds, "elementwise")] += event.self_cpu_time_total / 1e6 / total
    return {**shares, "python": 1 - sum(shares.values())}


def run_method(engine: ModelEngine, resolved: ResolvedObjective, name: str) -> Artifact:
    """Runs a job of a method without parameters to its end."""
    method = find(name)
    parameters = method.read({})
    method.check(parameters, resolved)
    state = engine.open(resolved)
    steps = method.run(MethodContext(resolved, parameters))
    operation = next(steps)
    while True:
        (outcome,) = engine.run([Work(state, operation)])
        operation.check(outcome)
        try:
            operation = steps.send(outcome)
        except StopIteration as stop:
            engine.close(state)
            found: Artifact = stop.value
            return found
