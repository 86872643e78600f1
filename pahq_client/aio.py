"""The client for asyncio: the same classes as those of the blocking client, with ``await``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from pahq_client._job_options import (
    GenerateOptions,
    GenerateRequest,
    JobOptions,
    JobRequest,
    generate_options,
    job_options,
)
from pahq_client._requests import CurveRequest, EvaluationOptions, SessionRequest
from pahq_client._transport import AsyncTransport
from pahq_client.artifacts import AnyArtifact
from pahq_client.assigned_concepts import AssignedConcepts
from pahq_client.assigning import AblateRequest, AssignRequest
from pahq_client.checks import known_arguments
from pahq_client.circuit import Circuit
from pahq_client.client import Client, ClientBase
from pahq_client.codebook import Codebook
from pahq_client.concept_ablation import ConceptAblation
from pahq_client.connection import TlsConfig
from pahq_client.curve import FRACTIONS, Curve
from pahq_client.display.progress import ProgressLike
from pahq_client.dose_response import LEAST_CONTROLS, STRENGTHS, DoseRequest, DoseResponse, Scorer
from pahq_client.events import Event, JobInfo, JobState
from pahq_client.graph import Edge
from pahq_client.jobs import JobBase, JobCalls, JobHandle
from pahq_client.learning import LearnRequest
from pahq_client.locating import GivenTexts, LocateRequest
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.node_evaluation import NodeEvaluation
from pahq_client.predictions import Predictions, TaskCheck
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
from pahq_client.retries import Backoff
from pahq_client.samples import Sample, Samples
from pahq_client.scores import EdgeScores
from pahq_client.session import Edges, Session, SessionBase, SessionCalls
from pahq_client.task import PromptLike, TaskLike

F = TypeVar("F")


def described_as(original: Any) -> Callable[[F], F]:
    """Gives a method the docstring of its blocking twin, so that there is one text to maintain."""

    def describe(twin: F) -> F:
        twin.__doc__ = original.__doc__
        return twin

    return describe


class AsyncClient(ClientBase):
    """A `Client` for asyncio: the same methods and arguments, with ``await`` wherever the server is asked.

    An asynchronous context manager. It belongs to the event loop in which it makes its first call; any
    number of tasks may use it at a time. A task that is cancelled ends its call, and if that is `discover`,
    its job. ``progress`` is called in the event loop and must not block.
    """

    @known_arguments
    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(address, token, tls, timeout, backoff)
        self._transport = AsyncTransport(self._endpoint)

    @described_as(Client.models)
    async def models(self) -> list[Model]:
        return await self._transport.run(self._calls.models())

    @described_as(Client.tokenize)
    @known_arguments
    async def tokenize(
        self,
        model: str,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        special_tokens: bool = True,
    ) -> list[TokenizedText]:
        return await self._transport.run(self._calls.tokenize(model, texts, prompt, special_tokens))

    @described_as(Client.predict)
    @known_arguments
    async def predict(self, model: str, texts: PromptLike | Iterable[PromptLike], k: int = 5) -> Predictions:
        return await self._transport.run(self._calls.predict(model, texts, k))

    @described_as(Client.check_task)
    @known_arguments
    async def check_task(self, model: str, task: TaskLike) -> TaskCheck:
        return await self._transport.run(self._calls.check_task(model, task))

    @described_as(Client.server_info)
    async def server_info(self) -> ServerInfo:
        return await self._transport.run(self._calls.server_info())

    @overload
    async def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: NodeCircuit,
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> NodeEvaluation: ...
    @overload
    async def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | Iterable[str | Edge],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> Evaluation: ...
    @described_as(Client.evaluate)
    @known_arguments
    async def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | NodeCircuit | Iterable[str | Edge],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> Evaluation | NodeEvaluation:
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return await self._transport.run(self._calls.evaluate(model, task, circuit, options))

    @described_as(Client.evaluate_many)
    @known_arguments
    async def evaluate_many(
        self,
        model: str,
        task: TaskLike,
        circuits: Iterable[Circuit | Iterable[str | Edge]],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
        timeout: float | None = None,
    ) -> list[Evaluation]:
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        steps = self._calls.evaluate_many(model, task, circuits, options, timeout)
        return await self._transport.run(steps)

    @described_as(Client.estimate)
    @known_arguments
    @job_options
    async def estimate(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Estimate:
        request = JobRequest(model, task, threshold, **options)
        return await self._transport.run(self._calls.estimate(request))

    @described_as(Client.submit)
    @known_arguments
    @job_options
    async def submit(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJobHandle:
        request = JobRequest(model, task, threshold, **options)
        return AsyncJobHandle(self._transport, await self._transport.run(self._calls.submit(request)))

    @described_as(Client.discover)
    @known_arguments
    @job_options
    async def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[JobOptions],
    ) -> AnyArtifact:
        request = JobRequest(model, task, threshold, **options)
        return await self._transport.run(self._calls.discover(request, timeout, progress))

    @described_as(Client.attribute)
    @known_arguments
    async def attribute(
        self,
        model: str,
        task: TaskLike,
        method: str = "eap",
        *,
        metric: str | None = None,
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
        steps: int | None = None,
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> EdgeScores:
        request = JobRequest(
            *(model, task),
            method=method,
            metric=metric,
            ablation=ablation,
            kv_receivers=kv_receivers,
            precision=precision,
            steps=steps,
            include_prompts=include_prompts,
        )
        return await self._transport.run(self._calls.attribute(request, timeout, progress))

    @described_as(Client.prune_nodes)
    @known_arguments
    async def prune_nodes(
        self,
        model: str,
        task: TaskLike,
        *,
        max_kl: float | None = None,
        penalty: float | None = None,
        steps: int = 1000,
        kinds: Iterable[str] | None = None,
        seed: int = 0,
        task_loss: float = 0.0,
        polish: bool = True,
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> NodeCircuit:
        request = JobRequest(
            *(model, task),
            method="node_pruning",
            max_kl=max_kl,
            penalty=penalty,
            steps=steps,
            kinds=kinds,
            seed=seed,
            task_loss=task_loss,
            polish=polish,
            ablation=ablation,
            kv_receivers=kv_receivers,
            precision=precision,
            include_prompts=include_prompts,
        )
        return await self._transport.run(self._calls.prune_nodes(request, timeout, progress))

    @described_as(Client.learn_concepts)
    @known_arguments
    async def learn_concepts(
        self,
        model: str,
        texts: GivenTexts,
        *,
        layer: int | None = None,
        layers: Iterable[int] | None = None,
        codes: int = 400,
        neighbours: int | None = None,
        temperature: float = 1.0,
        steps: int = 1000,
        batch: int = 512,
        learning_rate: float = 1e-3,
        memory: str = "quantized",
        decoder_layers: int = 6,
        decoder_heads: int = 8,
        seed: int = 0,
        max_states: int = 1_000_000,
        skip: int = 1,
        long_texts: str = "refuse",
        precision: str = "fp32",
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> Codebook:
        request = LearnRequest(
            model,
            texts,
            layer=layer,
            layers=layers,
            codes=codes,
            neighbours=neighbours,
            temperature=temperature,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            memory=memory,
            decoder_layers=decoder_layers,
            decoder_heads=decoder_heads,
            seed=seed,
            max_states=max_states,
            skip=skip,
            long_texts=long_texts,
            precision=precision,
            include_prompts=include_prompts,
        )
        return await self._transport.run(self._calls.learn_concepts(request, timeout, progress))

    @described_as(Client.assign_concepts)
    @known_arguments
    async def assign_concepts(
        self,
        model: str,
        codebook: Codebook,
        texts: GivenTexts,
        *,
        skip: int | None = None,
        long_texts: str = "refuse",
        precision: str = "fp32",
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> AssignedConcepts:
        request = AssignRequest(model, codebook, texts, skip, long_texts, precision)
        return await self._transport.run(self._calls.assign_concepts(request, timeout, progress))

    @described_as(Client.ablate_concepts)
    @known_arguments
    async def ablate_concepts(
        self,
        model: str,
        codebook: Codebook,
        texts: GivenTexts,
        labels: Iterable[Hashable] | None = None,
        *,
        layer: int | None = None,
        positions: Iterable[int] | None = None,
        seed: int = 0,
        skip: int | None = None,
        long_texts: str = "refuse",
        precision: str = "fp32",
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> ConceptAblation:
        request = AblateRequest(
            *(model, codebook, texts, labels, layer, positions, seed, skip, long_texts, precision)
        )
        return await self._transport.run(self._calls.ablate_concepts(request, timeout, progress))

    @described_as(Client.locate_neurons)
    @known_arguments
    async def locate_neurons(
        self,
        model: str,
        positive: GivenTexts,
        negative: GivenTexts,
        *,
        tokens: str = "all",
        top_k: int = 2000,
        min_delta: float = 0.1,
        long_texts: str = "refuse",
        overlap: int = 64,
        generate: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        include_prompts: bool = True,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> NeuronSet:
        request = LocateRequest(
            *(model, positive, negative, tokens, top_k, min_delta),
            long_texts=long_texts,
            overlap=overlap,
            generate=generate,
            precision=precision,
            include_prompts=include_prompts,
        )
        return await self._transport.run(self._calls.locate_neurons(request, timeout, progress))

    @described_as(Client.dose_response)
    @known_arguments
    async def dose_response(
        self,
        model: str,
        neurons: NeuronSet,
        prompts: PromptLike | Iterable[PromptLike],
        scorer: Scorer,
        *,
        strengths: Iterable[float] = STRENGTHS,
        controls: int = LEAST_CONTROLS,
        seed: int = 0,
        generate: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> DoseResponse:
        request = DoseRequest(model, neurons, prompts, scorer, strengths, controls, seed, generate)
        return await self._transport.run(self._calls.dose_response(request, timeout, progress))

    @described_as(Client.generate)
    @known_arguments
    @generate_options
    async def generate(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[GenerateOptions],
    ) -> Samples:
        request = GenerateRequest(model, prompts, **options)
        return await self._transport.run(self._calls.generate(request, timeout, progress))

    @described_as(Client.submit_generate)
    @known_arguments
    @generate_options
    async def submit_generate(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        **options: Unpack[GenerateOptions],
    ) -> AsyncJobHandle:
        request = GenerateRequest(model, prompts, **options)
        job = await self._transport.run(self._calls.submit_generate(request))
        return AsyncJobHandle(self._transport, job)

    @described_as(Client.stream_samples)
    @known_arguments
    @generate_options
    async def stream_samples(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        **options: Unpack[GenerateOptions],
    ) -> AsyncIterator[Sample]:
        request = GenerateRequest(model, prompts, **options)
        stream = self._calls.stream_samples(request)
        try:
            while (sample := await self._transport.run(stream.next())) is not None:
                yield sample
        finally:
            stream.close()

    @described_as(Client.curve)
    @known_arguments
    async def curve(
        self,
        model: str,
        task: TaskLike,
        circuits: EdgeScores | Circuit | Iterable[Circuit],
        *,
        fractions: Iterable[float] = FRACTIONS,
        rank: str = "absolute",
        greedy: bool = False,
        baselines: int = 3,
        seed: int = 0,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
        timeout: float | None = None,
    ) -> Curve:
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        request = CurveRequest(circuits, fractions, rank, greedy, baselines, seed)
        return await self._transport.run(self._calls.curve(model, task, request, options, timeout))

    @described_as(Client.session)
    @known_arguments
    async def session(
        self,
        model: str,
        task: TaskLike,
        *,
        metric: str = "kl_divergence",
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
    ) -> AsyncSession:
        request = SessionRequest(model, task, metric, ablation, kv_receivers, precision)
        return AsyncSession(self._transport, await self._transport.run(self._calls.session(request)))

    @described_as(Client.job)
    def job(self, name: str) -> AsyncJobHandle:
        return AsyncJobHandle(self._transport, self._calls.job(name))

    @described_as(Client.jobs)
    @known_arguments
    async def jobs(self, limit: int | None = None) -> list[AsyncJobHandle]:
        found = await self._transport.run(self._calls.jobs(limit))
        return [AsyncJobHandle(self._transport, job) for job in found]

    @described_as(Client.close)
    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncJobHandle(JobBase):
    """A `JobHandle` for asyncio: the same with ``await``, as in ``await job.state``; ``async for`` watches.

    A notebook shows it as it stood when the server was last asked.
    """

    def __init__(self, transport: AsyncTransport, calls: JobCalls) -> None:
        self._transport = transport
        self._calls = calls

    @property
    @described_as(JobHandle.state)
    def state(self) -> Awaitable[JobState]:
        return self._transport.run(self._calls.state())

    @property
    @described_as(JobHandle.info)
    def info(self) -> Awaitable[JobInfo]:
        return self._transport.run(self._calls.info())

    @described_as(JobHandle.watch)
    async def watch(self, after_sequence: int = 0) -> AsyncIterator[Event]:
        watch = self._calls.watch(after_sequence)
        try:
            while (event := await self._transport.run(self._calls.next_event(watch))) is not None:
                yield event
        finally:
            watch.close()

    @described_as(JobHandle.result)
    async def result(self, timeout: float | None = None, progress: ProgressLike = None) -> AnyArtifact:
        return await self._transport.run(self._calls.result(timeout, progress))

    @described_as(JobHandle.artifact)
    async def artifact(self) -> AnyArtifact:
        return await self._transport.run(self._calls.artifact())

    @described_as(JobHandle.cancel)
    async def cancel(self, timeout: float | None = None) -> JobState:
        return await self._transport.run(self._calls.cancel(timeout))

    @described_as(JobHandle.delete)
    async def delete(self) -> None:
        await self._transport.run(self._calls.delete())


class AsyncSession(SessionBase):
    """A `Session` for asyncio: the same with ``await``; tasks take turns. Made by `AsyncClient.session`:

    ``async with await client.session(model, task) as session: ...``
    """

    def __init__(self, transport: AsyncTransport, calls: SessionCalls) -> None:
        super().__init__(calls)
        self._transport = transport
        self._lock = asyncio.Lock()

    @described_as(Session.score)
    async def score(self, circuits: Iterable[Edges], *, allow_other_model: bool = False) -> list[float]:
        async with self._lock:
            return await self._transport.run(self._calls.score(circuits, allow_other_model))

    @described_as(Session.score_removed)
    async def score_removed(
        self, removals: Iterable[Edges], *, allow_other_model: bool = False
    ) -> list[float]:
        async with self._lock:
            return await self._transport.run(self._calls.score_removed(removals, allow_other_model))

    @described_as(Session.commit)
    async def commit(
        self,
        *,
        removed: Edges | None = None,
        edges: Edges | None = None,
        allow_other_model: bool = False,
    ) -> None:
        async with self._lock:
            await self._transport.run(self._calls.commit(removed, edges, allow_other_model))

    @described_as(Session.close)
    async def close(self) -> None:
        await self._transport.run(self._calls.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
