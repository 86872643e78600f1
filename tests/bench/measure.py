"""Measuring: CPU seconds, rates of the machine, and one search."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bench.workloads import Workload
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse import executor as sparse
from pahq_server.engine.sparse.work import needed_operations
from pahq_server.models.folding import fold
from pahq_server.search.acdc_search import AcdcSearch


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
def floor_seconds(workload: Workload) -> float:
    """CPU seconds of the least that an evaluation needs: unembedding of the metric places, softmax."""
    arch = workload.model.architecture
    x = torch.randn(len(workload.task.metric_positions()), arch.d_model)
    w_u = workload.model.weights.w_u
    return cpu_seconds(lambda: (x @ w_u).log_softmax(-1), 101)


class Counter:
    """Adds up the operations that accepted rows need, by watching the executor's sweeps."""

    def __init__(self) -> None:
        self.rows: list[float] = []

    def __enter__(self) -> Counter:
        run = sparse.Sweep.run

        def counted(sweep: sparse.Sweep) -> None:
            run(sweep)
            self.rows += needed_operations(sweep).tolist()

        self._run, sparse.Sweep.run = run, counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *exc: object) -> None:
        sparse.Sweep.run = self._run  # type: ignore[method-assign]


def search(make: Callable[[], Workload], window: int) -> dict[str, float]:
    """Runs ACDC to its end with the sparse executor; figures per evaluation are in CPU seconds."""
    workload = make()
    graph, model = workload.graph, fold(workload.model)
    workload = replace(workload, model=model)
    start = time.process_time()
    executor = sparse.SparseExecutor(model, graph, workload.task, "kl_divergence", "resample")
    base = time.process_time() - start
    acdc = AcdcSearch(graph, workload.threshold, gates=False, window=window)
    steps = acdc.run()
    rows, needed = next(steps), 0.0
    start = time.process_time()
    with Counter() as counter:
        while rows:
            decided, used, counted = len(acdc.verdicts), acdc.statistics, len(counter.rows)
            wasted = used.wasted
            scores = executor.score(rows)
            new = counter.rows[counted:]
            try:
                asked, rows = len(rows), steps.send(scores)
            except StopIteration:
                break
            # Rows are scored in order; the wasted ones come last.
            needed += float(np.sum(new)) * (1 - (acdc.statistics.wasted - wasted) / max(asked, 1))
            assert len(acdc.verdicts) > decided
    seconds = time.process_time() - start
    count = len(acdc.verdicts)
    return {
        "evaluations": count,
        "kept": sum(v.kept for v in acdc.verdicts),
        "seconds_per_evaluation": seconds / count,
        "needed_operations_per_evaluation": needed / count,
        "base_seconds": base,
        "rows": acdc.statistics.rows,
        "wasted": acdc.statistics.wasted,
        "batches": acdc.statistics.batches,
    }


def literal_seconds(workload: Workload, samples: int) -> float:
    """CPU seconds per evaluation of the literal executor, over edges spread evenly over the graph."""
    graph = workload.graph
    literal = LiteralExecutor(workload.model, graph, workload.task, "kl_divergence", "resample")
    full = literal._full
    edges = np.linspace(0, graph.num_edges - 1, samples).astype(int).tolist()
    return cpu_seconds(lambda: [literal.measure(full.without([edge])) for edge in edges]) / samples


def profile(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the time of a piece of work by kind."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    kinds = {
        "gemm": ("_linear_pointwise", "_product", "addmm", "bmm"),
        "attention": ("matmul", "softmax", "contiguous"),
        "gather": ("index", "cat", "stack", "take", "pick", "tokens.py"),
        "metric": ("expm1", "vecdot", "log1p"),
        "elementwise": ("mul", "add", "sub", "exp", "div", "square", "gelu", "rsqrt", "addcmul", "torch"),
    }
    shares = dict.fromkeys([*kinds, "python"], 0.0)
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        text = f"{file}:{name}"
        builtin = file == "~"
        kind = next((k for k, words in kinds.items() if builtin and any(w in text for w in words)), "python")
        shares[kind] += own
    total = sum(shares.values())
    return {kind: round(seconds / total, 3) for kind, seconds in shares.items()}
