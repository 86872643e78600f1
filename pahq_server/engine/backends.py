"""What runs the jobs of one model under one precision policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Protocol, TypeVar

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralBackend, LiteralExecutor
from pahq_server.engine.literal_rounded import RoundedExecutor, RoundedModel
from pahq_server.engine.metrics import Scores
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel
from pahq_server.precision.policy import POLICIES, Format, Policy

E = TypeVar("E")

EXECUTORS = ("sparse", "literal")


def precisions(executor: str, loaded: LoadedModel) -> tuple[str, ...]:
    """Names of the policies that jobs on a model can ask for.

    Where only rounded weights are in memory, these are the policies that round weights alike, and fp32,
    which reads all weights from the checkpoint's files again and again.
    """
    if isinstance(loaded, ResidentModel):
        kept = _formats(loaded.resident.policy)
        differences = [p for p in POLICIES.values() if p.operand == "differences"]
        return tuple(p.name for p in differences if p.name == "fp32" or _formats(p) == kept)
    return tuple(policy.name for policy in policies(executor))


def policies(executor: str) -> tuple[Policy, ...]:
    """What jobs on a model in full precision can ask for."""
    known = tuple(POLICIES.values())
    if executor == "literal":
        return tuple(p for p in known if p.name == "fp32" or p.operand == "activations")
    return known


def _formats(policy: Policy) -> tuple[Format, Format, Format]:
    return policy.heads, policy.mlps, policy.embeddings


class Executor(Protocol):
    """Values of one job."""

    def clean_margins(self) -> tuple[float, ...] | None:
        """What a `CleanRun` holds."""
        ...

    def release(self) -> None: ...


class Backend(Protocol[E]):
    """Runs the jobs of one model under one policy."""

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> E:
        """Runs the clean and ablated passes of a job. Raises ResourceExhaustedError."""
        ...

    def score(self, work: Sequence[tuple[E, Sequence[PatchedPass]]]) -> list[Scores]:
        """One outcome per job, in order: a failing one does not hurt the others."""
        ...


def make_backend(
    loaded: LoadedModel, executor: str, precision: str, memory: DeviceMemory, namespace: bytes
) -> Backend[Any]:
    """The backend of a model.

    Args:
        loaded: folded for the sparse executor.
        executor: one of `EXECUTORS`.
        precision: one of `precisions`.
        memory: of the device.
        namespace: names the model's weights. Policies share what is computed of prefixes: bases are in full
            precision under every one that has any.
    """
    model, policy = loaded.model, POLICIES[precision]
    if policy.operand == "activations":
        # QuantizedModel for the first job, and once: it takes as much memory as the model.
        rounded_model = cache(lambda: RoundedModel(model, policy))
        return LiteralBackend(lambda *job: RoundedExecutor(rounded_model(), *job))
    if executor == "literal":
        return LiteralBackend(partial(LiteralExecutor, model))
    if isinstance(loaded, ResidentModel) and precision != "fp32":
        rounded: QuantizedModel | None = QuantizedModel(policy, loaded.resident.layers, loaded.resident.w_u)
    else:
        rounded = QuantizedModel.of(model, policy)
    return SparseBackend(model, memory, namespace, rounded)
