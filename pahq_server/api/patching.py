"""The gRPC PatchingService: sessions that score circuits, and the evaluation of a single circuit."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, TypeVar

from pahq.v1 import patching_pb2 as pb
from pahq.v1 import patching_pb2_grpc

from pahq_server.api import conversion
from pahq_server.api.calls import ExpiredError, FairThreadPool, check_owner, current_call
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import ResolvedObjective
from pahq_server.jobs import warnings
from pahq_server.jobs.service import JobService
from pahq_server.jobs.session import Session

# Longest time that an evaluation may take, most of which it waits for its turn.
EVALUATION_S = 3600.0

T = TypeVar("T")


class PatchingServicer(patching_pb2_grpc.PatchingServiceServicer):
    """Answers the calls of PatchingService.

    Work that runs in threads has no effect there, except for commits: a call that is cancelled meanwhile
    leaves nothing behind.

    Args:
        jobs: evaluates circuits; its ``sessions`` are those of all users.
        threads: for what takes long: tokenizing, and messages with thousands of edges.
    """

    def __init__(self, jobs: JobService, threads: FairThreadPool) -> None:
        self._jobs, self._sessions, self._threads = jobs, jobs.sessions, threads

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        resolved = await self._threads.run(
            lambda: self._sessions.resolve(conversion.read_objective(request.objective)), slow=True
        )
        session, ends = self._sessions.open(resolved, user=current_call().caller.user)
        full, empty = await asyncio.wrap_future(ends)
        found = await self._threads.run(lambda: session.warnings(full, empty))
        return pb.OpenSessionResponse(session=conversion.session(session, full, empty, found))

    async def ScoreCircuits(self, request: pb.ScoreCircuitsRequest, context: Any) -> pb.ScoreCircuitsResponse:
        session = self._find(request.name)
        call = await self._threads.run(lambda: session.read(conversion.read_hypotheses(request.hypotheses)))
        metrics = await asyncio.wrap_future(session.submit(call))
        return pb.ScoreCircuitsResponse(metrics=metrics)

    async def CommitCircuit(self, request: pb.CommitCircuitRequest, context: Any) -> pb.CommitCircuitResponse:
        session = self._find(request.name)
        circuit = conversion.read_hypothesis("circuit", request.circuit)
        num_edges = await self._threads.run(lambda: session.commit(circuit))
        return pb.CommitCircuitResponse(num_edges=num_edges)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        self._find(request.name).close()
        return pb.CloseSessionResponse()

    async def EvaluateCircuit(
        self, request: pb.EvaluateCircuitRequest, context: Any
    ) -> pb.EvaluateCircuitResponse:
        user = current_call().caller.user

        def start() -> tuple[ResolvedObjective, Future[tuple[float, float, float]]]:
            objective = conversion.read_objective(request.objective)
            return self._jobs.evaluate(objective, request.edges, user, conversion.read_origin(request))

        resolved, future = await self._threads.run(start, undo=lambda started: started[1].cancel(), slow=True)
        value, full, empty = await _within(EVALUATION_S, future)
        ends = warnings.Ends(resolved.objective.metric, full, empty)

        def find_warnings() -> tuple[str, ...]:
            circuit = Circuit.from_names(resolved.graph, request.edges)
            return warnings.of_evaluation(resolved, circuit, value, ends)

        found = await self._threads.run(find_warnings)
        return pb.EvaluateCircuitResponse(
            metric=conversion.metric(resolved.objective.metric, value, full, empty),
            num_edges_total=resolved.graph.num_edges,
            warnings=found,
        )

    def _find(self, name: str) -> Session:
        """Returns the caller's session of this name.

        Raises:
            NotFoundError: the caller has no such session.
        """
        check_owner("session", name)
        return self._sessions.find(name)


async def _within(seconds: float, future: Future[T]) -> T:
    """Waits for the result of a future, which is cancelled if that takes longer.

    Raises:
        ExpiredError: it took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise ExpiredError from None
