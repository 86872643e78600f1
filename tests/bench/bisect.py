"""Grouped ACDC against single tests: evaluations, CPU seconds, and how good the circuits are.

Circuits of different sizes are compared at equal size: searches with single tests at neighbouring thresholds
give a curve of the metric by the number of edges, on which the logarithm of the metric is interpolated.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from bench import workloads
from bench.measure import MEMORY_BYTES, WINDOW, run_method
from bench.workloads import Workload
from pahq_server.core.artifact import unpack
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Objective
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.worker import TRANSFORMS
from pahq_server.memory.heap import hand_back_freed_memory, keep_freed_memory
from pahq_server.methods.acdc.order import Grouping
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.models.loading import load

Figures = dict[str, float]
# The step of thresholds on the curve of single tests, and how many steps there are at most to either side.
STEP, MOST_STEPS = 2**0.25, 8
# Circuits of single tests that have so many more edges are compared as they are: smaller ones would be worse.
NEARLY_EQUAL = 0.03
# The share of all edges from which `within` starts.
WITHIN = 0.05


@dataclass(frozen=True)
class Found:
    """What a search found, and what it took."""

    evaluations: int
    edges: int
    kl: float
    seconds: float


class Searches:
    """Searches of one workload, and the curve of its circuits from single tests."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        hand_back_freed_memory()
        model = workload.folded()
        keep_freed_memory()
        self._backend = SparseBackend(model, DeviceMemory(MEMORY_BYTES), b"bench")
        self.graph = model.architecture.graph("group")
        self._singles: dict[int, Found] = {}

    def run(self, threshold: float, grouping: Grouping, start: Circuit | None = None) -> Found:
        """Runs ACDC to its end."""
        executor = self._backend.open(self.graph, self.workload.task, "kl_divergence", "resample")
        begun = time.process_time()
        scored = 0.0  # seconds of the executor, as the server charges them
        search = AcdcSearch(self.graph, threshold, grouping, WINDOW, clock=lambda: scored, start=start)
        steps = search.run()
        passes = next(steps)
        while True:
            before = time.perf_counter()
            (scores,) = self._backend.score([(executor, passes)])
            scored += time.perf_counter() - before
            if isinstance(scores, Exception):
                raise scores
            try:
                passes = steps.send(scores)
            except StopIteration as stop:
                found = stop.value
                break
        seconds = time.process_time() - begun
        executor.release()
        return Found(len(found.verdicts), found.circuit.num_kept, found.metric_value, seconds)

    def single(self, step: int = 0) -> Found:
        """Runs single tests at the workload's threshold times so many steps."""
        if step not in self._singles:
            self._singles[step] = self.run(self.workload.threshold * STEP**step, "none")
        return self._singles[step]

    def kl_of_singles(self, edges: int) -> float:
        """The metric of circuits of single tests with so many edges, or a little less than that."""
        if edges <= self.single().edges <= (1 + NEARLY_EQUAL) * edges:
            return self.single().kl
        step = 0
        direction = 1 if self.single().edges >= edges else -1
        while (self.single(step).edges - edges) * direction > 0 and abs(step) < MOST_STEPS:
            step += direction
        one, other = self.single(step - direction), self.single(step)
        if one.edges == other.edges:
            return one.kl
        share = (edges - one.edges) / (other.edges - one.edges)
        return math.exp((1 - share) * math.log(one.kl) + share * math.log(other.kl))


def against_singles(workload: Workload) -> Figures:
    """A grouped search against one with single tests at the same threshold."""
    searches = Searches(workload)
    single, grouped = searches.single(), searches.run(workload.threshold, "bisect")
    return {
        **_told("none", single),
        **_told("bisect", grouped),
        "evaluations_ratio": grouped.evaluations / single.evaluations,
        "seconds_ratio": grouped.seconds / single.seconds,
        "kl_ratio": grouped.kl / searches.kl_of_singles(grouped.edges),
    }


def within_scores() -> Figures:
    """A grouped search within the largest scores of ``gim`` against single tests in the full graph."""
    searches = Searches(workloads.tinytalk())
    start, seconds = largest_scores()
    single, grouped = searches.single(), searches.run(searches.workload.threshold, "bisect", start)
    return {
        "edges_to_start_from": start.num_kept,
        "seconds_scores": seconds,
        **_told("within", grouped),
        "evaluations_ratio": grouped.evaluations / single.evaluations,
        "seconds_ratio": (grouped.seconds + seconds) / single.seconds,
        "kl_ratio": grouped.kl / searches.kl_of_singles(grouped.edges),
    }


def largest_scores() -> tuple[Circuit, float]:
    """The edges with the largest scores of ``gim`` on tinytalk, on paths only, and the CPU seconds."""
    engine = ModelEngine({"tinytalk": load(str(workloads.TINYTALK), TRANSFORMS["sparse"])})
    asked = workloads.tinytalk_texts()
    resolved = engine.resolve(Objective("tinytalk", asked, "logit_difference", "resample", "group", "fp32"))
    begun, artifact = time.process_time(), run_method(engine, resolved, "gim")
    seconds = time.process_time() - begun
    scores = np.abs(unpack(artifact.data)[1]["scores"])
    # Equal scores in the order of tests, which is that of falling indices.
    order = np.lexsort((-np.arange(len(scores)), -scores))
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[: int(WITHIN * len(scores))]] = True
    return Circuit(resolved.graph, Circuit(resolved.graph, kept).on_paths()), seconds


def _told(name: str, found: Found) -> Figures:
    return {
        f"evaluations_{name}": found.evaluations,
        f"edges_{name}": found.edges,
        f"kl_{name}": found.kl,
        f"seconds_{name}": found.seconds,
    }
