"""A connection to a PAHQ server, for asyncio."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pahq_client.aio.jobs import AsyncJobHandle
from pahq_client.aio.session import AsyncSession
from pahq_client.aio.transport import AsyncTransport
from pahq_client.base import ClientBase, described_as
from pahq_client.checks import known_arguments
from pahq_client.circuit import Circuit
from pahq_client.client import Client
from pahq_client.elements import Edge
from pahq_client.endpoint import TlsConfig
from pahq_client.patience import Backoff
from pahq_client.progress import ProgressLike
from pahq_client._requests import JobRequest as DiscoveryRequest
from pahq_client._requests import EvaluationOptions as MeasurementOptions
from pahq_client.request import SessionRequest
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
from pahq_client.task import TaskLike


class AsyncClient(ClientBase):
    """A `Client` for asyncio: the same methods and arguments, with ``await`` wherever the server is asked.

    An asynchronous context manager. It belongs to the event loop in which it makes its first call; any
    number of tasks may use it at a time. A task that is cancelled ends its call, and if that is `discover`,
    the discovery. ``progress`` is called in the event loop and must not block.
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
        return await self._transport.run(self._flows.models())

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
        return await self._transport.run(self._flows.tokenize(model, texts, prompt, special_tokens))

    @described_as(Client.server_info)
    async def server_info(self) -> ServerInfo:
        return await self._transport.run(self._flows.server_info())

    @described_as(Client.evaluate)
    @known_arguments
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
    ) -> Evaluation:
        options: MeasurementOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return await self._transport.run(self._flows.evaluate(model, task, circuit, options))

    @described_as(Client.estimate)
    @known_arguments
    async def estimate(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        method: str = "acdc",
        metric: str = "kl_divergence",
        ablation: str = "resample",
        gates: bool = True,
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
    ) -> Estimate:
        request = DiscoveryRequest(
            model, task, threshold, method, metric, ablation, gates, kv_receivers, precision, include_prompts
        )
        return await self._transport.run(self._flows.estimate(request))

    @described_as(Client.submit)
    @known_arguments
    async def submit(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        method: str = "acdc",
        metric: str = "kl_divergence",
        ablation: str = "resample",
        gates: bool = True,
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
    ) -> AsyncJobHandle:
        request = DiscoveryRequest(
            model, task, threshold, method, metric, ablation, gates, kv_receivers, precision, include_prompts
        )
        return AsyncJobHandle(self._transport, await self._transport.run(self._flows.submit(request)))

    @described_as(Client.discover)
    @known_arguments
    async def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        method: str = "acdc",
        metric: str = "kl_divergence",
        ablation: str = "resample",
        gates: bool = True,
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> Circuit:
        request = DiscoveryRequest(
            model, task, threshold, method, metric, ablation, gates, kv_receivers, precision, include_prompts
        )
        return await self._transport.run(self._flows.discover(request, timeout, progress))

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
        return AsyncSession(self._transport, await self._transport.run(self._flows.session(request)))

    @described_as(Client.job)
    def job(self, name: str) -> AsyncJobHandle:
        return AsyncJobHandle(self._transport, self._flows.job(name))

    @described_as(Client.jobs)
    @known_arguments
    async def jobs(self, limit: int | None = None) -> list[AsyncJobHandle]:
        found = await self._transport.run(self._flows.jobs(limit))
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
