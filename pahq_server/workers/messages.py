"""What the pool asks of a worker, and what a worker says of itself: frozen values, which `codec` encodes."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.core.engine import EngineStateId, MemoryUsage, Outcome, ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.engine.catalogue import ServedModel
from pahq_server.workers.passes import SentPasses


@dataclass(frozen=True)
class OpenState:
    """Opens the state of a job or session, as `Engine.open` does. The answer is `Opened`.

    Args:
        state: names it; chosen by the pool. A state that is open already is left as it is.
        resolved: its objective.
    """

    state: EngineStateId
    resolved: ResolvedObjective


@dataclass(frozen=True)
class Opened:
    """A state is open.

    Args:
        margins: see `core.engine.CleanRun`.
        memory: how full the worker's memory is now.
    """

    margins: tuple[float, ...] | None
    memory: MemoryUsage


@dataclass(frozen=True)
class RunOperations:
    """Runs operations of one class, as `Engine.run` does. The answer is `Ran`.

    Args:
        operations: with the names of the states that they run on; passes as `passes` sends them.
    """

    operations: tuple[tuple[EngineStateId, Operation | SentPasses], ...]


@dataclass(frozen=True)
class Ran:
    """Operations have run.

    Args:
        outcomes: one per operation, in order: its result, or the exception with which it failed.
        memory: how full the worker's memory is now.
    """

    outcomes: list[Outcome]
    memory: MemoryUsage


@dataclass(frozen=True)
class CloseState:
    """Frees the tensors of a state; of one that is not open, does nothing. The answer is None."""

    state: EngineStateId


@dataclass(frozen=True)
class CheckWorker:
    """Computes something whose result is known, as `Engine.check` does. The answer is None."""


Call = OpenState | RunOperations | CloseState | CheckWorker


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when its models are loaded.

    Args:
        host: name of its machine.
        device: what it computes on, in words.
        hardware: what the last bits of a score depend on, by name: processor, versions, threads.
        models: what it serves, in the order of their names.
        operations_s: multiplications and additions per second of large float32 products.
        bytes_s: bytes per second at which weights are read from the checkpoint's files, by name of the models
            of which rounded weights are in memory.
        memory_bytes: what all jobs together may take beside the weights.
        memory: how full its pool of pages is.
    """

    host: str
    device: str
    hardware: dict[str, str]
    models: tuple[ServedModel, ...]
    operations_s: float
    bytes_s: dict[str, float]
    memory_bytes: int
    memory: MemoryUsage
