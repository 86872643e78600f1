"""The engine: a catalogue of models, and the pool of workers that runs operations on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pahq_server.core.engine import (
    Capabilities,
    EngineStateId,
    Estimate,
    MemoryUsage,
    ModelInfo,
    Objective,
    Outcome,
    ResolvedObjective,
    Work,
    WorkerStatus,
)
from pahq_server.core.operations import Operation
from pahq_server.core.task import TokenIds, TokenizedText
from pahq_server.engine.catalogue import ABLATIONS, Catalogue
from pahq_server.engine.generation.backend import GenerationBackend
from pahq_server.engine.metrics import METRICS
from pahq_server.engine.runners import RUNNERS, Runner
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.worker import Worker
from pahq_server.models.loading import LoadedModel
from pahq_server.tasks.builtin import BUILTIN_TASKS


class WorkerPool(Protocol):
    """Runs operations on one worker or several; a `Worker` is a pool of one.

    Methods without a description are those of `core.engine.Engine`.
    """

    @property
    def concurrent(self) -> bool: ...

    def open(self, resolved: ResolvedObjective) -> EngineStateId: ...

    def run(self, work: Sequence[Work]) -> list[Outcome]: ...

    def close(self, state: EngineStateId) -> None: ...

    def check(self) -> None: ...

    def memory_usage(self) -> MemoryUsage: ...

    def workers(self) -> list[WorkerStatus]: ...

    def unavailable(self) -> str: ...

    def hardware(self) -> dict[str, str]:
        """Says what the last bits of a score depend on, by name."""
        ...

    @property
    def title(self) -> str:
        """What is computed on, in words."""
        ...

    @property
    def generation(self) -> str:
        """Name of what generates text; empty for nothing."""
        ...

    def stop(self) -> None:
        """Ends all processes that belong to workers. Called when nothing runs any more."""
        ...


class PoolEngine:
    """Serves models on the workers of a pool. Implements `core.engine.Engine`.

    Args:
        catalogue: what is served.
        pool: runs operations.
    """

    def __init__(self, catalogue: Catalogue, pool: WorkerPool) -> None:
        self._catalogue, self._pool = catalogue, pool

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device=self._pool.title,
            metrics=tuple(METRICS),
            ablations=ABLATIONS,
            precisions=self._catalogue.precisions,
            tasks=tuple(BUILTIN_TASKS),
            hardware=self._pool.hardware(),
            generation=self._pool.generation,
        )

    def models(self) -> list[ModelInfo]:
        return self._catalogue.models()

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        return self._catalogue.resolve(objective, activations)

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        return self._catalogue.tokenize(model, texts, special, prompt)

    def token_texts(
        self, model: str, prompts: Sequence[TokenIds], tokens: Sequence[Sequence[int]]
    ) -> list[list[str]]:
        return self._catalogue.token_texts(model, prompts, tokens)

    def estimate(
        self, resolved: ResolvedObjective, weight: float | None = None, tests: tuple[int, int] | None = None
    ) -> Estimate:
        return self._catalogue.estimate(resolved, weight, tests)

    def memory_usage(self) -> MemoryUsage:
        return self._pool.memory_usage()

    def workers(self) -> list[WorkerStatus]:
        return self._pool.workers()

    def unavailable(self) -> str:
        return self._pool.unavailable()

    @property
    def concurrent(self) -> bool:
        return self._pool.concurrent

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        return self._pool.open(resolved)

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        return self._pool.run(work)

    def close(self, state: EngineStateId) -> None:
        self._pool.close(state)

    def check(self) -> None:
        self._pool.check()

    def stop_tokenizing(self) -> None:
        """Makes all calls fail that wait for a tokenizer, which may hang. Called when the process ends."""
        self._catalogue.stop_tokenizing()

    def stop(self) -> None:
        """Ends all processes that belong to workers. Called when the worker thread has ended."""
        self._pool.stop()


class ModelEngine(PoolEngine):
    """Serves loaded models on one worker, in this process. See `Worker` for the arguments."""

    def __init__(
        self,
        served: Mapping[str, LoadedModel],
        executor: str = "sparse",
        memory_bytes: int | None = None,
        runners: Mapping[type[Operation], Runner] = RUNNERS,
        generation: GenerationBackend | None = None,
    ) -> None:
        worker = Worker(served, executor, memory_bytes, runners, generation)
        catalogue = Catalogue(worker.models(), worker.tokenizers, worker.memory_bytes, worker.speed())
        super().__init__(catalogue, worker)
        self.worker = worker

    @property
    def memory(self) -> DeviceMemory:
        """The memory of the worker."""
        return self.worker.memory
