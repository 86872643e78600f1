"""A session on a server, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pahq_client.aio.transport import AsyncTransport
from pahq_client.base import SessionBase, described_as
from pahq_client.flows.session import Edges
from pahq_client.session import SessionCalls as SessionFlows
from pahq_client.session import Session


class AsyncSession(SessionBase):
    """A `Session` for asyncio: the same with ``await``; tasks take turns. Made by `AsyncClient.session`:

    ``async with await client.session(model, task) as session: ...``
    """

    def __init__(self, transport: AsyncTransport, flows: SessionFlows) -> None:
        super().__init__(flows)
        self._transport = transport
        self._lock = asyncio.Lock()

    @described_as(Session.score)
    async def score(self, circuits: Iterable[Edges], *, allow_other_model: bool = False) -> list[float]:
        async with self._lock:
            return await self._transport.run(self._flows.score(circuits, allow_other_model))

    @described_as(Session.score_removed)
    async def score_removed(
        self, removals: Iterable[Edges], *, allow_other_model: bool = False
    ) -> list[float]:
        async with self._lock:
            return await self._transport.run(self._flows.score_removed(removals, allow_other_model))

    @described_as(Session.commit)
    async def commit(
        self,
        *,
        removed: Edges | None = None,
        edges: Edges | None = None,
        allow_other_model: bool = False,
    ) -> None:
        async with self._lock:
            await self._transport.run(self._flows.commit(removed, edges, allow_other_model))

    @described_as(Session.close)
    async def close(self) -> None:
        await self._transport.run(self._flows.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
