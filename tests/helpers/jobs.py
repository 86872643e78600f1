"""Jobs of many shapes for the sparse executor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from helpers.random_passes import LENGTHS, random_passes, random_task
from pahq_server.core.circuit import PatchedPass
from pahq_server.core.graph import KvReceivers
from pahq_server.core.task import TokenTask
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold


@dataclass(frozen=True)
class Spec:
    """What a job is asked for. The first ``alike`` tokens of both prompts of a pair are the same."""

    lengths: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    ablation: str = "resample"
    metric: str = "kl_divergence"
    kv: KvReceivers = "group"
    alike: int = 0

    def task(self, model: Model) -> TokenTask:
        task = random_task(model, self.lengths, seed=len(self.lengths))
        assert task.corrupted is not None
        pairs = zip(task.clean, task.corrupted, strict=True)
        corrupted = tuple(a[: self.alike] + b[self.alike :] for a, b in pairs)
        return replace(task, corrupted=corrupted, positions=self.positions)

    def open(self, backend: SparseBackend, model: Model) -> SparseExecutor:
        graph = model.architecture.graph(self.kv)
        return backend.open(graph, self.task(model), self.metric, self.ablation)

    def passes(self, model: Model, seed: int) -> list[PatchedPass]:
        return random_passes(model.architecture.graph(self.kv), seed)


# Different in everything: prompts, lengths, where the metric is read, ablations, metrics, graphs.
SPECS = (
    Spec(LENGTHS),
    Spec((4, 4), ablation="zero", metric="l2"),
    Spec((9,), positions=(2, 5), metric="logit_difference", kv="query"),
    Spec((7, 6, 9), positions=(1, 4), ablation="mean"),
    Spec((2, 5, 3, 8, 6), metric="l2", kv="query"),
    Spec((6, 7), alike=3),
    Spec(LENGTHS, ablation="mean", metric="logit_difference", kv="query"),
    Spec(LENGTHS),  # the first once more
)


def backend_of(model: Model, memory: DeviceMemory | None = None) -> SparseBackend:
    return SparseBackend(fold(model), memory or DeviceMemory(1 << 27, 4096), b"test")
