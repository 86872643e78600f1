"""The gRPC PatchingService: sessions that score circuits, and evaluations of given circuits."""

from __future__ import annotations

import asyncio
from typing import Any

from pahq.v1 import patching_pb2 as pb
from pahq.v1 import patching_pb2_grpc

from pahq_server.api import conversion, node_conversion
from pahq_server.api.calls import FairThreadPool, check_owner, current_call, within
from pahq_server.jobs.evaluation import Evaluation, EvaluationService
from pahq_server.jobs.node_evaluation import NodeEvaluation, NodeEvaluationService
from pahq_server.jobs.sessions import PatchingSession, SessionService

# Longest time that an evaluation may take, most of which it waits for its turn.
EVALUATION_S = 3600.0


class PatchingServicer(patching_pb2_grpc.PatchingServiceServicer):
    """Answers the calls of PatchingService.

    Work that runs in threads has no effect there, except for commits: a call that is cancelled meanwhile
    leaves nothing behind.

    Args:
        sessions: opens and finds the sessions of all users.
        evaluations: evaluates circuits.
        node_evaluations: evaluates circuits of nodes.
        threads: for what takes long: tokenizing, and messages with thousands of edges.
    """

    def __init__(
        self,
        sessions: SessionService,
        evaluations: EvaluationService,
        node_evaluations: NodeEvaluationService,
        threads: FairThreadPool,
    ) -> None:
        self._sessions, self._threads = sessions, threads
        self._evaluations, self._node_evaluations = evaluations, node_evaluations

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        resolved = await self._threads.run(
            lambda: self._sessions.resolve(conversion.read_objective(request.objective)), slow=True
        )
        session, endpoints = self._sessions.open(resolved, user=current_call().caller.user)
        full, empty = await asyncio.wrap_future(endpoints)
        found = await self._threads.run(lambda: session.warnings(full, empty))
        return pb.OpenSessionResponse(session=conversion.session(session, full, empty, found))

    async def ScoreCircuits(self, request: pb.ScoreCircuitsRequest, context: Any) -> pb.ScoreCircuitsResponse:
        session = self._find(request.name)
        call = await self._threads.run(
            lambda: session.read(conversion.read_session_circuits(request.circuits))
        )
        metrics = await asyncio.wrap_future(session.submit(call))
        return pb.ScoreCircuitsResponse(metrics=metrics)

    async def CommitCircuit(self, request: pb.CommitCircuitRequest, context: Any) -> pb.CommitCircuitResponse:
        session = self._find(request.name)
        circuit = conversion.read_session_circuit("circuit", request.circuit)
        num_edges = await self._threads.run(lambda: session.commit(circuit))
        return pb.CommitCircuitResponse(num_edges=num_edges)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        self._find(request.name).close()
        return pb.CloseSessionResponse()

    async def EvaluateCircuits(
        self, request: pb.EvaluateCircuitsRequest, context: Any
    ) -> pb.EvaluateCircuitsResponse:
        user = current_call().caller.user

        def start() -> Evaluation:
            objective = conversion.read_objective(request.objective)
            circuits = conversion.read_evaluated_circuits(request.circuits)
            return self._evaluations.evaluate(objective, circuits, user)

        evaluation = await self._threads.run(start, undo=lambda started: started.future.cancel(), slow=True)
        metrics = await within(EVALUATION_S, evaluation.future)
        resolved = evaluation.resolved
        return pb.EvaluateCircuitsResponse(
            metric=resolved.objective.metric,
            values=metrics.values,
            full=metrics.full,
            empty=metrics.empty,
            num_edges_total=resolved.graph.num_edges,
            warnings=await self._threads.run(evaluation.warnings),
        )

    async def EvaluateNodes(self, request: pb.EvaluateNodesRequest, context: Any) -> pb.EvaluateNodesResponse:
        user = current_call().caller.user

        def start() -> NodeEvaluation:
            objective = conversion.read_objective(request.objective)
            circuits = node_conversion.read_node_sets(request.circuits)
            return self._node_evaluations.evaluate(objective, circuits, user)

        evaluation = await self._threads.run(start, undo=lambda started: started.future.cancel(), slow=True)
        found = await within(EVALUATION_S, evaluation.future)
        return node_conversion.node_evaluation(found, await self._threads.run(evaluation.warnings))

    def _find(self, name: str) -> PatchingSession:
        """Returns the caller's session of this name.

        Raises:
            NotFoundError: the caller has no such session.
        """
        check_owner("session", name)
        return self._sessions.find(name)
