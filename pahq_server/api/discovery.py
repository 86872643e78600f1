"""DiscoveryService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pahq.v1 import discovery_pb2 as pb
from pahq.v1 import discovery_pb2_grpc

from pahq_server.api import requests, responses
from pahq_server.api.errors import guarded
from pahq_server.core.errors import ConflictError, InvalidRequestError
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.service import JobService

# At most this many events per second and watcher; in between they are merged into the latest one.
EVENTS_PER_SECOND = 10


class DiscoveryService(discovery_pb2_grpc.DiscoveryServiceServicer):
    """Speaks for a `JobService`."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs

    async def CreateDiscovery(
        self, request: pb.CreateDiscoveryRequest, context: Any
    ) -> pb.CreateDiscoveryResponse:
        async with guarded(context):
            spec = requests.discovery_spec(request.spec)
            # Tokenizing can take long: not on the event loop.
            job = await asyncio.to_thread(self._jobs.create, spec, request.request_id, request.validate_only)
            return pb.CreateDiscoveryResponse(discovery=responses.discovery(job))

    async def GetDiscovery(self, request: pb.GetDiscoveryRequest, context: Any) -> pb.GetDiscoveryResponse:
        async with guarded(context):
            job = self._jobs.find(request.name)
            return pb.GetDiscoveryResponse(discovery=responses.discovery(job))

    async def ListDiscoveries(
        self, request: pb.ListDiscoveriesRequest, context: Any
    ) -> pb.ListDiscoveriesResponse:
        async with guarded(context):
            jobs, token = _page(self._jobs.newest_first(), request.page_size, request.page_token)
            return pb.ListDiscoveriesResponse(
                discoveries=[responses.discovery(job) for job in jobs], next_page_token=token
            )

    async def CancelDiscovery(
        self, request: pb.CancelDiscoveryRequest, context: Any
    ) -> pb.CancelDiscoveryResponse:
        async with guarded(context):
            job = self._jobs.cancel(request.name)
            return pb.CancelDiscoveryResponse(discovery=responses.discovery(job))

    async def DeleteDiscovery(
        self, request: pb.DeleteDiscoveryRequest, context: Any
    ) -> pb.DeleteDiscoveryResponse:
        async with guarded(context):
            self._jobs.delete(request.name)
            return pb.DeleteDiscoveryResponse()

    async def WatchDiscovery(
        self, request: pb.WatchDiscoveryRequest, context: Any
    ) -> AsyncIterator[pb.WatchDiscoveryResponse]:
        async with guarded(context):
            job = self._jobs.find(request.name)
            async for event in _watch(job, request.after_sequence):
                yield pb.WatchDiscoveryResponse(event=event)

    async def GetCircuit(
        self, request: pb.GetCircuitRequest, context: Any
    ) -> AsyncIterator[pb.GetCircuitResponse]:
        async with guarded(context):
            now = self._jobs.find(request.name).snapshot
            if now.result is None:
                raise ConflictError(f"{request.name} has no circuit: it is {now.state.name}")
            for page in responses.circuit_pages(now.result):
                yield page

    async def EvaluateCircuit(
        self, request: pb.EvaluateCircuitRequest, context: Any
    ) -> pb.EvaluateCircuitResponse:
        async with guarded(context):
            measurement = requests.measurement(request.measurement)
            prepared, future = await asyncio.to_thread(self._jobs.evaluate, measurement, request.edges)
            value, full, empty = await asyncio.wrap_future(future)
            return pb.EvaluateCircuitResponse(
                metric=responses.metric(measurement.metric, value, full, empty),
                num_edges_total=prepared.graph.num_edges,
            )


async def _watch(job: Job, after: int) -> AsyncIterator[pb.Event]:
    """Events of a job with a sequence above ``after``, merged where they come too fast."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    stop_listening = job.listen(lambda: _notify(loop, changed))
    before = None
    try:
        while True:
            changed.clear()
            now = job.snapshot
            if now.sequence > after:
                yield responses.event(job, now, before)
                before, after = now, now.sequence
            if now.state.final:
                return
            await changed.wait()
            if now.state is JobState.RUNNING:
                await asyncio.sleep(1 / EVENTS_PER_SECOND)
    finally:
        stop_listening()


def _notify(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    # The loop is closed once the server has stopped; nobody is watching then.
    if not loop.is_closed():
        loop.call_soon_threadsafe(changed.set)


def _page(jobs: list[Job], size: int, token: str) -> tuple[list[Job], str]:
    """One page, newest first, and the token of the next. A token is the name of the page's first job."""
    if not 0 <= size <= 1000:
        raise InvalidRequestError("page_size", f"{size} is outside of [0, 1000]")
    names = [job.name for job in jobs]
    if token and token not in names:
        raise InvalidRequestError("page_token", "is not from an earlier response, or its job is gone")
    start = names.index(token) if token else 0
    end = start + (size or 50)
    return jobs[start:end], names[end] if end < len(names) else ""
