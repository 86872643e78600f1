"""DiscoveryService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from pahq.v1 import discovery_pb2 as pb
from pahq.v1 import discovery_pb2_grpc

from pahq_server.api import requests, responses
from pahq_server.api.calls import ExpiredError, check_owner, current_call
from pahq_server.api.threads import Threads
from pahq_server.api.watching import Watchers
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import ConflictError
from pahq_server.jobs import warnings
from pahq_server.jobs.job import Job
from pahq_server.jobs.service import JobService

# An evaluation takes seconds, and may wait for its turn. Nobody waits for one as for a discovery.
EVALUATION_S = 3600.0

T = TypeVar("T")


class DiscoveryService(discovery_pb2_grpc.DiscoveryServiceServicer):
    """Speaks for a `JobService`.

    Args:
        jobs: of all users.
        threads: where what takes long happens: tokenizing, the disk, and messages with thousands of parts.
    """

    def __init__(self, jobs: JobService, threads: Threads) -> None:
        self._jobs, self._threads = jobs, threads
        self._watchers = Watchers()

    async def CreateDiscovery(
        self, request: pb.CreateDiscoveryRequest, context: Any
    ) -> pb.CreateDiscoveryResponse:
        user = current_call().caller.user
        if request.validate_only:
            checked, estimate = await self._threads.run(
                lambda: self._jobs.check(requests.discovery_spec(request.spec), request.request_id, user),
                slow=True,
            )
            return pb.CreateDiscoveryResponse(
                discovery=responses.discovery(checked),
                estimate=responses.estimate(estimate, checked.warnings),
            )

        def create() -> Job:
            return self._jobs.create(requests.discovery_spec(request.spec), request.request_id, user)

        # A client that chose a request id will ask again for what it created. Without one, nobody will.
        undo = None if request.request_id else Job.cancel
        job = await self._threads.run(create, undo, slow=True)
        return pb.CreateDiscoveryResponse(discovery=responses.discovery(job))

    async def GetDiscovery(self, request: pb.GetDiscoveryRequest, context: Any) -> pb.GetDiscoveryResponse:
        return pb.GetDiscoveryResponse(discovery=responses.discovery(await self._find(request.name)))

    async def ListDiscoveries(
        self, request: pb.ListDiscoveriesRequest, context: Any
    ) -> pb.ListDiscoveriesResponse:
        caller = current_call().caller
        user = None if caller.admin else caller.user

        def page() -> pb.ListDiscoveriesResponse:
            jobs, token = self._jobs.page(user, request.page_size, request.page_token)
            return pb.ListDiscoveriesResponse(
                discoveries=map(responses.discovery, jobs), next_page_token=token
            )

        return await self._threads.run(page)

    async def CancelDiscovery(
        self, request: pb.CancelDiscoveryRequest, context: Any
    ) -> pb.CancelDiscoveryResponse:
        check_owner("discovery", request.name)
        job = await self._threads.run(lambda: self._jobs.cancel(request.name))
        return pb.CancelDiscoveryResponse(discovery=responses.discovery(job))

    async def DeleteDiscovery(
        self, request: pb.DeleteDiscoveryRequest, context: Any
    ) -> pb.DeleteDiscoveryResponse:
        check_owner("discovery", request.name)
        await self._threads.run(lambda: self._jobs.delete(request.name))
        return pb.DeleteDiscoveryResponse()

    async def WatchDiscovery(
        self, request: pb.WatchDiscoveryRequest, context: Any
    ) -> AsyncIterator[pb.WatchDiscoveryResponse]:
        job = await self._find(request.name)
        async with aclosing(self._watchers.events(job, request.after_sequence)) as events:
            async for event in events:
                yield pb.WatchDiscoveryResponse(event=event)

    async def GetCircuit(
        self, request: pb.GetCircuitRequest, context: Any
    ) -> AsyncIterator[pb.GetCircuitResponse]:
        job = await self._find(request.name)
        result = await self._threads.run(lambda: self._jobs.result(request.name))
        if result is None:
            raise ConflictError(f"{request.name} has no circuit: it is {job.snapshot.state.name}")
        pages = responses.circuit_pages(result)
        while (page := await self._threads.run(lambda: next(pages, None))) is not None:
            yield page

    async def EvaluateCircuit(
        self, request: pb.EvaluateCircuitRequest, context: Any
    ) -> pb.EvaluateCircuitResponse:
        user = current_call().caller.user

        def evaluate() -> tuple[ResolvedObjective, Future[tuple[float, float, float]]]:
            objective = requests.objective(request.objective)
            return self._jobs.evaluate(objective, request.edges, user, requests.origin(request))

        resolved, future = await self._threads.run(
            evaluate, undo=lambda started: started[1].cancel(), slow=True
        )
        value, full, empty = await _within(EVALUATION_S, future)
        ends = warnings.Ends(resolved.objective.metric, full, empty)

        def judge() -> tuple[str, ...]:
            circuit = Circuit.from_names(resolved.graph, request.edges)
            return warnings.of_evaluation(resolved, circuit, value, ends)

        found = await self._threads.run(judge)
        return pb.EvaluateCircuitResponse(
            metric=responses.metric(resolved.objective.metric, value, full, empty),
            num_edges_total=resolved.graph.num_edges,
            warnings=found,
        )

    async def _find(self, name: str) -> Job:
        """The caller's job of this name. Raises NotFoundError."""
        check_owner("discovery", name)
        return await self._threads.run(lambda: self._jobs.find(name))


async def _within(seconds: float, future: Future[T]) -> T:
    """The result of a future, which is cancelled if it takes longer. Raises ExpiredError then."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise ExpiredError from None
