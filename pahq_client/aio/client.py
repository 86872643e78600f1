"""A connection to a PAHQ server, for asyncio."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self, Unpack

from pahq_client.aio.jobs import AsyncJobHandle
from pahq_client.aio.session import AsyncSession
from pahq_client.aio.transport import AsyncTransport
from pahq_client.base import ClientBase, described_as
from pahq_client.circuit import Circuit
from pahq_client.client import Client
from pahq_client.elements import Edge
from pahq_client.endpoint import TlsConfig
from pahq_client.patience import Backoff
from pahq_client.progress import ProgressLike
from pahq_client.request import (
    DiscoveryOptions,
    DiscoveryRequest,
    MeasurementOptions,
    SessionOptions,
    SessionRequest,
)
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo
from pahq_client.task import TaskLike


class AsyncClient(ClientBase):
    """A `Client` for asyncio: the same methods and arguments, with ``await`` wherever the server is asked.

    An asynchronous context manager. It belongs to the event loop in which it makes its first call; any
    number of tasks may use it at a time. A task that is cancelled ends its call, and if that is `discover`,
    the discovery. ``progress`` is called in the event loop and must not block.
    """

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

    @described_as(Client.server_info)
    async def server_info(self) -> ServerInfo:
        return await self._transport.run(self._flows.server_info())

    @described_as(Client.evaluate)
    async def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | Iterable[str | Edge],
        **options: Unpack[MeasurementOptions],
    ) -> Evaluation:
        return await self._transport.run(self._flows.evaluate(model, task, circuit, options))

    @described_as(Client.estimate)
    async def estimate(
        self, model: str, task: TaskLike, threshold: float | None = None, **options: Unpack[DiscoveryOptions]
    ) -> Estimate:
        request = DiscoveryRequest(model, task, threshold, **options)
        return await self._transport.run(self._flows.estimate(request))

    @described_as(Client.submit)
    async def submit(
        self, model: str, task: TaskLike, threshold: float | None = None, **options: Unpack[DiscoveryOptions]
    ) -> AsyncJobHandle:
        request = DiscoveryRequest(model, task, threshold, **options)
        return AsyncJobHandle(self._transport, await self._transport.run(self._flows.submit(request)))

    @described_as(Client.discover)
    async def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[DiscoveryOptions],
    ) -> Circuit:
        request = DiscoveryRequest(model, task, threshold, **options)
        return await self._transport.run(self._flows.discover(request, timeout, progress))

    @described_as(Client.session)
    async def session(self, model: str, task: TaskLike, **options: Unpack[SessionOptions]) -> AsyncSession:
        request = SessionRequest(model, task, **options)
        return AsyncSession(self._transport, await self._transport.run(self._flows.session(request)))

    @described_as(Client.job)
    def job(self, name: str) -> AsyncJobHandle:
        return AsyncJobHandle(self._transport, self._flows.job(name))

    @described_as(Client.jobs)
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
