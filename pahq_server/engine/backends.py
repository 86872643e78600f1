"""Backends: what runs the patched passes of one model under one precision policy, and the state of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import ConflictError, ServerError
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory
from pahq_server.engine.literal import LiteralBackend, LiteralExecutor
from pahq_server.engine.literal_rounded import RoundedExecutor, RoundedModel
from pahq_server.engine.metrics import Scores
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.loading import LoadedModel
from pahq_server.models.resident import ResidentWeights, make_resident
from pahq_server.models.streaming import ResidentModel
from pahq_server.precision.policy import POLICIES, Format, Policy

E = TypeVar("E")
R = TypeVar("R")

EXECUTORS = ("sparse", "literal")


def precisions(executor: str, loaded: LoadedModel) -> tuple[str, ...]:
    """Names the precision policies that jobs on a model can ask for.

    Args:
        executor: one of `EXECUTORS`.
        loaded: the model.

    Where only rounded weights are in memory, these are the policies that round weights in the same way, and
    fp32, which reads all weights from the checkpoint's files again and again.
    """
    if isinstance(loaded, ResidentModel):
        kept = _formats(loaded.resident.policy)
        differences = [p for p in POLICIES.values() if p.operand == "differences"]
        return tuple(p.name for p in differences if p.name == "fp32" or _formats(p) == kept)
    return tuple(policy.name for policy in policies(executor))


def policies(executor: str) -> tuple[Policy, ...]:
    """Returns the precision policies that jobs on a model in full precision can ask for."""
    known = tuple(POLICIES.values())
    if executor == "literal":
        return tuple(p for p in known if p.name == "fp32" or p.operand == "activations")
    return known


def _formats(policy: Policy) -> tuple[Format, Format, Format]:
    return policy.heads, policy.mlps, policy.embeddings


class Executor(Protocol):
    """The activations of one job, inside the backend that made them."""

    def clean_margins(self) -> tuple[float, ...] | None:
        """Returns the clean run's margin at each metric position, see `core.engine.CleanRun`; None for a task
        without answers or wrong answers.
        """
        ...

    def unpatched_logits(self, corrupted: bool, positions: slice) -> Tensor:
        """Returns the full model's logits at some of the metric positions, without any patch.

        Args:
            corrupted: whether of the corrupted prompts, which takes resample ablation; else of the clean
                ones.
            positions: which metric positions, as numbered by `TokenTask.metric_positions`.

        Returns:
            [positions, output vocabulary].
        """
        ...

    def release(self) -> None:
        """Frees all activations."""
        ...


class Backend(Protocol[E]):
    """Runs the patched passes of all jobs on one model under one policy."""

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> E:
        """Runs the clean and the ablated prompts of a job.

        Raises ResourceExhaustedError if there is no memory for it.
        """
        ...

    def score(self, work: Sequence[tuple[E, Sequence[PatchedPass]]]) -> list[Scores]:
        """Scores the passes of several jobs.

        Returns one outcome per job, in order: a job that fails does not affect the others.
        """
        ...


class NoActivations:
    """Backend and executor of a state whose prompts are not run: it has nothing to compute with."""

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> NoActivations:
        return self

    def score(self, work: Sequence[tuple[NoActivations, Sequence[PatchedPass]]]) -> list[Scores]:
        return [self._missing()] * len(work)

    def clean_margins(self) -> tuple[float, ...] | None:
        return None

    def unpatched_logits(self, corrupted: bool, positions: slice) -> Tensor:
        raise self._missing()

    def release(self) -> None:
        """Does nothing: there are no activations."""

    def _missing(self) -> ServerError:
        return ServerError("the method asked for activations, which it says that it does not need")


@dataclass(frozen=True, eq=False)
class EngineState:
    """What the engine holds for one job or session between `Engine.open` and `Engine.close`.

    Args:
        resolved: the objective that the state was opened for: tokens, graph, metric, ablation.
        loaded: the served model, as it is kept in memory: with folded norms under the sparse executor.
        backend: runs the patched passes of this model under this precision policy, for all jobs.
        executor: the job's own activations inside ``backend``.
        memory: of the device, shared by all states on it.
        quantized: gives the model's matrices under the objective's precision policy, as the sparse executor
            has them; None in full precision, and for the literal executor.
        kept: what runners keep for the state's next operations, under names of their own; freed with it.
        on_close: is called when the state is closed, to free what is not only Python's.
    """

    resolved: ResolvedObjective
    loaded: LoadedModel
    backend: Backend[Any]
    executor: Executor
    memory: DeviceMemory
    quantized: Callable[[], QuantizedModel | None]
    kept: dict[str, Any] = field(default_factory=dict)
    on_close: list[Callable[[], None]] = field(default_factory=list)

    def with_memory(self, what: str, run: Callable[[], R]) -> R:
        """Runs something that needs memory, a second time if other jobs can free what it lacks.

        Args:
            what: is run, for the error's message.
            run: can be called twice.

        Raises ResourceExhaustedError if there is not enough memory.
        """
        try:
            return run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self.memory.preempt(keep=())
        try:
            return run()
        except Exception as error:
            if is_out_of_memory(error):
                raise not_enough_memory(what, error) from error
            raise


def make_backend(
    loaded: LoadedModel, executor: str, precision: str, memory: DeviceMemory, namespace: bytes
) -> Backend[Any]:
    """Makes the backend of a model.

    Args:
        loaded: the model, folded for the sparse executor.
        executor: one of `EXECUTORS`.
        precision: one of `precisions`.
        memory: of the device, shared by all models on it.
        namespace: names the model's weights, not the policy: what jobs share is computed in full precision
            whatever their policies are.
    """
    model, policy = loaded.model, POLICIES[precision]
    if policy.operand == "activations":
        # Made when the first job opens, and only once, because it takes as much memory as the model.
        rounded_model = cache(lambda: RoundedModel(model, policy))
        return LiteralBackend(lambda *job: RoundedExecutor(rounded_model(), *job))
    if executor == "literal":
        return LiteralBackend(partial(LiteralExecutor, model))
    if isinstance(loaded, ResidentModel) and precision != "fp32":
        quantized: QuantizedModel | None = QuantizedModel.of_resident(loaded.resident, policy)
    elif loaded.stored.intersection(_formats(policy)):
        quantized = QuantizedModel.of_resident(_of_checkpoint(loaded, policy), policy)
    else:
        quantized = QuantizedModel.of(model, policy)
    return SparseBackend(model, memory, namespace, quantized)


def _of_checkpoint(loaded: LoadedModel, policy: Policy) -> ResidentWeights:
    """Reads a checkpoint's own weights in the policy's format, for a model that is in memory as floats.

    Rounding the floats would give other codes. Raises ConflictError if the checkpoint has been replaced.
    """
    checkpoint = CheckpointWeights.open(str(loaded.directory))
    if checkpoint.revision != loaded.revision:
        where = f"the checkpoint in {loaded.directory.name!r}"
        raise ConflictError(f"{where} was replaced while the model was served: load it again")
    return make_resident(checkpoint, policy, loaded.model.device)
