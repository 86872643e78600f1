"""The catalogue: what is known of the served models without their weights, and what that is enough for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from pahq_server.core.engine import Estimate, ModelInfo, Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, NotFoundError
from pahq_server.core.generation import GenerationOffer
from pahq_server.core.graph import KvReceivers
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import (
    DecodingTokenizer,
    TaskSpec,
    TokenIds,
    TokenizedText,
    Tokenizer,
    TokenTask,
)
from pahq_server.engine.cost import BYTES, Speed, estimate, job_bytes, slow_policy, token_bytes
from pahq_server.engine.metrics import METRICS, NEEDS_ANSWERS
from pahq_server.models.architecture import Architecture
from pahq_server.precision.policy import POLICIES
from pahq_server.tasks.resolve import ResolvedTask, has_text, resolve_task, tokenize
from pahq_server.tasks.texts import Limits, too_large
from pahq_server.tasks.time_limit import TimeLimit

ABLATIONS = ("resample", "zero", "mean")


@dataclass(frozen=True)
class ServedModel:
    """What a worker says of a model that it serves.

    Args:
        name: as clients call it.
        architecture: of the weights as they are kept.
        revision: SHA-256 of configuration and weights, hexadecimal.
        parameters: how many numbers of the checkpoint are read.
        precisions: precision policies that jobs can ask for.
        streams: whether ``fp32`` reads the weights from the checkpoint's files again and again.
        generation: what text can be generated; None if none can.
        no_generation: why none can, and what to do; empty if it can.
        circuit_generation, no_circuit_generation: the same under a circuit.
    """

    name: str
    architecture: Architecture
    revision: str
    parameters: int
    precisions: tuple[str, ...]
    streams: bool = False
    generation: GenerationOffer | None = None
    no_generation: str = ""
    circuit_generation: GenerationOffer | None = None
    no_circuit_generation: str = ""

    def describe(self, tokenizer: bool) -> ModelInfo:
        """Describes the model to clients; ``tokenizer`` tells whether it has one."""
        arch = self.architecture
        return ModelInfo(
            name=self.name,
            architecture=arch.model_type,
            revision=self.revision,
            layers=arch.layers,
            heads=arch.heads,
            kv_heads=arch.kv_heads,
            d_model=arch.d_model,
            vocabulary=arch.vocabulary,
            context=arch.context,
            parameters=self.parameters,
            tokenizer=tokenizer,
            edges_group=arch.graph("group").num_edges,
            edges_query=arch.graph("query").num_edges,
            generation="" if self.generation is None else self.generation.backend,
            no_generation=self.no_generation,
        )


class Catalogue:
    """Checks what is asked of models, and says what it will take. May be used from any thread.

    Args:
        models: what is served.
        tokenizers: of the models, by name; None for a model that takes token ids only.
        memory_bytes: what all jobs of a worker may take beside the weights.
        speed: of the device of a worker.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        tokenizers: Mapping[str, Tokenizer | None],
        memory_bytes: int,
        speed: Speed,
    ) -> None:
        self._served = {model.name: model for model in models}
        self._tokenizers, self._memory_bytes, self._speed = tokenizers, memory_bytes, speed
        self._time_limits = {name: TimeLimit() for name in self._served}

    @property
    def precisions(self) -> tuple[str, ...]:
        """All precision policies that jobs on some model can ask for."""
        return tuple(dict.fromkeys(name for model in self._served.values() for name in model.precisions))

    def models(self) -> list[ModelInfo]:
        """Describes the served models, in the order of their names."""
        return [
            model.describe(self._tokenizers[name] is not None) for name, model in sorted(self._served.items())
        ]

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        """Checks an objective, see `core.engine.Engine.resolve`."""
        served = self._find(objective.model)
        for field, value, allowed in (
            ("metric", objective.metric, tuple(METRICS)),
            ("ablation", objective.ablation, ABLATIONS),
            ("kv_receivers", objective.kv_receivers, get_args(KvReceivers)),
            ("precision", objective.precision, served.precisions),
        ):
            if value not in allowed:
                raise InvalidRequestError(field, f"unknown {field} {value!r}; one of {list(allowed)}")
        arch = served.architecture
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
        return ResolvedObjective(
            objective,
            task,
            graph,
            served.revision,
            baseline_depends_on_promotion,
            arch.causal,
            arch.norm is not None,
            found.prompts,
            (*found.warnings, *slow),
            activations=activations,
            generation=None if activations else served.generation,
            no_generation="" if activations else served.no_generation,
            circuit_generation=None if activations else served.circuit_generation,
            no_circuit_generation="" if activations else served.no_circuit_generation,
            nodes=NodeLayout(arch.layers, arch.heads, arch.d_head, arch.d_model, arch.d_mlp),
            gated_mlps=arch.gated,
        )

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        """Shows how texts are tokenized, see `core.engine.Engine.tokenize`."""
        self._find(model)
        tokenizer, limits = self._tokenizers[model], self._limits(model)
        return self._time_limits[model].run(
            lambda out_of_time: tokenize(texts, special, prompt, tokenizer, limits, out_of_time), "texts"
        )

    def token_texts(
        self, model: str, prompts: Sequence[TokenIds], tokens: Sequence[Sequence[int]]
    ) -> list[list[str]]:
        """Returns tokens as text, see `core.engine.Engine.token_texts`."""
        self._find(model)
        tokenizer = self._tokenizers[model]
        if not isinstance(tokenizer, DecodingTokenizer):
            return [[""] * len(ids) for ids in tokens]
        return [tokenizer.texts_after(*pair) for pair in zip(prompts, tokens, strict=True)]

    def estimate(
        self, resolved: ResolvedObjective, weight: float | None = None, tests: tuple[int, int] | None = None
    ) -> Estimate:
        """Estimates what a job takes, see `core.engine.Engine.estimate`."""
        served = self._find(resolved.objective.model)
        streams = served.streams and resolved.objective.precision == "fp32"
        streamed_bytes = served.parameters * BYTES if streams else 0
        return estimate(served.architecture, resolved, self._speed, streamed_bytes, weight, tests)

    def stop_tokenizing(self) -> None:
        """Makes all calls fail that wait for a tokenizer, which may hang. Called when the process ends."""
        for limit in self._time_limits.values():
            limit.close()

    def _resolve(self, model: str, task: TaskSpec, activations: bool) -> ResolvedTask:
        tokenizer, limits = self._tokenizers[model], self._limits(model)
        if not activations:
            limits = replace(limits, memory=0, token_bytes=0)
        if tokenizer is None or not has_text(task):
            return resolve_task(task, tokenizer, limits)
        return self._time_limits[model].run(
            lambda out_of_time: resolve_task(task, tokenizer, limits, out_of_time)
        )

    def _limits(self, model: str) -> Limits:
        arch = self._served[model].architecture
        return Limits(
            arch.vocabulary, arch.output_vocabulary, arch.context, self._memory_bytes, token_bytes(arch)
        )

    def _check_size(self, arch: Architecture, task: TokenTask) -> None:
        needed = job_bytes(arch, task)
        if needed > self._memory_bytes:
            raise too_large(needed, self._memory_bytes)

    def _find(self, name: str) -> ServedModel:
        if name not in self._served:
            raise NotFoundError(f"model {name!r}", f"served models: {', '.join(sorted(self._served))}")
        return self._served[name]


def _check_needs(objective: Objective, task: TokenTask) -> None:
    """Raises InvalidRequestError if a task lacks what the metric or the ablation needs."""
    if objective.ablation == "resample" and task.corrupted is None:
        raise InvalidRequestError("task.corrupted", "resample ablation needs corrupted prompts")
    if objective.metric in NEEDS_ANSWERS:
        for field, value in (("answers", task.answers), ("wrong_answers", task.wrong_answers)):
            if value is None:
                raise InvalidRequestError(f"task.{field}", f"metric {objective.metric!r} needs {field}")
