"""A discovery on a server, seen from a coroutine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from pahq_client.aio.transport import AsyncTransport
from pahq_client.base import JobBase, described_as
from pahq_client.circuit import Circuit
from pahq_client.events import Event, JobInfo, JobState
from pahq_client.jobs import JobCalls as JobFlows
from pahq_client.jobs import JobHandle
from pahq_client.progress import ProgressLike


class AsyncJobHandle(JobBase):
    """A `JobHandle` for asyncio: the same with ``await``, as in ``await job.state``; ``async for`` watches.

    A notebook shows it as it stood when the server was last asked.
    """

    def __init__(self, transport: AsyncTransport, flows: JobFlows) -> None:
        self._transport = transport
        self._flows = flows

    @property
    @described_as(JobHandle.state)
    def state(self) -> Awaitable[JobState]:
        return self._transport.run(self._flows.state())

    @property
    @described_as(JobHandle.info)
    def info(self) -> Awaitable[JobInfo]:
        return self._transport.run(self._flows.info())

    @described_as(JobHandle.watch)
    async def watch(self, after_sequence: int = 0) -> AsyncIterator[Event]:
        watch = self._flows.watch(after_sequence)
        try:
            while (event := await self._transport.run(self._flows.next_event(watch))) is not None:
                yield event
        finally:
            watch.close()

    @described_as(JobHandle.result)
    async def result(self, timeout: float | None = None, progress: ProgressLike = None) -> Circuit:
        return await self._transport.run(self._flows.result(timeout, progress))

    @described_as(JobHandle.cancel)
    async def cancel(self, timeout: float | None = None) -> JobState:
        return await self._transport.run(self._flows.cancel(timeout))

    @described_as(JobHandle.delete)
    async def delete(self) -> None:
        await self._transport.run(self._flows.delete())
