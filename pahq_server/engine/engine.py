"""The engine: loaded models, the states of jobs, and operations on them."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from pahq_server.core.engine import (
    Capabilities,
    EngineStateId,
    Estimate,
    HeadStoreUsage,
    MemoryUsage,
    ModelInfo,
    Objective,
    Outcome,
    ResolvedObjective,
    Work,
    WorkerState,
    WorkerStatus,
)
from pahq_server.core.errors import InvalidRequestError, NotFoundError, ServerError
from pahq_server.core.generation import Decode, GenerationOffer
from pahq_server.core.graph import KvReceivers
from pahq_server.core.operations import Operation, in_groups
from pahq_server.core.task import DecodingTokenizer, TaskSpec, TokenIds, TokenizedText, TokenTask
from pahq_server.engine import devices
from pahq_server.engine.backends import Backend, EngineState, NoActivations, make_backend, precisions
from pahq_server.engine.cost import DEFAULT_SHARE, Estimator, job_bytes, slow_policy, token_bytes
from pahq_server.engine.generation.backend import GenerationBackend
from pahq_server.engine.generation.circuit_decoding import circuit_offer
from pahq_server.engine.generation.decoding import Generation
from pahq_server.engine.metrics import METRICS, NEEDS_ANSWERS
from pahq_server.engine.runners import RUNNERS, Runner
from pahq_server.engine.sparse.memory import DeviceMemory, page_bytes_for
from pahq_server.memory.heap import Gaps, kept_free_bytes
from pahq_server.models.architecture import Architecture
from pahq_server.models.building import PLAIN, Transform
from pahq_server.models.folding import FOLDING, fold
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel
from pahq_server.precision import products
from pahq_server.precision.policy import POLICIES
from pahq_server.tasks.builtin import BUILTIN_TASKS
from pahq_server.tasks.resolve import ResolvedTask, has_text, resolve_task, tokenize
from pahq_server.tasks.texts import Limits, too_large
from pahq_server.tasks.time_limit import TimeLimit

ABLATIONS = ("resample", "zero", "mean")
# How many matrix sizes `ModelEngine.check` goes through: more than the kernels that libraries keep, so that
# every check needs a new kernel.
CHECKED_SIZES = 300
# How a loaded model is kept, by executor: with folded norms, or as it is.
TRANSFORMS: dict[str, Transform] = {"sparse": FOLDING, "literal": PLAIN}


class ModelEngine:
    """Serves loaded models. Implements `core.engine.Engine`.

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
        self._memory_bytes = memory_bytes or int(DEFAULT_SHARE * devices.memory_bytes(self._device))
        self.memory = DeviceMemory(self._memory_bytes, page_bytes_for(models), self._device)
        self._executor = executor
        self._generation = Generation(generation, self._served)
        room = self.memory.batch_bytes
        self._circuit_offers = {name: circuit_offer(loaded, room) for name, loaded in self._served.items()}
        self._runners: Mapping[type[Operation], Runner] = {Decode: self._generation.run, **runners}
        self._backends: dict[tuple[str, str], Backend[Any]] = {}
        self._states: dict[EngineStateId, EngineState] = {}
        self._ids = itertools.count()
        self._estimator = Estimator()
        self._gaps = Gaps(kept_free=kept_free_bytes(self.memory.scratch_bytes))
        self._checks = 0
        self._batches = 0
        self._processor = _processor()
        self._time_limits = {name: TimeLimit() for name in self._served}

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device=devices.title(self._device),
            metrics=tuple(METRICS),
            ablations=ABLATIONS,
            precisions=tuple(
                dict.fromkeys(
                    name for loaded in self._served.values() for name in precisions(self._executor, loaded)
                )
            ),
            tasks=tuple(BUILTIN_TASKS),
            hardware={
                "torch": torch.__version__,
                "platform": platform.platform(),
                "processor": self._processor,
                "threads": str(torch.get_num_threads()),
                **devices.kind(self._device),
            },
            generation=self._generation.backend,
        )

    def memory_usage(self) -> MemoryUsage:
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

    def workers(self) -> list[WorkerStatus]:
        own = self.capabilities()
        return [
            WorkerStatus(
                number=0,
                state=WorkerState.READY,
                host=platform.node(),
                device=own.device,
                hardware=own.hardware,
                batches=self._batches,
            )
        ]

    def unavailable(self) -> str:
        return ""

    def models(self) -> list[ModelInfo]:
        return [
            _describe(name, loaded, *self._generation.offer(name))
            for name, loaded in sorted(self._served.items())
        ]

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        loaded = self._find(objective.model)
        for field, value, allowed in (
            ("metric", objective.metric, tuple(METRICS)),
            ("ablation", objective.ablation, ABLATIONS),
            ("kv_receivers", objective.kv_receivers, get_args(KvReceivers)),
            ("precision", objective.precision, precisions(self._executor, loaded)),
        ):
            if value not in allowed:
                raise InvalidRequestError(field, f"unknown {field} {value!r}; one of {list(allowed)}")
        arch = loaded.model.architecture
        found = self._resolve(objective.model, objective.task, activations)
        task = found.task
        if activations:
            _check_needs(objective, task)
            self._check_size(arch, task)
        graph = arch.graph("group" if objective.kv_receivers == "group" else "query")
        policy = POLICIES[objective.precision]
        # Where changes are rounded, a pass without changes has the same score whatever is promoted.
        baseline_depends_on_promotion = policy.promotes and policy.operand == "activations"
        slow = slow_policy(arch, task, graph, objective.precision) if activations else ()
        none: tuple[GenerationOffer | None, str] = (None, "")
        offer, why_none = none if activations else self._generation.offer(objective.model)
        under_circuit, why_no_circuit = none if activations else self._circuit_offers[objective.model]
        return ResolvedObjective(
            objective,
            task,
            graph,
            loaded.revision,
            baseline_depends_on_promotion,
            arch.causal,
            arch.norm is not None,
            found.prompts,
            (*found.warnings, *slow),
            activations=activations,
            generation=offer,
            no_generation=why_none,
            circuit_generation=under_circuit,
            no_circuit_generation=why_no_circuit,
        )

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        tokenizer, limits = self._find(model).tokenizer, self._limits(model)
        return self._time_limits[model].run(
            lambda out_of_time: tokenize(texts, special, prompt, tokenizer, limits, out_of_time), "texts"
        )

    def token_texts(
        self, model: str, prompts: Sequence[TokenIds], tokens: Sequence[Sequence[int]]
    ) -> list[list[str]]:
        tokenizer = self._find(model).tokenizer
        if not isinstance(tokenizer, DecodingTokenizer):
            return [[""] * len(ids) for ids in tokens]
        return [tokenizer.texts_after(*pair) for pair in zip(prompts, tokens, strict=True)]

    def stop_generating(self) -> None:
        """Ends all generators and their processes. Called when the worker thread has ended."""
        self._generation.close()

    def stop_tokenizing(self) -> None:
        """Makes all calls fail that wait for a tokenizer, which may hang. Called when the process ends."""
        for limit in self._time_limits.values():
            limit.close()

    def _resolve(self, model: str, task: TaskSpec, activations: bool) -> ResolvedTask:
        tokenizer, limits = self._served[model].tokenizer, self._limits(model)
        if not activations:
            limits = replace(limits, memory=0, token_bytes=0)
        if tokenizer is None or not has_text(task):
            return resolve_task(task, tokenizer, limits)
        return self._time_limits[model].run(
            lambda out_of_time: resolve_task(task, tokenizer, limits, out_of_time)
        )

    def _limits(self, model: str) -> Limits:
        arch = self._served[model].model.architecture
        return Limits(
            arch.vocabulary, arch.output_vocabulary, arch.context, self._memory_bytes, token_bytes(arch)
        )

    def estimate(
        self, resolved: ResolvedObjective, weight: float | None = None, tests: tuple[int, int] | None = None
    ) -> Estimate:
        return self._estimator.estimate(self._find(resolved.objective.model), resolved, weight, tests)

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
        self._states[state] = EngineState(resolved, self._served[objective.model], backend, executor)
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
        closed.executor.release()
        self._gaps.hand_back()

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

    def _check_size(self, arch: Architecture, task: TokenTask) -> None:
        needed = job_bytes(arch, task)
        if needed > self._memory_bytes:
            raise too_large(needed, self._memory_bytes)

    def _find(self, name: str) -> LoadedModel:
        if name not in self._served:
            raise NotFoundError(f"model {name!r}", f"served models: {', '.join(sorted(self._served))}")
        return self._served[name]


def _processor() -> str:
    """Describes what libraries choose CPU kernels by, because the last bits of a score depend on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"


def _check_needs(objective: Objective, task: TokenTask) -> None:
    """Raises InvalidRequestError if a task lacks what the metric or the ablation needs."""
    if objective.ablation == "resample" and task.corrupted is None:
        raise InvalidRequestError("task.corrupted", "resample ablation needs corrupted prompts")
    if objective.metric in NEEDS_ANSWERS:
        for field, value in (("answers", task.answers), ("wrong_answers", task.wrong_answers)):
            if value is None:
                raise InvalidRequestError(f"task.{field}", f"metric {objective.metric!r} needs {field}")


def _describe(name: str, loaded: LoadedModel, offer: GenerationOffer | None, why_none: str) -> ModelInfo:
    arch = loaded.model.architecture
    return ModelInfo(
        name=name,
        architecture=arch.model_type,
        revision=loaded.revision,
        layers=arch.layers,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        d_model=arch.d_model,
        vocabulary=arch.vocabulary,
        context=arch.context,
        parameters=loaded.model.parameters,
        tokenizer=loaded.tokenizer is not None,
        edges_group=arch.graph("group").num_edges,
        edges_query=arch.graph("query").num_edges,
        generation="" if offer is None else offer.backend,
        no_generation=why_none,
    )
