"""The worker: one device with its loaded models, and the states of jobs on them."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pahq_server.core.engine import (
    EngineStateId,
    HeadStoreUsage,
    MemoryUsage,
    Outcome,
    ResolvedObjective,
    Work,
    WorkerState,
    WorkerStatus,
)
from pahq_server.core.errors import ServerError
from pahq_server.core.generation import Decode
from pahq_server.core.operations import Operation, in_groups
from pahq_server.core.task import Tokenizer
from pahq_server.engine import devices
from pahq_server.engine.backends import Backend, EngineState, NoActivations, make_backend, precisions
from pahq_server.engine.catalogue import ServedModel
from pahq_server.engine.cost import DEFAULT_SHARE, MeasuredSpeed, Speed
from pahq_server.engine.generation.backend import GenerationBackend
from pahq_server.engine.generation.circuit_decoding import circuit_offer
from pahq_server.engine.generation.decoding import Generation
from pahq_server.engine.runners import RUNNERS, Runner
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory, page_bytes_for
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.memory.heap import Gaps, kept_free_bytes
from pahq_server.models.building import PLAIN, Transform
from pahq_server.models.folding import FOLDING, fold
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel
from pahq_server.precision import products

# How many matrix sizes `Worker.check` goes through: more than the kernels that libraries keep, so that
# every check needs a new kernel.
CHECKED_SIZES = 300
# How a loaded model is kept, by executor: with folded norms, or as it is.
TRANSFORMS: dict[str, Transform] = {"sparse": FOLDING, "literal": PLAIN}


class Worker:
    """Runs operations on loaded models. Implements `engine.WorkerPool`.

    Used from one thread, except `memory_usage` and what describes it.

    Args:
        served: models by the names that clients use, all on one device; as they are or, to save memory,
            loaded with `TRANSFORMS`.
        executor: one of `backends.EXECUTORS`; ``literal`` is slow and for comparison.
        memory_bytes: what all jobs together may take beside the weights; None for half of the device's
            memory.
        runners: how each class of operation is run, beside `Decode`.
        generation: generates text; None if nothing does.
    """

    def __init__(
        self,
        served: Mapping[str, LoadedModel],
        executor: str = "sparse",
        memory_bytes: int | None = None,
        runners: Mapping[type[Operation], Runner] = RUNNERS,
        generation: GenerationBackend | None = None,
    ) -> None:
        fold_model = fold if TRANSFORMS[executor] is FOLDING else (lambda model: model)
        self._served = {
            name: loaded
            if isinstance(loaded, ResidentModel)
            else replace(loaded, model=fold_model(loaded.model))
            for name, loaded in served.items()
        }
        models = [loaded.model for loaded in self._served.values()]
        (self._device,) = {model.device for model in models} or {torch.device("cpu")}
        self.memory_bytes = memory_bytes or int(DEFAULT_SHARE * devices.memory_bytes(self._device))
        self.memory = DeviceMemory(self.memory_bytes, page_bytes_for(models), self._device)
        self._executor = executor
        self._generation = Generation(generation, self._served)
        self._runners: Mapping[type[Operation], Runner] = {Decode: self._generation.run, **runners}
        self._backends: dict[tuple[str, str], Backend[Any]] = {}
        self._states: dict[EngineStateId, EngineState] = {}
        self._ids = itertools.count()
        self._gaps = Gaps(kept_free=kept_free_bytes(self.memory.scratch_bytes))
        self._checks = 0
        self._batches = 0
        self._processor = _processor()

    def speed(self) -> Speed:
        """Measures the speed of its device when asked."""
        return MeasuredSpeed(self._device, self._served)

    @property
    def tokenizers(self) -> dict[str, Tokenizer | None]:
        """Of the models, by name; None for a model that takes token ids only."""
        return {name: loaded.tokenizer for name, loaded in self._served.items()}

    @property
    def title(self) -> str:
        """What it computes on, in words."""
        return devices.title(self._device)

    def workers(self) -> list[WorkerStatus]:
        """Describes itself, the one worker of a pool of one."""
        return [
            WorkerStatus(
                number=0,
                state=WorkerState.READY,
                host=platform.node(),
                device=self.title,
                hardware=self.hardware(),
                batches=self._batches,
            )
        ]

    concurrent = False

    def unavailable(self) -> str:
        """Says why it cannot compute: a worker that cannot raises when it is asked to."""
        return ""

    @property
    def generation(self) -> str:
        """Name of what generates text; empty for nothing."""
        return self._generation.backend

    def hardware(self) -> dict[str, str]:
        """Says what the last bits of a score depend on, by name."""
        return {
            "torch": str(torch.__version__),
            "platform": platform.platform(),
            "processor": self._processor,
            "threads": str(torch.get_num_threads()),
            **devices.kind(self._device),
        }

    def models(self) -> list[ServedModel]:
        """Says what is served."""
        return [self._describe(name, loaded) for name, loaded in self._served.items()]

    def _describe(self, name: str, loaded: LoadedModel) -> ServedModel:
        generation, no_generation = self._generation.offer(name)
        circuit_generation, no_circuit_generation = circuit_offer(loaded, self.memory.batch_bytes)
        return ServedModel(
            name=name,
            architecture=loaded.model.architecture,
            revision=loaded.revision,
            parameters=loaded.model.parameters,
            precisions=precisions(self._executor, loaded),
            streams=isinstance(loaded, ResidentModel),
            generation=generation,
            no_generation=no_generation,
            circuit_generation=circuit_generation,
            no_circuit_generation=no_circuit_generation,
        )

    def memory_usage(self) -> MemoryUsage:
        """Says how full the pool of pages is, see `core.engine.Engine.memory_usage`."""
        pool = self.memory.pool.statistics()
        return MemoryUsage(
            page_bytes=pool.page_bytes,
            pages=pool.pages,
            used=pool.used,
            shared=pool.shared,
            # Because the worker may take pages meanwhile, the peak may be older than the use.
            peak_used=max(pool.peak_used, pool.used),
            scratch_bytes=self.memory.scratch_bytes,
            preemptions=self.memory.preemptions,
            head_store=self._head_store_usage(),
        )

    def _head_store_usage(self) -> HeadStoreUsage:
        resident = (loaded for loaded in self._served.values() if isinstance(loaded, ResidentModel))
        counts = [loaded.store.statistics for loaded in resident]
        return HeadStoreUsage(
            hits=sum(count.hits for count in counts),
            misses=sum(count.misses for count in counts),
            bytes_moved=sum(count.bytes_moved for count in counts),
        )

    # The parts of `core.engine.Engine` that need the device

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        objective, backend = resolved.objective, self._backend_for(resolved)
        executor = backend.open(resolved.graph, resolved.task, objective.metric, objective.ablation)
        if resolved.activations and resolved.clean_run.margins is None:
            try:
                resolved.clean_run.margins = executor.clean_margins()
            except BaseException:
                executor.release()
                raise
        state = EngineStateId(next(self._ids))
        self._states[state] = EngineState(
            resolved,
            self._served[objective.model],
            backend,
            executor,
            self.memory,
            lambda: self._quantized(objective.model, objective.precision),
        )
        return state

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        def run(group: list[Work]) -> Sequence[Outcome]:
            operation = type(group[0].operation)
            runner = self._runners.get(operation)
            if runner is None:
                return [ServerError(f"the engine has no runner for {operation.__name__}")] * len(group)
            return runner([(self._states[item.state], item.operation) for item in group])

        self._batches += 1
        return in_groups(lambda item: type(item.operation), work, run)

    def close(self, state: EngineStateId) -> None:
        closed = self._states.pop(state)
        self._generation.drop(closed)
        for free in closed.on_close:
            free()
        closed.executor.release()
        self._gaps.hand_back()

    def stop(self) -> None:
        """Ends all generators and their processes. Called when nothing runs any more."""
        self._generation.close()

    def check(self) -> None:
        """Multiplies matrices of small integers, whose product has one value in any arithmetic.

        Raises RuntimeError or MemoryError if the product is wrong or is not computed: a library that was
        refused memory once may refuse to work from then on.
        """
        # Libraries make a kernel for each number of rows, and keep some: this asks for a new one.
        self._checks += 1
        rows = 16 + self._checks % CHECKED_SIZES
        x = torch.arange(rows * 24, device=self._device, dtype=torch.float32).view(rows, 24) % 7
        w = torch.arange(24 * 8, device=self._device, dtype=torch.float32).view(24, 8) % 5
        expected = (x[:, :, None].double() * w.double()).sum(1)
        if not torch.equal(products.matmul(x, w).double(), expected):
            raise RuntimeError("a product of known matrices came out wrong")

    def _backend_for(self, resolved: ResolvedObjective) -> Backend[Any]:
        objective = resolved.objective
        if not resolved.activations:
            return NoActivations()
        return self._backend(objective.model, objective.precision)

    def _quantized(self, name: str, precision: str) -> QuantizedModel | None:
        """Returns the matrices of a model under a policy, see `EngineState`."""
        backend = self._backend(name, precision)
        return backend.quantized if isinstance(backend, SparseBackend) else None

    def _backend(self, name: str, precision: str) -> Backend[Any]:
        """Returns the backend of a model and policy.

        It is made for the first job that needs it, because rounded weights take memory of their own.
        """
        if (name, precision) not in self._backends:
            loaded = self._served[name]
            namespace = f"{name} {loaded.revision}".encode()
            self._backends[name, precision] = make_backend(
                loaded, self._executor, precision, self.memory, namespace
            )
        return self._backends[name, precision]


def _processor() -> str:
    """Describes what libraries choose CPU kernels by, because the last bits of a score depend on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
